from __future__ import annotations

import itertools

import emulation_entries as entries
import kernel_entries
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from player.trace import Trace
from testbed.links.htb import (
    BITS_PER_BYTE,
    MIN_BYTES_PER_S,
    PACKET_BYTES,
    ShapingError,
    packet_rates,
    qdisc_problem,
    rate_changes,
    run_tool,
    schedule,
    steps_between,
)

PACKET_BITS = PACKET_BYTES * BITS_PER_BYTE


def make_trace(times_s: list[float], rates_mbps: list[float]) -> Trace:
    return Trace("test", np.array(times_s, float), np.array(rates_mbps, float))


def departures(trace: Trace, start_s: float, seconds: float) -> list[float]:
    """When a never-empty HTB class with the scheduled rates lets whole packets go."""
    changes = schedule(trace, start_s)
    change_at_s, rate = next(changes)
    at_s, seen = 0.0, []
    while at_s < seconds:
        while change_at_s <= at_s:
            now_rate = rate
            change_at_s, rate = next(changes)
        seen.append(at_s)
        at_s += PACKET_BYTES / now_rate
    return seen


def test_at_constant_rate_there_is_one_change_per_pass() -> None:
    trace = make_trace([0, 2], [1, 3])
    changes = list(itertools.takewhile(lambda change: change[0] < 10, schedule(trace, 0.0)))
    assert {rate for _, rate in changes} == {375_000}
    assert [at_s for at_s, _ in changes if at_s % 2 == 0] == [0, 2, 4, 6, 8]


def test_the_rate_before_a_step_looks_ahead() -> None:
    trace = make_trace([0, 1, 2], [1, 0.1, 10])
    # A packet that leaves 60 ms before the step has sent 6 of its 12 kbit by then; the rest takes
    # 0.6 ms at 10 Mbit/s.
    (rate,) = packet_rates(trace, np.array([0.94]))
    assert rate == pytest.approx(PACKET_BYTES / 0.0606)


def test_an_outage_is_slept_through_by_one_packet() -> None:
    trace = make_trace([0, 1, 4, 5], [1, 1.2, 0, 1.2])
    (rate,) = packet_rates(trace, np.array([1.0]))
    assert rate == pytest.approx(PACKET_BYTES / 3.01)


def test_the_rate_never_drops_below_what_htb_remembers() -> None:
    trace = make_trace([0, 1, 500, 501], [1, 1, 0, 1])
    assert packet_rates(trace, np.array([1.0]))[0] == MIN_BYTES_PER_S


def test_steps_are_found_over_several_passes() -> None:
    trace = make_trace([0, 1, 3], [1, 1, 2])
    assert steps_between(trace, 2.5, 7.0).tolist() == [3, 4, 6]
    assert steps_between(trace, 3.0, 4.0).tolist() == [3]


def test_blocks_of_a_schedule_begin_with_a_rate() -> None:
    times, rates = rate_changes(make_trace([0, 1, 3], [1, 1, 2]), 0.25, 1.25)
    assert times[0] == 0.25
    assert len(times) == len(rates)
    assert (np.diff(times) > 0).all()


@example(
    steps=[(1.0, 0.0), (1.0, 0.0), (1.75, 0.0), (2.328125, 0.0), (2.828125, 0.0), (0.6875, 4.0)],
    start_s=13.21875,
)
@example(steps=[(1.125, 0.0), (1.3671875, 0.0), (1.8626522367277998, 14.0)], start_s=3.0)
@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(
        st.tuples(st.floats(0.05, 3.0), st.one_of(st.just(0.0), st.floats(0.02, 20.0))),
        min_size=1,
        max_size=6,
    ),
    start_s=st.floats(0.0, 20.0),
)
def test_every_packet_of_a_full_queue_leaves_when_the_trace_says(
    steps: list[tuple[float, float]], start_s: float
) -> None:
    lengths, rates = zip(*steps, strict=True)
    times = [0.0, *itertools.accumulate(lengths)]
    trace = make_trace([*times, times[-1] + 0.5], [1.0, *rates, 1.0])
    seen = np.array(departures(trace, start_s, 6.0))
    sent_bits = np.arange(len(seen)) * PACKET_BITS
    offered_bits = trace.bits_until(start_s + seen) - trace.bits_until(start_s)
    # Within a packet and what the fastest step gives in the schedule's grid, at any time.
    assert (
        np.abs(sent_bits - offered_bits).max() < PACKET_BITS + 0.004 * trace.rates_mbps.max() * 1e6
    )


def test_a_failing_tool_is_quoted() -> None:
    with pytest.raises(ShapingError, match="no_such_interface"):
        run_tool("ip", "link", "show", "dev", "no_such_interface")
    with pytest.raises(ShapingError, match="missing"):
        run_tool("no_such_program")


def test_an_unknown_qdisc_is_a_problem() -> None:
    assert qdisc_problem("no_such_qdisc")


@pytest.mark.emulation
def test_the_kernel_takes_every_rate_and_credit() -> None:
    entries.require(network=True)
    (seen,) = kernel_entries.collect(
        "change_rates", {"rates": [25, 12_500, 1_250_000, 125_000_000]}
    )
    assert seen["read_back"] == [25, 12_500, 1_250_000, 125_000_000]
    assert seen["counted_bytes"] == [100, 1500]
    assert "gone" in seen["error"] or "No such" in seen["error"] or "Invalid" in seen["error"]
