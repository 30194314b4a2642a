"""``testbed train``: from experience pools to an adapted model."""

from __future__ import annotations

import dataclasses
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.pool_files import read_pool
from adapters.pools import PoolError, drop_duplicates, join_pools
from player.observation import ObservationError
from testbed import cli_baselines, cli_forecast, cli_fugu, cli_scheduling, cli_viewport
from testbed.cli_pools import DataOption, command_line, plan_of
from testbed.cli_pools import collect as collect
from testbed.cli_pools import pool_app as pool_app
from testbed.console import errors, number, printed, show_steps
from testbed.experiment import ConfigError
from testbed.rollouts import rollout_score
from testbed.training_report import write_training_report

if TYPE_CHECKING:
    from adapters.training import TrainingReport
    from adapters.training_loop import TrainingDiverged

train_app = typer.Typer(help="Adapt a language model.", no_args_is_help=True)
cli_baselines.add_commands(train_app)
train_app.command("forecast")(cli_forecast.train_forecast)
train_app.command("fugu")(cli_fugu.train_fugu)
train_app.command("viewport")(cli_viewport.train_viewport)
train_app.command("scheduling")(cli_scheduling.train_scheduling)
train_app.command("decima")(cli_scheduling.train_decima)

EXIT_FAILED = 1


class TrainingInputError(ValueError):
    """Something given to ``train`` or ``collect`` is wrong; the message says what."""


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
    device: Annotated[
        str | None, typer.Option(help="auto (the GPU if there is one), cpu or cuda.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed training.")] = False,
    data: DataOption = None,
) -> None:
    """Adapts a language model to bitrate control."""
    # torch takes seconds to load: only this command pays for it.
    from adapters import backbones, checkpoint_files, training, training_loop

    score = None if validate is None else rollout_score(plan_of(validate, data, None, None))
    check_out(out, resume=resume)
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "threads": threads,
        "device": device,
    }
    try:
        config = dataclasses.replace(
            training.TrainingConfig(
                seed=seed,
                tell_returns=tell_returns,
                gradient_checkpointing=gradient_checkpointing,
            ),
            **{key: value for key, value in given.items() if value is not None},
        )
        with show_steps() if is_main_process() else nullcontext() as on_progress:
            report = training.train_abr(
                drop_duplicates(join_pools([read_pool(folder) for folder in pool])),
                backbone,
                out,
                config=config,
                evaluate=score,
                command=command_line(),
                resume=resume,
                on_progress=on_progress,
            )
    except training_loop.TrainingDiverged as error:
        tell_divergence(error, out)
        raise typer.Exit(EXIT_FAILED) from error
    except (
        backbones.BackboneError,
        checkpoint_files.CheckpointError,
        training_loop.TrainingError,
        ObservationError,
        PoolError,
    ) as error:
        raise TrainingInputError(str(error)) from error
    if is_main_process():
        _show(report)
        printed.print(f"Report: {write_training_report(out)}", soft_wrap=True)


def check_out(out: Path, *, resume: bool) -> None:
    """Refuses a checkpoint folder that holds something, unless its training goes on.

    Raises:
        ConfigError: it does.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not resume)):
        raise ConfigError(f"{out} is not empty; go on with --resume or choose another --out")


def is_main_process() -> bool:
    """Whether this is the only process of a training, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def tell_divergence(error: TrainingDiverged, out: Path) -> None:
    """Says what became of a training that diverged, and how to go on; writes its report."""
    errors.print(f"failed: {error}", style="red", soft_wrap=True)
    lower = f"a lower rate, say --learning-rate {error.learning_rate / 3:.1g}"
    if not error.kept_epochs:
        errors.print(f"No epoch was finished: start again with {lower}", soft_wrap=True)
        return
    if is_main_process():
        report = write_training_report(out)
        errors.print(f"{out} has the best epoch before that; see {report}", soft_wrap=True)
    errors.print(
        f"--resume goes on behind epoch {error.kept_epochs}: do so with {lower}", soft_wrap=True
    )


def _show(report: TrainingReport) -> None:
    for epoch in report.epochs:
        chosen = " *" if epoch.epoch == report.best_epoch else ""
        regret = number(epoch.valid_regret)
        printed.print(
            f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, held out {epoch.valid_loss:.4f}, "
            f"regret {regret}, QoE {number(epoch.valid_qoe)}{chosen}",
        )
    printed.print(f"Checkpoint: {report.checkpoint}", soft_wrap=True)
