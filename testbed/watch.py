"""A session in a person's own browser, behind an emulated link: the outside of the sandbox.

The port that the browser connects to is a listening socket of this machine's loopback. It is
handed into the sandbox, to a process in the client host there (a socket belongs to the network
where it was made, its holder may live in another one). So the browser needs no namespace, and
everything that it plays has crossed the emulated link all the same. Where no sandbox can be made,
the media are paced instead, see :mod:`testbed.watch_paced`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from player.browser_page import LOOPBACK
from player.browser_parts import find_library
from player.sockets import base_url, listening_socket
from testbed.abr_experiment import AbrPlan
from testbed.emulated_tasks import EMULATED_TASKS
from testbed.emulation import emulation_errors, encode_plan
from testbed.experiment_base import ConfigError
from testbed.sandbox import probe_sandbox, run_in_sandbox
from testbed.sessions import Session
from testbed.watch_paced import watch_paced

ENTRY = "testbed.watch_inside:watch"
#: Not below /dev/shm, which is another one inside the sandbox.
HANDOVER_FOLDER = "/tmp"  # noqa: S108 (a folder of its own is made in there, for this user only)
HANDOVER_S = 120.0  # a sandbox is there long before


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """A page that can be opened.

    Attributes:
        url: its address.
        session: what it plays.
        no_link: why the media are paced and no link is emulated; None if one is.
    """

    url: str
    session: Session
    no_link: str | None


def watch(
    plan: AbrPlan, *, trace: str | None, port: int, on_ready: Callable[[Watched], None]
) -> None:
    """Serves the page until interrupted.

    Args:
        plan: names traces, video, link and the controllers to choose from.
        trace: name of the trace that the link replays; None: the first.
        port: of the loopback; 0 takes a free one.
        on_ready: is told the page once it can be opened.

    Raises:
        BrowserMissing: dash.js is not there.
        ConfigError: no such trace, or a controller cannot be made.
        ServerAddressError: the port is taken.
        LinkUnsupported, ShapingError, SandboxError: there is no such link here.
        PacedPartDied: a process ended that is needed for pacing.
    """
    find_library()
    session = session_on(plan, trace)
    EMULATED_TASKS["abr"].prepare(plan)
    with listening_socket(LOOPBACK, port) as listener:
        probe = probe_sandbox()
        watched = Watched(base_url(listener), session, None if probe.mode else probe.reason)
        if watched.no_link is None:
            _watch_behind_a_link(plan, listener, watched, on_ready)
        else:
            alone = dataclasses.replace(plan, sessions=(session,))
            watch_paced(alone, listener, lambda: on_ready(watched))


def _watch_behind_a_link(
    plan: AbrPlan, listener: socket.socket, watched: Watched, on_ready: Callable[[Watched], None]
) -> None:
    def told(message: dict[str, Any]) -> None:
        if message.get("kind") == "ready":
            on_ready(watched)

    with _handover(listener) as path:
        job = {"plan": encode_plan(plan, [watched.session], jobs=1), "handover": str(path)}
        with emulation_errors():
            run_in_sandbox(ENTRY, job, on_message=told)


def session_on(plan: AbrPlan, trace: str | None) -> Session:
    """The first session on a trace.

    Raises:
        ConfigError: there is none.
    """
    for session in plan.sessions:
        if trace in (None, session.trace.name):
            return session
    known = ", ".join(sorted(one.name for one in plan.traces)[:10])
    raise ConfigError(f"--trace: there is no trace {trace!r}; there are {known}")


@contextlib.contextmanager
def _handover(listener: socket.socket) -> Iterator[Path]:
    """Gives a listening socket to the first that connects to a path."""
    folder = Path(tempfile.mkdtemp(prefix="testbed-watch-", dir=HANDOVER_FOLDER))
    try:
        path = folder / "socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as meeting:
            meeting.bind(str(path))
            meeting.listen(1)
            meeting.settimeout(HANDOVER_S)

            def give() -> None:
                with contextlib.suppress(OSError), meeting.accept()[0] as end:
                    socket.send_fds(end, [b"page"], [listener.fileno()])

            threading.Thread(target=give, name="handover", daemon=True).start()
            yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def take_over(path: str) -> socket.socket:
    """The listening socket that waits at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.connect(path)
        _, descriptors, _, _ = socket.recv_fds(end, 16, 1)
    return socket.socket(fileno=descriptors[0])
