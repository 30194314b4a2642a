from __future__ import annotations

import itertools
from typing import Any

import emulation_entries as entries
import numpy as np
import pytest

from player.records import LinkRecord
from player.trace import Trace
from testbed.links import backends
from testbed.links.backends import LinkUnsupported, choose_backend
from testbed.links.measurement import LinkSecond, measure
from testbed.links.spec import (
    DirectionSpec,
    GilbertElliott,
    LinkChange,
    LinkSpec,
    QueueSpec,
    constant_trace,
)
from testbed.sandbox import SandboxError

LOOSE_NMAE = 0.02
JOB = {"times_s": [0, 0.7, 1.5, 2.6, 4], "rates_mbps": [1, 0.5, 4, 1, 2]}


def second(number: int, asked: float, delivered: float, *, saturated: bool = True) -> LinkSecond:
    return LinkSecond(number, float(number), number + 1.0, asked, delivered, saturated, 10, 0)


def test_the_error_is_relative_to_what_was_asked_of_saturated_bins() -> None:
    bins = [
        second(0, 100, 0),  # the first two are warm-up
        second(1, 100, 0),
        second(2, 100, 90),
        second(3, 300, 310),
        second(4, 100, 20, saturated=False),  # nothing to send: no error
        second(5, 100, 104, saturated=False),  # too much is one all the same
    ]
    record = measure(bins, backend="kernel")
    assert record.backend == "kernel"
    assert record.wire_nmae_1s == pytest.approx(24 / 400)
    assert record.total_error == pytest.approx(0.0)
    assert record.saturated_s == 2.0


def test_a_short_session_is_measured_from_its_start() -> None:
    record = measure([second(0, 100, 90), second(1, 100, 100)], backend="kernel")
    assert record.wire_nmae_1s == pytest.approx(0.05)
    assert record.total_error == pytest.approx(-0.05)


@pytest.mark.parametrize(
    "bins",
    [
        [],
        [second(n, 100, 10, saturated=False) for n in range(5)],
        [second(n, 0, 0) for n in range(5)],
    ],
)
def test_without_a_saturated_bin_there_is_no_error(bins: list[LinkSecond]) -> None:
    assert measure(bins, backend="kernel") == LinkRecord(backend="kernel")


def link_of(*, backend: str = "auto", up: DirectionSpec | None = None, **down: Any) -> LinkSpec:
    changes = down.pop("changes", ())
    spec = DirectionSpec(trace=constant_trace(2.0), **down)
    return LinkSpec(down=spec, up=up or DirectionSpec(), backend=backend, changes=changes)


def pretend(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    def qdisc_problem(kind: str, *options: str) -> str | None:
        return f"{kind} is unknown" if kind in missing else None

    monkeypatch.setattr(backends, "qdisc_problem", qdisc_problem)
    monkeypatch.setattr(backends, "tap_problem", lambda: "none" if "tap" in missing else None)


CODEL = QueueSpec(kind="codel")
PIE = QueueSpec(kind="pie")
JITTER = DirectionSpec(delay_ms=10.0, jitter_ms=2.0)


@pytest.mark.parametrize(
    ("asked", "missing", "name", "why"),
    [
        ({}, (), "kernel", "can do all"),
        ({"queue": CODEL}, (), "kernel", "can do all"),
        ({"queue": QueueSpec(size_bytes=30_000)}, (), "kernel", "can do all"),
        ({"queue": CODEL}, ("codel",), "userspace", "queue = codel needs codel"),
        ({"queue": QueueSpec(size_bytes=30_000)}, ("bfifo",), "userspace", "needs bfifo"),
        ({"queue": PIE}, (), "userspace", "seed"),
        ({"queue": PIE}, ("tap",), "kernel", "modprobe tun"),
        ({"loss": 0.1}, (), "userspace", "seed"),
        ({"loss": 0.1}, ("tap",), "kernel", "cannot be repeated"),
        ({"duplicate": 0.1}, ("netem",), "userspace", "duplicate = 0.1 needs netem"),
        ({"up": JITTER}, (), "userspace", "seed"),
        ({"up": JITTER}, ("netem",), "userspace", "up delay_ms = 10.0, up jitter_ms = 2.0 needs"),
        ({"loss": GilbertElliott(to_bad=0.1, to_good=0.5)}, ("netem",), "userspace", "= bursts"),
        ({"replay": "opportunities"}, (), "userspace", "replay = opportunities"),
        ({"changes": (LinkChange(at_s=3, rate_mbps=1.0),)}, ("netem",), "kernel", "can do all"),
        ({"changes": (LinkChange(at_s=3, delay_ms=9.0),)}, (), "kernel", "can do all"),
        ({"changes": (LinkChange(at_s=3, delay_ms=9.0),)}, ("netem",), "userspace", "at 3 s = 9"),
        ({"changes": (LinkChange(at_s=3, loss=0.5),)}, (), "userspace", "seed"),
    ],
)
def test_the_back_end_is_the_most_faithful_one(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], missing: tuple[str, ...], name: str,
    why: str,
) -> None:  # fmt: skip
    pretend(monkeypatch, *missing)
    chosen = choose_backend(link_of(**asked))
    assert chosen.name == name
    assert why in chosen.why


def test_a_refusal_names_everything_that_is_missing_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, "netem", "codel", "tap")
    up = DirectionSpec(trace=constant_trace(1.0), replay="opportunities")
    queue = QueueSpec(kind="codel", size_bytes=30_000)
    asked = link_of(backend="kernel", up=up, queue=queue, delay_ms=5.0, loss=0.1)
    with pytest.raises(LinkUnsupported) as caught:
        choose_backend(asked, controller_delay_ms=7.0)
    for part in (
        "up replay = opportunities",
        'set replay to "rate"',
        "queue_bytes = 30000",
        "queue = codel needs codel",
        "sch_codel",
        "delay_ms = 5.0, loss = 0.1, controller delay_ms = 7.0 needs netem",
        "sch_netem",
        "back-end userspace",
    ):
        assert part in str(caught.value)
    with pytest.raises(LinkUnsupported, match=r"sch_codel.*modprobe tun"):
        choose_backend(asked.replace(backend="auto"))


@pytest.mark.emulation
def test_a_download_gets_what_the_trace_gives() -> None:
    entries.require(network=True)
    (seen,) = entries.collect("replay", {**JOB, "seconds": 6, "link": {"start_s": 1.0}})
    record = seen["record"]
    seconds = [second for second in seen["seconds"] if second["direction"] == "down"]
    assert record["wire_nmae_1s"] <= LOOSE_NMAE
    assert abs(record["total_error"]) <= LOOSE_NMAE
    assert record["saturated_s"] >= 2
    assert [bin_["second"] for bin_ in seconds] == list(range(len(seconds)))
    trace = Trace("test", np.array(JOB["times_s"]), np.array(JOB["rates_mbps"]))
    for before, after in itertools.pairwise(seconds):
        assert before["end_s"] == after["begin_s"]
    asked_bits = trace.bits_until(1.0 + seconds[-1]["end_s"]) - trace.bits_until(1.0)
    assert sum(bin_["asked_bits"] for bin_ in seconds) == pytest.approx(float(asked_bits))


@pytest.mark.emulation
def test_an_outage_stops_the_link_and_only_for_its_time() -> None:
    entries.require(network=True)
    job = {"times_s": [0, 3, 5, 7], "rates_mbps": [1, 2, 0, 2], "seconds": 6}
    (seen,) = entries.collect("replay", job)
    dead = [b for b in seen["seconds"] if b["begin_s"] > 3.05 and b["end_s"] < 5]
    assert sum(bin_["delivered_bits"] for bin_ in dead) <= 12_000
    assert seen["record"]["wire_nmae_1s"] <= LOOSE_NMAE


@pytest.mark.emulation
def test_networks_side_by_side_do_not_meet() -> None:
    entries.require(network=True)
    job = {**JOB, "seconds": 5, "networks": 4}
    seen = entries.collect("side_by_side", job)
    assert len(seen) == 4
    for message in seen:
        assert message["record"]["wire_nmae_1s"] <= LOOSE_NMAE


@pytest.mark.emulation
def test_shaping_that_is_taken_away_stops_the_session() -> None:
    entries.require(network=True)
    with pytest.raises(SandboxError, match="s1-eth2") as caught:
        entries.collect("lose_class", JOB)
    assert caught.value.kind == "ShapingError"


@pytest.mark.emulation
def test_an_unknown_back_end_is_refused_with_the_alternatives() -> None:
    entries.require(network=True)
    (answer,) = entries.collect("support", {"jobs": [{**JOB, "link": {"backend": "magic"}}]})
    assert answer["type"] == "LinkUnsupported"
    assert "magic" in answer["error"]
    assert "kernel, userspace" in answer["error"]
    assert answer["interfaces"] == ["lo"]


@pytest.mark.emulation
def test_the_kernel_without_netem_is_refused_delay_or_loss_before_anything_is_built() -> None:
    entries.require(network=True)
    if entries.has_netem():
        pytest.skip("this kernel has netem")
    asked: list[dict[str, Any]] = [
        {"link": {"backend": "kernel", "delay_ms": 30.0}},
        {"link": {"backend": "kernel", "loss": 0.01}},
        {"link": {"backend": "kernel"}, "network": {"controller_delay_ms": 30.0}},
    ]
    seen = entries.collect("support", {"jobs": [{**JOB, **more} for more in asked]})
    assert len(seen) == len(asked)
    for answer in seen:
        assert answer["type"] == "LinkUnsupported"
        assert "netem" in answer["error"]
        assert "userspace" in answer["error"]
        assert answer["interfaces"] == ["lo"]


@pytest.mark.emulation
def test_netem_delays_each_path_by_its_own() -> None:
    entries.require(network=True)
    if not entries.has_netem():
        pytest.skip("this kernel has no netem (module sch_netem)")
    link = {"backend": "kernel", "delay_ms": 30.0}
    job = {**JOB, "link": link, "network": {"controller_delay_ms": 10.0}}
    (seen,) = entries.collect("round_trips", job)
    assert 0.06 <= seen["server"] <= 0.5
    assert 0.02 <= seen["controller"] <= 0.5
    (replayed,) = entries.collect("replay", {**job, "seconds": 8})
    assert replayed["record"]["wire_nmae_1s"] <= LOOSE_NMAE
