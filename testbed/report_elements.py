"""What reports are put together from: figures, tables with a row per arm, numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from testbed.plots import Series
from testbed.statistics import Estimate
from testbed.svg import fixed

PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its words; without a chart it says why there is none."""

    title: str
    chart: Markup | None
    note: str
    legend: tuple[Series, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table; ``share`` colours it, from 0 to 1."""

    text: str
    is_best: bool = False
    share: float | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One row of a table with a row per arm."""

    label: str
    colour: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class ArmTable:
    """A table with a row per arm."""

    columns: tuple[str, ...]
    rows: tuple[ArmRow, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts; the first cell of a row is its heading."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True, slots=True)
class LinkSection:
    """How exact the links were.

    Attributes:
        said: in words; empty when none was measured.
        figures: asked against delivered; none when none was measured.
    """

    said: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A session that failed; ``done`` is how far it came."""

    arm: str
    unit: str
    done: str
    error: str | None


@dataclass(frozen=True, slots=True)
class RunView:
    """One result folder as a template shows it."""

    label: str
    facts: tuple[tuple[str, str], ...]
    headline: tuple[str, ...]
    arm_tables: tuple[ArmTable, ...]
    figures: tuple[Figure, ...]
    link: LinkSection
    tables: tuple[Table, ...]
    failed: tuple[Failure, ...]
    documents: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every run against the first."""

    base: str
    columns: tuple[str, ...]
    rows: tuple[ArmRow, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a table says of one arm in one column.

    Attributes:
        text: as shown.
        value: by which the best is told; None: it takes no part.
        better: +1 where more is better, -1 where less is, 0 for neither.
    """

    text: str
    value: float | None = None
    better: int = 0


def arm_rows(
    arms: Sequence[str], table: Sequence[Sequence[Entry]], colours: Mapping[str, int]
) -> tuple[ArmRow, ...]:
    """Rows in which the best of each column is marked, as far as the texts tell them apart."""
    best = [_best_text(column) for column in zip(*table, strict=True)]
    return tuple(
        ArmRow(
            arm,
            colours[arm],
            tuple(
                Cell(one.text, is_best=one.value is not None and one.text == best_text)
                for one, best_text in zip(row, best, strict=True)
            ),
        )
        for arm, row in zip(arms, table, strict=True)
    )


def _best_text(column: Sequence[Entry]) -> str | None:
    """Text of the best value, compared as shown; None when all look the same or nothing is best."""
    known = [
        (one.value * one.better, one.text) for one in column if one.value is not None and one.better
    ]
    if len({text for _, text in known}) < 2:
        return None
    return max(known)[1]


def estimate_of(n: int, document: Mapping[str, Any]) -> Estimate:
    """An estimate as ``summary.json`` has it."""
    ci95 = document["ci95"]
    return Estimate(n, document["mean"], None if ci95 is None else (ci95[0], ci95[1]))


def difference(
    pairs: Sequence[Mapping[str, Any]], a: str, b: str, name: str = "delta"
) -> Estimate | None:
    """The difference a − b of the summary's pairs, whichever way round it has them."""
    for pair in pairs:
        if {pair["a"], pair["b"]} != {a, b}:
            continue
        one = estimate_of(pair["n"], pair[name])
        if pair["a"] == a or one.mean is None:
            return one
        flipped = None if one.ci95 is None else (-one.ci95[1], -one.ci95[0])
        return Estimate(one.n, -one.mean, flipped)
    return None


def includes_zero(one: Estimate) -> bool:
    """Whether the data cannot tell the difference from none."""
    return one.ci95 is not None and one.ci95[0] <= 0 <= one.ci95[1]


def interval_cell(ci95: Sequence[float] | None, decimals: int = 3) -> str:
    """An interval as a table shows it."""
    if ci95 is None:
        return fixed(None, 0)
    return f"{fixed(ci95[0], decimals)} … {fixed(ci95[1], decimals)}"


def interval_text(ci95: Sequence[float] | None, decimals: int = 3) -> str:
    """An interval as a sentence goes on with it."""
    if ci95 is None:
        return ""
    return f" (95 % interval {fixed(ci95[0], decimals)} to {fixed(ci95[1], decimals)})"


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it must be."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def scaled(value: float | None, factor: float) -> float | None:
    """The product; None stays None."""
    return None if value is None else value * factor
