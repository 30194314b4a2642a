"""How players share a bottleneck: their throughputs, and Jain's index over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from player.records import SessionRecord
from testbed.statistics import jains_index

BITS_PER_BYTE, BITS_PER_KILOBIT = 8, 1000


@dataclass(frozen=True, slots=True)
class Share:
    """What the players behind one bottleneck got of it.

    Attributes:
        group: name of those that shared it.
        trace: that it followed.
        jain: Jain's index over the throughputs of the players.
        throughput_kbps: per arm, each of its players' mean throughput in the order of their
            numbers.
    """

    group: str
    trace: str
    jain: float
    throughput_kbps: dict[str, list[float]]


def shares(rows: Iterable[SessionRecord]) -> list[Share]:
    """The bottlenecks of which at least two of these players ended well, in the order played."""
    groups: dict[tuple[str, str], list[SessionRecord]] = {}
    for row in rows:
        if row.status == "ok" and row.chunks:
            groups.setdefault(row.bottleneck, []).append(row)
    return [
        _share(group, trace, sorted(players, key=lambda row: row.client))
        for (group, trace), players in groups.items()
        if len(players) > 1
    ]


def mean_throughput_kbps(row: SessionRecord) -> float:
    """Payload of a player over the time from its start to its last chunk, pauses included."""
    last = row.chunks[-1]
    bits = sum(chunk.size_bytes for chunk in row.chunks) * BITS_PER_BYTE
    return bits / (last.requested_s + last.download_s) / BITS_PER_KILOBIT


def _share(group: str, trace: str, players: list[SessionRecord]) -> Share:
    throughput_kbps: dict[str, list[float]] = {}
    for row in players:
        throughput_kbps.setdefault(row.arm, []).append(mean_throughput_kbps(row))
    everyone = [value for values in throughput_kbps.values() for value in values]
    return Share(group, trace, jains_index(everyone), throughput_kbps)
