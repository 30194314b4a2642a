"""Schedulers played on the workloads of experiments: to train, to choose, to learn from."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapters.scheduling_pools import (
    EpisodeColumns,
    LabelledDecision,
    PlayedEpisode,
    Rater,
    SchedulingPool,
    pool_of_episodes,
)
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.simulated import ClusterRun, Decide, run_simulated
from controllers import registry
from testbed.experiment_base import ConfigError
from testbed.namespaces import set_parent_death_signal
from testbed.scheduling_plans import SchedulingPlan, SchedulingSession
from testbed.serving import parse_arm
from testbed.session_pool import ArmControllers, one_thread_each
from testbed.sessions import Plan

if TYPE_CHECKING:
    from adapters.decima_training import Trial

TASK = "scheduling"
BASELINE = "fair"


def scheduling_plan(plan: Plan, what: str) -> SchedulingPlan:
    """The plan, if it is one of simulated scheduling whose durations are drawn.

    Args:
        plan: of any task.
        what: is made of it; for the message.

    Raises:
        ConfigError: it is another one.
    """
    if not isinstance(plan, SchedulingPlan):
        raise ConfigError(f"task is {plan.experiment.task!r}; {what} must be of 'scheduling'")
    if plan.experiment.driver != "simulated" or plan.episode is not None:
        raise ConfigError(f"{what} must have driver = 'simulated' and no recorded episode")
    return plan


@dataclass(frozen=True, eq=False)
class Workload:
    """The jobs of a seed on the cluster of a plan."""

    plan: SchedulingPlan
    seed: int

    def run(self, decide: Decide) -> ClusterRun:
        """Plays a scheduler."""
        jobs, durations = self.plan.workloads[self.seed], self.plan.durations(self.seed)
        return run_simulated(jobs, self.plan.simulation, durations, decide)

    @functools.cached_property
    def baseline_s(self) -> float:
        """Mean job completion time of the baseline."""
        return self.run(registry.create(TASK, BASELINE).decide).mean_jct_s

    def ratio(self, decide: Decide) -> float:
        """Mean job completion time by the baseline's."""
        return self.run(decide).mean_jct_s / self.baseline_s


def workloads_of(plans: Sequence[SchedulingPlan]) -> list[Workload]:
    """One per plan and seed, in order."""
    return [Workload(plan, seed) for plan in plans for seed in plan.workloads]


def jct_ratio(plan: SchedulingPlan) -> Callable[[Decide], float]:
    """Mean over the seeds of what :meth:`Workload.ratio` gives for a scheduler."""
    workloads = workloads_of([plan])
    return lambda decide: statistics.fmean(one.ratio(decide) for one in workloads)


class PlannedTrials:
    """Plays trials of ``adapters.decima_training`` on the workloads of plans, by their places.

    A context manager: with more than one process it has a pool of them.
    """

    def __init__(self, plans: Sequence[SchedulingPlan], *, processes: int = 1) -> None:
        """Names what is played.

        Args:
            plans: their workloads, one after the other.
            processes: over which trials are spread; changes no result.
        """
        self.workloads = workloads_of(plans)
        self._plans, self._processes = plans, processes
        self._exits = contextlib.ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> PlannedTrials:
        if self._processes > 1:
            self._exits.enter_context(one_thread_each())
            self._pool = self._exits.enter_context(
                ProcessPoolExecutor(
                    self._processes,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_start_worker,
                    initargs=(tuple(self._plans), os.getpid()),
                )
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()
        self._pool = None

    def __call__(self, trials: Sequence[Trial]) -> list[float]:
        """See ``adapters.decima_training.Play``."""
        if self._pool is None:
            return [self.workloads[one.workload].ratio(one.policy.decide) for one in trials]
        return list(self._pool.map(_ratio_in_worker, trials))


#: The workloads of a pool's worker process; empty everywhere else.
_worker: list[Workload] = []


def _start_worker(plans: tuple[SchedulingPlan, ...], parent_pid: int) -> None:
    set_parent_death_signal(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    _worker.extend(workloads_of(plans))


def _ratio_in_worker(trial: Trial) -> float:
    return _worker[trial.workload].ratio(trial.policy.decide)


def collect_decisions(
    plan: Plan, *, expert: str, keep: float, made_by: Sequence[str]
) -> Iterator[PlayedEpisode | SchedulingPool]:
    """Plays all sessions of a plan; yields each session, and last the pool of their decisions.

    Args:
        plan: simulated, of task ``scheduling``.
        expert: rates the stages of every decision that is kept; ``NAME`` or ``NAME=key=value``.
        keep: share of the decisions that is kept, drawn by each session's seed.
        made_by: lines for the pool's description.

    Raises:
        ConfigError: another plan, or an expert that rates no stages.
        UnknownController, InvalidOptions: an arm or the expert cannot be made.
    """
    plan = scheduling_plan(plan, "an experiment to collect from")
    rater = _rater(expert)
    controllers = ArmControllers(TASK)
    episodes = []
    for session in plan.sessions:
        decide = controllers.of(session.arm).decide
        episodes.append(_collected(plan, session, decide, rater, expert, keep))
        yield episodes[-1][0]
    yield pool_of_episodes(episodes, made_by=made_by)


def _rater(expert: str) -> Rater:
    controller = registry.create(TASK, *parse_arm(expert))
    if not hasattr(controller, "rate"):
        raise ConfigError(f"expert {expert!r} rates no stages; decima and netllm do")
    return controller  # type: ignore[return-value]


def _collected(
    plan: SchedulingPlan,
    session: SchedulingSession,
    decide: Decide,
    rater: Rater,
    expert: str,
    keep: float,
) -> tuple[PlayedEpisode, EpisodeColumns]:
    rng, columns, count = np.random.default_rng(session.seed), EpisodeColumns(), 0

    def watched(view: ClusterView) -> Assignment:
        nonlocal count
        taken = decide(view)
        if rng.random() < keep:
            said = rater.rate(view)
            columns.add(count, LabelledDecision(view, taken, said.scores, said.log_limits))
        count += 1
        return taken

    run = Workload(plan, session.seed).run(watched)
    played = PlayedEpisode(
        arm=session.arm.label,
        controller=session.arm.controller,
        expert=expert,
        seed=session.seed,
        executors=plan.simulation.cluster.executors,
        jobs=len(run.jobs),
        decisions=run.decisions,
        mean_jct_s=run.mean_jct_s,
    )
    return played, columns
