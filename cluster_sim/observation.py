"""What a scheduling controller is told, and what it answers: which stage gets executors.

The same things that Decima sees (Mao et al., SIGCOMM 2019): the graphs of the jobs in the system
without their finished stages, and the executors that are to be placed now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cluster_sim.jobs import MAX_TASKS, loop_members
from player.observation import ObservationError

#: Bounds of what is possible, far beyond any run.
MAX_JOBS = 10_000
MAX_STAGES = 10_000
MAX_EXECUTORS = 100_000
MAX_TIME_S = 1e12

_FORBID_UNKNOWN_KEYS = {"extra": "forbid"}  # read by pydantic at the edges


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage that is not finished.

    Attributes:
        stage: its index in the job.
        remaining_tasks: tasks that no executor has begun.
        running_tasks: tasks that are running.
        expected_task_s: rough duration of one task.
        demand: executors that it could still be given: remaining tasks, less the executors that
            are promised to it or on their way; below zero when more come than are needed.
        is_schedulable: whether it may be chosen now.
        parents: its parents that are not finished, increasing.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    stage: int
    remaining_tasks: int
    running_tasks: int
    expected_task_s: float
    demand: int
    is_schedulable: bool
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class JobView:
    """A job in the system.

    Attributes:
        job: its number.
        arrived_s: when it arrived.
        executors: those at the job, on their way or promised to it, less those promised away.
        stages: its unfinished stages, by index.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    job: int
    arrived_s: float
    executors: int
    stages: tuple[StageView, ...]

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Pairs of (parent, child) among the unfinished stages."""
        return tuple((parent, one.stage) for one in self.stages for parent in one.parents)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster at the moment of a decision.

    Attributes:
        time_s: now.
        executors: how many the cluster has.
        committable: executors that are to be placed by this decision and those after it.
        source_job: the job whose executors they are; None: they belong to none, or to a job that
            is finished.
        jobs: those in the system, by arrival.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    time_s: float
    executors: int
    committable: int
    source_job: int | None
    jobs: tuple[JobView, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The decision: executors for a stage. More than its demand or than there are count as those.

    Attributes:
        job: the job, or None to leave the executors idle.
        stage: the index of the stage in the job, or None likewise.
        executors: how many, 1 or more; of no meaning when they are left idle.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    job: int | None
    stage: int | None
    executors: int


LEAVE_IDLE = Assignment(None, None, 0)


def check_cluster_view(view: ClusterView) -> None:
    """Raises ``ObservationError`` for values that no cluster can show.

    Types are the reader's business (pydantic at the HTTP edge); this checks meaning.
    """
    _require(0 <= view.time_s <= MAX_TIME_S, "time_s", "must be 0 to 1e12")
    _require(1 <= view.executors <= MAX_EXECUTORS, "executors", f"must be 1 to {MAX_EXECUTORS}")
    _require(
        1 <= view.committable <= view.executors, "committable", "must be 1 to all the executors"
    )
    _require(1 <= len(view.jobs) <= MAX_JOBS, "jobs", f"must hold 1 to {MAX_JOBS} jobs")
    numbers = [one.job for one in view.jobs]
    _require(len(set(numbers)) == len(numbers), "jobs.job", "a job occurs twice")
    if view.source_job is not None:
        _require(view.source_job in numbers, "source_job", "is none of the jobs")
    for job in view.jobs:
        _check_job(job, view)
    _require(
        any(stage.is_schedulable for job in view.jobs for stage in job.stages),
        "jobs.stages.is_schedulable",
        "no stage may be chosen, so there is nothing to decide",
    )


def _check_job(job: JobView, view: ClusterView) -> None:
    _require(job.job >= 0, "jobs.job", "must be 0 or more")
    _require(0 <= job.arrived_s <= view.time_s, "jobs.arrived_s", "must lie in the past")
    _require(
        abs(job.executors) <= view.executors, "jobs.executors", "must be at most all the executors"
    )
    stages = job.stages
    _require(1 <= len(stages) <= MAX_STAGES, "jobs.stages", f"must hold 1 to {MAX_STAGES} stages")
    place = {one.stage: index for index, one in enumerate(stages)}
    _require(len(place) == len(stages), "jobs.stages.stage", "a stage occurs twice")
    for one in stages:
        _require(one.stage >= 0, "jobs.stages.stage", "must be 0 or more")
        for tasks, field in (
            (one.remaining_tasks, "remaining_tasks"),
            (one.running_tasks, "running_tasks"),
        ):
            _require(0 <= tasks <= MAX_TASKS, f"jobs.stages.{field}", f"must be 0 to {MAX_TASKS}")
        _require(
            0 <= one.expected_task_s <= MAX_TIME_S,
            "jobs.stages.expected_task_s",
            "must be 0 to 1e12",
        )
        _require(
            one.demand <= one.remaining_tasks and one.demand >= -view.executors,
            "jobs.stages.demand",
            "must be at most the remaining tasks",
        )
        _require(
            one.demand > 0 or not one.is_schedulable,
            "jobs.stages.is_schedulable",
            "a stage without demand cannot be chosen",
        )
        for parent in one.parents:
            _require(parent in place, "jobs.stages.parents", "names no unfinished stage")
        _require(
            len(set(one.parents)) == len(one.parents),
            "jobs.stages.parents",
            "names a stage twice",
        )
    loops = loop_members([[place[parent] for parent in one.parents] for one in stages])
    _require(not loops, "jobs.stages.parents", "go round in a circle")


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise ObservationError(field, message)
