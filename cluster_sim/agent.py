"""One executor of a live cluster: reads its shuffle bytes from others over TCP, then computes.

An agent keeps the sizes of what finished tasks wrote, and serves that many bytes to others. It
does what the master says, one task at a time, and ends with the connection to it. It needs a
listening socket and the master's address, and nothing of the rest of the project.

Between master and agent, one JSON object per line:

==================================================================  ============================
the master says                                                     the agent says
==================================================================  ============================
``{"run": id, "reads": [[source, job, parent, child, holding,        ``{"hello": executor,
bytes], …], "writes": [[child, bytes], …], "compute_s", "since_s",   "address": …}``, once
"job", "stage", "holding"}``
``{"reread": id, "reads": […]}``                                    ``{"computing": id, …}``
``{"kill": id}``                                                    ``{"unread": id, "reads"}``
``{"hold": [[job, parent, child, holding, bytes], …]}``              ``{"beat": true}``
``{"forget": job}``, ``{"gone": executor}``, ``{"peers": {executor: [address, port]}}``
==================================================================  ============================

``since_s`` is when the task began in the cluster, on the monotonic clock, which all processes of a
machine share. ``shuffle_io.py`` says what agents say among themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster_sim.shuffle_io import ByteServer, Rows, Source
from cluster_sim.wire import Message, Talk, WireError, precise_loop

log = logging.getLogger(__name__)

BEAT_S = 0.5
BURN_SLICE_S = 0.002

Work = Literal["sleep", "burn"]
Output = tuple[int, int, int, int]  # job, parent, child, holding


@dataclass(slots=True, eq=False)
class _Task:
    """What runs.

    Attributes:
        number: the master's.
        order: what it said.
        began_s: when it was heard.
        waiting: what is asked for, by connection.
        unread: how many answers of the master are awaited.
        network_s: time of the network, that of the slowest source.
        local_bytes: read of its own output.
        remote_bytes: received from others.
        wasted_bytes: received in vain.
        due_s: when it is to end, once it computes.
    """

    number: int
    order: Message
    began_s: float
    waiting: dict[int, Source] = field(default_factory=dict)
    unread: int = 0
    network_s: float = 0.0
    has_reread: bool = False
    local_bytes: int = 0
    remote_bytes: int = 0
    wasted_bytes: int = 0
    due_s: float = 0.0
    timer: asyncio.Handle | None = None


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
    with contextlib.suppress(ConnectionError), asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(Agent(executor, listener, work).run(master))


class Agent:
    """The agent of one executor."""

    def __init__(self, executor: int, listener: socket.socket, work: Work = "sleep") -> None:
        self._executor = executor
        self._listener = listener
        self._work = work
        self._held: dict[Output, int] = {}
        self._peers: dict[int, tuple[str, int]] = {}
        self._idle: dict[int, Source] = {}
        self._gone: set[int] = set()
        self._task: _Task | None = None
        self._ended = asyncio.Event()
        self._master = Talk(self._obey, lambda talk: self._ended.set())

    async def run(self, master: tuple[str, int]) -> None:
        """Works until the master closes the connection.

        Raises:
            ConnectionError: there is no master, or it is not what it should be.
        """
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._give_up)
        server = ByteServer(self._listener, self._problem)
        try:
            address = list(self._listener.getsockname())
            await self._loop.create_connection(lambda: self._master, *master)
            self._master.say({"hello": self._executor, "address": address})
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), BEAT_S)
                self._master.say({"beat": True})
        finally:
            self._stop()
            for source in self._idle.values():
                source.close()
            self._master.abort()
            server.close()

    def _give_up(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An agent that failed for a reason of its own is of no use: it is lost."""
        log.error("executor %d gives up: %s", self._executor, context)
        self._master.abort()

    def _obey(self, talk: Talk, message: Message) -> None:
        match message:
            case {"run": int(number)}:
                self._stop()
                self._begin(_Task(number, message, self._loop.time()))
            case {"kill": int(number)}:
                if self._task is not None and self._task.number == number:
                    self._stop()
            case {"reread": int(number), "reads": list(reads)}:
                if self._task is not None and self._task.number == number:
                    self._task.unread -= 1
                    self._fetch(self._task, reads)
            case {"hold": list(rows)}:
                for *output, size in rows:
                    self._hold(output, size)
            case {"gone": int(executor)}:
                self._part_with(executor)
            case {"forget": int(job)}:
                self._held = {one: size for one, size in self._held.items() if one[0] != job}
            case {"peers": dict(peers)}:
                self._gone.clear()
                self._peers = {int(one): (str(at[0]), int(at[1])) for one, at in peers.items()}
            case _:
                raise WireError(f"the master says {message}")

    def _part_with(self, executor: int) -> None:
        """An executor is lost; it may hang, with its connections open."""
        self._gone.add(executor)
        if executor in self._idle:
            self._idle.pop(executor).close()
        if self._task is not None and executor in self._task.waiting:
            self._task.waiting[executor].fail()

    def _hold(self, output: Sequence[int], size: int) -> None:
        job, parent, child, holding = output
        key = (job, parent, child, holding)
        self._held[key] = self._held.get(key, 0) + size

    def _stop(self) -> None:
        """Gives up what runs, if it does; a stream in the middle of an answer is of no use."""
        task, self._task = self._task, None
        if task is not None:
            for source in task.waiting.values():
                source.close()
            if task.timer is not None:
                task.timer.cancel()

    # ---- tasks ---------------------------------------------------------------------------------

    def _begin(self, task: _Task) -> None:
        self._task = task
        self._fetch(task, task.order["reads"])

    def _fetch(self, task: _Task, reads: list[list[int]]) -> None:
        """Reads from all sources at once."""
        by_source: dict[int, list[list[int]]] = {}
        for source, *read in reads:
            by_source.setdefault(source, []).append(read)
        unread: list[list[int]] = []
        for source, rows in by_source.items():
            if not self._has_asked(task, source, rows):
                unread += [[source, *row] for row in rows]
        if unread:
            self._ask_where(task, unread)
        self._compute_if_read(task)

    def _has_asked(self, task: _Task, source: int, rows: list[list[int]]) -> bool:
        """Whether a source has been asked, or it is this one and has it."""
        if source == self._executor:
            if self._problem(rows) is not None:
                return False
            task.local_bytes += sum(row[-1] for row in rows)
            return True
        if source not in self._peers or source in self._gone or source in task.waiting:
            return False
        stream = self._idle.pop(source, None)
        if stream is None or not stream.is_open:
            stream = Source(self._peers[source])
        task.waiting[source] = stream

        def done(network_s: float | None) -> None:
            del task.waiting[source]
            if network_s is None:
                task.wasted_bytes += stream.got_bytes
                self._ask_where(task, [[source, *row] for row in rows])
                return
            self._idle[source] = stream
            task.remote_bytes += stream.got_bytes
            task.network_s = max(task.network_s, network_s)
            self._compute_if_read(task)

        stream.ask(rows, done)
        return True

    def _ask_where(self, task: _Task, reads: list[list[int]]) -> None:
        """What a source does not give, another one has; the master knows."""
        task.unread += 1
        task.has_reread = True
        self._master.say({"unread": task.number, "reads": reads})

    def _compute_if_read(self, task: _Task) -> None:
        """Computes once all is read.

        What the way of messages took is not the task's, so the computing is shortened by that. When
        it begins, its end is known, and the master told: no message is on its way when the next
        task is to begin.
        """
        if task.waiting or task.unread or task.due_s:
            return
        order = task.order
        # Where the master had to be asked, the bytes took as long as that took, too.
        fetch_s = self._loop.time() - task.began_s if task.has_reread else task.network_s
        since_s = min(float(order["since_s"]), task.began_s)
        task.due_s = since_s + fetch_s + float(order["compute_s"])
        for child, size in order["writes"]:  # nobody asks for it before the master says so
            self._hold((order["job"], order["stage"], child, order["holding"]), size)
        self._master.say(
            {
                "computing": task.number,
                "fetch_s": fetch_s,
                "late_s": task.began_s - since_s,
                "local": task.local_bytes,
                "remote": task.remote_bytes,
                "wasted": task.wasted_bytes,
            }
        )
        if self._work == "sleep":
            task.timer = self._loop.call_at(task.due_s, self._end, task)
        else:
            self._burn(task)

    def _burn(self, task: _Task) -> None:
        """Keeps a core busy, and serves others in between."""
        until_s = min(self._loop.time() + BURN_SLICE_S, task.due_s)
        while self._loop.time() < until_s:
            pass
        if until_s < task.due_s:
            task.timer = self._loop.call_soon(self._burn, task)
        else:
            self._end(task)

    def _end(self, task: _Task) -> None:
        if self._task is task:
            self._task = None

    # ---- serving -------------------------------------------------------------------------------

    def _problem(self, rows: Rows) -> str | None:
        """Why these cannot be served."""
        for row in rows:
            if len(row) != 5 or not all(isinstance(value, int) for value in row):
                return f"{row} is not job, parent, child, holding, bytes"
            job, parent, child, holding, size = row
            held = self._held.get((job, parent, child, holding), 0)
            if not 0 <= size <= held:
                return f"{size} bytes of {row[:-1]} asked for; {held} are here"
        return None
