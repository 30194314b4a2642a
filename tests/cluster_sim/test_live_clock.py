"""The clock of a live cluster: compressed, and held where its driver is behind."""

from __future__ import annotations

import pytest

from cluster_sim.live_clock import LiveClock


def test_it_runs_faster_than_real_time() -> None:
    clock = LiveClock(0.02)
    assert not clock.is_running
    clock.start(100.0)
    assert clock.is_running
    assert clock.at_ms(101.0) == pytest.approx(50_000.0)
    assert clock.real_s(50_000.0) == pytest.approx(101.0)
    assert clock.to_ms(clock.to_real_s(123.0)) == pytest.approx(123.0)


def test_it_is_held_by_what_lies_beyond_the_slack() -> None:
    clock = LiveClock(0.1, slack_s=0.5)
    clock.start(0.0)
    clock.hold(1000.0, 0.1)  # on time
    clock.hold(1000.0, 0.6)  # late by the slack
    assert clock.held_s == pytest.approx(0.0)
    clock.hold(1000.0, 2.6)
    assert clock.held_s == pytest.approx(2.0)
    assert clock.at_ms(2.6) == pytest.approx(6000.0)
    assert clock.real_s(1000.0) == pytest.approx(2.1)
