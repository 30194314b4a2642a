"""One direction of a link: packets and times in, packets and times out.

A packet meets the loss process, duplication, delay with jitter, the queue and the bottleneck, in
this order. What happens at which time is a matter of arithmetic and does not depend on when this
program gets to run: :meth:`Pipe.advance` takes the events up to now in the order of their own
times. ``_carrier.c`` does the same, faster, with the same decisions.
"""

from __future__ import annotations

import errno
import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from testbed.links.active_queues import CoDel, Packet, Pie, marked
from testbed.links.capacity import (
    BITS_PER_BYTE,
    Capacity,
    ConstantRate,
    Opportunities,
    TraceRate,
)
from testbed.links.draws import NORMAL_STEPS, draw, normal_quantiles
from testbed.links.measurement import ARRIVAL_DEADLINE_S, BIN_S, NEVER_S, SHORTEST_BIN_S

ETHERNET_BYTES = 14
FRAME_BYTES = 2048  # longer ones are dropped
GROUP_ADDRESS = 0x01  # in the first byte of a frame
MAX_SAMPLES = 1024  # of the delays in one bin


@dataclass(frozen=True, slots=True, kw_only=True)
class PipeSettings:
    """A ``DirectionSpec`` in numbers; see there.

    A loss process without bursts has ``to_bad`` 0 and its share in ``loss_good``. Keys are those of
    ``draws.stream_key``; ``duration_s`` is that of a pass of opportunities.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    is_normal: bool = False
    may_reorder: bool = False
    loss_good: float = 0.0
    loss_bad: float = 0.0
    to_bad: float = 0.0
    to_good: float = 1.0
    duplicate: float = 0.0
    has_bottleneck: bool = False
    mean_bits_per_s: float = 0.0
    start_s: float = 0.0
    duration_s: float = 0.0
    queue: str = "droptail"
    limit_packets: int = 100
    limit_bytes: int = 0
    ecn: bool = False
    target_s: float = 0.0
    interval_s: float = 0.0
    loss_key: int = 0
    burst_key: int = 0
    jitter_key: int = 0
    duplicate_key: int = 0
    pie_key: int = 0


@dataclass(frozen=True, slots=True)
class TraceArrays:
    """What a bottleneck follows: a trace (see ``TraceRate``), or opportunities if there are any."""

    edges_s: Sequence[float] = ()
    cumulative_bits: Sequence[float] = ()
    speeds: Sequence[float] = ()
    opportunities_s: Sequence[float] = ()


class PipeRow(NamedTuple):
    """One bin; times are those of the clock. See ``measurement.LinkSecond``."""

    begin_s: float
    end_s: float
    delivered_bytes: int
    delivered_packets: int
    saturated: bool
    backlog_packets: int
    backlog_bytes: int
    drops: int
    losses: int
    aqm_drops: int
    marks: int
    duplicates: int
    late_s: float
    delay_p50_s: float
    delay_p95_s: float
    delay_p99_s: float


class Counters:
    """What happened since the last bin."""

    __slots__ = ("aqm_drops", "drops", "duplicates", "losses", "marks", "packets", "size_bytes")

    def __init__(self) -> None:
        self.packets = self.size_bytes = 0
        self.drops = self.losses = self.aqm_drops = self.marks = self.duplicates = 0


class Pipe:
    """One direction.

    Attributes:
        waiting_bytes: layer-3 bytes in the queue, without the packet being sent.
        delivered: packets that came out, from the beginning on.
        rows: bins that are over; whoever reads them empties the list.
    """

    def __init__(
        self,
        settings: PipeSettings,
        arrays: TraceArrays,
        write: Callable[[bytes], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes an empty pipe.

        Args:
            settings: what it does.
            arrays: what its bottleneck follows.
            write: takes what comes out.
            clock: tells when that really happens.
        """
        self._settings = settings
        self._arrays = arrays
        self._write = write
        self._clock = clock
        self._delay_s = settings.delay_s
        self._to_bad = settings.to_bad
        self._loss_good = settings.loss_good
        self._is_bad = False
        self._number = -1  # of the last packet since the start
        self._order = 0
        self._last_arrival_s = -math.inf
        self._quantiles = normal_quantiles() if settings.is_normal else []
        self._line: list[tuple[float, int, Packet]] = []  # a heap: who is on the way to the queue
        self._fifo: deque[Packet] = deque()
        self._sending: Packet | None = None
        self._leaves_s = NEVER_S
        self._capacity: Capacity | None = None
        if settings.has_bottleneck:
            self._capacity = ConstantRate(settings.mean_bits_per_s)
        self._codel = self._pie = None
        if settings.queue == "codel":
            self._codel = CoDel(settings.target_s, settings.interval_s)
        elif settings.queue == "pie":
            self._pie = Pie(settings.pie_key, settings.target_s, settings.interval_s)
        self.waiting_bytes = 0
        self.delivered = 0
        self.rows: list[PipeRow] = []
        self._border_s = NEVER_S
        self._begin_s = self._delivered_s = NEVER_S
        self._counters = Counters()
        self._was_idle = True
        self._most_packets = self._most_bytes = 0
        self._late_s = 0.0
        self._delays_s: list[float] = []
        self._skip, self._stride = 0, 1

    # ---- control --------------------------------------------------------------------------------

    def start(self, now_s: float) -> None:
        """Starts the trace, the random processes and the bins."""
        settings, arrays = self._settings, self._arrays
        origin_s = now_s - settings.start_s
        if arrays.opportunities_s:
            self._capacity = Opportunities(
                arrays.opportunities_s, settings.duration_s, origin_s=origin_s
            )
        elif arrays.edges_s:
            self._capacity = TraceRate(
                arrays.edges_s, arrays.cumulative_bits, arrays.speeds, origin_s=origin_s
            )
        self._number = 0
        self._begin_s = self._delivered_s = now_s
        self._border_s = now_s + BIN_S
        self._begin_bin()

    def change(
        self,
        now_s: float,
        *,
        bits_per_s: float | None = None,
        delay_s: float | None = None,
        loss: float | None = None,
    ) -> None:
        """Changes what is not None, from now on; nothing that waits is lost."""
        if delay_s is not None:
            self._delay_s = delay_s
        if loss is not None:
            self._to_bad, self._is_bad, self._loss_good = 0.0, False, loss
        if bits_per_s is not None and self._capacity is not None:
            before, self._capacity = self._capacity, ConstantRate(bits_per_s)
            if self._sending is not None:
                left = float(self._sending.size_bytes * BITS_PER_BYTE)
                if self._leaves_s < NEVER_S:
                    unsent = before.bits_until(self._leaves_s) - before.bits_until(now_s)
                    left = min(max(unsent, 0.0), left)
                self._leaves_s = self._capacity.resume(left, now_s)

    # ---- packets --------------------------------------------------------------------------------

    def admit(self, frame: bytes, now_s: float) -> None:
        """Takes in a frame that was read now."""
        settings = self._settings
        if len(frame) <= ETHERNET_BYTES:
            return
        if len(frame) > FRAME_BYTES:
            self._counters.drops += 1
            return
        deviation_s = 0.0
        copies = 1
        # What a switch itself says now and then, to all, must not shift the numbers.
        if self._number >= 0 and not frame[0] & GROUP_ADDRESS:
            number = self._number
            self._number += 1
            if self._is_lost(number):
                self._counters.losses += 1
                return
            if settings.duplicate and draw(settings.duplicate_key, number) < settings.duplicate:
                self._counters.duplicates += 1
                copies = 2
            if settings.jitter_s:
                deviation_s = self._deviation_s(number)
        arrives_s = now_s + max(self._delay_s + deviation_s, 0.0)
        if not settings.may_reorder:
            arrives_s = max(arrives_s, self._last_arrival_s)
            self._last_arrival_s = arrives_s
        for _ in range(copies):
            packet = Packet(frame, len(frame) - ETHERNET_BYTES, now_s, arrives_s)
            self._order += 1
            heapq.heappush(self._line, (arrives_s, self._order, packet))

    def _is_lost(self, number: int) -> bool:
        settings = self._settings
        if self._to_bad:
            turn = draw(settings.burst_key, number)
            self._is_bad = turn >= settings.to_good if self._is_bad else turn < self._to_bad
        share = settings.loss_bad if self._is_bad else self._loss_good
        return share > 0.0 and draw(settings.loss_key, number) < share

    def _deviation_s(self, number: int) -> float:
        chance = draw(self._settings.jitter_key, number)
        if self._settings.is_normal:
            return self._quantiles[int(chance * NORMAL_STEPS)] * self._settings.jitter_s
        return (2.0 * chance - 1.0) * self._settings.jitter_s

    def advance(self, now_s: float) -> float:
        """Does all that is due; returns when the next thing is.

        Raises:
            OSError: what comes out cannot be written.
        """
        line = self._line
        while True:
            arrives_s = line[0][0] if line else NEVER_S
            if self._leaves_s <= arrives_s:
                if self._leaves_s > now_s:
                    break
                assert self._sending is not None
                sent, at_s = self._sending, self._leaves_s
                self._deliver(sent, at_s)
                self._send_next(at_s)
            else:
                if arrives_s > now_s:
                    break
                packet = heapq.heappop(line)[2]
                if self._capacity is None:
                    self._deliver(packet, arrives_s)
                else:
                    self._enqueue(packet)
        is_sending = self._sending is not None
        check_s = self._border_s + (ARRIVAL_DEADLINE_S if is_sending else 0.0)
        if now_s >= check_s:
            self._close_bin(now_s)
            check_s = self._border_s
        # While something is sent, who comes can wait for its turn to be looked at.
        return min(self._leaves_s if is_sending else arrives_s, check_s)

    def _enqueue(self, packet: Packet) -> None:
        settings, counters = self._settings, self._counters
        sending = self._sending
        packets = len(self._fifo) + (sending is not None)
        size_bytes = self.waiting_bytes + (sending.size_bytes if sending is not None else 0)
        if packets >= settings.limit_packets or (
            settings.limit_bytes and size_bytes + packet.size_bytes > settings.limit_bytes
        ):
            counters.drops += 1
            return
        pie = self._pie
        if (
            pie is not None
            and pie.strikes(packet.arrives_s, self.waiting_bytes)
            and not (pie.may_mark and self.mark(packet))
        ):
            counters.aqm_drops += 1
            return
        self._fifo.append(packet)
        self.waiting_bytes += packet.size_bytes
        self._most_packets = max(self._most_packets, packets + 1)
        self._most_bytes = max(self._most_bytes, size_bytes + packet.size_bytes)
        if sending is None:
            self._send_next(packet.arrives_s)

    def _send_next(self, now_s: float) -> None:
        packet = self.pop() if self._codel is None else self._codel.take(self, now_s)
        self._sending = packet
        if packet is None or self._capacity is None:
            self._leaves_s = NEVER_S
            self._was_idle = True
            return
        if self._pie is not None:
            self._pie.sent(now_s - packet.arrives_s)
        self._leaves_s = self._capacity.finish(packet.size_bytes, now_s)

    def pop(self) -> Packet | None:
        """See ``active_queues.Waiting``."""
        if not self._fifo:
            return None
        packet = self._fifo.popleft()
        self.waiting_bytes -= packet.size_bytes
        return packet

    def discard(self, packet: Packet) -> None:
        """See ``active_queues.Waiting``."""
        self._counters.aqm_drops += 1

    def mark(self, packet: Packet) -> bool:
        """See ``active_queues.Waiting``."""
        changed = marked(packet.frame) if self._settings.ecn else None
        if changed is None:
            return False
        packet.frame = changed
        self._counters.marks += 1
        return True

    # ---- measuring ------------------------------------------------------------------------------

    def _deliver(self, packet: Packet, due_s: float) -> None:
        counters = self._counters
        try:
            self._write(packet.frame)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            counters.drops += 1  # the interface is down
            return
        now_s = self._clock()
        counters.packets += 1
        counters.size_bytes += packet.size_bytes
        self.delivered += 1
        self._late_s = max(self._late_s, now_s - due_s)
        self._delivered_s = now_s
        self._sample(now_s - packet.entered_s)
        if now_s >= self._border_s:
            self._close_bin(now_s)

    def _sample(self, delay_s: float) -> None:
        """Keeps every n-th delay, with n doubled whenever there are too many."""
        if self._skip:
            self._skip -= 1
            return
        self._skip = self._stride - 1
        self._delays_s.append(delay_s)
        if len(self._delays_s) == MAX_SAMPLES:
            self._delays_s = self._delays_s[::2]
            self._stride *= 2

    def finish(self, now_s: float) -> None:
        """Ends the last bin, while packets wait with the last delivery."""
        end_s = now_s if self._sending is None else max(self._delivered_s, self._begin_s)
        if end_s - self._begin_s >= SHORTEST_BIN_S:
            self._close_bin(end_s)
        self._border_s = NEVER_S

    def _begin_bin(self) -> None:
        self._counters = Counters()
        sending = self._sending
        self._was_idle = sending is None
        self._most_packets = len(self._fifo) + (sending is not None)
        self._most_bytes = self.waiting_bytes + (sending.size_bytes if sending is not None else 0)
        self._late_s = 0.0
        self._delays_s = []
        self._skip, self._stride = 0, 1

    def _close_bin(self, now_s: float) -> None:
        counters = self._counters
        delays_s = sorted(self._delays_s)
        self.rows.append(
            PipeRow(
                begin_s=self._begin_s,
                end_s=now_s,
                delivered_bytes=counters.size_bytes,
                delivered_packets=counters.packets,
                saturated=not self._was_idle,
                backlog_packets=self._most_packets,
                backlog_bytes=self._most_bytes,
                drops=counters.drops,
                losses=counters.losses,
                aqm_drops=counters.aqm_drops,
                marks=counters.marks,
                duplicates=counters.duplicates,
                late_s=self._late_s,
                delay_p50_s=_percentile(delays_s, 0.50),
                delay_p95_s=_percentile(delays_s, 0.95),
                delay_p99_s=_percentile(delays_s, 0.99),
            )
        )
        self._begin_s = now_s
        while self._border_s <= now_s:
            self._border_s += BIN_S
        self._begin_bin()


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that this share does not exceed; -1 of nothing."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else -1.0
