"""``testbed collect`` and ``testbed pool``: experience pools made, joined and described."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from adapters.hindsight import Hindsight
from adapters.pool_files import read_pool, write_pool
from adapters.pool_summary import QUANTILES, PoolSummary, describe_pool
from adapters.pools import Pool, drop_duplicates, join_pools
from testbed.collecting import collect_pool, draw_starts, import_pool
from testbed.console import data_folder, errors, number, print_json, printed, show_progress
from testbed.experiment import ConfigError, plan_experiment, read_experiment
from testbed.labelling import Labels
from testbed.results import read_sessions
from testbed.sessions import Plan

pool_app = typer.Typer(help="Experience pools.", no_args_is_help=True)

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder that data: stands for.", envvar="TESTBED_DATA")
]
NewPoolOption = Annotated[Path, typer.Option("--out", help="Folder of the pool; must not exist.")]
ExpertOption = Annotated[
    str | None, typer.Option(help="Controller that labels every state with its decision.")
]
HindsightOption = Annotated[
    bool, typer.Option("--hindsight", help="Value every level of every state in hindsight.")
]
SimilarOption = Annotated[
    bool,
    typer.Option(
        "--drop-similar",
        help="Keep one session per trace, start and decisions, whatever was measured.",
    ),
]


def collect(
    experiment: Annotated[Path, typer.Argument(help="The experiment whose arms play.")],
    out: NewPoolOption,
    starts: Annotated[
        int | None, typer.Option(min=1, help="Start points per trace, drawn by the seed.")
    ] = None,
    expert: ExpertOption = None,
    hindsight: HindsightOption = False,
    keep: Annotated[
        float, typer.Option(help="Scheduling: share of the decisions that is kept.")
    ] = 1.0,
    data: DataOption = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key.")
    ] = None,
    driver: Annotated[str | None, typer.Option(help="simulated or emulated.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Sessions at once.")] = None,
) -> None:
    """Plays an experiment's sessions and keeps them as an experience pool."""
    _check_new(out)
    plan = plan_of(experiment, data, overrides, driver)
    if plan.experiment.task == "scheduling":
        from testbed.cli_scheduling import collect_scheduling  # which needs this module

        if starts is not None or hindsight or jobs is not None:
            raise ConfigError("--starts, --hindsight and --jobs are not for task 'scheduling'")
        collect_scheduling(plan, out, expert=expert, keep=keep)
        return
    if keep != 1.0:
        raise ConfigError(f"--keep is for task 'scheduling', here is {plan.experiment.task!r}")
    if starts is not None:
        plan = draw_starts(plan, starts)
    with show_progress(quiet=False) as progress:
        progress.planned(len(plan.sessions), 0)
        pool = collect_pool(
            plan,
            labels=_labels(expert, hindsight),
            jobs=jobs,
            made_by=(command_line(),),
            on_session=progress.session_finished,
        )
    _keep(pool, out, played=len(plan.sessions))


@pool_app.command("import")
def import_results(
    results: Annotated[Path, typer.Argument(help="Result folder of a run.")],
    out: NewPoolOption,
    video: Annotated[
        str | None, typer.Option(help="Where the chunk sizes are now, as in video.sizes.")
    ] = None,
    expert: ExpertOption = None,
    hindsight: HindsightOption = False,
    data: DataOption = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes.")] = None,
) -> None:
    """Makes a pool of the sessions of a run, simulated or emulated."""
    _check_new(out)
    sessions = len(read_sessions(results))
    with show_progress(quiet=False) as progress:
        progress.planned(sessions, 0)
        pool = import_pool(
            results,
            data_dir=data_folder(data),
            video=video,
            labels=_labels(expert, hindsight),
            jobs=jobs,
            made_by=(command_line(),),
            on_session=progress.session_finished,
        )
    _keep(pool, out, played=sessions)


@pool_app.command()
def merge(
    pools: Annotated[list[Path], typer.Argument(help="Folders of the pools.")],
    out: NewPoolOption,
    drop_similar: SimilarOption = False,
) -> None:
    """Joins pools; identical sessions are kept once, the one with the most labels."""
    _check_new(out)
    joined = join_pools([read_pool(folder) for folder in pools])
    before = len(joined.episodes)
    pool = drop_duplicates(joined, similar=drop_similar)
    write_pool(pool, out)
    kept = len(pool.episodes)
    printed.print(
        f"{kept} sessions, {pool.chunks} chunks in {out}; {before - kept} of {before} dropped",
        soft_wrap=True,
    )


@pool_app.command()
def describe(
    pool: Annotated[Path, typer.Argument(help="Folder of the pool.")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Says what is in a pool: sessions, arms, QoE, levels, labels, and how it was made."""
    summary = describe_pool(read_pool(pool))
    if as_json:
        print_json(dataclasses.asdict(summary))
        return
    _show(summary)


def plan_of(
    experiment: Path, data: Path | None, overrides: list[str] | None, driver: str | None
) -> Plan:
    """The experiment in a file, planned."""
    return plan_experiment(
        read_experiment(experiment, overrides=overrides or (), driver=driver),
        data_dir=data_folder(data),
        base=experiment.parent,
    )


def command_line() -> str:
    """The command as typed, for descriptions and cards."""
    return shlex.join(["testbed", *sys.argv[1:]])


def _check_new(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out")


def _labels(expert: str | None, hindsight: bool) -> Labels:
    return Labels(expert=expert, hindsight=Hindsight() if hindsight else None)


def _keep(pool: Pool, out: Path, *, played: int) -> None:
    """Writes a pool and says what is in it; exit code 1 if sessions are missing."""
    write_pool(pool, out)
    kept, dropped = len(pool.episodes), pool.duplicates_dropped
    said = f"{kept} sessions, {pool.chunks} chunks in {out}"
    if dropped:
        said += f"; {dropped} that were identical to others left out"
    printed.print(said, soft_wrap=True)
    failed = played - kept - dropped
    if failed:
        errors.print(f"{failed} sessions failed or had a single chunk and are not in the pool")
        raise typer.Exit(1)


def _show(summary: PoolSummary) -> None:
    printed.print(
        f"{summary.episodes} sessions, {summary.chunks} chunks on {summary.traces} traces",
    )
    for video in summary.videos:
        ladder = ", ".join(f"{rate:g}" for rate in video.levels_kbps)
        printed.print(
            f"  video {video.name}: {video.chunks} chunks of {video.chunk_s:g} s "
            f"at {ladder} kbit/s; {video.sessions} sessions",
            soft_wrap=True,
        )
    qoe = _table("arm", "sessions", "QoE/chunk", *(f"{one} %" for one in QUANTILES), "stalled")
    levels = _table("arm", *(f"level {level}" for level in range(max(summary.levels))))
    for arm in summary.arms:
        label = arm.arm
        if arm.controllers != (arm.arm,):
            label += f" ({', '.join(arm.controllers)})"
        qoe.add_row(
            label,
            str(arm.sessions),
            number(arm.qoe_mean),
            *map(number, arm.qoe_quantiles),
            f"{arm.stalled:.1%}",
        )
        levels.add_row(label, *(f"{share:.1%}" for share in arm.levels))
    printed.print(qoe)
    printed.print(levels)
    agrees = summary.expert_agrees
    said = "" if agrees is None else f"; the level taken is the expert's in {agrees:.1%} of them"
    printed.print(
        f"Labelled by an expert: {summary.expert_share:.0%} of the decisions{said}", soft_wrap=True
    )
    printed.print(f"Valued in hindsight: {summary.values_share:.0%} of the decisions")
    printed.print(
        f"Identical sessions left out: {summary.duplicates_dropped}; "
        f"sessions with trace, start and decisions of another: {summary.similar}",
        soft_wrap=True,
    )
    for line in summary.made_by:
        printed.print(f"Made by: {line}", soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
