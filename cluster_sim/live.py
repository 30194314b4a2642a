"""Live driver of the cluster: the machine in real time, its executors agents on other hosts.

A sibling of ``networked.py``: the same machine, durations and ledger of map outputs, but bytes go
over TCP and time passes. All times inside are those of the cluster: ``time_scale`` of 0.02 has 50
seconds of it pass in one. Bytes and links are not scaled: ``Fabric.compressed`` says which links
move the same bytes in the shorter time.

What the driver itself takes, messages, timers and decisions, is not the cluster's. A task takes the
time that the network took with its bytes, and then that of its duration, counted from the event
that began it. Its agent, which hears of that later, computes for a shorter time, and says how long
the bytes took as soon as they are there, so that the end is known in time; an agent that dies
before it is lost, with its task. Where that is more than can be made up for, the cluster's clock is
held (``live_clock.py``), and the run takes longer than the time scale says. The record has how late
tasks began and how long the clock was held. Network and cluster come apart then: what is to share a
link may do so for a shorter time. So a run that was held for much of its time wants a larger scale.

A decision is charged with the time that it took, not compressed, as in simulation, or as long as
the configuration says.
"""

from __future__ import annotations

import asyncio
import heapq
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
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
from cluster_sim.jobs import Job, check_workload
from cluster_sim.live_clock import LiveClock
from cluster_sim.live_run import LiveConfig, LiveRun, spread
from cluster_sim.machine import Cluster, ClusterStateError
from cluster_sim.map_outputs import MapOutputs, Read
from cluster_sim.networked import successor_of
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.roster import LiveError, Roster
from cluster_sim.simulated import MS_PER_SECOND, ClusterRun, JobRecord, Watch
from cluster_sim.task_records import Ended, TaskRecord, ended_task, shuffle_totals
from cluster_sim.wire import Message, WireError

RETRY_S = 0.1  # until a source that gave nothing is asked again
MOST_RETRIES = 200
ROWS_PER_MESSAGE = 500

AskController = Callable[[ClusterView], Awaitable[Assignment]]


async def run_live(
    jobs: Sequence[Job],
    config: LiveConfig,
    durations: DurationModel,
    ask: AskController,
    listener: socket.socket,
    watch: Watch | None = None,
    clock: LiveClock | None = None,
) -> LiveRun:
    """Waits for the agents, then runs jobs to their end.

    Args:
        jobs: the workload, numbered from 0 in order of arrival.
        config: the cluster.
        durations: how long tasks compute.
        ask: the controller.
        listener: where agents come to; closed at the end.
        watch: told every event and its time, before it is handled.
        clock: to be started and held here, for others to read; by default one of its own.

    Raises:
        JobError: the jobs are out of order.
        LiveError: agents did not come, are all gone, or do not give what they hold.
        ClusterStateError: the controller leaves all executors idle while no event is to come.
        InvalidAssignment: the controller chose what may not be chosen.
    """
    check_workload(jobs)
    clock = clock or LiveClock(config.time_scale)
    return await _Master(jobs, config, durations, ask, watch, clock).run(listener)


@dataclass(slots=True)
class _Attempt:
    number: int
    start: StartTask
    reads: tuple[Read, ...]
    start_ms: float
    took_ms: float
    report: Message | None = None
    retries: int = 0

    @property
    def is_remote(self) -> bool:
        """Whether it reads anything of other executors."""
        return any(read.source != self.start.executor for read in self.reads)


class _Master:
    """One run."""

    def __init__(
        self,
        jobs: Sequence[Job],
        config: LiveConfig,
        durations: DurationModel,
        ask: AskController,
        watch: Watch | None,
        clock: LiveClock,
    ) -> None:
        self._jobs, self._config, self._durations = jobs, config, durations
        self._ask, self._watch = ask, watch
        self._cluster = Cluster(config.cluster)
        self._executors = config.cluster.executors
        self._outputs = MapOutputs(jobs, self._executors, config.fan_in)
        self._agents = Roster(self._executors, config.dead_after_s, self)
        self._gone: set[int] = set()  # lost executors, for all that the machine knows
        self._lost: list[int] = []
        self._running: dict[int, _Attempt] = {}
        self._pending = [-1] * self._executors
        self._queue: list[tuple[float, int, Event]] = []
        self._numbered = 0
        self._now_ms = 0.0
        self._clock = clock
        self._moved_ms = 0.0
        self._finished_ms: dict[int, float] = {}
        self._decisions = self._events = 0
        self._records: list[TaskRecord] = []
        self._late_s: list[float] = []
        self._waiting: asyncio.Future[None] | None = None
        self._problem: Exception | None = None
        self._retries: set[asyncio.TimerHandle] = set()

    async def run(self, listener: socket.socket) -> LiveRun:
        """Runs to the end."""
        try:
            await self._agents.gather(listener, self._config.joined_within_s)
            self._loop = asyncio.get_running_loop()
            began_s = self._loop.time()
            self._clock.start(began_s)
            for job in self._jobs:
                self._push(job.arrived_ms, JobArrived(job))
            while len(self._finished_ms) < len(self._jobs):
                await self._handle(*await self._next_event())
            return self._summed_up(self._loop.time() - began_s)
        finally:
            await self._agents.close()
            for retry in self._retries:
                retry.cancel()

    # ---- time ----------------------------------------------------------------------------------

    def _clock_ms(self) -> float:
        return self._clock.at_ms(self._loop.time())

    async def _next_event(self) -> tuple[float, Event]:
        """Waits for what is due next; what agents have said by then comes first."""
        await asyncio.sleep(0)
        while True:
            if self._problem is not None:
                raise self._problem
            wait_s = self._config.dead_after_s / 4
            if self._queue:
                at_ms, number, event = self._queue[0]
                if isinstance(event, TaskFinished | ExecutorArrived) and (
                    self._pending[event.executor] != number
                ):
                    heapq.heappop(self._queue)
                    continue
                now_s = self._loop.time()
                left_s = self._clock.real_s(at_ms) - now_s
                if left_s <= 0 and self._is_known(event):
                    heapq.heappop(self._queue)
                    self._clock.hold(at_ms, now_s)
                    return at_ms, event
                if left_s > 0:
                    wait_s = min(wait_s, left_s)
            elif not self._running:
                waiting = ", ".join(map(str, self._cluster.active_jobs))
                raise ClusterStateError(
                    f"jobs {waiting} wait for executors, and nothing is to happen any more"
                )
            await self._wait(wait_s)

    def _is_known(self, event: Event) -> bool:
        """Whether it has happened; of a task that is to end its agent may have said nothing yet."""
        return (
            not isinstance(event, TaskFinished) or self._running[event.executor].report is not None
        )

    async def _wait(self, seconds: float) -> None:
        """Waits until something has changed, but not for longer."""
        self._waiting = self._loop.create_future()
        alarm = self._loop.call_later(seconds, self._wake)
        try:
            await self._waiting
        finally:
            alarm.cancel()
            self._waiting = None
        self._agents.look_for_silent()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _push(self, at_ms: float, event: Event) -> int:
        number = self._numbered
        heapq.heappush(self._queue, (at_ms, number, event))
        self._numbered = number + 1
        self._wake()
        return number

    # ---- agents --------------------------------------------------------------------------------

    def agent_joined(self, executor: int) -> None:
        """See ``roster.Listener``."""
        self._push(self._clock_ms(), ExecutorJoined(executor))

    def agent_lost(self, executor: int) -> None:
        """See ``roster.Listener``."""
        attempt = self._running.get(executor)
        if attempt is not None and attempt.report is None:
            self._pending[executor] = -1  # nobody will ever say that it has ended
        self._push(self._clock_ms(), ExecutorLost(executor))

    def agent_says(self, executor: int, message: Message) -> None:
        """See ``roster.Listener``."""
        attempt = self._running.get(executor)
        match message:
            case {"beat": True}:
                self._agents.look_for_silent()
            case {"computing": int(number)}:
                if attempt is not None and attempt.number == number:
                    attempt.report = message
                    self._late_s.append(float(message["late_s"]))
                    if attempt.is_remote:
                        fetch_ms = self._clock.to_ms(float(message["fetch_s"]))
                        self._end_at(executor, attempt.start_ms + fetch_ms + attempt.took_ms)
                    self._wake()
            case {"unread": int(number), "reads": list(reads)}:
                if attempt is not None and attempt.number == number:
                    self._reread(executor, attempt, reads)
            case _:
                raise WireError(f"executor {executor} says {message}")

    def _end_at(self, executor: int, at_ms: float) -> None:
        self._pending[executor] = self._push(at_ms, TaskFinished(executor))

    def _reread(self, executor: int, attempt: _Attempt, reads: list[list[int]]) -> None:
        """An agent could not read: it is told where to now, later if nothing has changed."""
        if self._running.get(executor) is not attempt:
            return
        places = [[self._outputs.place_of(row[4]), *row[1:]] for row in reads]
        has_moved = all(new[0] != old[0] for new, old in zip(places, reads, strict=True))
        if has_moved or attempt.retries < 0:
            attempt.retries = abs(attempt.retries)
            self._agents.say(executor, {"reread": attempt.number, "reads": places})
            return
        if attempt.retries >= MOST_RETRIES:
            self._problem = LiveError(f"executor {executor} cannot read {places[0]}")
            self._wake()
            return
        attempt.retries = -(attempt.retries + 1)  # below 0: to be tried without a change

        def again() -> None:
            self._retries.discard(handle)
            self._reread(executor, attempt, reads)

        handle = self._loop.call_later(RETRY_S, again)
        self._retries.add(handle)

    # ---- events and commands -------------------------------------------------------------------

    async def _handle(self, at_ms: float, event: Event) -> None:
        if isinstance(event, ExecutorLost) and event.executor in self._gone:
            return
        # What happens while a decision is made is noticed when it has been made.
        self._moved_ms += max(self._now_ms - at_ms, 0.0)
        self._now_ms = max(self._now_ms, at_ms)
        self._note(event, at_ms)
        self._events += 1
        if self._watch is not None:
            self._watch(event, self._now_ms)
        commands: Iterable[Command] = self._cluster.handle(event, now_ms=self._now_ms)
        while (question := self._carry_out(commands)) is not None:
            commands = await self._answer(question)

    def _note(self, event: Event, at_ms: float) -> None:
        """Keeps the ledger of who runs and holds what."""
        match event:
            case TaskFinished(executor):
                self._outputs.finish(self._running[executor].start)
                self._end(executor, "finished", at_ms)
            case ExecutorLost(executor):
                self._lose(executor)
            case ExecutorJoined(executor):
                self._gone.discard(executor)
                self._outputs.join(executor)

    def _lose(self, executor: int) -> None:
        self._gone.add(executor)
        self._lost.append(executor)
        self._pending[executor] = -1
        self._end(executor, "lost", self._now_ms)
        alive = set(range(self._executors)) - self._gone
        if not alive:
            raise LiveError("all agents are gone")
        successor = successor_of(executor, alive)
        rows = [
            [one.job, one.parent, one.child, one.holding, one.size_bytes]
            for one in self._outputs.lose(executor, successor)
        ]
        for first in range(0, len(rows), ROWS_PER_MESSAGE):  # one that is gone hands on what it has
            self._agents.say(successor, {"hold": rows[first : first + ROWS_PER_MESSAGE]})
        self._agents.say_to_all({"gone": executor})

    def _end(self, executor: int, ended: Ended, at_ms: float) -> None:
        attempt = self._running.pop(executor, None)
        if attempt is None:
            return
        report = attempt.report or {}
        fetch_s = report.get("fetch_s")
        compute_ms = None
        if fetch_s is not None:
            compute_ms = attempt.start_ms
            if attempt.is_remote:
                compute_ms += self._clock.to_ms(float(fetch_s))
        self._records.append(
            ended_task(
                attempt.start,
                attempt.reads,
                ended=ended,
                start_ms=attempt.start_ms,
                compute_ms=compute_ms,
                end_ms=at_ms,
                local_bytes=int(report.get("local", 0)),
                remote_bytes=int(report.get("remote", 0)),
                wasted_bytes=int(report.get("wasted", 0)),
            )
        )

    def _carry_out(self, commands: Iterable[Command]) -> Ask | None:
        """Carries commands out; returns the question among them."""
        question: Ask | None = None
        for command in commands:
            match command:
                case StartTask():
                    self._start(command)
                case Ask():
                    question = command
                case MoveExecutor(executor=executor):
                    at_ms = self._now_ms + self._config.moving_delay_ms
                    self._pending[executor] = self._push(at_ms, ExecutorArrived(executor))
                case JobFinished(job):
                    self._finished_ms[job] = self._now_ms
                    self._outputs.forget(job)
                    self._agents.say_to_all({"forget": job})
                case WaitUntil(at_ms, stage):
                    self._push(at_ms, TimerFired(stage))
                case KillTask(executor):
                    self._kill(executor)
        return question

    def _start(self, start: StartTask) -> None:
        executor, outputs = start.executor, self._outputs
        took_ms = self._durations.draw_ms(start)
        attempt = _Attempt(self._numbered, start, outputs.reads(start), self._now_ms, took_ms)
        self._numbered += 1
        self._running[executor] = attempt
        self._pending[executor] = -1
        if not attempt.is_remote:
            self._end_at(executor, self._now_ms + took_ms)
        self._agents.say(  # one that is gone hears nothing, and its loss is handled next
            executor,
            {
                "run": attempt.number,
                "job": start.job,
                "stage": start.stage,
                "holding": outputs.holding_of(executor),
                "reads": [
                    [
                        read.source,
                        start.job,
                        read.parent,
                        start.stage,
                        read.holding,
                        read.size_bytes,
                    ]
                    for read in attempt.reads
                ],
                "writes": [[one.child, one.size_bytes] for one in outputs.writes(start)],
                "compute_s": self._clock.to_real_s(took_ms),
                "since_s": self._clock.real_s(self._now_ms),
            },
        )

    def _kill(self, executor: int) -> None:
        self._pending[executor] = -1
        if executor in self._running:
            self._agents.say(executor, {"kill": self._running[executor].number})
        self._end(executor, "killed", self._now_ms)

    async def _answer(self, question: Ask) -> Iterable[Command]:
        self._decisions += 1
        began_s = time.perf_counter()
        decided = Decided(await self._ask(question.observation))
        decision_ms = self._config.decision_ms
        if decision_ms is None:
            decision_ms = (time.perf_counter() - began_s) * MS_PER_SECOND
        self._now_ms += decision_ms
        return self._cluster.handle(decided, now_ms=self._now_ms)

    def _summed_up(self, wall_s: float) -> LiveRun:
        records = tuple(
            JobRecord(
                job.job,
                job.arrived_ms / MS_PER_SECOND,
                self._finished_ms[job.job] / MS_PER_SECOND,
                (self._finished_ms[job.job] - job.arrived_ms) / MS_PER_SECOND,
            )
            for job in self._jobs
        )
        makespan_s = max((one.finished_s for one in records), default=0.0)
        late_ms = [one * MS_PER_SECOND for one in self._late_s]
        return LiveRun(
            ClusterRun(records, makespan_s, self._decisions, self._events),
            tuple(self._records),
            shuffle_totals(self._records),
            tuple(self._lost),
            wall_s,
            spread(late_ms),
            self._clock.held_s,
            self._moved_ms / max(self._events, 1),
        )
