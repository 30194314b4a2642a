"""Jobs: what makes one, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from cluster_sim.durations import ConstantDurations, DurationError
from cluster_sim.jobs import Edge, Job, JobError, JobGraph, Stage, check_workload, loop_members

STAGE = Stage(3, ConstantDurations(100.0))


def graph(*edges: tuple[int, int], stages: int = 3) -> JobGraph:
    return JobGraph("tpch-2g-query01", (STAGE,) * stages, tuple(Edge(*edge) for edge in edges))


def test_parents_and_children_are_both_known() -> None:
    diamond = graph((0, 2), (0, 1), (2, 3), (1, 3), stages=4)
    assert diamond.parents == ((), (0,), (0,), (1, 2))
    assert diamond.children == ((1, 2), (3,), (3,), ())
    assert diamond.total_tasks == 12
    assert diamond.work_ms == 1200.0


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 1), (1, 2), (2, 1)], "'tpch-2g-query01': stages 1, 2 wait for each other"),
        ([(1, 1)], "stages 1 wait"),
        ([(7, 1)], "unknown parent 7 of edge 7 → 1; stages are 0 to 2"),
        ([(-1, 1)], "unknown parent -1"),
        ([(0, 3)], "unknown child 3"),
        ([(0, 1), (0, 1)], "stage 1 names stage 0 as its parent twice"),
    ],
)
def test_impossible_edges_are_named(edges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(JobError, match=message):
        graph(*edges)


@pytest.mark.parametrize("tasks", [0, -1, 10**9])
def test_impossible_numbers_of_tasks_are_named(tasks: int) -> None:
    with pytest.raises(JobError, match=r"'j', stage 1: .* tasks"):
        JobGraph("j", (STAGE, Stage(tasks, ConstantDurations(1.0))), ())


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_durations_are_refused(value: float) -> None:
    with pytest.raises(DurationError, match="must be 0 or more"):
        ConstantDurations(value)


def test_a_job_needs_stages_and_bytes_cannot_be_negative() -> None:
    with pytest.raises(JobError, match="no stages"):
        JobGraph("j", (), ())
    with pytest.raises(JobError, match="carries -5 bytes"):
        JobGraph("j", (STAGE, STAGE), (Edge(0, 1, -5),))
    with pytest.raises(JobError, match="2 homes for 3 tasks"):
        JobGraph("j", (Stage(3, ConstantDurations(1.0), (0, 1)),), ())


def test_workloads_are_numbered_in_order_of_arrival() -> None:
    one, two = Job(0, 5.0, graph()), Job(1, 4.0, graph())
    with pytest.raises(JobError, match=r"job 1 arrives at 4\.0 ms, before job 0"):
        check_workload([one, two])
    with pytest.raises(JobError, match="job 1 stands at place 0"):
        check_workload([two])
    with pytest.raises(JobError, match="arrives at nan"):
        Job(0, math.nan, graph())


def test_loop_members_of_a_chain_are_none() -> None:
    assert loop_members([[], [0], [1]]) == []
    assert loop_members([[2], [0], [1], []]) == [0, 1, 2]
