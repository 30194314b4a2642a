"""What the hosts of an emulated session do besides playing: media server, controller, captures."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from player.records import CaptureRecord
from player.server import Hosted, RequestLogEntry, serve
from testbed.capture import WHOLE_PACKET_BYTES, Capture, CapturePoint
from testbed.capture_analysis import analyse
from testbed.emulated_player import CONTROLLER_PORT, MEDIA_PORT, VIDEO_NAME
from testbed.namespaces import fork_into, socket_in
from testbed.sessions import Session
from testbed.topology import CONTROLLER_ADDRESS, NetworkHost

#: Sessions that still play come before what is done with packets that were captured.
ANALYSIS_NICENESS = 10
MAX_NAME = 60  # characters of an arm or a unit in the name of a file


@contextlib.contextmanager
def handed_over(control: socket.socket, name: str, controller: NetworkHost) -> Iterator[None]:
    """Lets the controller service listen in this session's controller host.

    A service that is gone takes nothing over; the player then finds its port closed.

    Args:
        control: where it takes sockets from.
        name: of the session; no other one has it.
        controller: the host.
    """
    with (
        socket_in(controller.pid, controller.address, CONTROLLER_PORT) as listener,
        contextlib.suppress(OSError),
    ):
        socket.send_fds(control, [name.encode()], [listener.fileno()])
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            control.send(name.encode())


@contextlib.contextmanager
def media_server(hosted: Hosted, host: NetworkHost) -> Iterator[list[dict[str, Any]]]:
    """The DASH server in the server host.

    Args:
        hosted: what it offers.
        host: the host.

    Yields:
        A list that its access log is in afterwards.
    """
    requests: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "requests.jsonl"
        log_path.touch()
        try:
            with (
                socket_in(host.pid, host.address, MEDIA_PORT) as listener,
                fork_into(host.pid, run_server, hosted, listener, log_path),
            ):
                listener.close()
                yield requests
        finally:
            for line in log_path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # the last one may be torn
                    requests.append(json.loads(line))


def run_server(hosted: Hosted, listener: socket.socket, log_path: Path) -> None:
    """Body of the server's process."""
    with log_path.open("a", encoding="utf-8", buffering=1) as file:

        def write(entry: RequestLogEntry) -> None:
            file.write(json.dumps(dataclasses.asdict(entry)) + "\n")

        asyncio.run(serve({VIDEO_NAME: hosted}, sockets=[listener], on_request=write))


def capture_path(folder: Path, session: Session) -> Path:
    """Where the packets of a player go; no two have the same, on any file system."""
    names = (session.arm.label, session.unit)
    arm, unit = (re.sub(r"[^A-Za-z0-9.-]+", "-", name)[:MAX_NAME] for name in names)
    return folder / f"{session.number:04d}_{arm}_{unit}_{session.client}.pcapng"


@contextlib.contextmanager
def captured(clients: Sequence[NetworkHost], paths: Sequence[Path]) -> Iterator[None]:
    """Captures at the clients, as many as there are paths."""
    with contextlib.ExitStack() as captures:
        for client, path in zip(clients, paths, strict=False):
            media, control = client.interfaces
            points = (CapturePoint(media), CapturePoint(control, WHOLE_PACKET_BYTES))
            captures.enter_context(Capture(pid=client.pid, points=points, path=path))
        yield


def look_through(path: Path) -> CaptureRecord:
    """What a player's packets say."""
    os.nice(ANALYSIS_NICENESS - os.nice(0))
    return analyse(path, controllers=[(CONTROLLER_ADDRESS, CONTROLLER_PORT)])
