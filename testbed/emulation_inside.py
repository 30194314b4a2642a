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
from typing import Any

from controllers import registry
from controllers.service import ControllerService
from testbed.emulated_session import death_notice, play_session, session_network
from testbed.emulation import decode_plan
from testbed.experiment import Experiment, Plan, Session
from testbed.namespaces import Child, fork_into
from testbed.sandbox import Send

#: Controllers by task and label of the arm.
Arms = dict[tuple[str, str], registry.Controller]

MAX_CONTROL_BYTES = 256
#: Networks that are being set up at the same time; more would disturb the sessions that play.
SETTING_UP = 2


class ControllerStartError(RuntimeError):
    """The controller service did not come up."""


def run_sessions(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox: plays all sessions of the job, sends each one's record as it ends."""
    plan = decode_plan(job)
    backend = session_network(plan.experiment, plan.sessions[0]).check()
    send({"kind": "backend", "name": backend.name, "why": backend.why})
    with controller_process(plan.experiment) as control:
        _play_all(plan, control, send, jobs=int(job["jobs"]))


@dataclass
class _Running:
    session: Session
    child: Child
    is_up: socket.socket  # readable once the session's network stands, or the session ended


def _play_all(plan: Plan, control: socket.socket, send: Send, *, jobs: int) -> None:
    pending = deque(plan.sessions)
    running: list[_Running] = []
    setting_up: list[_Running] = []
    while pending or running:
        while pending and len(running) < jobs and len(setting_up) < SETTING_UP:
            started = _start(plan, pending.popleft(), control, send)
            running.append(started)
            setting_up.append(started)
        _wait(running, setting_up)
        setting_up = [item for item in setting_up if not _readable(item.is_up)]
        for ended in [item for item in running if not item.child.is_running]:
            running.remove(ended)
            ended.is_up.close()
            setting_up = [item for item in setting_up if item is not ended]
            if status := ended.child.wait():
                send(death_notice(plan, ended.session, status))


def _start(plan: Plan, session: Session, control: socket.socket, send: Send) -> _Running:
    ours, theirs = socket.socketpair()
    with theirs:
        child = fork_into(
            None,
            play_session,
            plan,
            session,
            control,
            send,
            lambda: theirs.send(b"up"),
        )
    return _Running(session, child, ours)


def _wait(running: list[_Running], setting_up: list[_Running]) -> None:
    """Returns when a session ended or a network came up."""
    poll = select.poll()
    for item in running:
        poll.register(item.child.fileno(), select.POLLIN)
    for item in setting_up:
        poll.register(item.is_up, select.POLLIN)
    poll.poll()


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
            arms: Arms = {
                (experiment.task, arm.label): registry.create(
                    experiment.task, arm.controller, arm.options
                )
                for arm in experiment.arms
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
