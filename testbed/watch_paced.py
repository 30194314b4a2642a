"""``testbed watch`` where no sandbox can be made: the same page, its media paced, on the loopback.

There is no link in this. The media keep to the rate of the trace (``testbed.pacing``), and both
page and command say that this is all. Server, controllers and gateway are processes of their own,
as in the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from player.browser_page import LOOPBACK
from player.sockets import base_url, listening_socket
from testbed.abr_experiment import AbrPlan
from testbed.emulated_hosts import run_server
from testbed.emulated_tasks import EMULATED_TASKS
from testbed.emulation_inside import controller_process
from testbed.namespaces import Child, fork_into
from testbed.pacing import TracePace
from testbed.watch_gateway import NAME, Behind, answer_browsers

REMARK = (
    "Paced, not emulated: this machine can make no network of its own. The media keep to the rate "
    "of the trace, and that is all: no queue, no delay, no loss, and the controllers answer at "
    "once."
)


class PacedPartDied(ChildProcessError):
    """A process that the page needs ended."""


def watch_paced(plan: AbrPlan, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serves the page until interrupted.

    Args:
        plan: with the session to watch alone.
        listener: where the page is; taken over.
        on_ready: is called once the page can be opened.

    Raises:
        PacedPartDied: server, controllers or gateway did.
        InvalidOptions, UnknownController: a controller cannot be made.
    """
    hosted = EMULATED_TASKS["abr"].hosted(plan, plan.sessions[0])
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(controller_process(plan.experiment))
        with listening_socket(LOOPBACK, 0) as questions:
            socket.send_fds(control, [NAME.encode()], [questions.fileno()])
            controller_url = base_url(questions)
        with listening_socket(LOOPBACK, 0) as media:
            log = Path(os.devnull)  # nobody reads it: nothing is measured here
            server = stack.enter_context(fork_into(None, run_server, hosted, media, log))
            media_url = base_url(media)
        gateway = stack.enter_context(
            fork_into(None, run_paced_gateway, plan, media_url, controller_url, listener)
        )
        listener.close()
        on_ready()
        _look_after({"media server": server, "page": gateway}, control)


def _look_after(parts: dict[str, Child], control: socket.socket) -> None:
    """Returns never.

    Raises:
        PacedPartDied: one of them ended.
    """
    ends = {part.fileno(): f"the process of the {name}" for name, part in parts.items()}
    ends[control.fileno()] = "the process of the controllers"
    for end in select.select(list(ends), [], [])[0]:
        raise PacedPartDied(f"{ends[end]} ended")


def run_paced_gateway(
    plan: AbrPlan, media_url: str, controller_url: str, listener: socket.socket
) -> None:
    """Body of the gateway's process."""
    session = plan.sessions[0]
    pace = TracePace(session.trace, session.start_s, clock=time.monotonic)

    async def begin() -> float:
        return pace.start()

    behind = Behind(
        media_url=media_url,
        controller_url=controller_url,
        begin=begin,
        pace=pace,
        remark=REMARK,
    )
    asyncio.run(answer_browsers(plan, behind, listener))
