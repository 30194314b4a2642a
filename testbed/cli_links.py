"""``testbed link``: measures the links of this machine."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.table import Table

from player.trace import Trace
from testbed.builtin import resolve_traces
from testbed.console import data_folder, print_json, printed
from testbed.experiment import ConfigError
from testbed.link_bench import TRAFFIC, Bench, bench_links
from testbed.links.spec import constant_trace

app = typer.Typer(help="Measure how faithful emulated links are.", no_args_is_help=True)

RATE = "rate:"
DEFAULT_TRACES = "builtin:mixed"
DEFAULT_LINKS = 6
PERCENT = 100.0
LOAD_COLUMNS = (
    ("Mbit/s", "delivered_mbps"),
    ("NMAE 1 s", "nmae_1s"),
    ("0.1 s", "nmae_100ms"),
    ("total %", "total_error"),
    ("queue", "queue_packets"),
    ("full", "queue_drops"),
    ("lost", "losses"),
    ("AQM", "aqm_drops"),
    ("marked", "marks"),
    ("delay ms", "delay_p50_ms"),
    ("p99", "delay_p99_ms"),
    ("late ms", "late_ms"),
)
ECHO_COLUMNS = (
    ("RTT error p50 ms", "rtt_error_p50_ms"),
    ("p99 ms", "rtt_error_p99_ms"),
    ("not back", "echoes_lost"),
    ("late ms", "late_ms"),
)
SHARES = ("nmae_1s", "nmae_100ms", "total_error")  # shown in percent
SHOWN_IF_ANY = ("losses", "aqm_drops", "marks")


@app.callback()
def top() -> None:
    """Measure how faithful emulated links are."""


@app.command()
def bench(
    traces: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, data:PATH, builtin:NAME, or rate:MBPS."),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, max=100, help="Links at once; traces are taken in turn.")
    ] = DEFAULT_LINKS,
    seconds: Annotated[float, typer.Option(help="How long.")] = 30.0,
    traffic: Annotated[str, typer.Option(help=", ".join(TRAFFIC) + ".")] = "cubic",
    backend: Annotated[str, typer.Option(help="auto, userspace or kernel.")] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of [link], such as delay_ms=20."),
    ] = None,
    data: Annotated[Path | None, typer.Option(envvar="TESTBED_DATA")] = None,
    python_loop: Annotated[
        bool, typer.Option("--python-loop", help="User-space link: do without what is compiled.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Sends real packets over links that replay traces, and compares what arrives with them."""
    names = traces or [DEFAULT_TRACES]
    each = -(-count // len(names))
    found = [item for name in names for item in _traces(name, data, each)]
    links = list(itertools.islice(itertools.cycle(found), count))
    done = bench_links(
        links,
        seconds=seconds,
        traffic=traffic,
        link={"backend": backend, **_settings(settings or [])},
        python_loop=python_loop,
    )
    if as_json:
        print_json(done.as_json())
    else:
        printed.print(_table(done))
        printed.print(
            f"{done.backend.name} ({done.backend.why}); {done.cpu:.2f} cores for all links; "
            f"load average before: {done.load:.2f}",
            soft_wrap=True,
        )


def _traces(name: str, data: Path | None, count: int) -> tuple[Trace, ...]:
    if not name.startswith(RATE):
        return resolve_traces(name, data_folder(data), Path(), limit=count)
    try:
        rate_mbps = float(name.removeprefix(RATE))
    except ValueError:
        rate_mbps = float("nan")
    if not 0.0 < rate_mbps <= 1e6 or not np.isfinite(rate_mbps):
        raise ConfigError(f"{name}: expected rate: and a number of Mbit/s, such as rate:5")
    return (constant_trace(rate_mbps, name),)


def _settings(assignments: list[str]) -> dict[str, Any]:
    """The table ``[link]`` from ``key=value``; the value is TOML, or else a string."""
    table: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.removeprefix("link.")
        if not separator or not key:
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        inner = table
        *path, last = key.split(".")
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {assignment}: {part} is a value, not a table")
        inner[last] = value
    return table


def _table(done: Bench) -> Table:
    table = Table(
        title=f"{len(done.links)} links, {done.traffic}, {done.seconds:g} s",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("trace", overflow="ellipsis", no_wrap=True, max_width=24)
    columns = ECHO_COLUMNS if done.traffic == "echo" else LOAD_COLUMNS
    shown = [
        (title, name)
        for title, name in columns
        if name not in SHOWN_IF_ANY or any(getattr(link, name) for link in done.links)
    ]
    for title, _ in shown:
        table.add_column(title, justify="right")
    for link in done.links:
        table.add_row(link.trace, *(_cell(getattr(link, name), name) for _, name in shown))
    if len(done.links) > 1:
        table.add_section()
        table.add_row("median", *(_cell(done.median(name), name) for _, name in shown))
    return table


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value * PERCENT:.3f}"
    return f"{value:.2f}" if name.endswith(("_ms", "_mbps")) else f"{value:.0f}"
