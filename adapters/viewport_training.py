"""Trains viewport predictors on recorded head motion: small networks, then a language model on top.

The loss is the mean absolute error over 20 steps and three angles, plus the likelihood of the
errors under the spreads. Every window is seen mirrored half of the time, and often as if the head
had been held higher, lower or more tilted throughout: videos differ in where there is something to
see. How many earlier viewers are told is drawn anew for every batch, few as often as many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.backbones import load_backbone
from adapters.training_loop import Measured, Progress, TrainingError
from adapters.training_processes import process_count
from adapters.training_runs import AdaptedLearner, AdapterReport, AdapterTraining, train_adapters
from adapters.viewport_checkpoints import load_viewport
from adapters.viewport_features import AXES, YAW, ViewportInputs
from adapters.viewport_model import ViewportModelConfig, answer_loss, wrapped
from adapters.viewport_policy import NO_BACKBONE, ViewportPolicy
from adapters.viewport_windows import RecordingTable, Split, split_recordings
from player.head_motion import HeadMotion
from player.viewport_observation import MAX_EARLIER_VIEWERS

#: Weight of the likelihood of the spreads.
SPREAD_WEIGHT = 0.3
#: How often the whole head is held otherwise, and by how much (standard deviations).
TILT_SHARE, ROLL_TILT_DEG, PITCH_TILT_DEG = 0.4, 4.0, 12.0
#: How far strangers are turned away in roll and pitch (standard deviations); in yaw by any angle.
STRANGE_DEG = 15.0
#: Rows that are measured at once.
MEASURED_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewportTraining(AdapterTraining):
    """How to train; ``seed`` is also that of what is held out.

    Attributes:
        epochs: at most.
        steps: batches per epoch.
        hold_out: share of the videos and of the viewers that are held out to choose the epoch by;
            0: learn from all and keep the last epoch.
        alone: share of the batches that are told no earlier viewers.
        strangers: share of the windows whose earlier viewers are turned away together, so that who
            looks elsewhere than all others is not expected to join them.
    """

    epochs: int = 30
    steps: int = 200
    batch_size: int = 512
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-3
    patience: int = 30
    hold_out: float = 0.2
    alone: float = 0.3
    strangers: float = 0.15

    def __post_init__(self) -> None:
        AdapterTraining.__post_init__(self)
        if self.steps < 1:
            raise TrainingError(f"steps must be at least 1, is {self.steps}")
        if not 0 <= self.hold_out <= 0.5:
            raise TrainingError(f"hold_out must be 0 to 0.5, is {self.hold_out}")
        for name in ("alone", "strangers"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} must be 0 to 1, is {getattr(self, name)}")


#: How the language model is trained on top of networks that are trained already.
ADDITION_TRAINING = ViewportTraining(
    epochs=10, steps=100, batch_size=128, learning_rate=5e-4, patience=10
)


def train_viewport(
    recordings: Sequence[HeadMotion],
    out: Path,
    *,
    backbone: str = NO_BACKBONE,
    config: ViewportTraining | None = None,
    model: ViewportModelConfig | None = None,
    start_from: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    command: str = "",
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> AdapterReport:
    """Trains a predictor and writes the checkpoint of the best epoch.

    Networks that a language model is put on top of stay as they are.

    Args:
        recordings: to learn from, with the numbers of their videos and viewers.
        out: checkpoint folder; ``training-state`` in it lets a killed training go on.
        backbone: name or path of the frozen language model; ``none``: networks alone.
        config: how to train.
        model: shape; by default that of ``start_from``, if there is one.
        start_from: checkpoints whose networks this begins with, all of them together.
        data: where the recordings come from, for the card.
        command: the command that started this, for the card.
        resume: go on from ``training-state`` if there is one.
        on_progress: is told of every step.

    Raises:
        BackboneError: the language model cannot be loaded, or is too small.
        CheckpointError: the networks to begin with cannot be loaded.
        HeadMotionError: too few recordings.
        TrainingError: the networks to begin with have another shape, or several processes.
        TrainingError, TrainingDiverged: see :func:`adapters.training_runs.train_adapters`.
    """
    if process_count() > 1:
        raise TrainingError("viewport predictors are trained in one process, not under torchrun")
    with_language_model = backbone != NO_BACKBONE
    settings = config or (ADDITION_TRAINING if with_language_model else ViewportTraining())
    split = split_recordings(recordings, settings.hold_out, np.random.default_rng(settings.seed))

    def make_learner() -> ViewportLearner:
        begun = [load_viewport(one, inference="full") for one in start_from]
        shape = model or joined_shape(begun)
        policy = ViewportPolicy(shape, load_backbone(backbone) if with_language_model else None)
        if begun:
            begin_with(policy, begun)
            policy.networks.requires_grad_(not with_language_model)
        told = {**(data or {}), "start_from": list(start_from)}
        return ViewportLearner(policy, split, settings, told)

    learner, fit = train_adapters(
        "viewport",
        make_learner,
        out,
        config=settings,
        command=command,
        resume=resume,
        on_progress=on_progress,
    )
    return AdapterReport.of(out, learner, fit)


def joined_shape(begun: Sequence[ViewportPolicy]) -> ViewportModelConfig:
    """That of the first, with the members of all."""
    if not begun:
        return ViewportModelConfig()
    members = sum(one.config.members for one in begun)
    return dataclasses.replace(begun[0].config, members=members)


def begin_with(policy: ViewportPolicy, begun: Sequence[ViewportPolicy]) -> None:
    """Copies the networks of trained predictors, behind each other.

    Raises:
        TrainingError: they have another shape, or are not as many.
    """
    for one in begun:
        for name in ("network", "hidden_size", "layers", "heads", "viewer_size"):
            wanted, found = getattr(policy.config, name), getattr(one.config, name)
            if wanted != found:
                raise TrainingError(
                    f"the networks to begin with have {name} = {found}, not {wanted}"
                )
    networks = [network for one in begun for network in one.networks]
    if len(networks) != len(policy.networks):
        raise TrainingError(
            f"there are {len(networks)} networks to begin with, not {len(policy.networks)}"
        )
    for own, network in zip(policy.networks, networks, strict=True):
        own.load_state_dict(network.state_dict())


@dataclass(frozen=True, slots=True, eq=False)
class ViewportBatch:
    """B windows.

    Attributes:
        inputs: what is told.
        moved_deg: ``(B, 20, 3)`` what came.
    """

    inputs: ViewportInputs
    moved_deg: Tensor


class ViewportLearner(AdaptedLearner[ViewportBatch]):
    """Trains a predictor; for the common training loop."""

    policy: ViewportPolicy

    def __init__(
        self,
        policy: ViewportPolicy,
        split: Split,
        config: ViewportTraining,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes what is learned from.

        Args:
            policy: the predictor.
            split: recordings to learn from and to measure on.
            config: how to train.
            data: where the recordings come from, for the card.

        Raises:
            TrainingError: no recording is long enough.
        """
        self.module = self.policy = policy
        self.config = config
        self.chosen_by = "valid_loss" if split.held_out else "the last epoch"
        self._data = data or {}
        self._split = split
        self._table = RecordingTable(split.training)
        self._windows = self._table.all_windows(range(len(split.training)))
        if not len(self._windows):
            raise TrainingError("no recording to learn from is long enough")
        self._held: tuple[RecordingTable, Sequence[int]] | None = None
        if split.held_out:
            self._held = (
                RecordingTable(split.held_out + split.beside),
                range(len(split.held_out)),
            )

    def data(self) -> Mapping[str, Any]:
        """Recordings and windows."""
        return {
            **self._data,
            "recordings": len(self._split.training),
            "windows": len(self._windows),
            "videos_learned": _numbers(one.video for one in self._split.training),
            "users_learned": _numbers(one.user for one in self._split.training),
            "held_out_videos": _numbers(one.video for one in self._split.held_out),
            "held_out_users": _numbers(one.user for one in self._split.held_out),
        }

    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[ViewportBatch]:
        """Drawn windows, each batch gathered when it is asked for."""
        return _Batches(self, rng)

    def batch(self, rng: np.random.Generator) -> ViewportBatch:
        """Drawn windows, mirrored and tilted at random."""
        config, table = self.config, self._table
        chosen = self._windows[rng.integers(len(self._windows), size=config.batch_size)]
        viewers = 0
        most = min(table.most_viewers, MAX_EARLIER_VIEWERS)
        if most and self.policy.config.network != "gru" and rng.random() >= config.alone:
            # Up to twice as many as there are, so that all are told now and then.
            viewers = min(int(math.exp(rng.uniform(0.0, math.log(2 * most)))), most)
        inputs, moved_deg = table.gather(chosen, viewers, rng)
        if viewers and config.strangers:
            inputs = _with_strangers(inputs, config.strangers, rng)
        count = len(chosen)
        tilted = rng.random((count, 2)) < TILT_SHARE
        tilt_deg = rng.normal(size=(count, 2)) * (ROLL_TILT_DEG, PITCH_TILT_DEG) * tilted
        sign = np.where(rng.random((count, 1)) < 0.5, (-1.0, 1.0, -1.0), 1.0)  # (B, 3)
        turned = torch.from_numpy(sign.astype(np.float32))
        level = inputs.level + torch.from_numpy(tilt_deg.astype(np.float32))
        return ViewportBatch(
            dataclasses.replace(
                inputs,
                turns=inputs.turns * turned[:, None],
                level=level * turned[:, :2],
                others=inputs.others * turned[:, None, None],
            ),
            torch.from_numpy((moved_deg * sign[:, None]).astype(np.float32)),
        )

    def loss(self, batch: ViewportBatch) -> Tensor:
        """``()`` of each network by itself; with a language model, of the answer."""
        device = self.policy.device
        answers, answer = self.policy(batch.inputs.to(device))
        learned = answers if self.policy.addition is None else answer
        return answer_loss(learned, batch.moved_deg.to(device), SPREAD_WEIGHT)

    @torch.no_grad()
    def measure(self, epoch: int) -> Measured:
        """Mean error on the held-out recordings, without and with all earlier viewers."""
        if self._held is None:
            return Measured(float(epoch), {})
        table, rows = self._held
        chosen = table.published_windows(rows)
        kinds = {"own": 0, "viewers": table.most_viewers}
        if self.policy.config.network == "gru":
            del kinds["viewers"]
        metrics: dict[str, float | None] = {}
        errors = []
        for kind, viewers in kinds.items():
            error = still = 0.0
            for part in np.array_split(chosen, -(-len(chosen) // MEASURED_ROWS)):
                inputs, moved_deg = table.gather(part, viewers)
                found, _ = self.policy.foretell(inputs)
                error += float(np.abs((found - moved_deg + 180) % 360 - 180).sum())
                still += float(np.abs(moved_deg).sum())
            errors.append(error / (len(chosen) * moved_deg[0].size))
            metrics[f"valid_mae_deg_{kind}"] = errors[-1]
            metrics[f"valid_share_of_static_{kind}"] = error / still
        loss = float(np.mean(errors))
        return Measured(-loss, {"valid_loss": loss, **metrics})


class _Batches(Sequence[ViewportBatch]):
    """Batches to be taken in their order."""

    def __init__(self, learner: ViewportLearner, rng: np.random.Generator) -> None:
        self._learner, self._rng = learner, rng

    def __len__(self) -> int:
        return self._learner.config.steps

    def __getitem__(self, index: int) -> ViewportBatch:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._learner.batch(self._rng)


def _with_strangers(
    inputs: ViewportInputs, share: float, rng: np.random.Generator
) -> ViewportInputs:
    """Turns the earlier viewers of some windows away, all of a window by the same."""
    count = len(inputs)
    away_deg = rng.normal(0.0, STRANGE_DEG, size=(count, AXES))
    away_deg[:, YAW] = rng.uniform(-180.0, 180.0, count)
    away_deg[rng.random(count) >= share] = 0.0
    others = inputs.others + torch.from_numpy(away_deg.astype(np.float32))[:, None, None]
    return dataclasses.replace(inputs, others=wrapped(others))


def _numbers(found: Iterable[int | None]) -> list[int]:
    return sorted({one for one in found if one is not None})
