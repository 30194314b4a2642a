"""What runs inside the sandbox of an emulated cluster: a network, a controller service, sessions.

The network is built once. Each session has agents of its own on its hosts, which end with it; the
master asks the controller service over HTTP, as players do.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster_sim.events import Event, TaskFinished
from cluster_sim.live_run import LiveConfig, LiveRun
from cluster_sim.observation import Assignment, ClusterView
from controllers import registry
from controllers.client import ControllerClient
from testbed.cluster_fabric import CONTROLLER_ADDRESS, TCP_SETTINGS, FabricNetwork
from testbed.cluster_live import run_on_fabric
from testbed.emulated_hosts import handed_over
from testbed.emulated_player import CONTROLLER_PORT
from testbed.emulation_inside import controller_process
from testbed.experiment import parse_experiment, plan_experiment
from testbed.host_tcp import HostTcp
from testbed.links.spec import QueueSpec
from testbed.namespaces import fork_into, unshare_network
from testbed.sandbox import Send
from testbed.scheduling_outcome import MS_PER_S, Outcome, network_record, tracer_of
from testbed.scheduling_plans import SchedulingPlan, SchedulingSession
from testbed.scheduling_records import NetworkRecord, SimulatedTwin
from testbed.scheduling_simulation import check_assignment, simulate_with_network
from testbed.scheduling_tracing import Tracer

PROGRESS_STEPS = 100
BITS_PER_BYTE = 8
_DIGITS = 3


class ConductorDied(RuntimeError):
    """The process that drives the cluster ended before its sessions did."""


def run_sessions(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox: runs all sessions of the job, sends their records as they end.

    Raises:
        UnknownController, InvalidOptions: a controller cannot be made.
        LinkUnsupported, TopologyError, ShapingError: the network does not work as asked.
        ConductorDied: see there.
    """
    plan = _plan(job)
    unshare_network()
    network = fabric_network(plan)
    backend = network.check()
    send({"kind": "backend", "name": backend.name, "why": backend.why})
    with (
        controller_process(plan.experiment) as control,
        network,
        handed_over(control, "cluster", network.controller),
        # The master asks from its own host.
        fork_into(network.master.pid, conduct, plan, job["sessions"], network, send) as conductor,
    ):
        if status := conductor.wait():
            network.check_alive()  # or that is why
            raise ConductorDied(f"the process that drives the cluster died with status {status}")
        network.verify()


def _plan(job: Mapping[str, Any]) -> SchedulingPlan:
    experiment = parse_experiment(job["experiment"], where="sandbox")
    data_dir = None if job["data_dir"] is None else Path(job["data_dir"])
    plan = plan_experiment(experiment, data_dir=data_dir, base=Path(job["base"]))
    assert isinstance(plan, SchedulingPlan)  # or this would not be asked
    return plan


def fabric_network(plan: SchedulingPlan) -> FabricNetwork:
    """The network that a plan asks for; nothing is built yet."""
    settings, fabric = plan.experiment.fabric_settings, plan.fabric
    assert settings is not None  # emulated clusters have one
    assert fabric is not None
    return FabricNetwork(
        fabric.compressed(plan.experiment.time_scale),
        backend=settings.backend,
        queue=QueueSpec(packets=settings.queue_packets),
        tcp=HostTcp(congestion=settings.congestion, settings=TCP_SETTINGS),
    )


def conduct(plan: SchedulingPlan, numbers: list[int], network: FabricNetwork, send: Send) -> None:
    """Body of the process that drives the cluster, in the master's host."""
    wanted = set(numbers)
    for session in plan.sessions:
        if session.number in wanted:
            network.check_alive()
            send(ClusterSession(plan, session, network, send).run())


class ClusterSession:
    """One arm on the jobs of one seed, live."""

    def __init__(
        self, plan: SchedulingPlan, session: SchedulingSession, network: FabricNetwork, send: Send
    ) -> None:
        self._plan, self._session = plan, session
        self._network, self._send = network, send
        self._jobs = plan.workloads[session.seed]
        self._durations = plan.durations(session.seed)
        self._tracer = tracer_of(plan, session, self._durations)
        self._asked = AskedController(plan, session, self._tracer)
        self._links = LinkSamples(plan, session)
        self._tasks = sum(job.graph.total_tasks for job in self._jobs)
        self._finished = 0

    def run(self) -> dict[str, Any]:
        """Runs it; the message with its record. Whatever fails it belongs into that."""
        load, began_s = os.getloadavg()[0], time.monotonic()
        live: LiveRun | None = None
        error: str | None = None
        before = self._network.received_bytes()
        try:
            live = self._run_live()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        outcome = Outcome(error, self._asked.took_ms, self._asked.fallbacks, self._tracer)
        outcome.wall_s = time.monotonic() - began_s
        if live is not None:
            wire_bytes = sum(self._network.received_bytes()) - sum(before)
            outcome.run, outcome.tasks = live.cluster, live.tasks
            outcome.network = self._network_record(live, wire_bytes, load)
        record = outcome.record(self._plan, self._session, driver="emulated")
        return {
            "session": self._session.number,
            "kind": "session",
            "record": dataclasses.asdict(record),
            "link_seconds": self._links.rows,
        }

    def _run_live(self) -> LiveRun:
        plan, settings = self._plan, self._plan.experiment.fabric_settings
        assert settings is not None  # emulated clusters have one
        simulation = plan.simulation
        return run_on_fabric(
            self._jobs,
            LiveConfig(
                cluster=simulation.cluster,
                time_scale=plan.experiment.time_scale,
                moving_delay_ms=simulation.moving_delay_ms,
                decision_ms=simulation.decision_ms,
                fan_in=settings.ranges,
            ),
            self._tracer or self._durations,
            self._asked.ask,
            self._network,
            work=plan.experiment.compute,
            outages=simulation.outages,
            watch=self._watch,
            sample=self._links.take,
        )

    def _watch(self, event: Event, now_ms: float) -> None:
        if self._tracer is not None:
            self._tracer.watch(event, now_ms)
        if isinstance(event, TaskFinished):
            self._finished += 1
            if self._finished % max(self._tasks // PROGRESS_STEPS, 1) == 0:
                share = self._finished / self._tasks
                number = self._session.number
                self._send({"session": number, "kind": "progress", "share": min(share, 1.0)})

    def _network_record(self, live: LiveRun, wire_bytes: int, load: float) -> NetworkRecord:
        return dataclasses.replace(
            network_record(self._network.backend, live.shuffle, lost=live.lost),
            wire_bytes=wire_bytes,
            late_ms=live.late_ms,
            held_s=live.held_s,
            load=load,
            simulated=self._twin() if self._plan.experiment.compare else None,
        )

    def _twin(self) -> SimulatedTwin | None:
        """The same in simulation, asking the same service; None: the arm failed there."""
        asked = AskedController(self._plan, self._session, None)
        with contextlib.suppress(Exception), asyncio.Runner() as runner:
            run = simulate_with_network(
                self._plan,
                self._jobs,
                self._plan.durations(self._session.seed),
                lambda view: runner.run(asked.ask(view)),
            )
            runner.run(asked.close())
            return SimulatedTwin(
                jct_s=run.cluster.mean_jct_s,
                makespan_s=run.cluster.makespan_s,
                fetch_s=run.shuffle.fetch_s,
            )
        return None


class AskedController:
    """Asks the service for the decisions of an arm; checks, times and replaces them."""

    def __init__(
        self, plan: SchedulingPlan, session: SchedulingSession, tracer: Tracer | None
    ) -> None:
        experiment, settings = plan.experiment, plan.experiment.scheduler
        self.took_ms: list[float] = []
        self.fallbacks = 0
        self._tracer, self._decision_ms = tracer, experiment.decision_ms
        self._client = ControllerClient(
            f"http://{CONTROLLER_ADDRESS}:{CONTROLLER_PORT}",
            experiment.task,
            session.arm.label,
            deadline_s=settings.decision_timeout_s,
        )
        self._is_open = False
        name = settings.fallback
        self._fallback = None if name is None else registry.create(experiment.task, name)

    async def ask(self, view: ClusterView) -> Assignment:
        """The arm's decision, or that of the fallback.

        Raises:
            ControllerUnavailable, ControllerRejected: there is none, and no fallback.
            InvalidAssignment: it cannot be carried out, and there is no fallback.
        """
        if not self._is_open:
            await self._client.__aenter__()
            self._is_open = True
        asked_s = time.perf_counter()
        try:
            assignment = check_assignment(view, await self._client.ask(view))
        except Exception:  # whatever comes of a controller
            if self._fallback is None:
                raise
            self.fallbacks += 1
            assignment = check_assignment(view, self._fallback.decide(view))
        finally:
            self.took_ms.append((time.perf_counter() - asked_s) * MS_PER_S)
        if self._tracer is not None:
            charged_ms = self.took_ms[-1] if self._decision_ms is None else self._decision_ms
            self._tracer.decided(charged_ms)
        return assignment

    async def close(self) -> None:
        """Ends the connection."""
        if self._is_open:
            self._is_open = False
            await self._client.__aexit__(None, None, None)


class LinkSamples:
    """What the links carried from one reading of their counters to the next.

    Attributes:
        rows: of ``link.jsonl``; times are those of the cluster, bits really moved.
    """

    def __init__(self, plan: SchedulingPlan, session: SchedulingSession) -> None:
        assert plan.fabric is not None  # emulated clusters have one
        fabric = plan.fabric.compressed(plan.experiment.time_scale)
        self.rows: list[dict[str, Any]] = []
        self._which = {"arm": session.arm.label, "seed": session.seed}
        self._links = fabric.links
        self._last: tuple[float, float, Mapping[str, int]] | None = None

    def take(self, at_ms: float, now_s: float, moved: Mapping[str, int]) -> None:
        """Takes a reading; see :data:`testbed.cluster_live.Sample`."""
        if self._last is not None:
            last_ms, last_s, before = self._last
            for link in self._links:
                self.rows.append(
                    self._which
                    | {
                        "link": link.name,
                        "begin_s": round(last_ms / MS_PER_S, _DIGITS),
                        "end_s": round(at_ms / MS_PER_S, _DIGITS),
                        "asked_bits": round(link.bits_between(last_s, now_s)),
                        "delivered_bits": (moved[link.name] - before[link.name]) * BITS_PER_BYTE,
                    }
                )
        self._last = at_ms, now_s, moved
