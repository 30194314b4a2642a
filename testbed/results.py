"""Condenses a result folder of task ``abr``; ``summary.json`` of any task.

The other tasks' summaries are made in modules of their own, see :data:`SUMMARIES`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pydantic

from player.qoe import KBPS_PER_MBPS, PENSIEVE_QOE, QoeWeights
from player.records import ChunkRecord, SessionRecord
from player.trace import Trace
from testbed.fairness import shares
from testbed.result_rows import (
    ENVIRONMENT,
    EXPERIMENT,
    MS_PER_S,
    SUMMARY,
    TRACES,
    LinkSecond,
    ResultsError,
    explain,
    median_and_max,
    played_arms,
    read_json_object,
    read_link_seconds,
    read_records,
    read_toml,
    read_traces,
    replace_file,
)
from testbed.scheduling_results import summarize_scheduling
from testbed.statistics import mean, mean_ci, paired_delta_ci, percentile
from testbed.viewport_results import summarize_viewport


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything in one result folder.

    Attributes:
        folder: where it was read.
        task: of the experiment.
        driver: of the sessions.
        arms: labels in the order of the experiment.
        sessions: one per arm, trace and client, in the order played.
        link_seconds: of both directions, per group and trace (``SessionRecord.bottleneck``); empty
            for simulated runs.
        traces: as replayed, by name; empty when the folder does not hold them.
        experiment: content of ``experiment.toml``; empty without one.
        environment: content of ``environment.json``; empty without one.
        qoe: weights that the sessions were scored with.
    """

    folder: Path
    task: str
    driver: str
    arms: tuple[str, ...]
    sessions: tuple[SessionRecord, ...]
    link_seconds: Mapping[tuple[str, str], tuple[LinkSecond, ...]]
    traces: Mapping[str, Trace]
    experiment: Mapping[str, Any]
    environment: Mapping[str, Any]
    qoe: QoeWeights = PENSIEVE_QOE

    def of_arm(self, arm: str) -> tuple[SessionRecord, ...]:
        """Sessions of an arm that ended well."""
        return tuple(row for row in self.sessions if row.arm == arm and row.status == "ok")

    def qoe_of_arm(self, arm: str) -> dict[str, float]:
        """QoE per chunk by trace.

        Players of one arm on one trace shared its bottleneck, so together they are one observation:
        their mean.
        """
        return _means_by_trace((row.trace, row.qoe_per_chunk) for row in self.of_arm(arm))

    def latency_of_arm(self, arm: str) -> dict[str, float]:
        """Seconds behind the live event by trace, likewise; empty on demand."""
        return _means_by_trace((row.trace, row.latency_s) for row in self.of_arm(arm))

    @property
    def is_live(self) -> bool:
        """Whether the sessions followed live events."""
        asked = self.experiment.get("player", {}).get("live")
        return asked is not None or any(row.latency_s is not None for row in self.sessions)

    @property
    def failed(self) -> tuple[SessionRecord, ...]:
        """Sessions that failed."""
        return tuple(row for row in self.sessions if row.status == "failed")

    @property
    def trace_names(self) -> tuple[str, ...]:
        """Names of the traces that were played, sorted."""
        return tuple(sorted({row.trace for row in self.sessions}))


def _means_by_trace(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for trace, value in values:
        if value is not None:
            found.setdefault(trace, []).append(value)
    return {trace: sum(some) / len(some) for trace, some in found.items()}


def read_results(folder: Path) -> Results:
    """Reads a result folder.

    Raises:
        ResultsError: no sessions, or a malformed file; names file and line.
    """
    sessions = read_sessions(folder)
    experiment = read_toml(folder / EXPERIMENT)
    return Results(
        folder=folder,
        task=str(experiment.get("task", "abr")),
        driver=sessions[0].driver if sessions else str(experiment.get("driver", "")),
        arms=played_arms(experiment, sessions),
        sessions=sessions,
        link_seconds=read_link_seconds(folder),
        traces=read_traces(folder / TRACES),
        experiment=experiment,
        environment=read_json_object(folder / ENVIRONMENT),
        qoe=_qoe_weights(experiment, folder),
    )


def read_sessions(folder: Path) -> tuple[SessionRecord, ...]:
    """The sessions of a folder of task ``abr``, see :func:`testbed.result_rows.read_records`.

    Raises:
        ResultsError: the folder cannot be read, or is of another task.
    """
    if (task := task_of(folder)) != "abr":
        raise ResultsError(f"{folder} holds results of task {task!r}, not of 'abr'")
    return read_records(folder, SessionRecord)


def task_of(folder: Path) -> str:
    """The task of the experiment in a result folder.

    Raises:
        ResultsError: its experiment is malformed, or of a task without results.
    """
    task = str(read_toml(folder / EXPERIMENT).get("task", "abr"))
    if task not in SUMMARIES:
        raise ResultsError(
            f"{folder / EXPERIMENT}: task {task!r} is unknown; there are {', '.join(SUMMARIES)}"
        )
    return task


def write_summary(folder: Path) -> dict[str, Any]:
    """Writes ``summary.json`` of a folder, whole or not at all, and returns its content.

    Raises:
        ResultsError: the folder cannot be read.
    """
    summary = SUMMARIES[task_of(folder)](folder)
    replace_file(folder / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _summarize_abr(folder: Path) -> dict[str, Any]:
    return summarize(read_results(folder))


#: Makes the content of ``summary.json`` from a result folder, by task.
SUMMARIES: Mapping[str, Callable[[Path], dict[str, Any]]] = MappingProxyType(
    {
        "abr": _summarize_abr,
        "viewport": summarize_viewport,
        "scheduling": summarize_scheduling,
    }
)


def summarize(results: Results) -> dict[str, Any]:
    """The content of ``summary.json``. Failed sessions count as failed and in nothing else."""
    qoe = {arm: results.qoe_of_arm(arm) for arm in results.arms}
    links = {row.bottleneck: row.link for row in results.sessions}.values()
    return {
        "task": results.task,
        "driver": results.driver,
        "arms": [_summarize_arm(results, arm) for arm in results.arms],
        "pairs": [
            _summarize_pair(a, b, qoe[a], qoe[b])
            for a, b in itertools.combinations(results.arms, 2)
        ],
        "fairness": [dataclasses.asdict(one) for one in shares(results.sessions)],
        "link": {
            "wire_nmae_1s": median_and_max([link.wire_nmae_1s for link in links]),
            "up_wire_nmae_1s": median_and_max([link.up_wire_nmae_1s for link in links]),
        },
    }


def scored(row: SessionRecord) -> tuple[ChunkRecord, ...]:
    """The chunks that count: chunk 0 has no predecessor, and its wait is the start-up."""
    return row.chunks[1:]


def stall_s(row: SessionRecord) -> float:
    """Seconds of rebuffering, start-up not counted."""
    return sum(chunk.rebuffer_s for chunk in scored(row))


def played_s(row: SessionRecord) -> float:
    """Seconds of video. The first chunk fills an empty buffer, which tells the chunk length."""
    if not row.chunks:
        return 0.0
    chunk_s = row.chunks[0].buffer_s + row.chunks[0].wait_s
    return chunk_s * len(row.chunks)


def rebuffer_ratio(rows: Sequence[SessionRecord]) -> float | None:
    """Stall time over stall and playing time of all sessions together; None without any."""
    stalled, played = sum(map(stall_s, rows)), sum(map(played_s, rows))
    return stalled / (stalled + played) if played > 0 else None


def mean_bitrate_kbps(row: SessionRecord) -> float:
    """Mean bitrate of the scored chunks, of which there must be one."""
    return float(np.mean([chunk.bitrate_kbps for chunk in scored(row)]))


def mean_switch_kbps(row: SessionRecord) -> float:
    """Mean |change of bitrate| of the scored chunks, of which there must be one."""
    return float(np.mean(np.abs(np.diff([chunk.bitrate_kbps for chunk in row.chunks]))))


def decisions_ms(row: SessionRecord) -> list[float]:
    """Milliseconds of each decision; a first chunk that nobody was asked about is left out."""
    return [
        chunk.decision_s * MS_PER_S for chunk in row.chunks if chunk.index > 0 or chunk.decision_s
    ]


@dataclass(frozen=True, slots=True)
class QoeParts:
    """Mean QoE per scored chunk, taken apart: ``bitrate - rebuffer - switch``."""

    bitrate: float
    rebuffer: float
    switch: float


def qoe_parts(rows: Sequence[SessionRecord], weights: QoeWeights) -> QoeParts | None:
    """Mean over sessions of the three terms; None when no chunk was scored."""
    usable = [row for row in rows if scored(row)]
    if not usable:
        return None
    bitrate = np.mean([mean_bitrate_kbps(row) for row in usable]) / KBPS_PER_MBPS
    rebuffer = np.mean([stall_s(row) / len(scored(row)) for row in usable]) * weights.rebuffer
    switch = np.mean([mean_switch_kbps(row) for row in usable]) / KBPS_PER_MBPS * weights.switch
    return QoeParts(float(bitrate), float(rebuffer), float(switch))


def _summarize_arm(results: Results, arm: str) -> dict[str, Any]:
    everything = [row for row in results.sessions if row.arm == arm]
    rows = results.of_arm(arm)
    usable = [row for row in rows if scored(row)]
    decisions = [value for row in rows for value in decisions_ms(row)]
    startups = [row.startup_s for row in rows if row.startup_s is not None]
    qoe = mean_ci(list(results.qoe_of_arm(arm).values()))
    latency = mean_ci(list(results.latency_of_arm(arm).values()))
    return {
        "arm": arm,
        "sessions": len(everything),
        "failed": len(everything) - len(rows),
        "qoe_per_chunk": qoe.as_json(),
        "bitrate_kbps": mean([mean_bitrate_kbps(row) for row in usable]),
        "rebuffer_ratio": rebuffer_ratio(rows),
        "switch_kbps": mean([mean_switch_kbps(row) for row in usable]),
        "startup_s": mean(startups),
        "decision_ms": {"p50": percentile(decisions, 50), "p99": percentile(decisions, 99)},
        "fallbacks": sum(chunk.fallback for row in everything for chunk in row.chunks),
        "jain": mean_ci([one.jain for one in shares(rows)]).as_json(),
        **_abandoned(results, everything),
        **({"latency_s": latency.as_json()} if results.is_live else {}),
    }


def _abandoned(results: Results, rows: Sequence[SessionRecord]) -> dict[str, Any]:
    """How many requests were given up, where the experiment allows it."""
    if not results.experiment.get("player", {}).get("abandon"):
        return {}
    given_up = [
        chunk.abandoned_bytes
        for row in rows
        for chunk in row.chunks
        if chunk.abandoned_level is not None
    ]
    return {"abandoned": {"chunks": len(given_up), "bytes": sum(given_up)}}


def _summarize_pair(
    a: str, b: str, qoe_a: Mapping[str, float], qoe_b: Mapping[str, float]
) -> dict[str, Any]:
    common = [trace for trace in qoe_a if trace in qoe_b]
    delta = paired_delta_ci([qoe_a[trace] for trace in common], [qoe_b[trace] for trace in common])
    return {"a": a, "b": b, "n": delta.n, "delta": delta.as_json()}


def _qoe_weights(experiment: Mapping[str, Any], folder: Path) -> QoeWeights:
    if "qoe" not in experiment:
        return PENSIEVE_QOE
    try:
        return pydantic.TypeAdapter(QoeWeights).validate_python(experiment["qoe"])
    except pydantic.ValidationError as error:
        raise ResultsError(f"{folder / EXPERIMENT}: qoe: {explain(error)}") from error
