"""The emulated driver behind a live event and with requests given up, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest
from loopback import serving, with_content

from player import mpd
from player.abandonment import Abandonment
from player.content import ContentPack, load_pack
from player.headless import PlayedSession, play_headless
from player.live import Live, available_s, live_url
from player.machine import PlayerConfig
from player.media_http import PlaybackError
from player.observation import AbrObservation
from player.server import RequestLogEntry
from player.video import Video, generate_video

CHUNK_S = 1.0
LIVE = Live(target_latency_s=2.0, catch_up=0.1)
#: Enough for the set-up on loopback, on a busy machine as well.
SOON_S = 3.0


@pytest.fixture(scope="module")
def short_video() -> Video:
    """Six chunks of a second."""
    rng = np.random.default_rng(2)
    return generate_video(
        "demo", levels_kbps=(300.0, 750.0, 4300.0), chunk_s=CHUNK_S, rng=rng, chunks=6
    )


async def level_one(_: AbrObservation) -> int:
    return 1


def join(
    video: Video,
    *,
    live: Live | None = LIVE,
    log: list[RequestLogEntry] | None = None,
    pause_s: float = 0.0,
    began: list[float] | None = None,
) -> PlayedSession:
    """Plays an event that is soon as old as the target."""

    async def session() -> PlayedSession:
        async with serving({"demo": with_content(video)}, log) as url:
            starts_s = time.time() + SOON_S - LIVE.target_latency_s

            async def pause() -> None:
                await asyncio.sleep(pause_s)
                if began is not None:
                    began.append(time.time() - starts_s)

            return await play_headless(
                manifest_url=f"{url}/demo/manifest.mpd",
                ask=level_one,
                session_id="s",
                player_config=PlayerConfig(live=live),
                before_start=pause,
                live_start_s=starts_s,
            )

    return asyncio.run(session())


def test_an_event_is_joined_at_the_target_and_followed(short_video: Video) -> None:
    log: list[RequestLogEntry] = []
    began: list[float] = []
    played = join(short_video, log=log, began=began)
    assert began[0] == pytest.approx(LIVE.target_latency_s, abs=0.3)
    assert began[0] >= LIVE.target_latency_s
    media = [entry for entry in log if "chunk-" in entry.path]
    assert [entry.status for entry in media] == [200] * 6
    assert all(entry.path.startswith("/live/start_") for entry in log)
    assert all(entry.cmcd["st"] == "l" for entry in media)
    assert [chunk.index for chunk in played.chunks] == list(range(6))
    for chunk in played.chunks:
        there_s = available_s(chunk.index, CHUNK_S) - LIVE.target_latency_s
        assert chunk.requested_s >= there_s - 0.3  # the session may have begun a little late
        assert chunk.latency_s == pytest.approx(LIVE.target_latency_s, abs=0.5)
    # The last chunk is available when the event is 6 s old, 4 s after it was joined.
    assert played.wall_s == pytest.approx(4.0, abs=0.5)
    assert sum(chunk.wait_s for chunk in played.chunks) > 3.0


def test_a_set_up_that_takes_too_long_is_told(short_video: Video) -> None:
    with pytest.raises(PlaybackError, match=r"set-up took .* s too long: .* joined at 2 s"):
        join(short_video, pause_s=1.0)


def test_a_player_chooses_when_to_join_where_nobody_tells_it(short_video: Video) -> None:
    async def session() -> PlayedSession:
        async with serving({"demo": with_content(short_video)}) as url:
            return await play_headless(
                manifest_url=f"{url}/demo/manifest.mpd",
                ask=level_one,
                session_id="s",
                player_config=PlayerConfig(live=LIVE),
                live_start_s=None,
            )

    played = asyncio.run(session())
    assert len(played.chunks) == 6
    assert played.chunks[0].latency_s == pytest.approx(LIVE.target_latency_s, abs=0.5)


def test_an_event_is_not_played_on_demand(short_video: Video) -> None:
    async def session() -> None:
        async with serving({"demo": with_content(short_video)}) as url:
            event = live_url(f"{url}/demo/manifest.mpd", time.time(), 2.0)
            await play_headless(manifest_url=event, ask=level_one, session_id="s")

    with pytest.raises(mpd.MpdError, match="is dynamic: the player follows"):
        asyncio.run(session())


# ---- requests given up --------------------------------------------------------------------------


class SlowServer:
    """A hand-made server that sends the big level of chunk 1 slowly; ``heard`` is per connection.

    The real one is as fast as its link.
    """

    PIECE_BYTES, PAUSE_S = 4096, 0.05  # 82 kB/s

    def __init__(self, video: Video, pack: ContentPack) -> None:
        self.heard: list[list[str]] = []
        self.sent_bytes = 0  # of the slow one
        self.was_cut_off = asyncio.Event()
        self._video, self._pack = video, pack

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names: list[str] = []
        self.heard.append(names)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
                names.append(target.partition("?")[0].rpartition("/")[2])
                await self._answer(names[-1], writer)
        writer.close()

    async def _answer(self, name: str, writer: asyncio.StreamWriter) -> None:
        match name.removesuffix(".m4s").split("-"):
            case ["m.mpd"]:
                body = mpd.write_mpd(self._video, self._pack)
            case ["sizes.json"]:
                body = mpd.write_sizes(self._video)
            case ["init", _]:
                body = self._pack.init(0)
            case [_, level, number]:
                body = bytes(self._video.sizes_bytes[int(number) - 1][int(level)])
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        if name != "chunk-2-2.m4s":
            writer.write(body)
            return await writer.drain()
        try:
            for begin in range(0, len(body), self.PIECE_BYTES):
                writer.write(body[begin : begin + self.PIECE_BYTES])
                await writer.drain()
                self.sent_bytes += self.PIECE_BYTES
                await asyncio.sleep(self.PAUSE_S)
        except ConnectionError:
            self.was_cut_off.set()
            raise


@pytest.mark.parametrize("abandonment", [Abandonment(), None])
def test_a_request_that_is_given_up_costs_its_connection(
    short_video: Video, abandonment: Abandonment | None
) -> None:
    content = load_pack(short_video.levels_kbps, short_video.chunk_s)
    slow = SlowServer(short_video.first(3), content)

    async def level_two(_: AbrObservation) -> int:
        return 2

    async def session() -> PlayedSession:
        server = await asyncio.start_server(slow.handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            played = await play_headless(
                manifest_url=f"http://127.0.0.1:{port}/demo/m.mpd",
                ask=level_two,
                session_id="s",
                player_config=PlayerConfig(abandonment=abandonment),
            )
            if abandonment is not None:
                await asyncio.wait_for(slow.was_cut_off.wait(), 10.0)
            return played

    played = asyncio.run(session())
    chunk = played.chunks[1]
    if abandonment is None:
        assert [one.level for one in played.chunks] == [0, 2, 2]
        assert len(slow.heard) == 1
        assert chunk.abandoned_level is None
        return
    assert [one.level for one in played.chunks] == [0, 0, 2]
    assert [one.abandoned_level for one in played.chunks] == [None, 2, None]
    first, second = slow.heard
    assert first[-1] == "chunk-2-2.m4s"
    assert second == ["chunk-0-2.m4s", "chunk-2-3.m4s"]
    assert 0 < chunk.abandoned_bytes <= slow.sent_bytes + slow.PIECE_BYTES
    assert chunk.size_bytes == short_video.sizes_bytes[1][0]
    assert chunk.download_s < 1.0
    assert chunk.requested_s > played.chunks[0].requested_s + 0.5  # not within the grace time
