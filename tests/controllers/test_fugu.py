"""The stochastic planner as a controller, with the checkpoint that is shipped."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters.throughput_planning import planned_levels
from controllers.abr.fugu import Fugu
from controllers.registry import InvalidOptions, create
from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.observation import AbrObservation
from player.trace import Trace
from player.vectorised import Sessions
from player.video import Video, generate_video
from testbed.trace_generators import GENERATORS, generate_trace


@pytest.fixture(scope="module")
def fugu() -> Fugu:
    made = create("abr", "fugu")
    assert isinstance(made, Fugu)
    return made


@pytest.fixture(scope="module")
def asked(
    observe: Callable[[Trace], list[AbrObservation]], varied_trace: Trace
) -> list[AbrObservation]:
    return observe(varied_trace)[1::6]


def generated(seeds: int) -> list[Trace]:
    return [
        generate_trace(family, f"{family}-{seed}", np.random.default_rng(seed))
        for family in GENERATORS
        for seed in range(1, 1 + seeds)
    ]


def test_an_instance_has_no_memory(fugu: Fugu, asked: list[AbrObservation]) -> None:
    forwards = [fugu.decide(one) for one in asked]
    backwards = [fugu.decide(one) for one in reversed(asked)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 1


def test_a_fuller_buffer_allows_more(fugu: Fugu, asked: list[AbrObservation]) -> None:
    low = [fugu.decide(dataclasses.replace(one, buffer_s=0.5)) for one in asked]
    high = [fugu.decide(dataclasses.replace(one, buffer_s=50.0)) for one in asked]
    assert statistics.fmean(low) < statistics.fmean(high)


@pytest.mark.parametrize(
    ("levels_kbps", "chunk_s"),
    [((400.0,), 4.0), ((200.0, 9000.0), 1.0), (tuple(np.geomspace(100, 20_000, 20)), 6.0)],
)
def test_any_ladder_and_chunk_length(
    fugu: Fugu, levels_kbps: tuple[float, ...], chunk_s: float
) -> None:
    video = generate_video(
        "foreign",
        chunks=12,
        rng=np.random.default_rng(1),
        levels_kbps=levels_kbps,
        chunk_s=chunk_s,
    )
    links = LinkTable([PensieveLink(trace) for trace in generated(1)])
    sessions = Sessions(video, links, np.arange(len(links)), np.zeros(len(links)))
    while not sessions.is_done:
        observations = [sessions.observation(index) for index in range(len(links))]
        sessions.step(np.array([fugu.decide(one) for one in observations]))


def test_a_link_beyond_the_ladder_gets_its_top(fugu: Fugu) -> None:
    trace = Trace("wide", np.arange(50) * 2.0, np.full(50, 40.0))
    video = generate_video("wide", chunks=8, rng=np.random.default_rng(2))
    sessions = Sessions(video, LinkTable([PensieveLink(trace)]), [0], [0.0])
    while not sessions.is_done:
        sessions.step(np.array([fugu.decide(sessions.observation(0))]))
    assert [chunk.level for chunk in sessions.chunks(0)][3:] == [5] * 5


def test_sizes_that_are_not_told_are_expected(fugu: Fugu, asked: list[AbrObservation]) -> None:
    one = asked[2]
    assert one.chunks_left > 8
    for told in (1, 2, 7):
        fewer = dataclasses.replace(one, upcoming_sizes_bytes=one.upcoming_sizes_bytes[:told])
        assert 0 <= fugu.decide(fewer) < one.levels


def test_vectorised_sessions_play_alike(fugu: Fugu, video: Video) -> None:
    links = LinkTable([PensieveLink(trace) for trace in generated(1)])
    short = video.first(20)
    sessions = Sessions(short, links, [0, 1, 2, 1], [0.0, 0.0, 0.0, 40.0], past_chunks=20)
    agreed = []
    while not sessions.is_done:
        together = planned_levels(fugu.model, sessions.observe(), short)
        alone = [fugu.decide(sessions.observation(index)) for index in range(4)]
        agreed += [one == two for one, two in zip(together.tolist(), alone, strict=True)]
        sessions.step(together)
    assert statistics.fmean(agreed) > 0.98  # sums of floats may decide between equals


def test_it_beats_robustmpc_on_generated_traces(fugu: Fugu) -> None:
    """That no training saw; mean QoE over sessions."""
    video = generate_video("unseen", chunks=30, rng=np.random.default_rng(11))
    traces = generated(4)

    def qoe(decide: Callable[[AbrObservation], int] | None) -> float:
        links = LinkTable([PensieveLink(trace) for trace in traces])
        start_s = np.zeros(len(traces))
        sessions = Sessions(video, links, np.arange(len(traces)), start_s, past_chunks=30)
        while not sessions.is_done:
            if decide is None:
                sessions.step(planned_levels(fugu.model, sessions.observe(), video))
            else:
                each = [sessions.observation(index) for index in range(len(traces))]
                sessions.step(np.array([decide(one) for one in each]))
        return float(sessions.qoe[:, 1:].mean())

    assert qoe(None) > qoe(create("abr", "robustmpc").decide)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": "builtin:nothing"}, "unknown checkpoint 'builtin:nothing'"),
        ({"checkpoint": "builtin:abr-minilm"}, "format is"),
        ({"checkpoint": "/no/such/folder"}, "no such folder"),
        ({"threads": -1}, "threads must not be negative"),
        ({"model": None}, "has no option 'model'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidOptions, match=says):
        create("abr", "fugu", options)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions, match=r"config\.json: missing"):
        create("abr", "fugu", {"checkpoint": str(tmp_path)})
