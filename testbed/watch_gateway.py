"""What answers the browser of ``testbed watch``: page, media and decisions from one address.

The page it has itself; media and decisions it gets from server and controller, wherever these are,
and passes on byte by byte as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
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
from testbed.abr_experiment import AbrPlan
from testbed.browser_emulation import seconds_mbps
from testbed.emulated_player import VIDEO_NAME
from testbed.pacing import TracePace
from testbed.sessions import Session

MEDIA_PATH = "media"
DECIDE_PATH = "decide"
NAME = "watch"
#: 0.1 s of the lowest level of most ladders, so that a paced chunk does not come in lumps.
PACED_BYTES = 4096
PASSED_ON = ("Content-Length", "Content-Range", "Content-Type", "Accept-Ranges", "Retry-After")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What is behind the gateway.

    Attributes:
        media_url: of the DASH server, without a path.
        controller_url: of the controller service, likewise.
        begin: is awaited when a session begins; returns for how many seconds the link has run.
        pace: of the media where there is no link; None: as they come.
        remark: what the page says above the picture.
    """

    media_url: str
    controller_url: str
    begin: Callable[[], Awaitable[float]]
    pace: TracePace | None = None
    remark: str = ""


async def answer_browsers(plan: AbrPlan, behind: Behind, listener: socket.socket) -> None:
    """Answers on a listening socket until cancelled."""
    settings, session = plan.experiment.decision_settings, plan.sessions[0]
    fallback = None
    if settings.fallback is not None:
        fallback = registry.create("abr", settings.fallback).decide
    limits = Limits(chunk_s=settings.chunk_timeout_s)
    async with http_session(limits) as media, http_session(limits) as questions:
        gateway = _Gateway(behind, media, questions)
        page = PageServer(
            page_settings(plan, session, remark=behind.remark),
            find_library(),
            on_told=lambda message: _log.info("%s", message),
            begin=behind.begin,
            fallback=fallback,
            listener=listener,
            routes=[
                web.get(f"/{MEDIA_PATH}/{{path:.+}}", gateway.media),
                web.post(f"/{DECIDE_PATH}/{{arm}}", gateway.decide),
            ],
        )
        async with page:
            await asyncio.Event().wait()


def page_settings(plan: AbrPlan, session: Session, *, remark: str = "") -> PageSettings:
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
        manifest_url=f"{MEDIA_PATH}/{VIDEO_NAME}/manifest.mpd",
        session_id=NAME,
        video=plan.video,
        arms=(*remote, *own),
        player=experiment.player_config,
        chunk_timeout_s=settings.chunk_timeout_s,
        link_mbps=seconds_mbps(session.trace, session.start_s),
        remark=remark,
    )


class _Gateway:
    """Passes requests on."""

    def __init__(
        self, behind: Behind, media: aiohttp.ClientSession, questions: aiohttp.ClientSession
    ) -> None:
        self._behind = behind
        self._media = media
        self._questions = questions

    async def media(self, request: web.Request) -> web.StreamResponse:
        """What the media server sends, as it comes or as the pace allows."""
        query = f"?{request.raw_path.partition('?')[2]}" if request.query_string else ""
        path = quote(request.match_info["path"])
        url = yarl.URL(f"{self._behind.media_url}/{path}{query}", encoded=True)
        headers = {"Range": request.headers["Range"]} if "Range" in request.headers else {}
        with _unreachable():
            async with self._media.get(url, headers=headers) as found:
                told = {name: found.headers[name] for name in PASSED_ON if name in found.headers}
                response = web.StreamResponse(status=found.status, headers=told)
                response.headers["Cache-Control"] = "no-store"
                await response.prepare(request)
                await self._pass_on(found, response)
                await response.write_eof()
                return response

    async def _pass_on(self, found: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        pace = self._behind.pace
        if pace is None:
            async for data in found.content.iter_any():
                await response.write(data)
            return
        with pace.transfer():
            async for data in found.content.iter_chunked(PACED_BYTES):
                await pace.pass_on(len(data))
                await response.write(data)

    async def decide(self, request: web.Request) -> web.Response:
        """The controller's answer."""
        asked = ControllerClient(
            self._behind.controller_url, "abr", request.match_info["arm"], deadline_s=1.0
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
