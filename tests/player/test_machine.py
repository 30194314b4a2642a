"""The player machine: every state with every event, closed forms, and the reference simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from controllers import registry
from player.link_models import PensieveLink
from player.machine import (
    Ask,
    ChunkArrived,
    Decided,
    Event,
    Fetch,
    InvalidDecision,
    Player,
    PlayerConfig,
    PlayerStateError,
    Progress,
    Started,
    State,
    Stop,
    TimerFired,
    WaitUntil,
)
from player.qoe import session_qoe
from player.simulated import DecisionTime, play_simulated
from player.trace import Trace
from player.video import Video, read_video

EVENTS: tuple[Event, ...] = (Started(), Decided(1), Progress(1000), ChunkArrived(), TimerFired())
TAKEN: dict[State, tuple[type[Event], ...]] = {
    State.NEW: (Started,),
    State.DECIDING: (Decided,),
    State.DOWNLOADING: (Progress, ChunkArrived),
    State.WAITING: (TimerFired,),
    State.ENDED: (),
}


def video(chunks: int = 4) -> Video:
    return Video("flat", (500.0, 1000.0), 4.0, ((250_000, 500_000),) * chunks)


def flat_trace(rate_mbps: float) -> Trace:
    return Trace("flat", np.array([0.0, 100.0]), np.array([rate_mbps, rate_mbps]))


def player_in(state: State) -> Player:
    """A player that real events brought into the state, around time 10."""
    config = PlayerConfig(buffer_cap_s=5.0)
    player = Player(video(chunks=2), config)
    steps: list[Event] = [Started(), ChunkArrived(), Decided(0), ChunkArrived()]
    until = {State.NEW: 0, State.DOWNLOADING: 1, State.DECIDING: 2, State.ENDED: 4}
    if state is State.WAITING:
        player = Player(video(chunks=3), config)
        until[State.WAITING] = 4
    for number, event in enumerate(steps[: until[state]]):
        player.handle(event, now=10.0 + number / 10)
    assert player.state is state
    return player


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_state_takes_its_events_and_names_the_others(state: State, event: Event) -> None:
    player = player_in(state)
    if type(event) in TAKEN[state]:
        player.handle(event, now=20.0)
        assert player.state is not State.NEW
    else:
        with pytest.raises(PlayerStateError, match=f"{state.name} cannot handle"):
            player.handle(event, now=20.0)


def test_time_may_not_run_backwards() -> None:
    player = player_in(State.DOWNLOADING)
    with pytest.raises(PlayerStateError, match="backwards"):
        player.handle(ChunkArrived(), now=9.0)


@pytest.mark.parametrize("level", [-1, 2, True, 1.0, None, "1"])
def test_levels_off_the_ladder_are_refused(level: object) -> None:
    player = player_in(State.DECIDING)
    with pytest.raises(InvalidDecision, match="0 to 1"):
        player.handle(Decided(level), now=11.0)  # type: ignore[arg-type]


def test_one_session_by_hand() -> None:
    player = Player(video(chunks=3), PlayerConfig(buffer_cap_s=6.0))
    assert player.handle(Started(), now=100.0) == Fetch(0, 0, 250_000)
    ask = player.handle(ChunkArrived(), now=102.0)  # start-up of 2 s, buffer 4 s
    assert isinstance(ask, Ask)
    assert ask.observation.buffer_s == 4.0
    assert ask.observation.chunks_left == 2
    assert player.handle(Decided(1), now=103.0) == Fetch(1, 1, 500_000)  # 3 s left
    ask = player.handle(ChunkArrived(), now=108.0)  # 5 s later: stalled for 2 s
    assert isinstance(ask, Ask)
    assert ask.observation.history[-1].rebuffer_s == pytest.approx(2.0)
    assert player.handle(Decided(0, fallback=True), now=108.0) == Fetch(2, 0, 250_000)
    assert player.handle(ChunkArrived(), now=108.5) == Stop()
    first, second, third = player.chunks
    assert first.rebuffer_s == player.startup_s == 2.0
    assert second.decision_s == pytest.approx(1.0)
    assert second.download_s == pytest.approx(5.0)
    assert second.requested_s == pytest.approx(3.0)
    assert second.throughput_kbps == pytest.approx(800.0)
    assert second.qoe == pytest.approx(1.0 - 4.3 * 2.0 - 0.5)
    assert third.fallback
    assert third.buffer_s == pytest.approx(3.5 + 4.0 - 1.5)  # 1.5 s too full
    assert third.wait_s == pytest.approx(1.5)


def test_above_the_cap_the_player_pauses_in_half_seconds() -> None:
    player = Player(video(), PlayerConfig(buffer_cap_s=6.0))
    player.handle(Started(), now=0.0)
    player.handle(ChunkArrived(), now=1.0)
    player.handle(Decided(0), now=1.0)
    wait = player.handle(ChunkArrived(), now=1.3)  # buffer 7.7 s
    assert wait == WaitUntil(1.3 + 2.0)
    ask = player.handle(TimerFired(), now=3.3)
    assert isinstance(ask, Ask)
    assert ask.observation.buffer_s == pytest.approx(5.7)


def test_the_first_level_can_be_asked_for() -> None:
    player = Player(video(), PlayerConfig(first_level=None))
    ask = player.handle(Started(), now=0.0)
    assert isinstance(ask, Ask)
    assert ask.observation.chunk_index == 0
    assert ask.observation.history == ()
    assert player.handle(Decided(1), now=0.5) == Fetch(0, 1, 500_000)
    player.handle(ChunkArrived(), now=2.0)
    assert player.startup_s == 2.0
    assert player.chunks[0].decision_s == 0.5


def test_thinking_time_is_playback_time() -> None:
    free, slow = Player(video()), Player(video())
    link = PensieveLink(flat_trace(2.0))
    decide = registry.create("abr", "fixed", {"level": 1}).decide
    play_simulated(free, link, decide)
    play_simulated(slow, link, decide, decision_time=DecisionTime(compute_s=1.0, network_s=0.5))
    assert [chunk.decision_s for chunk in slow.chunks[1:]] == pytest.approx([1.5] * 3)
    assert slow.chunks[1].buffer_s == pytest.approx(free.chunks[1].buffer_s - 1.5)


def test_download_time_at_a_constant_rate_is_size_over_rate() -> None:
    player = Player(video())
    play_simulated(player, PensieveLink(flat_trace(2.0)), lambda observation: 1)
    expected = 500_000 * 8 / (2e6 * 0.95) + 0.080
    assert [chunk.download_s for chunk in player.chunks[1:]] == pytest.approx([expected] * 3)


@pytest.mark.parametrize(("log", "controller"), [("bba", "bba"), ("fixed2", "fixed")])
def test_sessions_equal_the_reference_chunk_by_chunk(
    log: str, controller: str, data_dir: Path, reference_dir: Path
) -> None:
    sessions = json.loads((reference_dir / "abr_chunk_logs.json").read_text())[log]
    envivio = read_video(data_dir / "video/envivio-dash3").first(48)
    options = {"level": 2} if controller == "fixed" else {}
    assert sessions
    for expected in sessions:
        trace = reference_trace(data_dir, expected["trace"])
        player = Player(envivio)
        play_simulated(
            player,
            PensieveLink(trace),
            registry.create("abr", controller, options).decide,
            start_s=trace.start_s(expected["start_mahimahi_ptr"]),
        )
        assert len(player.chunks) == len(expected["chunks"]) == 48
        for chunk, row in zip(player.chunks, expected["chunks"], strict=True):
            assert (chunk.index, chunk.level) == (row["i"], row["level"])
            assert chunk.size_bytes == row["chunk_size_B"]
            assert chunk.download_s == pytest.approx(row["delay_ms"] / 1000, abs=1e-9)
            assert chunk.wait_s == pytest.approx(row["sleep_ms"] / 1000, abs=1e-9)
            assert chunk.buffer_s == pytest.approx(row["buffer_s"], abs=1e-9)
            assert chunk.rebuffer_s == pytest.approx(row["rebuf_s"], abs=1e-9)
            assert chunk.qoe == pytest.approx(row["reward"], abs=1e-9)


def reference_trace(data_dir: Path, name: str) -> Trace:
    """The trace of the log, whose names carry the prefix of another folder layout."""
    for path in (data_dir / "traces/broadband-3g/test").iterdir():
        if name.endswith(path.name.split("_", 1)[1]):
            points = np.loadtxt(path)
            return Trace(path.name, points[:, 0], points[:, 1])
    raise FileNotFoundError(name)


def test_bba_equals_the_reference_on_all_traces(data_dir: Path, reference_dir: Path) -> None:
    sessions = json.loads((reference_dir / "abr_sessions.json").read_text())["traces"]
    envivio = read_video(data_dir / "video/envivio-dash3").first(48)
    decide = registry.create("abr", "bba").decide
    for expected in sessions:
        points = np.loadtxt(data_dir / "traces/broadband-3g/test" / expected["file"])
        trace = Trace(expected["file"], points[:, 0], points[:, 1])
        player = Player(envivio)
        play_simulated(
            player, PensieveLink(trace), decide, start_s=trace.start_s(expected["start_index"])
        )
        qoe = session_qoe([chunk.qoe for chunk in player.chunks])
        assert qoe == pytest.approx(expected["bba"], abs=1e-9)
