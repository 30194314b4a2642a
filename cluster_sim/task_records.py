"""What is written down of tasks that read over a network, simulated or real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster_sim.events import StartTask
from cluster_sim.map_outputs import Read

MS_PER_SECOND = 1000.0
Ended = Literal["finished", "killed", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One attempt at a task; times are those of the cluster, whatever the time scale.

    Attributes:
        job: number of the job.
        stage: index of the stage.
        task: index of the task.
        attempt: from 0; above 0 it is a copy, or begun anew after a loss.
        executor: where.
        start_s: when it began to read.
        compute_s: when it had read all; None: it never had.
        end_s: when it ended.
        ended: how; only one attempt at each task is finished.
        planned_bytes: what it was to read.
        local_bytes: what it has read of its own executor's output.
        remote_bytes: what it has received from others.
        wasted_bytes: what it received in vain, from an executor that was lost meanwhile.
    """

    job: int
    stage: int
    task: int
    attempt: int
    executor: int
    start_s: float
    compute_s: float | None
    end_s: float
    ended: Ended
    planned_bytes: int
    local_bytes: int
    remote_bytes: int
    wasted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ShuffleTotals:
    """Sums over the attempts that finished, and what it took beside them.

    Attributes:
        planned_bytes: what they were to read.
        local_bytes: what they read of their own executors' output.
        remote_bytes: what they received from others.
        wasted_bytes: what was received in vain.
        reruns: tasks begun anew after a loss.
        fetch_s: time from start to having read all, over all of them.
    """

    planned_bytes: int
    local_bytes: int
    remote_bytes: int
    wasted_bytes: int
    reruns: int
    fetch_s: float


def ended_task(
    start: StartTask,
    reads: Sequence[Read],
    *,
    ended: Ended,
    start_ms: float,
    compute_ms: float | None,
    end_ms: float,
    local_bytes: int | None = None,
    remote_bytes: int | None = None,
    wasted_bytes: int = 0,
) -> TaskRecord:
    """Makes a record; bytes that are not given are those planned, none for one that was ended."""
    planned = sum(read.size_bytes for read in reads)
    own = sum(read.size_bytes for read in reads if read.source == start.executor)
    if ended != "finished":
        own_read, others_read = 0, 0
    else:
        own_read, others_read = own, planned - own
    return TaskRecord(
        job=start.job,
        stage=start.stage,
        task=start.task,
        attempt=start.attempt,
        executor=start.executor,
        start_s=start_ms / MS_PER_SECOND,
        compute_s=None if compute_ms is None else compute_ms / MS_PER_SECOND,
        end_s=end_ms / MS_PER_SECOND,
        ended=ended,
        planned_bytes=planned,
        local_bytes=own_read if local_bytes is None else local_bytes,
        remote_bytes=others_read if remote_bytes is None else remote_bytes,
        wasted_bytes=wasted_bytes,
    )


def shuffle_totals(tasks: Sequence[TaskRecord]) -> ShuffleTotals:
    """Adds up."""
    finished = [one for one in tasks if one.ended == "finished"]
    return ShuffleTotals(
        planned_bytes=sum(one.planned_bytes for one in finished),
        local_bytes=sum(one.local_bytes for one in finished),
        remote_bytes=sum(one.remote_bytes for one in finished),
        wasted_bytes=sum(one.wasted_bytes for one in tasks)
        + sum(one.remote_bytes for one in tasks if one.ended != "finished"),
        reruns=sum(one.ended == "lost" for one in tasks),
        fetch_s=sum(one.compute_s - one.start_s for one in finished if one.compute_s is not None),
    )
