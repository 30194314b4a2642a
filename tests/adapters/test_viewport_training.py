"""Viewport predictors learn: windows, what is held out, resume, checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.checkpoint_files import CheckpointError
from adapters.checkpoints import load_checkpoint
from adapters.training_loop import TrainingError
from adapters.viewport_checkpoints import load_viewport
from adapters.viewport_features import COMPARED, HISTORY, HORIZON, inputs_of
from adapters.viewport_model import ViewportModelConfig
from adapters.viewport_policy import ViewportPolicy
from adapters.viewport_training import (
    ViewportLearner,
    ViewportTraining,
    _with_strangers,
    train_viewport,
)
from adapters.viewport_windows import RecordingTable, split_recordings
from player.angles import wrap_deg
from player.head_motion import HeadMotion, HeadMotionError
from player.head_motion_model import generate_head_motion, generate_scene
from player.head_motion_windows import observation_at, windows

SMALL = ViewportModelConfig(
    members=2,
    hidden_size=16,
    layers=1,
    heads=2,
    viewer_size=8,
    feature_size=8,
    nearest=3,
    lora_rank=2,
    dropout=0.0,
)
GRU = dataclasses.replace(SMALL, network="gru", members=1)
QUICK = ViewportTraining(
    epochs=2, steps=3, batch_size=16, warmup_steps=2, device="cpu", hold_out=0.34, alone=0.5
)


def recording(video: int, user: int, duration_s: float = 24.0) -> HeadMotion:
    scene = generate_scene(duration_s, np.random.default_rng(video))
    rng = np.random.default_rng((video, user))
    name = f"video{video}/user{user}"
    return generate_head_motion(name, duration_s, rng, scene, video=video, user=user)


@pytest.fixture(scope="module")
def recordings() -> list[HeadMotion]:
    return [recording(video, user) for video in (1, 2, 3) for user in (1, 2, 3, 4)]


def test_what_is_held_out_is_not_learned(recordings: list[HeadMotion]) -> None:
    split = split_recordings(recordings, 0.34, np.random.default_rng(0))
    held = {one.video for one in split.held_out}, {one.user for one in split.held_out}
    assert (len(held[0]), len(held[1])) == (1, 1)
    assert len(split.training) == 2 * 3
    assert not {one.video for one in split.training} & held[0]
    assert not {one.user for one in split.training} & held[1]
    assert {one.video for one in split.beside} == held[0]
    assert not {one.user for one in split.beside} & held[1]
    everything = split_recordings(recordings, 0.0, np.random.default_rng(0))
    assert (len(everything.training), everything.held_out) == (12, ())
    with pytest.raises(HeadMotionError, match="at least two videos"):
        split_recordings(recordings[:4], 0.2, np.random.default_rng(0))
    nameless = dataclasses.replace(recordings[0], user=None)
    with pytest.raises(HeadMotionError, match="needs a number"):
        split_recordings([nameless], 0.0, np.random.default_rng(0))


def test_windows_tell_what_observations_do(recordings: list[HeadMotion]) -> None:
    table = RecordingTable(recordings)
    assert table.most_viewers == 3
    chosen = table.published_windows([0, 5])
    cut = windows(recordings[5])
    assert len(chosen) == len(windows(recordings[0]).index) + len(cut.index)
    of_five = chosen[chosen[:, 0] == 5]
    inputs, moved_deg = table.gather(of_five, 3)
    observations = [
        observation_at(recordings[5], int(index), earlier=recordings[4:8]) for index in cut.index
    ]
    expected = inputs_of(observations)
    assert torch.allclose(inputs.turns, expected.turns, atol=1e-4)
    assert torch.allclose(inputs.level, expected.level, atol=1e-4)
    assert torch.equal(inputs.absent, expected.absent)
    # Others are looked up between samples 0.1 s apart.
    assert torch.allclose(inputs.others, expected.others, atol=0.2)
    np.testing.assert_allclose(moved_deg, wrap_deg(cut.future - cut.history[:, -1:]), atol=1e-4)
    alone, _ = table.gather(of_five, 0)
    assert alone.others.shape == (len(of_five), 0, len(COMPARED) + HORIZON, 3)


def test_every_window_can_be_learned(recordings: list[HeadMotion]) -> None:
    table = RecordingTable(recordings[:2])
    every = table.all_windows([0, 1])
    length = len(recordings[0])
    assert len(every) == 2 * (length - HISTORY - HORIZON + 1)
    inputs, moved_deg = table.gather(every, 5, np.random.default_rng(0))
    assert np.isfinite(moved_deg).all()
    assert inputs.absent.shape == (len(every), 1)


def learner(recordings: list[HeadMotion], config: ViewportTraining = QUICK) -> ViewportLearner:
    split = split_recordings(recordings, config.hold_out, np.random.default_rng(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViewportLearner(ViewportPolicy(SMALL), split, config)


def test_batches_differ_in_who_is_told(recordings: list[HeadMotion]) -> None:
    one = learner(recordings)
    rng = np.random.default_rng(0)
    told = {one.batch(rng).inputs.absent.shape[1] for _ in range(40)}
    assert told == {0, 1, 2}
    again = one.batch(np.random.default_rng(4)), one.batch(np.random.default_rng(4))
    assert torch.equal(again[0].moved_deg, again[1].moved_deg)


def test_strangers_are_turned_away_together(recordings: list[HeadMotion]) -> None:
    table = RecordingTable(recordings)
    inputs, _ = table.gather(table.published_windows(range(12)), 3)
    turned = _with_strangers(inputs, 0.5, np.random.default_rng(0))
    apart = wrap_deg((turned.others - inputs.others).double().numpy())  # (B, U, 24, 3)
    np.testing.assert_allclose(wrap_deg(apart - apart[:, :1, :1]), 0, atol=1e-3)
    share = (np.abs(apart[:, 0, 0, 2]) > 1e-3).mean()
    assert 0.3 < share < 0.7
    assert np.abs(apart[..., 2]).max() > 90
    assert torch.equal(turned.turns, inputs.turns)


def test_learning_beats_no_motion(recordings: list[HeadMotion]) -> None:
    """Viewers who all look the same way: what others did tells more than one's own motion."""
    leader = recording(1, 1, 60.0)
    crowd = [
        dataclasses.replace(leader, name=f"user{user}", video=video, user=user)
        for video in (1, 2)
        for user in (1, 2, 3)
    ]
    one = learner(crowd, dataclasses.replace(QUICK, hold_out=0.34, batch_size=64))
    optimiser = torch.optim.Adam(one.policy.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(one.loss(one.batch(rng)))
        optimiser.step()
    metrics = one.measure(1).metrics
    told, alone = metrics["valid_share_of_static_viewers"], metrics["valid_share_of_static_own"]
    assert told is not None
    assert alone is not None
    assert told < 0.9
    assert told < alone


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    recordings: list[HeadMotion], tmp_path: Path, tiny_backbone: str
) -> None:
    class Killed(RuntimeError):
        pass

    def kill(progress: Any) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise Killed

    given: dict[str, Any] = {"backbone": tiny_backbone, "config": QUICK, "model": SMALL}
    whole = train_viewport(recordings, tmp_path / "whole", **given)
    with pytest.raises(Killed):
        train_viewport(recordings, tmp_path / "killed", on_progress=kill, **given)
    with pytest.raises(TrainingError, match="resume"):
        train_viewport(recordings, tmp_path / "killed", **given)
    other = given | {"config": dataclasses.replace(QUICK, steps=4)}
    with pytest.raises(TrainingError, match="steps"):
        train_viewport(recordings, tmp_path / "killed", resume=True, **other)
    resumed = train_viewport(recordings, tmp_path / "killed", resume=True, **given)
    losses = [[row["train_loss"] for row in one.epochs] for one in (whole, resumed)]
    assert losses[0] == losses[1]
    weights = [load_viewport(one.checkpoint).adapter_state() for one in (whole, resumed)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    with pytest.raises(TrainingError, match="nothing to resume"):
        train_viewport(recordings, tmp_path / "killed", resume=True, **given)
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert (card["task"], card["chosen_by"]) == ("viewport", "valid_loss")
    assert card["recordings"] == 6
    assert len(card["held_out_videos"]) == 1


def test_a_language_model_begins_with_trained_networks(
    recordings: list[HeadMotion], tmp_path: Path, tiny_backbone: str
) -> None:
    everything = dataclasses.replace(QUICK, hold_out=0.0)
    alone = train_viewport(recordings, tmp_path / "alone", config=everything, model=SMALL)
    assert alone.best_epoch == QUICK.epochs  # the last
    still = dataclasses.replace(everything, epochs=1, steps=1, learning_rate=1e-12)
    given: dict[str, Any] = {"config": still, "start_from": [alone.checkpoint]}
    train_viewport(recordings, tmp_path / "both", backbone=tiny_backbone, **given)
    both = load_viewport(str(tmp_path / "both"))
    moving = given | {"config": dataclasses.replace(everything, epochs=1, learning_rate=0.1)}
    train_viewport(recordings, tmp_path / "moved", backbone=tiny_backbone, **moving)
    kept, begun = (
        load_viewport(one).networks.state_dict()
        for one in (str(tmp_path / "moved"), alone.checkpoint)
    )
    assert all(torch.equal(kept[name], begun[name]) for name in begun)
    inputs = inputs_of([observation_at(recordings[0], 50, earlier=recordings[1:4])])
    before, after = load_viewport(alone.checkpoint).foretell(inputs), both.foretell(inputs)
    np.testing.assert_allclose(before[0], after[0], atol=0.05)  # of half precision
    assert both.config == load_viewport(alone.checkpoint).config
    wrong = given | {"model": dataclasses.replace(SMALL, hidden_size=8)}
    with pytest.raises(TrainingError, match="hidden_size = 16, not 8"):
        train_viewport(recordings, tmp_path / "wrong", **wrong)


def test_networks_of_several_checkpoints_are_joined(
    recordings: list[HeadMotion], tmp_path: Path
) -> None:
    quick = dataclasses.replace(QUICK, epochs=1)
    parts = []
    for seed in (0, 1):
        seeded = dataclasses.replace(quick, seed=seed)
        report = train_viewport(recordings, tmp_path / str(seed), config=seeded, model=SMALL)
        parts.append(report.checkpoint)
    still = dataclasses.replace(quick, steps=1, learning_rate=1e-12)
    train_viewport(recordings, tmp_path / "all", config=still, start_from=parts)
    joined = load_viewport(str(tmp_path / "all"))
    assert joined.config.members == 2 * SMALL.members
    inputs = inputs_of([observation_at(recordings[0], 50, earlier=recordings[1:4])])
    single = [load_viewport(one).foretell(inputs)[0] for one in parts]
    np.testing.assert_allclose(joined.foretell(inputs)[0], np.mean(single, axis=0), atol=0.05)
    with pytest.raises(TrainingError, match=f"are {joined.config.members} networks"):
        train_viewport(recordings, tmp_path / "x", config=still, model=SMALL, start_from=parts)


def test_checkpoints_of_something_else_are_refused(
    recordings: list[HeadMotion], tmp_path: Path
) -> None:
    folder = tmp_path / "gru"
    train_viewport(recordings, folder, config=dataclasses.replace(QUICK, epochs=1), model=GRU)
    assert load_viewport(str(folder), network="gru").config == GRU
    with pytest.raises(CheckpointError, match="network is 'gru', asked for 'crowd'"):
        load_viewport(str(folder), network="crowd")
    with pytest.raises(CheckpointError, match="task 'abr', asked for 'viewport'"):
        load_viewport("builtin:abr-minilm")
    with pytest.raises(CheckpointError, match="task 'viewport', asked for 'abr'"):
        load_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match="unknown checkpoint"):
        load_viewport("builtin:abr-fugu")
    config = json.loads((folder / "config.json").read_text())
    for key, value, match in (
        ("members", 2, "is missing"),
        ("members", 0, "members must be at least 1"),
        ("hidden_size", 32, "has shape"),
        ("network", "transformer", "network"),
    ):
        changed = config | {"model": config["model"] | {key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=match):
            load_viewport(str(folder))


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"steps": 0}, {"hold_out": 0.9}, {"alone": -0.1}, {"batch_size": 0}):
        with pytest.raises(TrainingError, match=next(iter(wrong))):
            dataclasses.replace(QUICK, **wrong)
