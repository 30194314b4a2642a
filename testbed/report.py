"""Builds ``report.html`` from one or several result folders: one file that loads nothing else.

Several folders are taken as runs of the same experiment, such as emulated and simulated, and are
set side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from markupsafe import Markup

from player.records import SessionRecord
from testbed.browser_views import browser_use
from testbed.comparison import compare_runs
from testbed.plots import Series
from testbed.report_elements import Cell, counted
from testbed.report_page import REPORT, level_key, render_page, run_labels
from testbed.report_views import run_view
from testbed.result_rows import ResultsError, replace_file
from testbed.results import (
    Results,
    mean_bitrate_kbps,
    mean_switch_kbps,
    read_results,
    scored,
    stall_s,
    task_of,
)
from testbed.scheduling_report import render_scheduling_report
from testbed.statistics import mean
from testbed.svg import fixed
from testbed.timelines import session_timeline, shared_axes
from testbed.viewport_report import render_viewport_report


@dataclass(frozen=True, slots=True)
class SessionView:
    """One time-line."""

    run: str
    arm: str
    colour: int
    status: str
    error: str | None
    facts: tuple[tuple[str, str], ...]
    timeline: Markup


@dataclass(frozen=True, slots=True)
class TraceView:
    """One trace: a row of the overview and the time-lines of its sessions."""

    name: str
    mean_mbps: str
    cells: tuple[Cell, ...]
    sessions: tuple[SessionView, ...]


def build_report(folders: Sequence[Path], out: Path | None = None) -> Path | None:
    """Reads result folders and writes one report over them, whole or not at all.

    Args:
        folders: at least one result folder.
        out: the file; ``report.html`` in the first folder by default.

    Returns:
        Where the report is; None: their task has none.

    Raises:
        ResultsError: a folder cannot be read, or they are of different tasks.
        ValueError: no folder.
    """
    if not folders:
        raise ValueError("a report needs at least one result folder")
    tasks = {task_of(folder): folder for folder in folders}
    if len(tasks) > 1:
        told = ", ".join(f"{folder} of {task!r}" for task, folder in tasks.items())
        raise ResultsError(f"results of different tasks have no report together: {told}")
    render = REPORTS.get(*tasks)
    if render is None:
        return None
    path = out or folders[0] / REPORT
    replace_file(path, render(folders))
    return path


def _render_abr(folders: Sequence[Path]) -> str:
    return render_report([read_results(folder) for folder in folders])


#: Makes the report over result folders of one task.
REPORTS: Mapping[str, Callable[[Sequence[Path]], str]] = MappingProxyType(
    {
        "abr": _render_abr,
        "viewport": render_viewport_report,
        "scheduling": render_scheduling_report,
    }
)


def render_report(runs: Sequence[Results]) -> str:
    """The report as HTML."""
    arms = tuple(dict.fromkeys(arm for run in runs for arm in run.arms))
    colours = {arm: index for index, arm in enumerate(arms)}
    labels = run_labels(runs)
    ladder = ladder_kbps(runs)
    return render_page(
        "report.html.j2",
        title=_title(runs),
        arms=[Series(arm, colours[arm], ()) for arm in arms],
        runs=[run_view(run, label, colours) for run, label in zip(runs, labels, strict=True)],
        comparison=compare_runs(runs, labels, colours) if len(runs) > 1 else None,
        overview_columns=[
            (label, arm, colours[arm])
            for label, run in zip(labels, runs, strict=True)
            for arm in run.arms
        ],
        traces=_trace_views(runs, labels, colours, ladder),
        levels=level_key(ladder),
        weights=runs[0].qoe,
        has_link=any(run.link_seconds for run in runs),
    )


def ladder_kbps(runs: Sequence[Results]) -> list[float | None]:
    """Bitrate of each level: as the experiment says, else of those levels that were used."""
    for run in runs:
        listed = run.experiment.get("video", {}).get("levels_kbps")
        if isinstance(listed, list) and listed:
            return [float(rate) for rate in listed]
    used = {
        chunk.level: chunk.bitrate_kbps
        for run in runs
        for row in run.sessions
        for chunk in row.chunks
    }
    top = max(used, default=-1)
    return [used.get(level) for level in range(top + 1)]


def _title(runs: Sequence[Results]) -> str:
    tasks = " + ".join(dict.fromkeys(run.task.upper() for run in runs))
    drivers = " and ".join(dict.fromkeys(run.driver for run in runs))
    traces = len({name for run in runs for name in run.trace_names})
    arms = len({arm for run in runs for arm in run.arms})
    return f"{tasks}, {drivers}: {counted(arms, 'arm')} on {counted(traces, 'trace')}"


def _trace_views(
    runs: Sequence[Results],
    labels: Sequence[str],
    colours: Mapping[str, int],
    ladder: Sequence[float | None],
) -> list[TraceView]:
    """Rows of the overview, each with the time-lines of all runs on its trace."""
    found: dict[tuple[str, str, str], list[SessionRecord]] = {}
    for label, run in zip(labels, runs, strict=True):
        for row in run.sessions:
            found.setdefault((label, row.arm, row.trace), []).append(row)
    scores = [score for rows in found.values() if (score := _score(rows)) is not None]
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    views = []
    for name in sorted({name for run in runs for name in run.trace_names}):
        trace = next((run.traces[name] for run in runs if name in run.traces), None)
        columns = [
            (run, label, found.get((label, arm, name), []))
            for label, run in zip(labels, runs, strict=True)
            for arm in run.arms
        ]
        played = [(run, label, row) for run, label, rows in columns for row in rows]
        seconds = [
            second
            for run in runs
            for (_, on), some in run.link_seconds.items()
            if on == name
            for second in some
        ]
        is_shared = any(row.client for _, _, row in played)
        axes = shared_axes([row for _, _, row in played], trace, ladder, seconds)
        views.append(
            TraceView(
                name=name,
                mean_mbps=fixed(trace.mean_mbps if trace else None, 2),
                cells=_overview_cells([rows for _, _, rows in columns], low, high),
                sessions=tuple(
                    SessionView(
                        run=label if len(runs) > 1 else "",
                        arm=row.arm,
                        colour=colours[row.arm],
                        status=row.status,
                        error=row.error,
                        facts=_session_facts(row, is_shared=is_shared),
                        timeline=session_timeline(
                            row, axes, trace, run.link_seconds.get(row.bottleneck, ())
                        ),
                    )
                    for run, label, row in played
                ),
            )
        )
    return views


def _overview_cells(
    columns: Sequence[Sequence[SessionRecord]], low: float, high: float
) -> tuple[Cell, ...]:
    scores = [_score(rows) for rows in columns]
    best = max((score for score in scores if score is not None), default=None)
    spread = high - low or 1.0
    cells = []
    for rows, score in zip(columns, scores, strict=True):
        failed = [row for row in rows if row.status == "failed"]
        if failed and len(failed) == len(rows):
            cells.append(Cell("failed", title=failed[0].error or ""))
            continue
        share = None if score is None else (score - low) / spread
        cells.append(Cell(fixed(score, 3), score is not None and score == best, share))
    return tuple(cells)


def _score(rows: Sequence[SessionRecord]) -> float | None:
    """Mean QoE of an arm's players on one trace, of those that ended well."""
    return mean(
        [row.qoe_per_chunk for row in rows if row.status == "ok" and row.qoe_per_chunk is not None]
    )


def _session_facts(row: SessionRecord, *, is_shared: bool) -> tuple[tuple[str, str], ...]:
    player = [("player", str(row.client))] if is_shared else []
    if not scored(row):
        return (*player, ("chunks", str(len(row.chunks))))
    facts = [
        *player,
        ("QoE", fixed(row.qoe_per_chunk, 3)),
        ("bitrate", f"{fixed(mean_bitrate_kbps(row), 0)} kbit/s"),
        ("stalls", f"{fixed(stall_s(row), 2)} s"),
        ("switch", f"{fixed(mean_switch_kbps(row), 0)} kbit/s"),
        ("start-up", f"{fixed(row.startup_s, 2)} s"),
    ]
    if row.latency_s is not None:
        facts.append(("latency", f"{fixed(row.latency_s, 2)} s"))
    fallbacks = sum(chunk.fallback for chunk in row.chunks)
    if fallbacks:
        facts.append(("fallbacks", str(fallbacks)))
    if row.link.wire_nmae_1s is not None:
        facts.append(("wire error", f"{fixed(row.link.wire_nmae_1s * 100, 2)} %"))
    if row.browser is not None:
        facts.append(("Chromium", browser_use([row])))
    return tuple(facts)
