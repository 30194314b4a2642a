"""Condenses a result folder of task ``scheduling`` for ``summary.json``.

The mean completion time of a seed is one observation: jobs of a seed wait for one another. Seeds
differ far more than schedulers do, so arms are compared seed by seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.result_rows import EXPERIMENT, played_arms, read_records, read_toml
from testbed.scheduling_records import SchedulingSessionRecord
from testbed.statistics import mean, mean_ci, paired_delta_ci, percentile

Figure = Callable[[SchedulingSessionRecord], float | None]


def summarize_scheduling(folder: Path) -> dict[str, Any]:
    """The content of ``summary.json``. Failed sessions count as failed and in nothing else.

    Raises:
        ResultsError: the folder cannot be read.
    """
    experiment = read_toml(folder / EXPERIMENT)
    return summarize_sessions(experiment, read_records(folder, SchedulingSessionRecord))


def summarize_sessions(
    experiment: Mapping[str, Any], rows: Sequence[SchedulingSessionRecord]
) -> dict[str, Any]:
    """How long jobs took, per arm and in pairs."""
    arms = played_arms(experiment, rows)
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in arms}
    return {
        "task": "scheduling",
        "driver": rows[0].driver if rows else str(experiment.get("driver", "")),
        "arms": [_summarize_arm(arm, by_arm[arm]) for arm in arms],
        "pairs": [_pair(a, b, by_arm[a], by_arm[b]) for a, b in itertools.combinations(arms, 2)],
    }


def by_seed(rows: Sequence[SchedulingSessionRecord], figure: Figure) -> dict[int, float]:
    """A figure of the sessions that ended well."""
    return {
        row.seed: value for row in rows if row.status == "ok" and (value := figure(row)) is not None
    }


def mean_jct_s(row: SchedulingSessionRecord) -> float | None:
    """Mean job completion time of a session."""
    return None if row.jct_s is None else row.jct_s.mean


def p95_jct_s(row: SchedulingSessionRecord) -> float | None:
    """Time that 95 % of the jobs of a session stay at or below."""
    return None if row.jct_s is None else row.jct_s.p95


def makespan_s(row: SchedulingSessionRecord) -> float | None:
    """When the last job of a session was finished."""
    return row.makespan_s


#: What arms are compared by, besides the mean completion time.
_COMPARED: Mapping[str, Figure] = {"p95_s": p95_jct_s, "makespan_s": makespan_s}


def _summarize_arm(arm: str, rows: Sequence[SchedulingSessionRecord]) -> dict[str, Any]:
    well = [row for row in rows if row.status == "ok"]
    jct_s = [job.jct_s for row in well for job in row.jobs]
    queueing_s = [row.queueing_s.mean for row in well if row.queueing_s is not None]
    decisions = [value for row in well for value in row.decisions_ms]
    return {
        "arm": arm,
        "sessions": len(rows),
        "failed": len(rows) - len(well),
        "jobs": len(jct_s),
        "jct_s": mean_ci(list(by_seed(rows, mean_jct_s).values())).as_json()
        | {f"p{percent}": percentile(jct_s, percent) for percent in (50, 95, 99)},
        "makespan_s": mean_ci(list(by_seed(rows, makespan_s).values())).as_json(),
        "queueing_s": mean(queueing_s),
        "utilisation": mean([row.utilisation for row in well if row.utilisation is not None]),
        "decisions": sum(row.decisions for row in well),
        "events": sum(row.events for row in well),
        "wall_s": sum(row.wall_s for row in well),
        "decision_ms": {"p50": percentile(decisions, 50), "p99": percentile(decisions, 99)},
        "fallbacks": sum(row.fallbacks for row in rows),
        "network": _summarize_network(well),
    }


def _summarize_network(rows: Sequence[SchedulingSessionRecord]) -> dict[str, Any] | None:
    """Sums over the sessions, and how live ones compare with simulation; None: no network."""
    networks = [row.network for row in rows if row.network is not None]
    if not networks:
        return None
    ratios = [
        row.jct_s.mean / row.network.simulated.jct_s
        for row in rows
        if row.jct_s is not None and row.network is not None and row.network.simulated is not None
    ]
    return {
        "planned_bytes": sum(one.planned_bytes for one in networks),
        "local_bytes": sum(one.local_bytes for one in networks),
        "remote_bytes": sum(one.remote_bytes for one in networks),
        "wasted_bytes": sum(one.wasted_bytes for one in networks),
        "reruns": sum(one.reruns for one in networks),
        "lost": sum(len(one.lost) for one in networks),
        "held_s": sum(one.held_s for one in networks),
        "jct_against_simulation": mean_ci(ratios).as_json() if ratios else None,
    }


def _pair(
    a: str,
    b: str,
    rows_of_a: Sequence[SchedulingSessionRecord],
    rows_of_b: Sequence[SchedulingSessionRecord],
) -> dict[str, Any]:
    of_a, of_b = by_seed(rows_of_a, mean_jct_s), by_seed(rows_of_b, mean_jct_s)
    common = [seed for seed in of_a if seed in of_b]
    delta = paired_delta_ci([of_a[seed] for seed in common], [of_b[seed] for seed in common])
    others = {}
    for name, figure in _COMPARED.items():
        values_a, values_b = by_seed(rows_of_a, figure), by_seed(rows_of_b, figure)
        others[name] = paired_delta_ci(
            [values_a[seed] for seed in common], [values_b[seed] for seed in common]
        )
    relative = mean_ci([of_a[seed] / of_b[seed] - 1 for seed in common if of_b[seed]])
    return {
        "a": a,
        "b": b,
        "n": delta.n,
        "delta": delta.as_json(),
        "relative": relative.as_json(),
        **{name: one.as_json() for name, one in others.items()},
    }
