"""Training of Decima's policy by an evolution strategy, after Salimans et al. (arXiv:1703.03864).

Each step draws pairs of opposite perturbations of all weights. Both policies of a pair play the
same simulated workload, so that what arrives and how long tasks take is the same for both, and the
difference of their mean job completion times, relative to a baseline's, tells how far to go along
the perturbation. Departures: every kind of weight has its own step size, differences are
standardised and clipped, steps have momentum, and the result is a mean of the last iterates.

First only what the answers have linear in the features is trained, from a rule by hand: executors
stay with their job, then the least work first, stages that can start before others, each job with
about its share. Then all weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.decima import DecimaConfig, DecimaNetwork, DecimaPolicy, weight_shapes
from adapters.decima_features import Float32Array
from cluster_sim.arrivals import MEAN_GAP_MS, PoissonArrivals
from cluster_sim.durations import DrawnDurations
from cluster_sim.jobs import Job
from cluster_sim.machine import ClusterConfig
from cluster_sim.simulated import Decide, SimulationConfig, run_simulated
from cluster_sim.workload import JobLibrary, make_workload

Vector = NDArray[np.float64]

#: The rule by hand that training begins with.
_FIRST_SCORE = {"is_source_job": 5.0, "job_work": -1.0, "has_open_parents": -3.0}
_FIRST_LIMIT = {"jobs": -1.0, "expected_task": 0.3, "has_open_parents": -0.5}
#: Standard deviations of perturbations: of linear weights, of those that begin large, of what the
#: hidden layer adds to the answers, of all others.
_LINEAR_SIGMA, _LARGE_SIGMA, _ANSWERS_SIGMA, _NETWORK_SIGMA = 0.02, 0.05, 0.03, 0.05
_LARGE = ("is_source_job", "has_open_parents")
#: Linear weights trained alone are perturbed by so much more.
_ALONE_FACTOR = 3.0
_MOMENTUM = 0.7
_MOST_DEVIATIONS = 2.0  # a single workload must not decide a step
_MOST_ITERATES = 40  # about so many are averaged
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class DecimaTraining:
    """How to train.

    Attributes:
        seed: of the first weights and of the perturbations.
        linear_steps: steps that train the linear weights alone.
        steps: steps that train all weights.
        pairs: per step; each plays another workload, twice.
        first_workload: seed of the first workload; those after it count up.
        workloads: how many there are.
        num_jobs: per workload.
        executors: of the cluster.
        arrival_mean_s: mean gap between jobs.
        step_size: in standard deviations of the perturbations.
        worst_ratio: worse results count as this one, so that a standstill is not all that counts.
    """

    seed: int = 0
    linear_steps: int = 60
    steps: int = 220
    pairs: int = 12
    first_workload: int = 3000
    workloads: int = 120
    num_jobs: int = 200
    executors: int = 50
    arrival_mean_s: float = MEAN_GAP_MS / 1000
    step_size: float = 1.0
    worst_ratio: float = 1.2

    def __post_init__(self) -> None:
        if min(self.linear_steps, self.steps, self.seed, self.first_workload) < 0:
            raise ValueError("seed, linear_steps, steps and first_workload must not be negative")
        if not 2 <= self.pairs <= self.workloads:
            raise ValueError(
                f"needs 2 <= pairs <= workloads, pairs is {self.pairs}, workloads {self.workloads}"
            )
        if min(self.num_jobs, self.executors) < 1:
            raise ValueError("num_jobs and executors must be 1 or more")
        for name in ("arrival_mean_s", "step_size", "worst_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, is {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy that is to play a workload.

    Attributes:
        policy: the policy.
        workload: seed of the workload.
    """

    policy: DecimaPolicy
    workload: int


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """A step that is done.

    Attributes:
        step: its number, from 1, both parts of the training together.
        ratio: mean over its trials, mean job completion time by the baseline's.
        spread: standard deviation over the pairs of half their differences.
    """

    step: int
    ratio: float
    spread: float


@dataclass(frozen=True, slots=True)
class TrainedDecima:
    """What training returns.

    Attributes:
        policy: the mean of the last iterates.
        curve: all steps.
    """

    policy: DecimaPolicy
    curve: tuple[TrainingStep, ...]


#: Plays trials; returns of each the mean job completion time by the baseline's, in their order.
Play = Callable[[Sequence[Trial]], Sequence[float]]


class SimulatedTrials:
    """Plays trials one after the other in the simulated cluster; workloads are kept."""

    def __init__(self, library: JobLibrary, baseline: Decide, training: DecimaTraining) -> None:
        """Names what is played.

        Args:
            library: where jobs come from.
            baseline: the scheduler that the results are relative to; for the shipped checkpoint
                the rule ``fair``.
            training: the size of workloads and cluster.
        """
        self._library, self._baseline, self._training = library, baseline, training
        self._known: dict[int, tuple[tuple[Job, ...], float]] = {}

    def __call__(self, trials: Sequence[Trial]) -> list[float]:
        """See ``Play``."""
        return [self._ratio(one) for one in trials]

    def _ratio(self, trial: Trial) -> float:
        seed, training = trial.workload, self._training
        if seed not in self._known:
            jobs = make_workload(
                self._library,
                PoissonArrivals(training.arrival_mean_s * 1000),
                num_jobs=training.num_jobs,
                rng=np.random.default_rng(seed),
            )
            self._known[seed] = jobs, self._mean_jct_s(jobs, seed, self._baseline)
        jobs, baseline_s = self._known[seed]
        return self._mean_jct_s(jobs, seed, trial.policy.decide) / baseline_s

    def _mean_jct_s(self, jobs: tuple[Job, ...], seed: int, decide: Decide) -> float:
        config = SimulationConfig(cluster=ClusterConfig(executors=self._training.executors))
        return run_simulated(jobs, config, DrawnDurations(jobs, seed=seed), decide).mean_jct_s


def first_weights(config: DecimaConfig, rng: np.random.Generator) -> dict[str, Float32Array]:
    """The rule by hand, and a drawn graph network whose answers do not count yet."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(config).items()}
    for name, one in weights.items():
        if name.endswith(".weight"):
            one[:] = rng.normal(0, len(one) ** -0.5, one.shape)
    for name, features, first in (
        ("score", config.score_features, _FIRST_SCORE),
        ("limit", config.limit_features, _FIRST_LIMIT),
    ):
        for feature, weight in first.items():
            weights[name][features.index(feature)] = weight
    return weights


def train_decima(
    play: Play,
    training: DecimaTraining | None = None,
    *,
    config: DecimaConfig | None = None,
    start: DecimaPolicy | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> TrainedDecima:
    """Trains a policy.

    Args:
        play: plays trials, see :class:`SimulatedTrials`.
        training: how to train.
        config: sizes of the network, and its guard, which is on while training.
        start: a policy to go on from, with its own config; by default :func:`first_weights`.
        on_step: told every step.
    """
    training = training or DecimaTraining()
    config = start.config if start is not None else config or DecimaConfig()
    rng = np.random.default_rng(training.seed)
    weights = start.network.weights if start is not None else first_weights(config, rng)
    # A loaded checkpoint has its weights in another order.
    parts = [weights[name].ravel() for name in weight_shapes(config)]
    vector = np.concatenate(parts).astype(np.float64)
    strategy = _Strategy(play, training, config, rng, on_step or (lambda _: None))
    vector = strategy.improve(vector, _sigmas(config, only_linear=True), training.linear_steps)
    vector = strategy.improve(vector, _sigmas(config, only_linear=False), training.steps)
    return TrainedDecima(_policy(config, vector), tuple(strategy.curve))


class _Strategy:
    """The evolution strategy: what both parts of the training share."""

    def __init__(
        self,
        play: Play,
        training: DecimaTraining,
        config: DecimaConfig,
        rng: np.random.Generator,
        on_step: Callable[[TrainingStep], None],
    ) -> None:
        self._play, self._training, self._config = play, training, config
        self._rng, self._on_step = rng, on_step
        self.curve: list[TrainingStep] = []

    def improve(self, vector: Vector, sigmas: Vector, steps: int) -> Vector:
        """Goes that many steps; returns the mean of the last iterates."""
        mean, momentum = vector.copy(), np.zeros_like(vector)
        for number in range(1, steps + 1):
            direction = self._direction(vector, sigmas)
            momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * direction
            vector = vector - self._training.step_size * sigmas * momentum
            mean += (vector - mean) / min(number, _MOST_ITERATES)
        return mean

    def _direction(self, vector: Vector, sigmas: Vector) -> Vector:
        """Where the results grow, in standard deviations of the perturbations."""
        training = self._training
        drawn = self._rng.standard_normal((training.pairs, len(vector)))
        seeds = self._rng.choice(training.workloads, training.pairs, replace=False)
        trials = [
            Trial(_policy(self._config, vector + sign * sigmas * one), training.first_workload + at)
            for one, at in zip(drawn, seeds.tolist(), strict=True)
            for sign in (1, -1)
        ]
        ratios = np.minimum(
            np.reshape(self._play(trials), (training.pairs, 2)), training.worst_ratio
        )
        halves = (ratios[:, 0] - ratios[:, 1]) / 2
        spread = float(halves.std()) + _LEAST_SPREAD
        self.curve.append(TrainingStep(len(self.curve) + 1, float(ratios.mean()), spread))
        self._on_step(self.curve[-1])
        weighed = np.clip(halves / spread, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
        direction: Vector = weighed @ drawn / training.pairs
        return direction


def _sigmas(config: DecimaConfig, *, only_linear: bool) -> Vector:
    """Standard deviations of the perturbations of all weights."""
    parts = []
    linear = {"score": config.score_features, "limit": config.limit_features}
    for name, shape in weight_shapes(config).items():
        sigma = _ANSWERS_SIGMA if name == "answers" else _NETWORK_SIGMA
        part = np.full(math.prod(shape), 0.0 if only_linear else sigma)
        if name in linear:
            part[:] = _LINEAR_SIGMA
        if name == "score":
            part[[linear[name].index(one) for one in _LARGE]] = _LARGE_SIGMA
        parts.append(part)
    sigmas = np.concatenate(parts)
    return sigmas * _ALONE_FACTOR if only_linear else sigmas


def _policy(config: DecimaConfig, vector: Vector) -> DecimaPolicy:
    shapes = weight_shapes(config)
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(vector.astype(np.float32), ends[:-1])
    weights = {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return DecimaPolicy(config, DecimaNetwork(weights))


def as_card(trained: TrainedDecima) -> dict[str, Any]:
    """The curve for ``card.json``."""
    return {
        "curve": [
            {"step": one.step, "ratio": one.ratio, "spread": one.spread} for one in trained.curve
        ]
    }
