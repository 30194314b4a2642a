"""The adapted language model as a scheduler, with the checkpoint that is shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cluster_sim.arrivals import BurstyArrivals, PoissonArrivals
from cluster_sim.durations import DrawnDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView
from cluster_sim.simulated import Decide, SimulationConfig, run_simulated
from cluster_sim.tpch import TpchLibrary
from cluster_sim.workload import make_workload
from controllers import registry

TPCH_SEED, TPCH_JOBS = 101, 40


def make_decide() -> Decide:
    decide: Decide = registry.create("scheduling", "netllm", {"device": "cpu"}).decide
    return decide


@pytest.fixture(scope="module")
def asked() -> list[tuple[ClusterView, Assignment]]:
    """Every decision of two small runs, and what was seen."""
    decisions: list[tuple[ClusterView, Assignment]] = []
    decide = make_decide()

    def watched(view: ClusterView) -> Assignment:
        decisions.append((view, decide(view)))
        return decisions[-1][1]

    for executors in (4, 30):
        rng = np.random.default_rng(executors)
        jobs = make_workload(GeneratedLibrary(), BurstyArrivals(), num_jobs=5, rng=rng)
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


def test_decisions_repeat_in_any_order(asked: list[tuple[ClusterView, Assignment]]) -> None:
    backwards, rng = make_decide(), np.random.default_rng(0)
    for view, decision in reversed(asked):
        assert backwards(view) == decision
        jobs = tuple(view.jobs[index] for index in rng.permutation(len(view.jobs)))
        assert backwards(dataclasses.replace(view, jobs=jobs)) == decision


def test_it_is_better_than_fair_on_tpch(data_dir: Path) -> None:
    rng = np.random.default_rng(TPCH_SEED)
    library = TpchLibrary(data_dir / "tpch")
    jobs = make_workload(library, PoissonArrivals(), num_jobs=TPCH_JOBS, rng=rng)
    config = SimulationConfig(cluster=ClusterConfig(executors=50))
    ours_s, fair_s = (
        run_simulated(jobs, config, DrawnDurations(jobs, seed=TPCH_SEED), decide).mean_jct_s
        for decide in (make_decide(), registry.create("scheduling", "fair").decide)
    )
    assert ours_s < 0.95 * fair_s


def test_it_says_what_it_thinks(asked: list[tuple[ClusterView, Assignment]]) -> None:
    controller = registry.create("scheduling", "netllm", {"inference": "full", "device": "cpu"})
    view, _ = asked[len(asked) // 2]
    rated = controller.rate(view)  # type: ignore[attr-defined]
    assert len(rated.stages) == sum(one.is_schedulable for job in view.jobs for one in job.stages)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": "builtin:abr-nothing"}, "shipped: builtin:"),
        ({"checkpoint": "builtin:abr-minilm"}, "for task 'abr', asked for 'scheduling'"),
        ({"checkpoint": "/no/such/folder"}, "no such folder"),
        ({"threads": -1}, "threads must not be negative"),
        ({"policy": None}, "has no option 'policy'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], says: str) -> None:
    with pytest.raises(registry.InvalidOptions, match=says):
        registry.create("scheduling", "netllm", options)
