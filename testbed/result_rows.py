"""Reads the files of a result folder, whatever its task; ``results`` makes a summary of them.

The files and their keys are described in ``docs/reference.md``. Keys that are not known here
are passed over, so that newer runs stay readable; known ones must be right. A run may be killed at
any moment: a last line without an end is left out with a warning, any other malformed line is an
error.
"""

from __future__ import annotations

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

from player.trace import BITS_PER_MEGABIT, Trace, TraceError
from testbed.links.spec import Direction
from testbed.session_records import Record, place_of, place_of_row
from testbed.statistics import percentile

SESSIONS = "sessions.jsonl"
LINK = "link.jsonl"
EXPERIMENT = "experiment.toml"
ENVIRONMENT = "environment.json"
TRACES = "traces.json"
SUMMARY = "summary.json"
MS_PER_S = 1000.0

_log = logging.getLogger(__name__)
Row = TypeVar("Row")
AnyRecord = TypeVar("AnyRecord", bound=Record)


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
        recording: name of the head motion that was replayed, where there was one.
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
    recording: str | None = None

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


def read_records(folder: Path, kind: type[AnyRecord]) -> tuple[AnyRecord, ...]:
    """The sessions, those of each arm, unit and client once.

    Of several it is the last one that ended well, else the last one.

    Raises:
        ResultsError: no ``sessions.jsonl``, or a malformed line.
    """
    path = folder / SESSIONS
    if not path.is_file():
        raise ResultsError(f"{path}: missing; {folder} is not a result folder")
    chosen: dict[tuple[str, str, int], AnyRecord] = {}
    for row in read_rows(path, kind):
        place = place_of(row)
        key = (row.arm, place.unit, place.client)
        if key not in chosen or row.status == "ok" or chosen[key].status == "failed":
            chosen[key] = row
    return tuple(chosen.values())


def read_link_seconds(folder: Path) -> dict[tuple[str, str], tuple[LinkSecond, ...]]:
    """Seconds per group and unit, the way down first; of what was repeated only the last run.

    The unit is the trace, or recording and trace (:class:`testbed.session_records.Place`).

    Raises:
        ResultsError: a malformed line. A missing file means that no link was measured.
    """
    path = folder / LINK
    found: dict[tuple[str, str], dict[Direction, list[LinkSecond]]] = {}
    for row in read_rows(path, LinkSecond) if path.is_file() else ():
        place = place_of_row({"arm": row.arm, "trace": row.trace, "recording": row.recording})
        ways = found.setdefault((place.group, place.unit), {"down": [], "up": []})
        seconds = ways[row.direction]
        if seconds and row.second <= seconds[-1].second:
            seconds.clear()  # time ran back: the session was played again
        seconds.append(row)
    return {key: (*ways["down"], *ways["up"]) for key, ways in found.items()}


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def median_and_max(values: Sequence[float | None]) -> dict[str, float | None]:
    """Of those values that are there."""
    known = [value for value in values if value is not None]
    return {"median": percentile(known, 50), "max": max(known, default=None)}


def read_rows(path: Path, row_type: type[Row]) -> Iterator[Row]:
    """The lines of a file, one by one.

    Raises:
        ResultsError: a malformed line; names file and line.
    """
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
                raise ResultsError(f"{path}:{number}: {explain(error)}") from error


def explain(error: ValueError) -> str:
    """What is wrong, for a message."""
    if not isinstance(error, pydantic.ValidationError):
        return f"expected a JSON object: {error}"
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "line"
    return f"{where}: {first['msg']}"


def played_arms(experiment: Mapping[str, Any], sessions: Sequence[Record]) -> tuple[str, ...]:
    """Arms that were played: first in the experiment's order, then any others as they occur."""
    played = list(dict.fromkeys(row.arm for row in sessions))
    listed = experiment.get("arms", [])
    named = [
        str(arm.get("name") or arm.get("controller"))
        for arm in (listed if isinstance(listed, list) else [])
        if isinstance(arm, dict)
    ]
    return tuple(dict.fromkeys([*(arm for arm in named if arm in played), *played]))


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; empty without one.

    Raises:
        ResultsError: it is malformed.
    """
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad UTF-8 and bad TOML are both
        raise ResultsError(f"{path}: not valid TOML: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty without one.

    Raises:
        ResultsError: it is malformed, or no object.
    """
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ResultsError(f"{path}: expected a JSON object")
    return document


def read_traces(path: Path) -> dict[str, Trace]:
    """Traces as replayed, by name; none without the file.

    Raises:
        ResultsError: it is malformed.
    """
    traces: dict[str, Trace] = {}
    for name, columns in read_json_object(path).items():
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
