"""One result folder as the report shows it: facts, table and charts, ready for the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed import plots
from testbed.browser_views import browser_use
from testbed.plots import Parts, Series
from testbed.report_elements import (
    PERCENT,
    ArmRow,
    ArmTable,
    Entry,
    Failure,
    Figure,
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
from testbed.report_facts import Facts, documents, known, machine_facts, network_facts
from testbed.report_link import link_section
from testbed.report_network import network_tables
from testbed.results import Results, decisions_ms, qoe_parts, summarize
from testbed.statistics import Estimate
from testbed.svg import fixed, significant

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


LIVE_COLUMNS = (*COLUMNS, "latency s")


def run_view(run: Results, label: str, colours: Mapping[str, int]) -> RunView:
    """Everything the report says about one run; ``colours`` has a number per arm."""
    summary = summarize(run)
    estimates = {
        arm["arm"]: estimate_of(len(run.qoe_of_arm(arm["arm"])), arm["qoe_per_chunk"])
        for arm in summary["arms"]
    }
    link = link_section(run.sessions, run.arms, run.link_seconds, colours)
    return RunView(
        label=label,
        facts=_facts(run),
        headline=_headline(summary),
        arm_tables=(
            ArmTable(LIVE_COLUMNS if run.is_live else COLUMNS, _arm_rows(summary, colours)),
        ),
        figures=_figures(run, summary, estimates, colours),
        link=link,
        tables=network_tables(run, summary),
        failed=tuple(
            Failure(row.arm, row.trace, counted(len(row.chunks), "chunk"), row.error)
            for row in run.failed
        ),
        documents=documents(run.experiment, run.environment),
    )


def _facts(run: Results) -> Facts:
    """What was run, as far as the folder tells."""
    experiment = run.experiment
    chunks = experiment.get("chunks") or max((len(row.chunks) for row in run.sessions), default=0)
    traces = counted(len(run.trace_names), "trace")
    return known(
        (
            ("task", run.task),
            ("driver", run.driver),
            ("traces", ", ".join(filter(None, [str(experiment.get("traces", "")), traces]))),
            ("video", str(experiment.get("video", {}).get("sizes", ""))),
            ("chunks", str(chunks)),
            ("sessions", f"{len(run.sessions)}, {len(run.failed)} failed"),
            ("Chromium", browser_use(run.sessions)),
            *network_facts(experiment, run.driver, [row.link.backend for row in run.sessions]),
            *machine_facts(experiment, run.environment),
        )
    )


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
        f"chunk{interval_text(best['qoe_per_chunk']['ci95'])}."
    ]
    for other in ranked[1:]:
        delta = difference(summary["pairs"], str(best["arm"]), str(other["arm"]))
        if delta is None or delta.mean is None:
            continue
        verdict = ""
        if includes_zero(delta):
            verdict = "; these traces cannot tell the two apart"
        said.append(
            f"Against {other['arm']}: {fixed(delta.mean, 3, sign=True)}"
            f"{interval_text(delta.ci95)} over {counted(delta.n, 'paired trace')}{verdict}."
        )
    return tuple(said)


def _arm_rows(summary: Mapping[str, Any], colours: Mapping[str, int]) -> tuple[ArmRow, ...]:
    arms = summary["arms"]
    table = []
    for arm in arms:
        qoe, decision = arm["qoe_per_chunk"], arm["decision_ms"]
        stalled = scaled(arm["rebuffer_ratio"], PERCENT)
        latency = arm.get("latency_s")
        table.append(
            [
                Entry(fixed(qoe["mean"], 3), qoe["mean"], 1),
                Entry(interval_cell(qoe["ci95"])),
                Entry(fixed(arm["bitrate_kbps"], 0), arm["bitrate_kbps"], 1),
                Entry(fixed(stalled, 2), stalled, -1),
                Entry(fixed(arm["switch_kbps"], 0), arm["switch_kbps"], -1),
                Entry(fixed(arm["startup_s"], 2)),
                Entry(significant(decision["p50"])),
                Entry(significant(decision["p99"])),
                Entry(str(arm["fallbacks"])),
                Entry(f"{arm['failed']} of {arm['sessions']}"),
                *(
                    []
                    if latency is None
                    else [Entry(fixed(latency["mean"], 2), latency["mean"], -1)]
                ),
            ]
        )
    return arm_rows([arm["arm"] for arm in arms], table, colours)


def _figures(
    run: Results,
    summary: Mapping[str, Any],
    estimates: Mapping[str, Estimate],
    colours: Mapping[str, int],
) -> tuple[Figure, ...]:
    qoe = _series(run, {arm: run.qoe_of_arm(arm) for arm in run.arms}, colours)
    decisions = [
        Series(arm, colours[arm], [ms for row in run.of_arm(arm) for ms in decisions_ms(row)])
        for arm in run.arms
    ]
    taken_apart = [(arm, qoe_parts(run.of_arm(arm), run.qoe)) for arm in run.arms]
    pairs = [
        (f"{pair['a']} − {pair['b']}", estimate_of(pair["n"], pair["delta"]))
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
        *([_latency(run, summary, colours)] if run.is_live else []),
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


def _latency(run: Results, summary: Mapping[str, Any], colours: Mapping[str, int]) -> Figure:
    latencies = {arm: run.latency_of_arm(arm) for arm in run.arms}
    means = [estimate_of(len(latencies[arm["arm"]]), arm["latency_s"]) for arm in summary["arms"]]
    target_s = run.experiment.get("player", {}).get("live", {}).get("target_latency_s")
    return Figure(
        "Latency per session",
        plots.strips(
            _series(run, latencies, colours), means, "seconds behind the live event", mark=target_s
        ),
        "Mean over the arrivals of a session's chunks. The line is what the player aims at.",
    )


def _series(
    run: Results, values: Mapping[str, Mapping[str, float]], colours: Mapping[str, int]
) -> list[Series]:
    """Values of each arm, trace by trace."""
    series = []
    for arm in run.arms:
        titles = [f"{trace}\n{fixed(value, 3)}" for trace, value in values[arm].items()]
        series.append(Series(arm, colours[arm], list(values[arm].values()), titles=titles))
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
