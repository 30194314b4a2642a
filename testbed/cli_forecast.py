"""``testbed train forecast``: a language model that foretells throughput, for the planner."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.builtin import resolve_traces
from testbed.cli_pools import DataOption, command_line
from testbed.console import data_folder, printed, show_steps
from testbed.experiment import ConfigError
from testbed.training_report import write_training_report


def train_forecast(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    traces: Annotated[
        list[str], typer.Option(help="Traces to learn from; given again, each has the same share.")
    ],
    validate: Annotated[
        list[str], typer.Option(help="Other traces, to choose the best epoch; may be given again.")
    ],
    backbone: Annotated[
        str, typer.Option(help="minilm, or a causal LM's folder or id.")
    ] = "minilm",
    start_from: Annotated[
        str, typer.Option(help="Checkpoint of fugu that the head begins as; none: at random.")
    ] = "builtin:abr-fugu",
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of play per epoch.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="Sessions per round.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0)] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without progress.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
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
    """Adapts a language model to foretell throughput; levels are then planned."""
    # torch takes seconds to load: only this command pays for it.
    from adapters import backbones, checkpoint_files, forecasting, training_loop
    from testbed.cli_training import EXIT_FAILED, TrainingInputError, check_out, tell_divergence

    if set(traces) & set(validate):
        raise ConfigError("--validate must name other traces than --traces")
    check_out(out, resume=resume)
    folder = data_folder(data)
    given: dict[str, Any] = {
        "epochs": epochs,
        "rounds": rounds,
        "sessions": sessions,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "threads": threads,
        "device": device,
    }
    try:
        config = dataclasses.replace(
            forecasting.ForecastConfig(seed=seed, gradient_checkpointing=gradient_checkpointing),
            **{key: value for key, value in given.items() if value is not None},
        )
        with show_steps() as on_progress:
            report = forecasting.train_forecast(
                {spec: resolve_traces(spec, folder) for spec in traces},
                {spec: resolve_traces(spec, folder) for spec in validate},
                backbone,
                out,
                config=config,
                start_from=None if start_from == "none" else start_from,
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
    ) as error:
        raise TrainingInputError(str(error)) from error
    for row in report.epochs:
        chosen = " *" if row["epoch"] == report.best_epoch else ""
        printed.print(
            f"epoch {row['epoch']}: loss {row['train_loss']:.4f}, "
            f"held out {row['valid_loss']:.4f}{chosen}"
        )
    printed.print(f"Checkpoint: {report.checkpoint}", soft_wrap=True)
    printed.print(f"Report: {write_training_report(out)}", soft_wrap=True)
