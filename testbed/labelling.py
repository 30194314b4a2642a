"""Sessions played and labelled for experience pools, over several processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from adapters.hindsight import Hindsight, hindsight_values
from adapters.pools import Decide, Episode, PlayedSession, PoolError, episode_of
from controllers import registry
from player.records import SessionRecord
from player.trace import FloatArray
from testbed.abr_experiment import AbrPlan
from testbed.experiment_base import ConfigError
from testbed.namespaces import set_parent_death_signal
from testbed.session_pool import one_thread_each
from testbed.sessions import Session
from testbed.simulation import AbrSessionPlayer, link_model

#: Sessions that make another process worth its start.
SESSIONS_PER_PROCESS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What is found out about every state that was visited.

    Attributes:
        expert: controller that labels every state with what it would have done.
        hindsight: search that values every level of every state from the known trace; simulated
            sessions only.
    """

    expert: str | None = None
    hindsight: Hindsight | None = None


NO_LABELS = Labels()


@dataclass(frozen=True, slots=True)
class Job:
    """One session to label, and first to play if there is no record of it yet."""

    session: Session
    record: SessionRecord | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A session as played; its episode, or None if it failed or is too short."""

    record: SessionRecord
    episode: Episode | None


def label_sessions(
    plan: AbrPlan, jobs: Sequence[Job], labels: Labels, *, processes: int | None = None
) -> Iterator[Labelled]:
    """Plays the simulated sessions that have no record and labels all; yields them in order.

    Args:
        plan: the experiment; only its sessions in ``jobs`` matter.
        jobs: the sessions.
        labels: what every state is labelled with.
        processes: over which to spread this; changes no result. None chooses.

    Raises:
        ConfigError: hindsight is asked of emulated sessions.
        PoolError: an expert or the video does not fit a session.
        UnknownController, InvalidOptions: before the first session.
    """
    labeller = Labeller(plan, labels)
    labeller.prepare(jobs)
    if processes is None:
        processes = min(os.cpu_count() or 1, math.ceil(len(jobs) / SESSIONS_PER_PROCESS))
    if processes <= 1:
        yield from map(labeller.run, jobs)
        return
    # The executor starts its processes while it takes the jobs: in ``map``.
    with ProcessPoolExecutor(
        min(processes, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(plan, labels, os.getpid()),
    ) as pool:
        with one_thread_each():
            labelled = pool.map(_run_in_worker, jobs)
        yield from labelled


class Labeller:
    """Plays and labels sessions of one plan; makes each controller once."""

    def __init__(self, plan: AbrPlan, labels: Labels) -> None:
        task, expert = plan.experiment.task, labels.expert
        knows_link = plan.experiment.driver == "simulated"
        if labels.hindsight is not None and not knows_link:
            raise ConfigError("hindsight values need the link model of simulated sessions")
        if plan.experiment.has_live_or_abandons and (
            labels.hindsight is not None
            or (expert is not None and registry.needs_future(task, expert))
        ):
            raise ConfigError(
                "player.live, player.abandon: hindsight values and experts that know the future "
                "are for sessions without them"
            )
        if expert is not None and registry.needs_future(task, expert) and not knows_link:
            raise ConfigError(f"expert {expert!r} needs the link model of simulated sessions")
        self._plan, self._labels = plan, labels
        self._player = AbrSessionPlayer(plan)
        self._expert = None if expert is None else registry.create(task, expert)

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Makes the controllers of the sessions that are not played yet."""
        self._player.prepare([job.session for job in jobs if job.record is None])

    def run(self, job: Job) -> Labelled:
        """Plays the session if that is still to be done, and labels it."""
        session = job.session
        record = self._player.play(session) if job.record is None else job.record

        def expert(_: PlayedSession) -> Decide:
            return self._decide(session)

        def values(played: PlayedSession) -> FloatArray:
            return self._values(played, session)

        try:
            episode = episode_of(
                PlayedSession(self._plan.video, record),
                expert=None if self._expert is None else expert,
                values=None if self._labels.hindsight is None else values,
            )
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, PoolError):
                raise
            raise PoolError(
                f"session of {record.arm} on {record.trace} cannot be labelled: {error}"
            ) from error
        return Labelled(record, episode)

    def _decide(self, session: Session) -> Decide:
        experiment, name = self._plan.experiment, self._labels.expert
        assert self._expert is not None  # else nobody asks
        assert name is not None
        if not registry.needs_future(experiment.task, name):
            return self._expert.decide
        decide: Decide = self._expert.for_session(  # type: ignore[attr-defined]
            self._plan.video,
            link_model(experiment, session),
            session.start_s,
            experiment.player_config,
        ).decide
        return decide

    def _values(self, played: PlayedSession, session: Session) -> FloatArray:
        experiment, search = self._plan.experiment, self._labels.hindsight
        assert search is not None  # else nobody asks
        return hindsight_values(
            played.video,
            played.record.chunks,
            link_model(experiment, session),
            start_s=session.start_s,
            player=experiment.player_config,
            search=search,
        )


#: The labeller of a worker process; empty everywhere else.
_worker: list[Labeller] = []


def _start_worker(plan: AbrPlan, labels: Labels, parent_pid: int) -> None:
    set_parent_death_signal(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    _worker.append(Labeller(plan, labels))


def _run_in_worker(job: Job) -> Labelled:
    return _worker[0].run(job)
