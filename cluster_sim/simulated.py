"""Simulated driver of the cluster: interprets the machine's commands with a clock of its own."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster_sim.compiled import CompiledCluster, is_built
from cluster_sim.durations import UNDISTURBED, DrawnDurations, DurationModel
from cluster_sim.events import (
    Ask,
    Command,
    Decided,
    Event,
    ExecutorArrived,
    ExecutorJoined,
    ExecutorLost,
    JobArrived,
    JobFinished,
    KillTask,
    MoveExecutor,
    StartTask,
    TaskFinished,
    TimerFired,
    WaitUntil,
)
from cluster_sim.jobs import Job, check_workload
from cluster_sim.machine import Cluster, ClusterConfig, ClusterStateError
from cluster_sim.observation import Assignment, ClusterView

MS_PER_SECOND = 1000.0
MOVING_DELAY_MS = 2000.0

Decide = Callable[[ClusterView], Assignment]
Watch = Callable[[Event, float], None]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A finished job.

    Attributes:
        job: its number.
        arrived_s: when it arrived.
        finished_s: when its last task was finished.
        jct_s: what lies between.
    """

    job: int
    arrived_s: float
    finished_s: float
    jct_s: float


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """A simulated run.

    Attributes:
        jobs: by number.
        makespan_s: when the last job was finished.
        decisions: how many were asked for.
        events: how many happened, decisions left aside.
    """

    jobs: tuple[JobRecord, ...]
    makespan_s: float
    decisions: int
    events: int

    @property
    def mean_jct_s(self) -> float:
        """Mean job completion time."""
        return sum(one.jct_s for one in self.jobs) / len(self.jobs)


@dataclass(frozen=True, slots=True)
class Outage:
    """An executor is gone for a while.

    Attributes:
        executor: which.
        from_ms: when it is lost.
        until_ms: when it is back; None: never.
    """

    executor: int
    from_ms: float
    until_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """The simulated cluster.

    Attributes:
        cluster: executors and speculation.
        moving_delay_ms: how long an executor takes to another job.
        decision_ms: how long a decision holds up all others; None: the time measured.
        outages: executors that are lost.
        core: "auto", or "python" for the machine in Python even where the one in C would do.
    """

    cluster: ClusterConfig
    moving_delay_ms: float = MOVING_DELAY_MS
    decision_ms: float | None = 0.0
    outages: tuple[Outage, ...] = ()
    core: Literal["auto", "python"] = "auto"


def run_simulated(
    jobs: Sequence[Job],
    config: SimulationConfig,
    durations: DurationModel,
    decide: Decide,
    watch: Watch | None = None,
) -> ClusterRun:
    """Runs jobs to their end.

    Args:
        jobs: the workload, numbered from 0 in order of arrival.
        config: the cluster.
        durations: how long tasks take.
        decide: the controller.
        watch: told every event and its time, before it is handled.

    Raises:
        JobError: the jobs are out of order.
        ClusterStateError: no executor is left, or the controller leaves all of them idle while no
            event is to come.
    """
    check_workload(jobs)
    if (
        isinstance(durations, DrawnDurations)
        and watch is None
        and is_plain(config, jobs, durations)
        and is_built()
    ):
        return _run_compiled(jobs, config, durations, decide)
    return _Simulation(jobs, config, durations, decide, watch).run()


def is_plain(config: SimulationConfig, jobs: Sequence[Job], durations: DrawnDurations) -> bool:
    """Whether nothing is asked for that only the machine in Python knows."""
    return (
        config.core != "python"
        and config.cluster.speculation is None
        and not config.outages
        and durations.disturbances == UNDISTURBED
        and not any(stage.homes for job in jobs for stage in job.graph.stages)
    )


def _run_compiled(
    jobs: Sequence[Job], config: SimulationConfig, durations: DrawnDurations, decide: Decide
) -> ClusterRun:
    cluster = CompiledCluster(
        jobs,
        durations,
        executors=config.cluster.executors,
        moving_delay_ms=config.moving_delay_ms,
    )
    decisions, decision_ms = 0, config.decision_ms or 0.0
    try:
        view = cluster.begin()
        while view is not None:
            decisions += 1
            began_s = time.perf_counter() if config.decision_ms is None else 0.0
            decision = decide(view)
            if config.decision_ms is None:
                decision_ms = (time.perf_counter() - began_s) * MS_PER_SECOND
            view = cluster.advance(decision, decision_ms)
        return _summed_up(jobs, list(cluster.finished_ms), decisions, cluster.events)
    finally:
        cluster.close()


def _summed_up(
    jobs: Sequence[Job], finished_ms: Sequence[float], decisions: int, events: int
) -> ClusterRun:
    records = tuple(
        JobRecord(
            job.job,
            job.arrived_ms / MS_PER_SECOND,
            at_ms / MS_PER_SECOND,
            (at_ms - job.arrived_ms) / MS_PER_SECOND,
        )
        for job, at_ms in zip(jobs, finished_ms, strict=True)
    )
    return ClusterRun(records, max(finished_ms, default=0.0) / MS_PER_SECOND, decisions, events)


class _Simulation:
    """The queue of events of one run."""

    def __init__(
        self,
        jobs: Sequence[Job],
        config: SimulationConfig,
        durations: DurationModel,
        decide: Decide,
        watch: Watch | None,
    ) -> None:
        self._jobs, self._config, self._durations = jobs, config, durations
        self._decide, self._watch = decide, watch
        self._cluster = Cluster(config.cluster)
        executors = range(config.cluster.executors)
        self._task_finished = [TaskFinished(one) for one in executors]
        self._pending = [-1] * len(executors)  # number of the event that each one waits for
        self._queue: list[tuple[float, int, Event]] = []
        self._numbered = 0
        self._now_ms = 0.0
        self._finished_ms: dict[int, float] = {}
        self._decisions = 0
        for job in jobs:
            self._push(job.arrived_ms, JobArrived(job))
        for outage in config.outages:
            self._push(outage.from_ms, ExecutorLost(outage.executor))
            if outage.until_ms is not None:
                self._push(outage.until_ms, ExecutorJoined(outage.executor))

    def run(self) -> ClusterRun:
        """Runs to the end."""
        queue, cluster, pending = self._queue, self._cluster, self._pending
        events, watch = 0, self._watch
        while queue and len(self._finished_ms) < len(self._jobs):
            at_ms, number, event = heapq.heappop(queue)
            match event:
                case TaskFinished(executor) | ExecutorArrived(executor):
                    if pending[executor] != number:
                        continue  # its executor was lost, or the task stopped
                case ExecutorLost(executor):
                    pending[executor] = -1
            # What happens while a decision is made is noticed when it has been made.
            self._now_ms = max(self._now_ms, at_ms)
            events += 1
            if watch is not None:
                watch(event, self._now_ms)
            self._carry_out(cluster.handle(event, now_ms=self._now_ms))
        if len(self._finished_ms) < len(self._jobs):
            raise ClusterStateError(
                f"jobs {', '.join(map(str, cluster.active_jobs))} wait for executors, and nothing "
                "is to happen any more"
            )
        finished_ms = [self._finished_ms[job.job] for job in self._jobs]
        return _summed_up(self._jobs, finished_ms, self._decisions, events)

    def _push(self, at_ms: float, event: Event) -> int:
        number = self._numbered
        heapq.heappush(self._queue, (at_ms, number, event))
        self._numbered = number + 1
        return number

    def _carry_out(self, commands: Iterable[Command]) -> None:
        ask: Ask | None = None
        for command in commands:
            if type(command) is StartTask:
                took_ms = self._durations.draw_ms(command)
                executor = command.executor
                self._pending[executor] = self._push(
                    self._now_ms + took_ms, self._task_finished[executor]
                )
                continue
            match command:
                case Ask():
                    ask = command
                case MoveExecutor(executor=executor):
                    self._pending[executor] = self._push(
                        self._now_ms + self._config.moving_delay_ms, ExecutorArrived(executor)
                    )
                case JobFinished(job):
                    self._finished_ms[job] = self._now_ms
                case WaitUntil(at_ms, stage):
                    self._push(at_ms, TimerFired(stage))
                case KillTask(executor):
                    self._pending[executor] = -1
        if ask is not None:
            self._carry_out(self._answer(ask))

    def _answer(self, ask: Ask) -> Iterable[Command]:
        self._decisions += 1
        began_s = time.perf_counter()
        decided = Decided(self._decide(ask.observation))
        decision_ms = self._config.decision_ms
        if decision_ms is None:
            decision_ms = (time.perf_counter() - began_s) * MS_PER_SECOND
        self._now_ms += decision_ms
        return self._cluster.handle(decided, now_ms=self._now_ms)
