"""Inside the sandbox of ``testbed watch``: one session network, and a gateway in its client host.

The gateway answers the browser outside: the page by itself, media and decisions by asking server
and controller over the emulated links, byte by byte as they come.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from typing import Any

from testbed.abr_experiment import AbrPlan, abr_plan
from testbed.emulated_hosts import handed_over, media_server
from testbed.emulated_player import CONTROLLER_PORT, MEDIA_PORT
from testbed.emulated_session import LINK_CHECK_S, session_network
from testbed.emulated_tasks import EMULATED_TASKS
from testbed.emulation import decode_plan
from testbed.emulation_inside import controller_process
from testbed.namespaces import fork_into
from testbed.sandbox import Send
from testbed.topology import SessionNetwork
from testbed.watch import take_over
from testbed.watch_gateway import NAME, Behind, answer_browsers

BEGIN = b"begin"
TIME_BYTES = 64


class GatewayDied(RuntimeError):
    """The process that answers the browser ended."""


def watch(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox: runs until it is ended.

    Raises:
        GatewayDied, ShapingError: what ended it otherwise.
    """
    listener = take_over(job["handover"])
    plan = abr_plan(decode_plan(job["plan"]), "pages")
    session = plan.sessions[0]
    hosted = EMULATED_TASKS["abr"].hosted(plan, session)
    with (
        controller_process(plan.experiment) as control,
        session_network(plan.experiment, session) as network,
        handed_over(control, NAME, network.controller),
        media_server(hosted, network.server),
    ):
        ours, theirs = socket.socketpair()
        with ours, fork_into(network.client.pid, run_gateway, plan, network, listener, theirs):
            theirs.close()
            listener.close()
            send({"kind": "ready"})
            _look_after(network, ours)


def _look_after(network: SessionNetwork, gateway: socket.socket) -> None:
    """Starts the trace when the first session begins, and looks after the link."""
    began_s: float | None = None
    while True:
        if select.select([gateway], [], [], LINK_CHECK_S)[0]:
            if not gateway.recv(len(BEGIN)):
                raise GatewayDied("the process that answers the browser ended")
            if began_s is None:
                began_s = network.start_replay()
            gateway.sendall(str(time.monotonic() - began_s).encode())
        network.check_alive()


def run_gateway(
    plan: AbrPlan, network: SessionNetwork, listener: socket.socket, end: socket.socket
) -> None:
    """Body of the gateway's process."""
    asyncio.run(_serve(plan, network, listener, end))


async def _serve(
    plan: AbrPlan, network: SessionNetwork, listener: socket.socket, end: socket.socket
) -> None:
    loop = asyncio.get_running_loop()
    end.setblocking(False)

    async def begin() -> float:
        await loop.sock_sendall(end, BEGIN)
        return float(await loop.sock_recv(end, TIME_BYTES))

    behind = Behind(
        media_url=f"http://{network.server.address}:{MEDIA_PORT}",
        controller_url=f"http://{network.controller.address}:{CONTROLLER_PORT}",
        begin=begin,
    )
    await answer_browsers(plan, behind, listener)
