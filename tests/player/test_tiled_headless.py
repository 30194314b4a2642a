"""The emulated driver of the tiled player: parity with the simulated one, and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import math
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from loopback import serving

from player.head_motion import HeadMotion
from player.media_http import Limits, PlaybackError
from player.mpd import MpdError
from player.server import HostedTiledVideo, RequestLogEntry
from player.simulated import DecisionTime
from player.tiled_events import FetchTile, TiledPlayerConfig
from player.tiled_headless import Delivery, PlayedTiledSession, drive_tiled, play_tiled_headless
from player.tiled_link import Finished, SharedLink, SharedLinkModel
from player.tiled_machine import TiledPlayer
from player.tiled_mpd import write_tiled_mpd
from player.tiled_simulated import play_tiled_simulated
from player.tiled_video import TiledVideo, TiledVideoError, generate_tiled_video, write_tile_sizes
from player.tiles import TileGrid
from player.trace import Trace
from player.viewport_observation import (
    SAMPLE_S,
    InvalidViewports,
    Viewport,
    ViewportObservation,
)
from player.viewport_records import TiledChunkRecord


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait, but moves the clock of its loop to the next timer."""

    loop: JumpingLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("the loop would wait for ever")
        if timeout > 0:
            self.loop.clock_s = self.loop.next_timer_s
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop on whose clock nothing takes time but waiting."""

    def __init__(self) -> None:
        self.clock_s = 0.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.clock_s

    @property
    def next_timer_s(self) -> float:
        return float(self._scheduled[0].when())  # type: ignore[attr-defined]


def run_jumping(coroutine: Coroutine[Any, Any, float]) -> float:
    loop = JumpingLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class FakeTiledMedia:
    """A network that a link model computes, on the clock of a jumping loop."""

    def __init__(self, link: SharedLink) -> None:
        self._link = link
        self._waiting: dict[int, asyncio.Future[Delivery]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def fetch(self, command: FetchTile, player: TiledPlayer) -> Delivery:
        self._deliver(self.now())
        self._link.begin(command.connection, command.size_bytes)
        future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._waiting[command.connection] = future
        self._wait_for_next()
        return await future

    def _deliver(self, until_s: float) -> None:
        while (finished := self._link.run(until_s)) is not None:
            self._finish(finished)

    def _finish(self, finished: Finished) -> None:
        delivery = Delivery(finished.first_byte_s, finished.at_s)
        self._waiting.pop(finished.connection).set_result(delivery)

    def _wait_for_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        following = copy.deepcopy(self._link).run(math.inf)
        if following is not None:
            self._timer = asyncio.get_running_loop().call_at(following.at_s, self._on_timer)

    def _on_timer(self) -> None:
        self._deliver(self.now())
        self._wait_for_next()


def tiled_video(chunks: int = 8) -> TiledVideo:
    return generate_tiled_video(
        "demo",
        chunks,
        np.random.default_rng(5),
        grid=TileGrid(4, 8),
        levels_kbps=(400.0, 1200.0, 3000.0, 6000.0),
        chunk_s=1.0,
    )


def wandering(seed: int = 1) -> HeadMotion:
    rng = np.random.default_rng(seed)
    times_s = np.arange(0.0, 15.0, SAMPLE_S)
    steps = rng.laplace(0.0, 7.0, (len(times_s), 3)) * (0.1, 0.4, 1.0)
    roll, pitch, yaw = np.cumsum(steps, axis=0).T
    poses = np.stack([roll % 20, np.clip(pitch, -80, 80), (yaw + 180) % 360 - 180], axis=1)
    return HeadMotion("video01/user01", times_s, poses)


def static(observation: ViewportObservation) -> tuple[Viewport, ...]:
    return (Viewport(*observation.history[-1]),) * observation.horizon


async def ask_static(observation: ViewportObservation) -> tuple[Viewport, ...]:
    return static(observation)


def assert_alike(one: TiledChunkRecord, other: TiledChunkRecord) -> None:
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, float):
            assert left == pytest.approx(right, rel=1e-6, abs=1e-6), field.name
        else:
            assert left == right, field.name


@pytest.mark.parametrize("missing", ["blank", "stall"])
@pytest.mark.parametrize("thinking_s", [0.0, 0.125])
@pytest.mark.parametrize(("base", "delay_s"), [("seen", 0.0), ("all", 0.03)])
def test_both_drivers_over_the_same_network_give_equal_sessions(
    missing: Any, thinking_s: float, base: Any, delay_s: float
) -> None:
    rng = np.random.default_rng(11)
    trace = Trace("t", np.arange(20.0), rng.lognormal(0.0, 0.8, size=20))
    model = SharedLinkModel.tcp(trace, delay_s)
    config = TiledPlayerConfig(missing=missing, base=base, least_share=1e-3)
    simulated = TiledPlayer(tiled_video(), wandering(), config)
    simulated_s = play_tiled_simulated(
        simulated,
        model,
        static,
        start_s=3.0,
        decision_time=DecisionTime(network_s=thinking_s),
    )
    driven = TiledPlayer(tiled_video(), wandering(), config)
    told: list[TiledChunkRecord] = []

    async def ask(observation: ViewportObservation) -> tuple[Viewport, ...]:
        if thinking_s > 0:
            await asyncio.sleep(thinking_s)
        return static(observation)

    async def session() -> float:
        media = FakeTiledMedia(SharedLink(model, driven.connections, start_s=3.0))
        return await drive_tiled(driven, media, ask, on_chunk=told.append)

    driven_s = run_jumping(session())
    assert driven_s == pytest.approx(simulated_s, abs=1e-6)
    assert tuple(told) == driven.chunks
    assert len(driven.chunks) == len(simulated.chunks) == 8
    for one, other in zip(driven.chunks, simulated.chunks, strict=True):
        assert_alike(one, other)
    assert driven.decisions_s == pytest.approx(simulated.decisions_s, abs=1e-6)
    assert driven.errors.mae_deg == pytest.approx(simulated.errors.mae_deg)
    if base == "seen":
        assert any(chunk.late_tiles for chunk in driven.chunks)
        assert missing == "blank" or any(chunk.stall_s > 0 for chunk in driven.chunks[1:])


@contextlib.asynccontextmanager
async def tile_server(
    log: list[RequestLogEntry] | None = None, video: TiledVideo | None = None
) -> AsyncIterator[str]:
    async with serving({"demo": HostedTiledVideo(video or tiled_video(3))}, log) as url:
        yield f"{url}/demo/manifest.mpd"


def play(log: list[RequestLogEntry] | None = None, **settings: Any) -> PlayedTiledSession:
    async def session() -> PlayedTiledSession:
        async with tile_server(log) as url:
            usual: dict[str, Any] = {"motion": wandering(), "ask": ask_static, "session_id": "s 1"}
            return await play_tiled_headless(manifest_url=url, **(usual | settings))

    return asyncio.run(session())


def test_session_over_real_sockets() -> None:
    log: list[RequestLogEntry] = []
    players: list[TiledPlayer] = []
    told: list[TiledChunkRecord] = []
    started: list[int] = []

    async def before_start() -> None:
        started.append(len(log))

    played = play(log, on_player=players.append, on_chunk=told.append, before_start=before_start)
    player = played.player
    assert players == [player]
    assert tuple(told) == player.chunks
    assert player.video == tiled_video(3)
    assert [chunk.index for chunk in player.chunks] == [0, 1, 2]
    assert player.startup_s is not None
    assert player.startup_s > 0
    assert played.wall_s == pytest.approx(3.0 + sum(c.stall_s for c in player.chunks), abs=0.05)
    assert player.errors.mae_deg is not None
    assert player.fallbacks == 0
    # Manifest, size table, and the three other connections come before the clock.
    assert [entry.method for entry in log[: started[0]]] == ["GET", "GET", "HEAD", "HEAD", "HEAD"]
    tiles = log[started[0] :]
    assert all(entry.path.startswith("/demo/tile-") for entry in tiles)
    assert sum(e.bytes_sent for e in tiles if not e.aborted) >= player.downloaded_bytes > 0
    parts = [(entry.path.partition("?")[0], entry.range) for entry in tiles]
    assert len(set(parts)) == len(parts)
    assert {entry.status for entry in tiles} <= {200, 206}
    assert not any(entry.cmcd_errors for entry in log)
    assert {entry.cmcd["sid"] for entry in log} == {"s 1"}
    assert tiles[0].cmcd["su"] is True
    assert tiles[0].cmcd["ot"] == "v"
    assert "mtp" in tiles[-1].cmcd


def test_tiles_come_in_pieces_over_real_sockets() -> None:
    log: list[RequestLogEntry] = []
    player = play(log, player_config=TiledPlayerConfig(piece_s=1e-9)).player
    pieces = [entry for entry in log if entry.status == 206]
    assert pieces
    assert all(entry.range is not None for entry in pieces)
    assert sum(entry.bytes_sent for entry in log[5:]) >= player.downloaded_bytes > 0
    assert max(level for chunk in player.chunks for level in chunk.final_levels) > 0


def test_only_the_first_chunks_on_one_connection() -> None:
    log: list[RequestLogEntry] = []
    played = play(log, chunks=1, player_config=TiledPlayerConfig(connections=1))
    assert len(played.player.chunks) == 1
    assert [entry.method for entry in log[:3]] == ["GET", "GET", "GET"]
    with pytest.raises(TiledVideoError):
        play(chunks=4)


@pytest.mark.parametrize("failure", [ConnectionError("gone"), TimeoutError(), None])
def test_the_fallback_decides_when_the_controller_is_unavailable(
    failure: Exception | None,
) -> None:
    async def ask(observation: ViewportObservation) -> tuple[Viewport, ...]:
        if failure is None:
            await asyncio.sleep(30)
        raise failure or AssertionError

    limits = Limits(decision_s=0.1)
    played = play(ask=ask, fallback=static, limits=limits, chunks=1)
    assert played.player.fallbacks == len(played.player.decisions_s) >= 1
    assert played.player.chunks[0].fallback
    assert played.player.errors.mae_deg is None
    assert failure is not None or played.player.chunks[0].decision_s >= 0.09
    with pytest.raises((ConnectionError, TimeoutError)):
        play(ask=ask, limits=limits)


def test_what_is_no_answer_ends_the_session() -> None:
    async def ask(observation: ViewportObservation) -> Any:
        return static(observation)[1:]

    players: list[TiledPlayer] = []
    with pytest.raises(InvalidViewports, match="20 viewports, not 19"):
        play(ask=ask, fallback=static, on_player=players.append)
    assert players[0].chunks == ()


def response(body: bytes, *, announced: int | None = None) -> bytes:
    length = len(body) if announced is None else announced
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + body


def play_against(tile: Callable[[int], bytes], **settings: Any) -> PlayedTiledSession:
    """Plays against a server whose tiles are whole responses made from the right size."""
    video = tiled_video(2)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).split()
                name = head[1].decode().partition("?")[0].rpartition("/")[2]
                if head[0] == b"HEAD":
                    writer.write(response(b"", announced=1))
                elif name == "m.mpd":
                    writer.write(response(write_tiled_mpd(video)))
                elif name == "sizes.json":
                    writer.write(response(write_tile_sizes(video)))
                else:
                    number, level, index = map(int, name.removesuffix(".m4s").split("-")[1:])
                    body = tile(video.sizes_bytes[index - 1][number][level])
                    writer.write(body)
                    await writer.drain()
                    if len(body) < 1000:
                        break
                await writer.drain()
        writer.close()

    async def session() -> PlayedTiledSession:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await play_tiled_headless(
                manifest_url=f"http://127.0.0.1:{port}/demo/m.mpd",
                motion=wandering(),
                ask=ask_static,
                session_id="s",
                **settings,
            )
        finally:
            server.close()

    return asyncio.run(session())


def test_a_plain_server_will_do() -> None:
    whole = TiledPlayerConfig(piece_s=None)
    played = play_against(lambda size: response(bytes(size)), player_config=whole)
    assert len(played.player.chunks) == 2
    assert played.player.downloaded_bytes > 0


def test_a_server_without_byte_ranges_will_not_do_for_pieces() -> None:
    with pytest.raises(PlaybackError, match=r"answers 200 OK to a byte range"):
        play_against(
            lambda size: response(bytes(size)), player_config=TiledPlayerConfig(piece_s=1e-9)
        )


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (lambda size: response(b"xy"), "2 bytes, .* in the size table"),
        (lambda size: response(b"xy", announced=size), "tile .* of chunk 0 at level 0"),
        (lambda size: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answers 404"),
        (lambda size: b"garbage\r\n\r\n", "tile .* of chunk 0 at level 0"),
        (lambda size: b"", "tile .* of chunk 0 at level 0"),
    ],
)
def test_wrong_tiles_end_the_session(tile: Callable[[int], bytes], message: str) -> None:
    with pytest.raises(PlaybackError, match=message):
        play_against(tile)


def test_a_tile_that_never_comes_is_given_up() -> None:
    endless = b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000
    with pytest.raises(PlaybackError, match=r"not in after 0\.3 s"):
        play_against(lambda size: endless, limits=Limits(chunk_s=0.3))


def test_no_server_at_all() -> None:
    session = play_tiled_headless(
        manifest_url="http://127.0.0.1:9/demo/manifest.mpd",
        motion=wandering(),
        ask=ask_static,
        session_id="s",
    )
    with pytest.raises(PlaybackError, match=r"127\.0\.0\.1:9"):
        asyncio.run(session)


def test_what_is_no_tiled_manifest() -> None:
    async def session() -> None:
        async with tile_server() as url:
            await play_tiled_headless(
                manifest_url=url.replace("manifest.mpd", "sizes.json"),
                motion=wandering(),
                ask=ask_static,
                session_id="s",
            )

    with pytest.raises(MpdError, match="not XML"):
        asyncio.run(session())
