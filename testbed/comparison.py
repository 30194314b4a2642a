"""Several runs of one experiment side by side, each against the first: the report's comparison."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from testbed import plots
from testbed.plots import Series
from testbed.report_elements import (
    PERCENT,
    ArmRow,
    Cell,
    Comparison,
    Entry,
    Figure,
    arm_rows,
    interval_cell,
    scaled,
)
from testbed.results import Results, mean_bitrate_kbps, rebuffer_ratio
from testbed.statistics import mean, paired_delta_ci
from testbed.svg import fixed

RunT = TypeVar("RunT")
UnitT = TypeVar("UnitT", bound=Hashable)


def compare_means(
    runs: Sequence[RunT],
    labels: Sequence[str],
    colours: Mapping[str, int],
    *,
    arms_of: Callable[[RunT], Sequence[str]],
    by_unit: Callable[[RunT, str], Mapping[UnitT, float]],
    units: str,
    what: str,
    decimals: int,
) -> Comparison:
    """The mean of one figure for every arm that all runs share, and its paired differences.

    Args:
        runs: the first is what the others are compared with.
        labels: of the runs.
        colours: a number per arm.
        arms_of: arms of a run.
        by_unit: the figure of an arm for each unit that it ended well on; those that all runs have
            count.
        units: what these are called, in the plural.
        what: the figure's name and unit.
        decimals: in the table.
    """
    shared = [arm for arm in arms_of(runs[0]) if all(arm in arms_of(run) for run in runs)]
    columns = [units, *(f"{what} {label}" for label in labels)]
    for label in labels[1:]:
        columns += [f"{label} − {labels[0]}", "95 % interval"]
    table = []
    for arm in shared:
        found = [by_unit(run, arm) for run in runs]
        common = [unit for unit in found[0] if all(unit in one for one in found)]
        values = [[one[unit] for unit in common] for one in found]
        texts = [str(len(common)), *(fixed(mean(one), decimals) for one in values)]
        for other in values[1:]:
            delta = paired_delta_ci(other, values[0])
            texts += [fixed(delta.mean, decimals, sign=True), interval_cell(delta.ci95, decimals)]
        table.append([Entry(text) for text in texts])
    return Comparison(labels[0], tuple(columns), arm_rows(shared, table, colours), ())


def compare_runs(
    runs: Sequence[Results], labels: Sequence[str], colours: Mapping[str, int]
) -> Comparison:
    """Every arm that all runs share, on the traces that it ended well on in all of them."""
    shared = [arm for arm in runs[0].arms if all(arm in run.arms for run in runs)]
    columns = ["traces", *(f"QoE {label}" for label in labels)]
    for label in labels[1:]:
        columns += [f"{label} − {labels[0]}", "95 % interval", "difference %"]
    columns += [f"stalled % {label}" for label in labels]
    columns += [f"bitrate kbit/s {label}" for label in labels]
    return Comparison(
        base=labels[0],
        columns=tuple(columns),
        rows=tuple(ArmRow(arm, colours[arm], _cells(runs, arm)) for arm in shared),
        figures=tuple(
            Figure(
                f"QoE per trace: {label} over {labels[0]}",
                plots.scatter(
                    [_trace_pairs(runs[0], other, arm, colours[arm]) for arm in shared],
                    f"QoE per chunk, {labels[0]}",
                    f"QoE per chunk, {label}",
                    is_diagonal=True,
                ),
                "One dot per arm and trace; on the dashed line both runs agree.",
                tuple(Series(arm, colours[arm], ()) for arm in shared),
            )
            for label, other in zip(labels[1:], runs[1:], strict=True)
        ),
    )


def _cells(runs: Sequence[Results], arm: str) -> tuple[Cell, ...]:
    by_trace = [run.qoe_of_arm(arm) for run in runs]
    common = [trace for trace in by_trace[0] if all(trace in other for other in by_trace)]
    values = [[qoe[trace] for trace in common] for qoe in by_trace]
    texts = [str(len(common)), *(fixed(mean(one), 3) for one in values)]
    for other in values[1:]:
        delta = paired_delta_ci(other, values[0])
        texts += [
            fixed(delta.mean, 3, sign=True),
            interval_cell(delta.ci95),
            fixed(_difference_percent(mean(values[0]), mean(other)), 1, sign=True),
        ]
    kept = [[row for row in run.of_arm(arm) if row.trace in common] for run in runs]
    texts += [fixed(scaled(rebuffer_ratio(rows), PERCENT), 2) for rows in kept]
    texts += [fixed(mean([mean_bitrate_kbps(row) for row in rows]), 0) for rows in kept]
    return tuple(map(Cell, texts))


def _difference_percent(base: float | None, other: float | None) -> float | None:
    if base is None or other is None or base == 0:
        return None
    return (other - base) / abs(base) * PERCENT


def _trace_pairs(base: Results, other: Results, arm: str, colour: int) -> Series:
    first, second = base.qoe_of_arm(arm), other.qoe_of_arm(arm)
    common = [trace for trace in first if trace in second]
    return Series(
        arm,
        colour,
        [first[name] for name in common],
        others=[second[name] for name in common],
        titles=[f"{arm}, {name}" for name in common],
    )
