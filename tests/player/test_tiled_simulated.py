"""Simulated tiled sessions: closed forms, and what holds in every session."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from player.head_motion import HeadMotion, read_head_motion
from player.machine import Started
from player.simulated import DecisionTime
from player.tile_allocation import MISSING
from player.tiled_events import FetchTile, TileArrived, TiledPlayerConfig, TiledState
from player.tiled_link import SharedLinkModel
from player.tiled_machine import TiledPlayer
from player.tiled_simulated import TiledDeadlock, play_tiled_simulated
from player.tiled_video import TiledVideo, generate_tiled_video
from player.tiles import TileGrid
from player.trace import Trace
from player.viewport_observation import SAMPLE_S, Viewport, ViewportObservation

LEVELS_KBPS = (400.0, 1200.0, 3000.0, 6000.0)


def video(chunks: int = 10, *, seed: int = 0) -> TiledVideo:
    return generate_tiled_video(
        "demo",
        chunks,
        np.random.default_rng(seed),
        grid=TileGrid(4, 8),
        levels_kbps=LEVELS_KBPS,
        chunk_s=1.0,
    )


def wandering(seed: int, *, sigma_deg: float = 6.0, seconds: float = 15.0) -> HeadMotion:
    rng = np.random.default_rng(seed)
    times_s = np.arange(0.0, seconds, SAMPLE_S)
    steps = rng.laplace(0.0, sigma_deg, (len(times_s), 3)) * (0.1, 0.4, 1.0)
    roll, pitch, yaw = np.cumsum(steps, axis=0).T
    poses = np.stack([roll % 20, np.clip(pitch, -80, 80), (yaw + 180) % 360 - 180], axis=1)
    return HeadMotion("video01/user01", times_s, poses)


def flat(rate_mbps: float) -> Trace:
    return Trace("flat", np.array([0.0, 100.0]), np.array([rate_mbps, rate_mbps]))


def static(observation: ViewportObservation) -> tuple[Viewport, ...]:
    return (Viewport(*observation.history[-1]),) * observation.horizon


class Oracle:
    """Knows the recording and is certain."""

    def __init__(self, motion: HeadMotion) -> None:
        self._motion = motion

    def __call__(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        steps = np.arange(1, observation.horizon + 1)
        poses = self._motion.at(observation.media_time_s + SAMPLE_S * steps)
        return tuple(Viewport(*pose, 0.0, 0.0, 0.0) for pose in poses.tolist())


@pytest.mark.parametrize("missing", ["blank", "stall"])
def test_with_an_oracle_and_any_bandwidth_there_is_nothing_but_the_top_level(missing: Any) -> None:
    motion = wandering(1)
    config = TiledPlayerConfig(missing=missing, base="all", least_share=1e-3)
    player = TiledPlayer(video(), motion, config)
    wall_s = play_tiled_simulated(
        player, SharedLinkModel(trace=flat(1e5), rtt_s=0.0), Oracle(motion)
    )
    assert player.errors.mae_deg == pytest.approx(0.0, abs=1e-9)
    assert wall_s == pytest.approx(10.0, abs=0.01)
    for chunk in player.chunks:
        assert chunk.blank_ratio == 0.0
        assert MISSING not in chunk.levels
    for chunk in player.chunks[3:]:  # until then the link was not known
        assert chunk.viewport_level == pytest.approx(3.0, abs=0.02)
        assert chunk.viewport_bitrate_kbps == pytest.approx(6000.0, rel=0.01)


def test_with_no_bandwidth_to_speak_of_all_is_blank() -> None:
    player = TiledPlayer(video(), wandering(1))
    play_tiled_simulated(player, SharedLinkModel(trace=flat(0.002), rtt_s=0.04), static)
    later = player.chunks[1:]
    assert len(later) == 9
    assert np.mean([chunk.blank_ratio for chunk in later]) > 0.97
    assert all(chunk.stall_s == 0.0 for chunk in later)
    assert player.startup_s is not None
    assert player.startup_s > 10.0


def test_a_base_that_comes_first_leaves_less_blank_when_the_link_drops() -> None:
    motion = wandering(1)
    drops = Trace("drops", np.array([0.0, 3.0, 3.1, 100.0]), np.array([6.0, 6.0, 0.3, 0.3]))
    blank, asked = {}, {}
    for base_first in (False, True):
        player = TiledPlayer(video(), motion, TiledPlayerConfig(base_first=base_first))
        play_tiled_simulated(player, SharedLinkModel(trace=drops, rtt_s=0.04), Oracle(motion))
        blank[base_first] = sum(chunk.blank_ratio for chunk in player.chunks)
        asked[base_first] = sum(chunk.replaced_tiles for chunk in player.chunks)
    assert 0 < blank[True] < blank[False]
    assert asked[True] > asked[False]


def test_pieces_leave_less_blank_when_the_link_drops() -> None:
    motion = wandering(1)
    drops = Trace("drops", np.array([0.0, 3.0, 3.1, 100.0]), np.array([1.5, 1.5, 0.3, 0.3]))
    blank: dict[float | None, float] = {}
    for piece_s in (None, 0.1):
        player = TiledPlayer(video(), motion, TiledPlayerConfig(piece_s=piece_s))
        play_tiled_simulated(player, SharedLinkModel(trace=drops, rtt_s=0.04), Oracle(motion))
        blank[piece_s] = sum(chunk.blank_ratio for chunk in player.chunks)
    assert 0 < blank[0.1] < 0.5 * blank[None]


def test_or_the_player_waits_for_as_long_as_it_takes() -> None:
    player = TiledPlayer(video(3), wandering(1), TiledPlayerConfig(missing="stall"))
    wall_s = play_tiled_simulated(player, SharedLinkModel(trace=flat(0.01), rtt_s=0.04), static)
    assert all(chunk.blank_ratio < 0.02 for chunk in player.chunks)  # slivers do not stall
    stalled_s = sum(chunk.stall_s for chunk in player.chunks)
    assert wall_s == pytest.approx(3.0 + stalled_s)
    assert stalled_s > 5.0


def test_base_tiles_at_a_constant_rate_start_playback_after_size_over_rate() -> None:
    sizes = ((5000, 20_000),) * 8
    small = TiledVideo("v", TileGrid(2, 4), (320.0, 1280.0), 1.0, (sizes,) * 3)
    player = TiledPlayer(small, wandering(1), TiledPlayerConfig(base="all", piece_s=None))
    play_tiled_simulated(player, SharedLinkModel(trace=flat(1.0), rtt_s=0.0), static)
    assert player.startup_s == pytest.approx(8 * 5000 * 8 / 1e6)


def test_thinking_time_is_playback_time_and_downloads_go_on_meanwhile() -> None:
    motion = wandering(2)
    link = SharedLinkModel.tcp(flat(3.0), 0.02)
    config = TiledPlayerConfig(least_share=1e-3)  # of which the first chunk keeps the link busy
    players = [TiledPlayer(video(), motion, config) for _ in range(2)]
    free_s = play_tiled_simulated(players[0], link, static)
    cost = DecisionTime(compute_s=0.1, network_s=0.05)
    slow_s = play_tiled_simulated(players[1], link, static, decision_time=cost)
    assert slow_s == pytest.approx(free_s + 0.15)  # only the start waits for the controller
    assert players[1].decisions_s == pytest.approx([0.15] * len(players[1].decisions_s))
    measured = TiledPlayer(video(), motion)
    cost = DecisionTime(compute_s=None)
    play_tiled_simulated(measured, link, static, decision_time=cost)
    assert all(taken_s > 0 for taken_s in measured.decisions_s)


def test_more_bandwidth_and_better_predictions_show_more() -> None:
    motion = wandering(3, sigma_deg=9.0)
    shown = {}
    for rate_mbps in (0.5, 2.0, 8.0):
        for name, decide in (("static", static), ("oracle", Oracle(motion))):
            player = TiledPlayer(video(), motion)
            link = SharedLinkModel.tcp(flat(rate_mbps), 0.02)
            play_tiled_simulated(player, link, decide)
            shown[rate_mbps, name] = float(np.mean([c.viewport_level for c in player.chunks]))
    for name in ("static", "oracle"):
        assert shown[0.5, name] < shown[2.0, name] < shown[8.0, name]
    for rate_mbps in (0.5, 2.0, 8.0):
        assert shown[rate_mbps, "static"] < shown[rate_mbps, "oracle"]


def test_a_player_that_waits_for_nothing_is_found_out() -> None:
    class Mute(TiledPlayer):
        def handle(self, event: Any, *, now: float) -> Any:
            return ()

    with pytest.raises(TiledDeadlock):
        play_tiled_simulated(Mute(video(), wandering(1)), SharedLinkModel.tcp(flat(1.0)), static)


class Watched(TiledPlayer):
    """Checks what holds at every event."""

    fetched = 0
    arrived_bytes = 0

    def handle(self, event: Any, *, now: float) -> Any:
        if isinstance(event, Started):
            self.open: dict[int, FetchTile] = {}
            self.asked_bytes: Counter[tuple[int, int, int]] = Counter()
            self.playing: tuple[int, tuple[int, ...]] | None = None
        if isinstance(event, TileArrived):
            self.arrived_bytes += self.open.pop(event.connection).size_bytes
        commands = super().handle(event, now=now)
        for command in commands:
            if isinstance(command, FetchTile):
                assert command.connection not in self.open
                self.check_piece(command)
                self.open[command.connection] = command
                self.fetched += 1
        assert len(self.open) <= self.connections
        wanted = Counter((one.chunk, one.tile) for one in self.open.values())
        assert self._config.piece_s is not None or set(wanted.values()) <= {1}
        self.check_levels()
        return commands

    def check_piece(self, command: FetchTile) -> None:
        """The pieces of a tile follow one another to its end."""
        key = command.chunk, command.tile, command.level
        assert command.first_byte == self.asked_bytes[key]
        self.asked_bytes[key] += command.size_bytes
        whole_bytes = self.video.sizes_bytes[command.chunk][command.tile][command.level]
        assert 0 < command.size_bytes <= self.asked_bytes[key] <= whole_bytes
        assert self._config.piece_s is not None or command.size_bytes == whole_bytes

    def check_levels(self) -> None:
        if self.state is not TiledState.PLAYING:
            return
        chunk = self._tick // self._ticks
        levels = tuple(self._accounts[chunk].levels)
        if self.playing is not None and self.playing[0] == chunk:
            before = self.playing[1]
            assert all(new >= old for new, old in zip(levels, before, strict=True))
        self.playing = (chunk, levels)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rates=st.lists(st.sampled_from([0.0, 0.02, 0.3, 1.0, 4.0, 30.0]), min_size=3, max_size=8),
    missing=st.sampled_from(["blank", "stall"]),
    base=st.sampled_from(["seen", "all"]),
    connections=st.integers(1, 6),
    thinking_s=st.sampled_from([0.0, 0.07, 0.4, 3.0]),
    refresh_s=st.sampled_from([None, 0.2, 0.4]),
    piece_s=st.sampled_from([None, 0.02, 0.1]),
    delay_s=st.sampled_from([0.0, 0.02, 0.15]),
)
def test_what_holds_in_every_session(
    seed: int,
    rates: list[float],
    missing: Any,
    base: Any,
    connections: int,
    thinking_s: float,
    refresh_s: float | None,
    piece_s: float | None,
    delay_s: float,
) -> None:
    trace = Trace("t", np.arange(len(rates) + 2.0), np.array([0.0, *rates, 2.0]))
    config = TiledPlayerConfig(
        missing=missing,
        base=base,
        connections=connections,
        refresh_s=refresh_s,
        piece_s=piece_s,
    )
    player = Watched(video(5, seed=seed), wandering(seed), config)
    wall_s = play_tiled_simulated(
        player,
        SharedLinkModel.tcp(trace, delay_s),
        static,
        decision_time=DecisionTime(compute_s=thinking_s),
    )
    chunks = player.chunks
    assert [chunk.index for chunk in chunks] == list(range(5))
    assert wall_s == pytest.approx(5.0 + sum(chunk.stall_s for chunk in chunks))
    assert sum(chunk.size_bytes for chunk in chunks) == player.downloaded_bytes
    assert player.downloaded_bytes == player.arrived_bytes
    assert player.startup_s == pytest.approx(chunks[0].stall_s) or missing == "stall"
    assert sum(chunk.decisions for chunk in chunks) == len(player.decisions_s)
    for chunk in chunks:
        assert 0 <= chunk.used_bytes <= chunk.size_bytes
        assert 0.0 <= chunk.blank_ratio <= 1.0
        assert -1.0 - 1e-9 <= chunk.viewport_level <= 3.0 + 1e-9
        assert 0.0 <= chunk.viewport_bitrate_kbps <= LEVELS_KBPS[-1] + 1e-6
        assert chunk.stall_s >= 0.0
        assert missing == "stall" or chunk.index == 0 or chunk.stall_s == 0.0
        assert all(
            begun <= final for begun, final in zip(chunk.levels, chunk.final_levels, strict=True)
        )
        assert math.isfinite(chunk.asked_s)


def test_recorded_motion_over_recorded_traces(data_dir: Any) -> None:
    motion = read_head_motion(data_dir / "viewports/jin2022/video03/user09.csv")
    points = np.loadtxt(sorted((data_dir / "traces/broadband-3g/test").iterdir())[0])
    player = TiledPlayer(video(20), motion)
    trace = Trace("recorded", points[:, 0], points[:, 1])
    play_tiled_simulated(player, SharedLinkModel.tcp(trace, 0.02), static)
    assert len(player.chunks) == 20
    assert player.errors.mae_deg is not None
    assert 0 < player.errors.mae_deg < 60
