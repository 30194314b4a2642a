"""Decima's policy for cluster scheduling (Mao et al., SIGCOMM 2019), in numpy.

As in the paper, a graph network embeds every stage from its children up, sums the stages of a job
and the jobs of the cluster, and from these embeddings come two answers: which stage is next, and up
to how many executors its job may have. Executors beyond that limit look for another stage.

Departures:

- The limit is one number per stage, regressed as a share of the cluster, not one class per limit.
- One sweep over each graph, embeddings of 8, one hidden layer of 16: 1,470 weights, so that a
  decision mostly takes less than a millisecond, without a deep-learning library.
- Beside the embeddings the heads read features that schedulers know to matter (work left, critical
  path, age, executors that are near), and are linear in them but for the hidden layer.
- Training is by evolution strategies, not policy gradients: a perturbed policy plays a whole
  simulated workload, and what counts is its mean job completion time relative to fair sharing.
- The best stage is taken, not a drawn one: a controller is a function of its observation.
- An idle guard. Executors left idle are asked for again only when a job arrives or a stage is
  unlocked, so a policy that leaves too many idle may bring the cluster to a standstill. While few
  tasks run, the best stage gets the executors, whatever its job's limit.

A checkpoint is a folder of ``decima.safetensors``, ``config.json`` and ``card.json``. No pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.checkpoint_files import (
    builtin_checkpoints,
    checkpoint_folder,
    read_config,
    read_matching,
    write_checkpoint,
)
from adapters.decima_features import (
    FEATURES,
    LIMIT_FEATURES,
    SCORE_FEATURES,
    STAGE_INPUTS,
    ClusterFigures,
    Float32Array,
    JobGraph,
)
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, JobView, StageView

DECIMA_FORMAT = "netllm-testbed decima 1"
WEIGHTS_FILE = "decima.safetensors"
TASK = "scheduling"

#: Columns of FEATURES that the hidden layer reads: those of both answers, one after the other.
_HEAD_COLUMNS = [FEATURES.index(name) for name in SCORE_FEATURES + LIMIT_FEATURES]

_LEAK = np.float32(0.2)  # of the leaky ReLU
_SUM_SCALE = 0.3  # keeps sums over stages and jobs within the reach of tanh


@dataclass(frozen=True, slots=True, kw_only=True)
class DecimaConfig:
    """Contents of ``config.json``.

    Attributes:
        format: version of this format.
        task: ``scheduling``.
        embedding_size: numbers per stage, per job and for the cluster.
        hidden_size: width of the hidden layer.
        idle_guard: while no more than this share of the executors is busy elsewhere, none is left
            idle. Those to be placed may still be running tasks and count as not busy.
        stage_inputs: must be ``STAGE_INPUTS``.
        score_features: must be ``SCORE_FEATURES``.
        limit_features: must be ``LIMIT_FEATURES``.
    """

    format: str = DECIMA_FORMAT
    task: str = TASK
    embedding_size: int = 8
    hidden_size: int = 16
    idle_guard: float = 0.2
    stage_inputs: tuple[str, ...] = STAGE_INPUTS
    score_features: tuple[str, ...] = SCORE_FEATURES
    limit_features: tuple[str, ...] = LIMIT_FEATURES

    def __post_init__(self) -> None:
        if min(self.embedding_size, self.hidden_size) < 1:
            raise ValueError("embedding_size and hidden_size must be 1 or more")
        if not 0 <= self.idle_guard <= 1:
            raise ValueError(f"needs 0 <= idle_guard <= 1, is {self.idle_guard}")
        for name, known in (
            ("stage_inputs", STAGE_INPUTS),
            ("score_features", SCORE_FEATURES),
            ("limit_features", LIMIT_FEATURES),
        ):
            if getattr(self, name) != known:
                raise ValueError(f"{name} must be {', '.join(known)}")


def weight_shapes(config: DecimaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by name, in the order in which training perturbs them."""
    size, hidden = config.embedding_size, config.hidden_size
    features = len(SCORE_FEATURES) + len(LIMIT_FEATURES)
    layers = {
        "prepare": (len(STAGE_INPUTS), size),
        "message": (size, size),
        "gather": (size, size),
        "job": (size + len(STAGE_INPUTS), size),
        "cluster": (size, size),
        "hidden": (features + 3 * size, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "score": (len(SCORE_FEATURES),),
        "limit": (len(LIMIT_FEATURES),),
    }
    for name, (inputs, outputs) in layers.items():
        shapes |= {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
    return shapes | {"answers": (hidden, 2)}


@dataclass(frozen=True, slots=True)
class Layer:
    """An affine map.

    Attributes:
        weight: ``(inputs, outputs)``.
        bias: ``(outputs,)``.
    """

    weight: Float32Array
    bias: Float32Array

    def __call__(self, inputs: Float32Array) -> Float32Array:
        """Takes ``(..., inputs)``, returns ``(..., outputs)``."""
        mapped: Float32Array = inputs @ self.weight + self.bias
        return mapped


def leaky(values: Float32Array) -> Float32Array:
    """The leaky ReLU."""
    bent: Float32Array = np.maximum(values, _LEAK * values)
    return bent


@dataclass(frozen=True, slots=True)
class Embedded:
    """A job as the heads see it.

    Attributes:
        graph: its figures.
        stages: ``(stages, D)`` embeddings.
        job: ``(D,)`` embedding of the whole job.
    """

    graph: JobGraph
    stages: Float32Array
    job: Float32Array


class DecimaNetwork:
    """The network: from graphs to embeddings, from embeddings and features to two answers."""

    def __init__(self, weights: Mapping[str, Float32Array]) -> None:
        """Takes weights by the names of :func:`weight_shapes`."""

        def layer(name: str) -> Layer:
            return Layer(weights[f"{name}.weight"], weights[f"{name}.bias"])

        self.weights = dict(weights)
        self._prepare, self._message, self._gather = map(layer, ("prepare", "message", "gather"))
        self._job, self._cluster, self._hidden = map(layer, ("job", "cluster", "hidden"))
        self._score, self._limit, self._answers = (
            weights[name] for name in ("score", "limit", "answers")
        )

    def embed(self, graph: JobGraph) -> Embedded:
        """Embeds the stages of a job, children before parents, and the job."""
        prepared = leaky(self._prepare(graph.inputs))  # (stages, D)
        stages, messages = np.zeros_like(prepared), np.zeros_like(prepared)
        nothing = self._gather.bias
        for index in graph.order:
            below = graph.children[index]
            gathered = self._gather(messages[below].sum(0)) if below else nothing
            stages[index] = np.tanh(prepared[index] + leaky(gathered))
            messages[index] = leaky(self._message(stages[index]))
        summed = leaky(self._job(np.concatenate([stages, graph.inputs], axis=1))).sum(0)
        return Embedded(graph, stages, np.tanh(_SUM_SCALE * summed))

    def embed_cluster(self, jobs: list[Embedded]) -> Float32Array:
        """``(D,)`` embedding of the cluster."""
        total: Float32Array = sum((one.job for one in jobs[1:]), jobs[0].job)
        cluster: Float32Array = np.tanh(self._cluster(np.float32(_SUM_SCALE) * total))
        return cluster

    def answer(
        self, features: Float32Array, embeddings: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """Scores of stages, and logarithms of their jobs' limits.

        Args:
            features: ``(B, FEATURES)``.
            embeddings: ``(B, 3 D)`` of stage, job and cluster.
        """
        inputs = np.concatenate([features[:, _HEAD_COLUMNS], embeddings], axis=1)
        split, end = len(SCORE_FEATURES), len(_HEAD_COLUMNS)
        corrections = leaky(self._hidden(inputs)) @ self._answers  # (B, 2)
        scores = inputs[:, :split] @ self._score + corrections[:, 0]
        log_limits = inputs[:, split:end] @ self._limit + corrections[:, 1]
        return scores, log_limits


@dataclass(frozen=True, slots=True)
class Candidates:
    """The stages that may be chosen, as the heads see them; B of them.

    Attributes:
        stages: pairs of (job, stage), jobs in order of number.
        taken: ``(B,)`` executors of their jobs, without those that are to be placed.
        features: ``(B, FEATURES)``.
        embeddings: ``(B, 3 D)`` of stage, job and cluster.
        jobs: all jobs with their executors as in ``taken``, in order of number.
    """

    stages: tuple[tuple[int, int], ...]
    taken: NDArray[np.int64]
    features: Float32Array
    embeddings: Float32Array
    jobs: tuple[tuple[JobView, Embedded, int], ...]


@dataclass(frozen=True, slots=True)
class Ratings:
    """What a network says of every stage that may be chosen.

    Attributes:
        stages: pairs of (job, stage).
        scores: the higher, the sooner.
        log_limits: logarithm of the share of the cluster that the job may have; above 0 counts
            as 0.
        limits: the same in executors, 1 or more.
        rooms: what is missing from the limit; 0 or less: the job has its share.
    """

    stages: tuple[tuple[int, int], ...]
    scores: Float32Array
    log_limits: Float32Array
    limits: NDArray[np.int64]
    rooms: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        candidates: Candidates,
        scores: Float32Array,
        log_limits: Float32Array,
        *,
        executors: int,
    ) -> Ratings:
        """Turns shares into executors of a cluster that has so many."""
        shares = np.exp(np.minimum(log_limits, 0))
        limits = np.maximum(1, (executors * shares + 0.5).astype(np.int64))
        return cls(candidates.stages, scores, log_limits, limits, limits - candidates.taken)

    def decide(self, view: ClusterView, idle_guard: float) -> Assignment:
        """The best stage whose job is below its limit; see ``DecimaConfig`` for the guard."""
        if not self.stages:
            return LEAVE_IDLE
        has_room = self.rooms > 0
        if has_room.any():
            best = int(np.where(has_room, self.scores, -np.inf).argmax())
            return Assignment(*self.stages[best], min(int(self.rooms[best]), view.committable))
        running = sum(one.running_tasks for job in view.jobs for one in job.stages)
        if running - view.committable > idle_guard * view.executors:
            return LEAVE_IDLE
        return Assignment(*self.stages[int(self.scores.argmax())], view.committable)


class DecimaPolicy:
    """A trained network that answers observations.

    Jobs that show the same stages as in the observation before are not embedded again. That changes
    no answer.
    """

    def __init__(self, config: DecimaConfig, network: DecimaNetwork) -> None:
        self.config = config
        self.network = network
        self._last: dict[int, tuple[tuple[StageView, ...], Embedded]] = {}

    def decide(self, view: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        return self.rate(view).decide(view, self.config.idle_guard)

    def rate(self, view: ClusterView) -> Ratings:
        """Returns scores and limits of all stages that may be chosen; jobs in order of number."""
        candidates = self.candidates(view)
        scores, log_limits = self.answer(candidates)
        return Ratings.of(candidates, scores, log_limits, executors=view.executors)

    def answer(self, candidates: Candidates) -> tuple[Float32Array, Float32Array]:
        """``(B,)`` scores and logarithms of limits."""
        if not candidates.stages:
            nothing = np.zeros(0, dtype=np.float32)
            return nothing, nothing
        return self.network.answer(candidates.features, candidates.embeddings)

    def candidates(self, view: ClusterView) -> Candidates:
        """Returns the stages that may be chosen."""
        # The order of jobs in the observation is of no meaning: ties and sums go by number.
        jobs = sorted(view.jobs, key=lambda one: one.job)
        embedded = self._embed(jobs)
        rows: list[list[float]] = []
        embeddings: list[Float32Array] = []
        stages: list[tuple[int, int]] = []
        taken: list[int] = []
        told: list[tuple[JobView, Embedded, int]] = []
        cluster = self.network.embed_cluster(embedded)
        whole = ClusterFigures(view, [one.graph for one in embedded])
        for job, known in zip(jobs, embedded, strict=True):
            executors = job.executors - (view.committable if job.job == view.source_job else 0)
            told.append((job, known, executors))
            if not known.graph.choices:
                continue
            rows += whole.features(job, known.graph, executors)
            for one in known.graph.choices:
                stages.append((job.job, one.stage))
                embeddings += (known.stages[one.index], known.job, cluster)
                taken.append(executors)
        return Candidates(
            tuple(stages),
            np.array(taken, dtype=np.int64),
            np.array(rows, dtype=np.float32).reshape(len(rows), len(FEATURES)),
            np.concatenate(embeddings).reshape(len(rows), -1)
            if rows
            else np.zeros((0, 3 * len(cluster)), dtype=np.float32),
            tuple(told),
        )

    def _embed(self, jobs: list[JobView]) -> list[Embedded]:
        last, now = self._last, {}
        for job in jobs:
            known = last.get(job.job)
            if known is None or known[0] is not job.stages:
                known = job.stages, self.network.embed(JobGraph(job.stages))
            now[job.job] = known
        self._last = now
        return [embedded for _, embedded in now.values()]


def save_decima(folder: Path, policy: DecimaPolicy, card: dict[str, Any]) -> None:
    """Writes a checkpoint; the folder is made."""
    weights = {name: torch.from_numpy(one) for name, one in policy.network.weights.items()}
    write_checkpoint(folder, WEIGHTS_FILE, weights, policy.config, card)


def load_decima(spec: str) -> DecimaPolicy:
    """Loads a checkpoint, ready to answer.

    Args:
        spec: ``builtin:NAME`` or a folder.

    Raises:
        CheckpointError: it is missing, damaged, or made for something else.
    """
    folder = checkpoint_folder(spec, WEIGHTS_FILE)
    config = read_config(folder, DecimaConfig, file_format=DECIMA_FORMAT, task=TASK)
    with torch.device("meta"):
        expected = {name: torch.empty(shape) for name, shape in weight_shapes(config).items()}
    weights = read_matching(folder / WEIGHTS_FILE, expected)
    return DecimaPolicy(config, DecimaNetwork({name: one.numpy() for name, one in weights.items()}))


def builtin_policies() -> tuple[str, ...]:
    """Names of the checkpoints of this kind that are shipped."""
    return builtin_checkpoints(WEIGHTS_FILE)
