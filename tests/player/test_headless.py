"""The emulated driver: parity with the simulated one, real sockets, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from player import mpd
from player.abandonment import Abandonment
from player.content import ContentPack
from player.headless import GoesOn, PlayedSession, drive, play_headless
from player.link_models import LinkModel, PensieveLink, TcpLink
from player.live import Live
from player.machine import Fetch, InvalidDecision, Player, PlayerConfig
from player.media_http import Limits, PlaybackError
from player.observation import AbrObservation
from player.records import ChunkRecord
from player.server import RequestLogEntry
from player.simulated import DecisionTime, Moment, give_up, parts_of, play_simulated
from player.trace import Trace
from player.video import Video, VideoFormatError, generate_video

RunningServer = Callable[..., contextlib.AbstractAsyncContextManager[str]]
Levels = Callable[[AbrObservation], int]


def climb(observation: AbrObservation) -> int:
    return observation.chunk_index % observation.levels


def buffer_based(observation: AbrObservation) -> int:
    return min(int(observation.buffer_s / 5), observation.levels - 1)


class FakeMedia:
    """A network that a link model computes, with a clock that only moves when told."""

    def __init__(self, link: LinkModel, start_s: float) -> None:
        self.clock_s = 0.0
        self._link = link
        self._position_s = start_s
        self._last_byte_s = float("-inf")

    def now(self) -> float:
        return self.clock_s

    def think(self, seconds: float) -> None:
        self.clock_s += seconds
        self._position_s += seconds

    async def sleep_until(self, at_s: float) -> None:
        self._position_s += at_s - self.clock_s
        self.clock_s = at_s

    async def fetch(self, command: Fetch, player: Player, goes_on: GoesOn) -> float:
        idle_s, begin = self.clock_s - self._last_byte_s, Moment(self.clock_s, self._position_s)
        if command.is_watched:
            parts = parts_of(self._link, command.size_bytes, begin.position_s, idle_s)
            for part in parts:
                told_s = begin.now_s + part.after_s
                if not goes_on(part.received_bytes, told_s):
                    self.clock_s, self._position_s = give_up(self._link, part, begin, idle_s)
                    self._last_byte_s = float("-inf")
                    return told_s
        outcome = self._link.download(command.size_bytes, self._position_s, idle_s=idle_s)
        self.clock_s += float(outcome.download_s)
        self._position_s += float(outcome.moved_s)
        self._last_byte_s = self.clock_s
        return self.clock_s


@pytest.mark.parametrize("model", [PensieveLink, lambda trace: TcpLink(trace, delay_s=0.04)])
def test_both_drivers_give_up_the_same_chunks_of_an_event(
    model: Callable[[Trace], LinkModel],
) -> None:
    video = generate_video("parity", chunks=30, rng=np.random.default_rng(11))
    trace = Trace("t", np.array([0.0, 20.0, 40.0]), np.array([6.0, 6.0, 0.7]))
    config = PlayerConfig(live=Live(target_latency_s=9.0), abandonment=Abandonment())
    simulated, driven = Player(video, config), Player(video, config)
    simulated_s = play_simulated(simulated, model(trace), lambda _: 4)
    media = FakeMedia(model(trace), start_s=0.0)

    async def ask(_: AbrObservation) -> int:
        return 4

    driven_s = asyncio.run(drive(driven, media, ask))
    assert driven.chunks == simulated.chunks
    assert driven_s == simulated_s
    assert {chunk.abandoned_level for chunk in driven.chunks} == {None, 4}


@pytest.mark.parametrize("choose", [climb, buffer_based])
@pytest.mark.parametrize("thinking_s", [0.0, 0.125])
@pytest.mark.parametrize("model", [PensieveLink, TcpLink])
def test_both_drivers_over_the_same_network_give_equal_sessions(
    choose: Levels, thinking_s: float, model: Callable[[Trace], LinkModel]
) -> None:
    rng = np.random.default_rng(11)
    video = generate_video("parity", chunks=30, rng=rng)
    trace = Trace("t", np.arange(60.0), rng.lognormal(0.7, 0.7, size=60))
    config = PlayerConfig(buffer_cap_s=20.0, first_level=None)
    simulated = Player(video, config)
    simulated_s = play_simulated(
        simulated,
        model(trace),
        choose,
        start_s=3.0,
        decision_time=DecisionTime(network_s=thinking_s),
    )
    media = FakeMedia(model(trace), start_s=3.0)
    told: list[ChunkRecord] = []

    async def ask(observation: AbrObservation) -> int:
        media.think(thinking_s)
        return choose(observation)

    driven = Player(video, config)
    driven_s = asyncio.run(drive(driven, media, ask, on_chunk=told.append))
    assert driven.chunks == simulated.chunks == tuple(told)
    assert driven_s == simulated_s
    assert any(chunk.wait_s > 0 for chunk in driven.chunks)
    assert choose is not climb or any(chunk.rebuffer_s > 0 for chunk in driven.chunks[1:])


def play(
    running_server: RunningServer,
    *,
    choose: Levels = climb,
    log: list[RequestLogEntry] | None = None,
    video: Video | None = None,
    path: str = "/demo/manifest.mpd",
    chunks: int | None = None,
    player_config: PlayerConfig | None = None,
    on_chunk: Callable[[ChunkRecord], None] | None = None,
) -> PlayedSession:
    async def ask(observation: AbrObservation) -> int:
        return choose(observation)

    async def session() -> PlayedSession:
        async with running_server(log, video) as url:
            return await play_headless(
                manifest_url=url + path,
                ask=ask,
                session_id="s 1",
                player_config=player_config,
                chunks=chunks,
                on_chunk=on_chunk,
            )

    return asyncio.run(session())


def test_session_over_real_sockets(running_server: RunningServer, small_video: Video) -> None:
    log: list[RequestLogEntry] = []
    played = play(running_server, log=log)
    assert played.video == small_video
    assert [chunk.level for chunk in played.chunks] == [0, 1, 2, 3, 4, 5]
    assert played.fallbacks == 0
    assert played.startup_s == played.chunks[0].rebuffer_s > 0
    for chunk in played.chunks:
        assert chunk.size_bytes == small_video.sizes_bytes[chunk.index][chunk.level]
        assert 0 < chunk.download_s < 2
    paths = [entry.path for entry in log]
    inits = [f"/demo/{mpd.init_name(level)}" for level in range(6)]
    media = [f"/demo/{mpd.media_name(chunk, chunk)}" for chunk in range(6)]
    assert paths == ["/demo/manifest.mpd", "/demo/sizes.json", *inits, *media]
    assert not any(entry.cmcd_errors for entry in log)
    assert {entry.cmcd["sid"] for entry in log} == {"s 1"}
    assert [entry.cmcd["br"] for entry in log[-6:]] == [300, 750, 1200, 1850, 2850, 4300]
    assert log[-6].cmcd.get("su") is True
    assert "su" not in log[-1].cmcd
    assert log[-1].cmcd["bl"] >= 15_000


def test_session_is_plausible_beside_the_simulated_one(
    running_server: RunningServer, small_video: Video
) -> None:
    config = PlayerConfig(buffer_cap_s=9.5)
    played = play(running_server, choose=buffer_based, chunks=3, player_config=config)
    fast = TcpLink(Trace("fast", np.array([0.0, 1.0]), np.array([2000.0, 2000.0])))
    simulated = Player(small_video.first(3), config)
    simulated_s = play_simulated(simulated, fast, buffer_based)
    assert [chunk.level for chunk in played.chunks] == [chunk.level for chunk in simulated.chunks]
    for real, model in zip(played.chunks, simulated.chunks, strict=True):
        assert real.buffer_s == pytest.approx(model.buffer_s, abs=0.6)
    assert played.wall_s == pytest.approx(simulated_s, abs=0.6)


def test_buffer_cap_is_waited_out_in_real_time(running_server: RunningServer) -> None:
    played = play(running_server, chunks=3, player_config=PlayerConfig(buffer_cap_s=7.6))
    waits = [chunk.wait_s for chunk in played.chunks]
    assert waits[0] == 0
    assert waits[1] == 0.5
    assert played.wall_s >= 0.5


def test_one_connection_serves_the_whole_session(small_video: Video, pack: ContentPack) -> None:
    connections = 0

    async def session() -> None:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await respond_like_a_server(reader, writer, small_video, pack)

        async with serving(forward) as url:
            await play_headless(manifest_url=f"{url}/demo/m.mpd", ask=level_one, session_id="s")

    asyncio.run(session())
    assert connections == 1


async def level_one(_: AbrObservation) -> int:
    return 1


@contextlib.asynccontextmanager
async def serving(handle):  # type: ignore[no-untyped-def]
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def plain(body: bytes, *, announced: int | None = None) -> bytes:
    length = len(body) if announced is None else announced
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + body


async def respond_like_a_server(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    video: Video,
    pack: ContentPack,
    *,
    last_chunk: bytes | None = None,
    hang: bool = False,
) -> None:
    """A hand-made server whose third chunk is ``last_chunk`` (a whole response)."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().partition("?")[0]
            name = target.rpartition("/")[2]
            if name == "m.mpd":
                writer.write(plain(mpd.write_mpd(video, pack)))
            elif name == "sizes.json":
                writer.write(plain(mpd.write_sizes(video)))
            elif name.startswith("init"):
                writer.write(plain(pack.init(0)))
            else:
                level, number = map(int, name.removesuffix(".m4s").split("-")[1:])
                if number == 3 and (hang or last_chunk is not None):
                    writer.write(last_chunk or b"")
                    await writer.drain()
                    if hang:
                        await asyncio.sleep(30)
                    break
                size_bytes = video.sizes_bytes[number - 1][level]
                writer.write(plain(bytes(size_bytes)))
            await writer.drain()
    writer.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("last_chunk", "message"),
    [
        (plain(b"xy"), "2 bytes, .* in the size table"),
        (plain(bytes(10_000_000)), "10000000 bytes, .* in the size table"),
        (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", "ended after 3 of"),
        (CHUNKED + b"F00000\r\n" + bytes(0xF00000) + b"\r\n0\r\n\r\n", "more than the"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "the server answers 404"),
        (b"garbage\r\n\r\n", "chunk 2 at level 1"),
        (b"", "chunk 2 at level 1"),
    ],
)
def test_wrong_answers_end_the_session_and_keep_what_was_finished(
    small_video: Video, pack: ContentPack, last_chunk: bytes, message: str
) -> None:
    async def session() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await respond_like_a_server(reader, writer, small_video, pack, last_chunk=last_chunk)

        async with serving(handle) as url:
            await play_headless(manifest_url=f"{url}/demo/m.mpd", ask=level_one, session_id="s")

    with pytest.raises(PlaybackError, match=message) as caught:
        asyncio.run(session())
    assert [chunk.index for chunk in caught.value.chunks] == [0, 1]


def test_truncated_body_ends_the_session(small_video: Video, pack: ContentPack) -> None:
    async def session() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            size_bytes = small_video.sizes_bytes[2][1]
            torn = plain(b"x" * 1000, announced=size_bytes)
            await respond_like_a_server(reader, writer, small_video, pack, last_chunk=torn)

        async with serving(handle) as url:
            await play_headless(manifest_url=f"{url}/demo/m.mpd", ask=level_one, session_id="s")

    with pytest.raises(PlaybackError) as caught:
        asyncio.run(session())
    assert len(caught.value.chunks) == 2


def test_chunk_that_never_comes_is_given_up(small_video: Video, pack: ContentPack) -> None:
    async def session() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await respond_like_a_server(reader, writer, small_video, pack, hang=True)

        async with serving(handle) as url:
            await play_headless(
                manifest_url=f"{url}/demo/m.mpd",
                ask=level_one,
                session_id="s",
                limits=Limits(chunk_s=0.5),
            )

    with pytest.raises(PlaybackError, match=r"chunk 2 at level 1: not in after 0\.5 s") as caught:
        asyncio.run(session())
    assert len(caught.value.chunks) == 2


SERVER_PROGRAM = """
import asyncio, sys
import numpy as np
from player.content import load_pack
from player.server import HostedVideo, serve
from player.video import generate_video

video = generate_video("demo", chunks=6, rng=np.random.default_rng(2))
hosted = HostedVideo(video, load_pack(video.levels_kbps, video.chunk_s))
ready = lambda urls: print(urls[0], flush=True)
asyncio.run(serve({"demo": hosted}, address=("127.0.0.1", 0), ready=ready))
"""


def test_server_killed_in_mid_session() -> None:
    command = [sys.executable, "-c", SERVER_PROGRAM]
    root = Path(__file__).parent.parent.parent
    told: list[ChunkRecord] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()

        async def ask(observation: AbrObservation) -> int:
            if observation.chunk_index == 3:
                os.kill(server.pid, signal.SIGKILL)
                server.wait()
            return 0

        with pytest.raises(PlaybackError, match="chunk 3 at level 0") as caught:
            asyncio.run(
                play_headless(
                    manifest_url=f"{url}/demo/manifest.mpd",
                    ask=ask,
                    session_id="s",
                    on_chunk=told.append,
                )
            )
    assert [chunk.index for chunk in caught.value.chunks] == [0, 1, 2]
    assert tuple(told) == caught.value.chunks


def test_no_server_at_all() -> None:
    session = play_headless(
        manifest_url="http://127.0.0.1:9/demo/manifest.mpd", ask=level_one, session_id="s"
    )
    with pytest.raises(PlaybackError, match=r"127\.0\.0\.1:9"):
        asyncio.run(session)


def test_what_is_no_manifest(running_server: RunningServer) -> None:
    with pytest.raises(mpd.MpdError, match="not XML"):
        play(running_server, path="/demo/sizes.json")
    with pytest.raises(PlaybackError, match="answers 404"):
        play(running_server, path="/other/manifest.mpd")
    with pytest.raises(VideoFormatError, match="6 chunks, asked for 7"):
        play(running_server, chunks=7)


def test_manifest_without_sizes_is_refused(small_video: Video, pack: ContentPack) -> None:
    text = mpd.write_mpd(small_video, pack).replace(b"SupplementalProperty", b"EssentialProperty")

    async def session() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(plain(text))
            writer.close()

        async with serving(handle) as url:
            await play_headless(manifest_url=url, ask=level_one, session_id="s")

    with pytest.raises(mpd.MpdError, match="size table"):
        asyncio.run(session())


def test_level_off_the_ladder_is_the_controllers_fault(running_server: RunningServer) -> None:
    told: list[ChunkRecord] = []
    with pytest.raises(InvalidDecision, match="level 6"):
        play(running_server, choose=lambda _: 6, on_chunk=told.append)
    assert len(told) == 1


class Unavailable(ConnectionError):
    pass


@pytest.mark.parametrize("failure", [Unavailable("gone"), TimeoutError(), None])
def test_fallback_decides_and_is_counted(
    running_server: RunningServer, failure: Exception | None
) -> None:
    async def ask(observation: AbrObservation) -> int:
        if observation.chunk_index % 2:
            return 5
        if failure is None:
            await asyncio.sleep(30)
        raise failure or AssertionError

    async def session(fallback: Levels | None) -> PlayedSession:
        async with running_server() as url:
            return await play_headless(
                manifest_url=f"{url}/demo/manifest.mpd",
                ask=ask,
                session_id="s",
                fallback=fallback,
                limits=Limits(decision_s=0.3),
            )

    played = asyncio.run(session(lambda _: 2))
    assert [chunk.level for chunk in played.chunks] == [0, 5, 2, 5, 2, 5]
    assert [chunk.index for chunk in played.chunks if chunk.fallback] == [2, 4]
    assert played.fallbacks == 2
    if failure is None:
        assert played.chunks[2].decision_s >= 0.25
    with pytest.raises((ConnectionError, TimeoutError)):
        asyncio.run(session(None))


def test_before_start_comes_before_the_clock(running_server: RunningServer) -> None:
    async def session() -> PlayedSession:
        async def pause() -> None:
            await asyncio.sleep(0.4)

        async with running_server() as url:
            return await play_headless(
                manifest_url=f"{url}/demo/manifest.mpd",
                ask=level_one,
                session_id="é" * 100,
                chunks=1,
                before_start=pause,
            )

    played = asyncio.run(session())
    assert played.wall_s < 0.4
    assert dataclasses.asdict(played.chunks[0])["index"] == 0
