"""``testbed train viewport``: predictors of head motion, with or without a language model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from player.head_motion import HeadMotionError
from testbed.builtin import resolve_recordings
from testbed.cli_pools import DataOption, command_line
from testbed.console import data_folder, printed, show_steps
from testbed.experiment import ConfigError
from testbed.training_report import write_training_report

GRU = "gru"


def train_viewport(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    recordings: Annotated[
        str, typer.Option(help="Head motion: builtin:NAME, data:PATH or a folder.")
    ],
    videos: Annotated[str | None, typer.Option(help="Only these, such as 1,5,9.")] = None,
    users: Annotated[str | None, typer.Option(help="Only these viewers, such as 2,3.")] = None,
    backbone: Annotated[
        str,
        typer.Option(
            help="minilm, or a causal LM's folder or id; none: small networks alone, "
            "gru: the recurrent baseline."
        ),
    ] = "minilm",
    start_from: Annotated[
        list[str] | None,
        typer.Option(
            help="Checkpoint whose networks this begins with; given several times: those of all."
        ),
    ] = None,
    members: Annotated[
        int | None, typer.Option(min=1, help="Networks whose answers are averaged.")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="Width of a network.")] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(
            help="Share of the videos and of the viewers to choose the best epoch by; "
            "0: learn from all, keep the last."
        ),
    ] = None,
    alone: Annotated[
        float | None,
        typer.Option(help="Share of the batches that are told no earlier viewers."),
    ] = None,
    strangers: Annotated[
        float | None,
        typer.Option(help="Share of the windows whose earlier viewers are turned away."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches per epoch.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0)] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without progress.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (the GPU if there is one), cpu or cuda.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed training.")] = False,
    data: DataOption = None,
) -> None:
    """Adapts a language model to foretell where viewers of 360° video will look."""
    # torch takes seconds to load: only this command pays for it.
    from adapters import backbones, checkpoint_files, training_loop, viewport_training
    from adapters.viewport_model import GRU_MODEL, ViewportModelConfig
    from adapters.viewport_policy import NO_BACKBONE
    from testbed.cli_training import EXIT_FAILED, TrainingInputError, check_out, tell_divergence

    check_out(out, resume=resume)
    if start_from and (backbone == GRU or members or hidden_size):
        raise ConfigError("--start-from says what the networks are; leave out other options of it")
    is_alone = backbone in (GRU, NO_BACKBONE)
    begin = (
        viewport_training.ViewportTraining() if is_alone else viewport_training.ADDITION_TRAINING
    )
    try:
        found = resolve_recordings(
            recordings,
            data_folder(data),
            videos=_numbers("--videos", videos),
            users=_numbers("--users", users),
        )
        config = dataclasses.replace(
            begin,
            seed=seed,
            **_given(
                hold_out=hold_out,
                alone=alone,
                strangers=strangers,
                epochs=epochs,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                patience=patience,
                threads=threads,
                device=device,
            ),
        )
        shape = _given(members=members, hidden_size=hidden_size)
        model = GRU_MODEL if backbone == GRU else ViewportModelConfig()
        with show_steps() as on_progress:
            report = viewport_training.train_viewport(
                found,
                out,
                backbone=NO_BACKBONE if is_alone else backbone,
                config=config,
                model=None if start_from else dataclasses.replace(model, **shape),
                start_from=start_from or (),
                data={"source": recordings},
                command=command_line(),
                resume=resume,
                on_progress=on_progress,
            )
    except training_loop.TrainingDiverged as error:
        tell_divergence(error, out)
        raise typer.Exit(EXIT_FAILED) from error
    except (
        HeadMotionError,
        backbones.BackboneError,
        checkpoint_files.CheckpointError,
        training_loop.TrainingError,
    ) as error:
        raise TrainingInputError(str(error)) from error
    for row in report.epochs:
        chosen = " *" if row["epoch"] == report.best_epoch else ""
        held = row.get("valid_loss")
        told = "" if held is None else f", held out {held:.3f}°"
        printed.print(f"epoch {row['epoch']}: loss {row['train_loss']:.3f}{told}{chosen}")
    printed.print(f"Checkpoint: {report.checkpoint}", soft_wrap=True)
    printed.print(f"Report: {write_training_report(out)}", soft_wrap=True)


def _given(**options: Any) -> dict[str, Any]:
    """Those that were given."""
    return {key: value for key, value in options.items() if value is not None}


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Numbers with commas between them.

    Raises:
        ConfigError: something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} must be numbers such as 1,5,9, is {text!r}") from error
