"""Records of sessions of all tasks: which type a run writes, and what a record is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from player.records import SessionRecord
from player.viewport_records import PredictionRecord, ViewportSessionRecord
from testbed.scheduling_records import SchedulingSessionRecord

Record = SessionRecord | ViewportSessionRecord | PredictionRecord | SchedulingSessionRecord


class Place(NamedTuple):
    """What a session is one of.

    Attributes:
        group: name of those that shared what they were played on.
        unit: what they were played on, equal for all arms: a trace, a recording, both, or the
            jobs of a seed.
        client: which of them it is, from 0.
    """

    group: str
    unit: str
    client: int


def record_type(task: str, driver: str) -> type[Record]:
    """The records that such a run writes.

    Raises:
        LookupError: no such task.
    """
    if task == "viewport":
        return PredictionRecord if driver == "offline" else ViewportSessionRecord
    kinds: dict[str, type[Record]] = {"abr": SessionRecord, "scheduling": SchedulingSessionRecord}
    return kinds[task]


def viewport_unit(recording: str, trace: str) -> str:
    """What a recording replayed over a trace is called."""
    return f"{recording} on {trace}"


def scheduling_unit(seed: int) -> str:
    """What the jobs of a seed are called."""
    return f"seed {seed}"


def place_of(record: Record) -> Place:
    """What the session is one of."""
    match record:
        case PredictionRecord():
            return Place(record.arm, record.recording, 0)
        case ViewportSessionRecord():
            unit = viewport_unit(record.recording, record.trace)
            return Place(record.group or record.arm, unit, record.client)
        case SchedulingSessionRecord():
            return Place(record.arm, scheduling_unit(record.seed), 0)
        case SessionRecord():
            return Place(*record.bottleneck, record.client)


def place_of_row(row: Mapping[str, Any]) -> Place:
    """Likewise, of a line of ``sessions.jsonl``, ``link.jsonl`` or ``requests.jsonl``.

    Raises:
        LookupError: it does not say.
    """
    recording, trace = row.get("recording"), row.get("trace")
    if "seed" in row and "trace" not in row and recording is None:
        unit = scheduling_unit(row["seed"])
    elif recording is None:
        unit = row["trace"]
    else:
        unit = recording if trace is None else viewport_unit(recording, trace)
    return Place(row.get("group") or row["arm"], unit, row.get("client", 0))
