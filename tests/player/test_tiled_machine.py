"""The tiled player: every state with every event, and sessions by hand."""

from __future__ import annotations

import numpy as np
import pytest

from player.head_motion import HeadMotion
from player.machine import Started, Stop, TimerFired, WaitUntil
from player.tile_accounts import ChunkAccount
from player.tile_allocation import MISSING, Assumed
from player.tiled_events import (
    AskViewports,
    FetchTile,
    TileArrived,
    TiledCommand,
    TiledEvent,
    TiledPlayerConfig,
    TiledPlayerConfigError,
    TiledPlayerStateError,
    TiledState,
    ViewportsDecided,
)
from player.tiled_machine import TiledPlayer
from player.tiled_video import TiledVideo
from player.tiles import FieldOfView, TileGrid
from player.viewport_observation import InvalidViewports, Viewport

GRID = TileGrid(1, 4)  # tile 1 spans yaw -90 to 0, tile 2 yaw 0 to 90
NARROW = FieldOfView(20.0, 20.0)
AHEAD = (Viewport(0.0, 0.0, 45.0),) * 20  # all of tile 2
BEHIND = (Viewport(0.0, 0.0, -45.0),) * 20  # all of tile 1
SIZES = (1000, 4000)


def still(yaw_deg: float = 45.0) -> HeadMotion:
    poses = np.array([[0.0, 0.0, yaw_deg]] * 2)
    return HeadMotion("video01/user01", np.array([0.0, 60.0]), poses)


def jump(at_s: float) -> HeadMotion:
    """From tile 2 to tile 1 within a moment."""
    poses = np.array([[0.0, 0.0, 45.0], [0.0, 0.0, 45.0], [0.0, 0.0, -45.0], [0.0, 0.0, -45.0]])
    return HeadMotion("video01/user01", np.array([0.0, at_s, at_s + 1e-6, 60.0]), poses)


def video(chunks: int = 3) -> TiledVideo:
    return TiledVideo("v", GRID, (100.0, 400.0), 1.0, ((SIZES,) * 4,) * chunks)


def config(**changes: object) -> TiledPlayerConfig:
    settings = {"fov": NARROW, "assumed": Assumed(0.0, 0.0), "connections": 1} | changes
    return TiledPlayerConfig(**settings)  # type: ignore[arg-type]


def kinds(commands: tuple[TiledCommand, ...]) -> list[str]:
    return [type(command).__name__ for command in commands]


def fetches(commands: tuple[TiledCommand, ...]) -> list[tuple[int, int, int]]:
    return [(one.chunk, one.tile, one.level) for one in commands if isinstance(one, FetchTile)]


def player_in(state: TiledState) -> TiledPlayer:
    """A player that real events brought into the state, around time 10."""
    player = TiledPlayer(video(1 if state is TiledState.ENDED else 2), still(), config())
    if state is TiledState.STALLED:
        player = TiledPlayer(video(2), jump(0.5), config(missing="stall"))
    if state is TiledState.NEW:
        return player
    player.handle(Started(), now=10.0)
    if state is TiledState.STARTING:
        return player
    player.handle(ViewportsDecided(AHEAD), now=10.0)
    player.handle(TileArrived(0, 10.05), now=10.1)
    if state is TiledState.STALLED:
        player.handle(TimerFired(), now=10.7)
    if state is TiledState.ENDED:
        player.handle(TimerFired(), now=11.2)
    assert player.state is state
    return player


EVENTS: tuple[TiledEvent, ...] = (
    Started(),
    ViewportsDecided(AHEAD),
    TileArrived(0, 19.0),
    TimerFired(),
)
#: What a player of ``player_in`` takes: a question is open, a tile on its way, or neither.
TAKEN: dict[TiledState, set[type[TiledEvent]]] = {
    TiledState.NEW: {Started},
    TiledState.STARTING: {ViewportsDecided},
    TiledState.PLAYING: {ViewportsDecided, TimerFired},
    TiledState.STALLED: {ViewportsDecided, TileArrived},
    TiledState.ENDED: set(),
}


@pytest.mark.parametrize("state", list(TiledState))
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_state_takes_its_events_and_names_the_others(
    state: TiledState, event: TiledEvent
) -> None:
    player = player_in(state)
    if type(event) in TAKEN[state]:
        player.handle(event, now=10.75)
        assert player.state is not TiledState.NEW
    else:
        with pytest.raises(TiledPlayerStateError, match=f"{state.name} cannot handle"):
            player.handle(event, now=20.0)


def test_time_may_not_run_backwards() -> None:
    with pytest.raises(TiledPlayerStateError, match="backwards"):
        player_in(TiledState.PLAYING).handle(TimerFired(), now=10.05)


def test_tiles_arrive_only_on_connections_that_wait_for_one() -> None:
    with pytest.raises(TiledPlayerStateError, match="cannot handle TileArrived"):
        player_in(TiledState.STALLED).handle(TileArrived(1, 19.0), now=20.0)


@pytest.mark.parametrize(
    "answer",
    [AHEAD[1:], (), None, [1] * 20, (Viewport(0.0, 0.0, float("nan")),) * 20],
)
def test_answers_that_are_none_are_refused(answer: object) -> None:
    with pytest.raises(InvalidViewports):
        player_in(TiledState.STARTING).handle(
            ViewportsDecided(answer),  # type: ignore[arg-type]
            now=11.0,
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", 0),
        ("horizon", 0),
        ("buffer_cap_s", 0.0),
        ("buffer_cap_s", float("nan")),
        ("connections", 0),
        ("missing", "skip"),
        ("base", "none"),
        ("least_share", 0.0),
        ("least_share", 1.0),
        ("safety", 1.5),
        ("refresh_s", 0.0),
        ("piece_s", 0.0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(TiledPlayerConfigError, match=name):
        config(**{name: value})


def test_predictions_have_to_reach_to_the_end_of_a_chunk() -> None:
    TiledPlayer(video(), still(), config(buffer_cap_s=3.0))
    with pytest.raises(TiledPlayerConfigError, match="horizon 20"):
        TiledPlayer(video(), still(), config(buffer_cap_s=3.1))


def test_one_session_by_hand() -> None:
    player = TiledPlayer(video(), still(), config(refresh_s=None, safety=1.0))
    (ask,) = player.handle(Started(), now=100.0)
    assert isinstance(ask, AskViewports)
    assert len(ask.observation.history) == 1
    commands = player.handle(ViewportsDecided(AHEAD), now=100.5)
    # Nothing is known of the link yet: level 0. Chunk 1 is within the cap, so it is asked for.
    assert commands[0] == FetchTile(0, 0, 2, 0, 1000)
    assert kinds(commands[1:]) == ["AskViewports"]
    assert player.handle(ViewportsDecided(AHEAD), now=100.6) == ()
    commands = player.handle(TileArrived(0, 100.6), now=101.5)  # 1,000 bytes in a second
    assert player.state is TiledState.PLAYING
    assert player.startup_s == 1.5
    assert fetches(commands) == [(1, 2, 0)]
    # Chunk 2 begins 2 s ahead, which is the cap, and nothing else is to be fetched.
    assert kinds(commands) == ["FetchTile", "AskViewports", "WaitUntil"]
    assert commands[-1] == WaitUntil(pytest.approx(101.7))
    assert kinds(player.handle(TimerFired(), now=101.7)) == ["WaitUntil"]
    commands = player.handle(ViewportsDecided(AHEAD, fallback=True), now=101.75)
    assert kinds(commands) == ["WaitUntil"]
    commands = player.handle(TileArrived(0, 101.75), now=101.9)
    assert fetches(commands) == [(2, 2, 0)]
    player.handle(TileArrived(0, 101.95), now=102.0)
    now = 102.0
    while player.state is not TiledState.ENDED:
        now += 0.2
        commands = player.handle(TimerFired(), now=now)
    assert commands == (Stop(),)
    first, second, third = player.chunks
    assert [chunk.stall_s for chunk in player.chunks] == pytest.approx([1.5, 0.0, 0.0])
    assert first.levels == first.final_levels == (MISSING, MISSING, 0, MISSING)
    assert first.decision_s == pytest.approx(0.5)
    assert second.decision_s == pytest.approx(0.1)
    assert second.asked_s == pytest.approx(0.5)
    assert second.buffer_s == 1.0
    assert third.buffer_s == 2.0
    assert (second.fallback, third.fallback) == (False, True)
    assert player.fallbacks == 1
    assert player.decisions_s == pytest.approx([0.5, 0.1, 0.25])
    for chunk in player.chunks:
        assert chunk.blank_ratio == 0.0
        assert chunk.used_bytes == chunk.size_bytes == SIZES[max(chunk.levels)]
        assert chunk.viewport_level == pytest.approx(max(chunk.levels))
    assert first.viewport_bitrate_kbps == pytest.approx(100.0)


def test_what_is_looked_at_and_missing_is_blank_until_it_comes() -> None:
    player = TiledPlayer(video(1), jump(0.4), config())
    player.handle(Started(), now=0.0)
    player.handle(ViewportsDecided(AHEAD), now=0.0)
    player.handle(TileArrived(0, 0.1), now=0.1)
    player.handle(TimerFired(), now=0.3)
    commands = player.handle(TimerFired(), now=0.5)
    assert fetches(commands) == [(0, 1, 0)]
    player.handle(TileArrived(0, 0.7), now=0.8)  # 0.3 s late
    assert player.handle(TimerFired(), now=1.1) == (Stop(),)
    (chunk,) = player.chunks
    assert chunk.blank_ratio == pytest.approx(0.3)
    assert chunk.viewport_level == pytest.approx(-0.3)
    assert chunk.viewport_bitrate_kbps == pytest.approx(70.0)
    assert chunk.late_tiles == 1
    assert chunk.levels == (MISSING, MISSING, 0, MISSING)
    assert chunk.final_levels == (MISSING, 0, 0, MISSING)
    assert chunk.used_bytes == chunk.size_bytes == 2000
    assert chunk.stall_s == pytest.approx(0.1)  # start-up


def test_or_playback_waits_for_it() -> None:
    player = player_in(TiledState.STALLED)  # since 10.7
    player.handle(ViewportsDecided(AHEAD), now=10.8)
    commands = player.handle(TileArrived(0, 10.85), now=10.9)
    assert player.state is TiledState.PLAYING
    assert isinstance(commands[-1], WaitUntil)
    stalled_s = 10.9 - 10.1 - player.media_s
    assert stalled_s == pytest.approx(0.2)
    assert player.media_s == pytest.approx(0.6)


def test_tiles_that_were_not_looked_at_are_wasted() -> None:
    player = TiledPlayer(video(1), still(), config(connections=2))
    player.handle(Started(), now=0.0)
    commands = player.handle(ViewportsDecided(BEHIND), now=0.0)
    # The head is still on its way there in the first tick.
    assert fetches(commands) == [(0, 1, 0), (0, 2, 0)]
    player.handle(TileArrived(0, 0.1), now=0.2)
    player.handle(TileArrived(1, 0.1), now=0.2)
    player.handle(TimerFired(), now=1.2)
    (chunk,) = player.chunks
    assert (chunk.size_bytes, chunk.used_bytes) == (2000, 1000)
    assert chunk.blank_ratio == 0.0


def test_a_tile_on_its_way_when_its_chunk_is_over_still_counts_as_downloaded() -> None:
    player = TiledPlayer(video(2), jump(0.65), config())
    player.handle(Started(), now=0.0)
    player.handle(ViewportsDecided(AHEAD), now=0.0)
    player.handle(ViewportsDecided(BEHIND), now=0.0)
    commands = player.handle(TileArrived(0, 0.0), now=0.01)
    assert fetches(commands) == [(1, 1, 0)] or fetches(commands) == [(1, 1, 1)]
    commands = player.handle(TileArrived(0, 0.02), now=0.02)
    commands = player.handle(TimerFired(), now=0.61)
    assert fetches(commands) == [(0, 1, 0)]
    player.handle(TimerFired(), now=1.2)
    assert player.chunks == ()  # the first one is over, but a tile of it is on its way
    player.handle(TileArrived(0, 1.2), now=1.3)
    assert [chunk.index for chunk in player.chunks] == [0]
    assert player.chunks[0].late_tiles == 1
    assert player.chunks[0].size_bytes == 2000
    assert player.chunks[0].blank_ratio == pytest.approx(0.4)
    player.handle(TimerFired(), now=2.1)
    assert player.downloaded_bytes == sum(chunk.size_bytes for chunk in player.chunks)


def test_with_time_to_spare_a_newer_prediction_buys_better_levels() -> None:
    player = TiledPlayer(video(2), still(), config(refresh_s=0.4, piece_s=None))
    player.handle(Started(), now=0.0)
    player.handle(ViewportsDecided(AHEAD), now=0.0)
    player.handle(ViewportsDecided(BEHIND), now=0.0)  # chunk 1: not what will be seen
    commands = player.handle(TileArrived(0, 0.1), now=0.2)
    assert fetches(commands)[0][:2] == (1, 1)
    commands = player.handle(TileArrived(0, 0.3), now=0.4)
    assert kinds(commands) == ["WaitUntil"]
    commands = player.handle(TimerFired(), now=0.6)
    assert kinds(commands) == ["AskViewports", "WaitUntil"]
    assert isinstance(commands[0], AskViewports)
    assert commands[0].chunk == 1
    commands = player.handle(ViewportsDecided(AHEAD), now=0.6)
    assert fetches(commands)[0][:2] == (1, 2)
    player.handle(TileArrived(0, 0.62), now=0.64)
    for now in (1.2, 2.2):
        player.handle(TimerFired(), now=now)
    assert player.chunks[1].decisions == 2
    assert player.chunks[1].blank_ratio == 0.0


def test_a_late_answer_is_of_no_use_to_its_chunk() -> None:
    player = TiledPlayer(video(3), still(), config())
    player.handle(Started(), now=0.0)
    player.handle(ViewportsDecided(AHEAD), now=0.0)
    player.handle(TileArrived(0, 0.1), now=0.1)
    commands = player.handle(TimerFired(), now=1.1)  # chunk 1 begins, still undecided
    assert fetches(commands) == [(1, 2, 0)]
    commands = player.handle(ViewportsDecided(AHEAD), now=1.2)
    assert kinds(commands) == ["AskViewports", "WaitUntil"]
    assert isinstance(commands[0], AskViewports)
    assert commands[0].chunk == 2
    player.handle(TileArrived(0, 1.2), now=1.3)
    player.handle(TimerFired(), now=2.1)
    assert player.chunks[1].blank_ratio == pytest.approx(0.2)
    assert player.chunks[1].decision_s == pytest.approx(1.2)


def account_of(sizes_bytes: tuple[tuple[int, int], ...]) -> ChunkAccount:
    return ChunkAccount(
        0, (100.0, 400.0), sizes_bytes, np.zeros((1, 3)), np.array([[1.0, 0.0]]), 0.0
    )


def test_an_account_puts_pieces_together() -> None:
    account = account_of(((10, 30), (10, 30)))
    assert [account.request(0, 1, size) for size in (12, 9)] == [0, 12]
    assert account.left_bytes == [[10, 9], [10, 30]]
    assert (account.quickest_level(0), account.quickest_level(1)) == (1, 0)
    assert account.pending == [MISSING, MISSING]
    assert account.request(0, 1, 9) == 21
    assert account.pending == [1, MISSING]
    for size in (9, 12):  # in any order
        account.take_in(0, 1, size)
    assert account.levels == [MISSING, MISSING]
    account.show(0, 0.5)
    account.take_in(0, 1, 9)
    account.show(0, 0.5)
    record = account.record(0.0)
    assert record.final_levels == (1, MISSING)
    assert (record.size_bytes, record.used_bytes) == (30, 30)
    assert record.blank_ratio == pytest.approx(0.5)
    assert account_of(((10, 10),) * 2).quickest_level(0) == 1  # of equal ones the best


def test_an_account_keeps_the_better_of_two_tiles() -> None:
    account = account_of(((10, 30), (10, 30)))
    account.request(0, 0, 10)
    account.take_in(0, 0, 10)
    account.show(0, 0.5)
    account.request(0, 1, 30)
    account.take_in(0, 1, 30)
    account.take_in(0, 0, 10)
    account.show(0, 0.5)
    record = account.record(0.0)
    assert record.final_levels == (1, MISSING)
    assert (record.size_bytes, record.used_bytes, record.replaced_tiles) == (50, 40, 1)
    assert record.viewport_level == pytest.approx(0.5)
    assert record.viewport_bitrate_kbps == pytest.approx(250.0)
