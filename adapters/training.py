"""Trains the adapters for ABR on an experience pool; the language model stays frozen.

The loss per decision is cross-entropy against the label (the expert's level, or the level that was
taken) and, where the pool knows what each level would have been worth, the expected loss of value
under the model's probabilities. Validation is on traces of the pool that training does not see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adapters.backbones import load_backbone
from adapters.datasets import (
    IGNORED,
    Batch,
    Batches,
    LabelledEpisode,
    Window,
    batches,
    label_episode,
    return_scale,
    split_episodes,
    windows,
)
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.pool_summary import describe_pool
from adapters.pools import Decide, Episode, Pool, pool_ladder
from adapters.training_loop import Measured, Progress, TrainingError
from adapters.training_runs import AdaptedLearner, AdapterTraining, train_adapters

Evaluate = Callable[[Decide], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig(AdapterTraining):
    """How to train on a pool; ``seed`` is also that of the split.

    Attributes:
        validation_fraction: share of the traces held out.
        label_weight: weight of the cross-entropy.
        regret_weight: weight of the expected loss of value, if the pool knows values.
        max_regret: larger losses of value count as this.
        tell_returns: tell the model the return-to-go of what it imitates, and ask for the
            ``return_quantile`` of the pool when it decides; the labels are then the levels taken.
        return_quantile: see ``tell_returns``.
    """

    validation_fraction: float = 0.15
    label_weight: float = 0.3
    regret_weight: float = 1.0
    max_regret: float = 20.0
    tell_returns: bool = False
    return_quantile: float = 0.9

    def __post_init__(self) -> None:
        AdapterTraining.__post_init__(self)
        if not 0 < self.validation_fraction < 1:
            raise TrainingError(
                f"validation_fraction must be between 0 and 1, is {self.validation_fraction}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """One epoch.

    Attributes:
        epoch: from 1.
        train_loss: mean over the epoch.
        gradient_norm: mean over the epoch, before gradients are cut.
        learning_rate: its peak in the schedule.
        valid_loss: on the held-out traces.
        valid_accuracy: share of the labels met there.
        valid_regret: mean loss of value of the chosen level there; None without values.
        valid_qoe: what ``evaluate`` returned; None without it.
        wall_s: seconds that the epoch took.
    """

    epoch: int
    train_loss: float
    gradient_norm: float
    learning_rate: float
    valid_loss: float
    valid_accuracy: float
    valid_regret: float | None
    valid_qoe: float | None
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """Outcome of a training.

    Attributes:
        checkpoint: folder of the best weights.
        best_epoch: the epoch that they come from.
        epochs: what happened.
        train_episodes: sessions trained on.
        valid_episodes: sessions held out.
        trained_parameters: number of weights that training changed.
    """

    checkpoint: str
    best_epoch: int
    epochs: tuple[EpochReport, ...]
    train_episodes: int
    valid_episodes: int
    trained_parameters: int


def train_abr(
    pool: Pool,
    backbone: str,
    out: Path,
    *,
    config: TrainingConfig | None = None,
    model: AbrModelConfig | None = None,
    evaluate: Evaluate | None = None,
    command: str = "",
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Trains adapters and writes the checkpoint of the best epoch to ``out``.

    Args:
        pool: what to learn from.
        backbone: name or path of the frozen language model.
        out: checkpoint folder; ``training-state`` in it lets a killed training go on.
        config: how to train.
        model: shape of the adapters; the ladder is always that of the pool.
        evaluate: measures a controller, higher is better; the best epoch is then chosen by it
            instead of by the loss on the held-out traces.
        command: the command that started this, for the card.
        resume: go on from ``training-state`` if there is one.
        on_progress: is told of every step.

    Returns:
        What happened.

    Raises:
        PoolError: the pool cannot be trained on.
        BackboneError: the language model cannot be loaded, or is too small.
        TrainingError, TrainingDiverged: see :func:`adapters.training_runs.train_adapters`.
    """
    settings = config or TrainingConfig()
    learner, fit = train_adapters(
        "abr",
        lambda: PoolLearner(pool, backbone, settings, model, evaluate),
        out,
        config=settings,
        command=command,
        resume=resume,
        on_progress=on_progress,
    )
    return TrainingReport(
        checkpoint=str(out),
        best_epoch=fit.best_epoch,
        epochs=tuple(EpochReport(**row) for row in fit.history),
        train_episodes=len(learner.train),
        valid_episodes=len(learner.valid),
        trained_parameters=learner.trained_parameters,
    )


class PoolLearner(AdaptedLearner[Batch]):
    """The adapted model, learning from a pool."""

    policy: AbrPolicy

    def __init__(
        self,
        pool: Pool,
        backbone: str,
        config: TrainingConfig,
        model: AbrModelConfig | None,
        evaluate: Evaluate | None,
    ) -> None:
        self.pool, self.config, self.evaluate = pool, config, evaluate
        train, valid = split_episodes(
            pool, fraction=config.validation_fraction, rng=np.random.default_rng(config.seed)
        )
        use_expert = pool.has_expert and not config.tell_returns
        scale = return_scale(train) if config.tell_returns else None

        def label(episodes: Sequence[Episode]) -> list[LabelledEpisode]:
            return [
                label_episode(one, use_expert=use_expert, scale=scale, max_regret=config.max_regret)
                for one in episodes
            ]

        self.train, self.valid = label(train), label(valid)
        target = None
        if scale is not None:
            told = np.concatenate([episode.returns[1:, 0] for episode in self.train])
            target = float(np.quantile(told, config.return_quantile))
        ladder = pool_ladder(pool)
        shape = dataclasses.replace(
            model or AbrModelConfig(levels_kbps=ladder), levels_kbps=ladder, return_target=target
        )
        self.has_values = pool.has_values
        self.module = self.policy = AbrPolicy(shape, load_backbone(backbone))
        self.chosen_by = "valid_qoe" if evaluate else "valid_loss"

    def data(self) -> Mapping[str, Any]:
        """Size of the pool."""
        return {"pool_episodes": len(self.pool.episodes), "pool_chunks": self.pool.chunks}

    def card(self) -> Mapping[str, Any]:
        """What the pool holds, and how it was split."""
        return {
            "pool": dataclasses.asdict(describe_pool(self.pool)),
            "train_episodes": len(self.train),
            "valid_episodes": len(self.valid),
        }

    def batches(self, epoch: int, rng: np.random.Generator) -> Batches:
        """Windows over all training episodes, shuffled."""
        return self._batches(self.train, windows(self.train, self.policy.config.block, rng))

    def _batches(self, episodes: list[LabelledEpisode], order: Sequence[Window]) -> Batches:
        block = self.policy.config.block
        return batches(episodes, order, block=block, batch_size=self.config.batch_size)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the decisions of a batch."""
        return self._loss(self._logits(batch), batch)

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.policy(
            self.policy.tensors(batch.features, torch.from_numpy(batch.returns))
        )
        return logits  # (B, S, levels)

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        label = torch.from_numpy(batch.label).to(logits.device)
        loss = self.config.label_weight * F.cross_entropy(
            logits.flatten(0, 1), label.flatten(), ignore_index=IGNORED
        )
        if self.has_values:
            counts = torch.from_numpy(batch.counts).to(logits.device)
            regret = torch.from_numpy(batch.regret).to(logits.device)
            expected = (logits.softmax(dim=-1) * regret).sum(dim=-1)  # (B, S)
            loss = loss + self.config.regret_weight * expected[counts].mean()
        return loss

    @torch.no_grad()
    def measure(self, epoch: int) -> Measured:
        """Loss, accuracy and regret over the held-out decisions, and the score if there is one."""
        order = windows(self.valid, self.policy.config.block, None)
        loss = hits = regret = count = 0.0
        for batch in self._batches(self.valid, order):
            logits = self._logits(batch)
            decisions = int(batch.counts.sum())
            chosen = logits.argmax(dim=-1).cpu().numpy()
            loss += float(self._loss(logits, batch)) * decisions
            hits += int((chosen == batch.label)[batch.counts].sum())
            lost = np.take_along_axis(batch.regret, chosen[..., None], axis=-1)[..., 0]
            regret += float(lost[batch.counts].sum())
            count += decisions
        qoe = self.evaluate(self.policy.decide) if self.evaluate else None
        return Measured(
            score=-loss / count if qoe is None else qoe,
            metrics={
                "valid_loss": loss / count,
                "valid_accuracy": hits / count,
                "valid_regret": regret / count if self.has_values else None,
                "valid_qoe": qoe,
            },
        )
