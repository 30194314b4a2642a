"""Task ``scheduling``, driver ``simulated``: jobs on a cluster with a clock of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from cluster_sim.jobs import Job
from cluster_sim.machine import InvalidAssignment
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.simulated import ClusterRun, run_simulated
from controllers import registry
from testbed.scheduling_plans import SchedulingPlan, SchedulingSession
from testbed.scheduling_records import FinishedJob, SchedulingSessionRecord, Spread
from testbed.scheduling_tracing import Tracer
from testbed.session_pool import ArmControllers

MS_PER_S = 1000.0
_DIGITS = 4  # decimals of a decision's milliseconds


class SchedulingPlayer:
    """Runs sessions of one plan; makes each arm's controller once."""

    def __init__(self, plan: SchedulingPlan) -> None:
        self._plan = plan
        self._controllers = ArmControllers(plan.experiment.task)
        name = plan.experiment.scheduler.fallback
        self._fallback = None if name is None else registry.create(plan.experiment.task, name)

    def prepare(self, sessions: Sequence[SchedulingSession]) -> None:
        """Makes the controllers of these sessions."""
        for session in sessions:
            self._controllers.of(session.arm)

    def play(self, session: SchedulingSession) -> SchedulingSessionRecord:
        """Runs one arm on the jobs of one seed. A controller that fails makes that fail."""
        plan, config = self._plan, self._plan.simulation
        jobs, durations = plan.workloads[session.seed], plan.durations(session.seed)
        tracer = None
        if session.is_recorded:
            tracer = Tracer(durations, has_twins=config.cluster.speculation is not None)
        decisions = Decisions(
            self._controllers.of(session.arm), self._fallback, tracer, config.decision_ms
        )
        run: ClusterRun | None = None
        error: str | None = None
        began_s = time.perf_counter()
        try:
            run = run_simulated(
                jobs,
                config,
                tracer or durations,
                decisions.decide,
                None if tracer is None else tracer.watch,
            )
        except Exception as caught:  # whatever a controller raises belongs into its record
            error = f"{type(caught).__name__}: {caught}"
        wall_s = time.perf_counter() - began_s
        finished = () if run is None else _finished(jobs, run, tracer)
        executors = config.cluster.executors
        utilisation, tasks = None, None
        if run is not None and tracer is not None:
            utilisation = tracer.utilisation(executors, run.makespan_s)
            tasks = tracer.record(jobs, _longest(finished))
        return SchedulingSessionRecord(
            arm=session.arm.label,
            controller=session.arm.controller,
            seed=session.seed,
            driver="simulated",
            status="ok" if error is None else "failed",
            error=error,
            jct_s=spread([one.jct_s for one in finished]),
            makespan_s=None if run is None else run.makespan_s,
            decisions=len(decisions.took_ms),
            events=0 if run is None else run.events,
            wall_s=wall_s,
            executors=executors,
            fallbacks=decisions.fallbacks,
            utilisation=utilisation,
            queueing_s=spread([one.queueing_s for one in finished if one.queueing_s is not None]),
            jobs=finished,
            decisions_ms=tuple(round(value, _DIGITS) for value in decisions.took_ms),
            tasks=tasks,
        )


class Decisions:
    """The decisions of one controller in one session: checked, timed, replaced if they must be."""

    def __init__(
        self,
        controller: registry.Controller,
        fallback: registry.Controller | None,
        tracer: Tracer | None,
        decision_ms: float | None,
    ) -> None:
        self.took_ms: list[float] = []
        self.fallbacks = 0
        self._controller, self._fallback = controller, fallback
        self._tracer, self._decision_ms = tracer, decision_ms

    def decide(self, view: ClusterView) -> Assignment:
        """The controller's decision, or that of the fallback.

        Raises:
            InvalidAssignment: it cannot be carried out, and there is no fallback.
        """
        asked_s = time.perf_counter()
        try:
            assignment = check_assignment(view, self._controller.decide(view))
        except Exception:  # whatever a controller raises
            if self._fallback is None:
                raise
            self.fallbacks += 1
            assignment = check_assignment(view, self._fallback.decide(view))
        finally:
            self.took_ms.append((time.perf_counter() - asked_s) * MS_PER_S)
        if self._tracer is not None:
            charged_ms = self.took_ms[-1] if self._decision_ms is None else self._decision_ms
            self._tracer.decided(charged_ms)
        return assignment


def check_assignment(view: ClusterView, decision: object) -> Assignment:
    """The decision, if it can be carried out.

    More executors than the stage can use, or than are to be placed now, are cut down by the
    cluster; more than there are at all is a mistake.

    Raises:
        InvalidAssignment: what is wrong, and which stages may be chosen.
    """
    if not isinstance(decision, Assignment):
        raise InvalidAssignment(f"{decision!r} is no assignment")
    job, index, executors = decision.job, decision.stage, decision.executors
    if job is None and index is None:
        return decision
    if not (_is_whole(job) and _is_whole(index) and _is_whole(executors)):
        raise InvalidAssignment(f"{decision} needs whole numbers")
    if not 1 <= executors <= view.executors:
        raise InvalidAssignment(
            f"{decision} names {executors} executors; there are 1 to {view.executors}"
        )
    for one in view.jobs:
        if one.job == job:
            for stage in one.stages:
                if stage.stage == index and stage.is_schedulable:
                    return decision
    raise InvalidAssignment(
        f"stage {index} of job {job} is finished, unknown or may not be chosen now; job/stage "
        "that may: " + ", ".join(_choices(view))
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and percentiles; None without values."""
    if not values:
        return None
    p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return Spread(sum(values) / len(values), p50, p95, p99)


def _choices(view: ClusterView) -> list[str]:
    return [
        f"{job.job}/{stage.stage}"
        for job in view.jobs
        for stage in job.stages
        if stage.is_schedulable
    ]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
