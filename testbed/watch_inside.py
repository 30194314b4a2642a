"""Inside the sandbox of ``testbed watch``: one session network, and a gateway in its client host.

The gateway answers the browser outside: the page by itself, media and decisions by asking server
and controller over the emulated links, byte by byte as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
import yarl
from aiohttp import web

from controllers import registry
from controllers.client import ControllerClient
from player.browser_page import FALLBACK_PATH, Asked, PageArm, PageServer, PageSettings
from player.browser_parts import find_library
from player.browser_rules import DASHJS_CONTROLLERS, active_rules
from player.media_http import Limits, http_session
from testbed.abr_experiment import AbrPlan, abr_plan
from testbed.browser_emulation import seconds_mbps
from testbed.emulated_hosts import handed_over, media_server
from testbed.emulated_player import CONTROLLER_PORT, MEDIA_PORT, VIDEO_NAME
from testbed.emulated_session import LINK_CHECK_S, session_network
from testbed.emulated_tasks import EMULATED_TASKS
from testbed.emulation import decode_plan
from testbed.emulation_inside import controller_process
from testbed.namespaces import fork_into
from testbed.sandbox import Send
from testbed.sessions import Session
from testbed.topology import SessionNetwork
from testbed.watch import take_over

MEDIA_PATH = "media"
DECIDE_PATH = "decide"
NAME = "watch"
BEGIN = b"begin"
TIME_BYTES = 64
PASSED_ON = ("Content-Length", "Content-Range", "Content-Type", "Accept-Ranges")

_log = logging.getLogger(__name__)


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
    settings, session = plan.experiment.decision_settings, plan.sessions[0]
    loop = asyncio.get_running_loop()
    end.setblocking(False)

    async def begin() -> float:
        await loop.sock_sendall(end, BEGIN)
        return float(await loop.sock_recv(end, TIME_BYTES))

    fallback = None
    if settings.fallback is not None:
        fallback = registry.create("abr", settings.fallback).decide
    limits = Limits(chunk_s=settings.chunk_timeout_s)
    async with http_session(limits) as media, http_session(limits) as questions:
        gateway = _Gateway(network, media, questions)
        page = PageServer(
            page_settings(plan, session),
            find_library(),
            on_told=lambda message: _log.info("%s", message),
            begin=begin,
            fallback=fallback,
            listener=listener,
            routes=[
                web.get(f"/{MEDIA_PATH}/{{name}}", gateway.media),
                web.post(f"/{DECIDE_PATH}/{{arm}}", gateway.decide),
            ],
        )
        async with page:
            await asyncio.Event().wait()


def page_settings(plan: AbrPlan, session: Session) -> PageSettings:
    """The page: the experiment's arms to choose from, and behind them the rules of dash.js."""
    experiment = plan.experiment
    settings = experiment.decision_settings
    remote = [
        PageArm(
            name=arm.label,
            rules=active_rules(arm.controller),
            asked=Asked(
                url=f"{DECIDE_PATH}/{quote(arm.label, safe='')}",
                timeout_s=settings.decision_timeout_s,
                fallback_url=None if settings.fallback is None else FALLBACK_PATH,
            ),
        )
        for arm in experiment.arms
        if experiment.is_remote(arm)
    ]
    own = [PageArm(name=name, rules=active_rules(name), asked=None) for name in DASHJS_CONTROLLERS]
    return PageSettings(
        title=f"{plan.video.name} over {session.trace.name}",
        manifest_url=f"{MEDIA_PATH}/manifest.mpd",
        session_id=NAME,
        video=plan.video,
        arms=(*remote, *own),
        player=experiment.player_config,
        chunk_timeout_s=settings.chunk_timeout_s,
        link_mbps=seconds_mbps(session.trace, session.start_s),
    )


class _Gateway:
    """Passes requests on over the emulated links."""

    def __init__(
        self,
        network: SessionNetwork,
        media: aiohttp.ClientSession,
        questions: aiohttp.ClientSession,
    ) -> None:
        self._media_url = f"http://{network.server.address}:{MEDIA_PORT}/{VIDEO_NAME}"
        self._controller_url = f"http://{network.controller.address}:{CONTROLLER_PORT}"
        self._media = media
        self._questions = questions

    async def media(self, request: web.Request) -> web.StreamResponse:
        """What the media server sends, as it comes."""
        query = f"?{request.raw_path.partition('?')[2]}" if request.query_string else ""
        url = yarl.URL(f"{self._media_url}/{request.match_info['name']}{query}", encoded=True)
        headers = {"Range": request.headers["Range"]} if "Range" in request.headers else {}
        with _unreachable():
            async with self._media.get(url, headers=headers) as found:
                told = {name: found.headers[name] for name in PASSED_ON if name in found.headers}
                response = web.StreamResponse(status=found.status, headers=told)
                response.headers["Cache-Control"] = "no-store"
                await response.prepare(request)
                async for data in found.content.iter_any():
                    await response.write(data)
                await response.write_eof()
                return response

    async def decide(self, request: web.Request) -> web.Response:
        """The controller's answer."""
        asked = ControllerClient(
            self._controller_url, "abr", request.match_info["arm"], deadline_s=1.0
        )
        body = await request.read()
        with _unreachable():
            async with self._questions.post(yarl.URL(asked.url, encoded=True), data=body) as found:
                answer = await found.read()
                return web.Response(
                    status=found.status, body=answer, content_type="application/json"
                )


@contextlib.contextmanager
def _unreachable() -> Iterator[None]:
    """Answers 502 where what is behind the link does not."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        raise web.HTTPBadGateway(text=str(error)) from error
