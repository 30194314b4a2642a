"""Experience pools from the sessions of an experiment, or from the results of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from adapters.pools import Pool, PoolError, drop_duplicates, pool_of
from player.records import SessionRecord
from player.trace import Trace
from testbed.abr_experiment import AbrPlan, abr_experiment, abr_plan
from testbed.builtin import DataNotFound, resolve_video
from testbed.emulation import EmulatedSession, emulate
from testbed.experiment import read_experiment
from testbed.experiment_base import ConfigError
from testbed.labelling import NO_LABELS, Job, Labeller, Labels, label_sessions
from testbed.result_rows import EXPERIMENT, TRACES
from testbed.results import read_results, task_of
from testbed.runner import default_jobs
from testbed.sessions import Plan, Session, list_sessions

POOLS = "pools"
OnSession = Callable[[SessionRecord], None]


def draw_starts(plan: Plan, starts_per_trace: int) -> AbrPlan:
    """The plan with every trace played from several points drawn by the experiment's seed.

    The points are the same for all arms, so that arms stay comparable.

    Raises:
        ConfigError: the plan is not one of task ``abr``.
    """
    plan = abr_plan(plan, POOLS)
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
    labels: Labels = NO_LABELS,
    jobs: int | None = None,
    made_by: tuple[str, ...],
    on_session: OnSession,
) -> Pool:
    """Plays all sessions of a plan and makes a pool of them, identical sessions once.

    Simulated sessions are played and labelled in ``jobs`` processes, which changes no result.
    Emulated ones are played ``jobs`` at once, and then labelled in a process per core.

    Args:
        plan: the experiment.
        labels: what every state is labelled with.
        jobs: sessions at once; None chooses.
        made_by: lines for the pool's description.
        on_session: is told of every session.

    Raises:
        ConfigError: labels that need the link model are asked of emulated sessions, or the plan
            is not one of task ``abr``.
        PoolError: no session was finished.
        UnknownController, InvalidOptions: an arm or the expert cannot be made.
    """
    plan = abr_plan(plan, POOLS)
    todo = [Job(session) for session in plan.sessions]
    if plan.experiment.driver == "simulated":
        return _label(plan, todo, labels, jobs, made_by, on_session)
    Labeller(plan, labels)  # whatever is wrong with the labels is found before any session
    by_key = {
        (session.arm.label, session.trace.name, session.start_index, session.client): session
        for session in plan.sessions
    }
    records: dict[int, SessionRecord] = {}

    def keep(ended: EmulatedSession) -> None:
        record = ended.record
        assert isinstance(record, SessionRecord)  # those of task abr are
        session = by_key[record.arm, record.trace, record.start_index, record.client]
        records[session.number] = record
        on_session(record)

    emulate(
        plan,
        plan.sessions,
        jobs=jobs or default_jobs(plan, plan.sessions),
        on_session=keep,
        on_chunk=_ignore,
    )
    played = [
        Job(session, records[session.number])
        for session in plan.sessions
        if session.number in records
    ]
    return _label(plan, played, labels, None, made_by, _ignore_record)


def import_pool(
    folder: Path,
    *,
    data_dir: Path | None,
    video: str | None = None,
    labels: Labels = NO_LABELS,
    jobs: int | None = None,
    made_by: tuple[str, ...] = (),
    on_session: OnSession = lambda record: None,
) -> Pool:
    """Makes a pool of the sessions in a result folder, simulated or emulated.

    The folder says what every chunk was like; the sizes of the levels that were not taken come
    from the video that its experiment names. Sizes that were taken must agree with it.

    Args:
        folder: of a run.
        data_dir: what ``data:`` stands for.
        video: where the sizes are instead, as in an experiment's ``video.sizes``.
        labels: what every state is labelled with.
        jobs: processes that label; None chooses.
        made_by: lines for the pool's description.
        on_session: is told of every session when it is labelled.

    Raises:
        ResultsError: the folder is no result folder, or malformed.
        ConfigError: its experiment is missing or of another task, or the video is not found.
        PoolError: the video is not the one that was played, or no session was finished.
    """
    path = folder / EXPERIMENT
    if (task := task_of(folder)) != "abr":
        raise ConfigError(f"{path}: task is {task!r}; there are pools of 'abr' only")
    results = read_results(folder)
    experiment = replace(
        abr_experiment(read_experiment(path), POOLS),
        driver=results.driver,  # type: ignore[arg-type]
    )
    spec = video or experiment.video.sizes
    try:
        table = resolve_video(
            spec,
            data_dir,
            levels_kbps=experiment.video.levels_kbps,
            chunk_s=experiment.video.chunk_s,
        )
    except DataNotFound as error:
        raise ConfigError(f"{path}: video.sizes: {error}; say where it is with --video") from error
    arms = {arm.label: arm for arm in experiment.arms}
    jobs_to_do = []
    for number, record in enumerate(results.sessions):
        if record.arm not in arms or record.trace not in results.traces:
            missing = f"arm {record.arm!r}" if record.arm not in arms else f"trace {record.trace!r}"
            where = EXPERIMENT if record.arm not in arms else TRACES
            raise ConfigError(f"{folder / where}: has no {missing}, which sessions.jsonl names")
        session = Session(
            number, arms[record.arm], results.traces[record.trace], record.start_index
        )
        jobs_to_do.append(Job(session, record))
    plan = AbrPlan(
        experiment, tuple(job.session for job in jobs_to_do), table.first(experiment.chunks)
    )
    return _label(plan, jobs_to_do, labels, jobs, made_by, on_session)


def _label(
    plan: AbrPlan,
    todo: list[Job],
    labels: Labels,
    processes: int | None,
    made_by: tuple[str, ...],
    on_session: OnSession,
) -> Pool:
    episodes = []
    for labelled in label_sessions(plan, todo, labels, processes=processes):
        on_session(labelled.record)
        if labelled.episode is not None:
            episodes.append(labelled.episode)
    if not episodes:
        raise PoolError("no session of two chunks or more ended well: there is nothing to keep")
    return drop_duplicates(pool_of(episodes, made_by=made_by))


def _ignore(session: Session, index: int) -> None:
    """Chunks are of no interest here."""


def _ignore_record(record: SessionRecord) -> None:
    """It was told when it was played."""
