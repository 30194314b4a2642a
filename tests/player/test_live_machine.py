"""The player machine behind a live event: waits, latency, and catching up in closed form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from player.link_models import PensieveLink, TcpLink
from player.link_table import LinkTable
from player.live import Live, available_s
from player.live_playhead import LivePlayhead
from player.machine import (
    Ask,
    ChunkArrived,
    Decided,
    Fetch,
    Player,
    PlayerConfig,
    Started,
    State,
    Stop,
    TimerFired,
    WaitUntil,
)
from player.records import mean_latency_s
from player.simulated import play_simulated
from player.trace import Trace
from player.vectorised import Sessions
from player.video import Video

LIVE = Live(target_latency_s=3.0, catch_up=0.1)


def video(chunks: int = 4) -> Video:
    return Video("flat", (500.0, 1000.0), 2.0, ((125_000, 250_000),) * chunks)


def flat_trace(rate_mbps: float) -> Trace:
    return Trace("flat", np.array([0.0, 100.0]), np.array([rate_mbps, rate_mbps]))


def player_at(live: Live = LIVE, *, chunks: int = 4, first_level: int | None = 0) -> Player:
    return Player(video(chunks), PlayerConfig(live=live, first_level=first_level))


# ---- playing ------------------------------------------------------------------------------------


def test_behind_the_target_it_plays_faster_until_it_is_there() -> None:
    playhead = LivePlayhead(LIVE)
    playhead.latency_s = 3.5  # at 1.1 it takes 5 s and 5.5 s of video
    assert playhead.play(10.0, 2.0).buffer_s == pytest.approx(10.0 - 2.2)
    assert playhead.rate == pytest.approx(1.1)
    assert playhead.latency_s == pytest.approx(3.3)
    assert playhead.play(7.8, 4.0).buffer_s == pytest.approx(7.8 - 3.3 - 1.0)
    assert playhead.latency_s == 3.0
    assert playhead.rate == 1.0


def test_ahead_of_the_target_it_plays_slower() -> None:
    playhead = LivePlayhead(LIVE)
    playhead.latency_s = 2.8
    assert playhead.play(10.0, 3.0).buffer_s == pytest.approx(10.0 - 1.8 - 1.0)
    assert playhead.latency_s == 3.0


@pytest.mark.parametrize("off_s", [0.05, -0.05, 0.01])
def test_a_small_deviation_is_left_as_it_is(off_s: float) -> None:
    playhead = LivePlayhead(Live(target_latency_s=1.0, catch_up=0.1))
    playhead.latency_s = before_s = 1.0 + 0.99 * off_s
    assert playhead.play(5.0, 2.0).buffer_s == 3.0
    assert playhead.latency_s == before_s


def test_once_begun_it_goes_on_to_the_target_and_not_to_the_tolerance() -> None:
    playhead = LivePlayhead(LIVE)
    playhead.latency_s = 3.06
    playhead.play(10.0, 0.2)
    assert playhead.latency_s == pytest.approx(3.04)
    playhead.play(10.0, 5.0)
    assert playhead.latency_s == 3.0


def test_an_empty_buffer_stands_still_and_falls_behind() -> None:
    playhead = LivePlayhead(LIVE)
    playhead.latency_s = 4.0
    played = playhead.play(1.1, 3.0)  # plays for 1 s, gains 0.1 s
    assert played.buffer_s == 0.0
    assert played.stall_s == pytest.approx(2.0)
    assert playhead.latency_s == pytest.approx(4.0 - 0.1 + 2.0)


def test_without_catching_up_the_rate_stays() -> None:
    playhead = LivePlayhead(Live(target_latency_s=3.0, catch_up=0.0))
    playhead.latency_s = 9.0
    assert playhead.play(10.0, 4.0).buffer_s == 6.0
    assert (playhead.latency_s, playhead.rate) == (9.0, 1.0)


def test_in_many_steps_it_comes_to_the_same_as_in_one() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        live = Live(target_latency_s=3.0, catch_up=float(rng.uniform(0.0, 0.5)))
        whole, parts = LivePlayhead(live), LivePlayhead(live)
        whole.latency_s = parts.latency_s = float(rng.uniform(2.0, 6.0))
        buffer_s, seconds = float(rng.uniform(0.0, 8.0)), float(rng.uniform(0.0, 10.0))
        once = whole.play(buffer_s, seconds)
        stall_s = 0.0
        for share in rng.dirichlet(np.ones(7)):
            played = parts.play(buffer_s, float(share) * seconds)
            buffer_s, stall_s = played.buffer_s, stall_s + played.stall_s
        assert buffer_s == pytest.approx(once.buffer_s, abs=1e-9)
        assert stall_s == pytest.approx(once.stall_s, abs=1e-9)
        assert parts.latency_s == pytest.approx(whole.latency_s, abs=1e-9)


# ---- sessions -----------------------------------------------------------------------------------


def test_one_session_by_hand() -> None:
    player = player_at()
    assert player.handle(Started(), now=100.0) == Fetch(0, 0, 125_000)  # the event is 3 s old
    # Chunk 0 is in after 0.5 s; chunk 1 is available when the event is 4 s old.
    assert player.handle(ChunkArrived(), now=100.5) == WaitUntil(101.0)
    assert player.state is State.WAITING
    ask = player.handle(TimerFired(), now=101.0)
    assert isinstance(ask, Ask)
    assert ask.observation.buffer_s == pytest.approx(2.0 - 0.55)  # 0.5 s at 1.1
    assert player.rate == pytest.approx(1.1)
    assert player.handle(Decided(1), now=101.0) == Fetch(1, 1, 250_000)
    ask = player.handle(ChunkArrived(), now=103.0)  # late: the buffer was empty after 1.318 s
    assert isinstance(ask, Ask)  # chunk 2 is available when the event is 6 s old: at 103
    first, second = player.chunks
    assert first.latency_s == pytest.approx(3.5)
    assert first.wait_s == pytest.approx(0.5)
    assert first.buffer_s == pytest.approx(1.5)
    played_s = 2.0 / 1.1
    assert second.rebuffer_s == pytest.approx(2.5 - played_s)
    assert second.latency_s == pytest.approx(3.5 - 0.1 * played_s + 2.5 - played_s)
    assert second.wait_s == 0.0
    player.handle(Decided(0), now=103.0)
    assert player.handle(ChunkArrived(), now=103.1) == WaitUntil(105.0)
    player.handle(TimerFired(), now=105.0)
    player.handle(Decided(0), now=105.0)
    assert player.handle(ChunkArrived(), now=105.2) == Stop()
    assert player.chunks[-1].wait_s == 0.0


def test_no_chunk_is_asked_for_before_it_is_available() -> None:
    player = player_at(chunks=12)
    play_simulated(player, TcpLink(flat_trace(50.0), delay_s=0.01), lambda _: 1)
    for chunk in player.chunks:
        there_s = available_s(chunk.index, 2.0) - LIVE.target_latency_s
        assert chunk.requested_s >= there_s - 1e-9
        assert chunk.index == 0 or chunk.requested_s == pytest.approx(there_s, abs=1e-6)
    latencies = [chunk.latency_s for chunk in player.chunks]
    assert latencies[-1] == pytest.approx(LIVE.target_latency_s, abs=0.06)
    assert mean_latency_s(player.chunks) == pytest.approx(np.mean(latencies))  # type: ignore[arg-type]
    assert all(chunk.rebuffer_s == 0 for chunk in player.chunks[1:])


def test_stalls_put_it_behind_and_it_catches_up() -> None:
    outage = Trace("t", np.array([0.0, 6.0, 12.0, 200.0]), np.array([8.0, 8.0, 0.05, 8.0]))
    player = player_at(chunks=40)
    play_simulated(player, TcpLink(outage), lambda _: 0)
    latencies = [chunk.latency_s or 0.0 for chunk in player.chunks]
    assert max(latencies) > 5.0
    assert latencies[-1] == pytest.approx(LIVE.target_latency_s, abs=0.06)
    stalled_s = sum(chunk.rebuffer_s for chunk in player.chunks[1:])
    assert max(latencies) <= LIVE.target_latency_s + player.chunks[0].rebuffer_s + stalled_s + 1e-9


def test_a_first_chunk_that_is_not_there_yet_is_waited_for() -> None:
    early = Live(target_latency_s=1.5)  # chunk 0 is available when the event is 2 s old
    player = player_at(early)
    assert player.handle(Started(), now=10.0) == WaitUntil(10.5)
    assert player.handle(TimerFired(), now=10.5) == Fetch(0, 0, 125_000)
    player.handle(ChunkArrived(), now=10.6)
    assert player.startup_s == pytest.approx(0.6)
    asked = player_at(early, first_level=None)
    asked.handle(Started(), now=10.0)
    assert isinstance(asked.handle(TimerFired(), now=10.5), Ask)


def test_who_joins_late_is_behind_and_finds_chunks_available_earlier() -> None:
    player = player_at()
    player.handle(Started(late_s=0.2), now=100.0)
    assert player.handle(ChunkArrived(), now=100.5) == WaitUntil(pytest.approx(100.8))  # type: ignore[arg-type]
    assert player.chunks[0].latency_s == pytest.approx(3.7)


def test_on_demand_there_is_no_latency() -> None:
    player = Player(video())
    play_simulated(player, TcpLink(flat_trace(50.0)), lambda _: 1)
    assert {chunk.latency_s for chunk in player.chunks} == {None}
    assert mean_latency_s(player.chunks) is None
    assert player.rate == 1.0


def test_on_demand_is_live_of_an_event_that_is_long_over() -> None:
    """With all chunks available and no catching up, the two kinds of playing are one."""
    rng = np.random.default_rng(3)
    trace = Trace("t", np.arange(60.0), rng.lognormal(-0.5, 0.7, size=60))
    config = PlayerConfig(buffer_cap_s=9.0)
    over = dataclasses.replace(config, live=Live(target_latency_s=3600.0, catch_up=0.0))
    on_demand, live = Player(video(40), config), Player(video(40), over)
    for player in (on_demand, live):
        play_simulated(player, TcpLink(trace), lambda seen: seen.chunk_index % 2)
    for one, other in zip(on_demand.chunks, live.chunks, strict=True):
        assert other.latency_s is not None
        stripped = dataclasses.replace(other, latency_s=None)
        assert dataclasses.astuple(stripped) == pytest.approx(dataclasses.astuple(one))


def test_sessions_in_arrays_refuse_it() -> None:
    table = LinkTable([PensieveLink(flat_trace(2.0))])
    with pytest.raises(ValueError, match="live: only sessions one by one"):
        Sessions(video(), table, [0], [0.0], config=PlayerConfig(live=LIVE))
