"""The page for a browser: its files, its settings, and the small server that it comes from.

The server listens on the loopback of the player's own host, so that neither page nor library cross
the link that is measured; only manifest and media come from the DASH server behind that.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pydantic
from aiohttp import web

from player import cmcd
from player.browser_parts import LIBRARY_NAME, PAGE_FOLDER
from player.live import live_url
from player.machine import PlayerConfig
from player.observation import (
    HISTORY_LIMIT,
    UPCOMING_LIMIT,
    AbrObservation,
    ObservationError,
    check_observation,
)
from player.sockets import base_url, listening_socket
from player.video import Video

LOOPBACK = "127.0.0.1"
FALLBACK_PATH = "fallback"
MAX_BODY_BYTES = 2**20
SHUTDOWN_S = 1.0
#: A page of a live event has this long for dash.js and the manifest before it joins.
JOIN_SETUP_S = 5.0
#: What is served, and as what; nothing else of the folder is.
PAGE_FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "player.js": "text/javascript",
    "streaming.js": "text/javascript",
    "session.js": "text/javascript",
    "event.js": "text/javascript",
    "decisions.js": "text/javascript",
    "charts.js": "text/javascript",
}

_log = logging.getLogger(__name__)
_OBSERVATION = pydantic.TypeAdapter(AbrObservation)

Decide = Callable[[AbrObservation], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whom the page asks for levels.

    Attributes:
        url: takes observations.
        timeout_s: longest wait for an answer.
        fallback_url: asked in the place of one that does not answer, such as ``FALLBACK_PATH`` of
            the page's own server; None ends the session then.
    """

    url: str
    timeout_s: float
    fallback_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageArm:
    """Who decides.

    Attributes:
        name: that the page shows.
        rules: of dash.js, and whether they are active.
        asked: the remote controller; None: dash.js decides by its rules.
    """

    name: str
    rules: dict[str, bool]
    asked: Asked | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSettings:
    """What the page is told before it plays.

    Attributes:
        title: its heading.
        manifest_url: absolute, or relative to the page.
        session_id: CMCD ``sid``.
        video: what the manifest describes; controllers are told its sizes.
        arms: the first decides; a person may choose among several.
        player: how to play.
        chunk_timeout_s: longest wait for one chunk.
        link_mbps: the link's rate second by second, to be shown; empty: not known.
        remark: what a person must know about what is seen; empty: nothing.
        live_start_s: when the live event begins (Unix seconds), where ``player`` follows one; None:
            such that the page can join it soon after it is loaded.
    """

    title: str
    manifest_url: str
    session_id: str
    video: Video
    arms: tuple[PageArm, ...]
    player: PlayerConfig
    chunk_timeout_s: float
    link_mbps: Sequence[float] = ()
    remark: str = ""
    live_start_s: float | None = None

    def document(self, now_s: float) -> dict[str, Any]:
        """As JSON values, for a page that is loaded at ``now_s`` (Unix seconds)."""
        manifest_url, event, live = self.manifest_url, None, self.player.live
        if live is not None:
            start_s = self.live_start_s
            if start_s is None:
                start_s = now_s + JOIN_SETUP_S - live.target_latency_s
            manifest_url = live_url(manifest_url, start_s, live.target_latency_s)
            event = {"start_s": round(start_s, 3)} | dataclasses.asdict(live)
        return {
            "title": self.title,
            "manifest_url": manifest_url,
            "live": event,
            "session_id": cmcd.identifier(self.session_id),
            "content_id": cmcd.identifier(self.video.name),
            "video": {
                "levels_kbps": self.video.levels_kbps,
                "chunk_s": self.video.chunk_s,
                "sizes_bytes": self.video.sizes_bytes,
            },
            "arms": [dataclasses.asdict(arm) for arm in self.arms],
            "first_level": self.player.first_level,
            "buffer_cap_s": self.player.buffer_cap_s,
            "qoe": dataclasses.asdict(self.player.qoe),
            "chunk_timeout_s": self.chunk_timeout_s,
            "history_limit": HISTORY_LIMIT,
            "upcoming_limit": UPCOMING_LIMIT,
            "link_mbps": list(self.link_mbps),
            "remark": self.remark,
        }


class PageServer:
    """Serves the page and takes what it tells; an async context manager.

    Attributes:
        settings: what the page is told when it is loaded.
        url: where it is, once entered.
    """

    def __init__(
        self,
        settings: PageSettings,
        library: Path,
        *,
        on_told: Callable[[dict[str, Any]], None],
        begin: Callable[[], Awaitable[float]],
        fallback: Decide | None = None,
        listener: socket.socket | None = None,
        routes: Sequence[web.AbstractRouteDef] = (),
    ) -> None:
        """Args are what the page is to be.

        Args:
            settings: what the page is told.
            library: dash.js.
            on_told: is told what the page tells, in order.
            begin: is awaited before the page's session begins; returns for how many seconds the
                link has run by then.
            fallback: answers at ``FALLBACK_PATH``.
            listener: listening socket, taken over; None: a free port of the loopback.
            routes: what else is served.
        """
        self.settings = settings
        self._library = library
        self._on_told = on_told
        self._begin_session = begin
        self._fallback = fallback
        self._listener = listener
        self._routes = routes
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        listener = self._listener or listening_socket(LOOPBACK, 0)
        listener.setblocking(False)
        self.url = base_url(listener)
        self._runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=SHUTDOWN_S
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/", self._file)
        app.router.add_get("/config.json", self._config)
        app.router.add_get("/{name}", self._file)
        app.router.add_post("/told", self._told)
        app.router.add_post("/begin", self._begin)
        app.router.add_post(f"/{FALLBACK_PATH}", self._decide)
        app.router.add_routes(self._routes)
        return app

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "index.html")
        if name == LIBRARY_NAME:
            return _fresh(self._library.read_bytes(), "text/javascript")
        if name not in PAGE_FILES:
            raise web.HTTPNotFound
        return _fresh((PAGE_FOLDER / name).read_bytes(), PAGE_FILES[name])

    async def _config(self, _: web.Request) -> web.Response:
        return _fresh(json.dumps(self.settings.document(time.time())).encode(), "application/json")

    async def _told(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":  # which pages of other origins cannot send
            raise web.HTTPUnsupportedMediaType
        try:
            message = json.loads(await request.read())
        except ValueError:
            raise web.HTTPBadRequest(text="not JSON") from None
        if not isinstance(message, dict):
            raise web.HTTPBadRequest(text="not an object")
        self._on_told(message)
        return web.Response(status=204)

    async def _begin(self, _: web.Request) -> web.Response:
        return web.json_response({"link_s": await self._begin_session()})

    async def _decide(self, request: web.Request) -> web.Response:
        """The fallback, in the wire format of the controller service."""
        if self._fallback is None:
            raise web.HTTPNotFound
        try:
            observation = _OBSERVATION.validate_json(await request.read(), strict=True)
            check_observation(observation)
        except (pydantic.ValidationError, ObservationError) as error:
            _log.warning("the page's observation is wrong: %s", error)
            raise web.HTTPUnprocessableEntity(text="not an observation") from None
        return web.json_response({"decision": self._fallback(observation)})


def _fresh(body: bytes, content_type: str) -> web.Response:
    charset = None if content_type == "application/json" else "utf-8"
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=body, content_type=content_type, charset=charset, headers=headers)
