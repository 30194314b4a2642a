"""Experience pools from the sessions of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from adapters.hindsight import Hindsight, hindsight_values
from adapters.pools import Expert, PlayedSession, Pool, Values, pool_from_sessions
from controllers import registry
from player.records import SessionRecord
from player.trace import FloatArray, Trace
from testbed.emulation import EmulatedSession, emulate
from testbed.experiment import ConfigError, Experiment, Plan, Session, list_sessions
from testbed.simulation import link_model, simulate


def draw_starts(plan: Plan, starts_per_trace: int) -> Plan:
    """The plan with every trace played from several points drawn by the experiment's seed.

    The points are the same for all arms, so that arms stay comparable.
    """
    rng = np.random.default_rng(plan.experiment.seed)
    up_traces = {session.trace.name: session.up_trace for session in plan.sessions}
    starts: list[tuple[Trace, int, Trace | None]] = []
    for trace in plan.traces:
        points = len(trace.times_s) - 1
        drawn = rng.choice(np.arange(1, points + 1), min(starts_per_trace, points), replace=False)
        starts += [(trace, int(point), up_traces[trace.name]) for point in sorted(drawn)]
    return replace(plan, sessions=list_sessions(plan.experiment, starts))


def collect_pool(
    plan: Plan,
    *,
    expert: str | None,
    hindsight: Hindsight | None,
    jobs: int,
    made_by: tuple[str, ...],
    on_session: Callable[[SessionRecord], None],
) -> Pool:
    """Plays all sessions of a plan and makes a pool of them.

    Args:
        plan: the experiment.
        expert: controller that labels every state with what it would have done.
        hindsight: search that values every level of every state from the known trace; simulated
            sessions only.
        jobs: sessions at once.
        made_by: lines for the pool's description.
        on_session: is told of every session.

    Raises:
        ConfigError: hindsight is asked of emulated sessions.
        PoolError: no session was finished.
        UnknownController, InvalidOptions: an arm or the expert cannot be made.
    """
    experiment = plan.experiment
    if hindsight is not None and experiment.driver != "simulated":
        raise ConfigError("hindsight values need the link model of simulated sessions")
    label = _expert(experiment, plan.traces, expert)
    value = None if hindsight is None else _values(experiment, plan.traces, hindsight)
    records: list[SessionRecord] = []

    def keep(record: SessionRecord) -> None:
        records.append(record)
        on_session(record)

    if experiment.driver == "simulated":
        for record in simulate(plan, plan.sessions, jobs=jobs):
            keep(record)
    else:

        def keep_emulated(session: EmulatedSession) -> None:
            keep(session.record)

        emulate(plan, plan.sessions, jobs=jobs, on_session=keep_emulated, on_chunk=_ignore)
    return pool_from_sessions(
        (PlayedSession(plan.video, record) for record in records),
        expert=label,
        values=value,
        made_by=made_by,
    )


def _ignore(session: Session, index: int) -> None:
    """Chunks are of no interest here."""


def _session_of(
    experiment: Experiment, traces: Mapping[str, Trace], record: SessionRecord
) -> Session:
    arm = next(arm for arm in experiment.arms if arm.label == record.arm)
    return Session(0, arm, traces[record.trace], record.start_index)


def _expert(experiment: Experiment, traces: tuple[Trace, ...], name: str | None) -> Expert | None:
    if name is None:
        return None
    by_name = {trace.name: trace for trace in traces}
    controller = registry.create(experiment.task, name)
    needs_future = registry.needs_future(experiment.task, name)

    def expert(played: PlayedSession) -> Callable[..., int]:
        if not needs_future:
            return controller.decide
        session = _session_of(experiment, by_name, played.record)
        decide: Callable[..., int] = controller.for_session(  # type: ignore[attr-defined]
            played.video,
            link_model(experiment, session),
            session.start_s,
            experiment.player_config,
        ).decide
        return decide

    return expert


def _values(experiment: Experiment, traces: tuple[Trace, ...], search: Hindsight) -> Values:
    by_name = {trace.name: trace for trace in traces}

    def values(played: PlayedSession) -> FloatArray:
        session = _session_of(experiment, by_name, played.record)
        return hindsight_values(
            played.video,
            played.record.chunks,
            link_model(experiment, session),
            start_s=session.start_s,
            player=experiment.player_config,
            search=search,
        )

    return values
