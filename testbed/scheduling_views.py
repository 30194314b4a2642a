"""One result folder of task ``scheduling`` as the report shows it: facts, table and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed import plots
from testbed.comparison import compare_means
from testbed.plots import Series
from testbed.report_elements import (
    PERCENT,
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
    includes_zero,
    interval_cell,
    interval_text,
    scaled,
)
from testbed.report_facts import Facts, documents, known, machine_facts
from testbed.result_rows import (
    ENVIRONMENT,
    EXPERIMENT,
    played_arms,
    read_json_object,
    read_records,
    read_toml,
)
from testbed.scheduling_network import Samples, network_tables, read_link_samples
from testbed.scheduling_records import SchedulingSessionRecord
from testbed.scheduling_results import by_seed, mean_jct_s, summarize_sessions
from testbed.svg import fixed, significant

COLUMNS = (
    *("mean JCT s", "95 % interval", "p95 s", "p99 s", "makespan s", "queueing s"),
    *("in use %", "decisions", "decision ms p50", "p99", "fallbacks", "failed"),
)
#: The arm that the others are compared with, if it was played: the one to beat.
USUAL_BASE = "fair"
#: Points of a distribution; more would be finer than a pixel.
_MOST_POINTS = 600


@dataclass(frozen=True, kw_only=True)
class SchedulingRun:
    """Everything in one result folder.

    Attributes:
        folder: where it was read.
        driver: of the sessions.
        arms: labels in the order of the experiment.
        sessions: one per arm and seed.
        experiment: content of ``experiment.toml``; empty without one.
        environment: content of ``environment.json``; empty without one.
        links: what the links carried; empty without a network.
    """

    folder: Path
    driver: str
    arms: tuple[str, ...]
    sessions: tuple[SchedulingSessionRecord, ...]
    experiment: Mapping[str, Any]
    environment: Mapping[str, Any]
    links: Samples

    def of_arm(self, arm: str) -> tuple[SchedulingSessionRecord, ...]:
        """Sessions of an arm that ended well."""
        return tuple(row for row in self.sessions if row.arm == arm and row.status == "ok")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that were played, sorted."""
        return tuple(sorted({row.seed for row in self.sessions}))

    @property
    def base(self) -> str:
        """The arm that the others are compared with; empty without any."""
        controllers = {row.arm: row.controller for row in self.sessions}
        usual = (arm for arm in self.arms if controllers[arm] == USUAL_BASE)
        return next(usual, self.arms[0] if self.arms else "")


def read_run(folder: Path) -> SchedulingRun:
    """Reads a result folder.

    Raises:
        ResultsError: no sessions, or a malformed file; names file and line.
    """
    experiment = read_toml(folder / EXPERIMENT)
    sessions = read_records(folder, SchedulingSessionRecord)
    return SchedulingRun(
        folder=folder,
        driver=sessions[0].driver if sessions else str(experiment.get("driver", "")),
        arms=played_arms(experiment, sessions),
        sessions=sessions,
        experiment=experiment,
        environment=read_json_object(folder / ENVIRONMENT),
        links=read_link_samples(folder),
    )


def run_view(run: SchedulingRun, label: str, colours: Mapping[str, int]) -> RunView:
    """Everything the report says about one run; ``colours`` has a number per arm."""
    summary = summarize_sessions(run.experiment, run.sessions)
    return RunView(
        label=label,
        facts=_facts(run),
        headline=_headline(summary),
        arm_tables=(ArmTable(COLUMNS, arm_rows(run.arms, _entries(summary), colours)),),
        figures=_figures(run, summary, colours),
        link=LinkSection("", ()),
        tables=tuple(network_tables(run.arms, run.sessions)),
        failed=tuple(
            Failure(row.arm, f"seed {row.seed}", counted(row.decisions, "decision"), row.error)
            for row in run.sessions
            if row.status == "failed"
        ),
        documents=documents(run.experiment, run.environment),
    )


def compare_runs(
    runs: Sequence[SchedulingRun], labels: Sequence[str], colours: Mapping[str, int]
) -> Comparison:
    """Every arm that all runs share, on the seeds that it ended well on in all of them."""
    return compare_means(
        runs,
        labels,
        colours,
        arms_of=lambda run: run.arms,
        by_unit=lambda run, arm: by_seed(run.of_arm(arm), mean_jct_s),
        units="seeds",
        what="mean JCT s",
        decimals=2,
    )


def _facts(run: SchedulingRun) -> Facts:
    experiment = run.experiment
    failed = sum(row.status == "failed" for row in run.sessions)
    jobs = max((len(row.jobs) for row in run.sessions), default=0)
    is_drawn = "episode" not in experiment and "arrival_mean_s" in experiment
    executors = sorted({row.executors for row in run.sessions})
    return known(
        (
            ("task", "scheduling"),
            ("driver", run.driver),
            ("jobs", str(experiment.get("episode") or experiment.get("jobs", ""))),
            ("jobs per session", str(jobs or "")),
            ("executors", ", ".join(map(str, executors))),
            ("arrivals", str(experiment.get("arrivals", "")) if is_drawn else "recorded"),
            ("mean gap", f"{experiment['arrival_mean_s']:g} s" if is_drawn else ""),
            ("seeds", ", ".join(map(str, run.seeds))),
            ("thinking time", _thinking(experiment)),
            ("network", _network(run)),
            ("sessions", f"{len(run.sessions)}, {failed} failed"),
            *(one for one in machine_facts(experiment, run.environment) if one[0] != "seed"),
        )
    )


def _thinking(experiment: Mapping[str, Any]) -> str:
    wanted = experiment.get("simulation", {}).get("decision_s", "")
    if wanted == "auto":
        return "not charged"
    return f"{wanted:g} s" if isinstance(wanted, int | float) else str(wanted)


def _network(run: SchedulingRun) -> str:
    fabric = run.experiment.get("fabric", {})
    backends = {row.network.backend for row in run.sessions if row.network is not None}
    if not backends:
        return ""
    told = str(fabric.get("shape", "star"))
    if run.driver == "emulated":
        told += f", 1 s in {run.experiment.get('time_scale', 1):g} s"
    return f"{told}, {', '.join(sorted(backends))}"


def _headline(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Which arm is ahead, of which, and whether the seeds suffice to say so."""
    ranked = sorted(
        (arm for arm in summary["arms"] if arm["jct_s"]["mean"] is not None),
        key=lambda arm: float(arm["jct_s"]["mean"]),
    )
    if not ranked:
        return ("No session ended well.",)
    best = ranked[0]
    told = f"{fixed(best['jct_s']['mean'], 1)} s{interval_text(best['jct_s']['ci95'], 1)}"
    said = [f"{best['arm']} has the lowest mean job completion time: {told}."]
    for other in ranked[1:]:
        delta = difference(summary["pairs"], str(best["arm"]), str(other["arm"]))
        if delta is None or delta.mean is None:
            continue
        verdict = "; these seeds cannot tell the two apart" if includes_zero(delta) else ""
        said.append(
            f"Against {other['arm']}: {fixed(delta.mean, 1, sign=True)} s"
            f"{interval_text(delta.ci95, 1)} over {counted(delta.n, 'paired seed')}{verdict}."
        )
    return tuple(said)


def _entries(summary: Mapping[str, Any]) -> list[list[Entry]]:
    table = []
    for arm in summary["arms"]:
        jct, last, decision = arm["jct_s"], arm["makespan_s"]["mean"], arm["decision_ms"]
        table.append(
            [
                Entry(fixed(jct["mean"], 2), jct["mean"], -1),
                Entry(interval_cell(jct["ci95"], 1)),
                *(Entry(fixed(jct[key], 1), jct[key], -1) for key in ("p95", "p99")),
                Entry(fixed(last, 0), last, -1),
                Entry(fixed(arm["queueing_s"], 2), arm["queueing_s"], -1),
                Entry(fixed(scaled(arm["utilisation"], PERCENT), 0)),
                Entry(str(arm["decisions"])),
                Entry(significant(decision["p50"])),
                Entry(significant(decision["p99"])),
                Entry(str(arm["fallbacks"])),
                Entry(f"{arm['failed']} of {arm['sessions']}"),
            ]
        )
    return table


def _figures(
    run: SchedulingRun, summary: Mapping[str, Any], colours: Mapping[str, int]
) -> tuple[Figure, ...]:
    means, times, decisions = [], [], []
    for arm in run.arms:
        rows = run.of_arm(arm)
        found = by_seed(rows, mean_jct_s)
        titles = [f"seed {seed}\n{fixed(value, 2)} s" for seed, value in found.items()]
        means.append(Series(arm, colours[arm], list(found.values()), titles=titles))
        jct_s = [job.jct_s for row in rows for job in row.jobs]
        times.append(Series(arm, colours[arm], thinned(jct_s)))
        asked_ms = [value for row in rows for value in row.decisions_ms]
        decisions.append(Series(arm, colours[arm], thinned(asked_ms)))
    deltas = [
        (arm, delta)
        for arm in run.arms
        if arm != run.base and (delta := difference(summary["pairs"], arm, run.base)) is not None
    ]
    estimates = [estimate_of(arm["sessions"], arm["jct_s"]) for arm in summary["arms"]]
    legend = tuple(means)
    return (
        Figure(
            f"Difference to {run.base}",
            plots.forest(deltas, f"mean JCT less that of {run.base}, s"),
            "Seed by seed; left of zero the arm is better. Filled where the 95 % interval "
            "excludes zero.",
        ),
        Figure(
            "Mean completion time of each seed",
            plots.strips(means, estimates, "mean job completion time, s"),
            "One dot per seed; above it the mean with its 95 % interval. Seeds differ more than "
            "arms do, so compare the differences.",
        ),
        Figure(
            "Distribution of completion times",
            plots.cdf(times, "job completion time, s", of="jobs", is_log=True),
            "Share of the jobs of all seeds that are finished within a time.",
            legend,
        ),
        Figure(
            "Decision time",
            plots.cdf(decisions, "ms from question to answer", of="decisions", is_log=True),
            "Share of decisions at or below a time, really taken.",
            legend,
        ),
    )


def thinned(values: Sequence[float]) -> list[float]:
    """Values with about the same distribution, few enough to be drawn."""
    if len(values) <= _MOST_POINTS:
        return list(values)
    shares = (np.arange(_MOST_POINTS) + 0.5) / _MOST_POINTS
    quantiles: list[float] = np.quantile(values, shares).tolist()
    return [min(values), *quantiles, max(values)]
