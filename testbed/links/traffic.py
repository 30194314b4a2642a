"""Traffic that shows what a link does: loads that keep its queue filled, and round-trip times.

Senders and receivers are processes inside given network namespaces. They begin at a given moment,
end after a given time, and in any case with the context manager that started them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from player.trace import BITS_PER_MEGABIT, FloatArray, Trace
from testbed.namespaces import (
    Child,
    fork_into,
    in_network_of,
    set_timer_slack_ns,
    sleep_until,
    socket_in,
)

PACKET_BYTES = 1500  # layer 3
IPV4_UDP_HEADER_BYTES = 28
BITS_PER_BYTE = 8
TICK_S = 0.005  # waking up more often would keep the link itself from running
OVERLOAD = 1.5  # offered over what the trace lets pass
LEAD_S = 0.1  # how far ahead of the trace the sender is: more than the delay before the queue
FLOOR_MBPS = 0.25  # offered in outages, so that the queue is full at their end
MAX_BURST_PACKETS = 250  # per tick; what a sender that came late does not catch up on
SMALLEST_BUFFER_BYTES = 1  # the kernel takes the least it allows, and drops what does not fit
BLOCK_BYTES = 1 << 18
REAL_TIME_PRIORITY = 1
ECHO = struct.Struct("!Id")  # sequence number, when it was sent
ECHO_PATIENCE_S = 1.0  # for the last answers
MAX_ECHOES = 100_000
READ_BYTES = 1 << 16
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Route:
    """Where traffic goes.

    Attributes:
        sender_pid: a process in the namespace of the sender.
        receiver_pid: one in that of the receiver.
        address: IPv4 address of the receiver, as the sender sees it.
        port: port at the receiver.
    """

    sender_pid: int
    receiver_pid: int
    address: str
    port: int = 9000


@dataclass(frozen=True)
class RoundTrips:
    """What came back of the packets of an echo.

    Attributes:
        sent: how many were sent.
        rtt_s: ``(n,)`` round-trip times of those that came back, in that order.
    """

    sent: int
    rtt_s: FloatArray

    def quantile_s(self, share: float) -> float:
        """The time that a share of the packets stayed below; NaN if nothing came back."""
        return float(np.quantile(self.rtt_s, share)) if len(self.rtt_s) else float("nan")


def offered_bytes(trace: Trace, *, start_s: float, seconds: float) -> FloatArray:
    """What a sender must have sent after each tick so that the queue never gets empty.

    It is more than the trace lets pass, now and ``LEAD_S`` later, but not by a fixed rate above the
    highest one: what a link has to drop costs it time too.

    Args:
        trace: capacity at layer 3.
        start_s: position in the trace when the sender begins.
        seconds: how long it sends.

    Returns:
        ``(n + 1,)`` layer-3 bytes after 0 … n ticks.
    """
    ticks = np.arange(int(np.ceil(seconds / TICK_S)) + 1, dtype=np.float64)
    at_s = np.asarray(start_s + TICK_S * ticks)
    now_bits = np.diff(trace.bits_until(at_s))
    soon_bits = np.diff(trace.bits_until(at_s + LEAD_S))
    per_tick = OVERLOAD * np.maximum(now_bits, soon_bits) + FLOOR_MBPS * BITS_PER_MEGABIT * TICK_S
    return np.concatenate(([0.0], np.cumsum(per_tick))) / BITS_PER_BYTE


@contextlib.contextmanager
def udp_load(
    route: Route, trace: Trace, *, at_s: float, seconds: float, start_s: float = 0.0
) -> Iterator[None]:
    """Sends whole packets, always more than the link lets pass; nobody reads them.

    Args:
        route: from where to where.
        trace: what the link replays.
        at_s: when to begin, ``time.monotonic()``.
        seconds: how long to send.
        start_s: position in the trace at that moment.
    """
    plan = offered_bytes(trace, start_s=start_s, seconds=seconds)

    def listen() -> socket.socket:
        """Without a socket the receiver would answer every packet with an ICMP message."""
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALLEST_BUFFER_BYTES)
        sink.bind((route.address, route.port))
        return sink

    with (
        in_network_of(route.receiver_pid, listen),
        fork_into(route.sender_pid, _send_datagrams, (route.address, route.port), plan, at_s),
    ):
        yield


def _send_datagrams(address: tuple[str, int], plan: FloatArray, at_s: float) -> None:
    set_timer_slack_ns(1)
    due = (plan / PACKET_BYTES).astype(np.int64).tolist()  # packets after each tick
    payload = bytes(PACKET_BYTES - IPV4_UDP_HEADER_BYTES)
    sent = tick = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        sender.setblocking(False)
        sleep_until(at_s)
        while tick < len(due) - 1:
            tick = min(int((time.monotonic() - at_s) / TICK_S) + 1, len(due) - 1)
            for _ in range(min(due[tick] - sent, MAX_BURST_PACKETS)):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    sender.send(payload)
            sent = due[tick]
            sleep_until(at_s + tick * TICK_S)


@contextlib.contextmanager
def tcp_load(
    route: Route, *, at_s: float, seconds: float, congestion: str = "cubic"
) -> Iterator[None]:
    """One connection that always has something to send.

    Args:
        route: from where to where.
        at_s: when to begin, ``time.monotonic()``; the connection is made before.
        seconds: how long to send.
        congestion: congestion control of the sender.

    Raises:
        OSError: the port is taken.
    """
    with (
        socket_in(route.receiver_pid, route.address, route.port) as listener,
        fork_into(route.receiver_pid, _drain, listener),
        fork_into(
            route.sender_pid, _send_stream, (route.address, route.port), congestion, at_s, seconds
        ),
    ):
        yield


def _drain(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    buffer = bytearray(BLOCK_BYTES)
    with connection, contextlib.suppress(ConnectionError):
        while connection.recv_into(buffer):
            pass


def _send_stream(address: tuple[str, int], congestion: str, at_s: float, seconds: float) -> None:
    block = bytes(BLOCK_BYTES)
    with socket.create_connection(address) as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        sleep_until(at_s)
        while (left_s := at_s + seconds - time.monotonic()) > 0.0:
            sender.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                sender.send(block)


# ---- round-trip times ---------------------------------------------------------------------------


class Echo:
    """Packets that are under way to be sent back; made by :func:`echo`."""

    def __init__(self, child: Child, answers: int, count: int) -> None:
        self._child = child
        self._answers = answers
        self._count = count

    def read(self, timeout_s: float) -> RoundTrips:
        """Waits for the end and returns what was measured.

        Raises:
            TimeoutError: it takes longer.
            RuntimeError: the process that measures failed.
        """
        received = bytearray()
        ends_s = time.monotonic() + timeout_s
        os.set_blocking(self._answers, False)
        while True:
            try:
                block = os.read(self._answers, READ_BYTES)
            except BlockingIOError:
                if time.monotonic() > ends_s:
                    raise TimeoutError(f"the echo takes longer than {timeout_s} s") from None
                time.sleep(POLL_S)
                continue
            if not block:
                break
            received += block
        if status := self._child.wait(max(ends_s - time.monotonic(), POLL_S)):
            raise RuntimeError(f"the process that measures round-trip times ended with {status}")
        return RoundTrips(self._count, np.frombuffer(bytes(received), dtype=np.float64))


@contextlib.contextmanager
def echo(route: Route, *, at_s: float, count: int, every_s: float) -> Iterator[Echo]:
    """Small packets that the receiver sends back at once; one per ``every_s``.

    Both ends get the scheduler's real-time class where that is allowed, so that what is measured is
    the link and not how busy the machine is.

    Args:
        route: from where to where and back.
        at_s: when to begin, ``time.monotonic()``.
        count: how many packets.
        every_s: time between two.
    """
    if not 1 <= count <= MAX_ECHOES:
        raise ValueError(f"count {count} is not from 1 to {MAX_ECHOES}")

    def listen() -> socket.socket:
        mirror = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        mirror.bind((route.address, route.port))
        return mirror

    with (
        in_network_of(route.receiver_pid, listen) as mirror,
        fork_into(route.receiver_pid, _mirror, mirror),
        contextlib.ExitStack() as stack,
    ):
        answers, theirs = os.pipe()  # no other process may hold the second, or it would never end
        stack.callback(os.close, answers)
        try:
            child = fork_into(
                route.sender_pid, _ping, (route.address, route.port), theirs, at_s, count, every_s
            )
        finally:
            os.close(theirs)
        stack.enter_context(child)
        yield Echo(child, answers, count)


def _be_prompt() -> None:
    set_timer_slack_ns(1)
    with contextlib.suppress(PermissionError):  # only root outside of user namespaces
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))


def _mirror(mirror: socket.socket) -> None:
    _be_prompt()
    while True:
        packet, sender = mirror.recvfrom(ECHO.size)
        mirror.sendto(packet, sender)


def _ping(address: tuple[str, int], answers: int, at_s: float, count: int, every_s: float) -> None:
    _be_prompt()
    rtt_s: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        sleep_until(at_s)
        for number in range(count):
            sender.send(ECHO.pack(number, time.monotonic()))
            _collect(sender, rtt_s, until_s=at_s + (number + 1) * every_s)
        _collect(sender, rtt_s, until_s=time.monotonic() + ECHO_PATIENCE_S, enough=count)
    with os.fdopen(answers, "wb") as file:
        file.write(np.array(rtt_s, dtype=np.float64).tobytes())


def _collect(
    sender: socket.socket, rtt_s: list[float], *, until_s: float, enough: int | None = None
) -> None:
    while len(rtt_s) != enough and (left_s := until_s - time.monotonic()) > 0.0:
        sender.settimeout(left_s)
        with contextlib.suppress(TimeoutError, ConnectionError):
            packet = sender.recv(ECHO.size)
            rtt_s.append(time.monotonic() - ECHO.unpack(packet)[1])
