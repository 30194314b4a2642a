"""Reads a result folder and condenses it into ``summary.json``.

The files and their keys are described in ``docs/reference.md``. Keys that are not known here
are passed over, so that newer runs stay readable; known ones must be right. A run may be killed at
any moment: a last line without an end is left out with a warning, any other malformed line is an
error.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydantic
import pydantic_core

from player.qoe import KBPS_PER_MBPS, PENSIEVE_QOE, QoeWeights
from player.records import ChunkRecord, SessionRecord
from player.trace import BITS_PER_MEGABIT, Trace, TraceError
from testbed.fairness import shares
from testbed.links.spec import Direction
from testbed.statistics import mean, mean_ci, paired_delta_ci, percentile

SESSIONS = "sessions.jsonl"
LINK = "link.jsonl"
EXPERIMENT = "experiment.toml"
ENVIRONMENT = "environment.json"
TRACES = "traces.json"
SUMMARY = "summary.json"
MS_PER_S = 1000.0

_log = logging.getLogger(__name__)
Row = TypeVar("Row")


class ResultsError(ValueError):
    """A result folder that cannot be read; the message names file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSecond:
    """One second of one direction of a link.

    Attributes:
        arm: label of the arm; name of the group where arms share a bottleneck.
        trace: name of the trace.
        second: start of the second, seconds since the session began.
        asked_bits: what the trace allowed.
        delivered_bits: what left the link.
        saturated: whether packets were waiting all the time, so that the two must agree.
        backlog_packets: packets in the queue.
        drops: packets dropped.
        begin_s: when the counters were read.
        end_s: when they were read next.
        direction: ``down`` towards the clients, or ``up``.
        losses: packets that the loss process took.
        aqm_drops: packets that the active queue management dropped.
        marks: packets that it marked instead.
        duplicates: packets that came twice.
        delay_p50_ms: one-way delay that half of the packets stayed below.
        delay_p99_ms: likewise, 99 % of the packets.
    """

    arm: str
    trace: str
    second: float
    asked_bits: float
    delivered_bits: float
    saturated: bool
    backlog_packets: float | None = None
    drops: float | None = None
    begin_s: float | None = None
    end_s: float | None = None
    direction: Direction = "down"
    losses: int = 0
    aqm_drops: int = 0
    marks: int = 0
    duplicates: int = 0
    delay_p50_ms: float | None = None
    delay_p99_ms: float | None = None

    @property
    def span_s(self) -> tuple[float, float]:
        """When the second really began and ended."""
        begin_s = self.second if self.begin_s is None else self.begin_s
        return begin_s, begin_s + self._width_s

    @property
    def asked_mbps(self) -> float:
        """Mean rate that was asked for."""
        return self.asked_bits / self._width_s / BITS_PER_MEGABIT

    @property
    def delivered_mbps(self) -> float:
        """Mean rate that was delivered."""
        return self.delivered_bits / self._width_s / BITS_PER_MEGABIT

    @property
    def _width_s(self) -> float:
        """What the counters were really apart; a second when the row does not say."""
        if self.begin_s is None or self.end_s is None or self.end_s <= self.begin_s:
            return 1.0
        return self.end_s - self.begin_s


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
        found: dict[str, list[float]] = {}
        for row in self.of_arm(arm):
            if row.qoe_per_chunk is not None:
                found.setdefault(row.trace, []).append(row.qoe_per_chunk)
        return {trace: sum(values) / len(values) for trace, values in found.items()}

    @property
    def failed(self) -> tuple[SessionRecord, ...]:
        """Sessions that failed."""
        return tuple(row for row in self.sessions if row.status == "failed")

    @property
    def trace_names(self) -> tuple[str, ...]:
        """Names of the traces that were played, sorted."""
        return tuple(sorted({row.trace for row in self.sessions}))


def read_results(folder: Path) -> Results:
    """Reads a result folder.

    Raises:
        ResultsError: no sessions, or a malformed file; names file and line.
    """
    sessions = read_sessions(folder)
    experiment = _read_toml(folder / EXPERIMENT)
    return Results(
        folder=folder,
        task=str(experiment.get("task", "abr")),
        driver=sessions[0].driver if sessions else str(experiment.get("driver", "")),
        arms=_arms(experiment, sessions),
        sessions=sessions,
        link_seconds=read_link_seconds(folder),
        traces=_read_traces(folder / TRACES),
        experiment=experiment,
        environment=_read_json_object(folder / ENVIRONMENT),
        qoe=_qoe_weights(experiment, folder),
    )


def read_sessions(folder: Path) -> tuple[SessionRecord, ...]:
    """The sessions, each arm, trace and client once.

    Of several it is the last one that ended well, else the last one.

    Raises:
        ResultsError: no ``sessions.jsonl``, or a malformed line.
    """
    path = folder / SESSIONS
    if not path.is_file():
        raise ResultsError(f"{path}: missing; {folder} is not a result folder")
    chosen: dict[tuple[str, str, int], SessionRecord] = {}
    for row in _rows(path, SessionRecord):
        key = (row.arm, row.trace, row.client)
        if key not in chosen or row.status == "ok" or chosen[key].status == "failed":
            chosen[key] = row
    return tuple(chosen.values())


def read_link_seconds(folder: Path) -> dict[tuple[str, str], tuple[LinkSecond, ...]]:
    """Seconds per group and trace, the way down first; of what was repeated only the last run.

    Raises:
        ResultsError: a malformed line. A missing file means that no link was measured.
    """
    path = folder / LINK
    found: dict[tuple[str, str], dict[Direction, list[LinkSecond]]] = {}
    for row in _rows(path, LinkSecond) if path.is_file() else ():
        ways = found.setdefault((row.arm, row.trace), {"down": [], "up": []})
        seconds = ways[row.direction]
        if seconds and row.second <= seconds[-1].second:
            seconds.clear()  # time ran back: the session was played again
        seconds.append(row)
    return {key: (*ways["down"], *ways["up"]) for key, ways in found.items()}


def write_summary(folder: Path) -> dict[str, Any]:
    """Writes ``summary.json`` of a folder, whole or not at all, and returns its content.

    Raises:
        ResultsError: the folder cannot be read.
    """
    summary = summarize(read_results(folder))
    replace_file(folder / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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
            "wire_nmae_1s": _median_and_max([link.wire_nmae_1s for link in links]),
            "up_wire_nmae_1s": _median_and_max([link.up_wire_nmae_1s for link in links]),
        },
    }


def _median_and_max(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"median": percentile(known, 50), "max": max(known, default=None)}


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
    }


def _summarize_pair(
    a: str, b: str, qoe_a: Mapping[str, float], qoe_b: Mapping[str, float]
) -> dict[str, Any]:
    common = [trace for trace in qoe_a if trace in qoe_b]
    delta = paired_delta_ci([qoe_a[trace] for trace in common], [qoe_b[trace] for trace in common])
    return {"a": a, "b": b, "n": delta.n, "delta": delta.as_json()}


def _rows(path: Path, row_type: type[Row]) -> Iterator[Row]:
    adapter = pydantic.TypeAdapter(row_type)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                pydantic_core.from_json(line, allow_inf_nan=False)
                yield adapter.validate_json(line, strict=True)
            except ValueError as error:  # pydantic's ValidationError is one
                if not line.endswith(b"\n"):
                    _log.warning("%s:%d: left out, the line is not complete", path, number)
                    return
                raise ResultsError(f"{path}:{number}: {_explain(error)}") from error


def _explain(error: ValueError) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return f"expected a JSON object: {error}"
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "line"
    return f"{where}: {first['msg']}"


def _arms(experiment: Mapping[str, Any], sessions: Sequence[SessionRecord]) -> tuple[str, ...]:
    """Arms that were played: first in the experiment's order, then any others as they occur."""
    played = list(dict.fromkeys(row.arm for row in sessions))
    listed = experiment.get("arms", [])
    named = [
        str(arm.get("name") or arm.get("controller"))
        for arm in (listed if isinstance(listed, list) else [])
        if isinstance(arm, dict)
    ]
    return tuple(dict.fromkeys([*(arm for arm in named if arm in played), *played]))


def _qoe_weights(experiment: Mapping[str, Any], folder: Path) -> QoeWeights:
    if "qoe" not in experiment:
        return PENSIEVE_QOE
    try:
        return pydantic.TypeAdapter(QoeWeights).validate_python(experiment["qoe"])
    except pydantic.ValidationError as error:
        raise ResultsError(f"{folder / EXPERIMENT}: qoe: {_explain(error)}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad UTF-8 and bad TOML are both
        raise ResultsError(f"{path}: not valid TOML: {error}") from error


def _read_json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ResultsError(f"{path}: expected a JSON object")
    return document


def _read_traces(path: Path) -> dict[str, Trace]:
    traces: dict[str, Trace] = {}
    for name, columns in _read_json_object(path).items():
        try:
            traces[name] = Trace(
                name,
                np.asarray(columns["times_s"], dtype=np.float64),
                np.asarray(columns["rates_mbps"], dtype=np.float64),
            )
        except (KeyError, TypeError, ValueError, TraceError) as error:
            raise ResultsError(
                f"{path}: {name!r}: expected times_s and rates_mbps: {error}"
            ) from error
    return traces
