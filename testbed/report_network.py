"""Tables of the report about what is around the players: other players, shares, packets, traffic.

Each is left out of runs that have nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from player.records import BackgroundRecord, ConnectionRecord
from testbed.browser_views import player_table
from testbed.fairness import shares
from testbed.report_elements import Table
from testbed.report_link import Streamed
from testbed.result_rows import MS_PER_S
from testbed.results import Results
from testbed.session_records import place_of
from testbed.statistics import mean, percentile
from testbed.svg import fixed, significant

PER_MILLE = 1000.0


def network_tables(run: Results, summary: Mapping[str, Any]) -> tuple[Table, ...]:
    """The tables that this run has something for."""
    made = (player_table(run), _fairness(summary), _bottlenecks(run))
    return (
        *(table for table in made if table.rows),
        *link_tables(run.sessions, run.arms),
    )


def link_tables(sessions: Sequence[Streamed], arms: Sequence[str]) -> tuple[Table, ...]:
    """Those that any streamed session has something for."""
    made = (_packets(sessions), _captures(sessions, arms), _background(sessions))
    return tuple(table for table in made if table.rows)


def _fairness(summary: Mapping[str, Any]) -> Table:
    rows = []
    for arm in summary["arms"]:
        jain = arm["jain"]
        if jain["mean"] is not None:
            low, high = jain["ci95"] or (None, None)
            rows.append((arm["arm"], fixed(jain["mean"], 3), fixed(low, 3), fixed(high, 3)))
    return Table(
        "Fairness among the players of an arm",
        ("arm", "Jain's index", "95 % from", "to"),
        tuple(rows),
        "Over the mean throughputs of the arm's players behind one bottleneck; 1: all the same. "
        "One value per trace.",
    )


def _bottlenecks(run: Results) -> Table:
    """Only where arms share: elsewhere the arms' own table says it."""
    found = [one for one in shares(run.sessions) if len(one.throughput_kbps) > 1]
    arms = tuple(dict.fromkeys(arm for one in found for arm in one.throughput_kbps))
    return Table(
        "Arms behind the same bottleneck",
        ("trace", "Jain's index", *(f"{arm} kbit/s" for arm in arms)),
        tuple(
            (
                one.trace,
                fixed(one.jain, 3),
                *(fixed(mean(one.throughput_kbps.get(arm, [])), 0) for arm in arms),
            )
            for one in found
        ),
        "Index over all players behind the bottleneck; mean throughput per player.",
    )


def _packets(sessions: Sequence[Streamed]) -> Table:
    rows = []
    for group, played in _by_group(sessions).items():
        links = [row.link for row in played]
        counts = [
            sum(getattr(link, name) for link in links)
            for name in ("queue_drops", "aqm_drops", "losses", "marks", "duplicates")
        ]
        medians = [link.delay_p50_ms for link in links if link.delay_p50_ms is not None]
        tails = [link.delay_p99_ms for link in links if link.delay_p99_ms is not None]
        if any(counts) or medians:
            delays = (percentile(medians, 50), percentile(tails, 50))
            rows.append((group, *map(significant, delays), *map(str, counts)))
    return Table(
        "Packets towards the players",
        (
            *("arm", "delay ms p50", "p99", "queue full", "AQM drops", "lost at random"),
            *("marked", "doubled"),
        ),
        tuple(rows),
        "One-way delay over the bottleneck, its queue included: median over sessions. "
        "Packets: sums.",
    )


def _captures(sessions: Sequence[Streamed], arms: Sequence[str]) -> Table:
    rows = []
    for arm in arms:
        records = [row.capture for row in sessions if row.arm == arm and row.capture]
        media = [
            connection
            for record in records
            for connection in record.connections
            if not connection.is_controller
        ]
        answers = [took_ms for record in records for took_ms in record.exchanges_ms]
        if records:
            rows.append(
                (
                    arm,
                    str(len(records)),
                    significant(_median(connection.throughput_kbps for connection in media)),
                    significant(_median(connection.rtt_p50_ms for connection in media)),
                    significant(_median(connection.rtt_p99_ms for connection in media)),
                    fixed(_retransmitted(media), 2),
                    significant(percentile(answers, 50)),
                    significant(percentile(answers, 99)),
                    str(sum(record.unanswered for record in records)),
                    str(sum(record.dropped_packets or 0 for record in records)),
                )
            )
    return Table(
        "On the wire, captured at the players",
        (
            *("arm", "captures", "kbit/s", "RTT ms p50", "p99", "retransmitted per 1000"),
            *("decision ms p50", "p99", "unanswered", "not captured"),
        ),
        tuple(rows),
        "Throughput (pauses included), round-trip times and retransmissions of the connections to "
        "the media server, medians over them; decision: from the first packet of a question to the "
        "last one of its answer. sessions.jsonl has every connection.",
    )


def _retransmitted(connections: Sequence[ConnectionRecord]) -> float | None:
    packets = sum(connection.packets_down for connection in connections)
    again = sum(connection.retransmissions_down for connection in connections)
    return again / packets * PER_MILLE if packets else None


def _background(sessions: Sequence[Streamed]) -> Table:
    rows = []
    for group, played in _by_group(sessions).items():
        for entries in zip(*(row.background for row in played if row.background), strict=False):
            rows.append((group, *_background_cells(entries)))
    return Table(
        "Background traffic",
        (
            *("arm", "kind", "way", "Mbit/s", "transfers", "finished", "errors"),
            *("completion ms p50", "p95"),
        ),
        tuple(rows),
        "Per entry of the experiment, mean over its sessions; transfers and errors are sums, times "
        "are medians over sessions.",
    )


def _background_cells(entries: Sequence[BackgroundRecord]) -> tuple[str, ...]:
    return (
        entries[0].kind,
        entries[0].direction,
        significant(mean([entry.throughput_mbps for entry in entries])),
        *(
            str(sum(getattr(entry, name) for entry in entries))
            for name in ("started", "finished", "errors")
        ),
        significant(_median(_ms(entry.completion_p50_s) for entry in entries)),
        significant(_median(_ms(entry.completion_p95_s) for entry in entries)),
    )


def _by_group(rows: Iterable[Streamed]) -> dict[str, list[Streamed]]:
    """One session per bottleneck, by the name of the group."""
    first: dict[tuple[str, str], Streamed] = {}
    for row in rows:
        first.setdefault(place_of(row)[:2], row)
    groups: dict[str, list[Streamed]] = {}
    for (group, _), row in first.items():
        groups.setdefault(group, []).append(row)
    return groups


def _median(values: Iterable[float | None]) -> float | None:
    return percentile([value for value in values if value is not None], 50)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * MS_PER_S
