"""What runs inside the sandbox of an emulated experiment: one controller service, many sessions.

The service listens in the controller host of every session, so that a model is loaded once and
decisions of concurrent sessions are batched. A session hands over a listening socket that it made
in its own network (a socket belongs to the network where it was made) and takes it back at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controllers import registry
from controllers.service import ControllerService
from testbed.background_flows import check_congestion
from testbed.emulated_session import death_notices, play_session, session_network
from testbed.emulation import decode_plan
from testbed.experiment_base import Experiment
from testbed.links.engine import EngineHandle, engine_process
from testbed.links.htb import ShapingError
from testbed.namespaces import Child, fork_into
from testbed.sandbox import Send
from testbed.sessions import Session, StreamPlan, group_sessions

#: Controllers by task and label of the arm.
Arms = dict[tuple[str, str], registry.Controller]

MAX_CONTROL_BYTES = 256
#: Networks that are being set up at the same time; more would disturb the sessions that play.
SETTING_UP = 2
ENGINE_CHECK_MS = 500


class ControllerStartError(RuntimeError):
    """The controller service did not come up."""


def run_sessions(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox: plays all sessions of the job, sends their records as they end.

    Raises:
        ShapingError: the engine of the user-space links died; sessions that had not begun are not
            played.
    """
    plan = decode_plan(job)
    backend = session_network(plan.experiment, plan.sessions[0]).check()
    check_congestion(plan.experiment.background)
    send({"kind": "backend", "name": backend.name, "why": backend.why})
    captures = Path(job["captures"]) if job["captures"] else None
    with contextlib.ExitStack() as stack:
        engine = None
        if backend.name == "userspace":
            engine = stack.enter_context(engine_process())
        control = stack.enter_context(controller_process(plan.experiment))
        _Sessions(plan, control, send, engine, captures).play(jobs=int(job["jobs"]))


@dataclass
class _Running:
    group: tuple[Session, ...]
    child: Child
    is_up: socket.socket  # readable once the session's network stands, or the session ended


class _Sessions:
    """Plays sessions, several at once."""

    def __init__(
        self,
        plan: StreamPlan,
        control: socket.socket,
        send: Send,
        engine: EngineHandle | None,
        captures: Path | None,
    ) -> None:
        self._plan = plan
        self._control = control
        self._send = send
        self._engine = engine
        self._captures = captures
        self._running: list[_Running] = []
        self._setting_up: list[_Running] = []

    def play(self, *, jobs: int) -> None:
        """Plays all of them.

        Args:
            jobs: players at once; a session with more of them is played alone.

        Raises:
            ShapingError: the engine died or stands still.
        """
        pending = deque(group_sessions(self._plan.sessions))
        while pending or self._running:
            while pending and self._has_room(len(pending[0]), jobs):
                self._start(pending.popleft())
            self._wait()
            self._setting_up = [one for one in self._setting_up if not _readable(one.is_up)]
            for ended in [one for one in self._running if not one.child.is_running]:
                self._end(ended)
            if self._engine is not None:
                self._check(self._engine)

    def _check(self, engine: EngineHandle) -> None:
        """Ends the run if the engine does not work any more."""
        try:
            engine.check_alive()
        except ShapingError as error:
            while self._running:  # each finds out by itself, and writes down what it has
                self._running[0].child.wait()
                self._end(self._running[0])
            raise ShapingError(f"{error}; what had ended is kept, go on with --resume") from error

    def _has_room(self, players: int, jobs: int) -> bool:
        if not self._running:
            return True
        playing = sum(len(one.group) for one in self._running)
        return playing + players <= jobs and len(self._setting_up) < SETTING_UP

    def _start(self, group: tuple[Session, ...]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            child = fork_into(
                None,
                play_session,
                self._plan,
                group,
                self._control,
                self._send,
                lambda: theirs.send(b"up"),
                engine=self._engine,
                captures=self._captures,
            )
        started = _Running(group, child, ours)
        self._running.append(started)
        self._setting_up.append(started)

    def _end(self, ended: _Running) -> None:
        self._running.remove(ended)
        self._setting_up = [one for one in self._setting_up if one is not ended]
        ended.is_up.close()
        if status := ended.child.wait():
            for message in death_notices(self._plan, ended.group, status):
                self._send(message)

    def _wait(self) -> None:
        """Returns when a session ended, a network came up, or the engine died."""
        poll = select.poll()
        for one in self._running:
            poll.register(one.child.fileno(), select.POLLIN)
        for one in self._setting_up:
            poll.register(one.is_up, select.POLLIN)
        if self._engine is not None:
            poll.register(self._engine, select.POLLIN)
        poll.poll(ENGINE_CHECK_MS if self._engine is not None else None)


def _readable(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], 0)[0])


@contextlib.contextmanager
def controller_process(experiment: Experiment) -> Iterator[socket.socket]:
    """The controller service in a process of its own.

    Yields:
        The socket through which sessions hand over their listening sockets.

    Raises:
        UnknownController, InvalidOptions: a controller cannot be made.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ready_here, ready_there = os.pipe()
    with theirs:  # held by the service alone, so that its death is felt at once
        service = fork_into(None, _serve_controllers, experiment, theirs, ready_there)
    with ours, service:
        os.close(ready_there)
        with os.fdopen(ready_here, encoding="utf-8") as ready:
            answer = json.loads(ready.readline() or '["ControllerStartError", "it died"]')
        if answer:
            _raise_again(*answer)
        yield ours


def _raise_again(kind: str, message: str) -> None:
    for known in (registry.InvalidOptions, registry.UnknownController):
        if known.__name__ == kind:
            raise known(message)
    raise ControllerStartError(f"controller service: {kind}: {message}")


def _serve_controllers(experiment: Experiment, control: socket.socket, ready_fd: int) -> None:
    with os.fdopen(ready_fd, "w", encoding="utf-8") as ready:
        try:
            task = experiment.task
            arms: Arms = {
                (task, arm.label): registry.create(task, arm.controller, arm.options)
                for arm in experiment.arms
                if experiment.is_remote(arm)
                and not registry.needs_future(task, arm.controller)  # it decides at its player
            }
        except Exception as error:  # told to the parent, whatever it is
            ready.write(json.dumps([type(error).__name__, str(error)]) + "\n")
            raise SystemExit(1) from error
        ready.write("[]\n")
    asyncio.run(_serve(arms, control))


async def _serve(arms: Arms, control: socket.socket) -> None:
    """Takes over listening sockets and lets them go as sessions say."""
    loop = asyncio.get_running_loop()
    control.setblocking(False)
    async with ControllerService(arms) as service:
        while True:
            await _until_readable(loop, control)
            data, descriptors, _, _ = socket.recv_fds(control, MAX_CONTROL_BYTES, 1)
            if not data:
                return
            name = data.decode()
            if descriptors:
                await service.add_socket(name, socket.socket(fileno=descriptors[0]))
            else:
                await service.remove_socket(name)


async def _until_readable(loop: asyncio.AbstractEventLoop, end: socket.socket) -> None:
    readable = asyncio.Event()
    loop.add_reader(end, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(end)
