"""Emulated driver of the tiled player: its commands as HTTP requests, with a real clock.

The sibling of ``player/tiled_simulated.py``. Tiles come over a few keep-alive connections, one at a
time on each, as browsers do with HTTP/1.1, pieces of them as byte ranges (RFC 9110, section 14);
their bytes are counted and thrown away. All connections are open before the session's clock starts.
Every request tells the server what CMCD (CTA-5004) asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp
import yarl

from player import cmcd, mpd, tiled_mpd
from player.head_motion import HeadMotion
from player.headless import MILLISECONDS_PER_SECOND
from player.machine import Started, Stop, TimerFired, WaitUntil
from player.media_http import (
    DECISION_LIMIT_S,
    Limits,
    PlaybackError,
    count_body,
    get_ok,
    http_session,
    load_whole,
    with_cmcd,
)
from player.tiled_events import (
    AskViewports,
    DecideViewports,
    FetchTile,
    TileArrived,
    TiledEvent,
    TiledPlayerConfig,
    TiledState,
    ViewportsDecided,
)
from player.tiled_machine import TiledPlayer
from player.tiled_video import TiledVideo
from player.viewport_observation import Viewport, ViewportObservation
from player.viewport_records import TiledChunkRecord

_log = logging.getLogger(__name__)

#: Asks the controller where the viewer will look. A ConnectionError or TimeoutError says that it is
#: unavailable, and the fallback decides; anything else ends the session.
AskController = Callable[[ViewportObservation], Awaitable[tuple[Viewport, ...]]]


@dataclass(frozen=True, slots=True)
class Delivery:
    """When a tile or a piece of it came, on the clock of :meth:`TiledMedia.now`.

    Attributes:
        first_byte_s: first byte of the answer.
        at_s: last byte.
    """

    first_byte_s: float
    at_s: float


class TiledMedia(Protocol):
    """What the driver needs of the world: a clock and tiles."""

    def now(self) -> float:
        """Seconds on a clock that never runs backwards: the event loop's."""
        ...

    async def fetch(self, command: FetchTile, player: TiledPlayer) -> Delivery:
        """Downloads a tile or a piece of it."""
        ...


@dataclass(frozen=True, slots=True)
class _Done:
    """Something came to its end."""

    at_s: float
    event: TiledEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedTiledSession:
    """A session that came to its end.

    Attributes:
        player: all that is known of it.
        wall_s: from the first question to the end.
        setup_s: before that, to load manifest and size table and to open the connections.
    """

    player: TiledPlayer
    wall_s: float
    setup_s: float


async def drive_tiled(
    player: TiledPlayer,
    media: TiledMedia,
    ask: AskController,
    *,
    fallback: DecideViewports | None = None,
    decision_limit_s: float = DECISION_LIMIT_S,
    on_chunk: Callable[[TiledChunkRecord], None] | None = None,
) -> float:
    """Plays a session to its end; all that is known of it is in ``player``.

    Returns:
        Length of the session on the clock of ``media``, seconds.

    Raises:
        InvalidViewports: the controller's answer is none.
        ConnectionError, TimeoutError: the controller is unavailable and there is no fallback, or
            what ``media`` raises.
    """
    began_s = now = media.now()
    event: TiledEvent = Started()
    running: set[asyncio.Task[_Done]] = set()
    done: list[_Done] = []
    told = 0
    try:
        while True:
            commands = player.handle(event, now=now)
            if on_chunk is not None:
                for record in player.chunks[told:]:
                    on_chunk(record)
                told = len(player.chunks)
            timer_s = math.inf
            for command in commands:
                match command:
                    case AskViewports():
                        deciding = _decide(command, media, ask, fallback, decision_limit_s)
                        running.add(asyncio.create_task(deciding))
                    case FetchTile():
                        running.add(asyncio.create_task(_fetch(command, media, player)))
                    case WaitUntil(at_s):
                        timer_s = at_s
                    case Stop():
                        return now - began_s
            if not done:
                running, done = await _wait(running, timer_s, media)
            if done and done[0].at_s <= timer_s:
                first = done.pop(0)
                now, event = max(now, first.at_s), first.event
            else:
                fired_s = timer_s if done else max(timer_s, media.now())
                now, event = max(now, fired_s), TimerFired()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _wait(
    running: set[asyncio.Task[_Done]], timer_s: float, media: TiledMedia
) -> tuple[set[asyncio.Task[_Done]], list[_Done]]:
    """Waits for something to end, until the timer; what still runs, and what ended, by time."""
    timeout_s = None if math.isinf(timer_s) else max(timer_s - media.now(), 0.0)
    if not running:
        await asyncio.sleep(timeout_s or 0.0)
        return running, []
    ended, running = await asyncio.wait(
        running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
    )
    done = [task.result() for task in ended]
    # A decision at the same time comes last, as in the simulation.
    done.sort(key=lambda one: (one.at_s, isinstance(one.event, ViewportsDecided)))
    return running, done


async def _fetch(command: FetchTile, media: TiledMedia, player: TiledPlayer) -> _Done:
    delivery = await media.fetch(command, player)
    return _Done(delivery.at_s, TileArrived(command.connection, delivery.first_byte_s))


async def _decide(
    command: AskViewports,
    media: TiledMedia,
    ask: AskController,
    fallback: DecideViewports | None,
    limit_s: float,
) -> _Done:
    observation = command.observation
    try:
        async with asyncio.timeout(limit_s):
            decided = ViewportsDecided(await ask(observation))
    except (ConnectionError, TimeoutError) as error:
        if fallback is None:
            raise
        _log.warning("chunk %d: the fallback decides: %r", command.chunk, error)
        decided = ViewportsDecided(fallback(observation), fallback=True)
    return _Done(media.now(), decided)


async def play_tiled_headless(
    *,
    manifest_url: str,
    motion: HeadMotion,
    ask: AskController,
    session_id: str,
    player_config: TiledPlayerConfig | None = None,
    earlier: Sequence[HeadMotion] = (),
    chunks: int | None = None,
    fallback: DecideViewports | None = None,
    limits: Limits | None = None,
    before_start: Callable[[], Awaitable[None]] | None = None,
    on_player: Callable[[TiledPlayer], None] | None = None,
    on_chunk: Callable[[TiledChunkRecord], None] | None = None,
) -> PlayedTiledSession:
    """Plays a tiled video from a DASH server in real time.

    Args:
        manifest_url: of the MPD.
        motion: where the viewer looks.
        ask: asks the controller where the viewer will look.
        session_id: CMCD ``sid``, cut to what CMCD allows.
        player_config: how to play.
        earlier: what others looked at before.
        chunks: play this many, None for all.
        fallback: decides when the controller is unavailable; None ends the session then.
        limits: longest waits; ``chunk_s`` is for one tile.
        before_start: is awaited when the connections are open, right before the session's clock
            starts: the moment to start a link's trace.
        on_player: is given the player before it starts, so that what is known of a session that
            fails can be read from it.
        on_chunk: is told every chunk's record as soon as nothing more will come of it.

    Returns:
        The session.

    Raises:
        PlaybackError: the server is gone, is too slow, or sends something else than announced.
        MpdError: manifest or size table are not what this player plays.
        TiledVideoError: the video has fewer than ``chunks`` chunks.
        TiledPlayerConfigError: predictions do not reach to the end of the chunk asked for.
        InvalidViewports: the controller's answer is none.
        ConnectionError, TimeoutError: the controller is unavailable and there is no fallback.
    """
    longest = limits or Limits()
    config = player_config or TiledPlayerConfig()
    async with contextlib.AsyncExitStack() as stack:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        connections = [
            await stack.enter_async_context(http_session(longest))
            for _ in range(config.connections)
        ]
        sid = cmcd.identifier(session_id)
        media = await HttpTiledMedia.open(connections, manifest_url, sid, longest)
        setup_s = clock() - began_s
        video = media.video if chunks is None else media.video.first(chunks)
        player = TiledPlayer(video, motion, config, earlier)
        if on_player is not None:
            on_player(player)
        if before_start is not None:
            await before_start()
        wall_s = await drive_tiled(
            player,
            media,
            ask,
            fallback=fallback,
            decision_limit_s=longest.decision_s,
            on_chunk=on_chunk,
        )
        return PlayedTiledSession(player=player, wall_s=wall_s, setup_s=setup_s)


@dataclass(frozen=True, slots=True)
class HttpTiledMedia:
    """:class:`TiledMedia` over HTTP.

    Attributes:
        connections: sessions with one connection each.
        manifest: what is played.
        video: ladder and sizes of the same.
        session_id: CMCD ``sid``.
        limits: longest waits.
    """

    connections: Sequence[aiohttp.ClientSession]
    manifest: tiled_mpd.TiledManifest
    video: TiledVideo
    session_id: str
    limits: Limits

    @classmethod
    async def open(
        cls,
        connections: Sequence[aiohttp.ClientSession],
        url: str,
        session_id: str,
        limits: Limits,
    ) -> HttpTiledMedia:
        """Loads manifest and size table, opens all connections; see play_tiled_headless."""
        told: dict[str, cmcd.Value] = {"sid": session_id, "sf": "d", "st": "v", "su": True}
        manifest_url = with_cmcd(url, told | {"ot": "m"})
        first, *others = connections
        body = await load_whole(first, manifest_url, tiled_mpd.MAX_TILED_MPD_BYTES, limits.setup_s)
        manifest = tiled_mpd.read_tiled_mpd(body, url)
        if manifest.sizes_url is None:
            raise mpd.MpdError(
                f"{url} names no size table: expected a SupplementalProperty with schemeIdUri "
                f"{mpd.SIZES_SCHEME}"
            )
        sizes_url = with_cmcd(manifest.sizes_url, told | {"ot": "o"})
        sizes = await load_whole(first, sizes_url, mpd.MAX_SIZES_BYTES, limits.setup_s)
        name = urlsplit(url).path.rpartition("/")[0].rpartition("/")[2]
        video = tiled_mpd.read_tile_size_table(sizes, manifest, name=name)
        await asyncio.gather(*(_connect(http, manifest_url, limits.setup_s) for http in others))
        return cls(connections, manifest, video, session_id, limits)

    def now(self) -> float:
        """The clock of the event loop."""
        return asyncio.get_running_loop().time()

    async def fetch(self, command: FetchTile, player: TiledPlayer) -> Delivery:
        """Downloads a tile or a piece of it and drops the bytes.

        Raises:
            PlaybackError: it does not come, not in time, or is not as long as announced.
        """
        url = self.manifest.media_url(command.chunk, command.tile, command.level)
        target = with_cmcd(url, self._cmcd(command, player))
        http = self.connections[command.connection]
        whole_bytes = self.video.sizes_bytes[command.chunk][command.tile][command.level]
        where = f"tile {command.tile} of chunk {command.chunk} at level {command.level}"
        try:
            async with (
                asyncio.timeout(self.limits.chunk_s),
                _get_piece(http, target, command, whole_bytes) as response,
            ):
                first_byte_s = self.now()
                return Delivery(first_byte_s, await count_body(response, command.size_bytes))
        except TimeoutError as error:
            reason = str(error) or f"not in after {self.limits.chunk_s} s"
            raise PlaybackError(f"{where}: {reason} ({url})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise PlaybackError(f"{where}: {error} ({url})") from error

    def _cmcd(self, command: FetchTile, player: TiledPlayer) -> dict[str, cmcd.Value]:
        ladder = self.manifest.tiles[command.tile]
        rates_kbps = [level.bandwidth_bps / mpd.BITS_PER_KILOBIT for level in ladder]
        is_waiting = player.state in (TiledState.STARTING, TiledState.STALLED)
        told: dict[str, cmcd.Value] = {
            "br": rates_kbps[command.level],
            "bl": player.buffer_s * MILLISECONDS_PER_SECOND,
            "bs": player.state is TiledState.STALLED,
            "cid": cmcd.identifier(self.video.name),
            "d": self.video.chunk_s * MILLISECONDS_PER_SECOND,
            "dl": player.time_left_s(command.chunk) * MILLISECONDS_PER_SECOND,
            "ot": "v",
            "sf": "d",
            "sid": self.session_id,
            "st": "v",
            "su": is_waiting,
            "tb": rates_kbps[-1],
        }
        if player.link is not None:
            told["mtp"] = player.link.rate_kbps
        return told


@contextlib.asynccontextmanager
async def _get_piece(
    http: aiohttp.ClientSession, url: str, command: FetchTile, whole_bytes: int
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to a request for a tile, or for a range of its bytes.

    Raises:
        PlaybackError: it is neither.
    """
    if command.size_bytes == whole_bytes:
        async with get_ok(http, url) as response:
            yield response
        return
    span = f"{command.first_byte}-{command.first_byte + command.size_bytes - 1}"
    headers = {"Range": f"bytes={span}"}
    async with http.get(yarl.URL(url, encoded=True), headers=headers) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            raise PlaybackError(
                f"the server answers {response.status} {response.reason} to a byte range"
            )
        if response.headers.get("Content-Range") != f"bytes {span}/{whole_bytes}":
            raise PlaybackError(
                f"bytes {span}/{whole_bytes} were asked for, "
                f"{response.headers.get('Content-Range')} came"
            )
        yield response


async def _connect(http: aiohttp.ClientSession, url: str, limit_s: float) -> None:
    """Opens a connection, and leaves it open."""
    try:
        target = yarl.URL(url, encoded=True)
        async with asyncio.timeout(limit_s), http.head(target) as response:
            if response.status != HTTPStatus.OK:
                raise PlaybackError(f"{url}: the server answers {response.status}")
    except TimeoutError as error:
        raise PlaybackError(f"{url}: {str(error) or f'not in after {limit_s} s'}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise PlaybackError(f"{url}: {error}") from error
