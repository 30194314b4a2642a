"""The live driver: agents in processes on the loop-back interface, killed and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import pytest

from cluster_sim.agent import agent_process
from cluster_sim.durations import ConstantDurations, DrawnDurations
from cluster_sim.events import Event, ExecutorJoined, ExecutorLost, TaskFinished
from cluster_sim.fabric import Fabric
from cluster_sim.jobs import Edge, Job, JobGraph, Stage
from cluster_sim.live import run_live
from cluster_sim.live_run import LiveConfig, LiveRun
from cluster_sim.machine import ClusterConfig, ClusterStateError
from cluster_sim.networked import run_networked
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView
from cluster_sim.roster import LiveError
from cluster_sim.simulated import Decide, SimulationConfig
from cluster_sim.speculation import SpeculationConfig
from cluster_sim.wire import MAX_LINE_BYTES, WireError, decode, encode
from controllers import registry

ADDRESS = "127.0.0.1"
EXECUTORS = 4
#: 100 seconds of the cluster pass in one.
SCALE = 0.01
FAIR: Decide = registry.create("scheduling", "fair").decide
Disturb = Callable[[int, Event, list[BaseProcess], int], None]


def two_jobs(task_ms: float = 2000.0) -> tuple[Job, ...]:
    """Two diamonds that shuffle odd numbers of bytes."""
    stages = tuple(Stage(tasks, ConstantDurations(task_ms)) for tasks in (7, 5, 3, 4))
    edges = (Edge(0, 1, 100_003), Edge(0, 2, 77_777), Edge(1, 3, 1), Edge(2, 3, 65_537))
    return tuple(Job(one, one * 3000.0, JobGraph(f"job-{one}", stages, edges)) for one in range(2))


def start_agent(executor: int, port: int, work: str = "sleep") -> BaseProcess:
    def body() -> None:
        listener = socket.create_server((ADDRESS, 0))
        agent_process(executor, (ADDRESS, port), listener, work)  # type: ignore[arg-type]

    process = multiprocessing.get_context("fork").Process(target=body, daemon=True)
    process.start()
    return process


@contextlib.contextmanager
def agents(count: int, port: int, work: str) -> Iterator[list[BaseProcess]]:
    processes = [start_agent(executor, port, work) for executor in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def run(
    jobs: tuple[Job, ...],
    *,
    disturb: Disturb | None = None,
    decide: Decide = FAIR,
    count: int = EXECUTORS,
    work: str = "sleep",
    speculation: SpeculationConfig | None = None,
    dead_after_s: float = 20.0,
    joined_within_s: float = 30.0,
    fan_in: int | None = None,
) -> LiveRun:
    """Runs jobs; ``disturb`` sees the number of tasks finished, each event, agents and port."""
    config = LiveConfig(
        cluster=ClusterConfig(executors=EXECUTORS, speculation=speculation),
        time_scale=SCALE,
        decision_ms=0.0,
        fan_in=fan_in,
        dead_after_s=dead_after_s,
        joined_within_s=joined_within_s,
    )
    finished = 0

    async def ask(view: ClusterView) -> Assignment:
        return decide(view)

    listener = socket.create_server((ADDRESS, 0))
    port = listener.getsockname()[1]
    with agents(count, port, work) as processes:

        def watch(event: Event, now_ms: float) -> None:
            nonlocal finished
            finished += isinstance(event, TaskFinished)
            if disturb is not None:
                disturb(finished, event, processes, port)

        durations = DrawnDurations(jobs, seed=0)
        return asyncio.run(run_live(jobs, config, durations, ask, listener, watch))


def check_complete(jobs: tuple[Job, ...], done: LiveRun) -> None:
    """Every task is finished once, and what it read is what it was to read."""
    finished = [one for one in done.tasks if one.ended == "finished"]
    assert len({(one.job, one.stage, one.task) for one in finished}) == len(finished)
    assert len(finished) == sum(job.graph.total_tasks for job in jobs)
    for one in finished:
        assert one.local_bytes + one.remote_bytes == one.planned_bytes
    total = sum(edge.shuffle_bytes for job in jobs for edge in job.graph.edges)
    shuffle = done.shuffle
    assert shuffle.planned_bytes == shuffle.local_bytes + shuffle.remote_bytes == total


@pytest.mark.parametrize(("work", "fan_in"), [("sleep", None), ("burn", 2)])
def test_bytes_received_are_those_planned(work: str, fan_in: int | None) -> None:
    jobs = two_jobs()
    done = run(jobs, work=work, fan_in=fan_in)
    check_complete(jobs, done)
    assert done.lost == ()
    assert done.shuffle.remote_bytes > 0
    assert done.shuffle.wasted_bytes == done.shuffle.reruns == 0
    config = SimulationConfig(cluster=ClusterConfig(executors=EXECUTORS))
    simulated = run_networked(
        jobs, config, Fabric.star(EXECUTORS, 1e6), DrawnDurations(jobs, seed=0), FAIR
    )
    # No bound from above: how much later depends on what else this machine does.
    assert done.cluster.mean_jct_s >= 0.9 * simulated.cluster.mean_jct_s
    assert [one.job for one in done.cluster.jobs] == [0, 1]
    for task in done.tasks:
        assert task.compute_s is not None
        assert task.start_s <= task.compute_s <= task.end_s + 1e-6


def test_killed_agents_are_noticed_and_their_tasks_run_again() -> None:
    jobs = two_jobs()
    killed: list[int] = []

    def disturb(finished: int, event: Event, processes: list[BaseProcess], port: int) -> None:
        if finished in (9, 14) and len(killed) < 1 + (finished == 14):
            killed.append(3 if finished == 9 else 0)
            processes[killed[-1]].kill()

    done = run(jobs, disturb=disturb)
    check_complete(jobs, done)
    assert done.lost == tuple(killed) == (3, 0)
    assert done.shuffle.reruns == sum(one.ended == "lost" for one in done.tasks)
    again = {(one.job, one.stage, one.task) for one in done.tasks if one.ended == "lost"}
    for job, stage, task in again:
        assert any(
            (one.job, one.stage, one.task, one.ended) == (job, stage, task, "finished")
            and one.attempt > 0
            for one in done.tasks
        )


def test_an_agent_that_hangs_is_lost() -> None:
    jobs = two_jobs()

    def disturb(finished: int, event: Event, processes: list[BaseProcess], port: int) -> None:
        if finished == 5 and isinstance(event, TaskFinished):
            pid = processes[1].pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)

    done = run(jobs, disturb=disturb, dead_after_s=3.0)
    check_complete(jobs, done)
    assert 1 in done.lost


def test_an_agent_may_come_back() -> None:
    jobs = two_jobs(task_ms=10_000.0)
    seen: list[type[Event]] = []

    def disturb(finished: int, event: Event, processes: list[BaseProcess], port: int) -> None:
        if isinstance(event, ExecutorLost):
            processes.append(start_agent(2, port))
        if finished == 6 and isinstance(event, TaskFinished):
            processes[2].kill()
        if isinstance(event, ExecutorLost | ExecutorJoined):
            seen.append(type(event))

    done = run(jobs, disturb=disturb)
    check_complete(jobs, done)
    assert seen == [ExecutorLost, ExecutorJoined]


def test_second_attempts_are_stopped() -> None:
    stages = (Stage(8, ConstantDurations(1000.0, warmup_ms=30_000.0)),)
    jobs = (Job(0, 0.0, JobGraph("slow-starts", stages, ())),)
    done = run(jobs, speculation=SpeculationConfig(quantile=0.25, multiplier=1.0))
    check_complete(jobs, done)


def test_all_agents_must_come_and_one_must_stay() -> None:
    with pytest.raises(LiveError, match="no agent of executors 3 within"):
        run(two_jobs(), count=3, joined_within_s=2.0)

    def disturb(finished: int, event: Event, processes: list[BaseProcess], port: int) -> None:
        if finished == 1:
            for process in processes:
                process.kill()

    with pytest.raises(LiveError, match="all agents are gone"):
        run(two_jobs(), disturb=disturb)


def test_a_controller_that_leaves_all_idle_is_told_so() -> None:
    with pytest.raises(ClusterStateError, match="wait for executors"):
        run(two_jobs(), decide=lambda view: LEAVE_IDLE)
    with pytest.raises(ValueError, match="time_scale"):
        LiveConfig(cluster=ClusterConfig(executors=1), time_scale=0.0)


def test_strangers_do_no_harm() -> None:
    jobs = two_jobs()
    sent: list[int] = []

    def disturb(finished: int, event: Event, processes: list[BaseProcess], port: int) -> None:
        if not sent:
            for line in (b"GET / HTTP/1.1\r\n\r\n", b'{"hello":99}\n', b"[" * 2 * MAX_LINE_BYTES):
                with socket.create_connection((ADDRESS, port)) as stranger:
                    sent.append(stranger.send(line))

    check_complete(jobs, run(jobs, disturb=disturb))
    assert len(sent) == 3


def test_messages_are_objects_of_limited_length() -> None:
    assert decode(encode({"beat": True})) == {"beat": True}
    with pytest.raises(WireError, match="no JSON"):
        decode(b"{\n")
    with pytest.raises(WireError, match="no JSON object"):
        decode(b"3\n")
    with pytest.raises(WireError, match="is the most"):
        encode({"text": "x" * MAX_LINE_BYTES})
