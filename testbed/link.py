"""The bottleneck of a session: a link that replays a trace, and the proof that it did.

The kernel back-end shapes the output of one interface with HTB (``testbed.htb``) and leaves one-way
delay and loss to netem (``tc-netem(8)``) on other interfaces, before the bottleneck for what comes
down and behind the client for what goes up, so that neither touches the bottleneck's queue.

A process of its own changes the rate on an absolute schedule and measures at the same time. Its
unit is a bin of one second from the start on. A packet counts when its last byte is in, which alone
would put an error of a third of a packet into every bin (0.8 % at 0.5 Mbit/s); so while packets
queue, the border between two bins is moved to the next arrival, and what was asked is the integral
of the trace between the two moments at which the counters were really read.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from player.records import LinkRecord
from player.trace import Trace
from testbed.htb import (
    BITS_PER_BYTE,
    HtbClass,
    ReceiveCounter,
    packet_rates,
    qdisc_problem,
    schedule,
)
from testbed.htb import ShapingError as ShapingError  # callers know it from here
from testbed.namespaces import Child, fork_into, in_network_of, set_timer_slack_ns

log = logging.getLogger(__name__)

BACKENDS = ("auto", "kernel")
BIN_S = 1.0
WARM_UP_BINS = 2  # slow start fills the queue in these
BACKLOG_POLL_S = 0.010
ARRIVAL_POLL_S = 0.0005
ARRIVAL_DEADLINE_S = 0.5  # how far the border of a bin may move
SHORTEST_BIN_S = 0.02
ANSWER_TIMEOUT_S = 10.0
REAL_TIME_PRIORITY = 1
NETEM_QUEUE_PACKETS = 100_000  # netem must hold delay × rate and never drop
NETEM_REMEDY = (
    "use a kernel with the module sch_netem (Debian: a stock or cloud kernel; Ubuntu: "
    "linux-modules-extra-$(uname -r)), or set delay_ms and loss to 0"
)


class LinkUnsupported(ValueError):
    """This machine cannot make such a link; says what is missing and what to do instead."""


@dataclass(frozen=True)
class LinkSpec:
    """The link that a session asks for.

    Attributes:
        trace: capacity at layer 3 towards the client.
        start_s: position in the trace where the session starts.
        delay_ms: one-way delay, both ways.
        loss: share of packets lost on the way to the bottleneck, 0 to 1.
        queue_packets: length of the bottleneck's drop-tail queue.
        backend: ``auto`` or ``kernel``.
    """

    trace: Trace
    start_s: float = 0.0
    delay_ms: float = 0.0
    loss: float = 0.0
    queue_packets: int = 100
    backend: str = "auto"

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < float("inf"):
            raise ValueError(f"start_s {self.start_s} is not a time from 0 on")
        if not 0.0 <= self.delay_ms < float("inf"):
            raise ValueError(f"delay_ms {self.delay_ms} is not a time from 0 on")
        if not 0.0 <= self.loss < 1.0:
            raise ValueError(f"loss {self.loss} is not between 0 and 1")
        if self.queue_packets < 1:
            raise ValueError(f"queue_packets {self.queue_packets} is not at least 1")


@dataclass(frozen=True, slots=True)
class LinkSecond:
    """One bin.

    Attributes:
        second: its number; 0 begins with the session.
        begin_s: when the counters were read, seconds since the start of the replay.
        end_s: when they were read next.
        asked_bits: integral of the trace between the two.
        delivered_bits: layer-3 bits that the client's interface received between the two.
        saturated: whether the bottleneck's queue was never seen empty.
        backlog_packets: longest queue that was seen.
        drops: packets that found the queue full.
    """

    second: int
    begin_s: float
    end_s: float
    asked_bits: float
    delivered_bits: float
    saturated: bool
    backlog_packets: int
    drops: int


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """What the link did during one session."""

    record: LinkRecord
    seconds: tuple[LinkSecond, ...]


def check_supported(link: LinkSpec, *, controller_delay_ms: float = 0.0) -> str:
    """Checks, in this network namespace, that the link can be made; touches nothing but ``lo``.

    Returns:
        The back-end that will make it.

    Raises:
        LinkUnsupported: a back-end that there is not, or a qdisc that the kernel does not have.
    """
    if link.backend not in BACKENDS:
        raise LinkUnsupported(
            f"there is no link back-end {link.backend!r}; there are {', '.join(BACKENDS)}"
        )
    if problem := qdisc_problem("htb"):
        raise LinkUnsupported(f"the kernel has no HTB (module sch_htb): {problem}")
    asked = {
        "delay_ms": link.delay_ms,
        "loss": link.loss,
        "controller delay_ms": controller_delay_ms,
    }
    if any(asked.values()) and (problem := qdisc_problem("netem", "delay", "1ms")):
        wanted = ", ".join(f"{name} = {value}" for name, value in asked.items() if value)
        raise LinkUnsupported(f"{wanted} needs netem: {problem}; {NETEM_REMEDY}")
    return "kernel"


def netem_options(delay_ms: float, loss: float = 0.0) -> tuple[str, ...]:
    """Arguments for ``tc qdisc add … netem``; empty if nothing is asked."""
    if not (delay_ms or loss):
        return ()
    options = ["limit", str(NETEM_QUEUE_PACKETS)]
    if delay_ms:
        options += ["delay", f"{delay_ms:.3f}ms"]
    if loss:
        options += ["loss", f"{loss * 100:.6f}%"]
    return tuple(options)


def measure(seconds: Sequence[LinkSecond], *, backend: str) -> LinkRecord:
    """How closely the link followed its trace, over all bins behind the warm-up.

    A saturated bin counts with any deviation, another one only with what was delivered too much.
    """
    scored = seconds[WARM_UP_BINS:]
    if not any(bin_.saturated for bin_ in scored):
        scored = seconds
    saturated = [bin_ for bin_ in scored if bin_.saturated]
    asked_bits = sum(bin_.asked_bits for bin_ in saturated)
    if asked_bits <= 0:
        return LinkRecord(backend=backend)
    excess_bits = [bin_.delivered_bits - bin_.asked_bits for bin_ in saturated]
    others = sum(
        max(bin_.delivered_bits - bin_.asked_bits, 0.0) for bin_ in scored if not bin_.saturated
    )
    return LinkRecord(
        backend=backend,
        wire_nmae_1s=(sum(map(abs, excess_bits)) + others) / asked_bits,
        total_error=sum(excess_bits) / asked_bits,
        saturated_s=sum(bin_.end_s - bin_.begin_s for bin_ in saturated),
    )


class Replayer:
    """Handle on the process that replays and measures."""

    def __init__(self, link: LinkSpec, *, interface: str, client_pid: int, client_interface: str):
        """Starts the process in this network namespace; the link has its first rate already.

        Args:
            link: what to replay.
            interface: the bottleneck, in this namespace.
            client_pid: a process in the client's namespace.
            client_interface: where the client receives.

        Raises:
            ShapingError: the bottleneck could not be set up.
        """
        self._link = link
        received = in_network_of(client_pid, ReceiveCounter, client_interface)
        rate = int(packet_rates(link.trace, np.array([link.start_s]))[0])
        shaped = HtbClass(interface, queue_packets=link.queue_packets, bytes_per_s=rate)
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        with theirs, shaped, received:
            self._child: Child = fork_into(
                None, _replay_process, _Replay(link, shaped, received), theirs, self._control
            )

    def start(self) -> float:
        """Starts the replay; returns its ``time.monotonic()``."""
        self._send({"start": True})
        began: float = self._receive()["began_s"]
        return began

    def stop(self) -> LinkMeasurement:
        """Stops the replay and returns what was measured.

        Raises:
            ShapingError: a rate was not taken, or the process died.
        """
        self._send({"stop": True})
        answer = self._receive()
        self._child.wait(ANSWER_TIMEOUT_S)
        seconds = tuple(LinkSecond(**second) for second in answer["seconds"])
        return LinkMeasurement(measure(seconds, backend="kernel"), seconds)

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> dict[str, Any]:
        received = bytearray()
        while not received.endswith(b"\n"):
            try:
                block = self._control.recv(1 << 16)
            except TimeoutError as error:
                raise ShapingError("the process that replays the trace hangs") from error
            except ConnectionResetError:
                block = b""
            if not block:
                raise ShapingError("the process that replays the trace died")
            received += block
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            raise ShapingError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._control.close()
        self._child.kill()


@dataclass(slots=True)
class _Bin:
    """A bin in the making: counters at its begin, and the queue as seen since."""

    begin_s: float
    packets: int
    size_bytes: int
    drops: int
    least_backlog: int
    most_backlog: int

    def see(self, backlog_packets: int) -> None:
        self.least_backlog = min(self.least_backlog, backlog_packets)
        self.most_backlog = max(self.most_backlog, backlog_packets)


class _Replay:
    """The loop of the replaying process."""

    def __init__(self, link: LinkSpec, shaped: HtbClass, received: ReceiveCounter) -> None:
        self._link = link
        self._shaped = shaped
        self._received = received
        self._began_s = 0.0
        self._seconds: list[LinkSecond] = []
        self._bin = _Bin(0.0, 0, 0, 0, 0, 0)

    def run(self, control: socket.socket) -> list[LinkSecond]:
        """Replays from now on until anything can be read from ``control``."""
        changes = schedule(self._link.trace, self._link.start_s)
        change_at_s, rate = next(changes)
        self._open_bin()
        poll_at_s = self._began_s
        border_s = self._began_s + BIN_S
        is_busy = False
        while True:
            now_s = time.monotonic()
            if change_at_s + self._began_s <= now_s:
                while change_at_s + self._began_s <= now_s:
                    latest = rate
                    change_at_s, rate = next(changes)
                self._shaped.change(latest, is_busy=is_busy)
            if poll_at_s <= now_s:
                backlog_packets = self._shaped.read().backlog_packets
                self._bin.see(backlog_packets)
                if is_busy != (backlog_packets > 0):
                    is_busy = not is_busy
                    self._shaped.change(self._shaped.bytes_per_s, is_busy=is_busy)
                poll_at_s = now_s + BACKLOG_POLL_S
            check_at_s = border_s
            if border_s <= now_s:
                if self._cross(border_s, now_s):
                    border_s += BIN_S
                    check_at_s = border_s
                else:
                    check_at_s = now_s + ARRIVAL_POLL_S
            next_s = min(change_at_s + self._began_s, poll_at_s, check_at_s)
            if select.select([control], [], [], max(next_s - time.monotonic(), 0.0))[0]:
                self._close_bin(*self._received.read())
                self._shaped.verify()
                return self._seconds

    def begin(self) -> float:
        """Sets the origin of time."""
        self._began_s = time.monotonic()
        return self._began_s

    def _open_bin(self) -> None:
        state = self._shaped.read()
        packets, size_bytes = self._received.read()
        backlog = state.backlog_packets
        self._bin = _Bin(self._began_s, packets, size_bytes, state.drops, backlog, backlog)
        self._border_packets: int | None = None

    def _cross(self, border_s: float, now_s: float) -> bool:
        """Ends the bin at the first arrival behind its border; returns whether it did."""
        packets, size_bytes = self._received.read()
        if self._border_packets is None:
            self._border_packets = packets
            waits = self._shaped.read().backlog_packets > 0
        else:
            waits = packets == self._border_packets and now_s < border_s + ARRIVAL_DEADLINE_S
        if waits:
            return False
        self._close_bin(packets, size_bytes)
        self._border_packets = None
        return True

    def _close_bin(self, packets: int, size_bytes: int) -> None:
        now_s = time.monotonic()
        state = self._shaped.read()
        done = self._bin
        done.see(state.backlog_packets)
        offset_s = self._link.start_s - self._began_s
        asked = self._link.trace.bits_until(np.array([done.begin_s + offset_s, now_s + offset_s]))
        if now_s - done.begin_s >= SHORTEST_BIN_S:
            self._seconds.append(
                LinkSecond(
                    second=len(self._seconds),
                    begin_s=done.begin_s - self._began_s,
                    end_s=now_s - self._began_s,
                    asked_bits=float(asked[1] - asked[0]),
                    delivered_bits=float((size_bytes - done.size_bytes) * BITS_PER_BYTE),
                    saturated=done.least_backlog > 0,
                    backlog_packets=done.most_backlog,
                    drops=state.drops - done.drops,
                )
            )
        backlog = state.backlog_packets
        self._bin = _Bin(now_s, packets, size_bytes, state.drops, backlog, backlog)


def _replay_process(replay: _Replay, control: socket.socket, parents_end: socket.socket) -> None:
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
        say({"error": f"{type(error).__name__}: {error}"})
