"""A few shapes of SVG, written by hand: small files, and colours that follow the page's theme.

Shapes carry classes and no colours; the page's style sheet has those. Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

Anchor = Literal["start", "middle", "end"]
MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps data to pixels, linear or logarithmic; values outside are moved to the border."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale."""
        if self.is_log:
            return log_ticks(self.low, self.high)
        return round_ticks(self.low, self.high, count)


class Svg:
    """A drawing under construction."""

    def __init__(self, width: float, height: float, label: str, css: str = "chart") -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg class="{css}" viewBox="0 0 {number(width)} {number(height)}" role="img" '
            f'aria-label="{escape(label)}">'
        ]

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, title: str = ""
    ) -> None:
        """A rectangle with an optional tool tip."""
        box = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        self._add("rect", box, css, title)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
        self._add("line", ends, css)

    def circle(self, x: float, y: float, radius: float, css: str, title: str = "") -> None:
        """A dot with an optional tool tip."""
        self._add("circle", f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"', css, title)

    def ellipse(self, x: float, y: float, across: float, up: float, css: str) -> None:
        """An ellipse; ``across`` and ``up`` are half its width and height."""
        axes = f'rx="{number(across)}" ry="{number(up)}"'
        self._add("ellipse", f'cx="{number(x)}" cy="{number(y)}" {axes}', css)

    def path(self, commands: str, css: str) -> None:
        """A path; ``commands`` in SVG's path language."""
        self._add("path", f'd="{commands}"', css)

    def text(
        self, x: float, y: float, content: str, css: str = "tick", anchor: Anchor = "start"
    ) -> None:
        """A text; ``y`` is its base line."""
        self._parts.append(
            f'<text x="{number(x)}" y="{number(y)}" class="{css}" text-anchor="{anchor}">'
            f"{escape(content)}</text>"
        )

    @contextmanager
    def group(self, css: str) -> Iterator[None]:
        """What is drawn inside belongs to a group of that class."""
        self._parts.append(f'<g class="{css}">')
        yield
        self._parts.append("</g>")

    def render(self) -> Markup:
        """The finished drawing, safe to place into a page."""
        return Markup("".join(self._parts) + "</svg>")  # noqa: S704  every text was escaped

    def _add(self, element: str, attributes: str, css: str, title: str = "") -> None:
        inside = f"><title>{escape(title)}</title></{element}>" if title else "/>"
        self._parts.append(f'<{element} {attributes} class="{css}"{inside}')


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def path_through(points: Iterable[tuple[float, float]]) -> str:
    """Path commands of a line through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def path_of_steps(edges: Sequence[float], levels: Sequence[float]) -> str:
    """Path commands of a step function: ``levels[i]`` from ``edges[i]`` to ``edges[i + 1]``."""
    steps = "".join(
        f"V{number(level)}H{number(right)}" for level, right in zip(levels, edges[1:], strict=True)
    )
    return f"M{number(edges[0])} {number(levels[0])}{steps}"


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten between two bounds."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two bounds; 2 and 5 times those as well where they are few."""
    factors = (1, 2, 5) if high / low < 10.0**3 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def padded(values: Sequence[float], share: float = 0.05) -> tuple[float, float]:
    """Bounds of the values with some room; never equal."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 0.5
    return low - room, high + room


def tick_label(value: float) -> str:
    """A number as short as it can be."""
    return f"{value:.6g}".replace("-", MINUS) if abs(value) > 1e-12 else "0"


def fixed(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A number with fixed decimals, or a dash when there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten; a dash for none."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}".replace("-", MINUS)
