"""Several real browsers at once behind one emulated link: what each costs, and whether it kept up.

    .venv/bin/python benchmarks/browsers.py [--browsers 4] [--chunks 8] [--mbps 3] [--controller C]

All play the same short video with dash.js, share one bottleneck of ``--mbps`` for each of them, and
ask one controller service. CPU is that of Chromium's own processes, from a session's begin to its
last chunk, as a share of one core; memory is their largest together, with shared pages counted once
per browser. Asked are the decisions that a session had to get, answered those that the
controller made in time; the fallback made the others. A decision is dropped if the media server's
log does not have its chunk at its level, once. The decision time is the median; too busy is how
long the picture stood still though there was video to play. Needs ``make setup-browser``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from player.records import SessionRecord
from testbed.abr_experiment import AbrPlan, abr_plan
from testbed.emulation import EmulatedSession, emulate
from testbed.experiment import parse_experiment, plan_experiment
from testbed.results import decisions_ms, stall_s
from testbed.statistics import percentile
from testbed.svg import fixed

TRACE_S = 3600
DELAY_MS = 20
PERCENT = 100.0
WIDTH = 140  # of the table where there is no terminal
COLUMNS = (
    *("browser", "CPU %", "peak MiB", "procs", "asked", "answered", "fallbacks", "dropped"),
    *("decision ms", "stalled s", "too busy s", "error"),
)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What became of the decisions of a session.

    Attributes:
        asked: that it had to get.
        fallbacks: that the fallback made.
        dropped: whose chunk did not come, or not at their level, or more than once.
    """

    asked: int
    fallbacks: int
    dropped: int


def plan_of(folder: Path, browsers: int, chunks: int, mbps: float, controller: str) -> AbrPlan:
    """One group of browsers behind one link."""
    trace = folder / "steady"
    trace.write_text(f"0 {mbps * browsers}\n{TRACE_S} {mbps * browsers}\n")
    document = {
        "task": "abr",
        "driver": "emulated",
        "traces": str(trace),
        "chunks": chunks,
        "network": {"clients": browsers},
        "link": {"delay_ms": DELAY_MS},
        "player": {"kind": "dashjs", "fallback": "fixed"},
        "arms": [{"controller": controller}],
    }
    experiment = parse_experiment(document, where="benchmark")
    return abr_plan(plan_experiment(experiment, data_dir=None, base=folder), "benchmarks")


def play(plan: AbrPlan) -> tuple[list[SessionRecord], Counter[tuple[int, str]]]:
    """Sessions in order, and how often the server sent what to which client."""
    records: list[SessionRecord] = []
    sent: Counter[tuple[int, str]] = Counter()

    def note(session: EmulatedSession) -> None:
        assert isinstance(session.record, SessionRecord)
        records.append(session.record)
        for request in session.requests:
            sent[request["client"], request["path"].rsplit("/", 1)[1]] += not request["aborted"]

    emulate(
        plan,
        plan.sessions,
        jobs=len(plan.sessions),
        on_session=note,
        on_chunk=lambda session, index: None,
    )
    return sorted(records, key=lambda record: record.client), sent


def decisions_of(
    record: SessionRecord, sent: Counter[tuple[int, str]], chunks: int, first_level: int | None
) -> Decisions:
    """Compares a session's records with the server's log."""
    own = {
        name: times
        for (client, name), times in sent.items()
        if client == record.client and name.endswith(".m4s")
    }
    as_decided = [
        chunk.index
        for chunk in record.chunks
        if [
            (name, times) for name, times in own.items() if name.endswith(f"-{chunk.index + 1}.m4s")
        ]
        == [(f"chunk-{chunk.level}-{chunk.index + 1}.m4s", 1)]
    ]
    fixed_ones = 0 if first_level is None else 1
    return Decisions(
        asked=chunks - fixed_ones,
        fallbacks=sum(chunk.fallback for chunk in record.chunks),
        dropped=chunks - fixed_ones - len([index for index in as_decided if index >= fixed_ones]),
    )


def row_of(record: SessionRecord, told: Decisions) -> Sequence[str]:
    """One browser's line of the table."""
    used = record.browser
    share = None if used is None or not record.wall_s else used.cpu_s / record.wall_s * PERCENT
    decided = told.asked - told.dropped
    return (
        *(str(record.client), fixed(share, 0), fixed(used.peak_mib if used else None, 0)),
        *(str(used.processes if used else "–"), str(told.asked), str(decided - told.fallbacks)),
        *(str(told.fallbacks), str(told.dropped), fixed(percentile(decisions_ms(record), 50), 1)),
        *(fixed(stall_s(record), 2), fixed(record.starved_s, 2), record.error or ""),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browsers", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--mbps", type=float, default=3.0)
    parser.add_argument("--controller", default="bba")
    arguments = parser.parse_args()
    console = Console(width=max(Console().width, WIDTH))
    load = os.getloadavg()[0]
    console.print(
        f"{platform.release()}, {os.cpu_count()} cores, load {load:.1f}; {arguments.browsers} "
        f"browsers, {arguments.chunks} chunks, {arguments.mbps * arguments.browsers:g} Mbit/s "
        f"shared, {DELAY_MS} ms one way, controller {arguments.controller}"
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(
            Path(folder),
            arguments.browsers,
            arguments.chunks,
            arguments.mbps,
            arguments.controller,
        )
        records, sent = play(plan)
    first_level = plan.experiment.player_config.first_level
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    told = [decisions_of(record, sent, arguments.chunks, first_level) for record in records]
    for record, decisions in zip(records, told, strict=True):
        table.add_row(*row_of(record, decisions))
    console.print(table)
    if any(record.error for record in records) or any(one.dropped for one in told):
        raise SystemExit("a session failed, or a decision was dropped")


if __name__ == "__main__":
    main()
