"""``testbed trace``: inspect, convert and generate bandwidth traces."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from testbed.builtin import resolve_traces
from testbed.console import data_folder, print_json, printed
from testbed.experiment import ConfigError
from testbed.plots import save_trace_plot
from testbed.trace_generators import GENERATORS, generate_trace
from testbed.traces import describe, read_trace, write_mahimahi, write_two_column

app = typer.Typer(help="Inspect, convert and generate bandwidth traces.", no_args_is_help=True)

TraceFormat = Enum("TraceFormat", {"two-column": "two-column", "mahimahi": "mahimahi"})
MAX_DURATION_S = 7 * 86_400.0
WRITERS = {"two-column": write_two_column, "mahimahi": write_mahimahi}


@app.command()
def show(
    trace: Annotated[str, typer.Argument(help="A file, a folder, data:PATH or builtin:NAME.")],
    data: Annotated[Path | None, typer.Option(envvar="TESTBED_DATA")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw it (one trace): PNG, SVG or PDF.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Describes traces: length, mean, spread, outages."""
    traces = resolve_traces(trace, data_folder(data), Path())
    if plot is not None:
        if len(traces) > 1:
            raise ConfigError(f"--plot draws one trace; {trace} has {len(traces)}")
        save_trace_plot(traces[0], plot)
    described = {item.name: dataclasses.asdict(describe(item)) for item in traces}
    if as_json:
        print_json({"traces": [{"name": name} | row for name, row in described.items()]})
        return
    for name, row in described.items():
        printed.print(name, style="bold")
        for key, value in row.items():
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            printed.print(f"  {key}: {text}")
    if plot is not None:
        printed.print(f"Plot: {plot}", soft_wrap=True)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Trace in either format.")],
    target: Annotated[Path, typer.Argument(help="File to write.")],
    to: Annotated[TraceFormat, typer.Option(help="Format to write.")],
) -> None:
    """Converts a trace between the two-column and the Mahimahi format."""
    if target.exists():
        raise ConfigError(f"{target} exists; remove it first or choose another name")
    WRITERS[to.value](read_trace(source), target)
    printed.print(f"Wrote {target}", soft_wrap=True)


@app.command()
def generate(
    family: Annotated[str, typer.Argument(help=f"One of {', '.join(GENERATORS)}.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of traces.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal traces.")] = 0,
    duration_s: Annotated[float, typer.Option(min=1, help="Length of each, seconds.")] = 320.0,
    to: Annotated[TraceFormat, typer.Option(help="Format to write.")] = TraceFormat["two-column"],
) -> None:
    """Generates seeded synthetic traces."""
    digits = len(str(count - 1))
    names = [f"{family}-{seed}-{number:0{digits}d}" for number in range(count)]
    for name in names:
        if (out / name).exists():
            raise ConfigError(f"{out / name} exists; choose another --out or --seed")
    if not duration_s <= MAX_DURATION_S:
        raise ConfigError(f"--duration-s must be at most {MAX_DURATION_S:.0f}, a week")
    generated = [
        generate_trace(family, name, np.random.default_rng([seed, number]), duration_s=duration_s)
        for number, name in enumerate(names)
    ]
    out.mkdir(parents=True, exist_ok=True)
    for trace in generated:
        WRITERS[to.value](trace, out / trace.name)
    printed.print(f"Wrote {count} traces to {out}", soft_wrap=True)
