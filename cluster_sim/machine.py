"""The cluster's scheduler as a pure state machine: an event in, commands out, time an argument.

The rules are those of Decima's simulator (Mao et al., SIGCOMM 2019) as the public reference,
spark-sched-sim, has them:

- A stage may be scheduled once its parents are saturated: each of their tasks has begun, or has an
  executor promised or on its way. It starts once its parents are finished.
- Executors stand in pools: one for the cluster, one per job, one per stage. When one has nothing
  left to do, its pool is the source of a round of decisions: the controller promises the pool's
  executors, those included that still work there, to stages. A promise is kept when an executor
  gets free.
- An executor that nobody promised stays with its job until the job is saturated.
- An executor whose stage no longer needs it takes another that can be scheduled, of its own job if
  there is one: one that may start before those that may not, then the one with most demand.

==========  ===============================================================  ================
state       events it takes                                                  answers with
==========  ===============================================================  ================
OPEN        JobArrived, ExecutorArrived, TaskFinished, ExecutorLost,         any commands
            ExecutorJoined, TimerFired
DECIDING    Decided                                                          any commands
==========  ===============================================================  ================

Lost executors lose the task that they run, which is begun anew elsewhere; what they have finished
is kept, as with Spark's external shuffle service. Speculation follows Spark: once a share of a
stage's tasks has finished, a task that runs longer than a multiple of their median gets a second
attempt; the first to finish counts.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

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
from cluster_sim.jobs import Job, Wave
from cluster_sim.observation import Assignment
from cluster_sim.pools import COMMON, Executors, Pool
from cluster_sim.speculation import Speculation, SpeculationConfig
from cluster_sim.stages import NOWHERE, Stages
from cluster_sim.views import ViewBuilder


class ClusterStateError(RuntimeError):
    """The driver sent an event that the state does not take, or time ran backwards: a bug."""


class InvalidAssignment(ValueError):
    """The controller chose a stage that may not be chosen now."""


class State(enum.Enum):
    """Whether the machine waits for the world or for a decision."""

    OPEN = enum.auto()
    DECIDING = enum.auto()


_OF_EXECUTORS = {ExecutorArrived, TaskFinished, ExecutorLost, ExecutorJoined}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The cluster.

    Attributes:
        executors: how many there are, numbered from 0, all idle at first.
        speculation: when to begin second attempts; None: never.
    """

    executors: int
    speculation: SpeculationConfig | None = None

    def __post_init__(self) -> None:
        if self.executors < 1:
            raise ValueError(f"{self.executors} executors; a cluster needs 1 or more")


class Cluster:
    """One run. Feed it events through :meth:`handle`; carry out the commands in their order."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._stages = Stages(config.executors)
        self._executors = Executors(config.executors)
        self._views = ViewBuilder(self._stages.figures, self._stages.supply)
        self._speculation = (
            Speculation(config.speculation) if config.speculation is not None else None
        )
        self._alive = config.executors
        self._now_ms = 0.0
        self._state = State.OPEN
        self._source: Pool | None = None
        self._chosen: list[int] = []  # stages chosen in this round
        self._commands: list[Command] = []
        self._released: deque[tuple[int, int]] = deque()  # executors whose attempt was stopped
        self._offered: deque[Pool] = deque()  # pools that may have become useful

    @property
    def state(self) -> State:
        """Whether a decision is awaited."""
        return self._state

    @property
    def active_jobs(self) -> tuple[int, ...]:
        """Jobs that are not finished, by arrival."""
        return tuple(self._stages.active_jobs)

    def handle(self, event: Event, *, now_ms: float) -> list[Command]:
        """Takes the event at ``now_ms`` (never backwards); returns the commands, in order.

        Raises:
            ClusterStateError: the state does not take this event, or ``now_ms`` lies in the past.
            InvalidAssignment: the decision names a stage that may not be chosen.
        """
        if now_ms < self._now_ms:
            raise ClusterStateError(f"time ran backwards: {now_ms} after {self._now_ms} ms")
        if (type(event) is Decided) is not (self._state is State.DECIDING):
            raise ClusterStateError(f"{self._state.name} cannot handle {event}")
        if type(event) in _OF_EXECUTORS and not 0 <= event.executor < self._config.executors:  # type: ignore[union-attr]
            raise ClusterStateError(f"{event}: executors are 0 to {self._config.executors - 1}")
        self._now_ms = now_ms
        self._commands = []
        match event:
            case TaskFinished(executor):
                self._finish_task(executor)
            case ExecutorArrived(executor):
                self._take_in(executor)
            case Decided(assignment):
                self._decide(assignment)
            case JobArrived(job):
                self._add_job(job)
            case ExecutorLost(executor):
                self._lose(executor)
            case ExecutorJoined(executor):
                self._join(executor)
            case TimerFired(stage):
                self._look_for_slow_tasks(stage)
        if self._state is State.OPEN:
            self._settle()
        return self._commands

    # ---- events --------------------------------------------------------------------------------

    def _add_job(self, job: Job) -> None:
        if job.job != len(self._stages.first_stage):
            raise ClusterStateError(
                f"job {job.job} arrives; the next is job {len(self._stages.first_stage)}"
            )
        self._views.add_job(job, self._stages.add_job(job))
        self._offered.append(self._executors.common)

    def _take_in(self, executor: int) -> None:
        stage, stages = self._executors.end_move(executor), self._stages
        if stage == NOWHERE:
            raise ClusterStateError(f"executor {executor} arrives, but it is not on its way")
        stages.come(stage, -1)
        stages.local[stages.job_of[stage]] += 1
        self._executors.put(executor, stage)
        if stages.remaining[stage] == 0:
            self._find_other_work(executor)
        elif stages.open_parents[stage]:
            self._cool_down(executor)
        else:
            self._start(executor, stage)

    def _finish_task(self, executor: int) -> None:
        stage = self._executors.running[executor]
        if stage == NOWHERE:
            raise ClusterStateError(f"executor {executor} finishes a task, but it runs none")
        stages = self._stages
        is_last = stages.finish_task(stage)
        if self._speculation is not None:
            self._finish_attempt(executor, stage)
        if is_last:
            self._finish_stage(executor, stage)
        elif stages.remaining[stage] > 0:
            self._start(executor, stage)
        else:
            self._release(executor, stage)

    def _finish_stage(self, executor: int, stage: int) -> None:
        """The stage's last task is finished; what waited for it may start."""
        stages = self._stages
        job = stages.job_of[stage]
        has_unlocked = stages.finish_stage(stage)
        if stages.is_finished(job):
            self._commands.append(JobFinished(job))
            for idle in self._idle_members(self._executors.pool_of_job(job)):
                self._cool_down(idle)
        if not has_unlocked:
            self._release(executor, stage)
            return
        pool = self._executors.pool_of_stage(stage)
        self._executors.running[executor] = NOWHERE
        if pool.promises:
            self._keep_promise(executor, pool)
        else:
            self._rest(executor)
        self._offered.append(self._executors.pool_of_job(job))

    def _release(self, executor: int, stage: int) -> None:
        """An executor has nothing left to do at its stage."""
        self._executors.running[executor] = NOWHERE
        pool = self._executors.pool_of_stage(stage)
        if pool.promises:
            self._keep_promise(executor, pool)
        else:
            self._executors.last_stage[executor] = NOWHERE
            self._offered.append(pool)

    def _lose(self, executor: int) -> None:
        executors, stages = self._executors, self._stages
        if executors.is_lost(executor):
            raise ClusterStateError(f"executor {executor} is lost, but it was gone before")
        self._alive -= 1
        moving_to = executors.end_move(executor)
        if moving_to != NOWHERE:
            stages.come(moving_to, -1)
            stages.add_supply(stages.job_of[moving_to], -1)
            executors.lose(executor)
            self._offer_to(moving_to)
            return
        stage = executors.running[executor]
        job = executors.job_at(executor, stages.job_of)
        pool = executors.pool_at(executor)
        if stage != NOWHERE:
            stages.stop_task(stage)
            if self._speculation is None or self._speculation.stop(executor):
                stages.return_task(stage, executors.task[executor])
        executors.lose(executor)
        if job is not None:
            stages.local[job] -= 1
            stages.add_supply(job, -1)
        if pool.committable < 0:
            self._withdraw(pool)
        if stage != NOWHERE:
            self._offer_to(stage)

    def _join(self, executor: int) -> None:
        if not self._executors.is_lost(executor):
            raise ClusterStateError(f"executor {executor} joins, but it is here already")
        self._alive += 1
        self._executors.put(executor, COMMON)
        self._offered.append(self._executors.common)

    # ---- rounds of decisions -------------------------------------------------------------------

    def _settle(self) -> None:
        """Opens rounds until one asks, or nothing is left to be placed."""
        while self._released:
            executor, stage = self._released.popleft()
            if self._stages.remaining[stage] > 0:
                self._start(executor, stage)
            else:
                self._release(executor, stage)
        while self._offered:
            self._source = pool = self._offered.popleft()
            if pool.committable > 0:
                if self._can_schedule():
                    self._ask()
                    return
                for executor in self._idle_members(pool):
                    self._cool_down(executor)
            self._source = None

    def _can_schedule(self) -> bool:
        return self._stages.can_schedule(self._source_job(), self._alive)

    def _source_job(self) -> int | None:
        """The unfinished job whose executors are being placed."""
        assert self._source is not None
        job = self._executors.job_of_pool(self._source, self._stages.job_of)
        return None if job is None or self._stages.is_finished(job) else job

    def _ask(self) -> None:
        assert self._source is not None
        self._state = State.DECIDING
        stages, jobs = self._stages.take_changes()
        self._commands.append(
            Ask(
                self._views.build(
                    now_ms=self._now_ms,
                    executors=self._alive,
                    committable=self._source.committable,
                    source_job=self._source_job(),
                    changed_stages=stages,
                    changed_jobs=jobs,
                )
            )
        )

    def _decide(self, assignment: Assignment) -> None:
        source = self._source
        assert source is not None
        stage = self._chosen_stage(assignment)
        if stage is not None:
            stages = self._stages
            count = min(assignment.executors, stages.demand(stage), source.committable)
            self._add_promised(source, stage, count)
            source.promise(stage, count)
            stages.come(stage, count)
            stages.choose(stage)
            self._chosen.append(stage)
            if source.committable > 0 and self._can_schedule():
                self._ask()
                return
        self._state = State.OPEN
        self._end_round(source)

    def _chosen_stage(self, assignment: Assignment) -> int | None:
        """The number of the stage, or None to leave the executors idle; checked."""
        job, index, count = assignment.job, assignment.stage, assignment.executors
        if job is None and index is None:
            return None
        for value in (job, index, count):
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidAssignment(f"{assignment} needs whole numbers")
        assert job is not None
        assert index is not None
        if count < 1:
            raise InvalidAssignment(f"{assignment} assigns no executors")
        stage = self._stages.number_of(job, index)
        source_job = self._source_job()
        if stage is None or not self._stages.may_choose(stage, source_job, self._alive):
            choices = self._stages.schedulable_stages(source_job, self._alive)
            names = [f"{self._stages.job_of[one]}/{self._stages.index_of(one)}" for one in choices]
            raise InvalidAssignment(
                f"stage {index} of job {job} may not be chosen now; job/stage that may: "
                + ", ".join(names)
            )
        return stage

    def _end_round(self, source: Pool) -> None:
        """Keeps the promises made to executors that are free; the rest is left idle."""
        for stage in self._chosen:
            self._stages.unchoose(stage)
        self._chosen = []
        if source.committable > 0 and source.key != COMMON:
            source.promise(COMMON, source.committable)
        for executor in self._idle_members(source):
            if source.promises:
                self._keep_promise(executor, source)
        self._source = None

    def _keep_promise(self, executor: int, pool: Pool) -> None:
        """Sends a free executor where the oldest promise of its pool says."""
        stage = pool.take_promise()
        if stage == COMMON:
            self._rest(executor)
        else:
            self._add_promised(pool, stage, -1)
            self._stages.come(stage, -1)
            self._send(executor, stage)

    def _withdraw(self, pool: Pool) -> None:
        """Takes the youngest promise of a pool back, which has lost an executor."""
        stage = pool.withdraw()
        if stage != COMMON:
            self._add_promised(pool, stage, -1)
            self._stages.come(stage, -1)
            self._offer_to(stage)

    def _add_promised(self, source: Pool, stage: int, count: int) -> None:
        """What a job is promised counts as its own; so does what it has promised, until it goes."""
        job = self._stages.job_of[stage]
        if self._executors.job_of_pool(source, self._stages.job_of) != job:
            self._stages.add_supply(job, count)

    # ---- executors -----------------------------------------------------------------------------

    def _send(self, executor: int, stage: int) -> None:
        """A free executor goes to work for a stage, moving to its job first if it must."""
        stages, executors = self._stages, self._executors
        if stages.remaining[stage] == 0:
            self._find_other_work(executor)
            return
        job, here = stages.job_of[stage], executors.job_at(executor, stages.job_of)
        if job == here:
            if stages.open_parents[stage]:
                self._cool_down(executor)
            else:
                executors.put(executor, stage)
                self._start(executor, stage)
            return
        if here is not None:
            stages.local[here] -= 1
            stages.add_supply(here, -1)
        stages.add_supply(job, 1)
        stages.come(stage, 1)
        executors.begin_move(executor, stage)
        self._commands.append(MoveExecutor(executor, job, stages.index_of(stage)))

    def _find_other_work(self, executor: int) -> None:
        """Its stage needs it no longer."""
        stages = self._stages
        here = self._executors.job_at(executor, stages.job_of)
        other = stages.other_work(here, self._alive)
        if other is None:
            self._cool_down(executor)
        else:
            self._send(executor, other)

    def _idle_members(self, pool: Pool) -> list[int]:
        return sorted(one for one in pool.members if self._executors.is_idle(one))

    def _cool_down(self, executor: int) -> None:
        """A free executor waits: its next task is that of a fresh one."""
        self._executors.last_stage[executor] = NOWHERE
        self._rest(executor)

    def _rest(self, executor: int) -> None:
        """A free executor stays with its job, or goes back to the cluster if the job needs none."""
        stages, executors = self._stages, self._executors
        job = executors.job_at(executor, stages.job_of)
        if job is None:
            return
        if stages.unsaturated[job] > 0:
            executors.put_to_job(executor, job)
            return
        stages.local[job] -= 1
        stages.add_supply(job, -1)
        executors.put(executor, COMMON)

    def _start(self, executor: int, stage: int) -> None:
        stages, executors = self._stages, self._executors
        task, attempt, is_local = stages.begin_task(stage, executor)
        last = executors.last_stage[executor]
        wave = Wave.REST if last == stage else Wave.FRESH if last == NOWHERE else Wave.FIRST
        executors.running[executor] = executors.last_stage[executor] = stage
        executors.task[executor] = task
        if self._speculation is not None:
            self._speculation.begin(executor, stage, task, self._now_ms)
        job = stages.job_of[stage]
        self._commands.append(
            StartTask(
                executor,
                job,
                stage - stages.first_stage[job],
                task,
                attempt,
                wave,
                stages.local[job],
                is_local,
            )
        )

    # ---- second attempts -----------------------------------------------------------------------

    def _finish_attempt(self, executor: int, stage: int) -> None:
        """The first attempt of a task to finish ends the other one."""
        assert self._speculation is not None
        twin = self._speculation.finish(executor, self._now_ms)
        if twin is None:
            self._stages.drop_returned(stage, self._executors.task[executor])
        else:
            self._commands.append(KillTask(twin))
            self._speculation.stop(twin)
            self._stages.stop_task(stage)
            self._executors.running[twin] = NOWHERE
            self._released.append((twin, stage))
        self._look_for_slow_tasks(stage)

    def _look_for_slow_tasks(self, stage: int) -> None:
        """Gives slow tasks a second attempt, and sets the time to look again."""
        if self._speculation is None or not 0 <= stage < len(self._stages.tasks):
            raise ClusterStateError(f"a timer of stage {stage} fires, which nobody set")
        tasks, unfinished = self._stages.tasks[stage], self._stages.unfinished[stage]
        slow, at_ms = self._speculation.slow_tasks(
            stage, tasks=tasks, finished=tasks - unfinished, now_ms=self._now_ms
        )
        for task in slow:
            self._stages.return_task(stage, task)
        if slow:
            self._offer_to(stage)
        if at_ms is not None:
            self._commands.append(WaitUntil(at_ms, stage))

    def _offer_to(self, stage: int) -> None:
        """A stage needs executors anew: those idle at its job, then those idle at no job."""
        job = self._stages.job_of[stage]
        self._offered.extend((self._executors.pool_of_job(job), self._executors.common))
