"""Trains the learned scheduler to decide as an expert does in the states of an experience pool.

The expert said a score of every stage and a limit of its job. Learned are its preferences, as the
divergence of two softmax distributions over the stages whose jobs are below the expert's limits,
and the logarithms of the limits, mostly of the stages that it prefers. What is already right with
the graph network alone is right before training. The best epoch is chosen by what the model reaches
in simulated workloads, or by the loss on held-out sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from adapters.backbones import Backbone, load_backbone
from adapters.decima import Ratings, load_decima
from adapters.decima_features import Float32Array
from adapters.scheduling_checkpoints import TASK, load_unfrozen
from adapters.scheduling_features import SchedulingInputs, Told
from adapters.scheduling_policy import SchedulingModelConfig, SchedulingPolicy
from adapters.scheduling_pools import LabelledDecision, SchedulingPool
from adapters.training_loop import Measured, Progress, TrainingError
from adapters.training_processes import process_count
from adapters.training_runs import AdaptedLearner, AdapterReport, AdapterTraining, train_adapters
from cluster_sim.observation import Assignment, ClusterView

DEFAULT_BASE = "builtin:scheduling-decima"
#: Weight of the limits in the loss, where an error in the logarithm turns from squared to absolute,
#: and what every stage counts beside the share that the expert's preferences give it.
LIMIT_WEIGHT, LIMIT_TURN, LEAST_SHARE = 2.0, 0.1, 0.03
#: Decisions that are measured at once; batches of like length are drawn from so many.
MEASURED_ROWS, SORTED_BATCHES = 128, 16
_BARRED = -1e4

#: What a scheduler reaches: mean job completion time by a baseline's.
Evaluate = Callable[[Callable[[ClusterView], Assignment]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingTraining(AdapterTraining):
    """How to train; ``seed`` is also that of what is held out.

    Attributes:
        epochs: at most.
        steps: batches per epoch; 0: all decisions once.
        hold_out: share of the sessions that are held out to measure on; 0: none.
        temperature: of the expert's and the model's preferences, in units of scores.
    """

    epochs: int = 4
    steps: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 1e-3
    hold_out: float = 0.1
    temperature: float = 0.5

    def __post_init__(self) -> None:
        AdapterTraining.__post_init__(self)
        if self.steps < 0:
            raise TrainingError(f"steps must not be negative, is {self.steps}")
        if not 0 <= self.hold_out <= 0.5:
            raise TrainingError(f"hold_out must be 0 to 0.5, is {self.hold_out}")
        if not 0 < self.temperature < float("inf"):
            raise TrainingError(f"temperature must be positive, is {self.temperature}")


def train_scheduling(
    pool: SchedulingPool,
    out: Path,
    *,
    backbone: str = "minilm",
    base: str = DEFAULT_BASE,
    start_from: str | None = None,
    config: SchedulingTraining | None = None,
    model: SchedulingModelConfig | None = None,
    evaluate: Evaluate | None = None,
    command: str = "",
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> AdapterReport:
    """Trains a scheduler and writes the checkpoint of the best epoch.

    Args:
        pool: what to learn from.
        out: checkpoint folder; ``training-state`` in it lets a killed training go on.
        backbone: name or path of the frozen language model.
        base: checkpoint of the graph network that the language model adds to.
        start_from: checkpoint of such a training to go on from, which then says what backbone,
            base and shape are.
        config: how to train.
        model: shape; that of the graph network is its checkpoint's.
        evaluate: plays simulated workloads; by default the loss chooses the epoch.
        command: the command that started this, for the card.
        resume: go on from ``training-state`` if there is one.
        on_progress: is told of every step.

    Raises:
        BackboneError: the language model cannot be loaded, or is too small.
        CheckpointError: what it begins with cannot be loaded.
        PoolError: the pool has nothing to learn from.
        TrainingError, TrainingDiverged: see :func:`adapters.training_runs.train_adapters`.
    """
    if process_count() > 1:
        raise TrainingError("schedulers are trained in one process, not under torchrun")
    settings = config or SchedulingTraining()
    began = {"base": base if start_from is None else None, "start_from": start_from}

    def make_learner() -> SchedulingLearner:
        if start_from is None:
            policy = new_policy(backbone, base, model)
        else:
            policy = load_unfrozen(start_from)
        return SchedulingLearner(policy, pool, settings, evaluate, began)

    learner, fit = train_adapters(
        TASK,
        make_learner,
        out,
        config=settings,
        command=command,
        resume=resume,
        on_progress=on_progress,
    )
    return AdapterReport.of(out, learner, fit)


def new_policy(
    backbone: str, base: str = DEFAULT_BASE, model: SchedulingModelConfig | None = None
) -> SchedulingPolicy:
    """A policy that decides as its graph network does, up to the rounding of its weights."""
    graph = load_decima(base)
    shape = model or SchedulingModelConfig(
        embedding_size=graph.config.embedding_size,
        hidden_size=graph.config.hidden_size,
        idle_guard=graph.config.idle_guard,
    )
    found: Backbone = load_backbone(backbone)
    return SchedulingPolicy(shape, found, graph.network)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A decision to learn from.

    Attributes:
        told: what the model is told.
        scores: ``(C,)`` the expert's.
        log_limits: ``(C,)`` likewise; 0 or less.
        is_open: ``(C,)`` stages of jobs below the expert's limits, or all.
    """

    told: Told
    scores: Float32Array
    log_limits: Float32Array
    is_open: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class SchedulingBatch:
    """B decisions.

    Attributes:
        inputs: what is told.
        scores: ``(B, C)`` the expert's.
        log_limits: ``(B, C)`` likewise.
        is_open: ``(B, C)``.
    """

    inputs: SchedulingInputs
    scores: Tensor
    log_limits: Tensor
    is_open: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device) -> SchedulingBatch:
        """Puts examples together."""
        inputs = SchedulingInputs.of([one.told for one in examples])
        shape = inputs.scores.shape
        scores, log_limits, is_open = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        for row, one in enumerate(examples):
            count = len(one.scores)
            scores[row, :count], log_limits[row, :count] = one.scores, one.log_limits
            is_open[row, :count] = one.is_open
        return cls(
            inputs.to(device),
            torch.from_numpy(scores).to(device),
            torch.from_numpy(log_limits).to(device),
            torch.from_numpy(is_open > 0).to(device),
        )


def example_of(policy: SchedulingPolicy, decision: LabelledDecision) -> Example | None:
    """What is learned from a decision; None where no stage may be chosen."""
    view = decision.view
    told = policy.tell(view)
    if told is None:
        return None
    candidates = policy.base.candidates(view)
    expert = Ratings.of(candidates, decision.scores, decision.log_limits, executors=view.executors)
    is_open = expert.rooms > 0
    return Example(
        told,
        decision.scores,
        np.minimum(decision.log_limits, 0),
        is_open if is_open.any() else np.ones_like(is_open),
    )


def imitation_loss(
    scores: Tensor, log_limits: Tensor, batch: SchedulingBatch, temperature: float
) -> Tensor:
    """``()`` how far answers ``(B, C)`` are from the expert's."""
    wanted = (batch.scores / temperature).masked_fill(~batch.is_open, _BARRED).log_softmax(1)
    found = (scores / temperature).masked_fill(~batch.is_open, _BARRED).log_softmax(1)
    share = wanted.exp()
    divergence = (share * (wanted - found)).sum(1)
    # Beyond the whole cluster all limits are alike.
    error = torch.where(batch.log_limits < 0, log_limits, log_limits.clamp(max=0))
    error = F.smooth_l1_loss(error, batch.log_limits, reduction="none", beta=LIMIT_TURN)
    weight = (share + LEAST_SHARE) * batch.inputs.is_candidate
    return divergence.mean() + LIMIT_WEIGHT * (error * weight).sum(1).mean()


class SchedulingLearner(AdaptedLearner[SchedulingBatch]):
    """Trains a scheduler; for the common training loop."""

    policy: SchedulingPolicy

    def __init__(
        self,
        policy: SchedulingPolicy,
        pool: SchedulingPool,
        config: SchedulingTraining,
        evaluate: Evaluate | None = None,
        began: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes what is learned from.

        Args:
            policy: the scheduler.
            pool: decisions with labels.
            config: how to train.
            evaluate: plays simulated workloads; by default the loss chooses the epoch.
            began: what the scheduler began as, for the card.

        Raises:
            TrainingError: nothing is left to learn from.
        """
        self.module = self.policy = policy
        self.config, self._evaluate = config, evaluate
        held = _held_out(pool, config)
        self._learned: list[Example] = []
        self._held: list[Example] = []
        for episode, decision in pool.labelled():
            one = example_of(policy, decision)
            if one is not None:
                (self._held if episode in held else self._learned).append(one)
        if not self._learned:
            raise TrainingError("the pool has no decision to learn from")
        if evaluate is not None:
            self.chosen_by = "valid_jct_ratio"
        elif not self._held:
            self.chosen_by = "the last epoch"
        self._data = {
            **(began or {}),
            "sessions": len(pool.episodes),
            "held_out_sessions": len(held),
            "decisions": len(self._learned),
            "held_out_decisions": len(self._held),
            "pools": list(pool.made_by),
            "experts": sorted({one.expert for one in pool.episodes}),
            "seeds": sorted({one.seed for one in pool.episodes}),
            "executors": sorted({one.executors for one in pool.episodes}),
        }

    @property
    def trained_parameters(self) -> int:
        """Number of weights that training changes: those of the graph network stay."""
        return sum(one.numel() for one in self.module.parameters() if one.requires_grad)

    def data(self) -> Mapping[str, Any]:
        """The pools."""
        return self._data

    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[SchedulingBatch]:
        """Batches of decisions with about as many tokens and stages each."""
        del epoch
        size, order = self.config.batch_size, rng.permutation(len(self._learned))
        if self.config.steps:
            order = order[: self.config.steps * size]
        rows: list[list[int]] = []
        for part in np.array_split(order, -(-len(order) // (size * SORTED_BATCHES))):
            alike = sorted(part.tolist(), key=lambda one: self._length(self._learned[one]))
            rows += [alike[at : at + size] for at in range(0, len(alike), size)]
        shuffled = [rows[index] for index in rng.permutation(len(rows)).tolist()]
        return _Batches(self._learned, shuffled, self.policy.device)

    def loss(self, batch: SchedulingBatch) -> Tensor:
        """See :func:`imitation_loss`."""
        scores, log_limits = self.policy(batch.inputs)
        return imitation_loss(scores, log_limits, batch, self.config.temperature)

    def card(self) -> Mapping[str, Any]:
        """The pools, and how near to the expert the graph network is without a language model."""
        if not self._held:
            return self._data
        alone = self._measured(lambda inputs: (inputs.scores, inputs.log_limits))
        return {**self._data, "graph_network_alone": alone}

    def measure(self, epoch: int) -> Measured:
        """Loss and agreement on held-out sessions, and what is reached in the simulator."""
        metrics: dict[str, float | None] = {}
        score = float(epoch)
        if self._held:
            measured = self._measured(self.policy)
            metrics |= measured
            score = -measured["valid_loss"]
        if self._evaluate is not None:
            ratio = self._evaluate(self.policy.frozen_copy().decide)
            metrics["valid_jct_ratio"] = ratio
            score = -ratio
        return Measured(score, metrics)

    @torch.inference_mode()
    def _measured(
        self, answer: Callable[[SchedulingInputs], tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Mean loss of answers on held-out sessions, and how often the expert's stage is best."""
        loss = same = 0.0
        for start in range(0, len(self._held), MEASURED_ROWS):
            part = self._held[start : start + MEASURED_ROWS]
            batch = SchedulingBatch.of(part, self.policy.device)
            scores, log_limits = answer(batch.inputs)
            mean = imitation_loss(scores, log_limits, batch, self.config.temperature)
            loss += len(part) * float(mean)
            found, wanted = (
                one.masked_fill(~batch.is_open, _BARRED).argmax(1) for one in (scores, batch.scores)
            )
            same += float((found == wanted).sum())
        count = len(self._held)
        return {"valid_loss": loss / count, "valid_accuracy": same / count}

    @staticmethod
    def _length(example: Example) -> int:
        return len(example.told.jobs) + len(example.told.order)


class _Batches(Sequence[SchedulingBatch]):
    """Batches made when they are asked for."""

    def __init__(
        self, examples: list[Example], rows: list[list[int]], device: torch.device
    ) -> None:
        self._examples, self._rows, self._device = examples, rows, device

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> SchedulingBatch:  # type: ignore[override]
        return SchedulingBatch.of([self._examples[one] for one in self._rows[index]], self._device)


def _held_out(pool: SchedulingPool, config: SchedulingTraining) -> set[int]:
    """Episodes whose seeds are held out, those of several arms together."""
    seeds = sorted({one.seed for one in pool.episodes})
    count = round(config.hold_out * len(seeds))
    if config.hold_out and not count and len(seeds) > 1:
        count = 1
    chosen = np.random.default_rng(config.seed).permutation(len(seeds))[:count]
    held = {seeds[index] for index in chosen.tolist()}
    return {number for number, one in enumerate(pool.episodes) if one.seed in held}
