"""``testbed train scheduling`` and ``testbed train decima``; pools of scheduling decisions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.pools import PoolError
from adapters.scheduling_pools import (
    SchedulingPool,
    join_scheduling_pools,
    read_scheduling_pool,
    write_scheduling_pool,
)
from testbed.cli_pools import DataOption, command_line, plan_of
from testbed.console import printed, show_steps
from testbed.experiment import ConfigError
from testbed.scheduling_rollouts import PlannedTrials, collect_decisions, jct_ratio, scheduling_plan
from testbed.sessions import Plan
from testbed.training_report import write_training_report

if TYPE_CHECKING:
    from adapters.decima_training import TrainingStep

DEFAULT_EXPERT = "decima"


def collect_scheduling(plan: Plan, out: Path, *, expert: str | None, keep: float) -> None:
    """Plays an experiment's sessions and keeps decisions as an experience pool."""
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep must be above 0 and at most 1, is {keep}")
    made_by = (command_line(),)
    for one in collect_decisions(plan, expert=expert or DEFAULT_EXPERT, keep=keep, made_by=made_by):
        if not isinstance(one, SchedulingPool):
            printed.print(
                f"{one.arm}, seed {one.seed}: {one.decisions} decisions, JCT {one.mean_jct_s:.2f} s"
            )
            continue
        write_scheduling_pool(one, out)
        printed.print(
            f"{len(one.episodes)} sessions, {one.decisions.height} decisions in {out}",
            soft_wrap=True,
        )


def train_scheduling(
    pool: Annotated[list[Path], typer.Option(help="Pool to learn from; may be given again.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    backbone: Annotated[
        str, typer.Option(help="minilm, or a causal LM's folder or id.")
    ] = "minilm",
    base: Annotated[
        str | None, typer.Option(help="Checkpoint of decima that the language model adds to.")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(help="Checkpoint of such a training to go on from.")
    ] = None,
    validate: Annotated[
        Path | None,
        typer.Option(help="Simulated experiment whose seeds choose the best epoch, by JCT."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches per epoch.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Decisions per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0)] = None,
    hold_out: Annotated[
        float | None, typer.Option(help="Share of the sessions to measure the loss on.")
    ] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without progress.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (the GPU if there is one), cpu or cuda.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed training.")] = False,
    data: DataOption = None,
) -> None:
    """Adapts a language model to cluster scheduling."""
    # torch takes seconds to load: only this command pays for it.
    from adapters import backbones, checkpoint_files, training_loop
    from adapters import scheduling_training as training
    from testbed.cli_training import EXIT_FAILED, TrainingInputError, check_out, tell_divergence

    check_out(out, resume=resume)
    if start_from is not None and (base is not None or backbone != "minilm"):
        raise ConfigError("--start-from says what base and backbone are; leave them out")
    evaluate = None
    if validate is not None:
        plan = plan_of(validate, data, None, None)
        evaluate = jct_ratio(scheduling_plan(plan, "a validation experiment"))
    try:
        config = dataclasses.replace(
            training.SchedulingTraining(seed=seed),
            **_given(
                epochs=epochs,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                hold_out=hold_out,
                patience=patience,
                threads=threads,
                device=device,
            ),
        )
        with show_steps() as on_progress:
            report = training.train_scheduling(
                join_scheduling_pools([read_scheduling_pool(folder) for folder in pool]),
                out,
                backbone=backbone,
                base=base or training.DEFAULT_BASE,
                start_from=start_from,
                config=config,
                evaluate=evaluate,
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
        PoolError,
    ) as error:
        raise TrainingInputError(str(error)) from error
    for row in report.epochs:
        chosen = " *" if row["epoch"] == report.best_epoch else ""
        told = [f"loss {row['train_loss']:.4f}"]
        for name, text in (
            ("valid_loss", "held out {:.4f}"),
            ("valid_accuracy", "expert's stage {:.1%}"),
            ("valid_jct_ratio", "JCT {:.4f} of fair's"),
        ):
            if row.get(name) is not None:
                told.append(text.format(row[name]))
        printed.print(f"epoch {row['epoch']}: {', '.join(told)}{chosen}")
    printed.print(f"Checkpoint: {report.checkpoint}", soft_wrap=True)
    printed.print(f"Report: {write_training_report(out)}", soft_wrap=True)


def train_decima(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    workloads: Annotated[
        list[Path],
        typer.Option(help="Simulated experiment whose seeds are played; may be given again."),
    ],
    start_from: Annotated[
        str | None, typer.Option(help="Checkpoint to go on from; by default a rule by hand.")
    ] = None,
    linear_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps that train the linear weights alone.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Steps that train all weights.")] = None,
    pairs: Annotated[
        int | None, typer.Option(min=2, help="Pairs of opposite perturbations per step.")
    ] = None,
    step_size: Annotated[float | None, typer.Option(min=0)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    data: DataOption = None,
) -> None:
    """Trains Decima's policy by an evolution strategy, in simulated clusters."""
    # torch takes seconds to load: only this command pays for it.
    from adapters.checkpoint_files import CheckpointError
    from adapters.decima import load_decima, save_decima
    from adapters.decima_training import DecimaTraining, as_card
    from adapters.decima_training import train_decima as train
    from adapters.provenance import describe_origin
    from testbed.cli_training import TrainingInputError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; choose another --out")
    plans = [
        scheduling_plan(plan_of(one, data, None, None), "experiments to train on")
        for one in workloads
    ]
    given = _given(linear_steps=linear_steps, steps=steps, pairs=pairs, step_size=step_size)
    count = sum(len(plan.workloads) for plan in plans)
    begin = DecimaTraining()
    if start_from is not None and linear_steps is None:
        given["linear_steps"] = 0
    try:
        start = None if start_from is None else load_decima(start_from)
        config = dataclasses.replace(
            begin,
            seed=seed,
            first_workload=0,
            workloads=count,
            **{"pairs": min(begin.pairs, count), **given},
        )
    except CheckpointError as error:
        raise TrainingInputError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    whole = config.linear_steps + config.steps
    with show_steps() as show, PlannedTrials(plans, processes=jobs) as play:

        def on_step(at: TrainingStep) -> None:
            show(_Step(1, 1, at.step, whole, at.ratio))

        trained = train(play, config, start=start, on_step=on_step)
    card = {
        "task": "scheduling",
        "method": "decima",
        "command": command_line(),
        "seed": seed,
        "start_from": start_from,
        "training": {
            name: getattr(config, name)
            for name in ("linear_steps", "steps", "pairs", "workloads", "step_size", "worst_ratio")
        },
        "experiments": [
            {
                "jobs": plan.experiment.jobs,
                "num_jobs": plan.experiment.num_jobs,
                "executors": plan.experiment.executors,
                "arrivals": plan.experiment.arrivals,
                "arrival_mean_s": plan.experiment.arrival_mean_s,
                "seeds": list(plan.workloads),
            }
            for plan in plans
        ],
        "objective": "mean job completion time divided by that of fair on the same seed",
        **as_card(trained),
        **describe_origin(),
    }
    save_decima(out, trained.policy, card)
    if trained.curve:
        printed.print(f"JCT {trained.curve[-1].ratio:.4f} of fair's in the last step's trials")
    printed.print(f"Checkpoint: {out}", soft_wrap=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """For the progress bar; what it calls the loss is the ratio to the baseline."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


def _given(**options: Any) -> dict[str, Any]:
    """Those that were given."""
    return {key: value for key, value in options.items() if value is not None}
