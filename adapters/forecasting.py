"""Trains an adapted language model to foretell throughput; the language model stays frozen.

The sessions are those of ``adapters.throughput_training``: played all the while in the fast
simulator, by policies that differ from session to session. The loss is the negative log-likelihood
of the throughput of the next chunks, in bins. Nothing is imitated: what to do about the forecast is
planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.backbones import load_backbone
from adapters.features import StepFeatures, first_features, join_steps, vectorised_features
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.throughput_checkpoints import load_throughput_model
from adapters.throughput_model import ThroughputModel
from adapters.throughput_training import Examples, Rounds, bin_losses, set_ratios
from adapters.tokens import window_start, window_steps
from adapters.training_loop import Measured, Progress, TrainingError
from adapters.training_processes import process_count
from adapters.training_runs import AdaptedLearner, AdapterReport, AdapterTraining, train_adapters
from player.trace import Trace
from player.vectorised import Observations
from player.video import PENSIEVE_LEVELS_KBPS, Video

#: Shape of the adapters unless asked otherwise.
FORECAST_MODEL = AbrModelConfig(levels_kbps=PENSIEVE_LEVELS_KBPS, layout="forecast", block=16)
SMALL_NETWORK = "builtin:abr-fugu"
#: Rounds whose ratios say what the bins stand for.
RATIO_ROUNDS = 8
VALIDATION_SESSIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastConfig(AdapterTraining):
    """How to train; ``seed`` is also that of the held-out sessions.

    Attributes:
        epochs: at most.
        rounds: rounds of play per epoch.
        sessions: per round; all play one video.
        patience: epochs without improvement after which training stops.
    """

    epochs: int = 30
    rounds: int = 24
    sessions: int = 64
    batch_size: int = 32
    patience: int = 10

    def __post_init__(self) -> None:
        AdapterTraining.__post_init__(self)
        for name in ("rounds", "sessions"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, is {getattr(self, name)}")


def train_forecast(
    training: Mapping[str, Sequence[Trace]],
    validation: Mapping[str, Sequence[Trace]],
    backbone: str,
    out: Path,
    *,
    config: ForecastConfig | None = None,
    model: AbrModelConfig | None = None,
    start_from: str | None = SMALL_NETWORK,
    command: str = "",
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> AdapterReport:
    """Trains adapters of the layout ``forecast`` and writes the checkpoint of the best epoch.

    Args:
        training: sets of traces by name, each played equally often.
        validation: sets of traces to choose the best epoch by; at least one.
        backbone: name or path of the frozen language model.
        out: checkpoint folder; ``training-state`` in it lets a killed training go on.
        config: how to train.
        model: shape of the adapters.
        start_from: checkpoint of ``fugu`` whose small network the head begins as, so that the
            language model learns what to add; None begins at random.
        command: the command that started this, for the card.
        resume: go on from ``training-state`` if there is one.
        on_progress: is told of every step.

    Raises:
        BackboneError: the language model cannot be loaded, or is too small.
        CheckpointError: the small network cannot be loaded.
        TrainingError: nothing to validate on, or several processes.
        TrainingError, TrainingDiverged: see :func:`adapters.training_runs.train_adapters`.
    """
    if not training or not validation:
        raise TrainingError("needs traces to learn from and other traces to validate on")
    if process_count() > 1:
        raise TrainingError("forecasts are trained in one process, not under torchrun")
    settings = config or ForecastConfig()

    def make_learner() -> ForecastLearner:
        return ForecastLearner(
            AbrPolicy(model or FORECAST_MODEL, load_backbone(backbone)),
            list(training.values()),
            list(validation.values()),
            settings,
            None if start_from is None else load_throughput_model(start_from),
            data={
                "training_traces": {name: len(found) for name, found in training.items()},
                "validation_traces": {name: len(found) for name, found in validation.items()},
                "start_from": start_from,
            },
        )

    learner, fit = train_adapters(
        "abr",
        make_learner,
        out,
        config=settings,
        command=command,
        resume=resume,
        on_progress=on_progress,
    )
    return AdapterReport.of(out, learner, fit)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """B windows of S steps.

    Attributes:
        features: ``(B, S, …)``.
        counts: ``(B, S)`` whether a step is to be learned: in no other window it has more past.
        examples: ``(B S, …)`` what came of the steps.
    """

    features: StepFeatures
    counts: Tensor
    examples: Examples


class ForecastLearner(AdaptedLearner[Windows]):
    """Trains an adapted model of the layout ``forecast``; for the common training loop."""

    policy: AbrPolicy

    def __init__(
        self,
        policy: AbrPolicy,
        training: Sequence[Sequence[Trace]],
        validation: Sequence[Sequence[Trace]],
        config: ForecastConfig,
        start_from: ThroughputModel | None = None,
        *,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes what is learned from.

        Args:
            policy: the model.
            training: sets of traces, each played equally often.
            validation: sets of traces to measure on.
            config: how to train.
            start_from: small network that the head begins as.
            data: what is learned from, for the card.

        Raises:
            TrainingError: the small network has another shape.
        """
        seed = config.seed
        assert isinstance(policy.head, ThroughputModel)
        self.module = self.policy = policy
        self.head, self.config = policy.head, config
        self._training, self._data = training, data or {}
        if start_from is None:
            rng = np.random.default_rng((seed, 1))
            ratios = [self._rounds(rng).play().log_ratio for _ in range(RATIO_ROUNDS)]
            set_ratios(self.head, np.concatenate(ratios))
        else:
            try:
                self.head.start_from(start_from)
            except ValueError as error:
                raise TrainingError(str(error)) from error
        self._held_out = [
            self._windows(
                Rounds(
                    [traces],
                    horizon=self.head.config.horizon,
                    sessions=VALIDATION_SESSIONS,
                    rng=np.random.default_rng((seed, 2)),
                    augment=False,
                )
            )
            for traces in validation
        ]

    def data(self) -> Mapping[str, Any]:
        """What the sets of traces are, as it was told."""
        return self._data

    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[Windows]:
        """Windows of this epoch's rounds, each round played when its first batch is asked for."""
        return _Batches(self, self._rounds(rng), rng)

    def loss(self, batch: Windows) -> Tensor:
        """``()`` mean over the steps that count and the chunks ahead."""
        losses, known = self._losses(batch)
        return losses.sum() / known.sum()

    @torch.no_grad()
    def measure(self, epoch: int) -> Measured:
        """Mean loss on each held-out set of traces, and the mean of these."""
        found = []
        for windows in self._held_out:
            total = count = 0.0
            for rows in np.array_split(np.arange(len(windows.counts)), 16):
                losses, known = self._losses(cut(windows, rows))
                total, count = total + float(losses.sum()), count + float(known.sum())
            found.append(total / count)
        metrics: dict[str, float | None] = {"valid_loss": float(np.mean(found))}
        if len(found) > 1:
            metrics |= {f"valid_loss_{number}": value for number, value in enumerate(found, 1)}
        return Measured(-float(np.mean(found)), metrics)

    def _losses(self, batch: Windows) -> tuple[Tensor, Tensor]:
        """``(N, H)`` losses of the steps that count, and which chunks ahead there were."""
        hidden = self.policy(self.policy.tensors(batch.features))  # (B, S, D)
        rows = batch.counts.flatten().nonzero()[:, 0]
        examples = batch.examples.take(rows.numpy())
        told = torch.from_numpy(examples.features).to(hidden.device)
        features = torch.cat([hidden.flatten(0, 1)[rows], told], dim=1)  # (N, D + FEATURES)
        return bin_losses(self.head, features, examples)

    def _rounds(self, rng: np.random.Generator) -> Rounds:
        return Rounds(
            self._training,
            horizon=self.head.config.horizon,
            sessions=self.config.sessions,
            rng=rng,
        )

    def _windows(self, rounds: Rounds) -> Windows:
        """All windows of a new round."""
        seen, video, examples = rounds.play_session()
        return windows_of(session_steps(seen, video), examples, self.policy.config.block)


class _Batches(Sequence[Windows]):
    """Batches of several rounds, to be taken in their order."""

    def __init__(self, learner: ForecastLearner, rounds: Rounds, rng: np.random.Generator) -> None:
        self._learner, self._rounds, self._rng = learner, rounds, rng
        config, block = learner.config, learner.policy.config.block
        # Videos differ in length; the number of batches of a round does not.
        self._per_round = -(-config.sessions * 3 * 16 // (block * config.batch_size))
        self._batches: list[Windows] = []

    def __len__(self) -> int:
        return self._learner.config.rounds * self._per_round

    def __getitem__(self, index: int) -> Windows:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        within = index % self._per_round
        if within == 0:
            windows = self._learner._windows(self._rounds)
            order = self._rng.permutation(len(windows.counts))
            order = np.resize(order, max(len(order), self._per_round))  # no batch stays empty
            self._batches = [cut(windows, rows) for rows in np.array_split(order, self._per_round)]
        return self._batches[within]


def session_steps(seen: Sequence[Observations], video: Video) -> StepFeatures:
    """``(B, n, …)`` features before chunk 0 and before each chunk that was observed."""
    told = [vectorised_features(one, video) for one in seen]
    return join_steps([first_features(video, len(told[0].action)), *told])


def windows_of(steps: StepFeatures, examples: Examples, block: int) -> Windows:
    """All windows of B sessions, each as long as the longest by repeating its end.

    Args:
        steps: ``(B, n, …)`` features before chunks 0 to n - 1.
        examples: ``(B, n, …)`` what came of the steps; nothing for chunk 0.
        block: steps per block.
    """
    sessions, count = steps.action.shape
    if examples.log_ratio.shape[:2] != (sessions, count):
        raise ValueError(f"{(sessions, count)} steps, {examples.log_ratio.shape[:2]} examples")
    longest = min(window_steps(block), count)
    place = np.arange(longest)
    index, counts = [], []
    last = longest - 1
    while True:
        start = window_start(last, block)
        rows = np.minimum(start + place, last)
        is_new = (start + place <= last) & ((start == 0) | (place >= block))
        index.append(rows)
        counts.append(is_new & (rows > 0))
        if last == count - 1:
            break
        last = min(last + block, count - 1)

    def windows(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:, rows] for rows in index])

    flat = [windows(getattr(examples, field.name)) for field in fields(Examples)]
    return Windows(
        features=StepFeatures(*(windows(getattr(steps, one.name)) for one in fields(steps))),
        counts=torch.from_numpy(np.repeat(np.stack(counts), sessions, axis=0)),
        examples=Examples(*(values.reshape(-1, *values.shape[2:]) for values in flat)),
    )


def cut(windows: Windows, rows: np.ndarray) -> Windows:
    """Some of the windows."""
    length = windows.counts.shape[1]
    steps = (rows[:, None] * length + np.arange(length)).ravel()
    return Windows(windows.features[rows], windows.counts[rows], windows.examples.take(steps))
