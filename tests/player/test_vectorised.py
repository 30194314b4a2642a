"""The vectorised simulator beside the player machine: every bit of every number is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers import registry
from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.machine import InvalidDecision, Player, PlayerConfig, PlayerStateError
from player.observation import HISTORY_LIMIT, UPCOMING_LIMIT, AbrObservation
from player.qoe import QoeWeights, session_qoe
from player.simulated import DecisionTime, play_simulated
from player.trace import Trace
from player.vectorised import Observations, Sessions, play_vectorised
from player.video import Video, generate_video, read_video
from testbed.builtin import builtin_traces, builtin_video

Shown = list[AbrObservation]


def play_one(
    video: Video,
    link: PensieveLink,
    start_s: float,
    levels: np.ndarray,
    *,
    config: PlayerConfig | None = None,
    decision_s: float = 0.0,
) -> tuple[Player, Shown]:
    """The player machine, told the levels, with what it showed before each."""
    shown: Shown = []

    def decide(observation: AbrObservation) -> int:
        shown.append(observation)
        return int(levels[observation.chunk_index])

    player = Player(video, config)
    play_simulated(
        player, link, decide, start_s=start_s, decision_time=DecisionTime(compute_s=decision_s)
    )
    return player, shown


def assert_same(
    sessions: Sessions, levels: np.ndarray, play: Callable[[int], tuple[Player, Shown]]
) -> None:
    """Plays ``(B, chunks)`` levels, and compares everything with one player machine per session."""
    expected = [play(session) for session in range(len(sessions))]
    asked = 0
    while not sessions.is_done:
        seen = sessions.observe()
        for session, (_, shown) in enumerate(expected):
            assert sessions.observation(session) == shown[asked]
            assert_shows(seen, session, shown[asked])
        qoe = sessions.step(levels[:, seen.chunk_index])
        assert qoe.tolist() == [player.chunks[seen.chunk_index].qoe for player, _ in expected]
        asked += 1
    for session, (player, shown) in enumerate(expected):
        assert asked == len(shown)
        assert sessions.chunks(session) == player.chunks
        assert sessions.qoe[session].tolist() == [chunk.qoe for chunk in player.chunks]


def assert_shows(seen: Observations, session: int, expected: AbrObservation) -> None:
    past = seen.level.shape[1]
    history = expected.history[-past:]
    assert (seen.chunk_index, seen.chunks_left) == (expected.chunk_index, expected.chunks_left)
    assert seen.known == len(history)
    assert seen.buffer_s[session] == expected.buffer_s
    assert seen.last_level[session] == expected.last_level
    ahead = seen.upcoming_sizes_bytes[session].tolist()
    assert len(ahead) == UPCOMING_LIMIT
    known_ahead = [list(row) for row in expected.upcoming_sizes_bytes]
    assert ahead[: len(known_ahead)] == known_ahead
    assert not np.any(ahead[len(known_ahead) :])
    for name, field in (
        ("level", "level"),
        ("size_bytes", "size_bytes"),
        ("download_s", "download_s"),
        ("throughput_kbps", "throughput_kbps"),
        ("rebuffer_s", "rebuffer_s"),
        ("past_buffer_s", "buffer_s"),
    ):
        row = getattr(seen, name)[session].tolist()
        assert row == [0] * (past - len(history)) + [getattr(chunk, field) for chunk in history]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    steps = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.floats(0.01, 20.0), min_size=steps, max_size=steps))
    rate = st.one_of(st.just(0.0), st.floats(0.01, 100.0))
    rates = draw(st.lists(rate, min_size=steps + 1, max_size=steps + 1))
    if not any(rates[1:]):
        rates[draw(st.integers(1, steps))] = 2.0
    first = draw(st.sampled_from((0.0, 0.3)))
    return Trace("drawn", first + np.cumsum([0.0, *gaps]), np.array(rates))


@st.composite
def videos(draw: st.DrawFn) -> Video:
    levels, chunks = draw(st.integers(1, 5)), draw(st.integers(1, 14))
    gaps = draw(st.lists(st.floats(1.0, 3000.0), min_size=levels, max_size=levels))
    sizes = st.tuples(*[st.integers(1, 4_000_000)] * levels)
    rows = draw(st.lists(sizes, min_size=chunks, max_size=chunks))
    ladder = tuple(np.cumsum(gaps).tolist())
    return Video("drawn", ladder, draw(st.sampled_from((0.3, 2.0, 4.0))), tuple(rows))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_session_equals_the_player_machine(data: st.DataObject) -> None:
    video = data.draw(videos())
    links = [
        PensieveLink(trace, payload_fraction=payload, rtt_s=rtt_s)
        for trace in data.draw(st.lists(traces(), min_size=1, max_size=4))
        for payload in (data.draw(st.sampled_from((0.95, 0.7))),)
        for rtt_s in (data.draw(st.sampled_from((0.08, 0.013))),)
    ]
    config = PlayerConfig(
        buffer_cap_s=data.draw(st.sampled_from((60.0, 12.0, 4.1, 0.7))),
        wait_step_s=data.draw(st.sampled_from((0.5, 0.3))),
        first_level=data.draw(st.sampled_from((None, 0, video.levels - 1))),
        qoe=QoeWeights(rebuffer=data.draw(st.sampled_from((4.3, 1.7))), switch=0.9),
    )
    decision_s = data.draw(st.sampled_from((0.0, 0.04, 3.7)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    table = LinkTable(links)
    link_index, start_s = table.draw(6, rng)
    levels = rng.integers(video.levels, size=(6, video.chunks))
    sessions = Sessions(
        video,
        table,
        link_index,
        start_s,
        config=config,
        decision_s=decision_s,
        past_chunks=data.draw(st.sampled_from((1, 8))),
    )
    assert_same(
        sessions,
        levels,
        lambda one: play_one(
            video,
            links[link_index[one]],
            float(start_s[one]),
            levels[one],
            config=config,
            decision_s=decision_s,
        ),
    )


@pytest.mark.parametrize("first_level", [0, None])
def test_sessions_on_built_in_traces_equal_the_player_machine(first_level: int | None) -> None:
    rng = np.random.default_rng(1)
    video = builtin_video("envivio-like")
    links = [PensieveLink(trace) for trace in builtin_traces("mixed", 24)]
    table, config = LinkTable(links), PlayerConfig(first_level=first_level)
    link_index, start_s = table.draw(60, rng)
    levels = rng.integers(video.levels, size=(60, video.chunks))
    levels[:20] = rng.integers(2, size=(20, video.chunks))  # these meet the cap
    sessions = Sessions(video, table, link_index, start_s, config=config)
    assert_same(
        sessions,
        levels,
        lambda one: play_one(
            video, links[link_index[one]], float(start_s[one]), levels[one], config=config
        ),
    )
    records = [chunk for one in range(60) for chunk in sessions.chunks(one)]
    assert any(chunk.wait_s > 0 for chunk in records)
    assert any(chunk.index and chunk.rebuffer_s > 0 for chunk in records)


def test_a_long_video_shows_the_last_chunks() -> None:
    rng = np.random.default_rng(2)
    video = generate_video("long", chunks=HISTORY_LIMIT + 20, rng=rng)
    link = PensieveLink(builtin_traces("mixed", 1)[0])
    levels = rng.integers(video.levels, size=(1, video.chunks))
    sessions = Sessions(video, LinkTable([link]), [0], [0.0], past_chunks=HISTORY_LIMIT)
    assert_same(sessions, levels, lambda _: play_one(video, link, 0.0, levels[0]))


def test_after_days_in_the_trace_downloads_stay_exact() -> None:
    rng = np.random.default_rng(3)
    video = generate_video("short", chunks=5, rng=rng)
    links = [PensieveLink(trace) for trace in builtin_traces("mixed", 6)]
    start_s = rng.uniform(0, 1e6, size=6)
    levels = rng.integers(video.levels, size=(6, 5))
    assert_same(
        Sessions(video, LinkTable(links), np.arange(6), start_s),
        levels,
        lambda one: play_one(video, links[one], float(start_s[one]), levels[one]),
    )


def test_starts_and_ends_on_the_edges_of_steps_and_passes() -> None:
    """Whole numbers, so that sums are exact and requests and last bytes meet the edges."""
    trace = Trace("edges", np.arange(6.0), np.array([1.0, 0.0, 8.0, 0.0, 0.0, 8.0]))
    link = PensieveLink(trace, payload_fraction=1.0, rtt_s=1.0)
    video = Video("whole", (100.0, 200.0), 1.0, ((1_000_000, 2_000_000),) * 8)
    start_s = [float(at) for at in range(12)]
    levels = np.random.default_rng(4).integers(2, size=(12, 8))
    assert_same(
        Sessions(video, LinkTable([link]), [0] * 12, start_s),
        levels,
        lambda one: play_one(video, link, start_s[one], levels[one]),
    )


def test_what_was_observed_stays_and_cannot_be_written() -> None:
    video = builtin_video("envivio-like").first(12)
    table = LinkTable([PensieveLink(trace) for trace in builtin_traces("mixed", 3)])
    sessions = Sessions(video, table, [0, 1, 2], [0.0, 5.0, 10.0])
    names = Observations.__dataclass_fields__
    kept = []
    while not sessions.is_done:
        seen = sessions.observe()
        kept.append((seen, {name: np.array(getattr(seen, name)) for name in names}))
        sessions.step([1, 2, 3])
    for seen, copies in kept:
        for name, copy in copies.items():
            assert np.array_equal(getattr(seen, name), copy)
            if copy.ndim:
                with pytest.raises(ValueError, match="read-only"):
                    getattr(seen, name)[0] = 1


def test_bba_equals_the_reference_on_all_traces_at_once(
    data_dir: Path, reference_dir: Path
) -> None:
    expected = json.loads((reference_dir / "abr_sessions.json").read_text())["traces"]
    links, start_s = [], []
    for session in expected:
        points = np.loadtxt(data_dir / "traces/broadband-3g/test" / session["file"])
        links.append(PensieveLink(Trace(session["file"], points[:, 0], points[:, 1])))
        start_s.append(links[-1].trace.start_s(session["start_index"]))
    video = read_video(data_dir / "video/envivio-dash3").first(48)
    sessions = Sessions(video, LinkTable(links), range(len(links)), start_s)
    decide = registry.create("abr", "bba").decide
    qoe = play_vectorised(
        sessions,
        lambda _: [decide(sessions.observation(session)) for session in range(len(sessions))],
    )
    for row, session in zip(qoe.tolist(), expected, strict=True):
        assert session_qoe(row) == pytest.approx(session["bba"], abs=1e-9)


def test_draws_start_at_points_of_the_trace() -> None:
    drawn = builtin_traces("mixed", 5)
    table = LinkTable([PensieveLink(trace) for trace in drawn])
    link_index, start_s = table.draw(2000, np.random.default_rng(5))
    assert len(table) == 5
    for link, trace in enumerate(drawn):
        starts = set(start_s[link_index == link].tolist())
        assert len(starts) > 1
        assert starts <= {trace.start_s(point) for point in range(1, len(trace.times_s))}


def test_mistakes_are_named() -> None:
    video = generate_video("short", chunks=3, rng=np.random.default_rng(6))
    table = LinkTable([PensieveLink(trace) for trace in builtin_traces("mixed", 2)])
    with pytest.raises(ValueError, match="at least one link"):
        LinkTable([])
    for link_index, start_s, named in (
        ([0, 2], [0.0, 0.0], "link_index must be 0 to 1: 0 to 2"),
        ([0.0], [0.0], "whole numbers"),
        ([], [], "whole numbers"),
        ([0, 1], [0.0], "start_s"),
        ([0], [-1.0], "start_s"),
        ([0], [float("nan")], "start_s"),
    ):
        with pytest.raises(ValueError, match=named):
            Sessions(video, table, link_index, start_s)
    with pytest.raises(ValueError, match="past_chunks"):
        Sessions(video, table, [0], [0.0], past_chunks=0)
    with pytest.raises(ValueError, match="decision_s"):
        Sessions(video, table, [0], [0.0], decision_s=-0.1)
    with pytest.raises(ValueError, match="wait_step_s"):
        Sessions(video, table, [0], [0.0], config=PlayerConfig(wait_step_s=0.0))
    with pytest.raises(InvalidDecision, match="level 6 for chunk 0 is not one of 0 to 5"):
        Sessions(video, table, [0], [0.0], config=PlayerConfig(first_level=6))


def test_wrong_levels_change_nothing() -> None:
    video = generate_video("short", chunks=3, rng=np.random.default_rng(7))
    table = LinkTable([PensieveLink(trace) for trace in builtin_traces("mixed", 2)])
    sessions = Sessions(video, table, [0, 1], [0.0, 0.0], decision_s=0.1)
    before = replace(sessions.observation(1))
    for levels in ([0, 6], [-1, 0], [0], [0.0, 1.0], [True, False], [[0, 1]]):
        with pytest.raises(InvalidDecision, match=r"level"):
            sessions.step(levels)
    assert sessions.observation(1) == before
    sessions.step([0, 5])
    sessions.step(np.array([5, 0], dtype=np.uint8))
    with pytest.raises(PlayerStateError, match="all 3 chunks"):
        sessions.step([0, 0])
    with pytest.raises(PlayerStateError, match="all 3 chunks"):
        sessions.observe()
