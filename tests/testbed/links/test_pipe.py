from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from testbed.links.draws import stream_key
from testbed.links.measurement import NEVER_S
from testbed.links.pipe import MAX_SAMPLES, Packet, Pipe, PipeRow, PipeSettings, TraceArrays

PACKET_BYTES = 1500
HEADER = b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x08\x00"
TO_ALL = b"\xff" * 6 + HEADER[6:]
QUANTILE_99 = 2.576  # of the normal distribution, two-sided
BEGIN_S = 100.0


class Played:
    """A pipe on a clock of its own, which is always on time unless told otherwise."""

    def __init__(self, arrays: TraceArrays | None = None, **settings: Any) -> None:
        self.log: list[tuple[float, int]] = []  # when a packet was due, and its number
        self.frames: list[bytes] = []
        self.now_s = BEGIN_S
        self.late_s = 0.0
        log, frames = self.log, self.frames

        class Logged(Pipe):
            def _deliver(self, packet: Packet, due_s: float) -> None:
                log.append((due_s, int.from_bytes(packet.frame[-4:])))
                frames.append(packet.frame)
                super()._deliver(packet, due_s)

        self.pipe = Logged(
            PipeSettings(**settings),
            arrays or TraceArrays(),
            bool,
            lambda: self.now_s + self.late_s,
        )
        self._sent = itertools.count()

    def start(self) -> Played:
        self.pipe.start(self.now_s)
        return self

    def send(self, size: int = PACKET_BYTES, header: bytes = HEADER) -> None:
        self.pipe.admit(header + next(self._sent).to_bytes(size), self.now_s)

    def until(self, now_s: float) -> Played:
        """Lets time pass as a loop would: from one event to the next."""
        now_s += BEGIN_S
        while (next_s := self.pipe.advance(self.now_s)) <= now_s:
            self.now_s = max(next_s, self.now_s)
        self.now_s = now_s
        self.pipe.advance(now_s)
        return self

    @property
    def due_s(self) -> list[float]:
        return [due_s - BEGIN_S for due_s, _ in self.log]

    @property
    def numbers(self) -> list[int]:
        return [number for _, number in self.log]

    def delays_s(self, gap_s: float) -> list[float]:
        """If packets were sent at this distance in time."""
        return [due_s - BEGIN_S - number * gap_s for due_s, number in self.log]

    def finish(self) -> list[PipeRow]:
        self.pipe.finish(self.now_s)
        return self.pipe.rows


def trace(*rates_mbps: float, step_s: float = 1.0) -> TraceArrays:
    edges_s = [step * step_s for step in range(len(rates_mbps) + 1)]
    speeds = [rate * 1e6 for rate in rates_mbps]
    bits = itertools.accumulate((speed * step_s for speed in speeds), initial=0.0)
    return TraceArrays(edges_s, list(bits), speeds)


def followed(*rates_mbps: float, **settings: Any) -> Played:
    """A pipe that follows a trace, started."""
    arrays = trace(*rates_mbps)
    mean = arrays.cumulative_bits[-1] / arrays.edges_s[-1]
    settings = {"limit_packets": 10**6, **settings}
    return Played(arrays, has_bottleneck=True, mean_bits_per_s=mean, **settings).start()


# ---- delay and bottleneck -----------------------------------------------------------------------


def test_without_a_bottleneck_there_is_only_delay() -> None:
    played = Played(delay_s=0.02, limit_packets=1).start()
    for _ in range(3):
        played.send()
    assert played.until(1.0).due_s == pytest.approx([0.02] * 3)


def test_a_packet_takes_its_size_over_the_rate_behind_the_delay() -> None:
    played = followed(1.2, delay_s=0.5)
    played.send()
    played.send(PACKET_BYTES // 2)
    assert played.until(1.0).due_s == pytest.approx([0.51, 0.515])


def test_before_the_start_the_link_has_the_mean_rate() -> None:
    arrays = trace(1.0, 3.0)
    played = Played(arrays, has_bottleneck=True, mean_bits_per_s=2e6, loss_good=1.0)
    played.send()
    assert played.until(1.0).due_s == pytest.approx([0.006])  # and nothing is lost
    assert played.finish() == []


def test_the_trace_begins_where_asked() -> None:
    played = followed(1.2, 2.4, start_s=1.0)
    played.send()
    played.until(1.5).send()
    assert played.until(2.0).due_s == pytest.approx([0.005, 1.51])


def test_opportunities_are_taken_one_by_one() -> None:
    played = Played(
        TraceArrays(opportunities_s=[0.001, 0.005]),
        has_bottleneck=True,
        mean_bits_per_s=1e6,
        duration_s=0.005,
    ).start()
    for _ in range(4):
        played.send()
    assert played.until(1.0).due_s == pytest.approx([0.001, 0.005, 0.006, 0.010])


def test_decisions_do_not_depend_on_when_the_loop_wakes() -> None:
    def fates(advance: Callable[[Played], object]) -> list[tuple[float, int]]:
        played = followed(0.9, 0.0, 2.4, queue="codel", target_s=0.005, interval_s=0.1)
        for _ in range(600):
            played.send()
            played.now_s += 0.007
            advance(played)
        return played.until(20.0).log

    often = fates(lambda played: played.until(played.now_s - BEGIN_S))
    assert fates(lambda played: None) == often
    assert len(often) < 600


# ---- loss, duplicates, jitter -------------------------------------------------------------------


def numbers_of(count: int, **settings: Any) -> list[int]:
    played = Played(**settings).start()
    for _ in range(count):
        played.send(40)
    return played.until(100.0).numbers


@pytest.mark.parametrize("loss", [0.001, 0.03, 0.5])
def test_the_share_of_lost_packets_is_the_one_asked(loss: float) -> None:
    count = 40_000
    lost = count - len(numbers_of(count, loss_good=loss, loss_key=stream_key("a", "loss")))
    assert abs(lost - count * loss) <= QUANTILE_99 * math.sqrt(count * loss * (1 - loss))


def test_bursts_have_the_length_and_the_share_that_were_asked() -> None:
    count, to_bad, to_good = 60_000, 0.01, 0.25
    came = set(
        numbers_of(
            count,
            loss_bad=1.0,
            to_bad=to_bad,
            to_good=to_good,
            loss_key=stream_key("b", "loss"),
            burst_key=stream_key("b", "burst"),
        )
    )
    fates = [number not in came for number in range(count)]
    bursts = [len(list(group)) for is_lost, group in itertools.groupby(fates) if is_lost]
    # A burst begins with probability to_bad after each packet of the good state.
    good = count - sum(bursts)
    spread = math.sqrt(good * to_bad * (1 - to_bad))
    assert abs(len(bursts) - good * to_bad) <= QUANTILE_99 * spread
    spread = math.sqrt(1 - to_good) / to_good / math.sqrt(len(bursts))  # geometric lengths
    assert abs(sum(bursts) / len(bursts) - 1 / to_good) <= QUANTILE_99 * spread


def test_the_seed_alone_says_which_packets_are_lost() -> None:
    def fates(seed: str, *, gap_s: float, before: int, to_all: int) -> list[int]:
        played = Played(loss_good=0.2, loss_key=stream_key(seed, "loss"))
        for _ in range(before):
            played.send(40)
        played.until(1.0).start()
        for number in range(500):
            if number < to_all:  # what switches say to all is not counted and not lost
                played.pipe.admit(TO_ALL + bytes(40), played.now_s)
            played.pipe.admit(HEADER + number.to_bytes(40), played.now_s)
            played.until(played.now_s - BEGIN_S + gap_s)
        return [number for number in played.until(9.0).numbers[before:] if number]

    first = fates("0/3", gap_s=0.001, before=0, to_all=0)
    assert fates("0/3", gap_s=0.0, before=17, to_all=30) == first
    assert fates("0/4", gap_s=0.001, before=0, to_all=0) != first


def test_what_goes_to_all_is_neither_lost_nor_delayed_at_random() -> None:
    played = Played(loss_good=1.0, jitter_s=0.1, delay_s=0.2, duplicate=1.0).start()
    for _ in range(10):
        played.send(100, TO_ALL)
    assert played.until(1.0).due_s == pytest.approx([0.2] * 10)


def test_duplicates_come_together_and_as_often_as_asked() -> None:
    count, share = 20_000, 0.1
    numbers = numbers_of(count, duplicate=share, duplicate_key=stream_key("c", "duplicate"))
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(count))
    twice = len(numbers) - count
    assert abs(twice - count * share) <= QUANTILE_99 * math.sqrt(count * share * (1 - share))


def jittered(count: int, **settings: Any) -> Played:
    settings = {"delay_s": 0.05, "jitter_key": stream_key("d", "jitter"), **settings}
    played = Played(**settings).start()
    for number in range(count):
        played.send(40)
        played.until((number + 1) * 0.001)
    return played.until(100.0)


@pytest.mark.parametrize("may_reorder", [False, True])
def test_jitter_stays_inside_its_bounds(may_reorder: bool) -> None:
    played = jittered(4000, jitter_s=0.03, may_reorder=may_reorder)
    assert sorted(played.numbers) == list(range(4000))
    assert played.due_s == sorted(played.due_s)
    delays_s = played.delays_s(0.001)
    assert min(delays_s) >= 0.02 - 1e-9
    assert max(delays_s) <= 0.08 + 1e-9
    assert (played.numbers == sorted(played.numbers)) == (not may_reorder)
    if may_reorder:
        mean_s = sum(delays_s) / len(delays_s)
        spread_s = 0.03 / math.sqrt(3.0) / math.sqrt(len(delays_s))
        assert abs(mean_s - 0.05) <= QUANTILE_99 * spread_s


def test_normal_jitter_has_its_deviation_and_no_packet_is_early() -> None:
    played = jittered(4000, jitter_s=0.01, is_normal=True, may_reorder=True)
    delays_s = played.delays_s(0.001)
    mean_s = sum(delays_s) / len(delays_s)
    deviation_s = math.sqrt(sum((delay_s - mean_s) ** 2 for delay_s in delays_s) / len(delays_s))
    assert mean_s == pytest.approx(0.05, abs=0.0005)
    assert deviation_s == pytest.approx(0.01, rel=0.05)
    early = jittered(500, jitter_s=0.2, is_normal=True, may_reorder=True)
    assert min(early.delays_s(0.001)) >= -1e-9


# ---- queue --------------------------------------------------------------------------------------


def test_a_full_queue_drops_until_a_packet_has_left() -> None:
    played = followed(1.2, limit_packets=3)
    for _ in range(5):
        played.send()
    played.until(0.0099).send()
    played.until(0.0101).send()
    assert played.until(1.0).numbers == [0, 1, 2, 6]
    assert played.due_s == pytest.approx([0.01, 0.02, 0.03, 0.04])
    (row,) = played.finish()
    assert (row.drops, row.backlog_packets) == (3, 3)


def test_bytes_are_counted_with_the_packet_being_sent() -> None:
    played = followed(1.2, limit_bytes=4000)
    for size in (1500, 1500, 1001, 1000, 40):
        played.send(size)
    assert played.until(0.5).numbers == [0, 1, 3]
    (row,) = played.finish()
    assert (row.drops, row.backlog_bytes, row.backlog_packets) == (2, 4000, 3)


def test_frames_without_a_packet_and_too_long_ones_do_not_pass() -> None:
    played = Played().start()
    for size in (0, 13, 14, 2049):
        played.pipe.admit(b"\x02" * size, BEGIN_S)
    assert played.until(0.5).frames == []
    assert played.finish()[0].drops == 1


def overloaded(**settings: Any) -> tuple[Played, list[float]]:
    """Half as much again as the rate takes; with the delays of the second half of 20 s."""
    played = followed(1.2, **settings)
    header = HEADER + b"\x45\x01" + bytes(18)
    for number in range(3000):
        played.pipe.admit(header + number.to_bytes(PACKET_BYTES - 20), played.now_s)
        played.until((number + 1) / 150)
    return played, played.delays_s(1 / 150)[len(played.log) // 2 :]


def test_droptail_keeps_its_queue_full() -> None:
    _, delays_s = overloaded(limit_packets=100)
    assert min(delays_s) > 0.95


@pytest.mark.parametrize("ecn", [False, True])
@pytest.mark.parametrize(
    ("queue", "target_s", "interval_s"), [("codel", 0.05, 0.1), ("pie", 0.05, 0.015)]
)
def test_queue_management_brings_the_delay_down(
    queue: str, target_s: float, interval_s: float, ecn: bool
) -> None:
    played, delays_s = overloaded(
        queue=queue, target_s=target_s, interval_s=interval_s, ecn=ecn, limit_packets=1000
    )
    rows = played.finish()
    drops, marks = (sum(getattr(row, name) for row in rows) for name in ("aqm_drops", "marks"))
    if ecn and queue == "codel":
        assert (drops, marks > 100) == (0, True)  # these packets do not heed it
        assert max(delays_s) > 1.0
        return
    # PIE drops even what it could mark as long as its probability is above a tenth.
    assert drops > 500
    assert (marks > 0) == ecn
    assert sorted(delays_s)[len(delays_s) // 2] < 6 * target_s
    assert all(row.drops == 0 for row in rows)


def test_a_queue_that_is_not_persistent_is_left_alone() -> None:
    for queue, interval_s in (("codel", 0.1), ("pie", 0.015)):
        played = followed(1.2, queue=queue, target_s=0.025, interval_s=interval_s)
        for number in range(200):
            for _ in range(4):
                played.send()
            played.until((number + 1) * 0.05)
        assert len(played.until(20.0).log) == 800


# ---- live changes -------------------------------------------------------------------------------


def test_a_new_rate_takes_over_in_mid_packet_and_keeps_the_queue() -> None:
    played = followed(1.2)
    for _ in range(3):
        played.send()
    played.until(0.005)
    played.pipe.change(played.now_s, bits_per_s=0.6e6)
    assert played.until(1.0).due_s == pytest.approx([0.015, 0.035, 0.055])


def test_an_outage_holds_the_queue_until_there_is_a_rate_again() -> None:
    played = followed(1.2)
    for _ in range(2):
        played.send()
    played.until(0.015)
    played.pipe.change(played.now_s, bits_per_s=0.0)
    assert played.until(5.0).due_s == pytest.approx([0.01])
    played.pipe.change(played.now_s, bits_per_s=1.2e6)
    assert played.until(6.0).due_s == pytest.approx([0.01, 5.01])


def test_delay_and_loss_change_for_the_packets_that_come_then() -> None:
    played = Played(delay_s=0.5, loss_bad=1.0, to_bad=1.0, to_good=0.001).start()
    played.send()
    assert played.until(0.1).log == []
    played.pipe.change(played.now_s, loss=0.0)
    played.send()
    played.pipe.change(played.now_s, delay_s=0.1)
    played.send()  # would overtake
    assert played.until(0.65).due_s == pytest.approx([0.6, 0.6])
    played.send()
    assert played.until(1.0).due_s == pytest.approx([0.6, 0.6, 0.75])


# ---- bins ---------------------------------------------------------------------------------------


def test_a_link_that_is_never_idle_gives_what_the_trace_asks() -> None:
    played = followed(1.0, 0.7, 2.3)
    for _ in range(500):
        played.send()
    rows = played.until(3.9).finish()
    assert len(rows) == 4
    for second, row in enumerate(rows):
        assert row.saturated == (second > 0)  # nothing waited as the first one began
        capacity = played.pipe._capacity
        assert capacity is not None
        asked_bits = capacity.bits_until(row.end_s) - capacity.bits_until(row.begin_s)
        assert row.delivered_bytes * 8 == pytest.approx(asked_bits)
        assert row.begin_s - BEGIN_S == pytest.approx(second, abs=0.02)
    for before, after in itertools.pairwise(rows):
        assert before.end_s == after.begin_s


def test_the_last_bin_ends_with_the_last_delivery_while_packets_wait() -> None:
    played = followed(1.2)
    for _ in range(10):
        played.send()
    (row,) = played.until(0.057).finish()
    assert row.end_s == pytest.approx(BEGIN_S + 0.05)
    assert row.delivered_packets == 5
    assert row.saturated is False  # nothing waited as it began


def test_one_moment_without_packets_makes_a_bin_unsaturated() -> None:
    played = followed(1.2)
    for _ in range(130):
        played.send()
    played.until(1.305)
    for _ in range(200):
        played.send()
    rows = played.until(3.0).finish()
    assert [row.saturated for row in rows] == [False, False, True]
    assert rows[2].backlog_packets == rows[2].backlog_bytes // PACKET_BYTES


def test_bins_of_silence_are_empty_and_in_time() -> None:
    played = followed(1.0)
    rows = played.until(3.001).finish()  # the rest is too short for a bin
    assert [(row.begin_s - BEGIN_S, row.end_s - BEGIN_S) for row in rows] == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]
    assert not any(row.saturated or row.delivered_bytes for row in rows)
    assert {row.delay_p50_s for row in rows} == {-1.0}
    assert played.pipe.advance(played.now_s) == NEVER_S


def test_a_border_waits_for_a_delivery_but_not_through_an_outage() -> None:
    played = followed(1.205, 0.0, 0.0, 1.2)
    for _ in range(110):
        played.send()
    rows = played.until(3.5).finish()
    assert [round(row.end_s - BEGIN_S, 3) for row in rows[:2]] == [1.5, 2.5]
    assert [row.delivered_bytes * 8 for row in rows[:2]] == [1_200_000, 0]
    assert rows[1].saturated


def test_lateness_is_written_down() -> None:
    played = followed(1.2)
    played.late_s = 0.004
    played.send()
    (row,) = played.until(0.5).finish()
    assert row.late_s == pytest.approx(0.004)
    assert row.delay_p50_s == pytest.approx(0.014)


def test_percentiles_are_those_of_the_delays() -> None:
    played = followed(1.2)
    for _ in range(40):
        played.send()
    (row,) = played.until(0.9).finish()
    assert row.delay_p50_s == pytest.approx(0.2)
    assert row.delay_p95_s == pytest.approx(0.38)
    assert row.delay_p99_s == pytest.approx(0.4)


def test_percentiles_of_many_delays_come_from_a_sample() -> None:
    played = followed(120.0)
    for _ in range(9000):
        played.send()
    (row,) = played.until(0.95).finish()
    assert row.delivered_packets == 9000
    for share, delay_s in ((0.5, row.delay_p50_s), (0.95, row.delay_p95_s)):
        assert delay_s == pytest.approx(0.9 * share, rel=0.01)
    assert len(played.pipe._delays_s) < MAX_SAMPLES
