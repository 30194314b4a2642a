"""The ``testbed`` command line: reads what the user wants, prints what happened.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong.
"""

from __future__ import annotations

import logging
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.logging import RichHandler

from adapters.pools import PoolError
from controllers.registry import InvalidOptions, UnknownController
from player.browser_parts import BrowserMissing
from player.content import ContentError
from player.head_motion import HeadMotionError
from player.sockets import ServerAddressError
from player.tiled_video import TiledVideoError
from player.trace import TraceError
from player.video import VideoFormatError
from testbed import __version__, cli_links, cli_traces, cli_training, cli_watch
from testbed.builtin import DataNotFound
from testbed.console import data_folder, errors, print_json, printed, show_arms, show_progress
from testbed.doctor import diagnose, render
from testbed.experiment import EXPERIMENTS, ConfigError, plan_experiment, read_experiment
from testbed.links.backends import LinkUnsupported
from testbed.links.htb import ShapingError
from testbed.plots import PlotError
from testbed.report import build_report
from testbed.result_rows import SUMMARY, ResultsError
from testbed.results import write_summary
from testbed.runner import run_experiment
from testbed.sandbox import SandboxError
from testbed.serving import UsageError, serve_arms
from testbed.topology import TopologyError
from testbed.trace_generators import UnknownTraceFamily
from testbed.traces import TraceFormatError

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2

#: What a user can mend: the message says what is wrong and what there is instead.
WRONG_INPUT = (
    BrowserMissing,
    ConfigError,
    ContentError,
    HeadMotionError,
    DataNotFound,
    InvalidOptions,
    LinkUnsupported,
    PlotError,
    PoolError,
    ResultsError,
    ServerAddressError,
    TraceError,
    TraceFormatError,
    TiledVideoError,
    UnknownController,
    UnknownTraceFamily,
    UsageError,
    VideoFormatError,
    cli_training.TrainingInputError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
FAILED = (SandboxError, ShapingError, TopologyError, BrokenProcessPool, OSError)

app = typer.Typer(
    help="Emulation testbed for learned network control.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_traces.app, name="trace")
app.add_typer(cli_links.app, name="link")
app.add_typer(cli_training.pool_app, name="pool")
app.add_typer(cli_training.train_app, name="train")
app.command("collect")(cli_training.collect)
app.command("watch")(cli_watch.watch_experiment)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder that data: stands for.", envvar="TESTBED_DATA", show_envvar=True
    ),
]


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Emulation testbed for learned network control."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False)],
    )
    if version:
        typer.echo(f"testbed {__version__}")
        raise typer.Exit


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Finds out by trying what this machine can do, and says how to get what is missing."""
    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.as_json())
    else:
        printed.print(render(diagnosis))
    if not diagnosis.ready:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Result folder; by default a new one below results/.")
    ] = None,
    data: DataOption = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as link.delay_ms=20."),
    ] = None,
    driver: Annotated[
        str | None, typer.Option(help="offline (viewport), simulated or emulated.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Players at once.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Runs every session of an experiment and writes results and report."""
    plan = plan_experiment(
        read_experiment(experiment, overrides=overrides or (), driver=driver),
        data_dir=data_folder(data),
        base=experiment.parent,
    )
    folder = out or _fresh_folder(experiment.stem)
    if resume and out is None:
        raise ConfigError("--resume needs --out, the folder to go on with")
    with show_progress(quiet=as_json) as progress:
        outcome = run_experiment(plan, folder, jobs=jobs, resume=resume, progress=progress)
    if as_json:
        print_json(outcome.summary)
    else:
        show_arms(outcome.summary)
        told = f"Report: {outcome.report}" if outcome.report else f"Results: {outcome.folder}"
        printed.print(told, soft_wrap=True)
    if outcome.failed:
        errors.print(f"{outcome.failed} sessions failed; sessions.jsonl says why")
        raise typer.Exit(EXIT_FAILED)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Result folder, or several to set side by side.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; by default in the first folder.")
    ] = None,
) -> None:
    """Rebuilds summary.json and report.html from the sessions in a folder."""
    summaries = [write_summary(folder) for folder in folders]
    path = build_report(folders, out)
    if path is not None:
        printed.print(f"Report: {path}", soft_wrap=True)
        return
    for folder, summary in zip(folders, summaries, strict=True):
        printed.print(f"{folder / SUMMARY}", soft_wrap=True)
        show_arms(summary)


@app.command()
def serve(
    arm: Annotated[
        list[str],
        typer.Option(metavar="NAME[=OPTIONS]", help="A controller; options as key=value,… ."),
    ],
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8100,
    task: Annotated[str, typer.Option(help=" or ".join(EXPERIMENTS) + ".")] = "abr",
) -> None:
    """Serves controllers over HTTP until interrupted."""
    serve_arms(
        task, arm, host=host, port=port, on_ready=lambda url: printed.print(f"Serving {url}")
    )


def _fresh_folder(name: str) -> Path:
    """A result folder below ``results`` that does not exist yet."""
    wanted = Path("results") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


class Interrupted(BaseException):
    """SIGINT or SIGTERM came; everything unwinds, so that what runs is taken down in order."""


def main() -> None:
    """Entry point: errors become one message and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except WRONG_INPUT as error:
        _say("error", error)
        sys.exit(EXIT_WRONG_INPUT)
    except FAILED as error:
        _say("failed", error)
        sys.exit(EXIT_FAILED)
    except Interrupted as signalled:
        errors.print("interrupted; what a run had finished is kept, see --resume")
        sys.exit(128 + signalled.args[0])


def _say(what: str, error: Exception) -> None:
    errors.print(f"{what}: {error}", style="red", soft_wrap=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    main()
