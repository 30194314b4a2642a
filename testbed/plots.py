"""The charts of the report, and the picture of one trace.

A chart takes plain numbers and returns SVG. Series keep their colour from chart to chart: colour
``i`` is the class ``ci`` of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from player.trace import Trace
from testbed.statistics import Estimate
from testbed.svg import (
    Scale,
    Svg,
    fixed,
    padded,
    path_of_steps,
    path_through,
    significant,
    tick_label,
)

COLOURS = 8
WIDTH = 520.0
HEIGHT = 300.0
TRACE_PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 12.0, 42.0
_LABEL_TOP = 30.0  # top margin of charts that name their vertical axis above it
_ROW = 40.0  # height of one row in charts with a row per arm
_DOT = 2.6
_CHARACTER = 7.6  # width of a label's character, generous: fonts differ
_LABEL_SHARE = 0.42  # of the width, at most, for labels of rows


class PlotError(ValueError):
    """A plot that cannot be drawn into the file that was named."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one arm, or points when ``others`` has the second coordinate.

    Attributes:
        label: name of the arm.
        colour: its number.
        values: one value per session.
        others: second coordinates, as many as ``values``.
        titles: tool tips, as many as ``values``, or none.
    """

    label: str
    colour: int
    values: Sequence[float]
    others: Sequence[float] = ()
    titles: Sequence[str] = ()

    @property
    def css(self) -> str:
        """Class that sets the colour."""
        return f"c{self.colour % COLOURS}"

    def title(self, index: int) -> str:
        """Tool tip of a value."""
        return self.titles[index] if self.titles else self.label


@dataclass(frozen=True, slots=True)
class Parts:
    """QoE of one arm taken apart: ``gain - sum(losses)`` remains."""

    label: str
    colour: int
    gain: float
    switch: float
    rebuffer: float


@dataclass(frozen=True, slots=True)
class Divided:
    """Something of which a part was used."""

    label: str
    colour: int
    used: float
    wasted: float


def cdf(series: Sequence[Series], label: str, *, of: str, is_log: bool = False) -> Markup | None:
    """Cumulative distribution of each series, as shares ``of`` something; None without values."""
    values = [value for one in series for value in one.values if value > 0 or not is_log]
    if not values:
        return None
    svg = Svg(WIDTH, HEIGHT, f"Cumulative distribution: {label}")
    low, high = (min(values) / 1.3, max(values) * 1.3) if is_log else padded(values)
    if is_log and math.log10(high / low) < 1:
        low, high = low / 3, high * 3
    x, y = _axes(svg, (low, high), (0.0, 1.0), label, f"share of {of}", is_log=is_log)
    for one in series:
        ordered = sorted(max(value, low) for value in one.values)
        if not ordered:
            continue
        edges = [x(low), *(x(value) for value in ordered), x(high)]
        levels = [y(index / len(ordered)) for index in range(len(ordered) + 1)]
        with svg.group(one.css):
            svg.path(path_of_steps(edges, levels), "ln")
    return svg.render()


def strips(
    series: Sequence[Series],
    estimates: Sequence[Estimate | None],
    label: str,
    *,
    mark: float | None = None,
) -> Markup | None:
    """A row of dots per series, with mean and interval above; None without values."""
    values = [value for one in series for value in one.values]
    if not values:
        return None
    bounds = [*values, *([mark] if mark is not None else [])]
    left = _label_room([one.label for one in series])
    height = _TOP + _ROW * len(series) + _BOTTOM
    svg = Svg(WIDTH, height, label)
    x = _horizontal_axis(svg, padded(bounds), left, height, label)
    if mark is not None:
        svg.line(x(mark), _TOP, x(mark), height - _BOTTOM, "mark")
    for row, (one, estimate) in enumerate(zip(series, estimates, strict=True)):
        middle = _TOP + _ROW * (row + 0.5)
        _row_label(svg, left, middle, one.label)
        with svg.group(one.css):
            for index, value in enumerate(one.values):
                # Golden-ratio steps spread the dots evenly without chance.
                shift = (index * 0.618034 % 1.0 - 0.5) * 14
                svg.circle(x(value), middle + 6 + shift / 2, _DOT, "dot faint", one.title(index))
            _interval(svg, x, estimate, middle - 8)
    return svg.render()


def forest(rows: Sequence[tuple[str, Estimate]], label: str) -> Markup | None:
    """Differences with their intervals around zero; None without any."""
    shown = [(name, one) for name, one in rows if one.mean is not None]
    if not shown:
        return None
    ends = [0.0]
    for _, one in shown:
        ends.extend(one.ci95 or (one.mean or 0.0,))
    left = _label_room([name for name, _ in shown])
    right = 176.0
    row_height = 26.0
    height = _TOP + row_height * len(shown) + _BOTTOM
    svg = Svg(WIDTH, height, label)
    x = _horizontal_axis(svg, padded(ends, 0.08), left, height, label, right=right)
    svg.line(x(0.0), _TOP, x(0.0), height - _BOTTOM, "zero")
    for row, (name, one) in enumerate(shown):
        middle = _TOP + row_height * (row + 0.5)
        _row_label(svg, left, middle, name)
        excludes_zero = one.ci95 is not None and (one.ci95[0] > 0 or one.ci95[1] < 0)
        _interval(svg, x, one, middle, css="sure" if excludes_zero else "unsure")
        said = fixed(one.mean, 3, sign=True)
        if one.ci95 is not None:
            said += f"  [{fixed(one.ci95[0], 3)}, {fixed(one.ci95[1], 3)}]"
        svg.text(WIDTH - right + 10, middle + 4, said, "num")
    return svg.render()


def parts(rows: Sequence[Parts], label: str) -> Markup | None:
    """One bar per arm as long as its bitrate; the losses are cut off its end."""
    if not rows:
        return None
    left = _label_room([row.label for row in rows])
    right = 56.0
    height = _TOP + _ROW * len(rows) + _BOTTOM
    svg = Svg(WIDTH, height, label)
    rests = [row.gain - row.switch - row.rebuffer for row in rows]
    low = min(0.0, *rests)
    high = max(row.gain for row in rows) or 1.0
    x = _horizontal_axis(svg, (low, high * 1.02), left, height, label, right=right)
    for index, (row, rest) in enumerate(zip(rows, rests, strict=True)):
        top = _TOP + _ROW * index + 8
        _row_label(svg, left, top + 12, row.label)
        with svg.group(f"c{row.colour % COLOURS}"):
            _bar(svg, x, 0.0, max(rest, 0.0), top, "bar", f"QoE {fixed(rest, 3)}")
        behind_switch = rest + row.switch
        _bar(svg, x, rest, behind_switch, top, "switch", f"switches −{fixed(row.switch, 3)}")
        _bar(svg, x, behind_switch, row.gain, top, "rebuffer", f"stalls −{fixed(row.rebuffer, 3)}")
        svg.text(WIDTH - right + 8, top + 16, fixed(rest, 3), "num")
    svg.line(x(0.0), _TOP, x(0.0), height - _BOTTOM, "zero")
    return svg.render()


def scatter(
    series: Sequence[Series], x_label: str, y_label: str, *, is_diagonal: bool = False
) -> Markup | None:
    """Points of each series; on equal axes with their diagonal if asked. None without points."""
    xs = [value for one in series for value in one.values]
    ys = [value for one in series for value in one.others]
    if not xs:
        return None
    bounds_x, bounds_y = (padded(xs + ys),) * 2 if is_diagonal else (padded(xs), padded(ys))
    svg = Svg(WIDTH, 360.0 if is_diagonal else HEIGHT, f"{y_label} over {x_label}")
    x, y = _axes(svg, bounds_x, bounds_y, x_label, y_label)
    if is_diagonal:
        svg.line(x(bounds_x[0]), y(bounds_y[0]), x(bounds_x[1]), y(bounds_y[1]), "mark")
    for one in series:
        with svg.group(one.css):
            for index, (at_x, at_y) in enumerate(zip(one.values, one.others, strict=True)):
                svg.circle(x(at_x), y(at_y), 3.4, "dot ring", one.title(index))
    return svg.render()


def lines(
    series: Sequence[Series], x_label: str, y_label: str, *, has_zero: bool = False
) -> Markup | None:
    """A line with dots per series; None without points.

    Args:
        series: ``values`` to the right, ``others`` upwards.
        x_label: of ``values``.
        y_label: of ``others``.
        has_zero: whether the upright axis shows zero, as a line.
    """
    xs = [value for one in series for value in one.values]
    ys = [value for one in series for value in one.others]
    if not xs:
        return None
    bounds_y = padded([*ys, 0.0] if has_zero else ys, 0.08)
    svg = Svg(WIDTH, HEIGHT, f"{y_label} over {x_label}")
    x, y = _axes(svg, padded(xs), bounds_y, x_label, y_label)
    if has_zero:
        svg.line(_LEFT, y(0.0), WIDTH - _RIGHT, y(0.0), "zero")
    for one in series:
        places = [(x(at), y(value)) for at, value in zip(one.values, one.others, strict=True)]
        with svg.group(one.css):
            if places:
                svg.path(path_through(places), "ln")
            for index, (at_x, at_y) in enumerate(places):
                svg.circle(at_x, at_y, _DOT, "dot", one.title(index))
    return svg.render()


def divided(rows: Sequence[Divided], label: str) -> Markup | None:
    """One bar per arm: what was of use, then in a lighter shade what was not. None without any."""
    if not rows:
        return None
    left = _label_room([row.label for row in rows])
    right = 120.0
    height = _TOP + _ROW * len(rows) + _BOTTOM
    svg = Svg(WIDTH, height, label)
    high = max(row.used + row.wasted for row in rows) or 1.0
    x = _horizontal_axis(svg, (0.0, high * 1.02), left, height, label, right=right)
    for index, row in enumerate(rows):
        top = _TOP + _ROW * index + 8
        whole = row.used + row.wasted
        _row_label(svg, left, top + 12, row.label)
        with svg.group(f"c{row.colour % COLOURS}"):
            _bar(svg, x, 0.0, row.used, top, "bar", f"used {significant(row.used)}")
            _bar(svg, x, row.used, whole, top, "bar faint", f"not used {significant(row.wasted)}")
        share = fixed(row.wasted / whole * 100 if whole else None, 0)
        svg.text(WIDTH - right + 8, top + 16, f"{significant(whole)}, {share} % unused", "num")
    svg.line(x(0.0), _TOP, x(0.0), height - _BOTTOM, "zero")
    return svg.render()


def density(xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> Markup | None:
    """How often pairs fall where, on equal axes with their diagonal; None without pairs."""
    if not xs:
        return None
    cells = 48
    top = max(*xs, *ys) * 1.02 or 1.0
    counts, _, _ = np.histogram2d(xs, ys, bins=cells, range=((0, top), (0, top)))
    svg = Svg(WIDTH, 360.0, f"{y_label} over {x_label}")
    x, y = _axes(svg, (0.0, top), (0.0, top), x_label, y_label)
    svg.line(x(0.0), y(0.0), x(top), y(top), "mark")
    width, height = x(top / cells) - x(0.0), y(0.0) - y(top / cells)
    steps = 6  # shades
    most = math.log1p(float(counts.max()))
    for column, row in np.argwhere(counts > 0).tolist():
        count = counts[column, row]
        shade = min(int(math.log1p(count) / most * steps), steps - 1)
        at_x, at_y = x(column * top / cells), y((row + 1) * top / cells)
        svg.rect(at_x, at_y, width, height, f"heat h{shade}", f"{count:.0f} s")
    return svg.render()


def save_trace_plot(trace: Trace, path: Path) -> None:
    """Draws one pass of a trace into a file; its suffix chooses PNG, SVG or PDF.

    Raises:
        PlotError: a suffix that cannot be drawn; the message lists those that can.
    """
    if path.suffix.lower() not in TRACE_PLOT_SUFFIXES:
        raise PlotError(
            f"{path}: cannot draw {path.suffix or 'a file without suffix'}; there are "
            f"{', '.join(TRACE_PLOT_SUFFIXES)}"
        )
    from matplotlib.figure import Figure  # takes a second; only this function needs it

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(trace.steps_mbps, trace.edges_s, fill=True, color="C0", alpha=0.3)
    axes.stairs(trace.steps_mbps, trace.edges_s, color="C0", linewidth=0.8)
    axes.axhline(trace.mean_mbps, linestyle="--", linewidth=1, color="0.4")
    title = f"{trace.name}: mean {significant(trace.mean_mbps)} Mbit/s"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set(xlabel="time (s)", ylabel="Mbit/s", xlim=(0, trace.duration_s), ylim=(0, None))
    figure.savefig(path, dpi=150)


def _axes(
    svg: Svg,
    x_bounds: tuple[float, float],
    y_bounds: tuple[float, float],
    x_label: str,
    y_label: str,
    *,
    is_log: bool = False,
) -> tuple[Scale, Scale]:
    bottom = svg.height - _BOTTOM
    y = Scale(*y_bounds, bottom, _LABEL_TOP)
    for value in y.ticks():
        svg.line(_LEFT, y(value), svg.width - _RIGHT, y(value), "grid")
        svg.text(_LEFT - 6, y(value) + 4, tick_label(value), "tick", "end")
    x = _horizontal_axis(svg, x_bounds, _LEFT, svg.height, x_label, top=_LABEL_TOP, is_log=is_log)
    svg.text(4, _LABEL_TOP - 14, y_label, "axis-label")
    return x, y


def _horizontal_axis(
    svg: Svg,
    bounds: tuple[float, float],
    left: float,
    height: float,
    label: str,
    *,
    top: float = _TOP,
    right: float = _RIGHT,
    is_log: bool = False,
) -> Scale:
    scale = Scale(*bounds, left, svg.width - right, is_log)
    bottom = height - _BOTTOM
    for value in scale.ticks():
        svg.line(scale(value), top, scale(value), bottom, "grid")
        svg.text(scale(value), bottom + 16, tick_label(value), "tick", "middle")
    svg.line(left, bottom, svg.width - right, bottom, "ax")
    svg.text((left + svg.width - right) / 2, bottom + 34, label, "axis-label", "middle")
    return scale


def _interval(svg: Svg, x: Scale, estimate: Estimate | None, y: float, css: str = "") -> None:
    if estimate is None or estimate.mean is None:
        return
    if estimate.ci95 is not None:
        low, high = (x(end) for end in estimate.ci95)
        svg.line(low, y, high, y, f"ci {css}")
        for end in (low, high):
            svg.line(end, y - 4, end, y + 4, f"ci {css}")
    title = f"mean {fixed(estimate.mean, 3)}, n = {estimate.n}"
    svg.circle(x(estimate.mean), y, 4.5, f"mean {css}", title)


def _bar(svg: Svg, x: Scale, start: float, end: float, top: float, css: str, title: str) -> None:
    width = x(end) - x(start)
    if width > 0.05:
        svg.rect(x(start), top, width, 24, css, title)


def _label_room(labels: Sequence[str]) -> float:
    longest = max((len(label) for label in labels), default=0)
    return min(max(longest * _CHARACTER + 16, 60.0), WIDTH * _LABEL_SHARE)


def _row_label(svg: Svg, left: float, middle: float, label: str) -> None:
    fitting = int((left - 16) / _CHARACTER) + 1
    shown = label if len(label) <= fitting else label[: fitting - 1] + "…"
    svg.text(left - 10, middle + 4, shown, "lbl", "end")
