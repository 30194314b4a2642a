"""One executor of a live cluster: reads its shuffle bytes from others over TCP, then computes.

An agent keeps the sizes of what finished tasks wrote, and serves that many bytes to others. It
does what the master says, one task at a time, and ends with the connection to it. It needs a
listening socket and the master's address, and nothing of the rest of the project.

Between master and agent, one JSON object per line:

==================================================================  ============================
the master says                                                     the agent says
==================================================================  ============================
``{"run": id, "reads": [[source, job, parent, child, holding,        ``{"hello": executor,
bytes], …], "writes": [[child, bytes], …], "compute_s", "after_s",   "address": …}``, once
"job", "stage", "holding"}``
``{"reread": id, "reads": […]}``                                    ``{"computing": id, …}``
``{"kill": id}``                                                    ``{"unread": id, "reads"}``
``{"hold": [[job, parent, child, holding, bytes], …]}``              ``{"beat": true}``
``{"forget": job}``, ``{"gone": executor}``, ``{"peers": {executor: [address, port]}}``
==================================================================  ============================

Between agents: ``{"get": [[job, parent, child, holding, bytes], …]}``, answered with
``{"bytes": total}`` and that many bytes, or ``{"error": …}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster_sim.wire import MAX_LINE_BYTES, Guests, Message, WireError, encode, receive

log = logging.getLogger(__name__)

BEAT_S = 0.5
BLOCK_BYTES = 1 << 16
BURN_SLICE_S = 0.002
_BLOCK = bytes(BLOCK_BYTES)

Work = Literal["sleep", "burn"]
Output = tuple[int, int, int, int]  # job, parent, child, holding
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Unreadable(Exception):
    """A source does not give what it was asked for."""


@dataclass(slots=True)
class _Task:
    """What runs.

    Attributes:
        number: the master's.
        rereads: answers to what could not be read.
        local_bytes: read of its own output.
        remote_bytes: received from others.
        wasted_bytes: received in vain.
    """

    number: int
    rereads: asyncio.Queue[list[list[int]]] = field(default_factory=asyncio.Queue)
    local_bytes: int = 0
    remote_bytes: int = 0
    wasted_bytes: int = 0


def agent_process(
    executor: int, master: tuple[str, int], listener: socket.socket, work: Work = "sleep"
) -> None:
    """Runs an agent until the master is gone; body of a process.

    Args:
        executor: its number.
        master: address and port of the master.
        listener: where it serves others.
        work: whether tasks sleep, or keep a core busy.
    """
    with contextlib.suppress(ConnectionError):
        asyncio.run(Agent(executor, listener, work).run(master))


class Agent:
    """The agent of one executor."""

    def __init__(self, executor: int, listener: socket.socket, work: Work = "sleep") -> None:
        self._executor = executor
        self._listener = listener
        self._work = work
        self._held: dict[Output, int] = {}
        self._peers: dict[int, tuple[str, int]] = {}
        self._streams: dict[int, Stream] = {}
        self._read_now: dict[int, Stream] = {}
        self._gone: set[int] = set()
        self._guests = Guests()
        self._task: _Task | None = None
        self._runs: asyncio.Task[None] | None = None
        self._due_s = 0.0  # when the last task is to end, or was
        self._master: asyncio.StreamWriter | None = None

    async def run(self, master: tuple[str, int]) -> None:
        """Works until the master closes the connection.

        Raises:
            ConnectionError: there is no master, or it is not what it should be.
        """
        server = await asyncio.start_server(self._serve, sock=self._listener, limit=MAX_LINE_BYTES)
        reader, self._master = await asyncio.open_connection(*master, limit=MAX_LINE_BYTES)
        beat = asyncio.create_task(self._beat())
        try:
            address = list(self._listener.getsockname())
            self._say({"hello": self._executor, "address": address})
            while (message := await receive(reader)) is not None:
                await self._obey(message)
        finally:
            beat.cancel()
            await self._stop()
            for _, writer in self._streams.values():
                writer.close()
            self._master.close()
            server.close()
            await self._guests.see_off()

    def _say(self, message: Message) -> None:
        assert self._master is not None
        self._master.write(encode(message))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._say({"beat": True})

    async def _obey(self, message: Message) -> None:
        match message:
            case {"run": int(number)}:
                await self._stop()
                now_s = asyncio.get_running_loop().time()
                since_s = self._due_s + float(message["after_s"]) if self._due_s else now_s
                self._task = _Task(number)
                self._runs = asyncio.create_task(
                    self._run(self._task, message, min(since_s, now_s), now_s)
                )
                self._runs.add_done_callback(self._give_up)
            case {"kill": int(number)}:
                if self._task is not None and self._task.number == number:
                    await self._stop()
                    self._due_s = 0.0
            case {"reread": int(number), "reads": list(reads)}:
                if self._task is not None and self._task.number == number:
                    self._task.rereads.put_nowait(reads)
            case {"hold": list(rows)}:
                for *output, size in rows:
                    self._hold(output, size)
            case {"gone": int(executor)}:
                self._gone.add(executor)  # it may hang, with its connections open
                for streams in (self._streams, self._read_now):
                    if executor in streams:
                        streams.pop(executor)[1].transport.abort()
            case {"forget": int(job)}:
                self._held = {one: size for one, size in self._held.items() if one[0] != job}
            case {"peers": dict(peers)}:
                self._gone.clear()
                self._peers = {int(one): (str(at[0]), int(at[1])) for one, at in peers.items()}
            case _:
                raise WireError(f"the master says {message}")

    def _give_up(self, ended: asyncio.Task[None]) -> None:
        """An agent whose task failed for a reason of its own is of no use: it is lost."""
        if not ended.cancelled() and (error := ended.exception()) is not None:
            log.error("executor %d gives up: %r", self._executor, error)
            assert self._master is not None
            self._master.transport.abort()

    def _hold(self, output: Sequence[int], size: int) -> None:
        job, parent, child, holding = output
        key = (job, parent, child, holding)
        self._held[key] = self._held.get(key, 0) + size

    async def _stop(self) -> None:
        if self._runs is not None:
            self._runs.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runs
        self._task = self._runs = None

    # ---- tasks ---------------------------------------------------------------------------------

    async def _run(self, task: _Task, order: Message, since_s: float, now_s: float) -> None:
        """Runs a task that is to count from ``since_s``: what the way of messages took is not it.

        So the computing is shortened by how late the order came. When it begins, its end is known,
        and the master told: no message is on its way when the next task is to begin.
        """
        loop = asyncio.get_running_loop()
        if order["reads"]:
            await self._fetch_all(task, order["reads"])
        fetched_s = loop.time()
        self._due_s = since_s + (fetched_s - now_s) + float(order["compute_s"])
        for child, size in order["writes"]:  # nobody asks for it before the master says so
            self._hold((order["job"], order["stage"], child, order["holding"]), size)
        self._say(
            {
                "computing": task.number,
                "fetch_s": fetched_s - now_s,
                "late_s": now_s - since_s,
                "local": task.local_bytes,
                "remote": task.remote_bytes,
                "wasted": task.wasted_bytes,
            }
        )
        await self._compute(self._due_s)
        self._task = self._runs = None

    async def _compute(self, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._work == "sleep":
            if (left_s := due_s - loop.time()) > 0:
                await asyncio.sleep(left_s)
            return
        while (left_s := due_s - loop.time()) > 0:
            until_s = loop.time() + min(left_s, BURN_SLICE_S)
            while loop.time() < until_s:
                pass
            await asyncio.sleep(0)  # others are served in between

    async def _fetch_all(self, task: _Task, reads: list[list[int]]) -> None:
        """Reads from all sources at once; asks the master anew for what a source does not give."""
        waiting = [asyncio.create_task(one) for one in self._fetches(task, reads)]
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                waiting = [one for one in waiting if one not in done]
                unread = [read for one in done for read in one.result()]
                if unread:
                    self._say({"unread": task.number, "reads": unread})
                    again = await task.rereads.get()
                    waiting += [asyncio.create_task(one) for one in self._fetches(task, again)]
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _fetches(self, task: _Task, reads: list[list[int]]) -> list[Any]:
        by_source: dict[int, list[list[int]]] = {}
        for source, *read in reads:
            by_source.setdefault(source, []).append(read)
        return [self._fetch(task, source, rows) for source, rows in by_source.items()]

    async def _fetch(self, task: _Task, source: int, rows: list[list[int]]) -> list[list[int]]:
        """Reads from one source; returns what it did not give: all of it or nothing."""
        wanted = sum(row[-1] for row in rows)
        if source == self._executor:
            if self._problem(rows) is not None:
                return [[source, *row] for row in rows]
            task.local_bytes += wanted
            return []
        got = 0
        stream: Stream | None = None
        try:
            # Nobody else may use a stream in the middle of an answer.
            stream = self._streams.pop(source, None) or await self._connect(source)
            if source in self._gone:
                raise _Unreadable("it is lost")
            self._read_now[source] = stream
            reader, writer = stream
            writer.write(encode({"get": rows}))
            answer = await receive(reader)
            if answer is None or answer.get("bytes") != wanted:
                raise _Unreadable(str(answer))
            while got < wanted:
                block = await reader.read(min(BLOCK_BYTES, wanted - got))
                if not block:
                    raise _Unreadable("cut off")
                got += len(block)
        except (OSError, _Unreadable):
            task.wasted_bytes += got
            _close(stream)
            return [[source, *row] for row in rows]
        except asyncio.CancelledError:
            _close(stream)
            raise
        finally:
            self._read_now.pop(source, None)
        task.remote_bytes += got
        self._streams[source] = stream
        return []

    async def _connect(self, source: int) -> Stream:
        if source not in self._peers:
            raise _Unreadable(f"executor {source} is not known")
        return await asyncio.open_connection(*self._peers[source], limit=MAX_LINE_BYTES)

    # ---- serving -------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one other agent."""
        self._guests.take_in(writer)
        try:
            while (message := await receive(reader)) is not None:
                rows = message.get("get")
                if not isinstance(rows, list):
                    return
                if (problem := self._problem(rows)) is not None:
                    writer.write(encode({"error": problem}))
                    continue
                left = sum(row[-1] for row in rows)
                writer.write(encode({"bytes": left}))
                while left > 0:
                    block = min(left, BLOCK_BYTES)
                    writer.write(_BLOCK if block == BLOCK_BYTES else _BLOCK[:block])
                    await writer.drain()
                    left -= block
        except OSError:
            pass  # the other one is gone, or is no agent
        finally:
            writer.close()

    def _problem(self, rows: Sequence[Sequence[int]]) -> str | None:
        """Why these cannot be served."""
        for row in rows:
            if len(row) != 5 or not all(isinstance(value, int) for value in row):
                return f"{row} is not job, parent, child, holding, bytes"
            job, parent, child, holding, size = row
            held = self._held.get((job, parent, child, holding), 0)
            if not 0 <= size <= held:
                return f"{size} bytes of {row[:-1]} asked for; {held} are here"
        return None


def _close(stream: Stream | None) -> None:
    if stream is not None:
        stream[1].close()
