"""Which executor holds what finished tasks wrote, and what a task is to read from where.

A stage's output for one child is spread over the executors that ran its tasks, in equal parts. A
task of the child reads an equal part of that. All parts are whole bytes whose sum is what the edge
carries. In Spark each task reads from every executor; with hundreds of small tasks per second that
is more requests than bytes, so a task may be held to a few executors instead: it then reads a
few ranges of the output, which is laid out executor after executor, and tasks that begin together
read far apart.

Output outlives its executor, as with Spark's external shuffle service: another one serves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster_sim.events import StartTask
from cluster_sim.jobs import Job

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Read:
    """A part of what a task reads.

    Attributes:
        parent: index of the stage that wrote it.
        holding: whose output it is; stays when it is served from elsewhere.
        source: executor that serves it now.
        size_bytes: how much.
    """

    parent: int
    holding: int
    source: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Write:
    """What a task leaves behind for a child of its stage."""

    child: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Handover:
    """Output that another executor is to serve from now on."""

    job: int
    parent: int
    child: int
    holding: int
    size_bytes: int


def share(total: int, parts: int, part: int) -> int:
    """Part ``part`` of ``parts`` equal ones of a whole number; all together are the whole."""
    return total * (part + 1) // parts - total * part // parts


class MapOutputs:
    """The ledger of one run."""

    def __init__(self, jobs: Sequence[Job], executors: int, fan_in: int | None = None) -> None:
        """Makes an empty ledger.

        Args:
            jobs: the workload.
            executors: how many there are.
            fan_in: ranges of each parent's output that a task reads; None: a part of each
                executor's.
        """
        if fan_in is not None and fan_in < 1:
            raise ValueError(f"fan_in {fan_in}; it must be 1 or more")
        self._jobs = jobs
        self._fan_in = fan_in
        # A holding is what one executor wrote from when it came until it was lost.
        self._holding = list(range(executors))  # by executor
        self._place = list(range(executors))  # by holding
        self._sizes: dict[int, dict[tuple[int, int], dict[int, int]]] = {}

    def reads(self, start: StartTask) -> tuple[Read, ...]:
        """What a task reads; its parents are finished."""
        graph = self._jobs[start.job].graph
        sizes = self._sizes.get(start.job, {})
        tasks = graph.stages[start.stage].tasks
        return tuple(
            Read(parent, holding, self._place[holding], size)
            for parent in graph.parents[start.stage]
            for holding, size in self._parts(
                sizes.get((parent, start.stage), {}), tasks, start.task
            ).items()
            if size > 0
        )

    def writes(self, start: StartTask) -> tuple[Write, ...]:
        """What a task writes."""
        graph = self._jobs[start.job].graph
        tasks = graph.stages[start.stage].tasks
        return tuple(
            Write(edge.child, share(edge.shuffle_bytes, tasks, start.task))
            for edge in graph.edges
            if edge.parent == start.stage and edge.shuffle_bytes
        )

    def holding_of(self, executor: int) -> int:
        """Where what an executor writes is put down."""
        return self._holding[executor]

    def place_of(self, holding: int) -> int:
        """The executor that serves a holding."""
        return self._place[holding]

    def finish(self, start: StartTask) -> None:
        """A task is finished, and its executor holds what it wrote."""
        sizes = self._sizes.setdefault(start.job, {})
        holding = self._holding[start.executor]
        for write in self.writes(start):
            held = sizes.setdefault((start.stage, write.child), {})
            held[holding] = held.get(holding, 0) + write.size_bytes

    def forget(self, job: int) -> None:
        """A job is finished."""
        self._sizes.pop(job, None)

    def lose(self, executor: int, successor: int) -> tuple[Handover, ...]:
        """An executor is lost; returns what the successor is to serve from now on."""
        moved = {one for one, place in enumerate(self._place) if place == executor}
        for one in moved:
            self._place[one] = successor
        return tuple(
            Handover(job, parent, child, holding, size)
            for job, sizes in self._sizes.items()
            for (parent, child), held in sizes.items()
            for holding, size in held.items()
            if holding in moved
        )

    def join(self, executor: int) -> None:
        """A lost executor is back, and holds nothing."""
        self._holding[executor] = len(self._place)
        self._place.append(executor)

    def _parts(self, held: dict[int, int], tasks: int, task: int) -> dict[int, int]:
        if self._fan_in is None or self._fan_in >= len(held):
            return {holding: share(size, tasks, task) for holding, size in held.items()}
        total, slices = sum(held.values()), tasks * self._fan_in
        parts: dict[int, int] = {}
        spread = task * _stride(tasks) % tasks
        for number in range(self._fan_in):
            one = number * tasks + spread
            begin, end = total * one // slices, total * (one + 1) // slices
            at = 0
            for holding, size in held.items():
                overlap = min(end, at + size) - max(begin, at)
                if overlap > 0:
                    parts[holding] = parts.get(holding, 0) + overlap
                at += size
        return parts


def _stride(tasks: int) -> int:
    """A step that visits all of so many places, those far apart first."""
    step = max(round(tasks * _GOLDEN), 1)
    while math.gcd(step, tasks) != 1:
        step += 1
    return step
