"""What the tests of the live cluster run inside a sandbox."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster_sim.arrivals import PoissonArrivals
from cluster_sim.durations import ConstantDurations, DrawnDurations
from cluster_sim.events import Event, TaskFinished
from cluster_sim.fabric import Fabric
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.jobs import Edge, Job, JobGraph, Stage
from cluster_sim.live_run import LiveConfig
from cluster_sim.machine import ClusterConfig
from cluster_sim.networked import run_networked
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.simulated import SimulationConfig
from cluster_sim.tpch import TpchLibrary
from cluster_sim.workload import make_workload
from controllers import registry
from player.trace import Trace
from testbed.cluster_fabric import FabricNetwork
from testbed.cluster_live import run_on_fabric
from testbed.namespaces import unshare_network
from testbed.sandbox import Send


def with_bytes(jobs: tuple[Job, ...], factor: float) -> tuple[Job, ...]:
    """The same jobs with other sizes of their shuffles."""
    return tuple(
        Job(
            job.job,
            job.arrived_ms,
            JobGraph(
                job.graph.name,
                job.graph.stages,
                tuple(
                    Edge(edge.parent, edge.child, round(edge.shuffle_bytes * factor))
                    for edge in job.graph.edges
                ),
            ),
        )
        for job in jobs
    )


def workload(job: dict[str, Any]) -> tuple[Job, ...]:
    if "chain" in job:
        tasks, task_ms, size_bytes = job["chain"]
        stages = (Stage(tasks, ConstantDurations(task_ms)),) * 2
        graph = JobGraph("chain", stages, (Edge(0, 1, size_bytes),))
        return tuple(Job(number, 0.0, graph) for number in range(job["jobs"]))
    rng = np.random.default_rng(job["seed"])
    library = TpchLibrary(Path(job["tpch"])) if "tpch" in job else GeneratedLibrary()
    jobs = make_workload(library, PoissonArrivals(job["arrival_ms"]), num_jobs=job["jobs"], rng=rng)
    return with_bytes(jobs, job["bytes_factor"])


def fabric_of(job: dict[str, Any]) -> Fabric:
    """The network; ``traces`` are pairs of times and rates, in the cluster's time."""
    traces = tuple(
        Trace("trace", np.array(times_s), np.array(rates_mbps))
        for times_s, rates_mbps in job.get("traces", ())
    )
    return dataclasses.replace(_constant_fabric(job), traces=traces)


def _constant_fabric(job: dict[str, Any]) -> Fabric:
    if job.get("leaves"):
        return Fabric.leaf_spine(
            job["hosts"],
            job["host_mbps"],
            leaves=job["leaves"],
            spines=job["spines"],
            oversubscription=job["oversubscription"],
        )
    return Fabric.star(job["hosts"], job["host_mbps"])


def run(job: dict[str, Any], send: Send) -> None:
    """Runs a workload live and in simulation; ``host_mbps`` is that of the cluster's own time."""
    unshare_network()
    jobs, fabric = workload(job), fabric_of(job)
    cluster = ClusterConfig(executors=fabric.hosts)
    decide = registry.create("scheduling", "fair").decide
    scale = job["time_scale"]
    fan_in = job.get("fan_in", 2)
    config = LiveConfig(cluster=cluster, time_scale=scale, decision_ms=0.0, fan_in=fan_in)
    simulated = run_networked(
        jobs,
        SimulationConfig(cluster=cluster),
        fabric.with_headers(),
        DrawnDurations(jobs, seed=0),
        decide,
        fan_in=fan_in,
    )
    to_kill: list[int] = list(job.get("kill", ()))
    finished = 0

    async def ask(view: ClusterView) -> Assignment:
        answer: Assignment = decide(view)
        return answer

    def watch(event: Event, now_ms: float) -> None:
        nonlocal finished
        finished += isinstance(event, TaskFinished)
        if to_kill and finished == to_kill[0]:
            to_kill.pop(0)
            os.kill(agents_of(os.getpid())[len(to_kill)], signal.SIGKILL)

    began_s = time.monotonic()
    samples: list[tuple[float, int]] = []

    def sample(at_ms: float, now_s: float, moved: Mapping[str, int]) -> None:
        samples.append((now_s, sum(moved.values())))

    with FabricNetwork(fabric.compressed(scale), backend=job.get("backend", "auto")) as network:
        up_s = time.monotonic() - began_s
        before = network.received_bytes()
        for _ in range(job.get("sessions", 1)):
            finished = 0
            live = run_on_fabric(
                *(jobs, config, DrawnDurations(jobs, seed=0), ask, network),
                watch=watch,
                sample=sample,
            )
        network.verify()
        received = [
            after - first for after, first in zip(network.received_bytes(), before, strict=True)
        ]
        backend = network.backend
    send(
        {
            "backend": backend,
            "up_s": up_s,
            "samples": samples,
            "received": received,
            "edge_bytes": sum(one.shuffle_bytes for job in jobs for one in job.graph.edges),
            "total_tasks": sum(one.graph.total_tasks for one in jobs),
            "finished_tasks": sum(one.ended == "finished" for one in live.tasks),
            "lost": live.lost,
            "wall_s": live.wall_s,
            "late_ms": live.late_ms,
            "shuffle": dataclasses.asdict(live.shuffle),
            "simulated_shuffle": dataclasses.asdict(simulated.shuffle),
            "jct_s": live.cluster.mean_jct_s,
            "simulated_jct_s": simulated.cluster.mean_jct_s,
            "makespan_s": live.cluster.makespan_s,
            "simulated_makespan_s": simulated.cluster.makespan_s,
        }
    )


def agents_of(parent: int) -> list[int]:
    """Process ids of the agents that a process has."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with open(f"/proc/{name}/stat") as file:
                rest = file.read()
            comm, fields = rest[rest.index("(") + 1 : rest.rindex(")")], rest.rsplit(")", 1)[1]
            if comm == "run_agent" and int(fields.split()[1]) == parent:
                found.append(int(name))
    return sorted(found)
