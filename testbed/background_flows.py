"""Background traffic on real TCP connections, between the two hosts of a session.

One process per session holds both ends of every connection: it runs in the client's network, where
it opens connections, and accepts them on a socket that listens in the server's (a socket belongs to
the network where it was made, ``network_namespaces(7)``). So the two ends need neither a protocol
to find each other nor a second clock. As on the web, the client connects, whichever way the data
goes.

An outage of the link is part of what is emulated: a connection that fails is counted, and only
flows without an end come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from player.records import BackgroundRecord
from player.trace import BITS_PER_MEGABIT
from testbed.background import BackgroundTraffic, Transfer, flow_count, transfers
from testbed.namespaces import Child, fork_into, socket_in
from testbed.statistics import percentile

log = logging.getLogger(__name__)

Place = tuple[int, str]  # a process in the host's network, and the host's address there

BITS_PER_BYTE = 8
BLOCK = memoryview(bytes(1 << 16))
RECEIVE_BYTES = 1 << 18
#: So much, or the end of file, wakes the reader up; every packet would take thrice the processor.
WAKE_BYTES = 1 << 14
#: Unsent data that the kernel takes: more would still leave long after a source fell silent.
UNSENT_BYTES = 1 << 16
PACE_S = 0.01  # of data in one write, for a source with a rate
MIN_WRITE_BYTES = 1400  # about a packet
BACKLOG = 512
#: Both ends together keep below the usual limit of 1,024 open files.
MAX_OPEN = 400
CONNECT_TIMEOUT_S = 60.0
RETRY_S = 1.0
ANSWER_TIMEOUT_S = 10.0
GRACE_S = 1.0  # for a process that closed its socket to end
MESSAGE_BYTES = 1 << 20
STOP = "stop"


class CongestionUnavailable(ValueError):
    """The kernel does not have a congestion control that background traffic asks for."""


class BackgroundDied(RuntimeError):
    """The process that makes the background traffic ended, or does not answer."""


class Background:
    """The background traffic of one session; as a context manager it ends with it.

    ::

        with Background(traffic, seed=seed, near=(client_pid, address), far=…) as background:
            background.start(network.start_replay())
            ...
            records = background.stop()
    """

    def __init__(
        self, traffic: Sequence[BackgroundTraffic], *, seed: int, near: Place, far: Place
    ) -> None:
        """Notes what is asked.

        Args:
            traffic: the entries; without any, nothing is started.
            seed: of the schedules; every entry draws numbers of its own.
            near: the client's side.
            far: the server's side.
        """
        self._traffic = tuple(traffic)
        self._seed = seed
        self._near = near
        self._far = far
        self._cleanup = contextlib.ExitStack()
        self._child: Child | None = None
        self._is_started = False
        self._records: tuple[BackgroundRecord, ...] | None = None

    def __enter__(self) -> Background:
        """Makes the process that waits for the start.

        The thread that does this must live as long as the traffic: its process ends with it.

        Raises:
            CongestionUnavailable: see :func:`check_congestion`.
            OSError: a host cannot be entered, or its address cannot be bound.
        """
        if not self._traffic:
            return self
        check_congestion(self._traffic)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket_in(*self._far, 0, backlog=BACKLOG))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(theirs)
            self._control = self._cleanup.enter_context(ours)
            self._child = self._cleanup.enter_context(
                fork_into(
                    self._near[0],
                    _run_background,
                    *(self._traffic, self._seed, self._near[1], listener, theirs),
                )
            )
        self._control.settimeout(ANSWER_TIMEOUT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def start(self, at_s: float) -> None:
        """Starts the schedules; only the first call counts.

        Args:
            at_s: ``time.monotonic()`` at the start of the session.

        Raises:
            BackgroundDied: the process is gone.
        """
        if self._child is not None and not self._is_started:
            self._is_started = True
            self._tell(repr(at_s))

    def stop(self) -> tuple[BackgroundRecord, ...]:
        """Ends the traffic.

        Returns:
            One record per entry, in their order; a second call returns the same.

        Raises:
            BackgroundDied: the process is gone, or does not answer.
        """
        if self._child is None:
            return ()
        if self._records is None:
            self._tell(STOP)
            self._records = tuple(_parse_record(row) for row in json.loads(self._hear()))
            self._child.kill()
        return self._records

    def _tell(self, message: str) -> None:
        try:
            self._control.send(message.encode())
        except OSError as error:
            raise BackgroundDied(self._last_words()) from error

    def _hear(self) -> bytes:
        try:
            answer = self._control.recv(MESSAGE_BYTES)
        except OSError as error:
            raise BackgroundDied(self._last_words()) from error
        if not answer:
            raise BackgroundDied(self._last_words())
        return answer

    def _last_words(self) -> str:
        assert self._child is not None  # asked only then
        try:
            status = self._child.wait(timeout_s=GRACE_S)
        except TimeoutError:
            return "the process of the background traffic does not answer"
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"the process of the background traffic ended with {how}"


def check_congestion(traffic: Sequence[BackgroundTraffic]) -> None:
    """Checks that the kernel has the congestion controls that are asked for.

    Raises:
        CongestionUnavailable: names the entry and what there is.
    """
    for number, entry in enumerate(traffic):
        if entry.congestion is None:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                _set_congestion(probe, entry.congestion)
            except OSError as error:
                path = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
                raise CongestionUnavailable(
                    f"background.{number}.congestion: {entry.congestion!r} cannot be used "
                    f"({error.strerror}); there are {', '.join(sorted(path.read_text().split()))}"
                ) from error


def _set_congestion(end: socket.socket, name: str) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def _parse_record(row: dict[str, Any]) -> BackgroundRecord:
    return BackgroundRecord(**{**row, "flows_mbps": tuple(row["flows_mbps"])})


# ---- inside the process -------------------------------------------------------------------------


def _run_background(
    traffic: tuple[BackgroundTraffic, ...],
    seed: int,
    near_address: str,
    listener: socket.socket,
    control: socket.socket,
) -> None:
    asyncio.run(_Flows(traffic, seed, near_address, listener).run(control))


@dataclass
class _Tally:
    """What is known of one entry so far."""

    received_bytes: list[int]
    started: int = 0
    finished: int = 0
    errors: int = 0
    completions_s: list[float] = field(default_factory=list)

    def record(self, traffic: BackgroundTraffic, ran_s: float) -> BackgroundRecord:
        """The record, ``ran_s`` after the start of the session."""
        active_s = min(ran_s, traffic.end_s) - traffic.start_s
        megabits = [count * BITS_PER_BYTE / BITS_PER_MEGABIT for count in self.received_bytes]
        flows_mbps = tuple(amount / active_s if active_s > 0 else 0.0 for amount in megabits)
        return BackgroundRecord(
            kind=traffic.kind,
            direction=traffic.direction,
            started=self.started,
            finished=self.finished,
            errors=self.errors,
            received_bytes=sum(self.received_bytes),
            throughput_mbps=sum(flows_mbps),
            flows_mbps=flows_mbps,
            completion_p50_s=percentile(self.completions_s, 50),
            completion_p95_s=percentile(self.completions_s, 95),
        )


class _Flows:
    """Carries the schedules out."""

    def __init__(
        self,
        traffic: tuple[BackgroundTraffic, ...],
        seed: int,
        near_address: str,
        listener: socket.socket,
    ) -> None:
        self._traffic = traffic
        self._seed = seed
        self._near_address = near_address
        self._listener = listener
        self._tallies = [_Tally([0] * flow_count(entry)) for entry in traffic]
        self._expected: dict[int, asyncio.Future[socket.socket]] = {}  # by the near end's port
        self._buffer = bytearray(RECEIVE_BYTES)  # what is read is thrown away, so one is enough
        self._open = 0
        self._at_s = 0.0

    async def run(self, control: socket.socket) -> None:
        """Waits for the start, works until the stop, and tells what became of it."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        control.setblocking(False)
        ran_s = 0.0
        message = await loop.sock_recv(control, MESSAGE_BYTES)
        if message != STOP.encode():
            self._at_s = float(message)
            working = asyncio.create_task(self._work())
            stopping = asyncio.create_task(loop.sock_recv(control, MESSAGE_BYTES))
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()  # raises: it has no end of its own
            ran_s = loop.time() - self._at_s
            working.cancel()
            await asyncio.wait((working,))
        records = [
            dataclasses.asdict(tally.record(entry, ran_s))
            for tally, entry in zip(self._tallies, self._traffic, strict=True)
        ]
        await loop.sock_sendall(control, json.dumps(records).encode())

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._accept())
            for number in range(len(self._traffic)):
                group.create_task(self._follow(number, group))

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            end, address = await loop.sock_accept(self._listener)
            expected = self._expected.pop(address[1], None)
            if expected is None or expected.done():
                end.close()  # the near end gave up meanwhile
            else:
                expected.set_result(end)

    async def _follow(self, number: int, group: asyncio.TaskGroup) -> None:
        """Begins the transfers of one entry when their time has come."""
        now_s = asyncio.get_running_loop().time  # time.monotonic()
        for transfer in transfers(self._traffic[number], (self._seed, number)):
            await asyncio.sleep(max(self._at_s + transfer.start_s - now_s(), 0.0))
            group.create_task(self._carry(number, transfer))

    async def _carry(self, number: int, transfer: Transfer) -> None:
        """Carries one transfer; one without a size comes back after an error."""
        now_s = asyncio.get_running_loop().time
        tally = self._tallies[number]
        tally.started += 1
        end_s = math.inf if transfer.until_s is None else self._at_s + transfer.until_s
        while not await self._attempt(number, transfer, end_s):
            tally.errors += 1
            if transfer.size_bytes is not None or now_s() + RETRY_S >= end_s:
                return
            await asyncio.sleep(RETRY_S)
        tally.finished += 1
        if transfer.size_bytes is not None:
            tally.completions_s.append(now_s() - self._at_s - transfer.start_s)

    async def _attempt(self, number: int, transfer: Transfer, end_s: float) -> bool:
        """One connection; returns whether it came to its end."""
        if self._open >= MAX_OPEN:
            return False
        self._open += 1
        is_complete = False
        try:
            async with (
                self._connection(end_s) as (near, far),
                asyncio.TaskGroup() as group,
            ):
                sender, receiver = (far, near) if transfer.direction == "down" else (near, far)
                _set_up_sender(sender, self._traffic[number].congestion)
                group.create_task(_send(sender, transfer, end_s))
                group.create_task(self._receive(receiver, self._tallies[number], transfer.flow))
            is_complete = True
        except* OSError as errors:
            log.debug("background transfer: %s", errors.exceptions)
        finally:
            self._open -= 1
        return is_complete

    @contextlib.asynccontextmanager
    async def _connection(self, end_s: float) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
        """Both ends of a new connection, the near one first."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            near = stack.enter_context(socket.socket(self._listener.family, socket.SOCK_STREAM))
            near.setblocking(False)
            near.bind((self._near_address, 0))
            port = near.getsockname()[1]
            self._expected[port] = accepted = loop.create_future()
            stack.callback(self._expected.pop, port, None)
            async with asyncio.timeout_at(min(loop.time() + CONNECT_TIMEOUT_S, end_s)):
                await loop.sock_connect(near, self._listener.getsockname())
                far = stack.enter_context(await accepted)
            yield near, far

    async def _receive(self, end: socket.socket, tally: _Tally, flow: int) -> None:
        """Reads until the end of file."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                count = end.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if not ended.done():
                    ended.set_exception(error)
                return
            tally.received_bytes[flow] += count
            if not count and not ended.done():
                ended.set_result(None)

        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, WAKE_BYTES)
        loop.add_reader(end, read)
        try:
            await ended
        finally:
            loop.remove_reader(end)
            read()  # at a stop, what has come without waking anybody up


def _set_up_sender(end: socket.socket, congestion: str | None) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    if congestion is not None:
        _set_congestion(end, congestion)


async def _send(end: socket.socket, transfer: Transfer, end_s: float) -> None:
    """Writes a transfer, then the end of file."""
    try:
        async with asyncio.timeout_at(end_s) as limit:
            await _write(end, transfer)
    except TimeoutError:  # also what the kernel says when the other end does not answer
        if not limit.expired():
            raise
    end.shutdown(socket.SHUT_WR)


async def _write(end: socket.socket, transfer: Transfer) -> None:
    loop = asyncio.get_running_loop()
    left: float = math.inf if transfer.size_bytes is None else transfer.size_bytes
    bytes_per_s = math.inf
    if transfer.rate_mbps is not None:
        bytes_per_s = transfer.rate_mbps * BITS_PER_MEGABIT / BITS_PER_BYTE
    piece = min(max(bytes_per_s * PACE_S, MIN_WRITE_BYTES), len(BLOCK))
    due_s = loop.time()
    while left > 0:
        block = BLOCK[: int(min(left, piece))]
        await loop.sock_sendall(end, block)
        left -= len(block)
        due_s += len(block) / bytes_per_s
        if (wait_s := due_s - loop.time()) > 0:
            await asyncio.sleep(wait_s)
