"""Runs an experiment: plans the sessions, plays them, keeps every one that ends."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from testbed.abr_experiment import AbrExperiment, AbrPlan
from testbed.emulation import EmulatedSession, emulate
from testbed.links.backends import Backend
from testbed.report import build_report
from testbed.result_files import ResultFiles
from testbed.results import write_summary
from testbed.sandbox import sandbox_mode
from testbed.scheduling_emulation import emulate_cluster
from testbed.scheduling_experiment import SchedulingExperiment
from testbed.scheduling_plans import SchedulingPlan, SchedulingSession
from testbed.scheduling_simulation import SchedulingPlayer
from testbed.session_pool import SessionPlayer, play_sessions
from testbed.session_records import Record
from testbed.sessions import Plan, PlannedSession, Session, StreamPlan
from testbed.simulation import AbrSessionPlayer
from testbed.viewport_plans import PredictionPlan, ViewportPlan
from testbed.viewport_prediction import PredictionPlayer
from testbed.viewport_streaming import TiledSessionPlayer

#: Emulated sessions are real time; that many at once leave the links and players undisturbed. Tiles
#: are many small downloads, which cost a player more.
EMULATED_JOBS_PER_CPU: Mapping[str, int] = MappingProxyType({"abr": 8, "viewport": 4})
#: A browser decodes and draws; with less than this its pictures stand still now and then.
CPUS_PER_BROWSER = 2
#: Simulated sessions that make another process worth its start.
SESSIONS_PER_PROCESS: Mapping[str, int] = MappingProxyType(
    {"abr": 32, "viewport": 32, "scheduling": 2}
)
#: What plays sessions that need no real time, by their plan.
SESSION_PLAYERS: Mapping[type[Plan], Callable[[Any], SessionPlayer]] = MappingProxyType(
    {
        AbrPlan: AbrSessionPlayer,
        PredictionPlan: PredictionPlayer,
        ViewportPlan: TiledSessionPlayer,
        SchedulingPlan: SchedulingPlayer,
    }
)


class Progress(Protocol):
    """What a run tells while it goes on."""

    def planned(self, sessions: int, finished: int) -> None:
        """So many sessions in all, so many of them finished before."""

    def session_advanced(self, session: PlannedSession, share: float) -> None:
        """An emulated session has another chunk; ``share`` of it is done."""

    def session_finished(self, record: Record) -> None:
        """A session ended, well or not."""


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        folder: with everything.
        summary: content of ``summary.json``.
        failed: sessions that failed.
        report: the HTML report; None for a task that has none.
    """

    folder: Path
    summary: Mapping[str, Any]
    failed: int
    report: Path | None


def run_experiment(
    plan: Plan, folder: Path, *, jobs: int | None, resume: bool, progress: Progress
) -> Outcome:
    """Plays every session of the plan that is not finished in ``folder`` and writes the results.

    Args:
        plan: the experiment with all that it names.
        folder: where the results go.
        jobs: players at once; None chooses.
        resume: go on with a folder that has results.
        progress: told what happens.

    Raises:
        ConfigError: the folder cannot be used, or a controller cannot be made.
        SandboxError, ShapingError, LinkUnsupported: the emulation could not be set up.
    """
    files = ResultFiles.create(folder, plan.experiment, resume=resume)
    finished = files.finished()
    pending = [
        session for session in plan.sessions if (session.group, session.unit) not in finished
    ]
    progress.planned(len(plan.sessions), len(plan.sessions) - len(pending))
    if plan.traces:
        files.write_traces(plan.traces)
    if pending:
        jobs = jobs or default_jobs(plan, pending)
        environment = _environment(plan, jobs)
        files.write_environment(environment)
        try:
            _play(plan, pending, files, environment, progress)
        except Exception:
            files.discard_if_empty()
            raise
    summary = write_summary(folder)
    report = build_report([folder])
    failed = sum(int(arm["failed"]) for arm in summary["arms"])
    return Outcome(folder, summary, failed, report)


def default_jobs(plan: Plan, sessions: Sequence[PlannedSession]) -> int:
    """Sessions at once when the user names no number."""
    cpus = os.cpu_count() or 1
    if plan.experiment.driver != "emulated":
        return min(cpus, math.ceil(len(sessions) / SESSIONS_PER_PROCESS[plan.experiment.task]))
    if isinstance(plan, SchedulingPlan):
        return 1  # its many processes have to be on time
    if isinstance(plan.experiment, AbrExperiment) and plan.experiment.has_browser:
        return min(max(cpus // CPUS_PER_BROWSER, 1), len(sessions))
    return min(cpus * EMULATED_JOBS_PER_CPU[plan.experiment.task], len(sessions))


def _environment(plan: Plan, jobs: int) -> dict[str, Any]:
    """What this run uses of the machine."""
    experiment = plan.experiment
    details: dict[str, Any] = {
        "driver": experiment.driver,
        "seed": experiment.seed,
        "jobs": jobs,
        "load_before": os.getloadavg()[0],
    }
    if isinstance(experiment, SchedulingExperiment):
        if (fabric := experiment.fabric_settings) is None:
            return details
        if experiment.driver == "simulated":
            return details | {"link": "model:fluid"}
        return details | {"sandbox": sandbox_mode(), "link": {"asked": fabric.backend}}
    if experiment.driver == "offline":
        return details
    if experiment.driver == "simulated":
        return details | {"link": f"model:{experiment.link.model}"}
    return details | {
        "sandbox": sandbox_mode(),
        "link": {"asked": experiment.link.backend},
        "switch": experiment.network.switch,
    }


def _play(
    plan: Plan,
    sessions: Sequence[PlannedSession],
    files: ResultFiles,
    environment: dict[str, Any],
    progress: Progress,
) -> None:
    jobs = environment["jobs"]
    if plan.experiment.driver != "emulated":
        for record in play_sessions(SESSION_PLAYERS[type(plan)], plan, sessions, jobs=jobs):
            files.add_session(record)
            progress.session_finished(record)
        return

    def keep(session: EmulatedSession) -> None:
        files.add_link_seconds(session.link_seconds)
        if not isinstance(plan, SchedulingPlan):  # nobody asks a video server there
            files.add_requests(session.requests)
        files.add_session(session.record)
        progress.session_finished(session.record)

    def tell(session: Session, index: int) -> None:
        assert isinstance(plan, StreamPlan)
        progress.session_advanced(session, (index + 1) / plan.chunks_of(session))

    def note(backend: Backend) -> None:
        link = {"backend": backend.name, "why": backend.why, **environment["link"]}
        files.write_environment(environment | {"link": link})

    if isinstance(plan, SchedulingPlan):
        emulate_cluster(
            plan,
            [session for session in sessions if isinstance(session, SchedulingSession)],
            on_session=keep,
            on_progress=progress.session_advanced,
            on_backend=note,
        )
        return
    assert isinstance(plan, StreamPlan)  # whatever else is emulated streams
    emulate(
        plan,
        [session for session in sessions if isinstance(session, Session)],
        jobs=jobs,
        captures=files.captures() if plan.experiment.capture.enabled else None,
        on_session=keep,
        on_chunk=tell,
        on_backend=note,
    )
