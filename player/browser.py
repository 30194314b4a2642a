"""dash.js in a real Chromium: the driver of the player whose logic is a page.

The third sibling of ``player/simulated.py`` and ``player/headless.py``: it plays the same video
from the same server, asks the same controller with the same observation, and leaves the same
records. What differs is the player itself: ``player/page`` with dash.js, Media Source Extensions
and a decoder.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from player.browser_page import Decide, PageServer, PageSettings
from player.browser_parts import BrowserParts
from player.browser_records import PageError, read_chunk
from player.browser_usage import BrowserMeter
from player.headless import PlayedSession
from player.media_http import Limits
from player.records import ChunkRecord, ProcessRecord

VIEWPORT = {"width": 1280, "height": 760}
LAUNCH_S = 60.0
#: Beyond the waits that a page has limits for itself: a page that tells nothing for longer hangs.
SILENCE_GRACE_S = 30.0
MS_PER_S = 1000
FLAGS = (
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--disable-renderer-backgrounding",
    "--disable-sync",
    "--mute-audio",
    "--no-first-run",
)

_log = logging.getLogger(__name__)


class BrowserFailed(RuntimeError):
    """Chromium did not start, or died."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession(PlayedSession):
    """A session that came to its end; its ``startup_s`` lasts until the first picture moved.

    Attributes:
        starved_s: the picture stood still though there was video to play: the machine was too
            busy. In no chunk's ``rebuffer_s``.
        usage: what Chromium used of the machine; None if that could not be told.
    """

    starved_s: float
    usage: ProcessRecord | None


@dataclasses.dataclass
class _Heard:
    """What the page has told so far."""

    settings: PageSettings
    on_chunk: Callable[[ChunkRecord], None] | None
    ended: asyncio.Future[float]
    chunks: list[ChunkRecord] = dataclasses.field(default_factory=list)
    startup_s: float = 0.0
    starved_s: float = 0.0
    news: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def take(self, message: dict[str, Any]) -> None:
        """Notes one message; a wrong one ends the session."""
        self.news.set()
        try:
            self._take(message)
        except PageError as error:
            self.fail(error)

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"kind": "ready"}:
                pass
            case {"kind": "chunk", "chunk": dict(told)}:
                previous = self.chunks[-1] if self.chunks else None
                video, weights = self.settings.video, self.settings.player.qoe
                self.chunks.append(read_chunk(told, video, previous, weights))
                if self.on_chunk is not None:
                    self.on_chunk(self.chunks[-1])
            case {"kind": "startup", "startup_s": int() | float() as startup_s}:
                self.startup_s = float(startup_s)
            case {
                "kind": "end",
                "wall_s": int() | float() as wall_s,
                "starved_s": int() | float() as starved_s,
            }:
                self.starved_s = float(starved_s)
                if len(self.chunks) != self.settings.video.chunks:
                    raise PageError(f"the page ended after {len(self.chunks)} chunks")
                if not self.ended.done():
                    self.ended.set_result(float(wall_s))
            case {"kind": "error", "name": str(name), "message": str(text)}:
                raise PageError(text if name == "Error" else f"{name}: {text}")
            case _:
                raise PageError(f"the page told {str(message)[:200]}")

    def fail(self, error: Exception) -> None:
        """Ends the session."""
        if not self.ended.done():
            self.ended.set_exception(error)


async def play_in_browser(
    parts: BrowserParts,
    settings: PageSettings,
    *,
    fallback: Decide | None = None,
    limits: Limits | None = None,
    before_start: Callable[[], Awaitable[None]] | None = None,
    on_chunk: Callable[[ChunkRecord], None] | None = None,
    screenshot: Path | None = None,
) -> BrowserSession:
    """Plays a video with dash.js in real time.

    Args:
        parts: the browser.
        settings: what to play and whom to ask.
        fallback: decides where the asked controller is unavailable; None ends the session then.
        limits: longest waits.
        before_start: is awaited once everything but the chunks is loaded.
        on_chunk: is told a chunk's record once it is complete: when the next one is asked for.
        screenshot: file for a picture of the page at the end.

    Returns:
        The session.

    Raises:
        BrowserFailed: Chromium did not start, or died.
        PageError: the page gave up, or told something that cannot be.
    """
    longest = limits or Limits()
    clock = asyncio.get_running_loop().time
    entered_s = clock()
    began: list[float] = []

    async def begin() -> float:
        if before_start is not None:
            await before_start()
        began.append(clock())
        meter.start()
        return 0.0

    ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    heard = _Heard(settings, on_chunk, ended)
    async with (
        contextlib.aclosing(BrowserMeter()) as meter,
        PageServer(
            settings, parts.library, on_told=heard.take, begin=begin, fallback=fallback
        ) as page,
        _tab(parts, heard, meter.argument) as tab,
    ):
        await tab.goto(page.url)
        wall_s = await _until_ended(heard, _longest_silence_s(settings, longest))
        usage = await meter.stop()
        if screenshot is not None:
            await tab.screenshot(path=str(screenshot), full_page=True)
    return BrowserSession(
        video=settings.video,
        chunks=tuple(heard.chunks),
        startup_s=heard.startup_s,
        wall_s=wall_s,
        setup_s=began[0] - entered_s,
        fallbacks=sum(chunk.fallback for chunk in heard.chunks),
        starved_s=heard.starved_s,
        usage=usage,
    )


async def _until_ended(heard: _Heard, silence_s: float) -> float:
    """Waits for the end, as long as there is news."""
    while True:
        heard.news.clear()
        news = asyncio.ensure_future(heard.news.wait())
        try:
            await asyncio.wait(
                (heard.ended, news), timeout=silence_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()
        if heard.ended.done():
            return heard.ended.result()
        if not heard.news.is_set():
            raise BrowserFailed(f"the page told nothing for {silence_s:g} s")


def _longest_silence_s(settings: PageSettings, limits: Limits) -> float:
    waits = (
        settings.chunk_timeout_s,
        2 * limits.decision_s,  # of the controller and of the fallback
        limits.setup_s,
        settings.video.chunk_s,  # until the buffer is below its cap again
    )
    return sum(waits) + SILENCE_GRACE_S


@contextlib.asynccontextmanager
async def _tab(parts: BrowserParts, heard: _Heard, argument: str) -> AsyncIterator[Any]:
    """A tab of a fresh browser, closed at the end.

    Raises:
        BrowserFailed: it does not start.
    """
    from playwright.async_api import Error, async_playwright  # an extra

    async with async_playwright() as playwright:
        try:
            browser = await playwright.chromium.launch(
                executable_path=str(parts.chromium),
                args=[*FLAGS, argument],
                timeout=LAUNCH_S * MS_PER_S,
                handle_sigint=False,
                handle_sigterm=False,
                handle_sighup=False,
            )
        except Error as error:
            raise BrowserFailed(f"{parts.chromium} does not start: {error.message}") from error
        try:
            browser.on("disconnected", lambda _: heard.fail(BrowserFailed("Chromium died")))
            tab = await browser.new_page(viewport=VIEWPORT)
            tab.on("crash", lambda _: heard.fail(BrowserFailed("the page crashed")))
            tab.on("console", lambda line: _log.info("page: %s", line.text))
            tab.on("pageerror", lambda error: heard.fail(PageError(str(error))))
            yield tab
        finally:
            heard.ended.cancel()
            await browser.close()
