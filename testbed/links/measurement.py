"""What is measured of a link while it replays a trace, and how close it came to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from player.records import LinkRecord
from testbed.links.spec import Direction

BIN_S = 1.0
SHORTEST_BIN_S = 0.02
ARRIVAL_DEADLINE_S = 0.5  # how far the border of a bin may move
WARM_UP_BINS = 2  # slow start fills the queue in these
NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class LinkSecond:
    """One bin of one direction.

    Attributes:
        second: its number; 0 begins with the session.
        begin_s: when the counters were read, seconds since the start of the replay.
        end_s: when they were read next.
        asked_bits: integral of the trace between the two; 0 for a direction without a trace.
        delivered_bits: layer-3 bits that came out between the two.
        saturated: whether the bottleneck's queue was never seen empty.
        backlog_packets: longest queue that was seen.
        drops: packets that found the queue full.
        late_s: longest delay with which the kernel took a change of the rate; user-space link: with
            which a packet was delivered.
        direction: ``down`` towards the client, or ``up``.
        backlog_bytes: layer-3 bytes in the fullest queue that was seen.
        losses: packets that the loss process took.
        aqm_drops: packets that the active queue management dropped.
        marks: packets that it marked instead (ECN).
        duplicates: packets that came twice.
        delay_p50_ms: one-way delay that half of the packets stayed below, queueing included; with
            the kernel's link what the length of its queue says; None: nothing was delivered.
        delay_p95_ms: likewise, 95 % of the packets.
        delay_p99_ms: likewise, 99 % of the packets.
    """

    second: int
    begin_s: float
    end_s: float
    asked_bits: float
    delivered_bits: float
    saturated: bool
    backlog_packets: int
    drops: int
    late_s: float = 0.0
    direction: Direction = "down"
    backlog_bytes: int = 0
    losses: int = 0
    aqm_drops: int = 0
    marks: int = 0
    duplicates: int = 0
    delay_p50_ms: float | None = None
    delay_p95_ms: float | None = None
    delay_p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """What the link did during one session.

    Attributes:
        record: the direction towards the client.
        seconds: both directions, second by second.
    """

    record: LinkRecord
    seconds: tuple[LinkSecond, ...]


def measure(seconds: Sequence[LinkSecond], *, backend: str) -> LinkRecord:
    """How closely the link followed its traces, behind the warm-up, and what became of packets.

    A saturated bin counts with any deviation, another one only with what was delivered too much.
    """
    down = [bin_ for bin_ in seconds if bin_.direction == "down"]
    follows = _follow(down)
    up = _follow([bin_ for bin_ in seconds if bin_.direction == "up"])
    medians = [bin_.delay_p50_ms for bin_ in down if bin_.delay_p50_ms is not None]
    tails = [bin_.delay_p99_ms for bin_ in down if bin_.delay_p99_ms is not None]
    return LinkRecord(
        backend=backend,
        wire_nmae_1s=follows.nmae if follows else None,
        total_error=follows.total_error if follows else None,
        saturated_s=follows.saturated_s if follows else 0.0,
        up_wire_nmae_1s=up.nmae if up else None,
        queue_drops=sum(bin_.drops for bin_ in down),
        losses=sum(bin_.losses for bin_ in down),
        aqm_drops=sum(bin_.aqm_drops for bin_ in down),
        marks=sum(bin_.marks for bin_ in down),
        duplicates=sum(bin_.duplicates for bin_ in down),
        delay_p50_ms=_nearest_rank(medians, 0.5),
        delay_p99_ms=_nearest_rank(tails, 0.99),
    )


@dataclass(frozen=True, slots=True)
class _Follows:
    """How closely one direction followed its trace."""

    nmae: float
    total_error: float
    saturated_s: float


def _follow(bins: Sequence[LinkSecond]) -> _Follows | None:
    """The error over the saturated bins; None if there is none."""
    scored = bins[WARM_UP_BINS:]
    if not any(bin_.saturated for bin_ in scored):
        scored = bins
    saturated = [bin_ for bin_ in scored if bin_.saturated]
    asked_bits = sum(bin_.asked_bits for bin_ in saturated)
    if asked_bits <= 0:
        return None
    excess_bits = [bin_.delivered_bits - bin_.asked_bits for bin_ in saturated]
    others = sum(
        max(bin_.delivered_bits - bin_.asked_bits, 0.0)
        for bin_ in scored
        if not bin_.saturated and bin_.asked_bits > 0
    )
    return _Follows(
        nmae=(sum(map(abs, excess_bits)) + others) / asked_bits,
        total_error=sum(excess_bits) / asked_bits,
        saturated_s=sum(bin_.end_s - bin_.begin_s for bin_ in saturated),
    )


def _nearest_rank(values: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of all does not exceed; None of nothing."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None
