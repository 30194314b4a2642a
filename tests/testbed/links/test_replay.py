from __future__ import annotations

import time

import numpy as np
import pytest

from player.trace import Trace
from testbed.links import replay
from testbed.links.htb import ClassState
from testbed.links.replay import PAYBACK_S, Replay


class FakeClass:
    """Stands in for a shaped interface whose queue is never empty."""

    def __init__(self, bytes_per_s: int, takes_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.takes_s = takes_s
        self.changes: list[tuple[int, bool]] = []

    def change(self, bytes_per_s: int, *, is_busy: bool) -> None:
        time.sleep(self.takes_s)
        self.bytes_per_s = bytes_per_s
        self.changes.append((bytes_per_s, is_busy))

    def read(self) -> ClassState:
        return ClassState(self.bytes_per_s, 0, 0, backlog_packets=5, drops=0)


class FakeCounter:
    def read(self) -> tuple[int, int]:
        return 0, 0


def busy_replay(rates_mbps: list[float], *, takes_s: float = 0.0) -> tuple[Replay, FakeClass]:
    trace = Trace("test", np.arange(len(rates_mbps) + 1.0), np.array([1.0, *rates_mbps]))
    shaped = FakeClass(round(rates_mbps[0] * 125_000), takes_s)
    made = Replay(trace, 0.0, shaped, FakeCounter())  # type: ignore[arg-type]
    made._poll()
    shaped.changes.clear()
    return made, shaped


def test_a_change_in_time_is_just_that() -> None:
    made, shaped = busy_replay([1, 2])
    made._change_rate(250_000, time.monotonic())
    assert shaped.changes == [(250_000, True)]


def test_what_a_late_rise_did_not_give_is_given_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, shaped = busy_replay([1, 2])
    monkeypatch.setattr(replay.time, "monotonic", lambda: made._began_s + 1.1)
    made._change_rate(250_000, made._began_s + 1.0)
    owed = 0.1 * 125_000
    assert shaped.changes == [(250_000, True), (250_000 + round(owed / PAYBACK_S), True)]
    assert made._payback_until_s == pytest.approx(made._began_s + 1.1 + PAYBACK_S)


def test_what_a_late_fall_gave_too_much_is_taken_back_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, shaped = busy_replay([8, 4])
    monkeypatch.setattr(replay.time, "monotonic", lambda: made._began_s + 1.1)
    made._change_rate(500_000, made._began_s + 1.0)
    assert shaped.changes == [(500_000, True), (250_000, True)]
    assert made._payback_until_s == pytest.approx(made._began_s + 1.1 + 0.2)


def test_a_rate_ahead_of_an_outage_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made, shaped = busy_replay([8, 0, 8])
    monkeypatch.setattr(replay.time, "monotonic", lambda: made._began_s + 1.05)
    made._change_rate(1600, made._began_s + 1.0)
    assert {rate for rate, _ in shaped.changes} == {1600}
