"""What the tests of sessions in a real Chromium share: the hosts, the page, what was requested."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web
from loopback import serving, with_content

from player.browser_page import Asked, PageArm, PageSettings
from player.browser_rules import active_rules
from player.machine import PlayerConfig
from player.server import RequestLogEntry
from player.sockets import base_url, listening_socket
from player.video import Video


@dataclass(frozen=True)
class Hosts:
    """A media server and a controller.

    Attributes:
        video: that is served.
        manifest_url: where.
        log: requests to the media server.
        controller: the running one.
        controller_url: where it decides.
    """

    video: Video
    manifest_url: str
    log: list[RequestLogEntry]
    controller: web.AppRunner
    controller_url: str

    def page(
        self,
        *,
        rule: str | None,
        player: PlayerConfig,
        timeout_s: float,
        fallback_url: str | None = None,
    ) -> PageSettings:
        """A page that plays the video by a rule of dash.js; without one the controller decides."""
        asked = Asked(url=self.controller_url, timeout_s=timeout_s, fallback_url=fallback_url)
        arm = PageArm(
            name=rule or "scripted",
            rules=active_rules(rule or ""),
            asked=asked if rule is None else None,
        )
        return PageSettings(
            title="A video on the loopback",
            manifest_url=self.manifest_url,
            session_id="test",
            video=self.video,
            arms=(arm,),
            player=player,
            chunk_timeout_s=60.0,
        )


@contextlib.asynccontextmanager
async def served(
    video: Video, decide: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[Hosts]:
    """Serves the video; ``decide`` answers as the controller."""
    app = web.Application()
    app.router.add_post("/decide", decide)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = listening_socket("127.0.0.1", 0)
    controller_url = base_url(listener)
    await web.SockSite(runner, listener).start()
    log: list[RequestLogEntry] = []
    try:
        async with serving({"video": with_content(video)}, log) as url:
            yield Hosts(video, f"{url}/video/manifest.mpd", log, runner, f"{controller_url}/decide")
    finally:
        await runner.cleanup()


def fetched(log: Sequence[RequestLogEntry]) -> list[tuple[int, int]]:
    """Chunk and level of each request for media, in order."""
    names = [entry.path.rsplit("/", 1)[1] for entry in log]
    parsed = [name.removesuffix(".m4s").split("-") for name in names if name.endswith(".m4s")]
    return [(int(number) - 1, int(level)) for _, level, number in parsed]
