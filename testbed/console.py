"""What the command line shows: tables, progress, and JSON instead of both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from testbed.experiment_base import ConfigError
from testbed.session_records import Record, place_of
from testbed.sessions import PlannedSession
from testbed.summary_tables import number as number
from testbed.summary_tables import summary_table

#: Above this wire error a link has missed its trace by more than packets explain.
BUSY_NMAE = 0.01

printed = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    printed.file.write(json.dumps(document, indent=2) + "\n")


def data_folder(folder: Path | None) -> Path | None:
    """The folder that ``data:`` stands for, checked.

    Raises:
        ConfigError: it was named and is not a folder.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"data folder {folder}: no such folder (--data or TESTBED_DATA)")
    return folder


def show_arms(summary: Mapping[str, Any]) -> None:
    """Prints the table of arms and the paired differences of a summary."""
    shown = summary_table(summary)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("arm", no_wrap=True)
    for column in shown.columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for arm in sorted(summary["arms"], key=shown.rank):
        table.add_row(arm["arm"], *(column.cell(arm) for column in shown.columns))
    printed.print(table)
    for pair in summary["pairs"]:
        told = f"  {pair['a']} − {pair['b']}: {shown.difference(pair)}"
        printed.print(told, soft_wrap=True)
    for arm in summary["arms"]:
        if arm["failed"] or arm["fallbacks"]:
            printed.print(
                f"  {arm['arm']}: {arm['failed']} of {arm['sessions']} sessions failed, "
                f"{arm['fallbacks']} decisions by the fallback",
            )
    nmae = summary.get("link", {}).get("wire_nmae_1s")
    if nmae is not None and nmae["median"] is not None:
        printed.print(
            f"Link: delivered against asked (NMAE, 1 s) median {nmae['median']:.2%}, "
            f"worst {nmae['max']:.2%}",
        )
        if nmae["max"] > BUSY_NMAE:
            errors.print(
                "The links did not follow their traces exactly: this machine was too busy. "
                "Run fewer sessions at once (--jobs), or nothing else beside them.",
                style="yellow",
            )


class RichProgress:
    """Progress of a run as a bar; implements ``testbed.runner.Progress``."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("sessions", total=None, ended=0, sessions=0, note="")
        self._ended = self._failed = 0
        self._shares: dict[tuple[str, str, int], float] = {}  # of the sessions that play

    def planned(self, sessions: int, finished: int) -> None:
        """Sets the length of the bar."""
        self._ended = finished
        self._bars.update(self._task, total=sessions, sessions=sessions)
        self._show()

    def session_advanced(self, session: PlannedSession, share: float) -> None:
        """Moves the bar by the part of a session that is done."""
        self._shares[session.arm.label, session.unit, session.client] = share
        self._show()

    def session_finished(self, record: Record) -> None:
        """Counts the session."""
        self._ended += 1
        place = place_of(record)
        self._shares.pop((record.arm, place.unit, place.client), None)
        if record.status == "failed":
            self._failed += 1
            self._bars.console.print(
                f"failed: {record.arm} on {place.unit}: {record.error}",
                style="red",
            )
        self._show()

    def _show(self) -> None:
        self._bars.update(
            self._task,
            completed=self._ended + sum(self._shares.values()),
            ended=self._ended,
            note=f"{self._failed} failed" if self._failed else "",
        )


@contextlib.contextmanager
def show_progress(*, quiet: bool) -> Iterator[RichProgress]:
    """A progress bar on standard error, or none."""
    columns: Sequence[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[ended]} of {task.fields[sessions]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=errors, disable=quiet) as bars:
        yield RichProgress(bars)


class StepProgress(Protocol):
    """What a training tells behind every step."""

    @property
    def epoch(self) -> int:
        """From 1."""
        ...

    @property
    def epochs(self) -> int:
        """At most."""
        ...

    @property
    def step(self) -> int:
        """Of this epoch, from 1."""
        ...

    @property
    def steps(self) -> int:
        """Per epoch."""
        ...

    @property
    def loss(self) -> float:
        """Of this step."""
        ...


@contextlib.contextmanager
def show_steps() -> Iterator[Callable[[StepProgress], None]]:
    """A progress bar of a training on standard error."""
    columns: Sequence[Any] = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    with Progress(*columns, console=errors) as bars:
        task = bars.add_task("", total=1, epoch="–", loss=float("nan"))

        def show(at: StepProgress) -> None:
            bars.update(
                task,
                total=at.steps,
                completed=at.step,
                epoch=f"{at.epoch} of {at.epochs}",
                loss=at.loss,
            )

        yield show
