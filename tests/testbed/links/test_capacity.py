from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.links.capacity import (
    OPPORTUNITY_BYTES,
    Capacity,
    ConstantRate,
    Opportunities,
    TraceRate,
)

PACKET_BYTES = 1500
PACKET_BITS = PACKET_BYTES * 8.0


def trace_rate(*speeds: float, step_s: float = 1.0, origin_s: float = 0.0) -> TraceRate:
    edges_s = [step * step_s for step in range(len(speeds) + 1)]
    bits = itertools.accumulate((speed * step_s for speed in speeds), initial=0.0)
    return TraceRate(edges_s, list(bits), speeds, origin_s=origin_s)


def sent(capacity: Capacity, count: int, begins_s: float = 0.0) -> list[float]:
    """When packets are out that wait from the beginning on."""
    times_s = []
    for _ in range(count):
        begins_s = capacity.finish(PACKET_BYTES, begins_s)
        times_s.append(begins_s)
    return times_s


# ---- rates --------------------------------------------------------------------------------------


def test_a_packet_takes_its_size_over_the_rate() -> None:
    for capacity in (ConstantRate(1.2e6), trace_rate(1.2e6)):
        assert sent(capacity, 3) == pytest.approx([0.01, 0.02, 0.03])
        assert capacity.finish(PACKET_BYTES // 2, 0.5) == pytest.approx(0.505)


def test_a_rate_of_zero_sends_nothing() -> None:
    assert ConstantRate(0.0).finish(PACKET_BYTES, 1.0) == math.inf
    assert ConstantRate(0.0).resume(1.0, 1.0) == math.inf


def test_an_outage_is_waited_out_and_not_longer() -> None:
    capacity = trace_rate(1.2e6, 0.0, 2.4e6)
    assert sent(capacity, 3, 0.985) == pytest.approx([0.995, 2.0025, 2.0075])
    assert capacity.finish(PACKET_BYTES, 1.5) == pytest.approx(2.005)


def test_the_last_bit_before_an_outage_does_not_wait_for_its_end() -> None:
    capacity = trace_rate(1.2e6, 0.0)
    assert capacity.finish(PACKET_BYTES * 100, 0.0) == pytest.approx(1.0)
    assert capacity.finish(PACKET_BYTES * 200, 0.0) == pytest.approx(3.0)
    assert capacity.finish(PACKET_BYTES, 3.0) == pytest.approx(4.01)


def test_a_trace_starts_at_its_origin_and_repeats() -> None:
    capacity = trace_rate(1.2e6, 2.4e6, origin_s=99.0)
    assert capacity.finish(PACKET_BYTES, 100.0) == pytest.approx(100.005)
    assert capacity.finish(PACKET_BYTES, 101.5) == pytest.approx(101.51)
    assert capacity.finish(PACKET_BYTES, 102.5) == pytest.approx(102.505)
    assert capacity.finish(PACKET_BYTES * 300 * 5, 101.0) == pytest.approx(111.0)


def test_bits_until_is_the_integral() -> None:
    capacity = trace_rate(1e6, 0.0, 2e6, origin_s=10.0)
    before = capacity.bits_until(10.0)
    bits = [capacity.bits_until(10.0 + after) - before for after in (0.5, 1.0, 1.7, 2.5, 3.0, 7.0)]
    assert bits == pytest.approx([0.5e6, 1e6, 1e6, 2e6, 3e6, 7e6])


RATES = st.lists(st.sampled_from([0.0, 1e5, 7e5, 2e6, 9e6]), min_size=1, max_size=6).filter(any)


@given(RATES, st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(40, 1500)), max_size=60))
def test_bits_of_a_packet_are_the_integral_while_it_is_sent(
    speeds: list[float], gaps: list[tuple[float, int]]
) -> None:
    capacity = trace_rate(*speeds, step_s=0.4)
    at_s = 0.0
    for gap_s, size in gaps:
        begins_s = at_s + gap_s
        at_s = capacity.finish(size, begins_s)
        assert at_s >= begins_s
        integral = capacity.bits_until(at_s) - capacity.bits_until(begins_s)
        assert integral == pytest.approx(size * 8.0, abs=0.01)
        # and it is the first moment at which this is so
        earlier = capacity.bits_until(at_s - 1e-6) - capacity.bits_until(begins_s)
        assert earlier < size * 8.0


# ---- opportunities ------------------------------------------------------------------------------


def opportunities(*times_ms: int, duration_ms: int = 10, origin_s: float = 0.0) -> Opportunities:
    return Opportunities(
        [at_ms / 1000.0 for at_ms in times_ms], duration_ms / 1000.0, origin_s=origin_s
    )


def test_packets_leave_at_whole_milliseconds_one_for_each() -> None:
    assert sent(opportunities(1, 2, 2, 7), 6) == pytest.approx(
        [0.001, 0.002, 0.002, 0.007, 0.011, 0.012]
    )
    assert sent(opportunities(1, 2, origin_s=5.0), 2, 5.0) == pytest.approx([5.001, 5.002])


def test_small_packets_share_an_opportunity() -> None:
    capacity = opportunities(1, 2)
    size = OPPORTUNITY_BYTES // 2 - 4  # with the header of the TUN device two fill it exactly
    times_s = [capacity.finish(size, 0.0) for _ in range(3)]
    assert times_s == pytest.approx([0.001, 0.001, 0.002])


def test_a_packet_may_take_the_rest_of_one_and_a_part_of_the_next() -> None:
    capacity = opportunities(1, 2, 3)
    assert capacity.finish(1000, 0.0) == pytest.approx(0.001)
    assert capacity.finish(1000, 0.001) == pytest.approx(0.002)
    assert capacity.finish(990, 0.002) == pytest.approx(0.002)
    assert capacity.finish(3000, 0.002) == pytest.approx(0.011)


def test_what_is_left_when_nothing_waits_is_lost() -> None:
    capacity = opportunities(1, 2)
    assert capacity.finish(40, 0.0) == pytest.approx(0.001)
    assert capacity.finish(PACKET_BYTES, 0.0015) == pytest.approx(0.002)
    assert capacity.finish(40, 0.0025) == pytest.approx(0.011)
    # 44 bytes of that are gone, so 1,500 bytes do not fit into the rest, but into two.
    assert capacity.finish(PACKET_BYTES, 0.011) == pytest.approx(0.012)


def test_whole_opportunities_are_counted() -> None:
    capacity = opportunities(1, 2, 2)
    one = OPPORTUNITY_BYTES * 8.0
    bits = [capacity.bits_until(at_s) / one for at_s in (0.0, 0.001, 0.0015, 0.002, 0.0105, 0.0121)]
    assert bits == [0.0, 1.0, 1.0, 3.0, 3.0, 6.0]


def test_what_is_left_of_a_packet_takes_opportunities_too() -> None:
    assert opportunities(1, 2).resume(PACKET_BITS, 0.0) == pytest.approx(0.001)
    assert opportunities(1, 2).resume(PACKET_BITS * 2.0, 0.0) == pytest.approx(0.002)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.lists(st.integers(0, 30_000)))
def test_time_never_runs_backwards(times_ms: list[int], gaps_us: list[int]) -> None:
    capacity = opportunities(*sorted(times_ms), duration_ms=max(times_ms))
    begins_s = 0.0
    for gap_us in gaps_us:
        begins_s += gap_us / 1e6
        leaves_s = capacity.finish(PACKET_BYTES, begins_s)
        assert leaves_s >= begins_s
        assert leaves_s - begins_s <= 0.0501
        assert leaves_s * 1000.0 == pytest.approx(round(leaves_s * 1000.0), abs=1e-6)
        begins_s = leaves_s
