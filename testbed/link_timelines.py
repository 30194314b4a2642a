"""What the link did below the bandwidth of a time-line: delay, drops by cause, the way up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from testbed.results import LinkSecond
from testbed.svg import Scale, Svg, path_of_steps, significant

DELAY_HEIGHT, DROPS_HEIGHT, UP_HEIGHT, GAP = 40.0, 26.0, 36.0, 8.0
#: What happened to packets, in the order in which bars are stacked: attribute, class and words.
CAUSES = (
    ("drops", "drop-queue", "dropped, queue full"),
    ("aqm_drops", "drop-aqm", "dropped by AQM"),
    ("losses", "drop-loss", "lost at random"),
    ("marks", "drop-mark", "marked (ECN)"),
    ("duplicates", "drop-double", "doubled"),
)
_HEADROOM = 1.1


@dataclass(frozen=True, slots=True)
class LinkAxes:
    """What the panels of one trace share; a panel that would be empty has 0 and is left out.

    Attributes:
        delay_ms: upper end of the delay.
        packets: upper end of the drops.
        up_mbps: upper end of the way up.
    """

    delay_ms: float = 0.0
    packets: float = 0.0
    up_mbps: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[LinkSecond]) -> LinkAxes:
        """Room for all of these."""
        down = [one for one in seconds if one.direction == "down"]
        up = [one for one in seconds if one.direction == "up" and one.asked_bits > 0]
        return cls(
            delay_ms=_HEADROOM * max((one.delay_p99_ms or 0.0 for one in down), default=0.0),
            packets=float(max(map(_touched, down), default=0)),
            up_mbps=_HEADROOM * max((one.asked_mbps for one in up), default=0.0),
        )

    @property
    def height(self) -> float:
        """Of all panels together, with a gap above each."""
        panels = (
            (self.delay_ms, DELAY_HEIGHT),
            (self.packets, DROPS_HEIGHT),
            (self.up_mbps, UP_HEIGHT),
        )
        return sum(GAP + height for top, height in panels if top > 0)


def draw_link(
    svg: Svg,
    x: Scale,
    top: float,
    axes: LinkAxes,
    seconds: Sequence[LinkSecond],
    panel: Callable[[Scale, str, str], None],
) -> None:
    """Draws the panels.

    Args:
        svg: where.
        x: the axis of time.
        top: upper end of the first gap.
        axes: see :class:`LinkAxes`.
        seconds: of both directions.
        panel: draws the frame of a panel from its scale, its label and that of its upper end.
    """
    down = [one for one in seconds if one.direction == "down"]
    up = [one for one in seconds if one.direction == "up" and one.asked_bits > 0]
    if axes.delay_ms > 0:
        y = Scale(0.0, axes.delay_ms, top + GAP + DELAY_HEIGHT, top + GAP)
        panel(y, "delay", f"{significant(axes.delay_ms, 2)} ms")
        _steps(svg, x, down, lambda one: y(one.delay_p99_ms or 0.0), "delay-tail")
        _steps(svg, x, down, lambda one: y(one.delay_p50_ms or 0.0), "delay")
        top += GAP + DELAY_HEIGHT
    if axes.packets > 0:
        y = Scale(0.0, axes.packets, top + GAP + DROPS_HEIGHT, top + GAP)
        panel(y, "drops", f"{axes.packets:g}")
        for one in down:
            _drops(svg, x, y, one)
        top += GAP + DROPS_HEIGHT
    if axes.up_mbps > 0:
        y = Scale(0.0, axes.up_mbps, top + GAP + UP_HEIGHT, top + GAP)
        panel(y, "up", f"{significant(axes.up_mbps, 2)}")
        _steps(svg, x, up, lambda one: y(one.asked_mbps), "asked")
        _steps(svg, x, up, lambda one: y(one.delivered_mbps), "delivered")


def edges_s(seconds: Sequence[LinkSecond]) -> list[float]:
    """Borders of seconds that follow each other: when the counters were really read."""
    return [one.span_s[0] for one in seconds] + [seconds[-1].span_s[1]]


def _steps(
    svg: Svg,
    x: Scale,
    seconds: Sequence[LinkSecond],
    level: Callable[[LinkSecond], float],
    css: str,
) -> None:
    if seconds:
        svg.path(path_of_steps(list(map(x, edges_s(seconds))), list(map(level, seconds))), css)


def _touched(second: LinkSecond) -> int:
    return sum(_count(second, name) for name, _, _ in CAUSES)


def _count(second: LinkSecond, name: str) -> int:
    return int(getattr(second, name) or 0)


def _drops(svg: Svg, x: Scale, y: Scale, second: LinkSecond) -> None:
    left, right = map(x, second.span_s)
    below = 0
    for name, css, words in CAUSES:
        if not (count := _count(second, name)):
            continue
        upper, lower = y(below + count), y(below)
        svg.rect(left, upper, max(right - left - 0.6, 1.0), lower - upper, css, f"{count} {words}")
        below += count
