"""Predictions without streaming as the report shows them: table, charts and comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from player.trace import FloatArray
from player.viewport_observation import SAMPLE_S
from player.viewport_records import PredictionRecord
from testbed import plots
from testbed.comparison import compare_means
from testbed.plots import Series
from testbed.report_elements import (
    PERCENT,
    ArmRow,
    ArmTable,
    Comparison,
    Entry,
    Failure,
    Figure,
    LinkSection,
    RunView,
    arm_rows,
    counted,
    difference,
    estimate_of,
    interval_cell,
)
from testbed.report_facts import Facts, documents, known, machine_facts
from testbed.svg import fixed, significant
from testbed.viewport_headlines import Ranked, headline
from testbed.viewport_results import summarize_predictions
from testbed.viewport_runs import PredictionRun, mae_by_unit

COLUMNS = (
    *("windows", "MAE °", "95 % interval", "roll °", "pitch °", "yaw °", "gaze °"),
    *("decision ms p50", "p99", "fallbacks", "failed"),
)
#: What is worse than the arm to beat by more than this would hide how the others differ.
MOST_WORSE_PERCENT = 30.0


def prediction_view(run: PredictionRun, label: str, colours: Mapping[str, int]) -> RunView:
    """Everything the report says about one run; ``colours`` has a number per arm."""
    summary = summarize_predictions(run.experiment, run.sessions)
    return RunView(
        label=label,
        facts=_facts(run),
        headline=headline(
            run,
            [
                Ranked(arm["arm"], estimate_of(arm["sessions"], arm["mae_deg"]))
                for arm in summary["arms"]
            ],
            summary["pairs"],
            is_less_better=True,
            what="mean error",
            unit="°",
            noun="recording",
        ),
        arm_tables=(ArmTable(COLUMNS, _rows(run, summary, colours)),),
        figures=_figures(run, summary, colours),
        link=LinkSection("", ()),
        tables=(),
        failed=tuple(
            Failure(row.arm, row.recording, f"{counted(row.samples, 'window')}", row.error)
            for row in run.sessions
            if row.status == "failed"
        ),
        documents=documents(run.experiment, run.environment),
    )


def compare_predictions(
    runs: Sequence[PredictionRun], labels: Sequence[str], colours: Mapping[str, int]
) -> Comparison:
    """Every arm that all runs share, on the recordings that it ended well on in all of them."""
    return compare_means(
        runs,
        labels,
        colours,
        arms_of=lambda run: run.arms,
        by_unit=mae_by_unit,
        units="recordings",
        what="MAE °",
        decimals=3,
    )


def _facts(run: PredictionRun) -> Facts:
    experiment = run.experiment
    predict = experiment.get("predict", {})
    recordings = counted(len(run.units), "recording")
    horizon = max((len(row.yaw_mae_deg) for row in run.sessions), default=0)
    return known(
        (
            ("task", "viewport"),
            ("driver", run.driver),
            ("recordings", ", ".join(filter(None, [_name(experiment), recordings]))),
            ("history", _samples(predict.get("history"))),
            ("horizon", _samples(predict.get("horizon", horizon))),
            ("windows every", _samples(predict.get("step"))),
            ("told of earlier viewers", str(predict.get("earlier_viewers", ""))),
            ("sessions", f"{len(run.sessions)}, {_failed(run)} failed"),
            *machine_facts(experiment, run.environment),
        )
    )


def _name(experiment: Mapping[str, Any]) -> str:
    return str(experiment.get("viewports", ""))


def _samples(count: object) -> str:
    if not isinstance(count, int) or not count:
        return ""
    return f"{counted(count, 'sample')}, {count * SAMPLE_S:g} s"


def _failed(run: PredictionRun) -> int:
    return sum(row.status == "failed" for row in run.sessions)


def _rows(
    run: PredictionRun, summary: Mapping[str, Any], colours: Mapping[str, int]
) -> tuple[ArmRow, ...]:
    table = []
    for arm in summary["arms"]:
        error, decision = arm["mae_deg"], arm["decision_ms"]
        angles = (error["roll"], error["pitch"], error["yaw"], arm["great_circle_deg"])
        is_rival = arm["arm"] not in run.knowing
        table.append(
            [
                Entry(str(arm["samples"])),
                Entry(fixed(error["mean"], 3), error["mean"] if is_rival else None, -1),
                Entry(interval_cell(error["ci95"], 2)),
                *(Entry(fixed(angle, 2), angle if is_rival else None, -1) for angle in angles),
                Entry(significant(decision["p50"])),
                Entry(significant(decision["p99"])),
                Entry(str(arm["fallbacks"])),
                Entry(f"{arm['failed']} of {arm['sessions']}"),
            ]
        )
    return arm_rows([arm["arm"] for arm in summary["arms"]], table, colours)


def _figures(
    run: PredictionRun, summary: Mapping[str, Any], colours: Mapping[str, int]
) -> tuple[Figure, ...]:
    errors = []
    for arm in run.arms:
        by_unit = mae_by_unit(run, arm)
        titles = [f"{name}\n{fixed(value, 2)}°" for name, value in by_unit.items()]
        errors.append(Series(arm, colours[arm], list(by_unit.values()), titles=titles))
    others = [arm for arm in run.arms if arm != run.base]
    deltas = [
        (arm, delta)
        for arm in others
        if (delta := difference(summary["pairs"], arm, run.base)) is not None
    ]
    estimates = [estimate_of(arm["sessions"], arm["mae_deg"]) for arm in summary["arms"]]
    decisions = [
        Series(arm, colours[arm], [ms for row in run.of_arm(arm) for ms in row.decisions_ms])
        for arm in run.arms
    ]
    legend = tuple(errors)
    against = [_against_base(run, arm, colours) for arm in others]
    return (
        Figure(
            f"Difference to {run.base}",
            plots.forest(deltas, f"error less that of {run.base}, °"),
            "Recording by recording; left of zero the arm is better. Filled where the 95 % "
            "interval excludes zero.",
        ),
        Figure(
            "Error of each recording",
            plots.strips(errors, estimates, "mean absolute error, °"),
            "One dot per recording; above it the mean over all windows with its 95 % interval.",
        ),
        Figure(
            "Error over the horizon",
            plots.lines(
                [_over_horizon(summary, arm, colours) for arm in run.arms],
                "seconds ahead",
                "mean absolute error, °",
            ),
            "Mean over all windows and the three axes.",
            legend,
        ),
        Figure(
            f"Error over the horizon against {run.base}",
            plots.lines(
                against,
                "seconds ahead",
                f"more (+) or less (−) error than {run.base}, %",
                has_zero=True,
            ),
            "Below zero the arm is better; only recordings that both ended well on. What is more "
            f"than {MOST_WORSE_PERCENT:g} % worse is left out.",
            tuple(one for one in against if one.values),
        ),
        Figure(
            "Distribution over the recordings",
            plots.cdf(errors, "mean absolute error, °", of="recordings"),
            "Share of recordings at or below an error.",
            legend,
        ),
        Figure(
            "Decision time",
            plots.cdf(decisions, "ms per decision", of="decisions", is_log=True),
            "Share of decisions at or below a time; of a batch each counts as long as the batch.",
            legend,
        ),
    )


def _over_horizon(summary: Mapping[str, Any], arm: str, colours: Mapping[str, int]) -> Series:
    steps = next(one["mae_deg"]["by_step"] for one in summary["arms"] if one["arm"] == arm)
    return _steps(arm, colours[arm], steps, "°")


def _against_base(run: PredictionRun, arm: str, colours: Mapping[str, int]) -> Series:
    own, base = (
        {row.recording: row for row in run.of_arm(name) if row.samples} for name in (arm, run.base)
    )
    common = [name for name in own if name in base]
    if not common:
        return Series(arm, colours[arm], ())
    ours, theirs = (_by_step([rows[name] for name in common]) for rows in (own, base))
    if ours.shape != theirs.shape or not theirs.all():
        return Series(arm, colours[arm], ())
    percents = (ours / theirs - 1) * PERCENT
    shown = np.where(percents <= MOST_WORSE_PERCENT, percents, np.nan)
    return _steps(arm, colours[arm], shown.tolist(), " %")


def _by_step(rows: Sequence[PredictionRecord]) -> FloatArray:
    """``(horizon,)`` mean over all windows and axes."""
    axes = [np.array([row.roll_mae_deg, row.pitch_mae_deg, row.yaw_mae_deg]) for row in rows]
    by_step: FloatArray = np.average(
        np.stack([one.mean(0) for one in axes]), axis=0, weights=[row.samples for row in rows]
    )
    return by_step


def _steps(arm: str, colour: int, values: Sequence[float], unit: str) -> Series:
    points = [
        ((step + 1) * SAMPLE_S, value) for step, value in enumerate(values) if not math.isnan(value)
    ]
    titles = [f"{arm}, {ahead_s:.1f} s ahead: {fixed(value, 2)}{unit}" for ahead_s, value in points]
    times_s = [ahead_s for ahead_s, _ in points]
    return Series(arm, colour, times_s, others=[value for _, value in points], titles=titles)
