"""The user-space link with real packets; its arithmetic is tested in ``test_packet_queue.py``."""

from __future__ import annotations

import functools
import json
import math
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulation_entries as entries
import numpy as np
import pytest

from player.trace import Trace
from testbed import sandbox
from testbed.links import backends
from testbed.links.backends import LinkUnsupported, choose_backend
from testbed.sandbox import SandboxProbe, run_in_sandbox

LOOSE_NMAE = 0.01
QUANTILE_99 = 2.576  # of the normal distribution, two-sided
PATIENCE_S = 60.0
#: Steps as in the traces of mobile networks, around 1 to 3 Mbit/s.
RATES_MBPS = [1.3, 2.1, 1.8, 0.9, 1.4, 2.7, 3.1, 2.2, 0.4, 0.0, 1.1, 2.9]
JOB: dict[str, Any] = {
    "times_s": [0.5 * n for n in range(len(RATES_MBPS) + 1)],
    "rates_mbps": [1.0, *RATES_MBPS],
    "seconds": 6,
}
FAST = {"times_s": [0, 1], "rates_mbps": [50, 50]}
TRACE = Trace("test", np.array([0.0, 1.0]), np.array([1.0, 1.0]))


@functools.cache
def require_tap() -> None:
    entries.require(network=True)
    (tap,) = collect("probe_tap", {})
    if tap["problem"]:
        pytest.skip(tap["problem"])


def collect(entry: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"userspace_entries:{entry}", job, on_message=messages.append)
    return messages


@pytest.mark.parametrize(
    ("asked", "missing", "name", "why"),
    [
        ({}, (), "kernel", "can do all"),
        ({"delay_ms": 5.0}, (), "kernel", "can do all"),
        ({}, ("htb",), "userspace", "HTB"),
        ({"delay_ms": 5.0}, ("netem",), "userspace", "delay_ms = 5.0 needs netem"),
        ({"loss": 0.1, "backend": "userspace"}, ("netem",), "userspace", "asked"),
        ({"backend": "kernel"}, ("netem", "tap"), "kernel", "asked"),
        ({"loss": 0.1}, ("tap",), "kernel", "can do all"),
    ],
)
def test_the_back_end_is_one_that_can_do_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], missing: tuple[str, ...], name: str,
    why: str,
) -> None:  # fmt: skip
    pretend(monkeypatch, missing)
    chosen = choose_backend(entries.link_of(TRACE, **asked))
    assert chosen.name == name
    assert why in chosen.why


@pytest.mark.parametrize(
    ("asked", "missing", "remedies"),
    [
        ({"loss": 0.1}, ("netem", "tap"), ("sch_netem", "modprobe tun")),
        ({"loss": 0.1, "backend": "kernel"}, ("netem",), ("sch_netem", "userspace")),
        ({"backend": "userspace"}, ("tap",), ("modprobe tun",)),
        ({"backend": "magic"}, (), ("auto, kernel, userspace",)),
    ],
)
def test_a_link_that_cannot_be_made_comes_with_the_remedies(
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    missing: tuple[str, ...],
    remedies: tuple[str, ...],
) -> None:
    pretend(monkeypatch, missing)
    with pytest.raises(LinkUnsupported) as caught:
        choose_backend(entries.link_of(TRACE, **asked))
    for remedy in remedies:
        assert remedy in str(caught.value)


def pretend(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    def qdisc_problem(kind: str, *options: str) -> str | None:
        return f"{kind} is unknown" if kind in missing else None

    monkeypatch.setattr(backends, "qdisc_problem", qdisc_problem)
    monkeypatch.setattr(backends, "tap_problem", lambda: "none" if "tap" in missing else None)


@pytest.mark.emulation
@pytest.mark.parametrize("delay_ms", [0.0, 20.0])
def test_a_download_gets_what_the_trace_gives(delay_ms: float) -> None:
    require_tap()
    job = JOB | {"link": {"backend": "userspace", "delay_ms": delay_ms, "start_s": 0.7}}
    (seen,) = entries.collect("replay", job)
    record = seen["record"]
    assert record["backend"] == "userspace"
    assert record["wire_nmae_1s"] <= LOOSE_NMAE
    assert abs(record["total_error"]) <= LOOSE_NMAE
    assert record["saturated_s"] >= 3


@pytest.mark.emulation
def test_each_path_has_its_delay() -> None:
    require_tap()
    job = FAST | {
        "pings": 25,
        "link": {"backend": "userspace", "delay_ms": 20.0},
        "network": {"controller_delay_ms": 5.0},
    }
    seen = {message["path"]: message["times_s"] for message in collect("echo_times", job)}
    for path, asked_s in {"server": 0.040, "controller": 0.010}.items():
        assert min(seen[path]) >= asked_s
        assert statistics.median(seen[path]) <= asked_s + 0.003


@pytest.mark.emulation
def test_as_many_packets_are_lost_as_asked_and_the_same_ones_again() -> None:
    require_tap()
    datagrams, loss = 2000, 0.05
    link = {"backend": "userspace", "loss": loss, "seed": "1/2", "queue_packets": 1000}
    job = FAST | {"datagrams": datagrams, "link": link}
    first, again = (collect("lost_datagrams", job)[0] for _ in range(2))
    assert first["drops"] == 0
    spread = math.sqrt(datagrams * loss * (1 - loss))
    assert abs(len(first["lost"]) - datagrams * loss) <= QUANTILE_99 * spread
    assert again["lost"] == first["lost"]


@pytest.mark.emulation
@pytest.mark.parametrize("backend", ["userspace", "kernel"])
@pytest.mark.parametrize(
    ("number", "message"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "stands still")]
)
def test_a_link_that_stops_working_fails_the_session(
    backend: str, number: int, message: str
) -> None:
    require_tap()
    (seen,) = collect("lose_engine", JOB | {"signal": int(number), "link": {"backend": backend}})
    assert message in seen["error"]
    assert seen["after_s"] <= 4.0


@pytest.mark.emulation
def test_a_user_namespace_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tap()
    command = ["unshare", "--user", "--map-root-user", "true"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("users may not make namespaces here")
    probe = SandboxProbe("user", "as an ordinary user")
    monkeypatch.setattr(sandbox, "probe_sandbox", lambda: probe)
    if problem := collect("probe_tap", {})[0]["problem"]:
        pytest.skip(problem)
    job = JOB | {"seconds": 4, "link": {"backend": "userspace", "delay_ms": 10.0}}
    (seen,) = entries.collect("replay", job)
    assert seen["record"]["wire_nmae_1s"] <= LOOSE_NMAE


EXPERIMENT = """
task = "abr"
driver = "emulated"
traces = "fast"
chunks = 5
[link]
backend = "userspace"
delay_ms = 20
[controller_link]
delay_ms = 10
[[arms]]
controller = "bba"
"""


@pytest.mark.emulation
def test_emulated_and_simulated_sessions_with_delay_agree(tmp_path: Path) -> None:
    require_tap()
    (tmp_path / "fast").write_text("0 4\n300 4\n")
    (tmp_path / "run.toml").write_text(EXPERIMENT)
    sessions: dict[str, dict[str, Any]] = {}
    for driver in ("emulated", "simulated"):
        out = tmp_path / driver
        done = subprocess.run(
            [
                *(sys.executable, "-m", "testbed.cli", "run", str(tmp_path / "run.toml")),
                *("--out", str(out), "--driver", driver),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (sessions[driver],) = map(json.loads, (out / "sessions.jsonl").read_text().splitlines())
    emulated, simulated = sessions["emulated"], sessions["simulated"]
    assert emulated["link"]["backend"] == "userspace"
    environment = json.loads((tmp_path / "emulated" / "environment.json").read_text())
    assert environment["link"] == {"backend": "userspace", "why": "asked for", "asked": "userspace"}
    for chunk in emulated["chunks"][1:]:
        assert chunk["decision_s"] >= 0.020  # over the controller's link and back
    downloads = [
        sum(chunk["download_s"] for chunk in session["chunks"]) for session in (emulated, simulated)
    ]
    assert downloads[0] == pytest.approx(downloads[1], rel=0.1)
    assert emulated["startup_s"] == pytest.approx(simulated["startup_s"], rel=0.15)
