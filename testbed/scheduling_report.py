"""``report.html`` of task ``scheduling``: completion times, executors over time, graphs of jobs.

Several folders are taken as runs of the same experiment and are set side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from testbed.plots import Series
from testbed.report_elements import PERCENT, Cell, counted
from testbed.report_page import render_page, run_labels
from testbed.scheduling_charts import ExecutorAxes, executor_chart, job_chart
from testbed.scheduling_network import link_chart
from testbed.scheduling_records import FinishedJob, JobRun, SchedulingSessionRecord
from testbed.scheduling_results import mean_jct_s
from testbed.scheduling_views import SchedulingRun, compare_runs, read_run, run_view
from testbed.svg import fixed, significant

TEMPLATE = "scheduling.html.j2"
#: Seeds that are drawn; more would make a page that is slow to load.
MOST_SEEDS = 6
#: Jobs of a session whose graphs can be chosen; likewise.
MOST_JOBS = 24


@dataclass(frozen=True, slots=True)
class JobView:
    """The graph of one job, and what is said of it."""

    name: str
    told: str
    graph: Markup | None


@dataclass(frozen=True, slots=True)
class SessionView:
    """One arm on the jobs of one seed; the first of ``jobs`` is shown, any can be chosen."""

    run: str
    arm: str
    colour: int
    status: str
    error: str | None
    facts: tuple[tuple[str, str], ...]
    executors: Markup | None
    links: Markup | None
    jobs: tuple[JobView, ...]


@dataclass(frozen=True, slots=True)
class SeedView:
    """The drawings of one seed."""

    name: str
    sessions: tuple[SessionView, ...]


@dataclass(frozen=True, slots=True)
class SeedRow:
    """One line of the overview; ``detail`` is the number of its drawings, if it has any."""

    name: str
    cells: tuple[Cell, ...]
    detail: int | None


def render_scheduling_report(folders: Sequence[Path]) -> str:
    """The report as HTML.

    Raises:
        ResultsError: a folder cannot be read.
    """
    runs = [read_run(folder) for folder in folders]
    arms = dict.fromkeys(arm for run in runs for arm in run.arms)
    colours = {arm: index for index, arm in enumerate(arms)}
    labels = run_labels(runs)
    traced = sorted({row.seed for run in runs for row in run.sessions if row.tasks is not None})
    drawn = traced[:MOST_SEEDS]
    return render_page(
        TEMPLATE,
        title=_title(runs),
        arms=[Series(arm, colour, ()) for arm, colour in colours.items()],
        runs=[run_view(run, label, colours) for run, label in zip(runs, labels, strict=True)],
        comparison=compare_runs(runs, labels, colours) if len(runs) > 1 else None,
        overview_columns=[
            (label, arm, colours[arm])
            for label, run in zip(labels, runs, strict=True)
            for arm in run.arms
        ],
        overview=_overview(runs, drawn),
        seeds=[_seed_view(seed, runs, labels, colours) for seed in drawn],
        seeds_left_out=len(traced) - len(drawn),
    )


def _title(runs: Sequence[SchedulingRun]) -> str:
    drivers = " and ".join(dict.fromkeys(run.driver for run in runs))
    seeds = len({seed for run in runs for seed in run.seeds})
    arms = len({arm for run in runs for arm in run.arms})
    return f"Scheduling, {drivers}: {counted(arms, 'arm')} on {counted(seeds, 'seed')}"


def _overview(runs: Sequence[SchedulingRun], drawn: Sequence[int]) -> list[SeedRow]:
    """A line per seed with a cell per run and arm; shaded line by line, as seeds differ."""
    found = {
        (number, row.arm, row.seed): row for number, run in enumerate(runs) for row in run.sessions
    }
    details = {seed: number for number, seed in enumerate(drawn, start=1)}
    lines = []
    for seed in sorted({seed for run in runs for seed in run.seeds}):
        rows = [
            found.get((number, arm, seed)) for number, run in enumerate(runs) for arm in run.arms
        ]
        lines.append(SeedRow(f"seed {seed}", _cells(rows), details.get(seed)))
    return lines


def _cells(rows: Sequence[SchedulingSessionRecord | None]) -> tuple[Cell, ...]:
    values = [None if row is None or row.status != "ok" else mean_jct_s(row) for row in rows]
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    cells = []
    for row, value in zip(rows, values, strict=True):
        if row is not None and row.status == "failed":
            cells.append(Cell("failed", title=row.error or ""))
            continue
        share = None if value is None else 1 - (value - low) / (high - low or 1.0)
        cells.append(Cell(fixed(value, 1), value is not None and value == low, share))
    return tuple(cells)


def _seed_view(
    seed: int, runs: Sequence[SchedulingRun], labels: Sequence[str], colours: Mapping[str, int]
) -> SeedView:
    played = [
        (label if len(runs) > 1 else "", row, run.links.get((row.arm, seed), {}))
        for run, label in zip(runs, labels, strict=True)
        for row in sorted(run.sessions, key=lambda row: colours[row.arm])
        if row.seed == seed
    ]
    axes = ExecutorAxes.of([row for _, row, _ in played])
    return SeedView(
        f"seed {seed}",
        tuple(
            SessionView(
                run=label,
                arm=row.arm,
                colour=colours[row.arm],
                status=row.status,
                error=row.error,
                facts=_session_facts(row),
                executors=executor_chart(row, axes),
                links=link_chart(row, links, axes),
                jobs=_job_views(row),
            )
            for label, row, links in played
        ),
    )


def _job_views(row: SchedulingSessionRecord) -> tuple[JobView, ...]:
    """Graphs of jobs, those with most stages first."""
    if row.tasks is None:
        return ()
    known = {job.id: job for job in row.jobs}
    runs = row.tasks.jobs or (JobRun(job=row.tasks.longest_job, stages=row.tasks.stages),)
    ranked = sorted(runs, key=lambda one: (-len(one.stages), -known[one.job].jct_s))
    return tuple(
        _job_view(known[one.job], one, row, is_longest=one.job == row.tasks.longest_job)
        for one in ranked[:MOST_JOBS]
    )


def _job_view(
    job: FinishedJob, run: JobRun, row: SchedulingSessionRecord, *, is_longest: bool
) -> JobView:
    told = (
        f"{job.name}, {counted(job.tasks, 'task')} in {counted(job.stages, 'stage')}: "
        f"{significant(job.jct_s)} s after {significant(job.arrived_s)} s"
        + (", which no job took longer than" if is_longest else "")
    )
    name = f"job {job.id}, {counted(job.stages, 'stage')}"
    return JobView(name, told, job_chart(run.stages, f"Graph of job {job.id} under {row.arm}"))


def _session_facts(row: SchedulingSessionRecord) -> tuple[tuple[str, str], ...]:
    if row.jct_s is None:
        return (("decisions", str(row.decisions)),)
    facts = [
        ("mean JCT", f"{fixed(row.jct_s.mean, 1)} s"),
        ("p95", f"{fixed(row.jct_s.p95, 1)} s"),
        ("makespan", f"{fixed(row.makespan_s, 0)} s"),
        ("decisions", str(row.decisions)),
    ]
    if row.queueing_s is not None:
        facts.append(("queueing", f"{fixed(row.queueing_s.mean, 1)} s"))
    if row.utilisation is not None:
        facts.append(("in use", f"{fixed(row.utilisation * PERCENT, 0)} %"))
    if row.fallbacks:
        facts.append(("fallbacks", str(row.fallbacks)))
    return tuple(facts)
