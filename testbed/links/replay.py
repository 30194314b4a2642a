"""The process that replays traces on shaped interfaces and measures what comes out of them.

It changes the rate on an absolute schedule. The kernel takes changes under a lock of the whole
machine, which others hold for tens of milliseconds while they make or remove interfaces; what such
a late change gave too much or too little is paid back at once, by a rate that deviates a little.

The unit of measuring is a bin of one second from the start on. A packet counts when it is in, which
alone would put an error of a third of a packet into every bin (0.8 % at 0.5 Mbit/s); so while
packets queue, the border between two bins is moved to the next arrival, and what was asked is the
integral of the trace between the two moments at which the counters were really read.

Delays are estimates. The kernel does not say how long a packet took; but whenever the queue is
looked at, the trace says when what waits there will be out, and with the delay that is what a
packet takes that comes at that moment. Jitter is not in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from player.trace import Trace
from testbed.links.heartbeat import BEAT_S, Heartbeat
from testbed.links.htb import (
    BITS_PER_BYTE,
    PACKET_BYTES,
    ClassState,
    HtbClass,
    ReceiveCounter,
    clip_rate,
    schedule,
)
from testbed.links.measurement import (
    ARRIVAL_DEADLINE_S,
    BIN_S,
    NEVER_S,
    SHORTEST_BIN_S,
    LinkSecond,
)
from testbed.links.netem import Netem
from testbed.links.queues import QueueCounts
from testbed.links.spec import (
    FOREVER_S,
    MAX_QUEUE_PACKETS,
    Direction,
    LinkChange,
    constant_trace,
)
from testbed.namespaces import set_timer_slack_ns

BACKLOG_POLL_S = 0.010
ARRIVAL_POLL_S = 0.0005
LATE_S = 0.002  # delays of a change of the rate below this are left alone
PAYBACK_S = 0.05
DEEPEST_CUT = 0.5  # share of the rate by which it is lowered to pay back
LONGEST_PAYBACK_S = 1.0
LONGEST_LIVE_DEBT_S = 1.0
PERCENTILES = (50, 95, 99)
MILLISECONDS_PER_S = 1000.0
REAL_TIME_PRIORITY = 1
CONTROL_BYTES = 1 << 16
NO_QUEUE = ClassState(0, 0, 0, 0, 0)


class _Bin:
    """A bin in the making: the counters at its begin, and the queue as seen since."""

    def __init__(
        self,
        begin_s: float,
        received: tuple[int, int],
        counts: QueueCounts,
        losses: int,
        *,
        has_queue: bool,
    ) -> None:
        self.begin_s = begin_s
        self.received_bytes = received[1]
        self.counts = counts
        self.losses = losses
        self.least_backlog = MAX_QUEUE_PACKETS if has_queue else 0
        self.most_backlog = self.most_bytes = 0
        self.late_s = 0.0
        self.delays_ms: list[float] = []
        self.asked_bits = 0.0
        self.asked_until_s = begin_s  # so far summed up

    def see(self, state: ClassState) -> None:
        self.least_backlog = min(self.least_backlog, state.backlog_packets)
        self.most_backlog = max(self.most_backlog, state.backlog_packets)
        self.most_bytes = max(self.most_bytes, state.backlog_bytes)

    def delays(self, delay_ms: float) -> tuple[float, ...]:
        """Percentiles of the estimates; of the delay alone if there are none."""
        return tuple(np.percentile(self.delays_ms or [delay_ms], PERCENTILES).tolist())


class Replay:
    """One direction of a link; all times are those of ``time.monotonic``.

    Attributes:
        direction: ``down`` or ``up``.
    """

    def __init__(
        self,
        trace: Trace | None,
        start_s: float,
        shaped: HtbClass | None,
        received: ReceiveCounter,
        *,
        direction: Direction = "down",
        delay_ms: float = 0.0,
        netems: Sequence[Netem] = (),
        shape: Callable[[], HtbClass] | None = None,
    ) -> None:
        """Notes what to replay from which position, and where.

        Args:
            trace: capacity; None for a direction that is only counted.
            start_s: position in the trace.
            shaped: the bottleneck; None without a trace.
            received: counts what comes out.
            direction: which one it is.
            delay_ms: one-way delay that is added to that of the queue.
            netems: delay and lose the packets.
            shape: makes a bottleneck where there is none when a rate is asked for.
        """
        self.direction = direction
        self._trace = trace
        self._start_s = start_s
        self._shaped = shaped
        self._received = received
        self._delay_ms = delay_ms
        self._netems = netems
        self._shape = shape
        self._seconds: list[LinkSecond] = []
        self._is_busy = False
        self._rate = shaped.bytes_per_s if shaped is not None else 0  # as scheduled
        self._least_rate = 0
        self._payback = 0.0  # on top of it, bytes per second
        self._payback_until_s = NEVER_S
        self._border_packets: int | None = None
        self.begin(time.monotonic())

    def begin(self, now_s: float) -> None:
        """Sets the origin of time."""
        self._began_s = self._origin_s = now_s
        self._bin = self._open_bin(now_s, self._received.read())
        self._border_s = self._check_s = now_s + BIN_S
        self._poll_s = now_s if self._shaped is not None else NEVER_S
        self._look()
        self._follow(self._trace, self._start_s, now_s)

    def _follow(self, trace: Trace | None, start_s: float, now_s: float) -> None:
        """Replays a trace from now on."""
        self._trace, self._start_s, self._origin_s = trace, start_s, now_s
        self._change_s, self._next_rate = NEVER_S, self._rate
        if trace is not None:
            self._changes = schedule(trace, start_s)
            self._take_next_change()

    def _take_next_change(self) -> None:
        at_s, self._next_rate = next(self._changes)
        self._change_s = self._origin_s + at_s

    @property
    def next_s(self) -> float:
        """When :meth:`advance` is to be called next."""
        return min(self._change_s, self._payback_until_s, self._poll_s, self._check_s)

    def advance(self, now_s: float) -> None:
        """Does what is due.

        Raises:
            ShapingError: the kernel refused a change.
        """
        if self._change_s <= now_s:
            due_s = self._change_s
            while self._change_s <= now_s:
                latest = self._next_rate
                self._take_next_change()
            self._change_rate(latest, due_s)
        if self._payback_until_s <= now_s:
            self._payback, self._payback_until_s = 0.0, NEVER_S
            self._push()
        if self._poll_s <= now_s:
            self._poll()
            self._poll_s = now_s + BACKLOG_POLL_S
        self._check_s = self._border_s
        if self._border_s <= now_s:
            if self._cross(self._border_s, now_s):
                self._border_s += BIN_S
                self._check_s = self._border_s
            else:
                self._check_s = now_s + ARRIVAL_POLL_S

    def apply(self, change: LinkChange, *, due_s: float) -> None:
        """Changes the direction now; what waits in its queue stays.

        At a rate that nobody could foresee to rise, a packet must not block the bottleneck for
        long (see ``testbed.links.htb``): below 12 kbit/s one packet a second goes through.

        Raises:
            ShapingError: the kernel refused.
        """
        if change.delay_ms is not None or change.loss is not None:
            for netem in self._netems:
                netem.change(delay_ms=change.delay_ms, loss=change.loss)
            if change.delay_ms is not None:
                self._delay_ms = change.delay_ms
        if change.rate_mbps is not None:
            if self._shaped is None and self._shape is not None:
                self._shaped = self._shape()
                self._poll_s = due_s
            now_s = time.monotonic()
            self._note_asked(now_s)
            self._least_rate = round(PACKET_BYTES / LONGEST_LIVE_DEBT_S)
            self._payback, self._payback_until_s = 0.0, NEVER_S
            self._follow(constant_trace(change.rate_mbps), 0.0, now_s)
            self.advance(now_s)
        self._bin.late_s = max(self._bin.late_s, time.monotonic() - due_s)

    def finish(self) -> list[LinkSecond]:
        """Ends the last bin and returns all.

        Raises:
            ShapingError: the kernel has something else at the end than was set.
        """
        self._close_bin(self._received.read())
        if self._shaped is not None:
            self._shaped.verify()
        for netem in self._netems:
            netem.verify()
        return self._seconds

    def _bits_between(self, from_s: float, to_s: float) -> float:
        if self._trace is None:
            return 0.0
        moments = np.array([from_s, to_s]) - self._origin_s + self._start_s
        begin, end = self._trace.bits_until(moments)
        return float(end - begin)

    def _note_asked(self, now_s: float) -> None:
        self._bin.asked_bits += self._bits_between(self._bin.asked_until_s, now_s)
        self._bin.asked_until_s = now_s

    def _push(self) -> None:
        """Gives the kernel the rate that is due now."""
        assert self._shaped is not None  # only called where something is scheduled
        rate = self._rate + self._payback
        if self._payback < 0:
            # Below some rate one packet takes longer than paying back may; cut there, the rate
            # ahead of an outage would have it sleep through twice its length.
            is_slow = self._rate < PACKET_BYTES / PAYBACK_S
            rate = self._rate if is_slow else max(rate, self._rate * (1 - DEEPEST_CUT))
        self._shaped.change(clip_rate(max(rate, self._least_rate)), is_busy=self._is_busy)

    def _change_rate(self, rate: int, due_s: float) -> None:
        before, self._rate = self._rate, rate
        self._push()
        done_s = time.monotonic()
        late_s = done_s - due_s
        self._bin.late_s = max(self._bin.late_s, late_s)
        if late_s > LATE_S and self._is_busy:
            given_bits = before * BITS_PER_BYTE * late_s
            self._pay_back(self._bits_between(due_s, done_s) - given_bits, done_s)

    def _pay_back(self, owed_bits: float, now_s: float) -> None:
        owed = owed_bits / BITS_PER_BYTE
        if owed == 0:
            return
        self._payback = max(owed / PAYBACK_S, -DEEPEST_CUT * self._rate)
        self._payback_until_s = now_s + min(owed / self._payback, LONGEST_PAYBACK_S)
        self._push()

    def _poll(self) -> None:
        packets = self._look().backlog_packets
        if self._is_busy != (packets > 0):
            self._is_busy = not self._is_busy
            self._push()

    def _look(self) -> ClassState:
        """Looks at the queue; there is nothing in it where there is none."""
        if self._shaped is None:
            return NO_QUEUE
        state = self._shaped.read()
        self._bin.see(state)
        wait_s = self._wait_s(state.backlog_bytes)
        if wait_s < FOREVER_S / 2:  # behind the end of a trace that stops, nothing comes out
            self._bin.delays_ms.append(self._delay_ms + wait_s * MILLISECONDS_PER_S)
        return state

    def _wait_s(self, size_bytes: int) -> float:
        """Seconds that the trace takes from now on for what waits."""
        if self._trace is None or not size_bytes:
            return 0.0
        position_s = self._start_s + time.monotonic() - self._origin_s
        return self._trace.transfer_s(float(size_bytes * BITS_PER_BYTE), position_s)

    def _open_bin(self, now_s: float, received: tuple[int, int]) -> _Bin:
        counts = QueueCounts() if self._shaped is None else self._shaped.read_counts()
        losses = sum(netem.read_losses() for netem in self._netems)
        return _Bin(now_s, received, counts, losses, has_queue=self._shaped is not None)

    def _cross(self, border_s: float, now_s: float) -> bool:
        """Ends the bin at the first arrival behind its border; returns whether it did."""
        received = self._received.read()
        if self._border_packets is None:
            self._border_packets = received[0]
            waits = self._look().backlog_packets > 0
        else:
            is_early = now_s < border_s + ARRIVAL_DEADLINE_S
            waits = received[0] == self._border_packets and is_early
        if not waits:
            self._close_bin(received)
            self._border_packets = None
        return not waits

    def _close_bin(self, received: tuple[int, int]) -> None:
        now_s = time.monotonic()
        state = self._look()
        self._note_asked(now_s)
        done, self._bin = self._bin, self._open_bin(now_s, received)
        self._bin.see(state)
        if now_s - done.begin_s < SHORTEST_BIN_S:
            return
        delivered = received[1] - done.received_bytes
        p50, p95, p99 = done.delays(self._delay_ms) if delivered else (None, None, None)
        self._seconds.append(
            LinkSecond(
                second=len(self._seconds),
                begin_s=done.begin_s - self._began_s,
                end_s=now_s - self._began_s,
                asked_bits=done.asked_bits,
                delivered_bits=float(delivered * BITS_PER_BYTE),
                saturated=done.least_backlog > 0,
                backlog_packets=done.most_backlog,
                drops=self._bin.counts.full_drops - done.counts.full_drops,
                late_s=done.late_s,
                direction=self.direction,
                backlog_bytes=done.most_bytes,
                losses=self._bin.losses - done.losses,
                aqm_drops=self._bin.counts.aqm_drops - done.counts.aqm_drops,
                marks=self._bin.counts.marks - done.counts.marks,
                delay_p50_ms=p50,
                delay_p95_ms=p95,
                delay_p99_ms=p99,
            )
        )


class LinkReplay:
    """Both directions of a link, and what changes on the way."""

    def __init__(
        self, replays: Sequence[Replay], changes: Sequence[LinkChange], heart: Heartbeat
    ) -> None:
        """Notes what to do.

        Args:
            replays: the directions.
            changes: what to change at its time, besides what the traces have.
            heart: beats while it works.
        """
        self._heart = heart
        self._replays = replays
        self._planned = deque(sorted(changes, key=lambda change: change.at_s))
        self._incomplete = b""
        self._is_over = False

    def run(self, control: socket.socket) -> Iterator[dict[str, Any]]:
        """Starts now; takes changes from ``control``, and ends at any other message.

        Yields:
            What to tell the other end: when it began, and what was measured.

        Raises:
            ShapingError: the kernel refused a change, or has something else at the end.
        """
        began_s = time.monotonic()
        for replay in self._replays:
            replay.begin(began_s)
        yield {"began_s": began_s}
        while not self._is_over:
            now_s = time.monotonic()
            self._heart.beat(now_s)
            for replay in self._replays:
                replay.advance(now_s)
            next_s = min(now_s + BEAT_S, *(replay.next_s for replay in self._replays))
            if self._planned:
                next_s = min(next_s, self._advance_plan(began_s, now_s))
            if select.select([control], [], [], max(next_s - time.monotonic(), 0.0))[0]:
                self._obey(control.recv(CONTROL_BYTES))
        seconds = [second for replay in self._replays for second in replay.finish()]
        seconds.sort(key=lambda second: second.second)  # stable: down comes first
        yield {"seconds": [dataclasses.asdict(second) for second in seconds]}

    def _obey(self, block: bytes) -> None:
        """Takes a part of the messages, one a line."""
        *lines, self._incomplete = (self._incomplete + block).split(b"\n")
        self._is_over = not block
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "change" not in message:
                self._is_over = True
                return
            self._apply(LinkChange(**message["change"]), due_s=time.monotonic())

    def _advance_plan(self, began_s: float, now_s: float) -> float:
        """Applies what is due of the plan; returns when the next change is."""
        while self._planned:
            due_s = began_s + self._planned[0].at_s
            if due_s > now_s:
                return due_s
            self._apply(self._planned.popleft(), due_s=due_s)
        return NEVER_S

    def _apply(self, change: LinkChange, *, due_s: float) -> None:
        for replay in self._replays:
            if change.direction in (None, replay.direction):
                replay.apply(change, due_s=due_s)


def replay_process(replay: LinkReplay, control: socket.socket, parents_end: socket.socket) -> None:
    """Body of the process: begins at the first message on ``control``."""
    parents_end.close()  # or the end of the session could not be seen
    gc.disable()
    gc.freeze()
    set_timer_slack_ns(1)
    with contextlib.suppress(PermissionError):  # only root outside of user namespaces
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))

    def say(message: dict[str, Any]) -> None:
        control.sendall(json.dumps(message).encode() + b"\n")

    if not control.recv(CONTROL_BYTES):
        return
    try:
        for message in replay.run(control):
            say(message)
    except (OSError, RuntimeError, ValueError) as error:
        say({"error": str(error)})
