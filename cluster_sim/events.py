"""What happens to the cluster, and what its scheduler wants done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cluster_sim.jobs import Job, Wave
from cluster_sim.observation import Assignment, ClusterView


@dataclass(frozen=True, slots=True)
class JobArrived:
    """A job is submitted."""

    job: Job


@dataclass(frozen=True, slots=True)
class ExecutorArrived:
    """An executor has moved to the job it was sent to."""

    executor: int


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """The task that this executor runs is finished."""

    executor: int


@dataclass(frozen=True, slots=True)
class ExecutorLost:
    """An executor is gone, with the task that it ran."""

    executor: int


@dataclass(frozen=True, slots=True)
class ExecutorJoined:
    """A lost executor is back, idle."""

    executor: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The wait for the tasks of a stage is over."""

    stage: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The controller, or the fallback in its place, decided."""

    assignment: Assignment


Event = (
    JobArrived
    | ExecutorArrived
    | TaskFinished
    | ExecutorLost
    | ExecutorJoined
    | TimerFired
    | Decided
)


class Ask(NamedTuple):
    """Ask the controller; answer with Decided."""

    observation: ClusterView


class StartTask(NamedTuple):
    """Run a task; answer with TaskFinished.

    Attributes:
        executor: where.
        job: number of the job.
        stage: index of the stage.
        task: index of the task.
        attempt: from 0; above 0 it is a copy, or begun anew after a loss.
        wave: what the executor did before.
        local_executors: executors at the job.
        is_local: whether the executor holds the task's input, if any one does.
    """

    executor: int
    job: int
    stage: int
    task: int
    attempt: int
    wave: Wave
    local_executors: int
    is_local: bool


class MoveExecutor(NamedTuple):
    """Move an executor to a job; answer with ExecutorArrived."""

    executor: int
    job: int
    stage: int


class KillTask(NamedTuple):
    """Stop the task that this executor runs: another attempt has finished. No answer."""

    executor: int


class WaitUntil(NamedTuple):
    """Answer with TimerFired(stage) at that time, or not at all if the job is finished by then."""

    at_ms: float
    stage: int


class JobFinished(NamedTuple):
    """For the record: all tasks of the job are finished."""

    job: int


Command = Ask | StartTask | MoveExecutor | KillTask | WaitUntil | JobFinished
