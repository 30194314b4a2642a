"""``testbed train fugu``: the throughput model that the planner ``fugu`` plans over."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.trace import Trace
from player.vectorised import Sessions, play_vectorised
from testbed.builtin import builtin_video, resolve_traces
from testbed.cli_pools import DataOption, command_line
from testbed.console import data_folder, printed, show_steps
from testbed.experiment import ConfigError

if TYPE_CHECKING:
    from adapters.throughput_model import ThroughputModel
    from adapters.throughput_training import ThroughputProgress

#: Where validation sessions start, per trace.
VALIDATION_STARTS = 4
VALIDATION_VIDEO = "envivio-like-train"


def train_fugu(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    traces: Annotated[
        list[str] | None,
        typer.Option(help="Traces to learn from; given again, each has the same share."),
    ] = None,
    validate: Annotated[
        list[str] | None, typer.Option(help="Traces to measure on; may be given again.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimiser.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Chunks per step.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="Sessions side by side.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    data: DataOption = None,
) -> None:
    """Trains the throughput model of the stochastic planner."""
    # torch takes seconds to load: only this command pays for it.
    from adapters.provenance import describe_origin
    from adapters.throughput_checkpoints import save_throughput_model
    from adapters.throughput_training import ThroughputTraining, train_throughput
    from adapters.training_loop import TrainingDiverged
    from testbed.cli_training import EXIT_FAILED, tell_divergence

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; choose another --out")
    folder = data_folder(data)
    learned = {spec: resolve_traces(spec, folder) for spec in traces or ["builtin:mixed-train"]}
    held_out = {spec: resolve_traces(spec, folder) for spec in validate or []}
    given: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "sessions": sessions,
        "learning_rate": learning_rate,
    }
    try:
        config = dataclasses.replace(
            ThroughputTraining(seed=seed, threads=threads),
            **{key: value for key, value in given.items() if value is not None},
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sets = list(learned.values()), list(held_out.values())
    try:
        with show_steps() as show:

            def on_progress(at: ThroughputProgress) -> None:
                show(_Step(1, 1, at.step, at.steps, at.loss))

            model, reports = train_throughput(*sets, config=config, on_progress=on_progress)
    except TrainingDiverged as error:
        tell_divergence(error, out)
        raise typer.Exit(EXIT_FAILED) from error
    validation = [
        {
            "traces": spec,
            "nll": nll,
            "qoe_per_chunk": _mean_qoe(model, held_out[spec], seed),
            "sessions": VALIDATION_STARTS * len(held_out[spec]),
            "video": f"builtin:{VALIDATION_VIDEO}",
        }
        for spec, nll in zip(held_out, reports[-1].valid_nll, strict=True)
    ]
    card = {
        "task": "abr",
        "command": command_line(),
        "training": dataclasses.asdict(config),
        "traces": {spec: len(found) for spec, found in learned.items()},
        "trained_parameters": sum(value.numel() for value in model.parameters()),
        "validation": validation,
        "reports": [dataclasses.asdict(report) for report in reports],
        **describe_origin(),
    }
    save_throughput_model(out, model, card)
    for measured in validation:
        printed.print(
            f"{measured['traces']}: {measured['nll']:.3f} nats per chunk ahead, "
            f"QoE {measured['qoe_per_chunk']:.3f} over {measured['sessions']} sessions",
            soft_wrap=True,
        )
    printed.print(f"Checkpoint: {out}", soft_wrap=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """For the progress bar."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


def _mean_qoe(model: ThroughputModel, traces: Sequence[Trace], seed: int) -> float:
    """Mean QoE per chunk of the planner, every trace from starts drawn by the seed."""
    from adapters.throughput_planning import planned_levels

    video = builtin_video(VALIDATION_VIDEO)
    rng = np.random.default_rng(seed)
    link = np.repeat(np.arange(len(traces)), VALIDATION_STARTS)
    starts = [float(rng.choice(traces[index].times_s[:-1])) for index in link.tolist()]
    table = LinkTable([PensieveLink(trace) for trace in traces])
    sessions = Sessions(video, table, link, starts, past_chunks=video.chunks)
    qoe = play_vectorised(sessions, lambda seen: planned_levels(model, seen, video))
    return float(qoe[:, 1:].mean())
