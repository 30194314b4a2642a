from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.features import PAST_CHUNKS, StepFeatures, step_features, window_features
from adapters.pools import PlayedSession, Pool, pool_from_sessions
from adapters.tokens import LAYOUTS, Layout, window_start, window_steps
from player.machine import Player
from player.observation import HISTORY_LIMIT, AbrObservation
from player.trace import Trace
from player.video import Video


@given(step=st.integers(0, 10_000), block=st.integers(1, 16))
def test_window_starts_where_the_index_says(step: int, block: int) -> None:
    start = window_start(step, block)
    assert start % block == 0
    assert 0 <= start <= step
    steps = step - start + 1
    assert steps <= window_steps(block)
    assert steps > block or start == 0  # never less context than a block
    assert window_start(step + 1, block) in (start, start + block)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_are_causal_and_hide_what_is_read(layout: Layout) -> None:
    allowed = layout.attention_allowed(layout.window_tokens(2))
    assert not np.triu(allowed, 1).any()
    assert allowed.diagonal().all()
    read = layout.read_positions(4)
    assert (read % layout.step_tokens == layout.read).all()
    others = np.arange(len(allowed))
    if layout.hides_read:
        assert (allowed[:, read].sum(axis=0) == 1).all()
        others = np.setdiff1d(others, read)
    assert allowed[np.ix_(others, others)].sum() == len(others) * (len(others) + 1) // 2
    kept = [
        layout.step_tokens * (one // layout.kept) + layout.token(one) for one in range(len(others))
    ]
    assert kept == others.tolist()
    assert [layout.known(step) for step in range(3)] == [
        int((others < position).sum()) for position in read[:3]
    ]


def same(one: StepFeatures, other: StepFeatures, *, but: tuple[str, ...] = ()) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(StepFeatures)
        if field.name not in but
    )


def test_past_steps_are_rebuilt_as_they_were(small_pool: Pool) -> None:
    """What a later observation says about a past step is what was said then, but for sizes."""
    episode = small_pool.episodes[0]
    block = 3
    for index in range(1, episode.chunks):
        observation = episode.observation(index)
        window = window_features(observation, block)
        start = window_start(index, block)
        assert len(window.action) == index - start + 1
        for row, step in enumerate(range(start, index)):
            then = step_features(episode.observation(step))
            assert same(window[row], then, but=("sizes", "action"))
            assert window.action[row] == episode.level[step]
        assert same(window[-1], step_features(observation))


def test_features_do_not_depend_on_what_the_window_forgot(small_pool: Pool) -> None:
    observation = small_pool.episodes[0].observation(13)
    block = 2
    window = window_features(observation, block)
    keep = observation.chunk_index - window_start(13, block) + PAST_CHUNKS
    altered = dataclasses.replace(
        observation,
        history=(
            *(dataclasses.replace(one, download_s=99.0) for one in observation.history[:-keep]),
            *observation.history[-keep:],
        ),
    )
    assert altered != observation
    assert same(window_features(altered, block), window)


def test_sessions_longer_than_the_history_keep_their_windows(
    play: Callable[..., PlayedSession], small_traces: dict[str, Trace]
) -> None:
    session = play(small_traces["trace-0"], "bba")
    video, record = session.video, session.record
    times = HISTORY_LIMIT // video.chunks + 2
    long_video = Video("long", video.levels_kbps, video.chunk_s, video.sizes_bytes * times)
    long_record = dataclasses.replace(record, chunks=record.chunks * times)
    episode = pool_from_sessions([PlayedSession(long_video, long_record)]).episodes[0]
    for index in (HISTORY_LIMIT, HISTORY_LIMIT + 1, episode.chunks - 1):
        observation = episode.observation(index)
        assert len(observation.history) == HISTORY_LIMIT
        window = window_features(observation, 5)
        rows = range(window_start(index, 5), index)
        assert [int(level) for level in window.action[:-1]] == [
            int(episode.level[row]) for row in rows
        ]
        for row, step in enumerate(rows):
            then = step_features(episode.observation(step))
            assert same(window[row], then, but=("sizes", "action"))


@pytest.mark.parametrize("ends", [1, 7])
def test_upcoming_sizes_end_with_the_video(small_pool: Pool, ends: int) -> None:
    episode = small_pool.episodes[0]
    features = step_features(episode.observation(episode.chunks - ends))
    assert (features.sizes[:ends] != 0).all()
    assert not features.sizes[ends:].any()


def test_the_player_makes_the_observations_of_the_pool(
    play: Callable[..., PlayedSession], small_traces: dict[str, Trace]
) -> None:
    """Player -> records -> pool -> observation comes back to what the player asked."""
    from player.link_models import PensieveLink
    from player.simulated import play_simulated

    trace = small_traces["trace-1"]
    session = play(trace, "rate")
    episode = pool_from_sessions([session]).episodes[0]
    asked: list[AbrObservation] = []

    def repeat(observation: AbrObservation) -> int:
        asked.append(observation)
        return int(episode.level[observation.chunk_index])

    play_simulated(Player(session.video), PensieveLink(trace), repeat, start_s=trace.start_s(1))
    assert asked == [episode.observation(index) for index in range(1, episode.chunks)]


def test_features_of_impossible_extremes_are_finite(small_pool: Pool) -> None:
    observation = small_pool.episodes[0].observation(9)
    past = dataclasses.replace(observation.history[-1], download_s=1e-300, size_bytes=10**15)
    odd = dataclasses.replace(
        observation,
        levels_kbps=tuple(rate * 1e280 for rate in observation.levels_kbps),
        chunk_s=1e-290,
        buffer_s=1e300,
        history=(*observation.history[:-1], past),
    )
    features = step_features(odd)
    for field in dataclasses.fields(StepFeatures):
        assert np.isfinite(getattr(features, field.name)).all()
