"""Fidelity and cost of the links, with Mahimahi beside them where ``mm-link`` is on the PATH.

    .venv/bin/python benchmarks/links.py [--data DIR] [--runs 3] [--seconds 30] [--only NAME …]

Six links replay six traces at once: three of broadband and three of LTE, from ``--data`` or as the
testbed generates them. Every figure is the median over the runs, and over the six links within a
run; lowest and highest run in brackets. Both kinds of links get the same traffic and are judged by
the packets that the kernel says arrived, see ``testbed.links.fidelity``. What runs beside this on
the machine shows in the last columns: mean load before each run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from player.trace import Trace
from testbed.builtin import resolve_traces
from testbed.link_bench import Bench, bench_links
from testbed.links.compiled import best_carrier
from testbed.links.spec import constant_trace

sys.path.append(str(Path(__file__).parent))
from links_mahimahi import MahimahiLink, mahimahi_problem, measure_mahimahi

DATA_TRACES = (
    "data:traces/broadband-3g/test",
    "data:traces/cellular-mahimahi/Verizon-LTE-driving.down",
)
EACH = 3
DELAY_MS = 20
FAST_MBPS = 1000.0
FAST_SECONDS = 8.0
SMALL_MBPS = 5.0
MANY = 40
PERCENT = 100.0
MS_PER_S = 1000.0


@dataclass(frozen=True)
class Row:
    """A figure, run by run.

    Attributes:
        what: its name.
        target: what it should be.
        ours: one per run.
        theirs: Mahimahi's, likewise; empty if it was not measured.
        load: mean load of the machine before the runs.
    """

    what: str
    target: str
    ours: Sequence[float]
    theirs: Sequence[float]
    load: float


class Suite:
    """The measurements; each gives some rows."""

    def __init__(self, traces: list[Trace], runs: int, seconds: float, mahimahi: bool) -> None:
        self._traces = traces
        self._runs = runs
        self._seconds = seconds
        self._mahimahi = mahimahi

    def udp(self) -> list[Row]:
        """Saturating UDP: how exact the bottleneck is."""
        ours, theirs = self._both("udp")
        return [
            self._nmae("UDP, six traces: NMAE in 1 s, %", "≤ 0.15", ours, theirs, "nmae_1s"),
            self._nmae("in 0.1 s, %", "≤ 1.5", ours, theirs, "nmae_100ms"),
        ]

    def cubic(self) -> list[Row]:
        """TCP: what a transfer meets."""
        ours, theirs = self._both("cubic")
        nmae = self._nmae("TCP cubic, six traces: NMAE in 1 s, %", "≤ 0.3", ours, theirs, "nmae_1s")
        total = self._nmae("total error, %", "±0.15", ours, theirs, "total_error")
        cpu = [run.cpu * PERCENT for run in ours]
        cpu_theirs = [
            sum(link.link_cpu + link.delay_cpu for link in run) * PERCENT for run in theirs
        ]
        return [nmae, total, Row("CPU, % of a core", "", cpu, cpu_theirs, _load(ours))]

    def echo(self) -> list[Row]:
        """Round trips over twice 20 ms, without load."""
        fast = [constant_trace(100.0, "100 Mbit/s")]
        ours = self._ours(fast, "echo", {"delay_ms": DELAY_MS})
        theirs = [
            measure_mahimahi(_as_file(fast), self._seconds, "echo", DELAY_MS)
            for _ in range(self._runs if self._mahimahi else 0)
        ]
        rows = []
        for what, target, name, share in (
            ("RTT error over 2×20 ms, median, ms", "≤ 0.3", "rtt_error_p50_ms", "rtt_p50_s"),
            ("99 %, ms", "≤ 1.5", "rtt_error_p99_ms", "rtt_p99_s"),
        ):
            mine = [getattr(run.links[0], name) for run in ours]
            other = [getattr(run[0], share) * MS_PER_S - 2 * DELAY_MS for run in theirs]
            rows.append(Row(what, target, mine, other, _load(ours)))
        return rows

    def fast(self) -> list[Row]:
        """One TCP connection over a link of 1 Gbit/s."""
        rows = []
        for what, target, python_loop in (
            ("one TCP flow, cap 1 Gbit/s: Mbit/s", "≥ 700", False),
            ("without the compiled loop: Mbit/s", "", True),
        ):
            trace = [constant_trace(FAST_MBPS)]
            runs = self._ours(trace, "cubic", FAST_LINK, python_loop, seconds=FAST_SECONDS)
            mbps = [run.links[0].delivered_mbps or 0.0 for run in runs]
            rows.append(Row(what, target, mbps, [], _load(runs)))
        return rows

    def many(self) -> list[Row]:
        """Forty links of 5 Mbit/s with a TCP connection each, in one process."""
        runs = self._ours([constant_trace(SMALL_MBPS)] * MANY, "cubic", {"backend": "userspace"})
        worst = [max(abs(link.total_error or 0.0) for link in run.links) * PERCENT for run in runs]
        cpu = [run.cpu for run in runs]
        return [
            Row(f"{MANY} links of 5 Mbit/s: worst total error, %", "≤ 0.5", worst, [], _load(runs)),
            Row("CPU, cores", "≤ 1", cpu, [], _load(runs)),
        ]

    def kernel(self) -> list[Row]:
        """The kernel's link with the same traces."""
        rows = []
        for traffic, what in (("udp", "UDP"), ("cubic", "TCP cubic")):
            runs = self._ours(self._traces, traffic, {"backend": "kernel"})
            rows.append(self._nmae(f"HTB, {what}: NMAE in 1 s, %", "", runs, [], "nmae_1s"))
        return rows

    def _both(self, traffic: str) -> tuple[list[Bench], list[list[MahimahiLink]]]:
        """Run by run, ours and theirs in turn."""
        ours, theirs = [], []
        for _ in range(self._runs):
            ours += self._ours(self._traces, traffic, {"delay_ms": DELAY_MS}, runs=1)
            if self._mahimahi:
                theirs.append(
                    measure_mahimahi(self._traces, self._seconds, traffic, DELAY_MS)  # type: ignore[arg-type]
                )
        return ours, theirs

    def _ours(
        self,
        traces: Sequence[Trace],
        traffic: str,
        link: dict[str, object],
        python_loop: bool = False,
        runs: int | None = None,
        seconds: float | None = None,
    ) -> list[Bench]:
        seconds = seconds or self._seconds
        return [
            bench_links(
                traces,
                seconds=seconds,
                traffic=traffic,
                link={"backend": "userspace", **link},
                python_loop=python_loop,
            )
            for _ in range(runs or self._runs)
        ]

    def _nmae(
        self,
        what: str,
        target: str,
        ours: Sequence[Bench],
        theirs: Sequence[Sequence[MahimahiLink]],
        name: str,
    ) -> Row:
        other = [statistics.median(getattr(link, name) for link in run) for run in theirs]
        return Row(
            what,
            target,
            [(run.median(name) or 0.0) * PERCENT for run in ours],
            [value * PERCENT for value in other],
            _load(ours),
        )


FAST_LINK: dict[str, object] = {"queue_packets": 1000}


def _as_file(traces: Sequence[Trace]) -> list[Trace]:
    """Short passes: a file of Mahimahi's has a line for every packet."""
    return [
        Trace(trace.name, trace.times_s[:2] / trace.times_s[1] * 10.0, trace.rates_mbps[:2])
        for trace in traces
    ]


def _load(runs: Sequence[Bench]) -> float:
    return statistics.mean(run.load for run in runs)


def _traces(data: Path | None) -> list[Trace]:
    if data is None:
        names = ("builtin:fcc", "builtin:lte")
        return [trace for name in names for trace in resolve_traces(name, None, Path(), limit=EACH)]
    broadband = resolve_traces("data:traces/broadband-3g/test", data, Path())
    cellular = resolve_traces("data:traces/cellular-mahimahi", data, Path())
    down = [trace for trace in cellular if "LTE" in trace.name and trace.name.endswith(".down")]
    return [*[trace for trace in broadband if "norway" not in trace.name][:EACH], *down[:EACH]]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" [{min(values):.2f}–{max(values):.2f}]" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{spread}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("TESTBED_DATA"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    names = ("udp", "cubic", "echo", "fast", "many", "kernel")
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    arguments = parser.parse_args()
    console = Console()
    problem = mahimahi_problem()
    suite = Suite(_traces(arguments.data), arguments.runs, arguments.seconds, problem is None)
    console.print(f"{platform.release()}, {os.cpu_count()} cores, {arguments.runs} runs")
    console.print(f"loop: {best_carrier().name}; Mahimahi: {problem or 'yes'}")
    for name in arguments.only:
        measure: Callable[[], list[Row]] = getattr(suite, name)
        table = Table("", "target", "ours", "Mahimahi", "load", box=box.SIMPLE_HEAD)
        for row in measure():
            table.add_row(
                row.what, row.target, _cell(row.ours), _cell(row.theirs), f"{row.load:.1f}"
            )
        console.print(table)


if __name__ == "__main__":
    main()
