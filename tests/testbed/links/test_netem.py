"""netem: what tc is told, what is read back, and what becomes of real packets."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import kernel_entries as entries
import pytest

from testbed.links import netem
from testbed.links.htb import ShapingError
from testbed.links.netem import (
    GE_MODEL,
    MAX_U32,
    NETEM_LOSS_GE,
    ORDERING_BYTES_PER_S,
    QOPT,
    S64,
    TCA_NETEM_JITTER64,
    TCA_NETEM_LATENCY64,
    TCA_NETEM_LOSS,
    TCA_NETEM_RATE64,
    U64,
    Netem,
    difference,
    netem_options,
)
from testbed.links.netlink import NLMSG_HEADER, TCA_OPTIONS, TCMSG, attribute
from testbed.links.process import Port
from testbed.links.spec import DirectionSpec, GilbertElliott

QUANTILE_99 = 2.576  # of the normal distribution, two-sided
NEIGHBOURS = 3  # places; every CPU hands over its own packets, so such may swap on any path
BURSTS = GilbertElliott(to_bad=0.02, to_good=0.2)
JITTER = {"delay_ms": 40.0, "jitter_ms": 20.0}


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        (DirectionSpec(), ""),
        (DirectionSpec(delay_ms=20), "limit 100000 delay 20.000ms rate 1tbit"),
        (DirectionSpec(delay_ms=20, reorder=True), "limit 100000 delay 20.000ms"),
        (DirectionSpec(**JITTER), "limit 100000 delay 40.000ms 20.000ms rate 1tbit"),
        (
            DirectionSpec(**JITTER, jitter="normal", reorder=True),
            "limit 100000 delay 40.000ms 20.000ms distribution normal",
        ),
        (DirectionSpec(loss=0.01), "limit 100000 loss 1.000000%"),
        (
            DirectionSpec(loss=GilbertElliott(to_bad=0.1, to_good=0.5, loss_good=0.01)),
            "limit 100000 loss gemodel 10.000000% 50.000000% 100.000000% 1.000000%",
        ),
        (
            DirectionSpec(duplicate=0.5, loss=0.1),
            "limit 100000 loss 10.000000% duplicate 50.000000%",
        ),
    ],
)
def test_tc_is_told_what_is_asked(spec: DirectionSpec, asked: str) -> None:
    assert " ".join(netem_options(spec)) == asked


def kernel_says(
    *, delay_ns: int = 0, jitter_ns: int = 0, rate: int = 0, loss: float = 0.0,
    model: tuple[float, ...] = (), duplicate: float = 0.0,
) -> bytes:  # fmt: skip
    options = QOPT.pack(0, 1000, round(loss * MAX_U32), 0, round(duplicate * MAX_U32), 0)
    options += attribute(TCA_NETEM_LATENCY64, S64.pack(delay_ns))
    options += attribute(TCA_NETEM_JITTER64, S64.pack(jitter_ns))
    if rate:
        options += attribute(TCA_NETEM_RATE64, U64.pack(rate))
    if model:
        fractions = GE_MODEL.pack(*(round(share * MAX_U32) for share in model))
        options += attribute(TCA_NETEM_LOSS, attribute(NETEM_LOSS_GE, fractions))
    return bytes(NLMSG_HEADER.size + TCMSG.size) + attribute(TCA_OPTIONS, options)


ORDERED = {"delay_ns": 40_000_000, "jitter_ns": 20_000_000, "rate": ORDERING_BYTES_PER_S}


@pytest.mark.parametrize(
    ("spec", "found", "is_right"),
    [
        (DirectionSpec(), {}, True),
        (DirectionSpec(**JITTER), ORDERED, True),
        (DirectionSpec(**JITTER), ORDERED | {"rate": 0}, False),
        (DirectionSpec(**JITTER), ORDERED | {"jitter_ns": 0}, False),
        (DirectionSpec(**JITTER), ORDERED | {"delay_ns": 30_000_000}, False),
        (DirectionSpec(**JITTER), ORDERED | {"loss": 0.001}, False),
        (DirectionSpec(loss=0.05), {"loss": 0.05}, True),
        (DirectionSpec(loss=BURSTS), {"model": (0.02, 0.2, 0.0, 0.0)}, True),
        (DirectionSpec(loss=BURSTS), {"model": (0.02, 0.2, 1.0, 0.0)}, False),
        (DirectionSpec(loss=BURSTS), {"loss": BURSTS.mean_loss}, False),
        (DirectionSpec(duplicate=0.1), {"duplicate": 0.2}, False),
    ],
)
def test_what_is_read_back_must_be_what_was_asked(
    spec: DirectionSpec, found: dict[str, Any], is_right: bool
) -> None:
    assert (difference(spec, kernel_says(**found)) is None) == is_right


class FakeCounter:
    """Stands in for the kernel's netem."""

    found: str | None = None

    def __init__(self, interface: str) -> None:
        pass

    def difference(self, spec: DirectionSpec) -> str | None:
        return self.found

    def read_losses(self) -> int:
        return 3


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What tc was told."""
    commands: list[str] = []
    monkeypatch.setattr(netem, "run_tool", lambda *words: commands.append(" ".join(words)))
    monkeypatch.setattr(netem, "_NetemCounter", FakeCounter)
    return commands


def test_there_is_no_netem_until_something_is_asked_of_it(told: list[str]) -> None:
    made = Netem(Port("a0"), DirectionSpec())
    made.verify()
    assert (made.read_losses(), told) == (0, [])
    made.change(delay_ms=None, loss=0.5)
    made.change(delay_ms=5.0, loss=None)
    made.change(delay_ms=0.0, loss=0.0)
    assert made.read_losses() == 3
    begin = "dev a0 root handle 20: netem limit 100000"
    assert told == [
        f"tc qdisc add {begin} loss 50.000000%",
        f"tc qdisc change {begin} delay 5.000ms rate 1tbit loss 50.000000%",
        f"tc qdisc change {begin}",
    ]


@pytest.mark.usefixtures("told")
def test_another_netem_than_asked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCounter, "found", "no delay")
    with pytest.raises(ShapingError, match=r"a0: .*delay 5\.000ms.*no delay"):
        Netem(Port("a0"), DirectionSpec(delay_ms=5.0))


# ---- real packets -------------------------------------------------------------------------------


@pytest.mark.emulation
def test_the_kernel_takes_every_setting_and_change() -> None:
    entries.require("netem")
    specs: list[dict[str, Any]] = [
        {"delay_ms": 0.05},
        {"delay_ms": 10_000.0, "reorder": True},
        JITTER | {"jitter": "normal"},
        {"jitter_ms": 5.0},
        {"loss": 1e-4},
        {"loss": {"to_bad": 0.01, "to_good": 0.3, "loss_bad": 0.9, "loss_good": 0.001}},
        {"duplicate": 1.0},
    ]
    *seen, last = entries.collect("change_netem", {"specs": specs})
    assert [message["set"] for message in seen] == list(range(len(specs)))
    assert "delay_ns=7000000" in last["error"]


@pytest.mark.emulation
def test_both_ways_have_their_delay_and_take_another_one() -> None:
    entries.require("netem")
    job = {
        "down": {"delay_ms": 30.0},
        "up": {"delay_ms": 10.0},
        "pings": 70,
        "change_before": 20,
        "change": {"at_s": 0.0, "direction": "down", "delay_ms": 90.0},
    }
    (seen,) = entries.collect("echo_times", job)
    before_s, after_s = seen["times_s"][:20], seen["times_s"][-20:]  # a change takes a moment
    for asked_s, times_s in ((0.040, before_s), (0.100, after_s)):
        assert min(times_s) >= asked_s
        assert statistics.median(times_s) <= asked_s + 0.040


def arrivals(down: dict[str, Any], **job: Any) -> tuple[list[int], list[dict[str, Any]]]:
    (seen,) = entries.collect("arrivals", {"down": down, "every_s": 0.001} | job)
    return seen["numbers"], [s for s in seen["seconds"] if s["direction"] == "down"]


@pytest.mark.emulation
def test_as_many_packets_are_lost_as_asked() -> None:
    entries.require("netem")
    loss, datagrams = 0.05, 2000
    numbers, seconds = arrivals({"loss": loss}, datagrams=datagrams)
    lost = datagrams - len(numbers)
    assert abs(lost - datagrams * loss) <= QUANTILE_99 * math.sqrt(datagrams * loss * (1 - loss))
    assert sum(second["losses"] for second in seconds) == lost


@pytest.mark.emulation
def test_bursty_loss_comes_in_bursts() -> None:
    entries.require("netem")
    datagrams = 3000
    numbers, _ = arrivals({"loss": {"to_bad": 0.02, "to_good": 0.2}}, datagrams=datagrams)
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    bursts = [step - 1 for step in steps if step > 1]
    assert 0.5 <= (1 - len(numbers) / datagrams) / BURSTS.mean_loss <= 1.6
    assert 3.0 <= statistics.mean(bursts) <= 8.0


@pytest.mark.emulation
def test_as_many_packets_come_twice_as_asked() -> None:
    entries.require("netem")
    share, datagrams = 0.1, 2000
    numbers, _ = arrivals({"duplicate": share}, datagrams=datagrams)
    twice = len(numbers) - datagrams
    assert len(set(numbers)) == datagrams
    spread = math.sqrt(datagrams * share * (1 - share))
    assert abs(twice - datagrams * share) <= QUANTILE_99 * spread


def farthest_overtaking(numbers: list[int]) -> int:
    """By how many places a packet came too early or too late."""
    return max(abs(number - place) for place, number in enumerate(numbers))


@pytest.mark.emulation
@pytest.mark.parametrize("jitter", ["uniform", "normal"])
@pytest.mark.parametrize("reorder", [False, True])
def test_jitter_changes_the_order_only_where_it_may(jitter: str, reorder: bool) -> None:
    entries.require("netem")
    numbers, _ = arrivals(JITTER | {"jitter": jitter, "reorder": reorder}, datagrams=500)
    assert sorted(numbers) == list(range(500))
    assert (farthest_overtaking(numbers) > NEIGHBOURS) == reorder


@pytest.mark.emulation
def test_a_delay_that_falls_loses_and_reorders_nothing() -> None:
    entries.require("netem")
    change = {"at_s": 0.0, "delay_ms": 5.0}
    job = {"datagrams": 600, "change_before": 300, "change": change}
    numbers, _ = arrivals({"delay_ms": 200.0}, **job)
    assert sorted(numbers) == list(range(600))
    assert farthest_overtaking(numbers) <= NEIGHBOURS
