"""Who ran what when in a cluster: told by its events and by the durations it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cluster_sim.durations import DurationModel
from cluster_sim.events import Event, ExecutorLost, StartTask, TaskFinished
from cluster_sim.jobs import Job
from cluster_sim.simulated import MS_PER_SECOND
from cluster_sim.task_records import TaskRecord as NetworkTask
from testbed.scheduling_records import JobRun, StageRun, Stint, TaskRecord, TaskRun

#: A break of an executor that is shorter than this does not end a stint.
SHORTEST_BREAK_MS = 1.0


class _Attempt(NamedTuple):
    start: StartTask
    from_ms: float


class Tracer:
    """Durations that note which task begins where; see :meth:`watch`, :meth:`decided`.

    An attempt that is stopped because the other one of its task has finished ends with that.
    """

    def __init__(self, durations: DurationModel, *, has_twins: bool) -> None:
        """Wraps durations; ``has_twins``: slow tasks get second attempts."""
        self._durations = durations
        self._has_twins = has_twins
        self._now_ms = 0.0
        self._running: dict[int, _Attempt] = {}  # by executor
        self._busy_ms = 0.0
        self._first_ms: dict[int, float] = {}  # by job
        self._stints: list[Stint] = []
        self._open: dict[int, tuple[int, float, float]] = {}  # job, from, until by executor
        self._of_stages: dict[tuple[int, int], list[float]] = {}  # busy, from, until

    def draw_ms(self, start: StartTask) -> float:
        """See :class:`cluster_sim.durations.DurationModel`."""
        if start.executor in self._running:  # its attempt was stopped
            self._end(start.executor)
        self._running[start.executor] = _Attempt(start, self._now_ms)
        self._first_ms.setdefault(start.job, self._now_ms)
        return self._durations.draw_ms(start)

    def watch(self, event: Event, now_ms: float) -> None:
        """Takes an event before the cluster does."""
        self._now_ms = now_ms
        match event:
            case TaskFinished(executor):
                done = self._running[executor].start
                self._end(executor)
                if self._has_twins:
                    self._stop_twin(done)
            case ExecutorLost(executor) if executor in self._running:
                self._end(executor)

    def decided(self, decision_ms: float) -> None:
        """Time passed while a decision was made."""
        self._now_ms += decision_ms

    def queueing_s(self, job: Job) -> float:
        """From a job's arrival to its first task."""
        return (self._first_ms[job.job] - job.arrived_ms) / MS_PER_SECOND

    def utilisation(self, executors: int, makespan_s: float) -> float:
        """Share of the executors' time in which they ran tasks."""
        self._close()
        whole_ms = executors * makespan_s * MS_PER_SECOND
        return self._busy_ms / whole_ms if whole_ms else 0.0

    def record(
        self, jobs: Sequence[Job], longest_job: int, runs: Sequence[NetworkTask] = ()
    ) -> TaskRecord:
        """What was noted, once the run is over.

        Args:
            jobs: all of them.
            longest_job: number of the one that took longest.
            runs: attempts at tasks, where there is a network.
        """
        self._close()
        found = tuple(JobRun(job=job.job, stages=self._stages(job)) for job in jobs)
        return TaskRecord(
            stints=tuple(sorted(self._stints, key=lambda one: (one.from_s, one.executor))),
            stages=found[longest_job].stages,
            longest_job=longest_job,
            jobs=found,
            runs=tuple(map(_run, runs)),
        )

    def _stages(self, job: Job) -> tuple[StageRun, ...]:
        found = [
            (index, stage, self._of_stages[job.job, index])
            for index, stage in enumerate(job.graph.stages)
        ]
        return tuple(
            StageRun(
                stage=index,
                parents=job.graph.parents[index],
                tasks=stage.tasks,
                busy_s=_seconds(busy_ms),
                began_s=_seconds(from_ms),
                finished_s=_seconds(until_ms),
            )
            for index, stage, (busy_ms, from_ms, until_ms) in found
        )

    def _stop_twin(self, done: StartTask) -> None:
        """Ends the other attempt of a task that has finished."""
        key = (done.job, done.stage, done.task)
        for executor, (start, _) in list(self._running.items()):
            if (start.job, start.stage, start.task) == key:
                self._end(executor)

    def _end(self, executor: int) -> None:
        start, from_ms = self._running.pop(executor)
        until_ms = max(self._now_ms, from_ms)
        self._busy_ms += until_ms - from_ms
        stage = self._of_stages.setdefault((start.job, start.stage), [0.0, from_ms, until_ms])
        stage[0] += until_ms - from_ms
        stage[1] = min(stage[1], from_ms)
        stage[2] = max(stage[2], until_ms)
        job, began_ms, ended_ms = self._open.get(executor, (start.job, from_ms, from_ms))
        if job != start.job or from_ms - ended_ms >= SHORTEST_BREAK_MS:
            self._stints.append(_stint(executor, job, began_ms, ended_ms))
            began_ms = from_ms
        self._open[executor] = (start.job, began_ms, until_ms)

    def _close(self) -> None:
        for executor in list(self._running):
            self._end(executor)
        for executor, (job, from_ms, until_ms) in self._open.items():
            self._stints.append(_stint(executor, job, from_ms, until_ms))
        self._open.clear()


def _stint(executor: int, job: int, from_ms: float, until_ms: float) -> Stint:
    return Stint(executor, job, _seconds(from_ms), _seconds(until_ms))


def _seconds(value_ms: float) -> float:
    """To the millisecond, which is what durations are known to."""
    return round(value_ms / MS_PER_SECOND, 3)


def _run(one: NetworkTask) -> TaskRun:
    compute_s = one.compute_s
    bytes_per_s = None
    if compute_s is not None and compute_s > one.start_s and one.remote_bytes:
        bytes_per_s = round(one.remote_bytes / (compute_s - one.start_s), 1)
    return TaskRun(
        *(one.job, one.stage, one.task, one.attempt, one.executor),
        start_s=round(one.start_s, 3),
        compute_s=None if compute_s is None else round(compute_s, 3),
        end_s=round(one.end_s, 3),
        ended=one.ended,
        local_bytes=one.local_bytes,
        remote_bytes=one.remote_bytes,
        bytes_per_s=bytes_per_s,
    )
