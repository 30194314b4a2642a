"""The players of an emulated session: a process in each client's network, and what they tell.

A player's process and the session's talk in JSON, one document per line: ``{"ready": true}`` once
the manifest is there, ``{"chunk": …}`` for each, ``{"figures": …}`` with whatever else the task's
record needs, and at the end ``{"wall_s": …}`` or ``{"error": …}``. All players begin together, when
the session's process answers the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from controllers import registry
from controllers.client import ControllerClient
from player.media_http import Limits
from testbed.emulated_task import Played, Seat
from testbed.emulated_tasks import EMULATED_TASKS
from testbed.namespaces import fork_into
from testbed.sessions import Session, StreamPlan
from testbed.topology import SessionNetwork

MEDIA_PORT = 8000
CONTROLLER_PORT = 8100
VIDEO_NAME = "video"
#: Beyond the time-out that the player's question carries itself.
DECISION_GRACE_S = 1.0
MESSAGE_BYTES = 1 << 16
GO = b"go"


class Players:
    """All players behind one bottleneck; as a context manager their processes end with it.

    Attributes:
        played: what is known of each.
    """

    def __init__(
        self, plan: StreamPlan, network: SessionNetwork, played: tuple[Played, ...]
    ) -> None:
        self.played = played
        self._plan = plan
        self._task = EMULATED_TASKS[plan.experiment.task]
        self._network = network
        self._ends: dict[socket.socket, Played] = {}
        self._unread: dict[socket.socket, bytes] = {}
        self._waiting: list[socket.socket] = []  # to begin
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Players:
        """Starts the processes."""
        sessions = [played.session for played in self.played]
        live_start_s = self._task.live_start_s(self._plan, sessions, time.time())
        with contextlib.ExitStack() as theirs_only:
            for played in self.played:
                ours, theirs = socket.socketpair()
                theirs_only.enter_context(theirs)
                self._cleanup.enter_context(ours)
                host = self._network.clients[played.session.client]
                job = (self._plan, played.session, self._network, live_start_s, theirs, ours)
                self._cleanup.enter_context(fork_into(host.pid, run_player, *job))
                self._ends[ours] = played
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def are_playing(self) -> bool:
        """Whether any of them has not ended yet."""
        return bool(self._ends)

    @property
    def are_ready(self) -> bool:
        """Whether all that have not failed wait to begin."""
        return bool(self._waiting) and len(self._waiting) == len(self._ends)

    def begin(self) -> None:
        """Has those that wait begin."""
        for end in self._waiting:
            with contextlib.suppress(BrokenPipeError):  # it says so by itself
                end.sendall(GO)
        self._waiting.clear()

    def listen(self, timeout_s: float, on_chunk: Callable[[Session, int], None]) -> None:
        """Notes what the players tell within a time."""
        for end in select.select(list(self._ends), [], [], max(timeout_s, 0.0))[0]:
            played = self._ends[end]
            for message in self._read(end):
                match message:
                    case {"ready": True}:
                        self._waiting.append(end)
                    case {"chunk": chunk}:
                        played.chunks.append(self._task.chunk(chunk))
                        on_chunk(played.session, played.chunks[-1].index)
                    case {"error": str(error)}:
                        played.error = error
                        self._forget(end)
                    case {"figures": dict(figures)}:
                        played.figures = figures
                    case {"wall_s": float(wall_s)}:
                        played.wall_s = wall_s
                        self._forget(end)

    def fail(self, why: str) -> None:
        """Gives up on those that still play."""
        for end in list(self._ends):
            self._ends[end].error = why
            self._forget(end)

    def _read(self, end: socket.socket) -> Iterator[Any]:
        block = end.recv(MESSAGE_BYTES)
        if not block:
            self._ends[end].error = "PlayerDied: the player's process ended without a word"
            self._forget(end)
            return
        *lines, self._unread[end] = (self._unread.get(end, b"") + block).split(b"\n")
        yield from map(json.loads, lines)

    def _forget(self, end: socket.socket) -> None:
        del self._ends[end]
        if end in self._waiting:
            self._waiting.remove(end)


def session_id(session: Session) -> str:
    """What a player tells the media server that it is (CMCD's ``sid``)."""
    name = f"{session.arm.label} {session.unit}"
    return f"{name} {session.client}" if session.client else name


def run_player(
    plan: StreamPlan,
    session: Session,
    network: SessionNetwork,
    live_start_s: float | None,
    end: socket.socket,
    other_end: socket.socket,
) -> None:
    """Body of a player's process."""
    other_end.close()

    def tell(**message: Any) -> None:
        end.sendall(json.dumps(message).encode() + b"\n")

    try:
        wall_s = asyncio.run(_play(plan, session, network, live_start_s, end, tell))
    except Exception as error:  # told to the session's process, whatever it is
        tell(error=f"{type(error).__name__}: {error}")
    else:
        tell(wall_s=wall_s)


async def _play(
    plan: StreamPlan,
    session: Session,
    network: SessionNetwork,
    live_start_s: float | None,
    end: socket.socket,
    tell: Callable[..., None],
) -> float:
    experiment, settings = plan.experiment, plan.experiment.decision_settings

    async def start_together() -> None:
        tell(ready=True)
        end.setblocking(False)
        await asyncio.get_running_loop().sock_recv(end, len(GO))
        end.setblocking(True)

    fallback = None
    if settings.fallback is not None:
        fallback = registry.create(experiment.task, settings.fallback).decide
    async with ControllerClient(
        f"http://{network.controller.address}:{CONTROLLER_PORT}",
        experiment.task,
        session.arm.label,
        deadline_s=settings.decision_timeout_s,
    ) as controller:
        return await EMULATED_TASKS[experiment.task].play(
            plan,
            session,
            Seat(
                manifest_url=(
                    f"http://{network.server.address}:{MEDIA_PORT}/{VIDEO_NAME}/manifest.mpd"
                ),
                session_id=session_id(session),
                ask=controller.ask,
                controller_url=controller.url,
                decision_timeout_s=settings.decision_timeout_s,
                fallback=fallback,
                limits=Limits(
                    chunk_s=settings.chunk_timeout_s,
                    decision_s=settings.decision_timeout_s + DECISION_GRACE_S,
                ),
                live_start_s=live_start_s,
                before_start=start_together,
                on_chunk=lambda chunk: tell(chunk=dataclasses.asdict(chunk)),
                on_figures=lambda figures: tell(figures=figures),
            ),
        )
