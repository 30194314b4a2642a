"""What the pages of all reports are made with: templates, names of runs, colours of levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2

import testbed

REPORT = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
#: Worst level to best; told apart by people who see no red and green.
_LEVEL_COLOURS = ("#c8553d", "#e8975a", "#eccb77", "#9fcbb4", "#5aa5c8", "#3c6fb0")


class Run(Protocol):
    """A result folder."""

    @property
    def driver(self) -> str:
        """Of its sessions."""

    @property
    def folder(self) -> Path:
        """Where it was read."""


def render_page(template: str, **values: Any) -> str:
    """A template filled in; every text is escaped, and a name that has no value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=testbed.__version__, **values)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A short distinct name per run: its driver, else its folder, else both with a number."""
    for candidates in (
        [run.driver for run in runs],
        [run.folder.resolve().name for run in runs],
    ):
        if len(set(candidates)) == len(runs) and all(candidates):
            return candidates
    return [f"{run.driver} {number}" for number, run in enumerate(runs, start=1)]


def level_key(ladder_kbps: Sequence[float | None]) -> list[tuple[int, str, str]]:
    """Number, name and colour of each level."""
    return [
        (level, _level_label(level, rate), _level_colour(level, len(ladder_kbps)))
        for level, rate in enumerate(ladder_kbps)
    ]


def _level_label(level: int, rate_kbps: float | None) -> str:
    return f"level {level}" if rate_kbps is None else f"{rate_kbps:g} kbit/s"


def _level_colour(level: int, levels: int) -> str:
    """The colour of a level: spread over the palette, worst to best."""
    last = len(_LEVEL_COLOURS) - 1
    return _LEVEL_COLOURS[last if levels < 2 else round(level / (levels - 1) * last)]
