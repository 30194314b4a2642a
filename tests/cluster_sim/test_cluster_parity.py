"""The public reference simulator: one recorded run, decision by decision and event by event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster_sim.durations import DurationError, RecordedDurations
from cluster_sim.episodes import EpisodeFormatError, read_episode
from cluster_sim.events import Event, ExecutorArrived, JobArrived, TaskFinished
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import Assignment, ClusterView, check_cluster_view
from cluster_sim.simulated import ClusterRun, SimulationConfig, run_simulated
from controllers import registry

EXACT_MS = 1e-6
KINDS = {
    JobArrived: "JOB_ARRIVAL",
    TaskFinished: "TASK_COMPLETION",
    ExecutorArrived: "EXECUTOR_ARRIVAL",
}


@pytest.fixture(scope="module")
def path(reference_dir: Path) -> Path:
    return reference_dir / "cjs_fifo_5jobs.json"


@pytest.fixture(scope="module")
def recorded(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def replayed(path: Path) -> tuple[ClusterRun, list[list[Any]], list[tuple[float, str]]]:
    """The run, its decisions as the reference records them, and its events."""
    episode = read_episode(path)
    controller = registry.create("scheduling", "fifo_capped")
    decisions: list[list[Any]] = []
    events: list[tuple[float, str]] = []

    def decide(view: ClusterView) -> Assignment:
        check_cluster_view(view)
        assignment: Assignment = controller.decide(view)
        choices = [
            (job.job, one.stage) for job in view.jobs for one in job.stages if one.is_schedulable
        ]
        active = [job.job for job in view.jobs]
        is_idle = assignment.job is None
        decisions.append(
            [
                view.time_s * 1000,
                -1 if is_idle else choices.index((assignment.job, assignment.stage)),  # type: ignore[arg-type]
                view.committable if is_idle else assignment.executors,
                sum(len(job.stages) for job in view.jobs),
                len(choices),
                view.committable,
                len(active) if view.source_job is None else active.index(view.source_job),
                [job.executors for job in view.jobs],
            ]
        )
        return assignment

    def watch(event: Event, now_ms: float) -> None:
        events.append((now_ms, KINDS[type(event)]))

    config = SimulationConfig(
        cluster=ClusterConfig(executors=episode.executors),
        moving_delay_ms=episode.moving_delay_ms,
    )
    run = run_simulated(episode.jobs, config, RecordedDurations(episode.draws), decide, watch)
    return run, decisions, events


def test_every_decision_is_the_same(
    recorded: dict[str, Any],
    replayed: tuple[ClusterRun, list[list[Any]], list[tuple[float, str]]],
) -> None:
    keys = ["t", "stage_idx", "num_exec", "n_nodes", "n_sched", "committable"]
    keys += ["source_job_idx", "supplies"]
    _, decisions, _ = replayed
    assert len(decisions) == len(recorded["decisions"]) == 58
    for found, row in zip(decisions, recorded["decisions"], strict=True):
        wanted = [row[key] for key in keys]
        assert found[0] == pytest.approx(wanted[0], abs=EXACT_MS)
        assert found[1:] == wanted[1:]


def test_every_job_takes_the_same_time(
    recorded: dict[str, Any],
    replayed: tuple[ClusterRun, list[list[Any]], list[tuple[float, str]]],
) -> None:
    run, _, _ = replayed
    found = [one.jct_s * 1000 for one in run.jobs]
    assert found == pytest.approx(recorded["jct_ms"], abs=EXACT_MS)
    assert run.decisions == 58


def test_every_event_is_the_same(
    recorded: dict[str, Any],
    replayed: tuple[ClusterRun, list[list[Any]], list[tuple[float, str]]],
) -> None:
    _, _, events = replayed
    # The reference has the job of time 0 in place before it counts.
    wanted = [(row[0], row[1]) for row in recorded["events"]]
    assert events[0] == (0.0, "JOB_ARRIVAL")
    assert [kind for _, kind in events[1:]] == [kind for _, kind in wanted]
    assert [at for at, _ in events[1:]] == pytest.approx([at for at, _ in wanted], abs=EXACT_MS)


def test_another_controller_does_not_fit_the_recording(path: Path) -> None:
    episode = read_episode(path)
    config = SimulationConfig(cluster=ClusterConfig(executors=episode.executors))
    decide = registry.create("scheduling", "random").decide
    with pytest.raises(DurationError, match=r"draw .* was recorded for"):
        run_simulated(episode.jobs, config, RecordedDurations(episode.draws), decide)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "run.json: Expecting"),
        ("{}", "no key 'durations'"),
        ('{"durations": [[1, 2]]}', "run.json: "),
        ('{"durations": [], "jobs": []}', "no key 'num_executors'"),
        ('{"durations": [[0, 0, 0, 1, "lazy", 5]]}', "no key 'lazy'"),
    ],
)
def test_what_is_no_recording_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EpisodeFormatError, match=message):
        read_episode(path)
