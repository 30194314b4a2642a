"""Decima as a controller, with the checkpoint that is shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cluster_sim.arrivals import BurstyArrivals, PoissonArrivals
from cluster_sim.durations import DrawnDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, check_cluster_view
from cluster_sim.simulated import Decide, SimulationConfig, run_simulated
from cluster_sim.tpch import TpchLibrary
from cluster_sim.workload import make_workload
from controllers import registry

SEEDS = (101, 102)
JOBS = 60


def make_decide() -> Decide:
    decide: Decide = registry.create("scheduling", "decima").decide
    return decide


@pytest.fixture(scope="module")
def asked() -> list[tuple[ClusterView, Assignment]]:
    """Every decision of two small runs, and what was seen."""
    decisions: list[tuple[ClusterView, Assignment]] = []
    decide = make_decide()

    def watched(view: ClusterView) -> Assignment:
        check_cluster_view(view)
        decisions.append((view, decide(view)))
        return decisions[-1][1]

    for executors in (4, 30):
        rng = np.random.default_rng(executors)
        jobs = make_workload(GeneratedLibrary(), BurstyArrivals(), num_jobs=10, rng=rng)
        config = SimulationConfig(cluster=ClusterConfig(executors=executors))
        run_simulated(jobs, config, DrawnDurations(jobs, seed=1), watched)
    return decisions


def test_every_decision_is_valid(asked: list[tuple[ClusterView, Assignment]]) -> None:
    for view, decision in asked:
        if decision == LEAVE_IDLE:
            continue
        job = next(job for job in view.jobs if job.job == decision.job)
        stage = next(one for one in job.stages if one.stage == decision.stage)
        assert stage.is_schedulable
        assert type(decision.executors) is int
        assert 1 <= decision.executors <= view.committable
    assert len({decision.job for _, decision in asked}) > 1


def test_decisions_repeat_and_runs_interleave(asked: list[tuple[ClusterView, Assignment]]) -> None:
    wanted = [decision for _, decision in asked]
    backwards = make_decide()
    assert [backwards(view) for view, _ in reversed(asked)] == wanted[::-1]
    # Two runs with jobs of the same numbers, in turn.
    one, half = make_decide(), len(asked) // 2
    for first, second in zip(asked[:half], asked[half:], strict=False):
        assert one(first[0]) == first[1]
        assert one(second[0]) == second[1]


def test_the_order_of_jobs_is_of_no_meaning(asked: list[tuple[ClusterView, Assignment]]) -> None:
    decide, rng = make_decide(), np.random.default_rng(0)
    for view, decision in asked:
        order = rng.permutation(len(view.jobs))
        jobs = tuple(view.jobs[index] for index in order)
        assert decide(dataclasses.replace(view, jobs=jobs)) == decision


def test_it_is_better_than_fair_on_tpch(data_dir: Path) -> None:
    library = TpchLibrary(data_dir / "tpch")
    ratios = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        jobs = make_workload(library, PoissonArrivals(), num_jobs=JOBS, rng=rng)
        config = SimulationConfig(cluster=ClusterConfig(executors=50))
        decima_s, fair_s = (
            run_simulated(jobs, config, DrawnDurations(jobs, seed=seed), decide).mean_jct_s
            for decide in (make_decide(), registry.create("scheduling", "fair").decide)
        )
        ratios.append(decima_s / fair_s)
    assert max(ratios) < 1
    assert np.mean(ratios) < 0.9


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": "builtin:abr-pensieve"}, "shipped: builtin:scheduling-decima"),
        ({"checkpoint": "/no/such/folder"}, "no such folder"),
        ({"policy": None}, "has no option 'policy'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], says: str) -> None:
    with pytest.raises(registry.InvalidOptions, match=says):
        registry.create("scheduling", "decima", options)
