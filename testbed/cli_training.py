"""``testbed collect``, ``pool`` and ``train``: from sessions to an adapted model."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.hindsight import Hindsight
from adapters.pools import PoolError, describe_pool, join_pools, read_pool, write_pool
from player.observation import ObservationError
from testbed.collecting import collect_pool, draw_starts
from testbed.console import (
    data_folder,
    errors,
    number,
    print_json,
    printed,
    show_progress,
    show_steps,
)
from testbed.experiment import ConfigError, Plan, plan_experiment, read_experiment
from testbed.rollouts import rollout_score
from testbed.runner import default_jobs

train_app = typer.Typer(help="Adapt a language model.", no_args_is_help=True)
pool_app = typer.Typer(help="Experience pools.", no_args_is_help=True)

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder that data: stands for.", envvar="TESTBED_DATA")
]


class TrainingInputError(ValueError):
    """Something given to ``train`` or ``collect`` is wrong; the message says what."""


def collect(
    experiment: Annotated[Path, typer.Argument(help="The experiment whose arms play.")],
    out: Annotated[Path, typer.Option(help="Folder of the pool; must not exist.")],
    starts: Annotated[
        int | None, typer.Option(min=1, help="Start points per trace, drawn by the seed.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="Controller that labels every state with its decision.")
    ] = None,
    hindsight: Annotated[
        bool, typer.Option("--hindsight", help="Value every level of every state in hindsight.")
    ] = False,
    data: DataOption = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key.")
    ] = None,
    driver: Annotated[str | None, typer.Option(help="simulated or emulated.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Sessions at once.")] = None,
) -> None:
    """Plays an experiment's sessions and keeps them as an experience pool."""
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out")
    plan = _plan(experiment, data, overrides, driver)
    if starts is not None:
        plan = draw_starts(plan, starts)
    with show_progress(quiet=False) as progress:
        progress.planned(len(plan.sessions), 0)
        pool = collect_pool(
            plan,
            expert=expert,
            hindsight=Hindsight() if hindsight else None,
            jobs=jobs or default_jobs(plan, plan.sessions),
            made_by=(_command(),),
            on_session=progress.session_finished,
        )
    write_pool(pool, out)
    failed = len(plan.sessions) - len(pool.episodes)
    printed.print(
        f"{len(pool.episodes)} sessions, {pool.chunks} chunks in {out}",
        soft_wrap=True,
    )
    if failed:
        errors.print(f"{failed} sessions failed and are not in the pool")
        raise typer.Exit(1)


@pool_app.command()
def describe(
    pool: Annotated[Path, typer.Argument(help="Folder of the pool.")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Says what is in a pool: sessions, chunks, arms, labels."""
    summary = dataclasses.asdict(describe_pool(read_pool(pool)))
    if as_json:
        print_json(summary)
        return
    for key, value in summary.items():
        printed.print(f"{key}: {value}", soft_wrap=True)


@train_app.command("abr")
def train_abr(
    pool: Annotated[list[Path], typer.Option(help="Pool to learn from; may be given again.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    backbone: Annotated[
        str, typer.Option(help="minilm, or a causal LM's folder or id.")
    ] = "minilm",
    validate: Annotated[
        Path | None,
        typer.Option(help="Simulated experiment whose traces choose the best epoch, by QoE."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0)] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without progress.")] = None,
    tell_returns: Annotated[
        bool, typer.Option("--tell-returns", help="Condition on return-to-go, as NetLLM does.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed training.")] = False,
    data: DataOption = None,
) -> None:
    """Adapts a language model to bitrate control."""
    # torch takes seconds to load: only this command pays for it.
    from adapters import backbones, checkpoints, training

    score = None if validate is None else rollout_score(_plan(validate, data, None, None))
    if out.exists() and any(out.iterdir()) and not resume:
        raise ConfigError(f"{out} is not empty; go on with --resume or choose another --out")
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "threads": threads,
    }
    try:
        config = dataclasses.replace(
            training.TrainingConfig(seed=seed, tell_returns=tell_returns),
            **{key: value for key, value in given.items() if value is not None},
        )
        with show_steps() as on_progress:
            report = training.train_abr(
                join_pools([read_pool(folder) for folder in pool]),
                backbone,
                out,
                config=config,
                evaluate=score,
                command=_command(),
                resume=resume,
                on_progress=on_progress,
            )
    except (
        backbones.BackboneError,
        checkpoints.CheckpointError,
        training.TrainingError,
        ObservationError,
        PoolError,
    ) as error:
        raise TrainingInputError(str(error)) from error
    for epoch in report.epochs:
        chosen = " *" if epoch.epoch == report.best_epoch else ""
        regret = number(epoch.valid_regret)
        printed.print(
            f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, held out {epoch.valid_loss:.4f}, "
            f"regret {regret}, QoE {number(epoch.valid_qoe)}{chosen}",
        )
    printed.print(f"Checkpoint: {report.checkpoint}", soft_wrap=True)


def _plan(
    experiment: Path, data: Path | None, overrides: list[str] | None, driver: str | None
) -> Plan:
    return plan_experiment(
        read_experiment(experiment, overrides=overrides or (), driver=driver),
        data_dir=data_folder(data),
        base=experiment.parent,
    )


def _command() -> str:
    """The command as typed, for descriptions and cards."""
    return shlex.join(["testbed", *sys.argv[1:]])
