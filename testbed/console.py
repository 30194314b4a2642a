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

from player.records import SessionRecord
from testbed.experiment import ConfigError, Session

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


def number(value: float | None, pattern: str = "{:.3f}") -> str:
    """The value, or a dash where nothing was measured."""
    return "–" if value is None else pattern.format(value)


def show_arms(summary: Mapping[str, Any]) -> None:
    """Prints the table of arms and the paired differences of a summary."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("arm", no_wrap=True)
    for heading in (
        "QoE/chunk",
        "95 % interval",
        "kbit/s",
        "stalled",
        "decision p50/p99",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in sorted(summary["arms"], key=_by_qoe):
        qoe, decision = arm["qoe_per_chunk"], arm["decision_ms"]
        table.add_row(
            arm["arm"],
            number(qoe["mean"]),
            _interval(qoe["ci95"]),
            number(arm["bitrate_kbps"], "{:.0f}"),
            number(arm["rebuffer_ratio"], "{:.2%}"),
            f"{number(decision['p50'], '{:.1f}')}/{number(decision['p99'], '{:.1f}')} ms",
        )
    printed.print(table)
    for pair in summary["pairs"]:
        delta = pair["delta"]
        printed.print(
            f"  {pair['a']} − {pair['b']}: {number(delta['mean'], '{:+.3f}')} "
            f"{_interval(delta['ci95'], '{:+.3f}')} over {pair['n']} traces",
        )
    for arm in summary["arms"]:
        if arm["failed"] or arm["fallbacks"]:
            printed.print(
                f"  {arm['arm']}: {arm['failed']} of {arm['sessions']} sessions failed, "
                f"{arm['fallbacks']} decisions by the fallback",
            )
    nmae = summary["link"]["wire_nmae_1s"]
    if nmae["median"] is not None:
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

    def session_advanced(self, session: Session, share: float) -> None:
        """Moves the bar by the part of a session that is done."""
        self._shares[session.arm.label, session.trace.name, session.client] = share
        self._show()

    def session_finished(self, record: SessionRecord) -> None:
        """Counts the session."""
        self._ended += 1
        self._shares.pop((record.arm, record.trace, record.client), None)
        if record.status == "failed":
            self._failed += 1
            self._bars.console.print(
                f"failed: {record.arm} on {record.trace}: {record.error}",
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


def _by_qoe(arm: Mapping[str, Any]) -> float:
    mean = arm["qoe_per_chunk"]["mean"]
    return float("inf") if mean is None else -float(mean)


def _interval(bounds: Sequence[float] | None, pattern: str = "{:.3f}") -> str:
    if bounds is None:
        return "[–]"
    return "[" + ", ".join(pattern.format(bound) for bound in bounds) + "]"
