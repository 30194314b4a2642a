"""``testbed train pensieve`` and ``genet``: the learned baselines, by reinforcement learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from controllers.registry import create
from player.trace import Trace
from player.video import Video
from testbed.builtin import resolve_traces, resolve_video
from testbed.cli_pools import DataOption, command_line
from testbed.console import data_folder, printed
from testbed.experiment import ConfigError
from testbed.trace_generators import GENERATORS, generate_trace

if TYPE_CHECKING:
    from adapters.pensieve_env import Source
    from adapters.pensieve_training import PensieveTraining, Trained, Validated

Method = Literal["pensieve", "genet"]

#: Environments of the curriculum share no trace with the built-in sets, whatever the seed.
ENVIRONMENT_SEED = 401
RULE = "robustmpc"  # what GENET measures the policy by

OutOption = Annotated[Path, typer.Option(help="Folder of the checkpoint.")]
TracesOption = Annotated[
    list[str] | None,
    typer.Option(help="Traces to train on; given again, each has the same share."),
]
ValidateOption = Annotated[str, typer.Option(help="Traces that choose the weights.")]
VideoOption = Annotated[
    list[str] | None, typer.Option(help="Video to train on; given again, they take turns.")
]
SeedOption = Annotated[
    list[int] | None,
    typer.Option(min=0, help="Given again, trains once per seed and keeps the best."),
]
ChunksOption = Annotated[int, typer.Option(min=2, help="Chunks per session.")]
BudgetOption = Annotated[
    int | None, typer.Option(min=1, help="Chunks to train on, per seed; by default 1,200,000.")
]
SessionsOption = Annotated[int | None, typer.Option(min=1, help="Sessions side by side.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of torch.")]


def train_pensieve(
    out: OutOption,
    traces: TracesOption = None,
    validate: ValidateOption = "builtin:mixed-train",
    video: VideoOption = None,
    seed: SeedOption = None,
    chunks: ChunksOption = 48,
    chunks_budget: BudgetOption = None,
    sessions: SessionsOption = None,
    threads: ThreadsOption = None,
    data: DataOption = None,
) -> None:
    """Trains Pensieve's policy by reinforcement learning (extra: rl)."""
    given = {"chunks": chunks_budget, "sessions": sessions, "threads": threads}
    _train("pensieve", out, traces, validate, video, seed, chunks, data, given)


def train_genet(
    out: OutOption,
    traces: TracesOption = None,
    validate: ValidateOption = "builtin:mixed-train",
    video: VideoOption = None,
    seed: SeedOption = None,
    chunks: ChunksOption = 48,
    chunks_budget: BudgetOption = None,
    sessions: SessionsOption = None,
    threads: ThreadsOption = None,
    data: DataOption = None,
) -> None:
    """Trains Pensieve's policy with GENET's curriculum of generated traces (extra: rl).

    The traces that are given keep half of the sessions; without any, all are generated.
    """
    given = {"chunks": chunks_budget, "sessions": sessions, "threads": threads}
    _train("genet", out, traces, validate, video, seed, chunks, data, given)


def add_commands(app: typer.Typer) -> None:
    """Adds both commands to ``testbed train``."""
    app.command("pensieve")(train_pensieve)
    app.command("genet")(train_genet)


def _train(
    method: Method,
    out: Path,
    traces: Sequence[str] | None,
    validate: str,
    video: Sequence[str] | None,
    seed: Sequence[int] | None,
    chunks: int,
    data: Path | None,
    given: dict[str, int | None],
) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; choose another --out")
    # torch takes seconds to load, and the extra may be missing: only these commands need them.
    from adapters.pensieve import save_pensieve
    from adapters.provenance import describe_origin

    try:
        from adapters.pensieve_env import Source, TrainingDataError
        from adapters.pensieve_training import PensieveTraining, Validation, as_card
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"training needs the extra 'rl' (pip install 'netllm-testbed[rl]'): {error}"
        ) from error
    folder = data_folder(data)
    by_default = [] if method == "genet" else ["builtin:mixed-train"]
    specs = list(traces or by_default)
    sources = [Source(spec, resolve_traces(spec, folder)) for spec in specs]
    played = [
        _video(spec, folder, chunks)
        for spec in dict.fromkeys(video or ["builtin:envivio-like-train"])
    ]
    validation = Validation(resolve_traces(validate, folder), played[0])
    runs: list[tuple[PensieveTraining, Trained]] = []
    try:
        for one in dict.fromkeys(seed or [0]):
            config = dataclasses.replace(
                PensieveTraining(seed=one),
                **{key: value for key, value in given.items() if value is not None},
            )
            runs.append((config, _train_once(method, config, sources, played, validation)))
    except TrainingDataError as error:
        raise ConfigError(str(error)) from error
    config, best = max(runs, key=lambda run: run[1].best.playable_qoe)
    card: dict[str, Any] = {
        "task": "abr",
        "method": method,
        "command": command_line(),
        "seed": config.seed,
        "training": dataclasses.asdict(config),
        "traces": specs,
        "validate": validate,
        "video": [one.name for one in played],
        "versions": _versions(),
        "seeds": [{"seed": config.seed, **as_card(trained)} for config, trained in runs],
        **describe_origin(),
    }
    save_pensieve(out, best.policy, card)
    for config, trained in runs:
        kept = " *" if trained is best else ""
        printed.print(f"seed {config.seed}: {_figures(trained.best)}{kept}")
    printed.print(f"Checkpoint: {out}", soft_wrap=True)


def _train_once(
    method: Method,
    config: PensieveTraining,
    sources: Sequence[Source],
    videos: Sequence[Video],
    validation: Any,
) -> Trained:
    from adapters.pensieve_curriculum import Curriculum, environments
    from adapters.pensieve_env import TraceDraw
    from adapters.pensieve_training import train_pensieve as train

    traces: TraceDraw | Curriculum
    if method == "genet":
        rng = np.random.default_rng((ENVIRONMENT_SEED, config.seed))
        generated = environments(_generate, tuple(GENERATORS), rng)
        traces = Curriculum(sources, generated, create("abr", RULE).decide, videos[0], rng)
    else:
        traces = TraceDraw(sources)

    def show(validated: Validated) -> None:
        printed.print(f"seed {config.seed}, {validated.chunks} chunks: {_figures(validated)}")

    return train(videos, traces, validation, config=config, on_validated=show)


def _generate(family: str, name: str, rng: np.random.Generator) -> Trace:
    return generate_trace(family, name, rng)


def _video(spec: str, folder: Path | None, chunks: int) -> Video:
    video = resolve_video(spec, folder)
    if video.chunks < chunks:
        raise ConfigError(f"--chunks {chunks}: {spec} has only {video.chunks}")
    return video.first(chunks)


def _figures(validated: Validated) -> str:
    return f"QoE {validated.playable_qoe:.3f} on playable traces, {validated.qoe:.3f} on all"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("netllm-testbed", "torch", "stable-baselines3", "gymnasium", "numpy")
    return {package: version(package) for package in packages}
