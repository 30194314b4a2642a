"""Trains the throughput model on sessions that the vectorised simulator plays all the while.

Each round plays a video over links drawn from the traces, half of them at another scale and another
round trip, under policies that differ from session to session; every chunk is an example.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from adapters.features import MIN_KBPS
from adapters.throughput_model import (
    FEATURES,
    REFERENCE_CHUNKS,
    ThroughputConfig,
    ThroughputModel,
    log_expected_s,
    past_throughput,
)
from adapters.training_loop import TrainingDiverged
from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.trace import Trace
from player.vectorised import Observations, Sessions
from player.video import Video, generate_video

IGNORED = -100
#: Batches whose ratios say what the bins stand for.
RATIO_BATCHES = 50
#: Rounds that are shuffled together.
ROUNDS_AT_ONCE = 4
VALIDATION_SESSIONS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputTraining:
    """How to train.

    Attributes:
        seed: of everything that is drawn.
        steps: of the optimiser.
        batch_size: chunks per step.
        sessions: per round.
        learning_rate: its peak; it falls as a cosine to 0.
        weight_decay: of AdamW.
        gradient_limit: norm to which gradients are cut.
        threads: of torch.
        report_every: steps between two reports.
    """

    seed: int = 0
    steps: int = 2000
    batch_size: int = 2048
    sessions: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    gradient_limit: float = 1.0
    threads: int = 1
    report_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "sessions", "threads", "report_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, is {self.learning_rate}")


@dataclass(frozen=True, slots=True)
class ThroughputProgress:
    """Behind a step: its number from 1, of how many, and its loss."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class ThroughputReport:
    """What was measured.

    Attributes:
        step: behind which.
        train_nll: mean per chunk ahead, since the last report.
        valid_nll: the same for each validation set.
        elapsed_s: since training began.
    """

    step: int
    train_nll: float
    valid_nll: list[float]
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Examples:
    """N chunks to decide, with what came of them.

    Attributes:
        features: ``(N, FEATURES)``.
        log_expected_s: ``(N, H)`` of the sizes that were downloaded.
        log_ratio: ``(N, H)`` of the throughputs that came; NaN beyond the end.
    """

    features: NDArray[np.float32]
    log_expected_s: NDArray[np.float32]
    log_ratio: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Some of them."""
        return Examples(self.features[rows], self.log_expected_s[rows], self.log_ratio[rows])


def session_examples(
    throughput_kbps: NDArray[np.float64],
    download_s: NDArray[np.float64],
    size_bytes: NDArray[np.int64],
    horizon: int,
) -> Examples:
    """Examples from whole sessions, ``(B, chunks)`` each.

    Returns:
        ``(B, chunks, …)``; nothing is told of chunk 0, and what came of it is NaN.
    """
    sessions, chunks = throughput_kbps.shape
    features = np.zeros((sessions, chunks, FEATURES), dtype=np.float32)
    expected = np.zeros((sessions, chunks, horizon), dtype=np.float32)
    came = np.full((sessions, chunks, horizon), np.nan, dtype=np.float32)
    for chunk in range(1, chunks):
        past = past_throughput(throughput_kbps[:, :chunk], download_s[:, :chunk], chunk)
        ahead = slice(chunk, min(chunk + horizon, chunks))
        told = slice(0, ahead.stop - ahead.start)
        features[:, chunk] = past.features
        expected[:, chunk, told] = log_expected_s(size_bytes[:, ahead], past.reference_kbps)
        came[:, chunk, told] = np.log(throughput_kbps[:, ahead] / past.reference_kbps[:, None])
    return Examples(features, expected, came)


class Wanderers:
    """A policy of its own for every session: by buffer, by rate, with and without whims."""

    def __init__(self, levels_kbps: Sequence[float], sessions: int, rng: np.random.Generator):
        self._rates, self._rng = np.asarray(levels_kbps), rng
        self._by_buffer = rng.random(sessions) < 0.4
        self._reservoir = rng.uniform(1, 12, sessions)
        self._cushion = rng.uniform(4, 30, sessions)
        self._margin = np.exp(rng.uniform(-1.0, 0.5, sessions))
        self._whims = rng.choice([0.0, 0.1, 0.3, 1.0], sessions, p=[0.4, 0.3, 0.2, 0.1])

    def __call__(self, seen: Observations) -> NDArray[np.int64]:
        """``(B,)`` levels."""
        top = len(self._rates) - 1
        filled = np.clip((seen.buffer_s - self._reservoir) / self._cushion, 0, 1)
        recent = seen.throughput_kbps[:, -max(min(seen.known, REFERENCE_CHUNKS), 1) :]
        mean = recent.shape[1] / (1 / np.maximum(recent, MIN_KBPS)).sum(axis=1)
        # The fuller the buffer, the less a rate rule holds back.
        rate = self._margin * mean * (0.6 + 0.8 * filled)
        by_rate = np.searchsorted(self._rates, rate, side="right") - 1
        level = np.where(self._by_buffer, (top * filled).astype(int), np.maximum(by_rate, 0))
        steps = np.clip(seen.last_level + self._rng.integers(-1, 2, len(level)), 0, top)
        leaps = self._rng.integers(0, top + 1, len(level))
        whim = np.where(self._rng.random(len(level)) < 0.7, steps, leaps)
        return np.where(self._rng.random(len(level)) < self._whims, whim, level)


def draw_video(rng: np.random.Generator) -> Video:
    """A generated video: on Pensieve's ladder mostly, else on another with other chunks."""
    if rng.random() < 0.6:
        return generate_video("drawn", chunks=int(rng.integers(30, 60)), rng=rng)
    levels = np.sort(np.exp(rng.uniform(np.log(150), np.log(9000), rng.integers(3, 10))))
    return generate_video(
        "drawn",
        chunks=int(rng.integers(30, 60)),
        rng=rng,
        levels_kbps=tuple(levels.tolist()),
        chunk_s=float(rng.choice([1.0, 2.0, 3.0, 4.0, 6.0])),
    )


class Rounds:
    """Sessions without end: examples from traces of several sets, each set equally often."""

    def __init__(
        self,
        sets: Sequence[Sequence[Trace]],
        *,
        horizon: int,
        sessions: int,
        rng: np.random.Generator,
        augment: bool = True,
    ) -> None:
        """Takes the traces.

        Args:
            sets: of traces, none empty.
            horizon: H of the examples.
            sessions: per round.
            rng: draws everything.
            augment: play half of the sessions at another scale and another round trip.
        """
        self._sets, self._horizon, self._sessions = sets, horizon, sessions
        self._rng, self._augment = rng, augment

    def play(self) -> Examples:
        """Plays one round; ``(N, …)`` examples of all chunks but the first."""
        _, _, examples = self.play_session()
        told = [getattr(examples, field.name)[:, 1:] for field in dataclasses.fields(Examples)]
        return Examples(*(values.reshape(-1, values.shape[2]) for values in told))

    def play_session(self) -> tuple[list[Observations], Video, Examples]:
        """Plays one round.

        Returns:
            What was seen before each chunk from 1 to n - 1, the video, and ``(B, n, …)`` examples
            of the chunks from 0 on.
        """
        rng = self._rng
        video = draw_video(rng)
        drawn = [self._sets[int(rng.integers(len(self._sets)))] for _ in range(self._sessions)]
        traces = [chosen[int(rng.integers(len(chosen)))] for chosen in drawn]
        links = [self._link(trace) for trace in traces]
        starts = [float(rng.choice(trace.times_s[:-1])) for trace in traces]
        wander = Wanderers(video.levels_kbps, len(links), rng)
        sessions = Sessions(
            video, LinkTable(links), np.arange(len(links)), starts, past_chunks=video.chunks
        )
        seen = []
        while not sessions.is_done:
            seen.append(sessions.observe())
            sessions.step(wander(seen[-1]))
        last = seen.pop()  # knows what came of all chunks but its own
        known = slice(-last.known, None)
        examples = session_examples(
            last.throughput_kbps[:, known],
            last.download_s[:, known],
            last.size_bytes[:, known],
            self._horizon,
        )
        return seen, video, examples

    def _link(self, trace: Trace) -> PensieveLink:
        rng = self._rng
        if not self._augment or rng.random() < 0.5:
            return PensieveLink(trace)
        scaled = Trace(trace.name, trace.times_s, trace.rates_mbps * np.exp(rng.normal(0.0, 0.5)))
        return PensieveLink(scaled, rtt_s=float(rng.uniform(0.0, 0.2)))


def nll(model: ThroughputModel, examples: Examples) -> Tensor:
    """``(H,)`` mean negative log-likelihood of the bins that came, by chunks ahead."""
    losses, is_known = bin_losses(model, torch.from_numpy(examples.features), examples)
    return losses.sum(dim=0) / is_known.sum(dim=0).clamp(min=1)


def bin_losses(
    model: ThroughputModel, features: Tensor, examples: Examples
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the bins that came.

    Args:
        model: foretells.
        features: ``(N, …)`` what its ``history`` takes.
        examples: N; their own features are not used.

    Returns:
        ``(N, H)`` losses, 0 beyond the end, and whether there was a chunk.
    """
    bins = torch.from_numpy(model.config.bin_of(examples.log_ratio))  # (N, H); NaN comes last
    is_known = torch.from_numpy(np.isfinite(examples.log_ratio))
    none = torch.full((len(bins), 1), model.config.bins)
    before = torch.cat([none, bins[:, :-1]], dim=1)
    device = features.device
    logits = model(
        features,
        torch.arange(bins.shape[1], device=device),
        before[:, :, None, None].to(device),
        torch.from_numpy(examples.log_expected_s)[:, :, None].to(device),
    )[:, :, 0, 0]  # (N, H, C)
    targets = torch.where(is_known, bins, IGNORED).to(device)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses, is_known.to(device)


def set_ratios(model: ThroughputModel, log_ratio: NDArray[np.float32]) -> None:
    """Sets what each bin stands for: the harmonic mean of the ratios that fell into it."""
    known = log_ratio[np.isfinite(log_ratio)].astype(np.float64)
    bins = model.config.bin_of(known)
    count = np.bincount(bins, minlength=model.config.bins)
    slowness = np.bincount(bins, np.exp(-known), minlength=model.config.bins)
    centres = np.exp(model.config.centres())
    ratio = np.where(count > 0, count / np.maximum(slowness, 1e-12), centres)
    model.ratio.copy_(torch.from_numpy(ratio.astype(np.float32)))


def train_throughput(
    training: Sequence[Sequence[Trace]],
    validation: Sequence[Sequence[Trace]],
    *,
    config: ThroughputTraining,
    model_config: ThroughputConfig | None = None,
    on_progress: Callable[[ThroughputProgress], None] | None = None,
) -> tuple[ThroughputModel, list[ThroughputReport]]:
    """Trains a model.

    Args:
        training: sets of traces to learn from, each set equally often.
        validation: sets of traces to measure on; may be empty.
        config: how.
        model_config: shape of the network.
        on_progress: told behind every step.

    Returns:
        The model and what was measured while it learned. No checkpoint is chosen by it.

    Raises:
        TrainingDiverged: a loss or gradient was not finite.
    """
    torch.set_num_threads(config.threads)
    rng = np.random.default_rng(config.seed)
    shape = model_config or ThroughputConfig()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ThroughputModel(shape)
    rounds = Rounds(training, horizon=shape.horizon, sessions=config.sessions, rng=rng)
    held_out = _held_out(validation, shape.horizon, config)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    first_ratios: list[NDArray[np.float32]] = []
    reports: list[ThroughputReport] = []
    started, losses = time.perf_counter(), list[float]()
    batches = itertools.islice(_batches(rounds, config, rng), config.steps)
    for step, batch in enumerate(batches, start=1):
        if len(first_ratios) < RATIO_BATCHES:
            first_ratios.append(batch.log_ratio)
            set_ratios(model, np.concatenate(first_ratios))
        loss = nll(model, batch).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_limit)
        losses.append(loss.item())
        for name, value in (("loss", losses[-1]), ("gradient", float(norm))):
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"the {name} is {value} at step {step}",
                    epoch=1,
                    kept_epochs=0,
                    learning_rate=config.learning_rate,
                )
        optimiser.step()
        schedule.step()
        if on_progress is not None:
            on_progress(ThroughputProgress(step=step, steps=config.steps, loss=losses[-1]))
        if step % config.report_every == 0 or step == config.steps:
            with torch.inference_mode():
                valid = [nll(model, examples).mean().item() for examples in held_out]
            elapsed_s = time.perf_counter() - started
            reports.append(ThroughputReport(step, float(np.mean(losses)), valid, elapsed_s))
            losses = []
    return model.eval().requires_grad_(False), reports


def _held_out(
    validation: Sequence[Sequence[Trace]], horizon: int, config: ThroughputTraining
) -> list[Examples]:
    """Examples of each validation set, one round without augmentation."""
    return [
        Rounds(
            [traces],
            horizon=horizon,
            sessions=VALIDATION_SESSIONS,
            rng=np.random.default_rng(config.seed + 1),
            augment=False,
        ).play()
        for traces in validation
    ]


def _batches(
    rounds: Rounds, config: ThroughputTraining, rng: np.random.Generator
) -> Iterator[Examples]:
    """Batches of shuffled examples, as many as are asked for."""
    while True:
        parts = [rounds.play() for _ in range(ROUNDS_AT_ONCE)]
        fields = [field.name for field in dataclasses.fields(Examples)]
        pool = [np.concatenate([getattr(part, name) for part in parts]) for name in fields]
        order = rng.permutation(len(pool[0]))
        for at in range(0, max(len(order) - config.batch_size, 0) + 1, config.batch_size):
            chosen = order[at : at + config.batch_size]
            yield Examples(*(values[chosen] for values in pool))
