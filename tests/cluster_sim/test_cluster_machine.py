"""The scheduling machine: every state with every event, rounds by hand, losses, second attempts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster_sim.events import (
    Ask,
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
from cluster_sim.machine import Cluster, ClusterConfig, ClusterStateError, InvalidAssignment, State
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, StageView
from cluster_sim.speculation import SpeculationConfig

MakeJob = Callable[..., Job]


class Hand:
    """A cluster that is fed by hand."""

    def __init__(self, executors: int, *, speculation: SpeculationConfig | None = None) -> None:
        self.cluster = Cluster(ClusterConfig(executors=executors, speculation=speculation))
        self.now_ms = 0.0

    def feed(self, event: Event, after_ms: float = 0.0) -> list[object]:
        self.now_ms += after_ms
        return list(self.cluster.handle(event, now_ms=self.now_ms))

    def ask(self, event: Event, after_ms: float = 0.0) -> ClusterView:
        last = self.feed(event, after_ms)[-1]
        assert isinstance(last, Ask)
        return last.observation

    def choose(self, job: int, stage: int, executors: int) -> list[object]:
        return self.feed(Decided(Assignment(job, stage, executors)))


def starts(commands: list[object]) -> list[tuple[int, int, int, Wave]]:
    return [
        (one.executor, one.stage, one.task, one.wave)
        for one in commands
        if isinstance(one, StartTask)
    ]


# Executor 0 runs a task, 1 is on its way, 2 is lost, 3 is idle.
def cluster_in(state: State, job: Job, other: Job) -> Hand:
    hand = Hand(4)
    hand.feed(JobArrived(job))
    hand.choose(0, 0, 2)
    hand.feed(Decided(LEAVE_IDLE)) if hand.cluster.state is State.DECIDING else None
    hand.feed(ExecutorArrived(0), 2000)
    hand.feed(ExecutorLost(2))
    if state is State.DECIDING:
        hand.ask(JobArrived(other))
    assert hand.cluster.state is state
    return hand


EXECUTOR_EVENTS = (ExecutorArrived, TaskFinished, ExecutorLost, ExecutorJoined)
TAKEN = {
    (ExecutorArrived, 1),
    (TaskFinished, 0),
    *((ExecutorLost, executor) for executor in (0, 1, 3)),
    (ExecutorJoined, 2),
}


@pytest.mark.parametrize("executor", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", EXECUTOR_EVENTS)
@pytest.mark.parametrize("state", list(State))
def test_every_state_of_executors_takes_its_events_and_names_the_others(
    constant_job: MakeJob, state: State, kind: type, executor: int
) -> None:
    hand = cluster_in(state, constant_job((9, 1.0)), constant_job((9, 1.0), job=1))
    if state is State.OPEN and (kind, executor) in TAKEN:
        hand.feed(kind(executor), 10)
    else:
        with pytest.raises(ClusterStateError, match=rf"executor(=|s? ?){executor}|executors are 0"):
            hand.feed(kind(executor), 10)


@pytest.mark.parametrize("state", list(State))
def test_decisions_are_taken_when_asked_for_and_jobs_when_not(
    constant_job: MakeJob, state: State
) -> None:
    job, other = constant_job((9, 1.0)), constant_job((9, 1.0), job=1)
    if state is State.OPEN:
        cluster_in(state, job, other).feed(JobArrived(other))
        with pytest.raises(ClusterStateError, match="OPEN cannot handle Decided"):
            cluster_in(state, job, other).feed(Decided(LEAVE_IDLE))
        with pytest.raises(ClusterStateError, match="timer of stage 0"):
            cluster_in(state, job, other).feed(TimerFired(0))
    else:
        cluster_in(state, job, other).feed(Decided(LEAVE_IDLE))
        for event in (JobArrived(other), TimerFired(0)):
            with pytest.raises(ClusterStateError, match="DECIDING cannot handle"):
                cluster_in(state, job, other).feed(event)


def test_time_runs_forward_and_jobs_come_in_order(constant_job: MakeJob) -> None:
    hand = cluster_in(State.OPEN, constant_job((9, 1.0)), constant_job((1, 1.0), job=1))
    with pytest.raises(ClusterStateError, match="backwards"):
        hand.cluster.handle(TaskFinished(0), now_ms=1.0)
    with pytest.raises(ClusterStateError, match="job 0 arrives; the next is job 1"):
        hand.feed(JobArrived(constant_job((1, 1.0))))
    with pytest.raises(ValueError, match="0 executors"):
        ClusterConfig(executors=0)


@pytest.mark.parametrize(
    "assignment",
    [
        Assignment(0, 1, 1),  # its parent is not saturated
        Assignment(0, 2, 1),
        Assignment(0, -1, 1),
        Assignment(1, 0, 1),
        Assignment(0, 0, 0),
        Assignment(0, None, 1),
        Assignment(True, 0, 1),
        Assignment(0, 0, 1.0),  # type: ignore[arg-type]
    ],
)
def test_stages_that_may_not_be_chosen_are_refused(
    constant_job: MakeJob, assignment: Assignment
) -> None:
    hand = Hand(4)
    hand.ask(JobArrived(constant_job((9, 1.0), (1, 1.0), edges=((0, 1),))))
    with pytest.raises(InvalidAssignment):
        hand.feed(Decided(assignment))


def test_the_refusal_names_what_may_be_chosen(constant_job: MakeJob) -> None:
    hand = Hand(4)
    hand.ask(JobArrived(constant_job((9, 1.0), (1, 1.0), (2, 1.0), edges=((0, 1),))))
    with pytest.raises(InvalidAssignment, match=r"stage 1 of job 0 .* that may: 0/0, 0/2"):
        hand.choose(0, 1, 1)


def test_one_job_by_hand(constant_job: MakeJob) -> None:
    hand = Hand(3)
    view = hand.ask(JobArrived(constant_job((2, 100.0), (1, 50.0), edges=((0, 1),))))
    assert (view.committable, view.source_job, view.executors) == (3, None, 3)
    assert view.jobs[0].stages == (
        StageView(0, 2, 0, 0.1, 2, True, ()),
        StageView(1, 1, 0, 0.05, 1, False, (0,)),
    )
    # Two of the three are of use; with stage 0 saturated, stage 1 may be chosen.
    again = hand.choose(0, 0, 3)[-1]
    assert isinstance(again, Ask)
    assert [one.is_schedulable for one in again.observation.jobs[0].stages] == [False, True]
    assert (again.observation.committable, again.observation.jobs[0].executors) == (1, 2)
    assert hand.feed(Decided(LEAVE_IDLE)) == [MoveExecutor(0, 0, 0), MoveExecutor(1, 0, 0)]
    assert starts(hand.feed(ExecutorArrived(0), 2000)) == [(0, 0, 0, Wave.FRESH)]
    assert starts(hand.feed(ExecutorArrived(1))) == [(1, 0, 1, Wave.FRESH)]
    view = hand.ask(TaskFinished(0), 100)  # source: those of stage 0, the one at work included
    assert (view.committable, view.source_job) == (2, 0)
    assert hand.choose(0, 1, 2) == []  # the parent is not finished: executor 0 waits
    # Executor 1 was left to its job; stage 1 is unlocked and may have either.
    view = hand.ask(TaskFinished(1), 10)
    assert view.committable == 2
    assert starts(hand.choose(0, 1, 1)) == [(0, 1, 0, Wave.FRESH)]
    assert hand.feed(TaskFinished(0), 50) == [JobFinished(0)]
    assert hand.cluster.active_jobs == ()


def test_a_promise_is_kept_when_the_executor_gets_free(constant_job: MakeJob) -> None:
    hand = Hand(2)
    hand.ask(JobArrived(constant_job((2, 1.0), (5, 1.0))))
    hand.choose(0, 0, 2)
    for executor in (0, 1):
        hand.feed(ExecutorArrived(executor), 2000)
    hand.ask(TaskFinished(0), 1)
    assert starts(hand.choose(0, 1, 2)) == [(0, 1, 0, Wave.FRESH)]  # it waited for a decision
    assert starts(hand.feed(TaskFinished(1), 1)) == [(1, 1, 1, Wave.FIRST)]  # it did not
    assert starts(hand.feed(TaskFinished(1), 1)) == [(1, 1, 2, Wave.REST)]


def test_an_executor_that_comes_too_late_finds_other_work(constant_job: MakeJob) -> None:
    hand = Hand(2)
    hand.ask(JobArrived(constant_job((2, 1.0), (5, 1.0))))
    hand.choose(0, 0, 2)
    hand.feed(ExecutorArrived(0), 2000)
    assert starts(hand.feed(TaskFinished(0), 1)) == [(0, 0, 1, Wave.REST)]
    assert starts(hand.feed(ExecutorArrived(1))) == [(1, 1, 0, Wave.FRESH)]


def test_a_lost_executors_task_is_begun_anew(constant_job: MakeJob) -> None:
    hand = Hand(2)
    hand.ask(JobArrived(constant_job((1, 1.0))))
    assert hand.choose(0, 0, 1) == [MoveExecutor(0, 0, 0)]
    hand.feed(ExecutorArrived(0), 2000)
    view = hand.ask(ExecutorLost(0), 1)
    assert (view.executors, view.committable) == (1, 1)
    assert view.jobs[0].stages[0].remaining_tasks == 1
    hand.choose(0, 0, 1)
    (start,) = hand.feed(ExecutorArrived(1), 2000)
    assert isinstance(start, StartTask)
    assert (start.task, start.attempt) == (0, 1)
    assert hand.feed(ExecutorJoined(0)) == []
    assert hand.feed(TaskFinished(1)) == [JobFinished(0)]


def test_an_executor_lost_on_its_way_is_replaced(constant_job: MakeJob) -> None:
    hand = Hand(2)
    hand.ask(JobArrived(constant_job((1, 1.0))))
    hand.choose(0, 0, 1)
    view = hand.ask(ExecutorLost(0), 100)
    assert view.jobs[0].executors == 0
    assert hand.choose(0, 0, 1) == [MoveExecutor(1, 0, 0)]


def test_tasks_with_their_input_at_hand_come_first() -> None:
    from cluster_sim.durations import ConstantDurations
    from cluster_sim.jobs import JobGraph, Stage

    stage = Stage(3, ConstantDurations(1.0), homes=(1, None, 0))
    hand = Hand(1)
    hand.ask(JobArrived(Job(0, 0.0, JobGraph("homes", (stage,), ()))))
    hand.choose(0, 0, 1)
    seen = []
    commands = hand.feed(ExecutorArrived(0), 2000)
    while isinstance(commands[0], StartTask):
        seen.append((commands[0].task, commands[0].is_local))
        commands = hand.feed(TaskFinished(0), 1)
    assert seen == [(2, True), (1, True), (0, False)]


def test_a_slow_task_gets_a_second_attempt_and_the_first_to_finish_counts(
    constant_job: MakeJob,
) -> None:
    hand = Hand(4, speculation=SpeculationConfig())
    hand.ask(JobArrived(constant_job((4, 100.0))))
    hand.choose(0, 0, 4)
    for executor in range(4):
        hand.feed(ExecutorArrived(executor), 2000 if executor == 0 else 0)
    for executor in (0, 1):
        hand.feed(TaskFinished(executor), 50)  # after 50 and 100 ms: idle, nothing may be chosen
    assert hand.feed(TaskFinished(2)) == [WaitUntil(2150.0, 0)]  # 1.5 × the median of 100 ms
    view = hand.ask(TimerFired(0), 50)
    assert view.jobs[0].stages[0] == StageView(0, 1, 1, 0.1, 1, True, ())
    commands = hand.choose(0, 0, 4)
    assert commands == [MoveExecutor(0, 0, 0)]
    (start,) = hand.feed(ExecutorArrived(0), 2000)
    assert isinstance(start, StartTask)
    assert (start.task, start.attempt) == (3, 1)
    assert hand.feed(TaskFinished(0), 10) == [KillTask(3), JobFinished(0)]
