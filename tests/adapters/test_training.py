"""Training on a tiny backbone: it learns, it is reproducible, it resumes, and checkpoints hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.checkpoints import (
    CHECKPOINT_FORMAT,
    CheckpointError,
    builtin_checkpoints,
    checkpoint_folder,
    load_checkpoint,
)
from adapters.datasets import Batch
from adapters.policy import AbrModelConfig
from adapters.pools import Pool, PoolError
from adapters.scheduling_checkpoints import load_scheduling
from adapters.training import PoolLearner, TrainingConfig, train_abr
from adapters.training_loop import Progress, TrainingDiverged, TrainingError
from adapters.viewport_checkpoints import load_viewport
from player.observation import AbrObservation

CONFIG = TrainingConfig(
    epochs=3, batch_size=8, learning_rate=5e-3, warmup_steps=2, validation_fraction=0.3
)
MODEL = AbrModelConfig(levels_kbps=(), block=3, feature_size=8, lora_rank=2)


def train(pool: Pool, backbone: str, out: Path, **changes: object) -> list[float]:
    report = train_abr(
        pool, backbone, out, config=dataclasses.replace(CONFIG, **changes), model=MODEL
    )
    return [epoch.valid_loss for epoch in report.epochs]


@pytest.fixture(scope="module")
def trained(small_pool: Pool, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "abr"
    train(small_pool, tiny_backbone, out)
    return out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def observations(pool: Pool) -> list[AbrObservation]:
    return [episode.observation(step) for episode in pool.episodes for step in (0, 1, 5, 13)]


def test_training_lowers_the_loss_and_describes_itself(
    small_pool: Pool, tiny_backbone: str, tmp_path: Path
) -> None:
    steps: list[Progress] = []
    report = train_abr(
        small_pool,
        tiny_backbone,
        tmp_path / "out",
        config=dataclasses.replace(CONFIG, epochs=6),
        model=MODEL,
        command="testbed train abr",
        on_progress=steps.append,
    )
    assert report.epochs[-1].train_loss < report.epochs[0].train_loss
    assert steps[-1].epoch == len(report.epochs)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter.safetensors",
        "config.json",
        "card.json",
    }
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["command"] == "testbed train abr"
    assert card["best_epoch"] == report.best_epoch
    assert card["chosen_by"] == "valid_loss"
    assert card["wall_s"] > 0
    assert card["machine"]["torch_threads"] == 1
    assert card["commit"] is None or len(card["commit"]) == 40
    assert card["pool"]["arms"][0]["sessions"] == 4
    assert set(card["epochs"][0]) >= {"train_loss", "valid_loss", "gradient_norm", "wall_s"}


def test_equal_seeds_give_equal_trainings(
    small_pool: Pool, tiny_backbone: str, trained: Path, tmp_path: Path
) -> None:
    train(small_pool, tiny_backbone, tmp_path / "again")
    first, second = (
        load_file(path / "adapter.safetensors") for path in (trained, tmp_path / "again")
    )
    assert all(first[key].equal(second[key]) for key in first)


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    small_pool: Pool, tiny_backbone: str, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        train_abr(small_pool, tiny_backbone, out, config=CONFIG, model=MODEL, on_progress=kill)
    train_abr(small_pool, tiny_backbone, out, config=CONFIG, model=MODEL, resume=True)
    whole, resumed = (load_file(path / "adapter.safetensors") for path in (trained, out))
    assert all(whole[key].equal(resumed[key]) for key in whole)


def test_a_state_of_other_settings_is_refused(
    small_pool: Pool, tiny_backbone: str, tmp_path: Path
) -> None:
    def kill(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_abr(small_pool, tiny_backbone, tmp_path, config=CONFIG, model=MODEL, on_progress=kill)
    other = dataclasses.replace(CONFIG, learning_rate=1e-3)
    with pytest.raises(TrainingError, match="learning_rate"):
        train_abr(small_pool, tiny_backbone, tmp_path, config=other, model=MODEL, resume=True)


def test_a_training_that_diverges_keeps_its_best_epoch_and_goes_on_slower(
    small_pool: Pool, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = PoolLearner.loss
    steps = iter(range(1000))

    def overflow(learner: PoolLearner, batch: Batch) -> torch.Tensor:
        factor = float("inf") if next(steps) == 6 else 1.0
        return loss(learner, batch) * factor

    monkeypatch.setattr(PoolLearner, "loss", overflow)
    config = dataclasses.replace(CONFIG, batch_size=4)
    with pytest.raises(TrainingDiverged, match="epoch 2"):
        train_abr(small_pool, tiny_backbone, tmp_path, config=config, model=MODEL)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["best_epoch"] == 1
    assert card["diverged"][0]["epoch"] == 2
    load_checkpoint(str(tmp_path))
    slower = dataclasses.replace(config, learning_rate=1e-3)
    report = train_abr(small_pool, tiny_backbone, tmp_path, config=slower, model=MODEL, resume=True)
    assert len(report.epochs) == 3
    assert json.loads((tmp_path / "card.json").read_text())["diverged"][0]["epoch"] == 2
    with pytest.raises(TrainingError, match="nothing to resume"):
        train_abr(small_pool, tiny_backbone, tmp_path, config=slower, model=MODEL, resume=True)


def test_gradient_checkpointing_changes_no_weight(
    small_pool: Pool, tiny_backbone: str, trained: Path, tmp_path: Path
) -> None:
    train(small_pool, tiny_backbone, tmp_path, gradient_checkpointing=True)
    first, second = (load_file(path / "adapter.safetensors") for path in (trained, tmp_path))
    assert all(first[key].allclose(second[key], atol=1e-3) for key in first)


def test_a_pool_of_several_ladders_is_refused(
    small_pool: Pool, tiny_backbone: str, tmp_path: Path
) -> None:
    first, *rest = small_pool.episodes
    video = dataclasses.replace(first.video, levels_kbps=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    mixed = Pool((dataclasses.replace(first, video=video), *rest))
    with pytest.raises(PoolError, match=r"mixes 2 ladders.*1, 2, 3, 4, 5, 6; 300, 750"):
        train(mixed, tiny_backbone, tmp_path)


def test_a_score_chooses_the_best_epoch(
    small_pool: Pool, tiny_backbone: str, tmp_path: Path
) -> None:
    scores = iter((1.0, 3.0, 2.0))

    def evaluate(decide: Callable[[AbrObservation], int]) -> float:
        assert 0 <= decide(small_pool.episodes[0].observation(5)) < 6
        return next(scores)

    report = train_abr(
        small_pool, tiny_backbone, tmp_path, config=CONFIG, model=MODEL, evaluate=evaluate
    )
    assert report.best_epoch == 2
    assert [epoch.valid_qoe for epoch in report.epochs] == [1.0, 3.0, 2.0]


def test_conditioning_on_returns_works_without_labels(
    small_pool: Pool, tiny_backbone: str, tmp_path: Path
) -> None:
    train(small_pool, tiny_backbone, tmp_path, tell_returns=True, epochs=1)
    policy = load_checkpoint(str(tmp_path))
    assert policy.config.return_target is not None


@pytest.mark.parametrize("change", [{"epochs": 0}, {"learning_rate": 0.0}, {"patience": 0}])
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)


def test_a_checkpoint_answers_the_same_whenever_it_is_loaded(
    small_pool: Pool, trained: Path
) -> None:
    asked = observations(small_pool)
    first, second = (load_checkpoint(str(trained)) for _ in range(2))
    assert first.decide_many(asked) == [second.decide(one) for one in asked]
    assert first.decide(asked[0]) == 0  # before any measurement


def test_a_checkpoint_of_another_task_is_refused(copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"for task 'abr', asked for 'viewport'"):
        load_checkpoint(str(copy), task="viewport")


def test_missing_files_and_names_are_told(copy: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown checkpoint 'builtin:none'"):
        load_checkpoint("builtin:none")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(str(copy / "nowhere"))
    (copy / "adapter.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors: missing"):
        load_checkpoint(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        load_checkpoint(str(copy))


def test_damaged_weights_are_named(copy: Path) -> None:
    path = copy / "adapter.safetensors"
    weights = load_file(path)
    key = sorted(weights)[0]
    save_file({**weights, "stray": weights[key].clone()}, path)
    with pytest.raises(CheckpointError, match="'stray' does not belong"):
        load_checkpoint(str(copy))
    save_file({name: value for name, value in weights.items() if name != key}, path)
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(str(copy))
    save_file({**weights, key: weights[key].flatten()[:1].clone()}, path)
    with pytest.raises(CheckpointError, match="has shape"):
        load_checkpoint(str(copy))
    save_file({**weights, key: weights[key] * float("nan")}, path)
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(str(copy))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(str(copy))


def test_another_backbone_is_refused(copy: Path, make_backbone: Callable[..., Path]) -> None:
    other = make_backbone("bert", copy / "other", seed=9)
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_checkpoint(str(copy), backbone=str(other))


def test_what_is_shipped_loads() -> None:
    assert "builtin:abr-minilm" in builtin_checkpoints()
    for name in builtin_checkpoints():
        config = json.loads((checkpoint_folder(name) / "config.json").read_text())
        if config["format"] != CHECKPOINT_FORMAT:  # the baselines have formats of their own
            continue
        if config["task"] == "abr":
            assert load_checkpoint(name).config.levels == 6
        else:
            load = {"viewport": load_viewport, "scheduling": load_scheduling}[config["task"]]
            assert load(name).adapter_state()
