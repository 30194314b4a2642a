"""Emulated driver of the player: interprets its commands with HTTP requests and a real clock.

The sibling of ``player/simulated.py``. It reads manifest and size table as any DASH client does,
downloads real bytes over one keep-alive connection, tells the server what CMCD (CTA-5004) asks
for, and throws the bytes away: nothing is decoded, so that many sessions fit on one machine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from player import cmcd, mpd
from player.live import Live, available_s, live_url
from player.machine import (
    Ask,
    ChunkArrived,
    Decided,
    Event,
    Fetch,
    Player,
    PlayerConfig,
    Progress,
    Started,
    Stop,
    TimerFired,
    WaitUntil,
)
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
from player.observation import AbrObservation
from player.records import ChunkRecord
from player.video import Video

MILLISECONDS_PER_SECOND = 1000
MAX_INIT_BYTES = 2**20
#: A live event is joined that long after it was chosen, which leaves time for the set-up.
JOIN_SETUP_S = 5.0
#: Later than this the session is not the one that was asked for.
MAX_LATE_S = 0.5

_log = logging.getLogger(__name__)

#: Asks the controller for a level. A ConnectionError or TimeoutError says that it is unavailable,
#: and the fallback decides; anything else ends the session.
AskLevel = Callable[[AbrObservation], Awaitable[int]]
#: Is told of a download how many bytes are in, and when; says whether it goes on.
GoesOn = Callable[[int, float], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedSession:
    """A session that came to its end.

    Attributes:
        video: as the manifest and the size table described it.
        chunks: records, one per chunk.
        startup_s: until the first chunk was in.
        wall_s: from the first request for a chunk to the end.
        setup_s: before that, to load manifest, size table and initialisation segments.
        fallbacks: decisions that the fallback made.
    """

    video: Video
    chunks: tuple[ChunkRecord, ...]
    startup_s: float
    wall_s: float
    setup_s: float
    fallbacks: int


class Media(Protocol):
    """What the driver needs of the world: a clock and chunks."""

    def now(self) -> float:
        """Seconds on a clock that never runs backwards."""
        ...

    async def sleep_until(self, at_s: float) -> None:
        """Returns when :meth:`now` is at least ``at_s``."""
        ...

    async def fetch(self, command: Fetch, player: Player, goes_on: GoesOn) -> float:
        """Downloads a chunk; returns when its last byte came, on the clock of :meth:`now`.

        Of a watched one it tells ``goes_on`` now and then how many bytes are in, and the time. When
        that says no, it closes the connection and returns.
        """
        ...


class _Watch:
    """Tells a player how a download goes; ``instead`` is what it wants in its place."""

    def __init__(self, player: Player) -> None:
        self.instead: Fetch | None = None
        self._player = player

    def goes_on(self, received_bytes: int, now: float) -> bool:
        """Whether the player lets the download go on."""
        command = self._player.handle(Progress(received_bytes), now=now)
        self.instead = command if isinstance(command, Fetch) else None
        return self.instead is None


async def _download(wanted: Fetch, player: Player, media: Media) -> float:
    """When the chunk is in; a request that the player gives up is followed by what it wants."""
    while True:
        watch = _Watch(player)
        now = await media.fetch(wanted, player, watch.goes_on)
        if watch.instead is None:
            return now
        wanted = watch.instead


async def drive(
    player: Player,
    media: Media,
    ask: AskLevel,
    *,
    fallback: Callable[[AbrObservation], int] | None = None,
    decision_limit_s: float = DECISION_LIMIT_S,
    on_chunk: Callable[[ChunkRecord], None] | None = None,
    late_s: float = 0.0,
) -> float:
    """Plays a session to its end; the records are in ``player.chunks``.

    Args:
        player: a new player.
        media: what it plays.
        ask: asks the controller.
        fallback: decides when that is unavailable.
        decision_limit_s: longest wait for a decision.
        on_chunk: is told every chunk's record as soon as the chunk is in.
        late_s: how much more the player is behind a live event than it wants to be.

    Returns:
        Length of the session on the clock of ``media``, seconds.

    Raises:
        InvalidDecision: the controller named a level off the ladder.
        ConnectionError, TimeoutError: the controller is unavailable and there is no fallback, or
            what ``media`` raises.
    """
    began_s = now = media.now()
    event: Event = Started(late_s)
    while True:
        command = player.handle(event, now=now)
        if on_chunk is not None and type(event) is ChunkArrived:
            on_chunk(player.chunks[-1])
        match command:
            case Ask(observation):
                event = await _decide(observation, ask, fallback, decision_limit_s)
                now = media.now()
            case Fetch():
                now, event = await _download(command, player, media), ChunkArrived()
            case WaitUntil(at_s):
                await media.sleep_until(at_s)
                now, event = media.now(), TimerFired()
            case Stop():
                return now - began_s


async def _decide(
    observation: AbrObservation,
    ask: AskLevel,
    fallback: Callable[[AbrObservation], int] | None,
    limit_s: float,
) -> Decided:
    try:
        async with asyncio.timeout(limit_s):
            return Decided(await ask(observation))
    except (ConnectionError, TimeoutError) as error:
        if fallback is None:
            raise
        _log.warning("chunk %d: the fallback decides: %r", observation.chunk_index, error)
        return Decided(fallback(observation), fallback=True)


async def play_headless(
    *,
    manifest_url: str,
    ask: AskLevel,
    session_id: str,
    player_config: PlayerConfig | None = None,
    chunks: int | None = None,
    fallback: Callable[[AbrObservation], int] | None = None,
    limits: Limits | None = None,
    before_start: Callable[[], Awaitable[None]] | None = None,
    on_chunk: Callable[[ChunkRecord], None] | None = None,
    live_start_s: float | None = None,
) -> PlayedSession:
    """Plays a video from a DASH server in real time.

    With ``player_config.live`` it plays an event that the server makes of the video, and begins
    when that is as old as the target latency.

    Args:
        manifest_url: of the MPD of the video.
        ask: asks the controller for a level.
        session_id: CMCD ``sid``, cut to what CMCD allows.
        player_config: how to play.
        chunks: play this many, None for all.
        fallback: decides when the controller is unavailable; None ends the session then.
        limits: longest waits.
        before_start: is awaited when everything but the chunks is loaded, right before the
            session's clock starts: the moment to start a link's trace.
        on_chunk: is told every chunk's record as soon as the chunk is in.
        live_start_s: when the live event begins (Unix seconds), the same for all who shall join it
            together; None: so that it can be joined soon.

    Returns:
        The session.

    Raises:
        PlaybackError: the server is gone, is too slow, or sends something else than announced; the
            set-up took so long that a live event was joined too late.
        MpdError: manifest or size table are not what this player plays.
        VideoFormatError: the video has fewer than ``chunks`` chunks.
        InvalidDecision: the controller named a level off the ladder.
        ConnectionError, TimeoutError: the controller is unavailable and there is no fallback.
    """
    longest = limits or Limits()
    live = None if player_config is None else player_config.live
    if live is not None:
        if live_start_s is None:
            live_start_s = time.time() + JOIN_SETUP_S - live.target_latency_s
        manifest_url = live_url(manifest_url, live_start_s, live.target_latency_s)
    async with http_session(longest) as http:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        media = await HttpMedia.open(http, manifest_url, cmcd.identifier(session_id), longest)
        setup_s = clock() - began_s
        if (live is None) != (media.manifest.live_start_s is None):
            kind = "static" if live is not None else "dynamic"
            raise mpd.MpdError(
                f"{manifest_url} is {kind}: the player follows a live event exactly where its "
                "configuration says so"
            )
        video = media.video if chunks is None else media.video.first(chunks)
        player = Player(video, player_config)
        if live is not None:
            await media.wait_for_age(live.target_latency_s)
        if before_start is not None:
            await before_start()
        late_s = 0.0 if live is None else _late_s(live, media)
        wall_s = await drive(
            player,
            media,
            ask,
            fallback=fallback,
            decision_limit_s=longest.decision_s,
            on_chunk=on_chunk,
            late_s=late_s,
        )
        return PlayedSession(
            video=video,
            chunks=player.chunks,
            startup_s=player.startup_s or 0.0,
            wall_s=wall_s,
            setup_s=setup_s,
            fallbacks=sum(chunk.fallback for chunk in player.chunks),
        )


def _late_s(live: Live, media: HttpMedia) -> float:
    """How much older a live event is than the target latency when it is joined."""
    late_s = max(media.age_s() - live.target_latency_s, 0.0)
    if late_s > MAX_LATE_S:
        raise PlaybackError(
            f"the set-up took {late_s:.1f} s too long: the event is {media.age_s():.1f} s old, and "
            f"was to be joined at {live.target_latency_s:g} s"
        )
    return late_s


@dataclass(frozen=True, slots=True)
class HttpMedia:
    """:class:`Media` over HTTP.

    Attributes:
        http: session with one connection.
        manifest: what is played.
        video: ladder and sizes of the same.
        session_id: CMCD ``sid``.
        limits: longest waits.
    """

    http: aiohttp.ClientSession
    manifest: mpd.Manifest
    video: Video
    session_id: str
    limits: Limits

    @classmethod
    async def open(
        cls, http: aiohttp.ClientSession, url: str, session_id: str, limits: Limits
    ) -> HttpMedia:
        """Loads manifest, size table and initialisation segments; see :func:`play_headless`."""
        told: dict[str, cmcd.Value] = {"sid": session_id, "sf": "d", "st": "v", "su": True}

        async def load(url: str, object_type: str, most_bytes: int) -> bytes:
            target = with_cmcd(url, told | {"ot": object_type})
            return await load_whole(http, target, most_bytes, limits.setup_s)

        manifest = mpd.parse_mpd(await load(url, "m", mpd.MAX_MPD_BYTES), url)
        if manifest.sizes_url is None:
            raise mpd.MpdError(
                f"{url} names no size table, which controllers need: expected a "
                f"SupplementalProperty with schemeIdUri {mpd.SIZES_SCHEME}"
            )
        sizes = await load(manifest.sizes_url, "o", mpd.MAX_SIZES_BYTES)
        name = urlsplit(url).path.rpartition("/")[0].rpartition("/")[2]
        video = mpd.read_sizes(sizes, manifest, name=name)
        for representation in manifest.representations:
            if representation.initialization_url is not None:
                await load(representation.initialization_url, "i", MAX_INIT_BYTES)
        return cls(http, manifest, video, session_id, limits)

    def now(self) -> float:
        """The clock of the event loop."""
        return asyncio.get_running_loop().time()

    async def sleep_until(self, at_s: float) -> None:
        """Sleeps in real time."""
        while (left_s := at_s - self.now()) > 0:  # a timer may fire a clock tick early
            await asyncio.sleep(left_s)

    def age_s(self) -> float:
        """Seconds since the live event began."""
        assert self.manifest.live_start_s is not None  # or nobody would ask
        return time.time() - self.manifest.live_start_s

    async def wait_for_age(self, age_s: float) -> None:
        """Returns when the live event is at least that old."""
        while (left_s := age_s - self.age_s()) > 0:
            await asyncio.sleep(left_s)

    async def fetch(self, command: Fetch, player: Player, goes_on: GoesOn) -> float:
        """Downloads a chunk and drops its bytes.

        Raises:
            PlaybackError: it does not come, not in time, or is not as long as announced.
        """
        url = self.manifest.media_url(command.chunk, command.level)
        target = with_cmcd(url, self._cmcd(command, player))
        where = f"chunk {command.chunk} at level {command.level}"
        tell = goes_on if command.is_watched else None
        if self.manifest.live_start_s is not None:  # the two clocks may drift apart
            await self.wait_for_age(available_s(command.chunk, self.video.chunk_s))
        try:
            async with asyncio.timeout(self.limits.chunk_s), get_ok(self.http, target) as response:
                return await count_body(response, command.size_bytes, tell)
        except TimeoutError as error:
            reason = str(error) or f"not in after {self.limits.chunk_s} s"
            raise PlaybackError(f"{where}: {reason} ({url})", player.chunks) from error
        except (aiohttp.ClientError, OSError) as error:
            raise PlaybackError(f"{where}: {error} ({url})", player.chunks) from error

    def _cmcd(self, command: Fetch, player: Player) -> dict[str, cmcd.Value]:
        ladder, chunks = self.video.levels_kbps, player.chunks
        buffer_ms = player.buffer_s * MILLISECONDS_PER_SECOND
        told: dict[str, cmcd.Value] = {
            "br": ladder[command.level],
            "bl": buffer_ms,
            "cid": cmcd.identifier(self.video.name),
            "d": self.video.chunk_s * MILLISECONDS_PER_SECOND,
            "dl": buffer_ms / player.rate,
            "ot": "v",
            "sf": "d",
            "sid": self.session_id,
            "st": "v" if self.manifest.live_start_s is None else "l",
            "su": player.buffer_s <= 0,
            "tb": ladder[-1],
            "bs": len(chunks) > 1 and chunks[-1].rebuffer_s > 0,
        }
        if player.rate != 1.0:
            told["pr"] = player.rate
        if chunks:
            told["mtp"] = chunks[-1].throughput_kbps
        return told
