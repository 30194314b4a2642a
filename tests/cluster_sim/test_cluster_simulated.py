"""The simulated driver: Python and C alike, closed forms, faults, and the published figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster_sim.arrivals import BurstyArrivals, PoissonArrivals
from cluster_sim.compiled import is_built
from cluster_sim.durations import Disturbances, DrawnDurations
from cluster_sim.events import Event, ExecutorLost, StartTask, TaskFinished
from cluster_sim.jobs import Job
from cluster_sim.machine import ClusterConfig, ClusterStateError, InvalidAssignment
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, check_cluster_view
from cluster_sim.simulated import (
    ClusterRun,
    Decide,
    JobRecord,
    Outage,
    SimulationConfig,
    run_simulated,
)
from cluster_sim.speculation import SpeculationConfig
from cluster_sim.tpch import TpchLibrary
from cluster_sim.workload import make_workload
from controllers import registry

Workload = Callable[..., tuple[Job, ...]]
MakeJob = Callable[..., Job]
#: Mean completion time, s, of 200 TPC-H jobs on 50 executors in the reference, seeds 1 to 5.
PUBLISHED_S = {
    "fifo_capped": (53.0, 77.9, 97.9, 103.7, 76.4),
    "fair": (42.8, 57.7, 65.0, 75.5, 52.7),
}


def simulate(
    jobs: tuple[Job, ...],
    decide: Decide,
    *,
    executors: int = 10,
    core: str = "auto",
    decision_ms: float | None = 0.0,
    seed: int = 0,
) -> ClusterRun:
    config = SimulationConfig(
        cluster=ClusterConfig(executors=executors),
        core="python" if core == "python" else "auto",
        decision_ms=decision_ms,
    )
    return run_simulated(jobs, config, DrawnDurations(jobs, seed=seed), decide)


@pytest.mark.skipif(not is_built(), reason="the compiled cluster is not built")
@pytest.mark.parametrize("name", registry.names("scheduling"))
@pytest.mark.parametrize(
    ("seed", "executors", "decision_ms"), [(1, 7, 0.0), (2, 30, 0.0), (3, 30, 40.0), (4, 1, 0.0)]
)
def test_c_shows_and_does_what_python_does(
    generated: Workload, name: str, seed: int, executors: int, decision_ms: float
) -> None:
    jobs = generated(seed, 8, BurstyArrivals() if seed % 2 else None)
    controller = registry.create("scheduling", name)
    shown: dict[str, list[ClusterView]] = {"python": [], "auto": []}
    runs = {}
    for core, views in shown.items():

        def decide(view: ClusterView, views: list[ClusterView] = views) -> Assignment:
            views.append(view)
            check_cluster_view(view)
            assignment: Assignment = controller.decide(view)
            return assignment

        runs[core] = simulate(
            jobs, decide, executors=executors, core=core, decision_ms=decision_ms, seed=seed
        )
    assert shown["python"] == shown["auto"]
    assert runs["python"] == runs["auto"]


@pytest.mark.parametrize("core", ["auto", "python"])
def test_waves_of_a_constant_job(constant_job: MakeJob, core: str) -> None:
    job = constant_job((9, 1000.0), (1, 500.0), edges=((0, 1),), warmup_ms=250.0)
    run = simulate((job,), registry.create("scheduling", "fifo").decide, executors=4, core=core)
    # Move, three waves of 4, 4 and 1, warm-up; the last stage's executor has waited.
    assert run.jobs == (JobRecord(0, 0.0, 5.75, 5.75),) or run.mean_jct_s == pytest.approx(5.75)
    assert run.events == 1 + 4 + 10


@pytest.mark.parametrize("core", ["auto", "python"])
def test_the_time_of_decisions_is_charged(constant_job: MakeJob, core: str) -> None:
    job = constant_job((1, 1000.0))
    decide = registry.create("scheduling", "fifo").decide
    quick = simulate((job,), decide, executors=1, core=core)
    slow = simulate((job,), decide, executors=1, core=core, decision_ms=125.0)
    measured = simulate((job,), decide, executors=1, core=core, decision_ms=None)
    assert slow.makespan_s - quick.makespan_s == pytest.approx(0.125 * slow.decisions)
    assert quick.makespan_s < measured.makespan_s < quick.makespan_s + 10.0


@pytest.mark.parametrize("core", ["auto", "python"])
def test_a_controller_that_leaves_all_idle_is_told_so(constant_job: MakeJob, core: str) -> None:
    with pytest.raises(ClusterStateError, match="wait for executors"):
        simulate((constant_job((1, 1.0)),), lambda view: LEAVE_IDLE, core=core)


@pytest.mark.parametrize("core", ["auto", "python"])
@pytest.mark.parametrize(
    "wrong",
    [
        *(Assignment(*one) for one in ((0, 1, 1), (0, -1, 1), (1, 0, 1), (0, 9, 1), (0, 0, 0))),
        *(Assignment(0, None, 1), Assignment(True, 0, 1), Assignment(0, 0, 0.5)),  # type: ignore[arg-type]
    ],
)
def test_wrong_decisions_are_refused(constant_job: MakeJob, core: str, wrong: Assignment) -> None:
    jobs = (constant_job((3, 1.0), (1, 1.0), edges=((0, 1),)),)
    with pytest.raises(InvalidAssignment):
        simulate(jobs, lambda view: wrong, core=core)


@pytest.mark.parametrize("seed", range(6))
def test_losses_stragglers_and_second_attempts_lose_and_repeat_nothing(
    generated: Workload, seed: int
) -> None:
    jobs = generated(seed, 5)
    rng = np.random.default_rng(seed)
    executors = int(rng.integers(3, 20))
    outages = tuple(
        Outage(executor, begin_ms, begin_ms + float(rng.exponential(20_000)))
        for executor in range(1, executors)
        for begin_ms in [float(rng.uniform(0, 100_000))]
    )
    running: dict[int, tuple[int, int, int]] = {}
    finished: set[tuple[int, int, int]] = set()
    attempts: list[int] = []

    class Watched(DrawnDurations):
        def draw_ms(self, start: StartTask) -> float:
            assert start.executor not in running
            for parent in jobs[start.job].graph.parents[start.stage]:
                tasks = jobs[start.job].graph.stages[parent].tasks
                assert all((start.job, parent, task) in finished for task in range(tasks))
            running[start.executor] = start.job, start.stage, start.task
            assert running[start.executor] not in finished
            attempts.append(start.attempt)
            return super().draw_ms(start)

    def watch(event: Event, now_ms: float) -> None:
        if isinstance(event, TaskFinished):
            done = running.pop(event.executor)
            assert done not in finished
            finished.add(done)
            for other in [one for one, task in running.items() if task == done]:
                del running[other]  # the slower attempt is stopped
        elif isinstance(event, ExecutorLost):
            running.pop(event.executor, None)

    def decide(view: ClusterView) -> Assignment:
        check_cluster_view(view)
        assignment: Assignment = controller.decide(view)
        return assignment

    controller = registry.create("scheduling", registry.names("scheduling")[seed])
    config = SimulationConfig(
        cluster=ClusterConfig(
            executors=executors, speculation=SpeculationConfig() if seed % 3 else None
        ),
        outages=outages,
    )
    disturbances = Disturbances(straggler_share=0.05, straggler_slowdown=6.0)
    run_simulated(jobs, config, Watched(jobs, seed=seed, disturbances=disturbances), decide, watch)
    assert len(finished) == sum(job.graph.total_tasks for job in jobs)
    assert max(attempts) >= 1


def test_second_attempts_shorten_jobs_with_stragglers(constant_job: MakeJob) -> None:
    jobs = (constant_job((40, 1000.0)),)
    jct_s = {}
    for speculation in (None, SpeculationConfig()):
        run = run_simulated(
            jobs,
            SimulationConfig(cluster=ClusterConfig(executors=10, speculation=speculation)),
            DrawnDurations(
                jobs, seed=4, disturbances=Disturbances(straggler_share=0.1, straggler_slowdown=20)
            ),
            registry.create("scheduling", "fifo").decide,
        )
        jct_s[speculation is not None] = run.mean_jct_s
    assert jct_s[True] < jct_s[False] / 2


@pytest.mark.parametrize("name", sorted(PUBLISHED_S))
def test_the_published_completion_times_come_out(data_dir: Path, name: str) -> None:
    library = TpchLibrary(data_dir / "tpch")
    decide = registry.create("scheduling", name).decide
    means_s = []
    for seed in range(1, 6):
        rng = np.random.default_rng(seed)
        jobs = make_workload(library, PoissonArrivals(), num_jobs=200, rng=rng)
        means_s.append(simulate(jobs, decide, executors=50, seed=seed).mean_jct_s)
    # The jobs are those of the reference, the durations drawn anew.
    assert means_s == pytest.approx(PUBLISHED_S[name], rel=0.06)
    assert np.mean(means_s) == pytest.approx(np.mean(PUBLISHED_S[name]), rel=0.03)
