"""What the language model is told of a cluster: jobs, stages that may be chosen, the whole.

Rows of numbers, each of which becomes a token or a part of the head's input. They are those of
``adapters.decima``: features, embeddings and answers of its network, which is the base that the
language model adds to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.decima import Candidates, Ratings
from adapters.decima_features import FEATURES, Float32Array
from cluster_sim.observation import ClusterView

#: Of a stage, beside ``FEATURES`` and embeddings: how far its score is behind the best, the
#: logarithm of its job's limit, what its job has left to it as a share of the cluster, and whether
#: it has.
ANSWERS = 4
#: Of a job, beside its embedding.
JOB_FIGURES = 9
#: Of the cluster, beside its embedding.
CLUSTER_FIGURES = 6

_MOST_BEHIND = 10.0  # scores further behind are all alike
_BEHIND_UNIT = 3.0
_LEAST_S = 1.0  # added before a logarithm
_AGE_UNIT_S = 10.0
_USUAL_EXECUTORS = 50
_MIDDLE = 4.0  # about the middle of the logarithms of work


def candidate_size(embedding_size: int) -> int:
    """Numbers of a stage that may be chosen."""
    return len(FEATURES) + 3 * embedding_size + ANSWERS


def job_size(embedding_size: int) -> int:
    """Numbers of a job."""
    return embedding_size + JOB_FIGURES


def cluster_size(embedding_size: int) -> int:
    """Numbers of the cluster."""
    return embedding_size + CLUSTER_FIGURES


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """One decision as it is told; C stages that may be chosen.

    Attributes:
        jobs: ``(J, job_size)`` the jobs with the least work, the one with the least last.
        candidates: ``(C, candidate_size)``.
        cluster: ``(cluster_size,)``.
        order: ``(K,)`` places of the candidates that become tokens, the best last.
        scores: ``(C,)`` of the base.
        log_limits: ``(C,)`` of the base.
    """

    jobs: Float32Array
    candidates: Float32Array
    cluster: Float32Array
    order: NDArray[np.int64]
    scores: Float32Array
    log_limits: Float32Array


def tell(
    view: ClusterView,
    candidates: Candidates,
    base: Ratings,
    *,
    most_jobs: int,
    most_candidates: int,
) -> Told:
    """What is told of a decision.

    Args:
        view: the cluster.
        candidates: its stages that may be chosen, one or more.
        base: what the base answers.
        most_jobs: jobs that become tokens.
        most_candidates: stages that become tokens.
    """
    behind = np.maximum(base.scores - base.scores.max(), -_MOST_BEHIND)
    answers = np.stack(
        [
            behind / _BEHIND_UNIT,
            np.minimum(base.log_limits, 0),
            base.rooms / view.executors,
            base.rooms > 0,
        ],
        axis=1,
    ).astype(np.float32)
    # Stages of jobs that have their share come last, however good.
    rank = np.lexsort((np.arange(len(behind))[::-1], base.scores, base.rooms > 0))
    size = candidates.embeddings.shape[1] // 3
    return Told(
        jobs=_job_rows(view, candidates, most_jobs),
        candidates=np.concatenate([candidates.features, candidates.embeddings, answers], axis=1),
        cluster=np.concatenate(
            [candidates.embeddings[0, 2 * size :], _cluster_figures(view, candidates)]
        ),
        order=rank[-most_candidates:],
        scores=base.scores,
        log_limits=base.log_limits,
    )


def _job_rows(view: ClusterView, candidates: Candidates, most: int) -> Float32Array:
    # Of equal work the job with the lower number comes later.
    jobs = sorted(candidates.jobs, key=lambda one: (one[1].graph.work_s, one[0].job))[:most]
    rows = [
        np.concatenate(
            [
                known.job,
                np.array(
                    [
                        math.log(known.graph.work_s + _LEAST_S) - _MIDDLE,
                        math.log(known.graph.path_s + _LEAST_S) - _MIDDLE / 2,
                        math.log(known.graph.work_path_s + _LEAST_S) - _MIDDLE,
                        math.log1p((view.time_s - job.arrived_s) / _AGE_UNIT_S) - 1,
                        executors / view.executors,
                        math.log(known.graph.stages) - 1,
                        math.log1p(known.graph.demand) / _MIDDLE,
                        job.job == view.source_job,
                        len(known.graph.choices) > 0,
                    ],
                    dtype=np.float32,
                ),
            ]
        )
        for job, known, executors in reversed(jobs)
    ]
    return np.stack(rows)


def _cluster_figures(view: ClusterView, candidates: Candidates) -> Float32Array:
    graphs = [known.graph for _, known, _ in candidates.jobs]
    return np.array(
        [
            view.committable / view.executors,
            math.log(view.executors / _USUAL_EXECUTORS),
            view.source_job is not None,
            math.log(len(graphs)) - 1,
            math.log(sum(one.work_s for one in graphs) + _LEAST_S) - _MIDDLE,
            math.log1p(sum(one.demand for one in graphs)) / _MIDDLE,
        ],
        dtype=np.float32,
    )


@dataclass(frozen=True, slots=True, eq=False)
class SchedulingInputs:
    """B decisions; J jobs and C candidates at most, T tokens at most.

    Attributes:
        jobs: ``(B, J, job_size)``.
        candidates: ``(B, C, candidate_size)``.
        cluster: ``(B, cluster_size)``.
        is_candidate: ``(B, C)`` bool: others are padding.
        scores: ``(B, C)`` of the base.
        log_limits: ``(B, C)`` of the base.
        places: ``(B, T)`` what the tokens are made of: jobs from 0, candidates from J, the cluster
            at J + C, which is the last token of every row and the padding behind it.
        lengths: tokens of each row.
    """

    jobs: Tensor
    candidates: Tensor
    cluster: Tensor
    is_candidate: Tensor
    scores: Tensor
    log_limits: Tensor
    places: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, told: Sequence[Told]) -> SchedulingInputs:
        """Pads decisions to the same shape."""
        most_jobs = max(len(one.jobs) for one in told)
        most = max(len(one.candidates) for one in told)
        lengths = tuple(len(one.jobs) + len(one.order) + 1 for one in told)
        whole = most_jobs + most
        places = np.full((len(told), max(lengths)), whole)
        is_candidate = np.zeros((len(told), most), dtype=bool)
        for row, one in enumerate(told):
            jobs = len(one.jobs)
            places[row, :jobs] = np.arange(jobs)
            places[row, jobs : jobs + len(one.order)] = most_jobs + one.order
            is_candidate[row, : len(one.candidates)] = True
        return cls(
            jobs=_padded([one.jobs for one in told], most_jobs),
            candidates=_padded([one.candidates for one in told], most),
            cluster=torch.from_numpy(np.stack([one.cluster for one in told])),
            is_candidate=torch.from_numpy(is_candidate),
            scores=_padded([one.scores for one in told], most),
            log_limits=_padded([one.log_limits for one in told], most),
            places=torch.from_numpy(places),
            lengths=lengths,
        )

    def to(self, device: torch.device) -> SchedulingInputs:
        """The same on a device."""
        if device.type == "cpu":
            return self
        return SchedulingInputs(
            jobs=self.jobs.to(device),
            candidates=self.candidates.to(device),
            cluster=self.cluster.to(device),
            is_candidate=self.is_candidate.to(device),
            scores=self.scores.to(device),
            log_limits=self.log_limits.to(device),
            places=self.places.to(device),
            lengths=self.lengths,
        )


def _padded(rows: Sequence[Float32Array], most: int) -> Tensor:
    if len(rows) == 1:
        return torch.from_numpy(rows[0][None])
    padded = np.zeros((len(rows), most, *rows[0].shape[1:]), dtype=np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)
