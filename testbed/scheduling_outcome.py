"""What becomes of a scheduling session, whoever ran it: its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster_sim.durations import DurationModel
from cluster_sim.jobs import Job
from cluster_sim.simulated import ClusterRun
from cluster_sim.task_records import ShuffleTotals, TaskRecord
from testbed.scheduling_plans import SchedulingPlan, SchedulingSession
from testbed.scheduling_records import (
    FinishedJob,
    NetworkRecord,
    SchedulingSessionRecord,
    Spread,
)
from testbed.scheduling_tracing import Tracer

MS_PER_S = 1000.0
_DIGITS = 4  # decimals of a decision's milliseconds


@dataclass
class Outcome:
    """What is known of a session.

    Attributes:
        error: why it failed; None: it did not.
        decisions_ms: how long each decision took.
        fallbacks: decisions of the fallback.
        tracer: what noted who ran what when; None: nobody did.
        wall_s: real time that it took.
        run: what the cluster did; None: it failed.
        tasks: with a network, every attempt at a task.
        network: with a network, what it did.
    """

    error: str | None
    decisions_ms: Sequence[float]
    fallbacks: int
    tracer: Tracer | None
    wall_s: float = 0.0
    run: ClusterRun | None = None
    tasks: Sequence[TaskRecord] = ()
    network: NetworkRecord | None = None

    def record(
        self, plan: SchedulingPlan, session: SchedulingSession, *, driver: str
    ) -> SchedulingSessionRecord:
        """What is written down."""
        run, tracer, jobs = self.run, self.tracer, plan.workloads[session.seed]
        finished = () if run is None else _finished(jobs, run, tracer)
        executors = plan.executors
        utilisation, tasks = None, None
        if run is not None and tracer is not None:
            utilisation = tracer.utilisation(executors, run.makespan_s)
            tasks = tracer.record(jobs, _longest(finished), self.tasks)
        return SchedulingSessionRecord(
            arm=session.arm.label,
            controller=session.arm.controller,
            seed=session.seed,
            driver=driver,
            status="ok" if self.error is None else "failed",
            error=self.error,
            jct_s=spread([one.jct_s for one in finished]),
            makespan_s=None if run is None else run.makespan_s,
            decisions=len(self.decisions_ms),
            events=0 if run is None else run.events,
            wall_s=self.wall_s,
            executors=executors,
            fallbacks=self.fallbacks,
            utilisation=utilisation,
            queueing_s=spread([one.queueing_s for one in finished if one.queueing_s is not None]),
            jobs=finished,
            decisions_ms=tuple(round(value, _DIGITS) for value in self.decisions_ms),
            tasks=tasks,
            network=self.network,
        )


def tracer_of(
    plan: SchedulingPlan, session: SchedulingSession, durations: DurationModel
) -> Tracer | None:
    """What notes who runs what when in a session; None: that is not asked for."""
    if not session.is_recorded:
        return None
    return Tracer(durations, has_twins=plan.simulation.cluster.speculation is not None)


def network_record(backend: str, shuffle: ShuffleTotals, *, lost: Sequence[int]) -> NetworkRecord:
    """The record of a network, as far as a simulated one can have it."""
    return NetworkRecord(
        backend=backend,
        planned_bytes=shuffle.planned_bytes,
        local_bytes=shuffle.local_bytes,
        remote_bytes=shuffle.remote_bytes,
        wasted_bytes=shuffle.wasted_bytes,
        wire_bytes=None,
        reruns=shuffle.reruns,
        lost=tuple(lost),
        fetch_s=shuffle.fetch_s,
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and percentiles; None without values."""
    if not values:
        return None
    p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return Spread(sum(values) / len(values), p50, p95, p99)


def _longest(jobs: Sequence[FinishedJob]) -> int:
    return max(jobs, key=lambda one: one.jct_s).id


def _finished(
    jobs: Sequence[Job], run: ClusterRun, tracer: Tracer | None
) -> tuple[FinishedJob, ...]:
    return tuple(
        FinishedJob(
            id=record.job,
            arrived_s=record.arrived_s,
            finished_s=record.finished_s,
            jct_s=record.jct_s,
            name=job.graph.name,
            stages=len(job.graph.stages),
            tasks=job.graph.total_tasks,
            work_s=job.graph.work_ms / MS_PER_S,
            queueing_s=None if tracer is None else tracer.queueing_s(job),
        )
        for job, record in zip(jobs, run.jobs, strict=True)
    )
