"""The process that replays a trace on a shaped interface and measures what comes out of it.

It changes the rate on an absolute schedule. The kernel takes changes under a lock of the whole
machine, which others hold for tens of milliseconds while they make or remove interfaces; what such
a late change gave too much or too little is paid back at once, by a rate that deviates a little.

The unit of measuring is a bin of one second from the start on. A packet counts when it is in, which
alone would put an error of a third of a packet into every bin (0.8 % at 0.5 Mbit/s); so while
packets queue, the border between two bins is moved to the next arrival, and what was asked is the
integral of the trace between the two moments at which the counters were really read.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from player.trace import Trace
from testbed.links.htb import (
    BITS_PER_BYTE,
    PACKET_BYTES,
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
from testbed.namespaces import set_timer_slack_ns

BACKLOG_POLL_S = 0.010
ARRIVAL_POLL_S = 0.0005
LATE_S = 0.002  # delays of a change of the rate below this are left alone
PAYBACK_S = 0.05
DEEPEST_CUT = 0.5  # share of the rate by which it is lowered to pay back
LONGEST_PAYBACK_S = 1.0
REAL_TIME_PRIORITY = 1


class _Bin:
    """A bin in the making: the counters at its begin, and the queue as seen since."""

    def __init__(self, begin_s: float, received: tuple[int, int], drops: int, backlog: int) -> None:
        self.begin_s = begin_s
        self.received_bytes = received[1]
        self.drops = drops
        self.least_backlog = self.most_backlog = backlog
        self.late_s = 0.0

    def see(self, backlog_packets: int) -> None:
        self.least_backlog = min(self.least_backlog, backlog_packets)
        self.most_backlog = max(self.most_backlog, backlog_packets)


class Replay:
    """One replay; all times are those of ``time.monotonic``."""

    def __init__(
        self, trace: Trace, start_s: float, shaped: HtbClass, received: ReceiveCounter
    ) -> None:
        """Notes what to replay from which position, and where."""
        self._trace = trace
        self._start_s = start_s
        self._shaped = shaped
        self._received = received
        self._seconds: list[LinkSecond] = []
        self._is_busy = False
        self._rate = shaped.bytes_per_s  # as scheduled
        self._payback = 0.0  # on top of it, bytes per second
        self._payback_until_s = NEVER_S
        self._border_packets: int | None = None
        self.begin()

    def begin(self) -> float:
        """Sets the origin of time to now and returns it."""
        self._began_s = time.monotonic()
        self._bin = self._open_bin(self._began_s, self._received.read())
        return self._began_s

    def run(self, control: socket.socket) -> list[LinkSecond]:
        """Replays until anything can be read from ``control``.

        Raises:
            ShapingError: the kernel refused a change, or has another rate at the end.
        """
        changes = schedule(self._trace, self._start_s)
        change_s, rate = next(changes)
        change_s += self._began_s
        poll_s = self._began_s
        border_s = self._began_s + BIN_S
        while True:
            now_s = time.monotonic()
            if change_s <= now_s:
                due_s = change_s
                while change_s <= now_s:
                    latest = rate
                    change_s, rate = next(changes)
                    change_s += self._began_s
                self._change_rate(latest, due_s)
            if self._payback_until_s <= now_s:
                self._payback, self._payback_until_s = 0.0, NEVER_S
                self._push()
            if poll_s <= now_s:
                self._poll()
                poll_s = now_s + BACKLOG_POLL_S
            check_s = border_s
            if border_s <= now_s:
                if self._cross(border_s, now_s):
                    border_s += BIN_S
                    check_s = border_s
                else:
                    check_s = now_s + ARRIVAL_POLL_S
            next_s = min(change_s, self._payback_until_s, poll_s, check_s)
            if select.select([control], [], [], max(next_s - time.monotonic(), 0.0))[0]:
                self._close_bin(self._received.read())
                self._shaped.verify()
                return self._seconds

    def _bits_between(self, from_s: float, to_s: float) -> float:
        moments = np.array([from_s, to_s]) - self._began_s + self._start_s
        begin, end = self._trace.bits_until(moments)
        return float(end - begin)

    def _push(self) -> None:
        """Gives the kernel the rate that is due now."""
        rate = self._rate + self._payback
        if self._payback < 0:
            # Below some rate one packet takes longer than paying back may; cut there, the rate
            # ahead of an outage would have it sleep through twice its length.
            is_slow = self._rate < PACKET_BYTES / PAYBACK_S
            rate = self._rate if is_slow else max(rate, self._rate * (1 - DEEPEST_CUT))
        self._shaped.change(clip_rate(rate), is_busy=self._is_busy)

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
        backlog_packets = self._shaped.read().backlog_packets
        self._bin.see(backlog_packets)
        if self._is_busy != (backlog_packets > 0):
            self._is_busy = not self._is_busy
            self._push()

    def _open_bin(self, now_s: float, received: tuple[int, int]) -> _Bin:
        state = self._shaped.read()
        return _Bin(now_s, received, state.drops, state.backlog_packets)

    def _cross(self, border_s: float, now_s: float) -> bool:
        """Ends the bin at the first arrival behind its border; returns whether it did."""
        received = self._received.read()
        if self._border_packets is None:
            self._border_packets = received[0]
            waits = self._shaped.read().backlog_packets > 0
        else:
            is_early = now_s < border_s + ARRIVAL_DEADLINE_S
            waits = received[0] == self._border_packets and is_early
        if not waits:
            self._close_bin(received)
            self._border_packets = None
        return not waits

    def _close_bin(self, received: tuple[int, int]) -> None:
        now_s = time.monotonic()
        done, self._bin = self._bin, self._open_bin(now_s, received)
        done.see(self._bin.most_backlog)
        if now_s - done.begin_s < SHORTEST_BIN_S:
            return
        self._seconds.append(
            LinkSecond(
                second=len(self._seconds),
                begin_s=done.begin_s - self._began_s,
                end_s=now_s - self._began_s,
                asked_bits=self._bits_between(done.begin_s, now_s),
                delivered_bits=float((received[1] - done.received_bytes) * BITS_PER_BYTE),
                saturated=done.least_backlog > 0,
                backlog_packets=done.most_backlog,
                drops=self._bin.drops - done.drops,
                late_s=done.late_s,
            )
        )


def replay_process(replay: Replay, control: socket.socket, parents_end: socket.socket) -> None:
    """Body of the process: begins at the first message on ``control``, ends at the second."""
    parents_end.close()  # or the end of the session could not be seen
    gc.disable()
    gc.freeze()
    set_timer_slack_ns(1)
    with contextlib.suppress(PermissionError):  # only root outside of user namespaces
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))

    def say(message: dict[str, Any]) -> None:
        control.sendall(json.dumps(message).encode() + b"\n")

    if not control.recv(1 << 16):
        return
    try:
        say({"began_s": replay.begin()})
        seconds = replay.run(control)
        say({"seconds": [asdict(second) for second in seconds]})
    except (OSError, RuntimeError) as error:
        say({"error": str(error)})
