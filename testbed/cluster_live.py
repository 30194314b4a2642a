"""A live cluster on a network of its own: agents on its hosts, links that are measured, losses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from cluster_sim.agent import Work, agent_process
from cluster_sim.durations import DurationModel
from cluster_sim.jobs import Job
from cluster_sim.live import AskController, run_live
from cluster_sim.live_clock import LiveClock
from cluster_sim.live_run import LiveConfig, LiveRun
from cluster_sim.simulated import Outage, Watch
from cluster_sim.wire import precise_loop
from testbed.cluster_fabric import FabricNetwork
from testbed.namespaces import Child, fork_into, set_timer_slack_ns, socket_in
from testbed.topology import NetworkHost, TopologyError

LINK_CHECK_S = 0.5
CLOCK_POLL_S = 0.001
SAMPLE_S = 0.2  # from one reading of the links' counters to the next
REAL_TIME_PRIORITY = 1
GO = b"go"

#: Takes the cluster's time, real seconds since the links began to follow their traces, and the
#: bytes that came out of each link so far.
Sample = Callable[[float, float, Mapping[str, int]], None]


def run_on_fabric(
    jobs: Sequence[Job],
    config: LiveConfig,
    durations: DurationModel,
    ask: AskController,
    network: FabricNetwork,
    *,
    work: Work = "sleep",
    outages: Sequence[Outage] = (),
    watch: Watch | None = None,
    sample: Sample | None = None,
) -> LiveRun:
    """Runs jobs live, with an agent on each host of the network and the master in its own.

    Args:
        jobs: the workload.
        config: the cluster; as many executors as the network has hosts.
        durations: how long tasks compute.
        ask: the controller.
        network: up.
        work: whether tasks sleep, or keep a core busy.
        outages: agents that are killed, and those that come in their place.
        watch: told every event and its time, before it is handled.
        sample: told every now and then what the links have carried.

    Raises:
        TopologyError: there is not one host per executor.
        ShapingError: a link died.
        LiveError, JobError, ClusterStateError, InvalidAssignment: see
            :func:`cluster_sim.live.run_live`.
    """
    if config.cluster.executors != len(network.hosts):
        raise TopologyError(
            f"{config.cluster.executors} executors on {len(network.hosts)} hosts; each needs one"
        )
    clock = LiveClock(config.time_scale)
    with (
        socket_in(network.master.pid, network.master.address, 0) as listener,
        contextlib.ExitStack() as stack,
        network.ready_to_replay(),
    ):
        agents = stack.enter_context(agents_on(network, listener.getsockname(), work))
        losses = [
            _Loss(one, agents, stack, network, listener.getsockname(), work)
            for one in sorted(outages, key=lambda outage: outage.from_ms)
        ]

        async def run() -> LiveRun:
            return await _guarded(
                run_live(jobs, config, durations, ask, listener, watch, clock),
                _look_after(network),
                _replay_and_sample(network, clock, sample),
                *(loss.happen(clock) for loss in losses),
            )

        with prompt(), asyncio.Runner(loop_factory=precise_loop) as runner:
            return runner.run(run())


@contextlib.contextmanager
def agents_on(
    network: FabricNetwork, master: tuple[str, int], work: Work = "sleep"
) -> Iterator[dict[int, Child]]:
    """An agent on each host, which comes to the master, by its executor; killed at the end."""
    with contextlib.ExitStack() as agents:
        yield {
            number: agents.enter_context(fork_into(host.pid, run_agent, number, host, master, work))
            for number, host in enumerate(network.hosts)
        }


def run_agent(
    executor: int,
    host: NetworkHost,
    master: tuple[str, int],
    work: Work,
    go: socket.socket | None = None,
) -> None:
    """Body of an agent's process; with ``go``, it waits until something is said there."""
    gc.freeze()
    if go is not None and not go.recv(len(GO)):
        return
    if work == "sleep":  # those that keep cores busy would let nobody else run
        be_prompt()
    agent_process(executor, master, socket.create_server((host.address, 0)), work)


def be_prompt() -> None:
    """Has this process woken in time, whatever else the machine does, as far as that is allowed."""
    set_timer_slack_ns(1)
    with contextlib.suppress(PermissionError):  # only root outside of user namespaces
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """Is prompt inside of the context, and only there."""
    be_prompt()
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class _Loss:
    """An agent that is killed, and one that waits to come in its place, made beforehand."""

    def __init__(
        self,
        outage: Outage,
        agents: dict[int, Child],
        stack: contextlib.ExitStack,
        network: FabricNetwork,
        master: tuple[str, int],
        work: Work,
    ) -> None:
        self._outage, self._agents = outage, agents
        self._next: Child | None = None
        if outage.until_ms is not None:
            self._go, theirs = socket.socketpair()
            stack.enter_context(self._go)
            host = network.hosts[outage.executor]
            with theirs:
                job = (outage.executor, host, master, work, theirs)
                self._next = stack.enter_context(fork_into(host.pid, run_agent, *job))

    async def happen(self, clock: LiveClock) -> None:
        """Waits for its time."""
        await _until(self._outage.from_ms, clock)
        self._agents[self._outage.executor].kill()
        if self._next is not None and self._outage.until_ms is not None:
            await _until(self._outage.until_ms, clock)
            self._agents[self._outage.executor] = self._next
            self._go.send(GO)


async def _until(at_ms: float, clock: LiveClock) -> None:
    """Sleeps until the cluster's clock shows a time; it may be held meanwhile, or not run yet."""
    loop = asyncio.get_running_loop()
    while not clock.is_running or (left_s := clock.real_s(at_ms) - loop.time()) > 0:
        await asyncio.sleep(left_s if clock.is_running else LINK_CHECK_S / 10)


async def _look_after(network: FabricNetwork) -> None:
    while True:
        await asyncio.sleep(LINK_CHECK_S)
        network.check_alive()


async def _replay_and_sample(
    network: FabricNetwork, clock: LiveClock, sample: Sample | None
) -> None:
    """Starts the links with the clock, then reads their counters every now and then.

    These are read in a thread: there may be hundreds, and the master has better to do.
    """
    while not clock.is_running:
        await asyncio.sleep(CLOCK_POLL_S)
    network.start_replay()
    loop = asyncio.get_running_loop()
    while sample is not None:
        moved = await asyncio.to_thread(network.moved_bytes)
        now_s = loop.time()
        sample(clock.at_ms(now_s), now_s - network.began_s, moved)
        await asyncio.sleep(SAMPLE_S)


async def _guarded(
    run: Coroutine[Any, Any, LiveRun], *others: Coroutine[Any, Any, None]
) -> LiveRun:
    """What ``run`` returns; whatever one of the others raises ends it."""
    task = asyncio.ensure_future(run)
    beside = [asyncio.ensure_future(one) for one in others]
    try:
        pending: set[asyncio.Future[Any]] = {task, *beside}
        while not task.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        return task.result()
    finally:
        for one in (task, *beside):
            one.cancel()
        await asyncio.gather(task, *beside, return_exceptions=True)
