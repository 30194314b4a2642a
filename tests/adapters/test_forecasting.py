"""A language model learns to foretell throughput: windows, likelihood, resume, checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.backbones import load_backbone
from adapters.checkpoints import load_checkpoint
from adapters.features import StepFeatures, step_features, vectorised_features
from adapters.forecasting import (
    SMALL_NETWORK,
    ForecastConfig,
    ForecastLearner,
    Windows,
    cut,
    session_steps,
    train_forecast,
    windows_of,
)
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.pools import Pool
from adapters.throughput_checkpoints import load_throughput_model
from adapters.throughput_model import ThroughputModel
from adapters.throughput_training import Rounds
from adapters.tokens import window_start
from adapters.training_loop import TrainingError
from controllers.registry import create
from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.trace import Trace
from player.vectorised import Sessions
from player.video import PENSIEVE_LEVELS_KBPS, generate_video

BLOCK = 4
SMALL = AbrModelConfig(
    levels_kbps=PENSIEVE_LEVELS_KBPS, layout="forecast", block=BLOCK, feature_size=8, lora_rank=2
)
QUICK = ForecastConfig(
    epochs=2, rounds=1, sessions=8, batch_size=16, learning_rate=3e-3, warmup_steps=2, device="cpu"
)


@pytest.fixture(scope="module")
def traces(small_traces: dict[str, Trace]) -> list[Trace]:
    return list(small_traces.values())


@pytest.fixture(scope="module")
def windows(traces: list[Trace]) -> tuple[StepFeatures, Windows]:
    rounds = Rounds([traces], horizon=3, sessions=5, rng=np.random.default_rng(1))
    seen, video, examples = rounds.play_session()
    steps = session_steps(seen, video)
    return steps, windows_of(steps, examples, BLOCK)


def test_every_step_is_learned_once_with_all_of_its_window(
    windows: tuple[StepFeatures, Windows],
) -> None:
    steps, cut_up = windows
    sessions, count = steps.action.shape
    assert int(cut_up.counts.sum()) == sessions * (count - 1)  # chunk 0 is no decision
    learned = cut_up.features.throughput[cut_up.counts.numpy()]
    every = steps.throughput[:, 1:].reshape(learned.shape)
    order = [np.lexsort(rows.reshape(len(rows), -1).T) for rows in (learned, every)]
    assert np.array_equal(learned[order[0]], every[order[1]])
    length = cut_up.counts.shape[1]
    for window in range(0, len(cut_up.counts), sessions):
        places = cut_up.counts[window].nonzero()[:, 0].tolist()
        rows = cut_up.features.throughput[window]
        found = [
            step
            for step in range(count)
            if np.array_equal(steps.throughput[0, step], rows[places[-1]])
        ]
        last = found[-1]
        assert places[-1] == last - window_start(last, BLOCK) < length


def test_examples_belong_to_their_steps(windows: tuple[StepFeatures, Windows]) -> None:
    _, cut_up = windows
    some = cut(cut_up, np.array([3, 0]))
    length = cut_up.counts.shape[1]
    for place, row in enumerate((3, 0)):
        assert np.array_equal(
            some.examples.log_ratio[place * length : (place + 1) * length],
            cut_up.examples.log_ratio[row * length : (row + 1) * length],
            equal_nan=True,
        )
        assert np.array_equal(some.features.throughput[place], cut_up.features.throughput[row])


def test_a_step_does_not_know_what_came_of_it(windows: tuple[StepFeatures, Windows]) -> None:
    """What came of step t, relative to the mean before it, is first told at step t + 1."""
    steps, cut_up = windows
    rounds_seen = steps.throughput[:, :, 0]  # (B, n, K) logs
    assert not steps.throughput[:, 0].any()
    length = cut_up.counts.shape[1]
    came = cut_up.examples.log_ratio.reshape(-1, length, 3)[: len(steps.action), :, 0]  # (B, S)
    for step in range(1, length - 1):
        recent = rounds_seen[:, step, -min(step, 5) :]
        reference = np.log(recent.shape[1] / np.exp(-recent).sum(axis=1))
        told_next = rounds_seen[:, step + 1, -1] - reference
        np.testing.assert_allclose(told_next, came[:, step], atol=1e-4)


def test_vectorised_features_are_those_of_the_observation(traces: list[Trace]) -> None:
    video = generate_video("one", chunks=12, rng=np.random.default_rng(2))
    table = LinkTable([PensieveLink(trace) for trace in traces[:2]])
    sessions = Sessions(video, table, [0, 1, 1], [0.0, 3.0, 9.0])
    rng = np.random.default_rng(3)
    while not sessions.is_done:
        together = vectorised_features(sessions.observe(), video)
        for index in range(3):
            alone = step_features(sessions.observation(index))
            for field in dataclasses.fields(StepFeatures):
                np.testing.assert_allclose(
                    getattr(together, field.name)[index],
                    getattr(alone, field.name),
                    rtol=1e-6,
                    err_msg=field.name,
                )
        sessions.step(rng.integers(0, video.levels, 3))


def test_the_player_does_not_enter_the_forecast(
    windows: tuple[StepFeatures, Windows], tiny_backbone: str
) -> None:
    """Neither buffer nor levels nor sizes: the link does not look at them."""
    steps, _ = windows
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = AbrPolicy(SMALL, load_backbone(tiny_backbone)).eval()
    window = steps[:, : 2 * BLOCK]
    other = dataclasses.replace(
        window,
        buffer=window.buffer + 1,
        bitrate=window.bitrate + 1,
        sizes=window.sizes + 1,
        chunks_left=window.chunks_left / 2,
        action=window.action * 0,
    )
    with torch.no_grad():
        assert torch.equal(policy(policy.tensors(window)), policy(policy.tensors(other)))


def test_training_learns_resumes_and_answers_the_same(
    traces: list[Trace], tiny_backbone: str, tmp_path: Path, small_pool: Pool
) -> None:
    sets = {"one": traces[:-1]}, {"two": traces[-1:]}
    config = dataclasses.replace(QUICK, epochs=3)

    class Killed(Exception):
        """Stands for a signal."""

    def kill(progress: object) -> None:
        if progress.epoch == 3:  # type: ignore[attr-defined]
            raise Killed

    small: dict[str, Any] = {"config": config, "model": SMALL, "start_from": None}
    whole = train_forecast(*sets, tiny_backbone, tmp_path / "whole", **small)
    losses = [row["valid_loss"] for row in whole.epochs]
    assert losses[-1] < losses[0]
    with pytest.raises(Killed):
        train_forecast(*sets, tiny_backbone, tmp_path / "torn", **small, on_progress=kill)
    torn = train_forecast(*sets, tiny_backbone, tmp_path / "torn", **small, resume=True)
    assert [row["valid_loss"] for row in torn.epochs] == losses
    with pytest.raises(TrainingError, match="has finished"):
        train_forecast(*sets, tiny_backbone, tmp_path / "torn", **small, resume=True)
    observations = [small_pool.episodes[0].observation(index) for index in (0, 1, 7)]
    answers = [
        load_checkpoint(str(tmp_path / name)).decide_many(observations)
        for name in ("whole", "torn")
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 0


def test_the_language_model_begins_by_adding_nothing(
    traces: list[Trace], tiny_backbone: str, small_pool: Pool
) -> None:
    small = load_throughput_model(SMALL_NETWORK)
    policy = AbrPolicy(SMALL, load_backbone(tiny_backbone)).eval()
    ForecastLearner(policy, [traces], [traces], QUICK, small)
    fugu = create("abr", "fugu", {})
    for index in (1, 5, 12):
        observation = small_pool.episodes[0].observation(index)
        assert policy.decide(observation) == fugu.decide(observation)
    other = ThroughputModel(dataclasses.replace(small.config, bins=5))
    with pytest.raises(TrainingError, match="does not fit"):
        ForecastLearner(policy, [traces], [traces], QUICK, other)


def test_batches_of_a_window_each_are_never_empty(traces: list[Trace], tiny_backbone: str) -> None:
    """Short videos have fewer windows than the batches that a round is given."""
    from adapters.backbones import load_backbone

    shape = dataclasses.replace(SMALL, block=16)
    config = dataclasses.replace(QUICK, rounds=6, sessions=2, batch_size=1)
    policy = AbrPolicy(shape, load_backbone(tiny_backbone))
    learner = ForecastLearner(policy, [traces], [traces], config)
    batches = learner.batches(1, np.random.default_rng(1))
    counted = [int(batch.counts.sum()) for batch in batches]
    assert len(counted) == len(batches)
    assert min(counted) > 0


def test_nothing_to_validate_on_is_refused(traces: list[Trace], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="other traces to validate on"):
        train_forecast({"one": traces}, {}, "minilm", tmp_path)


def test_several_processes_are_refused(
    traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would play the same sessions and write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="in one process"):
        train_forecast({"one": traces}, {"two": traces}, "minilm", tmp_path)


@pytest.mark.parametrize("setting", ["rounds", "sessions", "batch_size", "epochs"])
def test_settings_below_one_are_refused(setting: str) -> None:
    with pytest.raises(TrainingError, match=f"{setting} must be at least 1"):
        dataclasses.replace(QUICK, **{setting: 0})


def test_bins_stand_for_what_was_seen(
    traces: list[Trace], make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    policy = AbrPolicy(SMALL, load_backbone(str(make_backbone("gpt2", tmp_path))))
    learner = ForecastLearner(policy, [traces], [traces], QUICK)
    ratio = learner.head.ratio
    assert (ratio.diff() > 0).all()
    assert "head.ratio" in learner.weights()
