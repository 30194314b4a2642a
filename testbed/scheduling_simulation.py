"""Task ``scheduling``, driver ``simulated``: jobs on a cluster with a clock of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cluster_sim.durations import DurationModel
from cluster_sim.jobs import Job
from cluster_sim.machine import InvalidAssignment
from cluster_sim.networked import NetworkedRun, run_networked
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.simulated import ClusterRun, Decide, Watch, run_simulated
from controllers import registry
from testbed.scheduling_outcome import Outcome, network_record, tracer_of
from testbed.scheduling_plans import SchedulingPlan, SchedulingSession
from testbed.scheduling_records import SchedulingSessionRecord
from testbed.scheduling_tracing import Tracer
from testbed.session_pool import ArmControllers

MS_PER_S = 1000.0


class SchedulingPlayer:
    """Runs sessions of one plan; makes each arm's controller once."""

    def __init__(self, plan: SchedulingPlan) -> None:
        self._plan = plan
        self._controllers = ArmControllers(plan.experiment.task)
        name = plan.experiment.scheduler.fallback
        self._fallback = None if name is None else registry.create(plan.experiment.task, name)

    def prepare(self, sessions: Sequence[SchedulingSession]) -> None:
        """Makes the controllers of these sessions."""
        for session in sessions:
            self._controllers.of(session.arm)

    def play(self, session: SchedulingSession) -> SchedulingSessionRecord:
        """Runs one arm on the jobs of one seed. A controller that fails makes that fail."""
        plan, config, fabric = self._plan, self._plan.simulation, self._plan.fabric
        jobs, durations = plan.workloads[session.seed], plan.durations(session.seed)
        tracer = tracer_of(plan, session, durations)
        decisions = Decisions(
            self._controllers.of(session.arm), self._fallback, tracer, config.decision_ms
        )
        watch = None if tracer is None else tracer.watch
        result: ClusterRun | NetworkedRun | None = None
        error: str | None = None
        began_s = time.perf_counter()
        try:
            if fabric is None:
                result = run_simulated(jobs, config, tracer or durations, decisions.decide, watch)
            else:
                result = simulate_with_network(
                    plan, jobs, tracer or durations, decisions.decide, watch
                )
        except Exception as caught:  # whatever a controller raises belongs into its record
            error = f"{type(caught).__name__}: {caught}"
        outcome = Outcome(error, decisions.took_ms, decisions.fallbacks, tracer)
        outcome.wall_s = time.perf_counter() - began_s
        if isinstance(result, NetworkedRun):
            outcome.run, outcome.tasks = result.cluster, result.tasks
            outcome.network = network_record(
                "model:fluid", result.shuffle, lost=[one.executor for one in config.outages]
            )
        else:
            outcome.run = result
        return outcome.record(plan, session, driver="simulated")


def simulate_with_network(
    plan: SchedulingPlan,
    jobs: Sequence[Job],
    durations: DurationModel,
    decide: Decide,
    watch: Watch | None = None,
) -> NetworkedRun:
    """Runs jobs on the cluster of a plan with the fluid model of its network.

    Raises:
        FabricError, ClusterStateError, InvalidAssignment: see
            :func:`cluster_sim.networked.run_networked`.
    """
    settings, fabric = plan.experiment.fabric_settings, plan.fabric
    assert settings is not None  # or there would be nothing to run on
    assert fabric is not None
    return run_networked(
        jobs,
        plan.simulation,
        fabric.with_headers(),
        durations,
        decide,
        fan_in=settings.ranges,
        watch=watch,
    )


class Decisions:
    """The decisions of one controller in one session: checked, timed, replaced if they must be."""

    def __init__(
        self,
        controller: registry.Controller,
        fallback: registry.Controller | None,
        tracer: Tracer | None,
        decision_ms: float | None,
    ) -> None:
        self.took_ms: list[float] = []
        self.fallbacks = 0
        self._controller, self._fallback = controller, fallback
        self._tracer, self._decision_ms = tracer, decision_ms

    def decide(self, view: ClusterView) -> Assignment:
        """The controller's decision, or that of the fallback.

        Raises:
            InvalidAssignment: it cannot be carried out, and there is no fallback.
        """
        asked_s = time.perf_counter()
        try:
            assignment = check_assignment(view, self._controller.decide(view))
        except Exception:  # whatever a controller raises
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


def check_assignment(view: ClusterView, decision: object) -> Assignment:
    """The decision, if it can be carried out.

    More executors than the stage can use, or than are to be placed now, are cut down by the
    cluster; more than there are at all is a mistake.

    Raises:
        InvalidAssignment: what is wrong, and which stages may be chosen.
    """
    if not isinstance(decision, Assignment):
        raise InvalidAssignment(f"{decision!r} is no assignment")
    job, index, executors = decision.job, decision.stage, decision.executors
    if job is None and index is None:
        return decision
    if not (_is_whole(job) and _is_whole(index) and _is_whole(executors)):
        raise InvalidAssignment(f"{decision} needs whole numbers")
    if not 1 <= executors <= view.executors:
        raise InvalidAssignment(
            f"{decision} names {executors} executors; there are 1 to {view.executors}"
        )
    for one in view.jobs:
        if one.job == job:
            for stage in one.stages:
                if stage.stage == index and stage.is_schedulable:
                    return decision
    raise InvalidAssignment(
        f"stage {index} of job {job} is finished, unknown or may not be chosen now; job/stage "
        "that may: " + ", ".join(_choices(view))
    )


def _choices(view: ClusterView) -> list[str]:
    return [
        f"{job.job}/{stage.stage}"
        for job in view.jobs
        for stage in job.stages
        if stage.is_schedulable
    ]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
