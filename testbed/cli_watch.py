"""``testbed watch``: play in your own browser, behind the emulated link or paced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.abr_experiment import abr_plan
from testbed.console import data_folder, errors, printed
from testbed.experiment import plan_experiment, read_experiment
from testbed.watch import Watched, watch


def watch_experiment(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file of task abr.")],
    trace: Annotated[
        str | None, typer.Option(help="Trace that the link replays; the first by default.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8400,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder that data: stands for.", envvar="TESTBED_DATA", show_envvar=True
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as link.delay_ms=20."),
    ] = None,
) -> None:
    """Plays in your own browser over the experiment's link; its controllers are in a menu.

    Where no sandbox can be made there is no link: the media are only paced, and it says so.
    """

    def say(watched: Watched) -> None:
        name = watched.session.trace.name
        does = f"The link replays {name}"
        if watched.no_link is not None:
            errors.print(f"no sandbox can be made: {watched.no_link}", style="red", soft_wrap=True)
            does = f"Paced, not emulated: the media keep to the rate of {name}, without a link"
        printed.print(f"Open {watched.url}", soft_wrap=True)
        printed.print(f"{does}; end with Ctrl-C.", soft_wrap=True)

    plan = plan_experiment(
        read_experiment(experiment, overrides=overrides or (), driver="emulated"),
        data_dir=data_folder(data),
        base=experiment.parent,
    )
    watch(abr_plan(plan, "pages"), trace=trace, port=port, on_ready=say)
