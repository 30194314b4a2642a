"""Time per scheduling decision by the number of jobs in the system, one thread.

    .venv/bin/python benchmarks/scheduling_netllm.py [--jobs 5 20 50] [--timed 200]
        [--controllers decima netllm] [--checkpoint FOLDER]

Generated jobs arrive at once on 50 executors and are shared out by ``fair``; the controllers are
asked about what it saw while all of them were in the system. The first questions are not counted.
``--checkpoint`` is for netllm.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster_sim.arrivals import PoissonArrivals
from cluster_sim.durations import DrawnDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.simulated import SimulationConfig, run_simulated
from cluster_sim.workload import make_workload
from controllers import registry

EXECUTORS = 50
GAP_MS = 1.0
WARM_UP = 10


def views_of(jobs: int, count: int) -> list[ClusterView]:
    """Observations with so many jobs in the system."""
    seen: list[ClusterView] = []
    decide = registry.create("scheduling", "fair").decide

    def watched(view: ClusterView) -> Assignment:
        if len(view.jobs) == jobs:
            seen.append(view)
        assignment: Assignment = decide(view)
        return assignment

    workload = make_workload(
        GeneratedLibrary(), PoissonArrivals(GAP_MS), num_jobs=jobs, rng=np.random.default_rng(jobs)
    )
    config = SimulationConfig(cluster=ClusterConfig(executors=EXECUTORS))
    run_simulated(workload, config, DrawnDurations(workload, seed=jobs), watched)
    return seen[:count]


def took_ms(controller: registry.Controller, views: list[ClusterView]) -> list[float]:
    """Of each decision behind the warm-up."""
    took = []
    for view in views:
        began = time.perf_counter()
        controller.decide(view)
        took.append((time.perf_counter() - began) * 1000)
    return took[WARM_UP:]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--timed", type=int, default=200)
    parser.add_argument("--controllers", nargs="+", default=["decima", "netllm"])
    parser.add_argument("--checkpoint")
    arguments = parser.parse_args()
    table = Table("controller", "jobs", "stages to choose", "decisions", "median ms", "99 % ms")
    for jobs in arguments.jobs:
        views = views_of(jobs, arguments.timed + WARM_UP)
        if len(views) <= WARM_UP:
            parser.error(f"--jobs {jobs}: they were never in the system together")
        choices = np.mean(
            [sum(one.is_schedulable for job in view.jobs for one in job.stages) for view in views]
        )
        for name in arguments.controllers:
            given = name == "netllm" and arguments.checkpoint is not None
            options = {"checkpoint": arguments.checkpoint} if given else {}
            took = took_ms(registry.create("scheduling", name, options), views)
            p50, p99 = np.percentile(took, (50, 99))
            row = (name, str(jobs), f"{choices:.0f}", str(len(took)), f"{p50:.1f}", f"{p99:.1f}")
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
