"""Rule-based schedulers: one contract for all, and known decisions of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pydantic
import pytest

from cluster_sim.arrivals import BurstyArrivals
from cluster_sim.durations import DrawnDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, JobView, StageView
from cluster_sim.simulated import SimulationConfig, run_simulated
from cluster_sim.workload import make_workload
from controllers import registry
from controllers.job_order import critical_path_s, remaining_work_s

RULES = ("fair", "fifo", "fifo_capped", "random", "sjf_cp", "weighted_fair")
WIRE = pydantic.TypeAdapter(Assignment)


def stage(
    index: int, tasks: int, *, can: bool = True, task_s: float = 1.0, parents: tuple[int, ...] = ()
) -> StageView:
    return StageView(index, tasks, 0, task_s, tasks, can, parents)


# Job 0 is old and large, job 1 small; job 2 has its one stage waiting behind another.
OLD = JobView(0, 0.0, 2, (stage(0, 100), stage(1, 5, can=False, parents=(0,))))
SMALL = JobView(1, 1.0, 0, (stage(0, 3), stage(2, 1, task_s=9.0)))
BEHIND = JobView(2, 2.0, 0, (stage(0, 50, can=False), stage(1, 50, parents=(0,))))
VIEW = ClusterView(5.0, 10, 8, None, (OLD, SMALL, BEHIND))


def decide(name: str, view: ClusterView, **options: object) -> Assignment:
    assignment: Assignment = registry.create("scheduling", name, options).decide(view)
    return assignment


@pytest.fixture(scope="module")
def views() -> list[ClusterView]:
    """Observations of runs under a controller that tries everything."""
    seen: list[ClusterView] = []
    controller = registry.create("scheduling", "random")

    def watched(view: ClusterView) -> Assignment:
        seen.append(view)
        assignment: Assignment = controller.decide(view)
        return assignment

    for executors in (3, 20):
        rng = np.random.default_rng(executors)
        jobs = make_workload(GeneratedLibrary(), BurstyArrivals(), num_jobs=6, rng=rng)
        config = SimulationConfig(cluster=ClusterConfig(executors=executors))
        run_simulated(jobs, config, DrawnDurations(jobs, seed=1), watched)
    return seen


def test_all_rules_are_registered() -> None:
    assert set(RULES) <= set(registry.names("scheduling"))


@pytest.mark.parametrize("name", RULES)
def test_decisions_are_valid_repeat_and_keep_no_state(name: str, views: list[ClusterView]) -> None:
    one = registry.create("scheduling", name)
    forward = [one.decide(view) for view in views]
    apart = [registry.create("scheduling", name).decide(view) for view in reversed(views)]
    assert forward == apart[::-1]
    for view, assignment in zip(views, forward, strict=True):
        assert WIRE.validate_json(WIRE.dump_json(assignment), strict=True) == assignment
        if assignment == LEAVE_IDLE:
            continue
        job = next(job for job in view.jobs if job.job == assignment.job)
        chosen = next(one for one in job.stages if one.stage == assignment.stage)
        assert chosen.is_schedulable
        assert 1 <= assignment.executors <= view.committable


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("fifo", Assignment(0, 0, 8)),  # ten executors, it has two
        ("fifo_capped", Assignment(0, 0, 3)),  # half of them
        ("fair", Assignment(0, 0, 2)),  # a third of them, rounded up
        ("sjf_cp", Assignment(1, 2, 8)),  # 3 + 9 s of work; stage 2 takes the longest
    ],
)
def test_known_decisions(name: str, wanted: Assignment) -> None:
    assert decide(name, VIEW) == wanted


@pytest.mark.parametrize("name", ["fifo", "fifo_capped", "fair", "weighted_fair"])
def test_executors_stay_with_their_job_while_it_has_stages(name: str) -> None:
    view = dataclasses.replace(VIEW, source_job=1, committable=4)
    assert decide(name, view) == Assignment(1, 0, 4)


@pytest.mark.parametrize("name", ["fifo_capped", "fair"])
def test_jobs_at_their_cap_are_passed_over(name: str) -> None:
    full = dataclasses.replace(OLD, executors=5)
    assert decide(name, dataclasses.replace(VIEW, jobs=(full, SMALL, BEHIND))).job == 1
    alone = dataclasses.replace(VIEW, jobs=(dataclasses.replace(OLD, executors=10),))
    assert decide(name, alone) == LEAVE_IDLE


def test_stages_that_can_start_come_before_those_that_wait() -> None:
    mixed = JobView(0, 0.0, 0, (stage(1, 5, parents=(3,)), stage(2, 5), stage(3, 1, can=False)))
    assert decide("fifo", dataclasses.replace(VIEW, jobs=(mixed,))).stage == 2


def test_weights_follow_the_exponent() -> None:
    given = {
        exponent: decide("weighted_fair", VIEW, exponent=exponent) for exponent in (0.0, 1.0, -1.0)
    }
    assert given[0.0] == decide("fair", VIEW)
    assert given[1.0] == Assignment(0, 0, 3)  # 105 of 217 s of work
    assert given[-1.0] == Assignment(1, 0, 8)  # old and large: one executor, and it has two


def test_paths_and_work_are_those_of_the_graph() -> None:
    job = JobView(
        0,
        0.0,
        0,
        (
            stage(0, 2, task_s=1.0),
            stage(1, 1, task_s=5.0),
            StageView(2, 1, 3, 2.0, 1, False, (0, 1)),
            stage(3, 1, task_s=1.0, parents=(2,)),
        ),
    )
    assert critical_path_s(job) == {0: 4.0, 1: 8.0, 2: 3.0, 3: 1.0}
    assert remaining_work_s(job) == 2 + 5 + 8 + 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fifo_capped", {"share": 0.0}),
        ("fifo_capped", {"share": 2.0}),
        ("weighted_fair", {"exponent": 99}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(registry.InvalidOptions, match="needs"):
        registry.create("scheduling", name, options)


def test_random_draws_differ_by_seed(views: list[ClusterView]) -> None:
    drawn: Callable[[int], list[Assignment]] = lambda seed: [  # noqa: E731
        decide("random", view, seed=seed) for view in views
    ]
    assert drawn(0) != drawn(1)
