"""One emulated session: a network of its own, a DASH server, a player, and what they measured."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controllers import registry
from controllers.client import ControllerClient
from player.content import load_pack
from player.headless import Limits, play_headless
from player.qoe import session_qoe
from player.records import ChunkRecord, LinkRecord, SessionRecord
from player.server import HostedVideo, RequestLogEntry, serve
from testbed.experiment import Experiment, Plan, Session
from testbed.links.measurement import LinkMeasurement
from testbed.links.spec import DirectionSpec, LinkSpec, QueueSpec
from testbed.namespaces import fork_into, socket_in, unshare_network
from testbed.sandbox import Send
from testbed.topology import SessionNetwork

log = logging.getLogger(__name__)

MEDIA_PORT = 8000
CONTROLLER_PORT = 8100
VIDEO_NAME = "video"
#: Beyond the time-out that the player's question carries itself.
DECISION_GRACE_S = 1.0
#: A link that stands still is noticed after a few of these.
LINK_CHECK_S = 0.5
MESSAGE_BYTES = 1 << 16


class PlayerDied(RuntimeError):
    """The player's process ended without a word."""


@dataclass
class _Outcome:
    """What is known of a session so far; a failure leaves it as it was reached."""

    chunks: list[ChunkRecord] = field(default_factory=list)
    wall_s: float = 0.0
    error: str | None = None
    link: LinkMeasurement | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)


def session_network(experiment: Experiment, session: Session) -> SessionNetwork:
    """The network that a session asks for; nothing is built yet."""
    link = experiment.link
    return SessionNetwork(
        LinkSpec(
            down=DirectionSpec(
                trace=session.trace,
                start_s=session.start_s,
                delay_ms=link.delay_ms,
                loss=link.loss,
                queue=QueueSpec(packets=link.queue_packets),
                seed=f"{experiment.seed}/{session.number}",
            ),
            up=DirectionSpec(delay_ms=link.delay_ms),
            backend=link.backend,
        ),
        controller_delay_ms=experiment.controller_link.delay_ms,
        switch=experiment.network.switch,
        congestion=link.congestion,
    )


def play_session(
    plan: Plan,
    session: Session,
    control: socket.socket,
    send: Send,
    is_up: Callable[[], object],
) -> None:
    """Plays one session and sends its record; runs in a process of its own.

    Args:
        plan: the experiment.
        session: which session.
        control: where the controller service takes listening sockets from.
        send: takes messages for the outside.
        is_up: is called once the session's network stands.
    """
    outcome = _Outcome()
    try:
        unshare_network()
        _play(plan, session, control, send, is_up, outcome)
    except Exception as error:  # whatever went wrong belongs into the session's record
        log.debug("session %d failed", session.number, exc_info=True)
        outcome.error = f"{type(error).__name__}: {error}"
    send(_ended(plan, session, outcome))


def death_notice(plan: Plan, session: Session, status: int) -> dict[str, Any]:
    """The message in the place of a session whose process died before it could send its own.

    Args:
        plan: the experiment.
        session: which session.
        status: exit status of the process, or minus the signal that killed it.
    """
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return _ended(plan, session, _Outcome(error=f"the session's process died: {how}"))


def _ended(plan: Plan, session: Session, outcome: _Outcome) -> dict[str, Any]:
    which = {"arm": session.arm.label, "trace": session.trace.name}
    seconds = outcome.link.seconds if outcome.link else ()
    return {
        "session": session.number,
        "kind": "session",
        "record": dataclasses.asdict(_record(plan, session, outcome)),
        "link_seconds": [which | dataclasses.asdict(second) for second in seconds],
        "requests": [which | request for request in outcome.requests],
    }


def _record(plan: Plan, session: Session, outcome: _Outcome) -> SessionRecord:
    return SessionRecord(
        arm=session.arm.label,
        controller=session.arm.controller,
        trace=session.trace.name,
        seed=plan.experiment.seed,
        driver="emulated",
        status="ok" if outcome.error is None else "failed",
        error=outcome.error,
        qoe_per_chunk=session_qoe([chunk.qoe for chunk in outcome.chunks]),
        startup_s=outcome.chunks[0].rebuffer_s if outcome.chunks else None,
        wall_s=outcome.wall_s,
        start_index=session.start_index,
        link=outcome.link.record if outcome.link else LinkRecord(backend="none"),
        chunks=tuple(outcome.chunks),
    )


def _play(
    plan: Plan,
    session: Session,
    control: socket.socket,
    send: Send,
    is_up: Callable[[], object],
    outcome: _Outcome,
) -> None:
    with (
        session_network(plan.experiment, session) as network,
        _handed_over(control, session, network),
        _media_server(plan, network, outcome),
    ):
        is_up()
        ours, theirs = socket.socketpair()
        with ours, fork_into(network.client.pid, _run_player, plan, session, network, theirs):
            theirs.close()
            for message in _messages(ours, network):
                match message:
                    case {"ready": True}:
                        network.start_replay()
                        ours.sendall(b"go")
                    case {"chunk": chunk}:
                        outcome.chunks.append(ChunkRecord(**chunk))
                        index = outcome.chunks[-1].index
                        send({"session": session.number, "kind": "chunk", "index": index})
                    case {"error": str(error)}:
                        network.check_alive()  # or the link may be what the player suffered from
                        outcome.error = error
                        break
                    case {"wall_s": float(wall_s)}:
                        outcome.wall_s = wall_s
                        break
            else:
                raise PlayerDied("the player's process ended without a word")
        if outcome.chunks:
            outcome.link = network.stop_replay()


def _messages(end: socket.socket, network: SessionNetwork) -> Iterator[Any]:
    """The player's messages until its end; looks after the network all the while."""
    pending = b""
    check_s = time.monotonic() + LINK_CHECK_S
    while True:
        if select.select([end], [], [], max(check_s - time.monotonic(), 0.0))[0]:
            block = end.recv(MESSAGE_BYTES)
            if not block:
                return
            *lines, pending = (pending + block).split(b"\n")
            yield from map(json.loads, lines)
        if time.monotonic() >= check_s:
            network.check_alive()
            check_s = time.monotonic() + LINK_CHECK_S


@contextlib.contextmanager
def _handed_over(
    control: socket.socket, session: Session, network: SessionNetwork
) -> Iterator[None]:
    """Lets the controller service listen in this session's controller host.

    A service that is gone takes nothing over; the player then finds its port closed.
    """
    name = str(session.number).encode()
    with (
        socket_in(network.controller.pid, network.controller.address, CONTROLLER_PORT) as listener,
        contextlib.suppress(OSError),
    ):
        socket.send_fds(control, [name], [listener.fileno()])
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            control.send(name)


@contextlib.contextmanager
def _media_server(plan: Plan, network: SessionNetwork, outcome: _Outcome) -> Iterator[None]:
    """The DASH server in the server host; its access log is in ``outcome`` afterwards."""
    hosted = HostedVideo(plan.video, load_pack(plan.video.levels_kbps, plan.video.chunk_s))
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "requests.jsonl"
        log_path.touch()
        with (
            socket_in(network.server.pid, network.server.address, MEDIA_PORT) as listener,
            fork_into(network.server.pid, _run_server, hosted, listener, log_path),
        ):
            listener.close()
            yield
        for line in log_path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # the last one may be torn
                outcome.requests.append(json.loads(line))


def _run_server(hosted: HostedVideo, listener: socket.socket, log_path: Path) -> None:
    with log_path.open("a", encoding="utf-8", buffering=1) as file:

        def write(entry: RequestLogEntry) -> None:
            file.write(json.dumps(dataclasses.asdict(entry)) + "\n")

        asyncio.run(serve({VIDEO_NAME: hosted}, sockets=[listener], on_request=write))


def _run_player(plan: Plan, session: Session, network: SessionNetwork, end: socket.socket) -> None:
    def tell(**message: Any) -> None:
        end.sendall(json.dumps(message).encode() + b"\n")

    try:
        wall_s = asyncio.run(_play_headless(plan, session, network, end, tell))
    except Exception as error:  # told to the session's process, whatever it is
        tell(error=f"{type(error).__name__}: {error}")
    else:
        tell(wall_s=wall_s)


async def _play_headless(
    plan: Plan,
    session: Session,
    network: SessionNetwork,
    end: socket.socket,
    tell: Callable[..., None],
) -> float:
    experiment, settings = plan.experiment, plan.experiment.player

    async def start_together() -> None:
        tell(ready=True)
        end.setblocking(False)
        await asyncio.get_running_loop().sock_recv(end, 2)
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
        played = await play_headless(
            manifest_url=f"http://{network.server.address}:{MEDIA_PORT}/{VIDEO_NAME}/manifest.mpd",
            ask=controller.ask,
            session_id=f"{session.arm.label} {session.trace.name}",
            player_config=experiment.player_config,
            fallback=fallback,
            limits=Limits(
                chunk_s=settings.chunk_timeout_s,
                decision_s=settings.decision_timeout_s + DECISION_GRACE_S,
            ),
            before_start=start_together,
            on_chunk=lambda chunk: tell(chunk=dataclasses.asdict(chunk)),
        )
    return played.wall_s
