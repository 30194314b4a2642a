"""One result folder as the report shows it: facts, table and charts, ready for the template."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from player.records import SessionRecord
from testbed import plots
from testbed.experiment_sections import LinkConfig
from testbed.plots import Parts, Series
from testbed.report_network import Table, network_tables
from testbed.results import Results, decisions_ms, qoe_parts, summarize
from testbed.statistics import Estimate, mean_ci
from testbed.svg import fixed, significant

PERCENT = 100.0
#: The bar that a link has to pass: a wire error of 1 % in bins of 1 s.
LINK_BAR_PERCENT = 1.0

COLUMNS = (
    "QoE per chunk",
    "95 % interval",
    "bitrate kbit/s",
    "stalled %",
    "switch kbit/s",
    "start-up s",
    "decision ms p50",
    "p99",
    "fallbacks",
    "failed",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its words; without a chart it says why there is none."""

    title: str
    chart: Markup | None
    note: str
    legend: tuple[Series, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table; ``share`` colours it, from 0 to 1."""

    text: str
    is_best: bool = False
    share: float | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One row of a table with a row per arm."""

    label: str
    colour: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class RunView:
    """One result folder as the template shows it."""

    label: str
    facts: tuple[tuple[str, str], ...]
    headline: tuple[str, ...]
    columns: tuple[str, ...]
    table: tuple[ArmRow, ...]
    figures: tuple[Figure, ...]
    link_figures: tuple[Figure, ...]
    link_facts: str
    tables: tuple[Table, ...]
    failed: tuple[SessionRecord, ...]
    documents: tuple[tuple[str, str], ...]


def run_view(run: Results, label: str, colours: Mapping[str, int]) -> RunView:
    """Everything the report says about one run; ``colours`` has a number per arm."""
    summary = summarize(run)
    estimates = {
        arm["arm"]: _estimate(len(run.qoe_of_arm(arm["arm"])), arm["qoe_per_chunk"])
        for arm in summary["arms"]
    }
    errors = summary["link"]["wire_nmae_1s"]
    return RunView(
        label=label,
        facts=_facts(run),
        headline=_headline(summary),
        columns=COLUMNS,
        table=_arm_table(summary, colours),
        figures=_figures(run, summary, estimates, colours),
        link_figures=_link_figures(run, colours),
        link_facts=_link_facts(run, errors["median"], errors["max"]),
        tables=network_tables(run, summary),
        failed=run.failed,
        documents=_documents(run),
    )


def _link_facts(run: Results, median: float | None, worst: float | None) -> str:
    """How exact the links were; empty when none was measured."""
    if median is not None:
        return (
            f"Wire error (NMAE in bins of 1 s) per session: median "
            f"{fixed(scaled(median, PERCENT), 2)} %, worst {fixed(scaled(worst, PERCENT), 2)} %."
        )
    if not run.link_seconds:
        return ""
    return (
        "The queue was seen empty in every second, so less than the trace allowed may be for want "
        "of packets: the wire error cannot be told."
    )


def _facts(run: Results) -> tuple[tuple[str, str], ...]:
    """What was run, as far as the folder tells."""
    experiment, environment = run.experiment, run.environment
    link = experiment.get("link", {})
    backends = ", ".join(dict.fromkeys(row.link.backend for row in run.sessions))
    is_emulated = run.driver == "emulated"
    has_delay = "delay_ms" in link and (is_emulated or link.get("model") == "tcp")
    has_queue = "queue_packets" in link and is_emulated
    chunks = experiment.get("chunks") or max((len(row.chunks) for row in run.sessions), default=0)
    traces = counted(len(run.trace_names), "trace")
    commit = str(environment.get("commit") or "")[:10]
    version = " ".join(filter(None, [str(environment.get("version", "")), commit]))
    system = " ".join(
        str(environment[key]) for key in ("kernel", "machine") if environment.get(key)
    )
    facts = [
        ("task", run.task),
        ("driver", run.driver),
        ("traces", ", ".join(filter(None, [str(experiment.get("traces", "")), traces]))),
        ("video", str(experiment.get("video", {}).get("sizes", ""))),
        ("chunks", str(chunks)),
        ("sessions", f"{len(run.sessions)}, {len(run.failed)} failed"),
        ("link", backends),
        ("one-way delay", f"{link['delay_ms']:g} ms" if has_delay else ""),
        ("queue", f"{link['queue_packets']} packets" if has_queue else ""),
        ("link, besides", _besides(link)),
        ("players per bottleneck", _sharing(experiment)),
        ("background traffic", ", ".join(one["kind"] for one in experiment.get("background", []))),
        ("congestion control", str(link.get("congestion", "")) if is_emulated else ""),
        ("seed", str(experiment.get("seed", ""))),
        ("version", version),
        ("kernel", system),
        ("CPUs", str(environment.get("cpus") or "")),
        ("date", str(environment.get("date") or "").replace("T", " ")),
    ]
    return tuple((key, value) for key, value in facts if value)


def _besides(link: Mapping[str, Any]) -> str:
    """Keys of the link that do not have their default and no line of their own."""
    usual = LinkConfig()
    told = ("backend", "model", "delay_ms", "queue_packets", "congestion")
    found = [
        f"{item.name} {_short(link[item.name])}"
        for item in dataclasses.fields(usual)
        if item.name not in told
        and item.name in link
        and link[item.name] not in (getattr(usual, item.name), [])
    ]
    return ", ".join(found)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "yes"
    return str(len(value)) if isinstance(value, list) else str(value)


def _sharing(experiment: Mapping[str, Any]) -> str:
    network = experiment.get("network", {})
    clients, by = network.get("clients", 1), network.get("shared_by", "arm")
    if by == "all":
        return f"{clients} of every arm"
    return str(clients) if clients > 1 else ""


def _documents(run: Results) -> tuple[tuple[str, str], ...]:
    """Experiment and environment in full, for those who want to repeat the run."""
    documents = []
    if run.experiment:
        documents.append(("experiment", json.dumps(run.experiment, indent=2, default=str)))
    if run.environment:
        documents.append(("environment", json.dumps(run.environment, indent=2)))
    return tuple(documents)


def _headline(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Which arm is ahead, of which, and whether the traces suffice to say so."""
    ranked = sorted(
        (arm for arm in summary["arms"] if arm["qoe_per_chunk"]["mean"] is not None),
        key=lambda arm: -float(arm["qoe_per_chunk"]["mean"]),
    )
    if not ranked:
        return ("No session ended well.",)
    best = ranked[0]
    said = [
        f"{best['arm']} has the highest mean QoE: {fixed(best['qoe_per_chunk']['mean'], 3)} per "
        f"chunk{_interval_text(best['qoe_per_chunk']['ci95'])}."
    ]
    for other in ranked[1:]:
        delta = _delta(summary, str(best["arm"]), str(other["arm"]))
        if delta is None or delta.mean is None:
            continue
        verdict = ""
        if delta.ci95 is not None and delta.ci95[0] <= 0 <= delta.ci95[1]:
            verdict = "; these traces cannot tell the two apart"
        said.append(
            f"Against {other['arm']}: {fixed(delta.mean, 3, sign=True)}"
            f"{_interval_text(delta.ci95)} over {counted(delta.n, 'paired trace')}{verdict}."
        )
    return tuple(said)


def _delta(summary: Mapping[str, Any], a: str, b: str) -> Estimate | None:
    """The difference a − b, whichever way round the summary has it."""
    for pair in summary["pairs"]:
        if {pair["a"], pair["b"]} != {a, b}:
            continue
        one = _estimate(pair["n"], pair["delta"])
        if pair["a"] == a or one.mean is None:
            return one
        flipped = None if one.ci95 is None else (-one.ci95[1], -one.ci95[0])
        return Estimate(one.n, -one.mean, flipped)
    return None


def interval_cell(ci95: Sequence[float] | None) -> str:
    """An interval as a table shows it."""
    return fixed(None, 0) if ci95 is None else f"{fixed(ci95[0], 3)} … {fixed(ci95[1], 3)}"


def _interval_text(ci95: Sequence[float] | None) -> str:
    if ci95 is None:
        return ""
    return f" (95 % interval {fixed(ci95[0], 3)} to {fixed(ci95[1], 3)})"


def _estimate(n: int, document: Mapping[str, Any]) -> Estimate:
    ci95 = document["ci95"]
    return Estimate(n, document["mean"], None if ci95 is None else (ci95[0], ci95[1]))


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it must be."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def scaled(value: float | None, factor: float) -> float | None:
    """The product; None stays None."""
    return None if value is None else value * factor


def _arm_table(summary: Mapping[str, Any], colours: Mapping[str, int]) -> tuple[ArmRow, ...]:
    arms = summary["arms"]
    # One column per entry: value, text, and +1 when more is better, -1 when less is, 0 for neither.
    table: list[list[tuple[float | None, str, int]]] = []
    for arm in arms:
        qoe, decision = arm["qoe_per_chunk"], arm["decision_ms"]
        stalled = scaled(arm["rebuffer_ratio"], PERCENT)
        table.append(
            [
                (qoe["mean"], fixed(qoe["mean"], 3), 1),
                (None, interval_cell(qoe["ci95"]), 0),
                (arm["bitrate_kbps"], fixed(arm["bitrate_kbps"], 0), 1),
                (stalled, fixed(stalled, 2), -1),
                (arm["switch_kbps"], fixed(arm["switch_kbps"], 0), -1),
                (None, fixed(arm["startup_s"], 2), 0),
                (None, significant(decision["p50"]), 0),
                (None, significant(decision["p99"]), 0),
                (None, str(arm["fallbacks"]), 0),
                (None, f"{arm['failed']} of {arm['sessions']}", 0),
            ]
        )
    best = [_best_text(column) for column in zip(*table, strict=True)]
    return tuple(
        ArmRow(
            arm["arm"],
            colours[arm["arm"]],
            tuple(
                Cell(text, is_best=text == best_text)
                for (_, text, _), best_text in zip(row, best, strict=True)
            ),
        )
        for arm, row in zip(arms, table, strict=True)
    )


def _best_text(column: Sequence[tuple[float | None, str, int]]) -> str | None:
    """Text of the best value, compared as shown; None when all look the same or nothing is best."""
    better = column[0][2]
    known = [(value * better, text) for value, text, _ in column if value is not None]
    if better == 0 or len({text for _, text in known}) < 2:
        return None
    return max(known)[1]


def _figures(
    run: Results,
    summary: Mapping[str, Any],
    estimates: Mapping[str, Estimate],
    colours: Mapping[str, int],
) -> tuple[Figure, ...]:
    qoe = _series(run, colours)
    decisions = [
        Series(arm, colours[arm], [ms for row in run.of_arm(arm) for ms in decisions_ms(row)])
        for arm in run.arms
    ]
    taken_apart = [(arm, qoe_parts(run.of_arm(arm), run.qoe)) for arm in run.arms]
    pairs = [
        (f"{pair['a']} − {pair['b']}", _estimate(pair["n"], pair["delta"]))
        for pair in summary["pairs"]
    ]
    legend = tuple(qoe)
    over_rate = [_over_trace_rate(run, arm, colours[arm]) for arm in run.arms]
    return (
        Figure(
            "QoE per session",
            plots.strips(qoe, [estimates[arm] for arm in run.arms], "QoE per chunk"),
            "One dot per trace; above it the mean with its 95 % interval.",
        ),
        Figure(
            "Paired differences",
            plots.forest(pairs, "difference of QoE per chunk"),
            "Trace by trace, first arm minus second. Filled where the 95 % interval excludes zero.",
        ),
        Figure(
            "What the QoE is made of",
            plots.parts(
                [
                    Parts(arm, colours[arm], one.bitrate, one.switch, one.rebuffer)
                    for arm, one in taken_apart
                    if one is not None
                ],
                "Mbit/s",
            ),
            "The whole bar is the bitrate. Switches (amber) and stalls (red) are cut off; the "
            "QoE remains.",
        ),
        Figure(
            "Distribution of QoE",
            plots.cdf(qoe, "QoE per chunk", of="sessions"),
            "Share of sessions at or below a QoE.",
            legend,
        ),
        Figure(
            "QoE over bandwidth",
            plots.scatter(over_rate, "mean bandwidth of the trace, Mbit/s", "QoE per chunk"),
            "Every session against what its link offered on average.",
            legend,
        ),
        Figure(
            "Decision time",
            plots.cdf(decisions, "ms from question to answer", of="decisions", is_log=True),
            "Share of decisions at or below a time; none where decisions were free of charge.",
            legend,
        ),
    )


def _series(run: Results, colours: Mapping[str, int]) -> list[Series]:
    """QoE of each arm, trace by trace."""
    series = []
    for arm in run.arms:
        qoe = run.qoe_of_arm(arm)
        titles = [f"{trace}\n{fixed(value, 3)}" for trace, value in qoe.items()]
        series.append(Series(arm, colours[arm], list(qoe.values()), titles=titles))
    return series


def _over_trace_rate(run: Results, arm: str, colour: int) -> Series:
    points = [
        (run.traces[trace].mean_mbps, qoe, f"{arm}, {trace}")
        for trace, qoe in run.qoe_of_arm(arm).items()
        if trace in run.traces
    ]
    return Series(
        arm,
        colour,
        [x for x, _, _ in points],
        others=[y for _, y, _ in points],
        titles=[title for _, _, title in points],
    )


def _link_figures(run: Results, colours: Mapping[str, int]) -> tuple[Figure, ...]:
    """Asked against delivered; empty when no link was measured."""
    errors = []
    for arm in run.arms:
        rows = {row.bottleneck: row for row in run.sessions if row.arm == arm}.values()
        measured = [
            (row.link.wire_nmae_1s * PERCENT, row.trace)
            for row in rows
            if row.link.wire_nmae_1s is not None
        ]
        errors.append(
            Series(
                arm,
                colours[arm],
                [error for error, _ in measured],
                titles=[f"{trace}\n{fixed(error, 3)} %" for error, trace in measured],
            )
        )
    full = [
        second
        for seconds in run.link_seconds.values()
        for second in seconds
        if second.saturated and second.direction == "down"
    ]
    if not full and not any(one.values for one in errors):
        return ()
    return (
        Figure(
            "Wire error per session",
            plots.strips(
                errors,
                [mean_ci(one.values) for one in errors],
                "NMAE in bins of 1 s, %",
                mark=LINK_BAR_PERCENT,
            ),
            f"Dashed: {LINK_BAR_PERCENT:g} %. Only seconds in which the link was saturated count.",
        ),
        Figure(
            "Asked and delivered",
            plots.density(
                [second.asked_mbps for second in full],
                [second.delivered_mbps for second in full],
                "asked, Mbit/s",
                "delivered, Mbit/s",
            ),
            "Saturated seconds of all sessions; darker where there are more.",
        ),
    )
