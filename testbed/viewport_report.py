"""``report.html`` of task ``viewport``: predictions alone, or tiled streaming; loads nothing else.

Several folders are taken as runs of the same experiment and are set side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from player.viewport_records import PredictionRecord, ViewportSessionRecord
from testbed.plots import Series
from testbed.prediction_views import compare_predictions, prediction_view
from testbed.report_elements import Cell, counted
from testbed.report_page import level_key, render_page, run_labels
from testbed.result_rows import AnyRecord, ResultsError
from testbed.session_records import place_of
from testbed.statistics import mean
from testbed.svg import fixed
from testbed.viewport_moments import MOST_MOMENTS, Moment, Seat, moments
from testbed.viewport_plans import spread
from testbed.viewport_results import mae_deg
from testbed.viewport_runs import (
    PredictionRun,
    StreamRun,
    Tiling,
    ViewportRun,
    is_offline,
    read_run,
    tiling_of,
)
from testbed.viewport_timelines import viewer_axes, viewer_timeline
from testbed.viewport_views import compare_streams, stream_view

TEMPLATE = "viewport.html.j2"
#: Sessions that are drawn, maps and time-line; more would make a page that is slow to load.
MOST_SESSIONS = 96


@dataclass(frozen=True, slots=True)
class ViewerView:
    """One time-line."""

    run: str
    arm: str
    colour: int
    status: str
    error: str | None
    facts: tuple[tuple[str, str], ...]
    timeline: Markup


@dataclass(frozen=True, slots=True)
class UnitView:
    """One recording on a trace: maps of some chunks, and the time-lines of its sessions."""

    name: str
    moments: tuple[Moment, ...]
    sessions: tuple[ViewerView, ...]


@dataclass(frozen=True, slots=True)
class OverviewRow:
    """One line of the overview; ``detail`` is the number of its drawings, if it has any."""

    name: str
    cells: tuple[Cell, ...]
    detail: int | None


def render_viewport_report(folders: Sequence[Path]) -> str:
    """The report as HTML.

    Raises:
        ResultsError: a folder cannot be read, or streamed and offline results are mixed.
    """
    if len({is_offline(folder) for folder in folders}) > 1:
        raise ResultsError("offline and streamed results have no report together")
    if is_offline(folders[0]):
        return _render_predictions([read_run(folder, PredictionRecord) for folder in folders])
    return _render_streams([read_run(folder, ViewportSessionRecord) for folder in folders])


def _render_predictions(runs: Sequence[PredictionRun]) -> str:
    colours, labels = _colours(runs), run_labels(runs)
    return render_page(
        TEMPLATE,
        title=_title(runs, "Viewport prediction"),
        is_streamed=False,
        arms=_legend(colours),
        runs=[prediction_view(*pair, colours) for pair in zip(runs, labels, strict=True)],
        comparison=compare_predictions(runs, labels, colours) if len(runs) > 1 else None,
        overview_columns=_columns(runs, labels, colours),
        overview=_overview(runs, _error, (), is_less_better=True),
        units=(),
        units_left_out=0,
        most_moments=MOST_MOMENTS,
        levels=(),
        has_link=False,
    )


def _render_streams(runs: Sequence[StreamRun]) -> str:
    colours, labels = _colours(runs), run_labels(runs)
    tilings = [tiling_of(run) for run in runs]
    names = sorted({name for run in runs for name in run.units})
    drawn = _drawn(runs, names)
    return render_page(
        TEMPLATE,
        title=_title(runs, "Viewport streaming"),
        is_streamed=True,
        arms=_legend(colours),
        runs=[stream_view(*pair, colours) for pair in zip(runs, labels, strict=True)],
        comparison=compare_streams(runs, labels, colours) if len(runs) > 1 else None,
        overview_columns=_columns(runs, labels, colours),
        overview=_overview(runs, _level, drawn, is_less_better=False),
        units=[_unit_view(name, runs, labels, tilings, colours) for name in drawn],
        units_left_out=len(names) - len(drawn),
        most_moments=MOST_MOMENTS,
        levels=level_key(max((tiling.levels_kbps for tiling in tilings), key=len)),
        has_link=any(run.link_seconds for run in runs),
    )


def _colours(runs: Sequence[ViewportRun[AnyRecord]]) -> dict[str, int]:
    arms = dict.fromkeys(arm for run in runs for arm in run.arms)
    return {arm: index for index, arm in enumerate(arms)}


def _legend(colours: Mapping[str, int]) -> list[Series]:
    return [Series(arm, colour, ()) for arm, colour in colours.items()]


def _title(runs: Sequence[PredictionRun] | Sequence[StreamRun], what: str) -> str:
    drivers = " and ".join(dict.fromkeys(run.driver for run in runs))
    recordings = len({row.recording for run in runs for row in run.sessions})
    arms = len({arm for run in runs for arm in run.arms})
    return f"{what}, {drivers}: {counted(arms, 'arm')} on {counted(recordings, 'recording')}"


def _columns(
    runs: Sequence[ViewportRun[AnyRecord]], labels: Sequence[str], colours: Mapping[str, int]
) -> list[tuple[str, str, int]]:
    return [
        (label, arm, colours[arm])
        for label, run in zip(labels, runs, strict=True)
        for arm in run.arms
    ]


def _error(row: PredictionRecord) -> float | None:
    return mae_deg(row) if row.samples else None


def _level(row: ViewportSessionRecord) -> float | None:
    return row.viewport_level


def _overview(
    runs: Sequence[ViewportRun[AnyRecord]],
    score: Callable[[AnyRecord], float | None],
    drawn: Sequence[str],
    *,
    is_less_better: bool,
) -> list[OverviewRow]:
    """A line per recording, or recording and trace, with a cell per run and arm."""
    found: dict[tuple[int, str, str], list[AnyRecord]] = {}
    for number, run in enumerate(runs):
        for row in run.sessions:
            found.setdefault((number, row.arm, place_of(row).unit), []).append(row)
    scores = {key: _score(rows, score) for key, rows in found.items()}
    values = [value for value in scores.values() if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    sign = -1 if is_less_better else 1
    details = {name: number for number, name in enumerate(drawn, start=1)}
    lines = []
    for name in sorted({unit for _, _, unit in found}):
        keys = [(number, arm, name) for number, run in enumerate(runs) for arm in run.arms]
        known = [
            sign * value
            for number, arm, unit in keys
            if (value := scores.get((number, arm, unit))) is not None
            and arm not in runs[number].knowing
        ]
        best = max(known, default=None)
        cells = []
        for key in keys:
            value, rows = scores.get(key), found.get(key, [])
            if rows and all(row.status == "failed" for row in rows):
                cells.append(Cell("failed", title=rows[0].error or ""))
                continue
            share = None if value is None else (value - low) / (high - low or 1.0)
            if share is not None and is_less_better:
                share = 1 - share
            is_rival = key[1] not in runs[key[0]].knowing
            is_best = is_rival and value is not None and sign * value == best
            cells.append(Cell(fixed(value, 2), is_best, share))
        lines.append(OverviewRow(name, tuple(cells), details.get(name)))
    return lines


def _score(rows: Sequence[AnyRecord], score: Callable[[AnyRecord], float | None]) -> float | None:
    """Mean over an arm's players of those that ended well."""
    return mean([value for row in rows if row.status == "ok" and (value := score(row)) is not None])


def _drawn(runs: Sequence[StreamRun], names: Sequence[str]) -> tuple[str, ...]:
    """What has drawings: all of it, or as much as makes a page of reasonable size."""
    sessions = sum(len(run.sessions) for run in runs)
    if sessions <= MOST_SESSIONS:
        return tuple(names)
    return spread(names, max(MOST_SESSIONS * len(names) // sessions, 1))


def _unit_view(
    name: str,
    runs: Sequence[StreamRun],
    labels: Sequence[str],
    tilings: Sequence[Tiling],
    colours: Mapping[str, int],
) -> UnitView:
    played = [
        (run, Seat(label if len(runs) > 1 else "", row, tiling))
        for run, label, tiling in zip(runs, labels, tilings, strict=True)
        for row in sorted(run.sessions, key=lambda row: (colours[row.arm], row.client))
        if place_of(row).unit == name
    ]
    seats = [seat for _, seat in played]
    rows = [seat.row for seat in seats]
    trace = next((run.traces[rows[0].trace] for run in runs if rows[0].trace in run.traces), None)
    seconds = [
        one
        for run in runs
        for (_, unit), some in run.link_seconds.items()
        if unit == name
        for one in some
    ]
    axes = viewer_axes(rows, trace, seats[0].tiling, seconds)
    is_shared = any(row.client for row in rows)
    return UnitView(
        name=name,
        moments=moments([seat for seat in seats if seat.row.client == 0], colours),
        sessions=tuple(
            ViewerView(
                run=seat.run,
                arm=seat.row.arm,
                colour=colours[seat.row.arm],
                status=seat.row.status,
                error=seat.row.error,
                facts=_viewer_facts(seat.row, is_shared=is_shared),
                timeline=viewer_timeline(
                    seat.row,
                    axes,
                    seat.tiling,
                    trace,
                    run.link_seconds.get(place_of(seat.row)[:2], ()),
                ),
            )
            for run, seat in played
        ),
    )


def _viewer_facts(row: ViewportSessionRecord, *, is_shared: bool) -> tuple[tuple[str, str], ...]:
    facts = [("player", str(row.client))] if is_shared else []
    if not row.chunks:
        return (*facts, ("chunks", "0"))
    whole = row.bytes_used + row.bytes_wasted
    facts += [
        ("level in view", fixed(row.viewport_level, 2)),
        ("bitrate", f"{fixed(row.viewport_bitrate_kbps, 0)} kbit/s"),
        ("blank", f"{fixed((row.blank_ratio or 0.0) * 100, 1)} %"),
        ("stalls", f"{fixed(row.stall_s, 2)} s"),
        ("start-up", f"{fixed(row.startup_s, 2)} s"),
        ("error", f"{fixed(row.mae_deg, 1)}°"),
        ("unused", f"{fixed(row.bytes_wasted / whole * 100 if whole else None, 0)} %"),
    ]
    if row.fallbacks:
        facts.append(("fallbacks", str(row.fallbacks)))
    if row.link.wire_nmae_1s is not None:
        facts.append(("wire error", f"{fixed(row.link.wire_nmae_1s * 100, 2)} %"))
    return tuple(facts)
