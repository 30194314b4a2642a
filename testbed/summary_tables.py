"""The tables that the command line prints of a summary, one per task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Arm = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, and what it shows of an arm."""

    heading: str
    cell: Callable[[Arm], str]


@dataclass(frozen=True, slots=True)
class SummaryTable:
    """How a task's summary is shown.

    Attributes:
        columns: behind the arm's label.
        rank: sorts arms, the best first.
        difference: a pair's difference in words.
    """

    columns: tuple[Column, ...]
    rank: Callable[[Arm], float]
    difference: Callable[[Mapping[str, Any]], str]


def summary_table(summary: Mapping[str, Any]) -> SummaryTable:
    """The table for a summary."""
    if summary["task"] == "abr":
        is_live = any("latency_s" in arm for arm in summary["arms"])
        return _LIVE_ABR if is_live else _ABR
    if summary["task"] == "scheduling":
        return _JOBS
    return _PREDICTIONS if summary["driver"] == "offline" else _VIEWERS


def number(value: float | None, pattern: str = "{:.3f}") -> str:
    """The value, or a dash where nothing was measured."""
    return "–" if value is None else pattern.format(value)


def interval(bounds: Sequence[float] | None, pattern: str = "{:.3f}") -> str:
    """The bounds in brackets."""
    if bounds is None:
        return "[–]"
    return "[" + ", ".join(pattern.format(bound) for bound in bounds) + "]"


def _mean(key: str, pattern: str = "{:.3f}") -> Callable[[Arm], str]:
    return lambda arm: number(arm[key]["mean"], pattern)


def _interval(key: str, pattern: str = "{:.3f}") -> Callable[[Arm], str]:
    return lambda arm: interval(arm[key]["ci95"], pattern)


def _plain(key: str, pattern: str) -> Callable[[Arm], str]:
    return lambda arm: number(arm[key], pattern)


def _rank(key: str, sign: float) -> Callable[[Arm], float]:
    def rank(arm: Arm) -> float:
        mean = arm[key]["mean"]
        return float("inf") if mean is None else sign * float(mean)

    return rank


def _decision(arm: Arm) -> str:
    took = arm["decision_ms"]
    return f"{number(took['p50'], '{:.1f}')}/{number(took['p99'], '{:.1f}')} ms"


def _quick_decision(arm: Arm) -> str:
    """Of rules that take microseconds."""
    took = arm["decision_ms"]
    return f"{number(took['p50'], '{:.2f}')}/{number(took['p99'], '{:.2f}')} ms"


def _wasted(arm: Arm) -> str:
    """Share of the bytes that nobody looked at."""
    used, wasted = arm["bytes_used"], arm["bytes_wasted"]
    return number(wasted / (used + wasted) if used or wasted else None, "{:.0%}")


def _signed(estimate: Mapping[str, Any], pattern: str = "{:+.3f}") -> str:
    return f"{number(estimate['mean'], pattern)} {interval(estimate['ci95'], pattern)}"


def _of_traces(pair: Mapping[str, Any]) -> str:
    return f"{_signed(pair['delta'])} over {pair['n']} traces"


def _of_seeds(pair: Mapping[str, Any]) -> str:
    relative = _signed(pair["relative"], "{:+.1%}")
    return f"{_signed(pair['delta'], '{:+.2f}')} s, {relative} over {pair['n']} seeds"


def _of_recordings(pair: Mapping[str, Any]) -> str:
    return f"{_signed(pair['delta'])}° over {pair['n']} recordings"


def _of_viewers(pair: Mapping[str, Any]) -> str:
    return (
        f"level {_signed(pair['delta'], '{:+.2f}')}, blank "
        f"{_signed(pair['blank_ratio'], '{:+.1%}')} over {pair['n']}"
    )


_ABR = SummaryTable(
    (
        Column("QoE/chunk", _mean("qoe_per_chunk")),
        Column("95 % interval", _interval("qoe_per_chunk")),
        Column("kbit/s", _plain("bitrate_kbps", "{:.0f}")),
        Column("stalled", _plain("rebuffer_ratio", "{:.2%}")),
        Column("decision p50/p99", _decision),
    ),
    _rank("qoe_per_chunk", -1.0),
    _of_traces,
)
_LIVE_ABR = dataclasses.replace(
    _ABR, columns=(*_ABR.columns, Column("latency s", _mean("latency_s", "{:.2f}")))
)
_PREDICTIONS = SummaryTable(
    (
        Column("MAE °", _mean("mae_deg")),
        Column("95 % interval", _interval("mae_deg")),
        Column(
            "roll/pitch/yaw °",
            lambda arm: "/".join(
                number(arm["mae_deg"][axis], "{:.1f}") for axis in ("roll", "pitch", "yaw")
            ),
        ),
        Column("gaze °", _plain("great_circle_deg", "{:.2f}")),
        Column("decision", _decision),
    ),
    _rank("mae_deg", 1.0),
    _of_recordings,
)
_JOBS = SummaryTable(
    (
        Column("JCT s", _mean("jct_s", "{:.1f}")),
        Column("95 % interval", _interval("jct_s", "{:.1f}")),
        Column("p95 s", lambda arm: number(arm["jct_s"]["p95"], "{:.0f}")),
        Column("last s", _mean("makespan_s", "{:.0f}")),
        Column("used", _plain("utilisation", "{:.0%}")),
        Column("decision", _quick_decision),
    ),
    _rank("jct_s", 1.0),
    _of_seeds,
)
_VIEWERS = SummaryTable(
    (
        Column("level", _mean("viewport_level", "{:.2f}")),
        Column("95 % interval", _interval("viewport_level", "{:.2f}")),
        Column("kbit/s", _mean("viewport_bitrate_kbps", "{:.0f}")),
        Column("blank", _mean("blank_ratio", "{:.1%}")),
        Column("wasted", _wasted),
        Column("MAE °", _mean("mae_deg", "{:.1f}")),
        Column("decision", _decision),
    ),
    _rank("viewport_level", -1.0),
    _of_viewers,
)
