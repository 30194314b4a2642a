"""Loads and echoes between two namespaces without a link; the plan of the sender in closed form."""

from __future__ import annotations

from typing import Any

import emulation_entries as entries
import numpy as np
import pytest

from player.trace import Trace
from testbed.links.traffic import RoundTrips, offered_bytes
from testbed.sandbox import run_in_sandbox

STEPS = Trace("steps", np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.0, 4.0, 0.0, 8.0]))


def test_more_is_offered_than_the_trace_lets_pass_at_any_time() -> None:
    plan = offered_bytes(STEPS, start_s=0.3, seconds=8.0)
    at_s = 0.3 + np.linspace(0.0, 8.0, len(plan))
    passes_bytes = STEPS.bits_until(at_s) / 8
    assert plan[0] == 0.0
    assert (np.diff(plan) > np.diff(passes_bytes)).all()
    assert plan[-1] < 2.0 * (passes_bytes[-1] - passes_bytes[0])


def test_quantiles_of_nothing_are_nothing() -> None:
    assert np.isnan(RoundTrips(10, np.empty(0)).quantile_s(0.5))
    assert RoundTrips(2, np.array([0.1, 0.3])).quantile_s(0.5) == pytest.approx(0.2)


def collect(entry: str, job: dict[str, Any]) -> dict[str, Any]:
    entries.require()
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"fidelity_entries:{entry}", job, on_message=messages.append)
    (message,) = messages
    return message


@pytest.mark.emulation
def test_datagrams_come_as_planned_and_nothing_is_answered() -> None:
    seen = collect("load", {"load": "udp", "seconds": 1.0})
    assert set(seen["sizes"]) == {1500}
    assert sum(seen["sizes"]) == pytest.approx(seen["planned_bytes"], rel=0.02)
    assert seen["first_s"] >= -0.01
    assert seen["last_s"] <= 1.5
    assert seen["answers"] == 0
    assert seen["left"] == 0


@pytest.mark.emulation
def test_a_stream_goes_on_until_its_end() -> None:
    seen = collect("load", {"load": "tcp", "seconds": 0.5})
    assert sum(seen["sizes"]) > 1e6
    assert seen["last_s"] <= 1.5
    assert seen["left"] == 0


@pytest.mark.emulation
def test_an_echo_comes_back() -> None:
    seen = collect("echoes", {"count": 20, "every_s": 0.01})
    assert seen["sent"] == len(seen["rtt_s"]) == 20
    assert 0.0 < np.median(seen["rtt_s"]) < 0.01
