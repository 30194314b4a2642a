"""When packets leave a link that follows a trace: arithmetic only, times in and times out.

With C the integral of the trace, a packet of L bytes that comes to the bottleneck at t leaves at
``C⁻¹(C(max(t, last)) + 8 L)``, where ``last`` is when the packet before it leaves. That is known
at once, so nothing drifts, and an outage is just a long step. Delay and loss come before the
bottleneck, as with the kernel's link: a lost packet takes no capacity, and what leaves at a moment
has used the trace of that moment.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque

import numpy as np

from player.trace import BITS_PER_MEGABIT, Trace
from testbed.links.htb import BITS_PER_BYTE
from testbed.links.measurement import ARRIVAL_DEADLINE_S, BIN_S, SHORTEST_BIN_S, LinkSecond

LONG_AGO_S = -math.inf


class PacketQueue:
    """One direction of a link: loss, then delay, then a drop-tail queue, then the bottleneck.

    All times are those of one clock, in seconds, and calls must not go back in time. Until
    :meth:`start`, the bottleneck has the mean rate of its trace, and nothing is lost at random.

    Attributes:
        dropped: packets that found the queue full.
        lost: packets that the loss process took.
        last_s: when the bottleneck becomes idle.
    """

    def __init__(
        self,
        trace: Trace | None = None,
        *,
        start_s: float = 0.0,
        delay_s: float = 0.0,
        loss: float = 0.0,
        limit_packets: int = 100,
        seed: str = "",
    ) -> None:
        """Makes an empty queue.

        Args:
            trace: capacity; None for a direction that only delays and loses.
            start_s: position in the trace where it starts.
            delay_s: constant one-way delay.
            loss: share of packets that are lost, 0 to 1.
            limit_packets: packets that fit into the queue, the one being sent included.
            seed: says which packets are lost, by their number since the start.
        """
        self._trace = trace
        self._start_s = start_s
        self._delay_s = delay_s
        self._loss = loss
        self._has_loss = False
        self._limit_packets = limit_packets
        self._draw = random.Random(seed).random
        self._began_s: float | None = None
        self._leaving: deque[float] = deque()
        self._idle: deque[tuple[float, float]] = deque()
        self.dropped = 0
        self.lost = 0
        self.last_s = LONG_AGO_S
        self._longest = 0

    def start(self, now_s: float) -> None:
        """Starts the trace, and the loss, now."""
        self._began_s = now_s
        self._has_loss = self._loss > 0

    def admit(self, size_bytes: int, at_s: float, can_be_lost: bool = True) -> float | None:
        """Takes in one packet.

        Args:
            size_bytes: layer 3.
            at_s: when it was sent.
            can_be_lost: whether it has a number in the loss process.

        Returns:
            When it comes out; None if it does not.
        """
        if can_be_lost and self._has_loss and self._draw() < self._loss:
            self.lost += 1
            return None
        arrives_s = at_s + self._delay_s
        if self._trace is None:
            return arrives_s
        leaving = self._leaving
        while leaving and leaving[0] <= arrives_s:
            leaving.popleft()
        if len(leaving) >= self._limit_packets:
            self.dropped += 1
            return None
        begins_s = self.last_s
        if arrives_s > begins_s:
            self._idle.append((begins_s, arrives_s))
            begins_s = arrives_s
        self.last_s = begins_s + self._takes_s(float(size_bytes * BITS_PER_BYTE), begins_s)
        leaving.append(self.last_s)
        if len(leaving) > self._longest:
            self._longest = len(leaving)
        return self.last_s

    def _takes_s(self, bits: float, begins_s: float) -> float:
        assert self._trace is not None  # only asked where there is one
        if self._began_s is None:
            return bits / (self._trace.mean_mbps * BITS_PER_MEGABIT)
        return self._trace.transfer_s(bits, self._start_s + begins_s - self._began_s)

    def bits_between(self, from_s: float, to_s: float) -> float:
        """Integral of the trace between two moments since its start."""
        if self._trace is None or self._began_s is None:
            return 0.0
        moments = np.array([from_s, to_s]) - self._began_s + self._start_s
        begin, end = self._trace.bits_until(moments)
        return float(end - begin)

    def was_busy(self, from_s: float, to_s: float) -> bool:
        """Whether the bottleneck never stood idle between two moments; forgets what came before."""
        while self._idle and self._idle[0][1] <= from_s:
            self._idle.popleft()
        return self.last_s >= to_s and not (self._idle and self._idle[0][0] < to_s)

    def take_longest(self) -> int:
        """Most packets in the queue since the last call."""
        longest, self._longest = self._longest, 0
        return longest


class DeliveryBins:
    """What came out of a queue, second by second.

    While packets wait, the border between two bins is moved to the next delivery, as with the
    kernel's link (``testbed.links.replay``).
    """

    def __init__(self, queue: PacketQueue, began_s: float) -> None:
        self._queue = queue
        self._began_s = self._opened_s = self._delivered_s = began_s
        self._border_s = began_s + BIN_S
        self._bits = 0
        self._late_s = 0.0
        self._dropped = queue.dropped
        self._seconds: list[LinkSecond] = []

    def deliver(self, size_bytes: int, due_s: float, now_s: float) -> None:
        """Counts a packet that was due at one time and was handed over at another."""
        self._bits += size_bytes * BITS_PER_BYTE
        self._late_s = max(self._late_s, now_s - due_s)
        self._delivered_s = now_s
        if now_s >= self._border_s:
            self._close(now_s, busy_until_s=due_s)

    def check_s(self) -> float:
        """When :meth:`pass_time` is to be called if nothing is delivered."""
        waits = self._queue.last_s > self._border_s
        return self._border_s + (ARRIVAL_DEADLINE_S if waits else 0.0)

    def pass_time(self, now_s: float) -> None:
        """Ends the bin if it is over and no packet is about to end it."""
        if now_s >= self.check_s():
            self._close(now_s, busy_until_s=now_s)

    def finish(self, now_s: float) -> list[LinkSecond]:
        """Ends the last bin, while packets wait with the last delivery, and returns all."""
        waits = self._queue.last_s > now_s
        end_s = max(self._delivered_s, self._opened_s) if waits else now_s
        if end_s - self._opened_s >= SHORTEST_BIN_S:
            self._close(end_s, busy_until_s=end_s)
        return self._seconds

    def _close(self, now_s: float, *, busy_until_s: float) -> None:
        queue = self._queue
        self._seconds.append(
            LinkSecond(
                second=len(self._seconds),
                begin_s=self._opened_s - self._began_s,
                end_s=now_s - self._began_s,
                asked_bits=queue.bits_between(self._opened_s, now_s),
                delivered_bits=float(self._bits),
                saturated=queue.was_busy(self._opened_s, busy_until_s),
                backlog_packets=queue.take_longest(),
                drops=queue.dropped - self._dropped,
                late_s=self._late_s,
            )
        )
        self._opened_s = now_s
        self._border_s = next(
            border for border in itertools.count(self._border_s, BIN_S) if border > now_s
        )
        self._bits = 0
        self._late_s = 0.0
        self._dropped = queue.dropped
