"""Speed of the simulated cluster on one core: events and decisions per second, observations built.

    .venv/bin/python benchmarks/cluster.py [--rounds 7] [--jobs 200] [--executors 50] [--data DIR]

Jobs are TPC-H's where DIR (or TESTBED_DATA) holds them, else from the generative model. ``python``
is the machine in Python, ``compiled`` the one in C; both must come to the same result. Seconds of
this process on the processor are counted, laying out the workload for C included. Beside them the
size of an observation as JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pydantic

from cluster_sim.arrivals import PoissonArrivals
from cluster_sim.compiled import is_built
from cluster_sim.durations import DrawnDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.jobs import Job
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.simulated import ClusterRun, SimulationConfig, run_simulated
from cluster_sim.tpch import TpchLibrary
from cluster_sim.workload import JobLibrary, make_workload
from controllers import registry

NAMES = ("fifo", "fifo_capped", "fair")
SEED = 1


def simulate(
    jobs: tuple[Job, ...], executors: int, name: str, core: str
) -> tuple[ClusterRun, float]:
    """One run, and the processor time that it took, s."""
    decide = registry.create("scheduling", name).decide
    config = SimulationConfig(
        cluster=ClusterConfig(executors=executors),
        core="python" if core == "python" else "auto",
    )
    began_s = time.process_time()
    run = run_simulated(jobs, config, DrawnDurations(jobs, seed=SEED), decide)
    return run, time.process_time() - began_s


def json_sizes(jobs: tuple[Job, ...], executors: int, name: str) -> list[int]:
    """Bytes of every observation of a run."""
    decide = registry.create("scheduling", name).decide
    wire = pydantic.TypeAdapter(ClusterView)
    sizes: list[int] = []

    def measured(view: ClusterView) -> Assignment:
        sizes.append(len(wire.dump_json(view)))
        assignment: Assignment = decide(view)
        return assignment

    config = SimulationConfig(cluster=ClusterConfig(executors=executors))
    run_simulated(jobs, config, DrawnDurations(jobs, seed=SEED), measured)
    return sizes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--executors", type=int, default=50)
    parser.add_argument("--data", type=Path, default=os.environ.get("TESTBED_DATA"))
    arguments = parser.parse_args()
    folder = arguments.data and Path(arguments.data) / "tpch"
    library: JobLibrary = TpchLibrary(folder) if folder else GeneratedLibrary()
    jobs = make_workload(
        library, PoissonArrivals(), num_jobs=arguments.jobs, rng=np.random.default_rng(SEED)
    )
    load = os.getloadavg()[0]
    print(
        f"{len(jobs)} jobs of {folder or 'the generative model'}, {arguments.executors} executors, "
        f"seed {SEED}; {arguments.rounds} rounds; {os.cpu_count()} cores, load {load:.1f}"
    )
    cores = ("compiled", "python") if is_built() else ("python",)
    for name in NAMES:
        found: dict[str, ClusterRun] = {}
        for core in cores:
            took_s = []
            for _ in range(arguments.rounds):
                found[core], seconds = simulate(jobs, arguments.executors, name, core)
                took_s.append(seconds)
            run, middle_s = found[core], statistics.median(took_s)
            print(
                f"{name:12} {core:9} {run.events / middle_s:12,.0f} events/s "
                f"{run.decisions / middle_s:9,.0f} decisions/s "
                f"({run.events} events, {run.decisions} decisions, "
                f"{min(took_s):.3f} to {max(took_s):.3f} s)"
            )
        if len(set(found.values())) != 1:
            raise SystemExit(f"{name}: Python and C disagree")
        sizes = json_sizes(jobs, arguments.executors, name)
        print(
            f"{'':12} observation as JSON: {statistics.mean(sizes):,.0f} bytes on average, "
            f"{max(sizes):,} at most"
        )


if __name__ == "__main__":
    main()
