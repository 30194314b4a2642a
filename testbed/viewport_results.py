"""Condenses a result folder of task ``viewport`` for ``summary.json``.

Without streaming, an arm's error is the mean over all windows of all recordings together, as
published; its interval is the bootstrap over recordings, each drawn again with all its windows, so
that a recording counts by the number of them. With streaming every session counts the same, and
what is drawn again is a recording on a trace. Recordings are taken as independent, although some
are of one viewer or of one video.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from player.trace import FloatArray
from player.viewport_records import PredictionRecord, ViewportSessionRecord
from testbed.result_rows import (
    EXPERIMENT,
    median_and_max,
    played_arms,
    read_records,
    read_toml,
)
from testbed.session_records import place_of
from testbed.statistics import mean, mean_ci, paired_delta_ci, percentile

OFFLINE = "offline"
AXES = ("roll", "pitch", "yaw")

Figure = Callable[[ViewportSessionRecord], float | None]


def summarize_viewport(folder: Path) -> dict[str, Any]:
    """The content of ``summary.json``. Failed sessions count as failed and in nothing else.

    Raises:
        ResultsError: the folder cannot be read.
    """
    experiment = read_toml(folder / EXPERIMENT)
    if experiment.get("driver") == OFFLINE:
        return summarize_predictions(experiment, read_records(folder, PredictionRecord))
    return summarize_streaming(experiment, read_records(folder, ViewportSessionRecord))


# ---- without streaming --------------------------------------------------------------------------


def summarize_predictions(
    experiment: Mapping[str, Any], rows: Sequence[PredictionRecord]
) -> dict[str, Any]:
    """Errors of the predictions, per arm and in pairs."""
    arms = played_arms(experiment, rows)
    usable = {
        arm: {row.recording: row for row in rows if row.arm == arm and _is_usable(row)}
        for arm in arms
    }
    return {
        "task": "viewport",
        "driver": OFFLINE,
        "arms": [
            _summarize_predictor(arm, [row for row in rows if row.arm == arm], usable[arm])
            for arm in arms
        ],
        "pairs": [
            _pair_of_predictors(a, b, usable[a], usable[b])
            for a, b in itertools.combinations(arms, 2)
        ],
    }


def mae_deg(row: PredictionRecord) -> float:
    """Mean over the windows of a recording, steps and axes; there must be a window."""
    return float(_errors(row).mean())


def _errors(row: PredictionRecord) -> FloatArray:
    """``(3, horizon)``."""
    return np.array([row.roll_mae_deg, row.pitch_mae_deg, row.yaw_mae_deg])


def _is_usable(row: PredictionRecord) -> bool:
    return row.status == "ok" and row.samples > 0


def _summarize_predictor(
    arm: str, everything: Sequence[PredictionRecord], usable: Mapping[str, PredictionRecord]
) -> dict[str, Any]:
    rows = list(usable.values())
    samples = [row.samples for row in rows]
    estimate = mean_ci([mae_deg(row) for row in rows], weights=samples)
    axes = dict(zip(AXES, _pooled([_errors(row).mean(1) for row in rows], samples), strict=False))
    decisions = [value for row in everything for value in row.decisions_ms]
    angles = _pooled([np.array(row.great_circle_deg) for row in rows], samples)
    return {
        "arm": arm,
        "sessions": len(everything),
        "failed": sum(row.status == "failed" for row in everything),
        "samples": sum(samples),
        "mae_deg": estimate.as_json()
        | {axis: axes.get(axis) for axis in AXES}
        | {
            "by_step": _pooled([_errors(row).mean(0) for row in rows], samples),
        },
        "great_circle_deg": mean(angles),
        "decision_ms": {"p50": percentile(decisions, 50), "p99": percentile(decisions, 99)},
        "fallbacks": sum(row.fallbacks for row in everything),
    }


def _pooled(values: Sequence[FloatArray], samples: Sequence[int]) -> list[float]:
    """Mean over all windows, element by element; empty without any."""
    if not values:
        return []
    pooled: list[float] = np.average(np.stack(values), axis=0, weights=samples).tolist()
    return pooled


def _pair_of_predictors(
    a: str, b: str, of_a: Mapping[str, PredictionRecord], of_b: Mapping[str, PredictionRecord]
) -> dict[str, Any]:
    common = [name for name in of_a if name in of_b]
    delta = paired_delta_ci(
        [mae_deg(of_a[name]) for name in common],
        [mae_deg(of_b[name]) for name in common],
        weights=[of_a[name].samples for name in common],
    )
    return {"a": a, "b": b, "n": delta.n, "delta": delta.as_json()}


# ---- streaming ----------------------------------------------------------------------------------

#: What arms are compared by, besides the level.
_COMPARED: Mapping[str, Figure] = {
    "viewport_bitrate_kbps": lambda row: row.viewport_bitrate_kbps,
    "blank_ratio": lambda row: row.blank_ratio,
    "mae_deg": lambda row: row.mae_deg,
}
_ESTIMATED: Mapping[str, Figure] = {
    "viewport_level": lambda row: row.viewport_level,
    **_COMPARED,
}
_AVERAGED: Mapping[str, Figure] = {
    "stall_s": lambda row: row.stall_s,
    "startup_s": lambda row: row.startup_s,
    "bytes_used": lambda row: row.bytes_used,
    "bytes_wasted": lambda row: row.bytes_wasted,
}


def summarize_streaming(
    experiment: Mapping[str, Any], rows: Sequence[ViewportSessionRecord]
) -> dict[str, Any]:
    """What viewers saw, per arm and in pairs."""
    arms = played_arms(experiment, rows)
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in arms}
    links = {place_of(row)[:2]: row.link for row in rows}.values()
    return {
        "task": "viewport",
        "driver": rows[0].driver if rows else str(experiment.get("driver", "")),
        "arms": [_summarize_viewers(arm, by_arm[arm]) for arm in arms],
        "pairs": [
            _pair_of_viewers(a, b, by_arm[a], by_arm[b]) for a, b in itertools.combinations(arms, 2)
        ],
        "link": {
            "wire_nmae_1s": median_and_max([link.wire_nmae_1s for link in links]),
            "up_wire_nmae_1s": median_and_max([link.up_wire_nmae_1s for link in links]),
        },
    }


def by_unit(rows: Sequence[ViewportSessionRecord], figure: Figure) -> dict[str, float]:
    """A figure of the sessions that ended well, by recording and trace.

    Players of one arm that shared a bottleneck are one observation together: their mean.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.status == "ok" and (value := figure(row)) is not None:
            found.setdefault(place_of(row).unit, []).append(value)
    return {unit: sum(values) / len(values) for unit, values in found.items()}


def _summarize_viewers(arm: str, rows: Sequence[ViewportSessionRecord]) -> dict[str, Any]:
    well = [row for row in rows if row.status == "ok"]
    decisions = [value for row in well for value in row.decisions_ms]
    return {
        "arm": arm,
        "sessions": len(rows),
        "failed": len(rows) - len(well),
        **{
            name: mean_ci(list(by_unit(rows, figure).values())).as_json()
            for name, figure in _ESTIMATED.items()
        },
        **{
            name: mean([value for row in well if (value := figure(row)) is not None])
            for name, figure in _AVERAGED.items()
        },
        "decision_ms": {"p50": percentile(decisions, 50), "p99": percentile(decisions, 99)},
        "fallbacks": sum(row.fallbacks for row in rows),
    }


def _pair_of_viewers(
    a: str,
    b: str,
    rows_of_a: Sequence[ViewportSessionRecord],
    rows_of_b: Sequence[ViewportSessionRecord],
) -> dict[str, Any]:
    deltas = {}
    for name, figure in _ESTIMATED.items():
        of_a, of_b = by_unit(rows_of_a, figure), by_unit(rows_of_b, figure)
        common = [unit for unit in of_a if unit in of_b]
        deltas[name] = paired_delta_ci(
            [of_a[unit] for unit in common], [of_b[unit] for unit in common]
        )
    level = deltas["viewport_level"]
    return {
        "a": a,
        "b": b,
        "n": level.n,
        "delta": level.as_json(),
        **{name: deltas[name].as_json() for name in _COMPARED},
    }
