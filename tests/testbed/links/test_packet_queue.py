from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.trace import Trace
from testbed.links.packet_queue import DeliveryBins, PacketQueue

PACKET_BYTES = 1500
PACKET_BITS = PACKET_BYTES * 8.0
TINY_S = 1e-9
QUANTILE_99 = 2.576  # of the normal distribution, two-sided


def trace_of(*rates_mbps: float, step_s: float = 1.0) -> Trace:
    times = np.arange(len(rates_mbps) + 1) * step_s
    return Trace("test", times, np.array([rates_mbps[0], *rates_mbps]))


def started(trace: Trace, **options: object) -> PacketQueue:
    queue = PacketQueue(trace, **options)  # type: ignore[arg-type]
    queue.start(0.0)
    return queue


def test_a_packet_takes_its_size_over_the_rate() -> None:
    queue = started(trace_of(1.2))
    assert queue.admit(PACKET_BYTES, 0.0) == pytest.approx(0.01)
    assert queue.admit(PACKET_BYTES, 0.0) == pytest.approx(0.02)
    assert queue.admit(PACKET_BYTES // 2, 0.5) == pytest.approx(0.505)


def test_before_the_start_the_link_has_the_mean_rate() -> None:
    queue = PacketQueue(trace_of(1.0, 3.0))
    assert queue.admit(PACKET_BYTES, 5.0) == pytest.approx(5.0 + PACKET_BITS / 2e6)


def test_an_outage_is_waited_out_and_not_longer() -> None:
    queue = started(trace_of(1.2, 0.0, 2.4))
    due = [queue.admit(PACKET_BYTES, 0.985) for _ in range(3)]
    assert due == pytest.approx([0.995, 2.0 + 0.005 * 0.5, 2.0 + 0.005 * 1.5])


def test_the_trace_starts_where_asked_and_repeats() -> None:
    queue = started(trace_of(1.2, 2.4), start_s=1.0)
    assert queue.admit(PACKET_BYTES, 0.0) == pytest.approx(0.005)
    assert queue.admit(PACKET_BYTES, 1.5) == pytest.approx(1.51)
    assert queue.admit(PACKET_BYTES, 2.5) == pytest.approx(2.505)


def test_delay_comes_before_the_bottleneck() -> None:
    queue = started(trace_of(1.2, 2.4), delay_s=0.5)
    assert queue.admit(PACKET_BYTES, 0.75) == pytest.approx(1.255)


def test_without_a_trace_there_is_only_delay() -> None:
    queue = PacketQueue(delay_s=0.02, limit_packets=1)
    assert [queue.admit(PACKET_BYTES, 1.0) for _ in range(3)] == [1.02, 1.02, 1.02]


@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_a_full_queue_drops_until_a_packet_has_left(delay_s: float) -> None:
    queue = started(trace_of(1.2), limit_packets=3, delay_s=delay_s)
    due = [queue.admit(PACKET_BYTES, 0.0) for _ in range(5)]
    assert [at_s is None for at_s in due] == [False, False, False, True, True]
    assert queue.admit(PACKET_BYTES, 0.0099) is None
    assert queue.admit(PACKET_BYTES, 0.0101) == pytest.approx(0.04 + delay_s)
    assert queue.dropped == 3
    assert queue.take_longest() == 3
    assert queue.take_longest() == 0


arrivals = st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(40, 1500)), min_size=1, max_size=80)
rates = st.lists(st.sampled_from([0.0, 0.1, 0.7, 2.0, 9.0]), min_size=1, max_size=6).filter(any)


@given(rates, arrivals, st.sampled_from([0.0, 0.05]), st.integers(1, 20))
def test_no_packet_ever_leaves_earlier_or_later_than_the_trace_says(
    rates_mbps: list[float], gaps: list[tuple[float, int]], delay_s: float, limit: int
) -> None:
    trace = trace_of(*rates_mbps, step_s=0.4)
    queue = started(trace, delay_s=delay_s, limit_packets=limit)
    inside: list[float] = []
    now_s = last_s = 0.0
    for gap_s, size in gaps:
        now_s += gap_s
        arrives_s = now_s + delay_s
        waiting = [at_s for at_s in inside if at_s > arrives_s]
        due_s = queue.admit(size, now_s)
        assert (due_s is None) == (len(waiting) >= limit)
        if due_s is None:
            continue
        # The bits of the packet are the integral of the trace over the time that it was sent in,
        # and that begins when the packet before it left or when it came: never over, never idle.
        begins_s = max(arrives_s, last_s)
        assert due_s >= begins_s
        assert queue.bits_between(begins_s, due_s) == pytest.approx(size * 8.0, abs=0.01)
        assert queue.bits_between(begins_s, due_s - TINY_S) < size * 8.0 + 0.01
        inside.append(due_s)
        last_s = due_s
    assert inside == sorted(inside)


@pytest.mark.parametrize("loss", [0.001, 0.03, 0.5])
def test_the_share_of_lost_packets_is_the_one_asked(loss: float) -> None:
    packets = 40_000
    queue = PacketQueue(loss=loss, seed="a")
    assert queue.admit(PACKET_BYTES, 0.0) == 0.0
    queue.start(0.0)
    lost = sum(queue.admit(PACKET_BYTES, float(n)) is None for n in range(packets))
    assert lost == queue.lost
    spread = math.sqrt(packets * loss * (1 - loss))
    assert abs(lost - packets * loss) <= QUANTILE_99 * spread


def fates(seed: str, *, step_s: float, before: int = 0) -> list[bool]:
    queue = PacketQueue(trace_of(5.0), loss=0.2, seed=seed, limit_packets=10**6)
    for number in range(before):
        queue.admit(40, number * 0.001)
    queue.start(1.0)
    return [queue.admit(40, 1.0 + n * step_s) is None for n in range(500)]


def test_the_seed_alone_says_which_packets_are_lost() -> None:
    first = fates("0/3", step_s=0.001)
    assert fates("0/3", step_s=0.0, before=17) == first
    assert fates("0/4", step_s=0.001) != first
    assert fates("1/3", step_s=0.001) != first


# ---- bins ---------------------------------------------------------------------------------------


def carry(queue: PacketQueue, sent_s: list[float], *, late_s: float = 0.0) -> DeliveryBins:
    """Delivers packets as an engine would that is always late by as much."""
    bins = DeliveryBins(queue, 0.0)
    for due_s in [queue.admit(PACKET_BYTES, at_s) for at_s in sent_s]:
        if due_s is not None:
            while bins.check_s() < due_s:
                bins.pass_time(bins.check_s())
            bins.deliver(PACKET_BYTES, due_s, due_s + late_s)
    return bins


def test_a_link_that_is_never_idle_gives_what_the_trace_asks() -> None:
    queue = started(trace_of(1.0, 0.7, 2.3), limit_packets=10**6)
    seconds = carry(queue, [0.0] * 400).finish(queue.last_s)
    assert len(seconds) == 4
    for bin_ in seconds:
        assert bin_.saturated
        assert bin_.delivered_bits == pytest.approx(bin_.asked_bits)
        assert bin_.begin_s == pytest.approx(bin_.second, abs=0.02)
    for before, after in itertools.pairwise(seconds):
        assert before.end_s == after.begin_s


def test_the_last_bin_ends_with_the_last_delivery_while_packets_wait() -> None:
    queue = started(trace_of(1.2), limit_packets=10**6)
    bins = DeliveryBins(queue, 0.0)
    due = [queue.admit(PACKET_BYTES, 0.0) for _ in range(10)]
    for due_s in due[:5]:
        assert due_s is not None
        bins.deliver(PACKET_BYTES, due_s, due_s)
    (bin_,) = bins.finish(0.057)
    assert bin_.end_s == pytest.approx(0.05)
    assert bin_.delivered_bits == pytest.approx(bin_.asked_bits)
    assert bin_.saturated


def test_one_moment_without_packets_makes_a_bin_unsaturated() -> None:
    queue = started(trace_of(1.2), limit_packets=10**6)
    sent = [0.0] * 130 + [1.305] * 200
    seconds = carry(queue, sent).finish(queue.last_s)
    assert [bin_.saturated for bin_ in seconds] == [True, False, True, True]
    assert seconds[0].backlog_packets == 200


def test_lateness_and_drops_are_written_down() -> None:
    queue = started(trace_of(1.2), limit_packets=2)
    seconds = carry(queue, [0.0, 0.0, 0.0], late_s=0.004).finish(0.5)
    assert [(bin_.drops, round(bin_.late_s, 6)) for bin_ in seconds] == [(1, 0.004)]


def test_bins_of_silence_are_empty_and_in_time() -> None:
    queue = started(trace_of(1.0))
    bins = DeliveryBins(queue, 0.0)
    for _ in range(3):
        bins.pass_time(bins.check_s())
    seconds = bins.finish(3.001)  # too short a rest to be a bin
    assert [(bin_.begin_s, bin_.end_s) for bin_ in seconds] == [(0, 1), (1, 2), (2, 3)]
    assert not any(bin_.saturated or bin_.delivered_bits for bin_ in seconds)


def test_a_border_waits_for_a_delivery_but_not_through_an_outage() -> None:
    queue = started(trace_of(1.205, 0.0, 0.0, 1.2), limit_packets=10**6)
    seconds = carry(queue, [0.0] * 110).finish(queue.last_s)
    assert [round(bin_.end_s, 3) for bin_ in seconds[:2]] == [1.5, 2.5]
    assert [round(bin_.delivered_bits) for bin_ in seconds[:2]] == [1_200_000, 0]
    assert all(bin_.saturated for bin_ in seconds)
