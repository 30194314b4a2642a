"""The simulated driver with a network, and the ledger of map outputs that it shares."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_sim.durations import ConstantDurations, DrawnDurations
from cluster_sim.events import StartTask
from cluster_sim.fabric import Fabric, FabricError
from cluster_sim.jobs import Edge, Job, JobGraph, Stage, Wave
from cluster_sim.machine import ClusterConfig, ClusterStateError
from cluster_sim.map_outputs import MapOutputs, share
from cluster_sim.networked import NetworkedRun, run_networked
from cluster_sim.observation import LEAVE_IDLE
from cluster_sim.simulated import Outage, SimulationConfig, run_simulated
from cluster_sim.speculation import SpeculationConfig
from controllers import registry
from player.trace import Trace

Workload = Callable[..., tuple[Job, ...]]
FAIR = registry.create("scheduling", "fair").decide
AMPLE_MBPS = 1e9


def chain(*stages: tuple[int, float], size_bytes: int) -> Job:
    graph = JobGraph(
        "chain",
        tuple(Stage(tasks, ConstantDurations(ms)) for tasks, ms in stages),
        tuple(Edge(one, one + 1, size_bytes) for one in range(len(stages) - 1)),
    )
    return Job(0, 0.0, graph)


def simulate(
    jobs: tuple[Job, ...],
    fabric: Fabric,
    *,
    fan_in: int | None = None,
    outages: tuple[Outage, ...] = (),
    speculation: SpeculationConfig | None = None,
    decision_ms: float = 0.0,
) -> NetworkedRun:
    config = SimulationConfig(
        cluster=ClusterConfig(executors=fabric.hosts, speculation=speculation),
        outages=outages,
        decision_ms=decision_ms,
    )
    return run_networked(jobs, config, fabric, DrawnDurations(jobs, seed=0), FAIR, fan_in=fan_in)


def start(stage: int, task: int, executor: int) -> StartTask:
    return StartTask(executor, 0, stage, task, 0, Wave.REST, 1, True)


@given(
    maps=st.integers(1, 40),
    reduces=st.integers(1, 40),
    executors=st.integers(1, 9),
    size=st.integers(0, 10**6),
    fan_in=st.none() | st.integers(1, 5),
)
def test_all_that_is_written_is_read_once(
    maps: int, reduces: int, executors: int, size: int, fan_in: int | None
) -> None:
    job = chain((maps, 1.0), (reduces, 1.0), size_bytes=size)
    outputs = MapOutputs((job,), executors, fan_in)
    written: Counter[int] = Counter()
    for task in range(maps):
        begun = start(0, task, task * 7 % executors)
        assert outputs.reads(begun) == ()
        outputs.finish(begun)
        written[begun.executor] += sum(one.size_bytes for one in outputs.writes(begun))
    read: Counter[int] = Counter()
    for task in range(reduces):
        reads = outputs.reads(start(1, task, 0))
        assert all(one.size_bytes > 0 and one.source == one.holding for one in reads)
        assert abs(sum(one.size_bytes for one in reads) - size / reduces) <= executors + 5
        read.update({one.source: one.size_bytes for one in reads})
    assert +read == +written
    assert sum(read.values()) == size


def test_few_sources_are_read_and_those_of_tasks_that_begin_together_differ() -> None:
    job = chain((16, 1.0), (200, 1.0), size_bytes=10**6)
    outputs = MapOutputs((job,), 16, 2)
    for task in range(16):
        outputs.finish(start(0, task, task))
    sources = [{one.source for one in outputs.reads(start(1, task, 0))} for task in range(200)]
    assert max(map(len, sources)) <= 4
    assert len(set.union(*sources[:8])) >= 12
    with pytest.raises(ValueError, match="fan_in"):
        MapOutputs((job,), 16, 0)


def test_what_a_lost_executor_wrote_is_served_by_another() -> None:
    job = chain((4, 1.0), (2, 1.0), size_bytes=401)
    outputs = MapOutputs((job,), 2)
    for task in range(3):
        outputs.finish(start(0, task, task % 2))
    handed = outputs.lose(0, 1)
    assert [(one.parent, one.child, one.holding) for one in handed] == [(0, 1, 0)]
    assert sum(one.size_bytes for one in handed) == share(401, 4, 0) + share(401, 4, 2)
    outputs.join(0)
    outputs.finish(start(0, 3, 0))
    reads = [one for task in range(2) for one in outputs.reads(start(1, task, 0))]
    assert sum(one.size_bytes for one in reads) == 401
    assert {one.holding: one.source for one in reads} == {0: 1, 1: 1, 2: 0}
    outputs.forget(0)
    assert outputs.reads(start(1, 0, 0)) == ()


@pytest.mark.parametrize("fan_in", [None, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_with_ample_links_the_run_is_that_without_a_network(
    generated: Workload, seed: int, fan_in: int | None
) -> None:
    jobs = generated(seed, 2)
    without = tuple(
        Job(one.job, one.arrived_ms, _bare(one.graph)) for one in jobs
    )  # the same graphs, nothing to read
    config = SimulationConfig(cluster=ClusterConfig(executors=7), core="python")
    plain = run_simulated(without, config, DrawnDurations(without, seed=0), FAIR)
    assert simulate(without, Fabric.star(7, 1.0), fan_in=fan_in).cluster == plain
    ample = simulate(jobs, Fabric.star(7, AMPLE_MBPS), fan_in=fan_in)
    assert ample.cluster.mean_jct_s == pytest.approx(plain.mean_jct_s, rel=0.02)
    total = sum(edge.shuffle_bytes for job in jobs for edge in job.graph.edges)
    assert ample.shuffle.planned_bytes == total
    assert ample.shuffle.local_bytes + ample.shuffle.remote_bytes == total


def _bare(graph: JobGraph) -> JobGraph:
    edges = tuple(Edge(one.parent, one.child) for one in graph.edges)
    return JobGraph(graph.name, graph.stages, edges)


def test_a_chain_takes_its_stages_and_its_transfer() -> None:
    # Two executors; each writes half, and reads a quarter of all from the other: 1 ms at 1000.
    job = chain((2, 100.0), (2, 50.0), size_bytes=4000)
    run = simulate((job,), Fabric.star(2, 8.0))
    plain = simulate((chain((2, 100.0), (2, 50.0), size_bytes=0),), Fabric.star(2, 8.0))
    assert run.cluster.makespan_s - plain.cluster.makespan_s == pytest.approx(0.001)
    assert (run.shuffle.local_bytes, run.shuffle.remote_bytes) == (2000, 2000)
    assert run.shuffle.fetch_s == pytest.approx(0.002)
    readers = [one for one in run.tasks if one.stage == 1]
    assert [one.planned_bytes for one in readers] == [2000, 2000]
    for one in readers:
        assert one.compute_s is not None
        assert one.end_s - one.compute_s == pytest.approx(0.05)


def test_bytes_move_while_a_decision_is_made() -> None:
    jobs = (chain((2, 100.0), (2, 50.0), size_bytes=40_000),)
    quick = simulate(jobs, Fabric.star(2, 8.0))
    slow = simulate(jobs, Fabric.star(2, 8.0), decision_ms=4.0)
    assert slow.cluster.makespan_s >= quick.cluster.makespan_s
    assert slow.shuffle.planned_bytes == quick.shuffle.planned_bytes == 40_000


@pytest.mark.parametrize("until_ms", [None, 9_000.0])
def test_lost_tasks_are_run_again_and_read_all(generated: Workload, until_ms: float | None) -> None:
    jobs = generated(3, 2)
    outages = (Outage(1, 5_000.0, until_ms), Outage(4, 7_000.0, until_ms))
    run = simulate(jobs, Fabric.star(6, 100_000.0), outages=outages, fan_in=3)
    assert run.shuffle.reruns == sum(one.ended == "lost" for one in run.tasks) >= 1
    finished = [one for one in run.tasks if one.ended == "finished"]
    assert len(finished) == sum(job.graph.total_tasks for job in jobs)
    assert run.shuffle.planned_bytes == sum(
        edge.shuffle_bytes for job in jobs for edge in job.graph.edges
    )
    late = [one for one in finished if one.start_s > 10 and one.executor in (1, 4)]
    assert bool(late) is (until_ms is not None)


def test_second_attempts_end_with_the_first(generated: Workload) -> None:
    jobs = generated(2, 2)
    run = simulate(
        jobs, Fabric.star(8, 50_000.0), speculation=SpeculationConfig(quantile=0.5, multiplier=1.1)
    )
    assert sum(one.ended == "killed" for one in run.tasks) > 0
    assert run == simulate(
        jobs, Fabric.star(8, 50_000.0), speculation=SpeculationConfig(quantile=0.5, multiplier=1.1)
    )


def test_wrong_input_is_refused() -> None:
    jobs = (chain((1, 1.0), size_bytes=0),)
    config = SimulationConfig(cluster=ClusterConfig(executors=2))
    durations = DrawnDurations(jobs, seed=0)
    with pytest.raises(FabricError, match="3 hosts for 2 executors"):
        run_networked(jobs, config, Fabric.star(3, 1.0), durations, FAIR)
    with pytest.raises(ClusterStateError, match="wait for executors"):
        run_networked(jobs, config, Fabric.star(2, 1.0), durations, lambda view: LEAVE_IDLE)


def test_a_delay_costs_each_read_a_round_trip_of_its_way() -> None:
    job = chain((2, 1000.0), (2, 1000.0), size_bytes=100)
    near = Fabric.star(2, AMPLE_MBPS)
    far = Fabric(hosts=2, host_mbps=AMPLE_MBPS, leaves=2, spines=1, spine_mbps=AMPLE_MBPS)
    plain = simulate((job,), near).cluster.makespan_s
    for fabric, links in ((near, 2), (far, 4)):
        delayed = dataclasses.replace(fabric, delay_ms=5.0)
        assert delayed.round_trip_ms(0, 1) == 2 * 5.0 * links
        assert delayed.compressed(0.1).round_trip_ms(0, 1) == pytest.approx(links)
        took_s = simulate((job,), delayed).cluster.makespan_s
        assert took_s - plain == pytest.approx(links / 100)
    with pytest.raises(FabricError, match="delay_ms = -1"):
        dataclasses.replace(near, delay_ms=-1.0)


def test_tasks_wait_for_the_end_of_an_outage_of_their_links() -> None:
    # Each reads 1000 bytes from the other; all links stand still from 1 to 3 s, over and over.
    trace = Trace("on and off", np.array([0.0, 1.0, 3.0]), np.array([0.0, 8.0, 0.0]))
    fabric = dataclasses.replace(Fabric.star(2, 8.0), traces=(trace,))
    job = chain((2, 2500.0), (2, 50.0), size_bytes=4000)
    run = simulate((job,), fabric)
    assert [one.compute_s for one in run.tasks if one.stage == 1] == pytest.approx([6.001] * 2)
    assert run == simulate((job,), fabric)
