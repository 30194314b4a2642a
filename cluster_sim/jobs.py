"""Jobs as Spark runs them: a graph of stages, each of many tasks (Mao et al., SIGCOMM 2019).

Times inside this package are milliseconds: recorded durations are whole milliseconds, whose sums
are exact, so that what happens at the same time stays at the same time. Controllers are told
seconds.
"""

from __future__ import annotations

import enum
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

MAX_TASKS = 10**7


class JobError(ValueError):
    """A job that cannot be: the message names job, stage and what is wrong."""


class Wave(enum.Enum):
    """What an executor did before a task, which says how long the task takes."""

    FRESH = enum.auto()  # nothing, or it was elsewhere
    FIRST = enum.auto()  # another stage of the same job
    REST = enum.auto()  # a task of the same stage


@dataclass(frozen=True, slots=True)
class PackedDurations:
    """All durations of a stage, by wave and then by level of parallelism.

    Attributes:
        counts: how many there are of each.
        choices_ms: one after the other.
    """

    counts: array[int]
    choices_ms: array[float]


class StageDurations(Protocol):
    """How long the tasks of a stage take; see ``durations.py``."""

    @property
    def mean_ms(self) -> float:
        """Rough duration of one task, which controllers are told."""
        ...

    def choices_ms(self, wave: Wave, level: int) -> tuple[float, ...]:
        """Durations, equally likely, of a task after ``wave`` at a level of parallelism."""
        ...

    @property
    def packed(self) -> PackedDurations:
        """The same for all waves and levels."""
        ...


@dataclass(frozen=True, slots=True)
class Edge:
    """A shuffle: the child reads what the parent wrote.

    Attributes:
        parent: index of the stage that writes.
        child: index of the stage that reads.
        shuffle_bytes: what crosses, in total over all tasks; 0 where nobody has said.
    """

    parent: int
    child: int
    shuffle_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A vertex of the graph.

    Attributes:
        tasks: how many tasks, all alike.
        durations: how long they take.
        homes: executor that holds the input of each task, or None for tasks that may run anywhere
            at the same cost; empty: no stage of this job cares.
    """

    tasks: int
    durations: StageDurations
    homes: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class JobGraph:
    """The stages of a job and what waits for what.

    Attributes:
        name: what messages and records call it.
        stages: the vertices.
        edges: the shuffles, at most one between two stages.
        parents: per stage its parents, increasing.
        children: per stage its children, increasing.
    """

    name: str
    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    parents: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    children: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.stages:
            raise JobError(f"job {self.name!r} has no stages")
        for index, stage in enumerate(self.stages):
            self._check_stage(index, stage)
        parents: list[list[int]] = [[] for _ in self.stages]
        children: list[list[int]] = [[] for _ in self.stages]
        for edge in self.edges:
            self._check_edge(edge)
            if edge.parent in parents[edge.child]:
                raise JobError(
                    f"job {self.name!r}: stage {edge.child} names stage {edge.parent} as its "
                    "parent twice"
                )
            parents[edge.child].append(edge.parent)
            children[edge.parent].append(edge.child)
        object.__setattr__(self, "parents", tuple(tuple(sorted(row)) for row in parents))
        object.__setattr__(self, "children", tuple(tuple(sorted(row)) for row in children))
        if looping := loop_members(self.parents):
            raise JobError(
                f"job {self.name!r}: stages {', '.join(map(str, looping))} wait for each other"
            )

    @property
    def total_tasks(self) -> int:
        """Tasks of all stages."""
        return sum(stage.tasks for stage in self.stages)

    @property
    def work_ms(self) -> float:
        """Rough executor time that the whole job takes."""
        return sum(stage.tasks * stage.durations.mean_ms for stage in self.stages)

    def _check_stage(self, index: int, stage: Stage) -> None:
        where = f"job {self.name!r}, stage {index}"
        if not 1 <= stage.tasks <= MAX_TASKS:
            raise JobError(f"{where}: {stage.tasks} tasks; it needs 1 to {MAX_TASKS}")
        mean_ms = stage.durations.mean_ms
        if not (math.isfinite(mean_ms) and mean_ms >= 0):
            raise JobError(f"{where}: a mean duration of {mean_ms} ms; it must be 0 or more")
        if stage.homes and len(stage.homes) != stage.tasks:
            raise JobError(f"{where}: {len(stage.homes)} homes for {stage.tasks} tasks")

    def _check_edge(self, edge: Edge) -> None:
        for end, what in ((edge.parent, "parent"), (edge.child, "child")):
            if not 0 <= end < len(self.stages):
                raise JobError(
                    f"job {self.name!r}: unknown {what} {end} of edge {edge.parent} → "
                    f"{edge.child}; stages are 0 to {len(self.stages) - 1}"
                )
        if edge.shuffle_bytes < 0:
            raise JobError(
                f"job {self.name!r}: edge {edge.parent} → {edge.child} carries "
                f"{edge.shuffle_bytes} bytes"
            )


@dataclass(frozen=True)
class Job:
    """One submission of a graph.

    Attributes:
        job: its number, which observations and decisions use.
        arrived_ms: when it is submitted.
        graph: its stages.
    """

    job: int
    arrived_ms: float
    graph: JobGraph

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrived_ms) and self.arrived_ms >= 0):
            raise JobError(f"job {self.job} ({self.graph.name!r}) arrives at {self.arrived_ms} ms")


def loop_members(parents: Sequence[Sequence[int]]) -> list[int]:
    """Vertices that are on a loop or behind one; empty for a graph without loops."""
    waiting = [len(row) for row in parents]
    children: list[list[int]] = [[] for _ in parents]
    for child, row in enumerate(parents):
        for parent in row:
            children[parent].append(child)
    free = [vertex for vertex, count in enumerate(waiting) if count == 0]
    while free:
        for child in children[free.pop()]:
            waiting[child] -= 1
            if waiting[child] == 0:
                free.append(child)
    return [vertex for vertex, count in enumerate(waiting) if count > 0]


def check_workload(jobs: Sequence[Job]) -> None:
    """Raises :class:`JobError` unless jobs are numbered from 0 in order of arrival."""
    for index, job in enumerate(jobs):
        if job.job != index:
            raise JobError(f"job {job.job} stands at place {index}; jobs are numbered from 0")
        if index and job.arrived_ms < jobs[index - 1].arrived_ms:
            raise JobError(
                f"job {index} arrives at {job.arrived_ms} ms, before job {index - 1} at "
                f"{jobs[index - 1].arrived_ms} ms"
            )
