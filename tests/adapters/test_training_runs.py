"""A training from start to checkpoint: which folders are refused, and what any task gets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters.backbones import Backbone, add_lora, load_backbone
from adapters.checkpoints import CheckpointConfig, load_adapted, load_checkpoint
from adapters.training_loop import STATE_FOLDER, Measured, Progress, TrainingError
from adapters.training_runs import AdaptedLearner, AdapterTraining, train_adapters

CONFIG = AdapterTraining(epochs=2, learning_rate=1e-2, warmup_steps=1, device="cpu")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WalkShape:
    """Shape of a model of some other task."""

    lora_rank: int


class WalkModel(nn.Module):
    """Tells the next number of a walk."""

    def __init__(self, config: WalkShape, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(1, backbone.hidden_size)
        self.head = nn.Linear(backbone.hidden_size, 1)
        self.backbone = backbone.share()
        add_lora(self.backbone, rank=config.lora_rank, alpha=1.0)

    def forward(self, walk: Tensor) -> Tensor:
        allowed = torch.ones(walk.shape[1], walk.shape[1]).tril().bool()
        told: Tensor = self.head(self.backbone(self.encoder(walk), allowed))
        return told  # (B, T, 1)

    def adapter_state(self) -> dict[str, Tensor]:
        state = self.state_dict()
        return {key: one for key, one in state.items() if "lora_" in key or "backbone" not in key}


class WalkLearner(AdaptedLearner[Tensor]):
    policy: WalkModel

    def __init__(self, backbone: str) -> None:
        self.module = self.policy = WalkModel(WalkShape(lora_rank=2), load_backbone(backbone))

    def batches(self, epoch: int, rng: np.random.Generator) -> list[Tensor]:
        walks = rng.normal(size=(3, 4, 6, 1)).cumsum(axis=2).astype(np.float32)
        return list(torch.from_numpy(walks))

    def loss(self, batch: Tensor) -> Tensor:
        told: Tensor = self.policy(batch[:, :-1])
        return (told - batch[:, 1:]).square().mean()

    def measure(self, epoch: int) -> Measured:
        return Measured(float(epoch), {"valid_loss": -float(epoch)})

    def data(self) -> Mapping[str, Any]:
        return {"walks": 3}


def train(backbone: str, out: Path, **given: Any) -> WalkLearner:
    learner, fit = train_adapters(
        "walk", lambda: WalkLearner(backbone), out, config=CONFIG, **given
    )
    assert fit.best_epoch == 2
    return learner


def test_another_task_is_trained_resumed_and_loaded(tiny_backbone: str, tmp_path: Path) -> None:
    class Killed(BaseException):
        """Stands for a signal."""

    def kill(progress: Progress) -> None:
        if progress.epoch == 2:
            raise Killed

    whole = train(tiny_backbone, tmp_path / "whole", command="train walk")
    with pytest.raises(Killed):
        train(tiny_backbone, tmp_path / "torn", on_progress=kill)
    assert [path.name for path in (tmp_path / "torn").iterdir()] == [STATE_FOLDER]
    train(tiny_backbone, tmp_path / "torn", resume=True)
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert (card["task"], card["command"], card["walks"]) == ("walk", "train walk", 3)
    assert card["trained_parameters"] == whole.trained_parameters
    with pytest.raises(ValueError, match="for task 'walk', asked for 'abr'"):
        load_checkpoint(str(tmp_path / "whole"))
    walk = torch.ones(1, 4, 1)
    answers = []
    for name in ("whole", "torn"):
        loaded = load_adapted(str(tmp_path / name), "walk", CheckpointConfig[WalkShape], WalkModel)
        answers.append(loaded.eval()(walk))
    assert torch.equal(*answers)
    # Weights are stored in half precision.
    assert torch.allclose(whole.policy.eval()(walk), answers[0], atol=1e-2)


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    def refused(says: str, *, resume: bool) -> None:
        with pytest.raises(TrainingError, match=says):
            train("never loaded", tmp_path / "out", resume=resume)

    (tmp_path / "out").write_text("a file")
    refused("is not a folder", resume=True)
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    refused("is not empty", resume=False)
    refused("no training-state to resume, but 'thesis.tex'", resume=True)
    (tmp_path / "out" / "config.json").write_text("{}")
    refused("has finished", resume=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match="batch_size must be at least 1"):
        dataclasses.replace(CONFIG, batch_size=0)
