"""The queue before a bottleneck of the kernel, and its counters.

A limit in packets is a pfifo, one in bytes a bfifo (``tc-bfifo(8)``); active queue management is
``tc-codel(8)`` and ``tc-pie(8)``, whose numbers by default are those of RFC 8289 and RFC 8033. A
bfifo has no limit in packets: one that is asked for besides is left out, as only packets smaller
than whole ones could reach it first.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.links.netlink import (
    STATS_QUEUE,
    TCA_STATS2,
    TCA_STATS_APP,
    TCA_STATS_QUEUE,
    attributes,
    payloads,
)
from testbed.links.spec import QueueSpec

US_PER_MS = 1000.0
WHOLE_PACKET_BYTES = 1500  # layer 3
CODEL_SLACK_US = 2.0  # it counts in units of 1.024 µs
JIFFY_US = 10_000.0  # PIE counts its interval in ticks of the kernel's clock, 100 Hz or faster
# tc_codel_xstats, as far as it matters: …, packets that found the queue full, marks
CODEL_COUNTS = struct.Struct("=16xiII")
# tc_pie_xstats: …, drops of both kinds, packets that found the queue full, longest queue, marks
PIE_COUNTS = struct.Struct("=24xIIII")


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """What a queue did with the packets that came to it.

    Attributes:
        full_drops: packets that found it full.
        aqm_drops: packets that the active queue management dropped.
        marks: packets that it marked instead.
    """

    full_drops: int = 0
    aqm_drops: int = 0
    marks: int = 0


def counts_bytes(queue: QueueSpec) -> bool:
    """Whether whole packets reach its limit in bytes before the one in packets."""
    return queue.size_bytes is not None and queue.size_bytes < queue.packets * WHOLE_PACKET_BYTES


def qdisc_kind(queue: QueueSpec) -> str:
    """Name of the queueing discipline."""
    if queue.kind != "droptail":
        return queue.kind
    return "bfifo" if counts_bytes(queue) else "pfifo"


def _limit(queue: QueueSpec) -> int | None:
    return queue.size_bytes if qdisc_kind(queue) == "bfifo" else queue.packets


def qdisc_options(queue: QueueSpec) -> tuple[str, ...]:
    """Arguments for ``tc qdisc add …`` behind its kind."""
    options = ["limit", str(_limit(queue))]
    if queue.target_ms is not None:
        options += ["target", f"{queue.target_ms * US_PER_MS:.0f}us"]
    if queue.interval_ms is not None:
        options += [_interval_name(queue), f"{queue.interval_ms * US_PER_MS:.0f}us"]
    if queue.ecn:
        options.append("ecn")
    return tuple(options)


def _interval_name(queue: QueueSpec) -> str:
    return "tupdate" if queue.kind == "pie" else "interval"


def is_as_asked(queue: QueueSpec, found: Mapping[str, object]) -> bool:
    """Whether the options that ``tc -json qdisc show`` has are those of the queue."""
    slack_us = JIFFY_US if queue.kind == "pie" else CODEL_SLACK_US
    times = (("target", queue.target_ms), (_interval_name(queue), queue.interval_ms))
    return (
        found.get("limit") == _limit(queue)
        and bool(found.get("ecn", False)) == queue.ecn
        and all(
            abs(float(str(found.get(name, "nan"))) - asked_ms * US_PER_MS) <= slack_us
            for name, asked_ms in times
            if asked_ms is not None
        )
    )


def read_counts(kind: str, answer: bytes) -> QueueCounts:
    """Takes the counters out of what the kernel says about a queueing discipline."""
    drops = full_drops = marks = 0
    begin, end = payloads(answer).get(TCA_STATS2, (0, 0))
    for inner, at, _ in attributes(answer, begin, end):
        if inner == TCA_STATS_QUEUE:
            drops = STATS_QUEUE.unpack_from(answer, at)[2]
        elif inner == TCA_STATS_APP and kind == "codel":
            _, full_drops, marks = CODEL_COUNTS.unpack_from(answer, at)
        elif inner == TCA_STATS_APP and kind == "pie":
            _, full_drops, _, marks = PIE_COUNTS.unpack_from(answer, at)
    if kind not in ("codel", "pie"):
        return QueueCounts(full_drops=drops)
    return QueueCounts(full_drops, drops - full_drops, marks)
