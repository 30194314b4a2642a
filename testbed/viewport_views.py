"""Tiled streaming as the report shows it: facts, table, charts and comparison of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from player.qoe import KBPS_PER_MBPS
from player.viewport_observation import SAMPLE_S
from player.viewport_records import ViewportSessionRecord
from testbed import plots
from testbed.plots import Divided, Series
from testbed.report_elements import (
    PERCENT,
    ArmTable,
    Comparison,
    Entry,
    Failure,
    Figure,
    RunView,
    arm_rows,
    counted,
    difference,
    estimate_of,
    interval_cell,
    scaled,
)
from testbed.report_facts import Facts, documents, known, machine_facts, network_facts
from testbed.report_link import link_section
from testbed.report_network import link_tables
from testbed.session_records import place_of
from testbed.statistics import Estimate, mean, paired_delta_ci
from testbed.svg import fixed, significant
from testbed.viewport_headlines import Ranked, headline
from testbed.viewport_results import by_unit, summarize_streaming
from testbed.viewport_runs import StreamRun, common_units, level_by_unit, tiling_of

VIEW_COLUMNS = (
    *("level in view", "95 % interval", "kbit/s in view", "95 % interval"),
    *("blank %", "95 % interval", "stalls s", "start-up s"),
)
COST_COLUMNS = (
    *("MAE °", "95 % interval", "MB downloaded", "unused MB", "unused %"),
    *("decision ms p50", "p99", "fallbacks", "failed"),
)
BYTES_PER_MB = 1e6
_BYTES = ("bytes_used", "bytes_wasted")


def stream_view(run: StreamRun, label: str, colours: Mapping[str, int]) -> RunView:
    """Everything the report says about one run; ``colours`` has a number per arm."""
    summary = summarize_streaming(run.experiment, run.sessions)
    return RunView(
        label=label,
        facts=_facts(run),
        headline=headline(
            run,
            [
                Ranked(arm["arm"], estimate_of(arm["sessions"], arm["viewport_level"]))
                for arm in summary["arms"]
            ],
            summary["pairs"],
            is_less_better=False,
            what="mean level in the field of view",
            unit="",
            noun="session",
        ),
        arm_tables=(
            ArmTable(VIEW_COLUMNS, arm_rows(run.arms, _view_entries(run, summary), colours)),
            ArmTable(COST_COLUMNS, arm_rows(run.arms, _cost_entries(run, summary), colours)),
        ),
        figures=_figures(run, summary, colours),
        link=link_section(run.sessions, run.arms, run.link_seconds, colours),
        tables=link_tables(run.sessions, run.arms),
        failed=tuple(
            Failure(row.arm, place_of(row).unit, counted(len(row.chunks), "chunk"), row.error)
            for row in run.sessions
            if row.status == "failed"
        ),
        documents=documents(run.experiment, run.environment),
    )


def compare_streams(
    runs: Sequence[StreamRun], labels: Sequence[str], colours: Mapping[str, int]
) -> Comparison:
    """Every arm that all runs share, on what it ended well on in all of them."""
    shared = [arm for arm in runs[0].arms if all(arm in run.arms for run in runs)]
    columns = ["sessions", *(f"level {label}" for label in labels)]
    for label in labels[1:]:
        columns += [f"{label} − {labels[0]}", "95 % interval"]
    for what in ("blank %", "stalls s", "Mbit/s in view"):
        columns += [f"{what} {label}" for label in labels]
    return Comparison(
        labels[0],
        tuple(columns),
        arm_rows(shared, [_compared(runs, arm) for arm in shared], colours),
        tuple(
            Figure(
                f"Level in view: {label} over {labels[0]}",
                plots.scatter(
                    [_level_pairs(runs[0], other, arm, colours[arm]) for arm in shared],
                    f"level in view, {labels[0]}",
                    f"level in view, {label}",
                    is_diagonal=True,
                ),
                "One dot per arm and recording; on the dashed line both runs agree.",
                tuple(Series(arm, colours[arm], ()) for arm in shared),
            )
            for label, other in zip(labels[1:], runs[1:], strict=True)
        ),
    )


def _compared(runs: Sequence[StreamRun], arm: str) -> list[Entry]:
    levels = [level_by_unit(run, arm) for run in runs]
    common = common_units(levels)
    values = [[one[unit] for unit in common] for one in levels]
    texts = [str(len(common)), *(fixed(mean(one), 3) for one in values)]
    for other in values[1:]:
        delta = paired_delta_ci(other, values[0])
        texts += [fixed(delta.mean, 3, sign=True), interval_cell(delta.ci95)]
    kept = [[row for row in run.of_arm(arm) if place_of(row).unit in common] for run in runs]
    for figure, factor, decimals in (
        (_blank, PERCENT, 2),
        (_stall_s, 1.0, 2),
        (_bitrate_kbps, 1 / KBPS_PER_MBPS, 2),
    ):
        texts += [
            fixed(
                scaled(mean([value for row in rows if (value := figure(row)) is not None]), factor),
                decimals,
            )
            for rows in kept
        ]
    return [Entry(text) for text in texts]


def _blank(row: ViewportSessionRecord) -> float | None:
    return row.blank_ratio


def _stall_s(row: ViewportSessionRecord) -> float | None:
    return row.stall_s


def _bitrate_kbps(row: ViewportSessionRecord) -> float | None:
    return row.viewport_bitrate_kbps


def _level_pairs(base: StreamRun, other: StreamRun, arm: str, colour: int) -> Series:
    first, second = level_by_unit(base, arm), level_by_unit(other, arm)
    common = common_units([first, second])
    return Series(
        arm,
        colour,
        [first[name] for name in common],
        others=[second[name] for name in common],
        titles=[f"{arm}, {name}" for name in common],
    )


def _facts(run: StreamRun) -> Facts:
    experiment, tiling = run.experiment, tiling_of(run)
    player = experiment.get("player", {})
    recordings = len({row.recording for row in run.sessions})
    traces = len({row.trace for row in run.sessions})
    chunks = max((len(row.chunks) for row in run.sessions), default=0)
    failed = sum(row.status == "failed" for row in run.sessions)
    grid, fov = tiling.grid, tiling.fov
    return known(
        (
            ("task", "viewport"),
            ("driver", run.driver),
            (
                "recordings",
                _listed(experiment.get("viewports"), counted(recordings, "recording")),
            ),
            ("traces", _listed(experiment.get("traces"), counted(traces, "trace"))),
            ("tiles", f"{grid.rows} × {grid.columns}"),
            ("field of view", f"{fov.width_deg:g}° × {fov.height_deg:g}°"),
            (
                "levels, whole sphere",
                ", ".join(f"{rate:g}" for rate in tiling.levels_kbps) + " kbit/s",
            ),
            ("chunks", f"{chunks} of {tiling.chunk_s:g} s"),
            ("asks ahead by", f"{player['buffer_cap_s']:g} s" if "buffer_cap_s" in player else ""),
            ("what is missing", str(player.get("missing", ""))),
            ("sessions", f"{len(run.sessions)}, {failed} failed"),
            *network_facts(experiment, run.driver, [row.link.backend for row in run.sessions]),
            *machine_facts(experiment, run.environment),
        )
    )


def _listed(spec: object, count: str) -> str:
    return ", ".join(filter(None, [str(spec or ""), count]))


def _view_entries(run: StreamRun, summary: Mapping[str, Any]) -> list[list[Entry]]:
    """What the viewers of each arm saw."""
    table = []
    for arm in summary["arms"]:
        better = 1 if arm["arm"] not in run.knowing else 0
        level, rate = arm["viewport_level"], arm["viewport_bitrate_kbps"]
        blank = _times(estimate_of(0, arm["blank_ratio"]), PERCENT)
        table.append(
            [
                _ranked(fixed(level["mean"], 3), level["mean"], better),
                Entry(interval_cell(level["ci95"])),
                _ranked(fixed(rate["mean"], 0), rate["mean"], better),
                Entry(interval_cell(rate["ci95"], 0)),
                _ranked(fixed(blank.mean, 2), blank.mean, -better),
                Entry(interval_cell(blank.ci95, 2)),
                _ranked(fixed(arm["stall_s"], 2), arm["stall_s"], -better),
                Entry(fixed(arm["startup_s"], 2)),
            ]
        )
    return table


def _cost_entries(run: StreamRun, summary: Mapping[str, Any]) -> list[list[Entry]]:
    """How well each arm predicted, and what was paid."""
    table = []
    for arm in summary["arms"]:
        worse = -1 if arm["arm"] not in run.knowing else 0
        error, decision = arm["mae_deg"], arm["decision_ms"]
        used, wasted = (scaled(arm[key], 1 / BYTES_PER_MB) for key in _BYTES)
        whole = None if used is None or wasted is None else used + wasted
        share = None if not whole or wasted is None else wasted / whole * PERCENT
        table.append(
            [
                _ranked(fixed(error["mean"], 3), error["mean"], worse),
                Entry(interval_cell(error["ci95"], 2)),
                Entry(significant(whole)),
                _ranked(significant(wasted), wasted, worse),
                _ranked(fixed(share, 1), share, worse),
                Entry(significant(decision["p50"])),
                Entry(significant(decision["p99"])),
                Entry(str(arm["fallbacks"])),
                Entry(f"{arm['failed']} of {arm['sessions']}"),
            ]
        )
    return table


def _ranked(text: str, value: float | None, better: int) -> Entry:
    """An entry that takes part in what is best of its column; not so for ``better`` 0."""
    return Entry(text, value if better else None, better)


def _times(one: Estimate, factor: float) -> Estimate:
    ci95 = None if one.ci95 is None else (one.ci95[0] * factor, one.ci95[1] * factor)
    return Estimate(one.n, scaled(one.mean, factor), ci95)


def _figures(
    run: StreamRun, summary: Mapping[str, Any], colours: Mapping[str, int]
) -> tuple[Figure, ...]:
    levels = []
    for arm in run.arms:
        found = level_by_unit(run, arm)
        titles = [f"{unit}\n{fixed(value, 3)}" for unit, value in found.items()]
        levels.append(Series(arm, colours[arm], list(found.values()), titles=titles))
    legend = tuple(levels)
    others = tuple(one for one in legend if one.label != run.base)
    estimates = [estimate_of(arm["sessions"], arm["viewport_level"]) for arm in summary["arms"]]
    return (
        Figure(
            f"Level in view: difference to {run.base}",
            _forest(run, summary, "delta", "level less that of", 1.0),
            "Session by session; right of zero the arm shows more. Filled where the 95 % interval "
            "excludes zero.",
        ),
        Figure(
            f"Blank: difference to {run.base}",
            _forest(run, summary, "blank_ratio", "blank share less that of", PERCENT),
            "Percentage points of the field of view and the time; left of zero less is missing.",
        ),
        Figure(
            "Level in view of each session",
            plots.strips(levels, estimates, "level in the field of view"),
            "One dot per recording on its trace; above it the mean with its 95 % interval.",
        ),
        Figure(
            "Does better prediction show?",
            plots.scatter(
                [_against_base(run, one.label, colours) for one in others],
                f"error less that of {run.base}, °",
                f"level in view less that of {run.base}",
            ),
            "One dot per session; to the left the prediction was better, above the picture was.",
            others,
        ),
        Figure(
            "What was downloaded",
            plots.divided(_bytes(summary, colours), "MB per session"),
            "The lighter part was never in view while it was shown.",
        ),
        Figure(
            "Error over the horizon",
            plots.lines(
                [_over_horizon(run, arm, colours[arm]) for arm in run.arms],
                "seconds ahead",
                "mean absolute error, °",
            ),
            "Of the predictions that were made while streaming; mean over sessions.",
            legend,
        ),
        Figure(
            "Level over bandwidth",
            plots.scatter(
                [_over_rate(run, arm, colours[arm]) for arm in run.arms],
                "mean bandwidth of the trace, Mbit/s",
                "level in the field of view",
            ),
            "Every session against what its link offered on average.",
            legend,
        ),
        Figure(
            "Distribution of blanks",
            plots.cdf(
                _each(run, colours, lambda row: [scaled(row.blank_ratio, PERCENT)]),
                "blank share of a session, %",
                of="sessions",
            ),
            "Share of sessions at or below.",
            legend,
        ),
        Figure(
            "Decision time",
            plots.cdf(
                _each(run, colours, lambda row: row.decisions_ms),
                "ms from question to answer",
                of="decisions",
                is_log=True,
            ),
            "Share of decisions at or below a time; none where decisions were free of charge.",
            legend,
        ),
    )


def _forest(run: StreamRun, summary: Mapping[str, Any], name: str, what: str, factor: float) -> Any:
    rows = [
        (arm, _times(delta, factor))
        for arm in run.arms
        if arm != run.base
        and (delta := difference(summary["pairs"], arm, run.base, name)) is not None
    ]
    return plots.forest(rows, f"{what} {run.base}{', %' if factor == PERCENT else ''}")


def _each(
    run: StreamRun,
    colours: Mapping[str, int],
    values: Callable[[ViewportSessionRecord], Sequence[float | None]],
) -> list[Series]:
    return [
        Series(
            arm,
            colours[arm],
            [value for row in run.of_arm(arm) for value in values(row) if value is not None],
        )
        for arm in run.arms
    ]


def _against_base(run: StreamRun, arm: str, colours: Mapping[str, int]) -> Series:
    levels = [level_by_unit(run, one) for one in (arm, run.base)]
    errors = [by_unit(run.of_arm(one), lambda row: row.mae_deg) for one in (arm, run.base)]
    common = common_units([*levels, *errors])
    return Series(
        arm,
        colours[arm],
        [errors[0][unit] - errors[1][unit] for unit in common],
        others=[levels[0][unit] - levels[1][unit] for unit in common],
        titles=[f"{arm}, {unit}" for unit in common],
    )


def _bytes(summary: Mapping[str, Any], colours: Mapping[str, int]) -> list[Divided]:
    return [
        Divided(
            arm["arm"],
            colours[arm["arm"]],
            *(arm[key] / BYTES_PER_MB for key in _BYTES),
        )
        for arm in summary["arms"]
        if arm["bytes_used"] is not None
    ]


def _over_horizon(run: StreamRun, arm: str, colour: int) -> Series:
    rows = run.of_arm(arm)
    points = []
    for step in range(max((len(row.mae_by_step_deg) for row in rows), default=0)):
        known_deg = [
            error
            for row in rows
            if step < len(row.mae_by_step_deg) and (error := row.mae_by_step_deg[step]) is not None
        ]
        if known_deg:
            points.append(((step + 1) * SAMPLE_S, sum(known_deg) / len(known_deg)))
    titles = [f"{arm}, {ahead_s:.1f} s ahead: {fixed(error, 2)}°" for ahead_s, error in points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Series(arm, colour, xs, others=ys, titles=titles)


def _over_rate(run: StreamRun, arm: str, colour: int) -> Series:
    rows = [
        row for row in run.of_arm(arm) if row.trace in run.traces and row.viewport_level is not None
    ]
    return Series(
        arm,
        colour,
        [run.traces[row.trace].mean_mbps for row in rows],
        others=[row.viewport_level or 0.0 for row in rows],
        titles=[f"{arm}, {place_of(row).unit}" for row in rows],
    )
