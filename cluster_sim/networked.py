"""Simulated driver of the cluster with a network: a task fetches what it reads, then computes.

A sibling of ``simulated.py`` and ``live.py``: the same machine, the same durations, the same
ledger of map outputs as the live driver. Without bytes, or with a fabric that is never full, runs
are those of ``simulated.py``. Moving an executor takes no capacity.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster_sim.durations import DurationModel
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
from cluster_sim.fabric import Fabric, FabricError, FabricFlows
from cluster_sim.jobs import Job, check_workload
from cluster_sim.machine import Cluster, ClusterStateError
from cluster_sim.map_outputs import MapOutputs, Read
from cluster_sim.simulated import (
    MS_PER_SECOND,
    ClusterRun,
    Decide,
    JobRecord,
    SimulationConfig,
    Watch,
)
from cluster_sim.task_records import Ended, ShuffleTotals, TaskRecord, ended_task, shuffle_totals


@dataclass(frozen=True, slots=True)
class NetworkedRun:
    """A run with a network.

    Attributes:
        cluster: as without one.
        tasks: every attempt at a task, in the order in which they ended.
        shuffle: what they read.
    """

    cluster: ClusterRun
    tasks: tuple[TaskRecord, ...]
    shuffle: ShuffleTotals


def run_networked(
    jobs: Sequence[Job],
    config: SimulationConfig,
    fabric: Fabric,
    durations: DurationModel,
    decide: Decide,
    *,
    fan_in: int | None = None,
    watch: Watch | None = None,
) -> NetworkedRun:
    """Runs jobs to their end; see :func:`cluster_sim.simulated.run_simulated`.

    Args:
        jobs: the workload; its edges say what crosses the network.
        config: the cluster; ``core`` means nothing here.
        fabric: the network; one host per executor.
        durations: how long tasks compute.
        decide: the controller.
        fan_in: see :class:`cluster_sim.map_outputs.MapOutputs`.
        watch: told every event and its time, before it is handled.

    Raises:
        FabricError: the fabric has not one host per executor.
        JobError, ClusterStateError: see there.
    """
    check_workload(jobs)
    if fabric.hosts != config.cluster.executors:
        raise FabricError(f"{fabric.hosts} hosts for {config.cluster.executors} executors")
    return _Simulation(jobs, config, fabric, durations, decide, fan_in, watch).run()


@dataclass(slots=True)
class _Attempt:
    start: StartTask
    reads: tuple[Read, ...]
    took_ms: float
    start_ms: float
    round_trip_ms: float
    compute_ms: float | None = None


class _Simulation:
    """The queue of events of one run, and the flows beside it."""

    def __init__(
        self,
        jobs: Sequence[Job],
        config: SimulationConfig,
        fabric: Fabric,
        durations: DurationModel,
        decide: Decide,
        fan_in: int | None,
        watch: Watch | None,
    ) -> None:
        self._jobs, self._config, self._durations = jobs, config, durations
        self._decide, self._watch = decide, watch
        self._cluster = Cluster(config.cluster)
        executors = config.cluster.executors
        self._outputs = MapOutputs(jobs, executors, fan_in)
        self._flows = FabricFlows(fabric)
        self._alive = dict.fromkeys(range(executors))
        self._running: dict[int, _Attempt] = {}
        self._pending = [-1] * executors  # number of the event that each one waits for
        self._queue: list[tuple[float, int, Event]] = []
        self._numbered = 0
        self._now_ms = 0.0
        self._finished_ms: dict[int, float] = {}
        self._decisions = 0
        self._records: list[TaskRecord] = []
        for job in jobs:
            self._push(job.arrived_ms, JobArrived(job))
        for outage in config.outages:
            self._push(outage.from_ms, ExecutorLost(outage.executor))
            if outage.until_ms is not None:
                self._push(outage.until_ms, ExecutorJoined(outage.executor))

    def run(self) -> NetworkedRun:
        """Runs to the end."""
        events = 0
        while len(self._finished_ms) < len(self._jobs):
            self._settle_flows(self._queue[0][0] if self._queue else math.inf)
            if not self._queue:
                waiting = ", ".join(map(str, self._cluster.active_jobs))
                raise ClusterStateError(
                    f"jobs {waiting} wait for executors, and nothing is to happen any more"
                )
            at_ms, number, event = heapq.heappop(self._queue)
            if isinstance(event, TaskFinished | ExecutorArrived) and (
                self._pending[event.executor] != number
            ):
                continue  # its executor was lost, or the task stopped
            self._now_ms = max(self._now_ms, at_ms)
            self._settle_flows(self._now_ms)
            self._note(event, at_ms)
            events += 1
            if self._watch is not None:
                self._watch(event, self._now_ms)
            self._carry_out(self._cluster.handle(event, now_ms=self._now_ms))
        finished_ms = [self._finished_ms[job.job] for job in self._jobs]
        jobs = tuple(
            JobRecord(
                job.job,
                job.arrived_ms / MS_PER_SECOND,
                at_ms / MS_PER_SECOND,
                (at_ms - job.arrived_ms) / MS_PER_SECOND,
            )
            for job, at_ms in zip(self._jobs, finished_ms, strict=True)
        )
        makespan_s = max(finished_ms, default=0.0) / MS_PER_SECOND
        run = ClusterRun(jobs, makespan_s, self._decisions, events)
        return NetworkedRun(run, tuple(self._records), shuffle_totals(self._records))

    def _settle_flows(self, until_ms: float) -> None:
        """Lets those compute that have read all by then, or by what happens earlier through it."""
        while (at_ms := self._flows.next_ms) <= until_ms and at_ms < math.inf:
            for executor in self._flows.finish_next():
                self._compute(executor, at_ms)
                until_ms = min(until_ms, max(self._queue[0][0], self._now_ms))

    def _compute(self, executor: int, at_ms: float) -> None:
        attempt = self._running[executor]
        attempt.compute_ms = at_ms + attempt.round_trip_ms
        end_ms = attempt.compute_ms + attempt.took_ms
        self._pending[executor] = self._push(end_ms, TaskFinished(executor))

    def _note(self, event: Event, at_ms: float) -> None:
        """Keeps the ledger of who runs and holds what."""
        match event:
            case TaskFinished(executor):
                self._outputs.finish(self._running[executor].start)
                self._end(executor, "finished", at_ms)
            case ExecutorLost(executor):
                self._pending[executor] = -1
                self._end(executor, "lost", self._now_ms)
                self._alive.pop(executor, None)
                if self._alive:
                    self._outputs.lose(executor, successor_of(executor, self._alive))
            case ExecutorJoined(executor):
                self._alive[executor] = None
                self._outputs.join(executor)

    def _end(self, executor: int, ended: Ended, at_ms: float) -> None:
        self._flows.stop(executor, now_ms=self._now_ms)
        attempt = self._running.pop(executor, None)
        if attempt is not None:
            self._records.append(
                ended_task(
                    attempt.start,
                    attempt.reads,
                    ended=ended,
                    start_ms=attempt.start_ms,
                    compute_ms=attempt.compute_ms,
                    end_ms=at_ms,
                )
            )

    def _push(self, at_ms: float, event: Event) -> int:
        number = self._numbered
        heapq.heappush(self._queue, (at_ms, number, event))
        self._numbered = number + 1
        return number

    def _carry_out(self, commands: Iterable[Command]) -> None:
        ask: Ask | None = None
        for command in commands:
            match command:
                case StartTask():
                    self._start(command)
                case Ask():
                    ask = command
                case MoveExecutor(executor=executor):
                    at_ms = self._now_ms + self._config.moving_delay_ms
                    self._pending[executor] = self._push(at_ms, ExecutorArrived(executor))
                case JobFinished(job):
                    self._finished_ms[job] = self._now_ms
                    self._outputs.forget(job)
                case WaitUntil(at_ms, stage):
                    self._push(at_ms, TimerFired(stage))
                case KillTask(executor):
                    self._pending[executor] = -1
                    self._end(executor, "killed", self._now_ms)
        if ask is not None:
            self._carry_out(self._answer(ask))

    def _start(self, start: StartTask) -> None:
        executor, reads = start.executor, self._outputs.reads(start)
        took_ms = self._durations.draw_ms(start)
        sizes: dict[int, int] = {}
        for read in reads:
            sizes[read.source] = sizes.get(read.source, 0) + read.size_bytes
        # The farthest source is taken for the slowest.
        ways_ms = (self._flows.fabric.round_trip_ms(source, executor) for source in sizes)
        round_trip_ms = max(ways_ms, default=0.0)
        self._running[executor] = _Attempt(start, reads, took_ms, self._now_ms, round_trip_ms)
        self._pending[executor] = -1
        if not self._flows.begin(executor, sizes, now_ms=self._now_ms):
            self._compute(executor, self._now_ms)

    def _answer(self, ask: Ask) -> Iterable[Command]:
        self._decisions += 1
        began_s = time.perf_counter()
        decided = Decided(self._decide(ask.observation))
        decision_ms = self._config.decision_ms
        if decision_ms is None:
            decision_ms = (time.perf_counter() - began_s) * MS_PER_SECOND
        until_ms = self._now_ms + decision_ms
        if decision_ms:
            self._settle_flows_while_deciding(until_ms)
        self._now_ms = until_ms
        return self._cluster.handle(decided, now_ms=self._now_ms)

    def _settle_flows_while_deciding(self, until_ms: float) -> None:
        """Nothing else is handled meanwhile, but bytes move on."""
        while (at_ms := self._flows.next_ms) <= until_ms and at_ms < math.inf:
            for executor in self._flows.finish_next():
                self._compute(executor, at_ms)


def successor_of(executor: int, alive: Iterable[int]) -> int:
    """The executor that serves what a lost one wrote: the next one that lives, round the end."""
    living = sorted(alive)
    return next((one for one in living if one > executor), living[0])
