"""What the link did below the bandwidth of a time-line, each way: delay, queue, drops by cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from testbed.links.spec import Direction
from testbed.result_rows import LinkSecond
from testbed.svg import Scale, Svg, path_of_steps, significant

RATE_HEIGHT, DELAY_HEIGHT, QUEUE_HEIGHT, DROPS_HEIGHT, GAP = 36.0, 40.0, 34.0, 34.0, 8.0
#: What happened to packets, in the order in which bars are stacked: attribute, class and words.
CAUSES = (
    ("drops", "drop-queue", "dropped, queue full"),
    ("aqm_drops", "drop-aqm", "dropped by AQM"),
    ("losses", "drop-loss", "lost at random"),
    ("marks", "drop-mark", "marked (ECN)"),
    ("duplicates", "drop-double", "doubled"),
)
_HEADROOM = 1.1
Panel = Callable[[Scale, str, str], None]


@dataclass(frozen=True, slots=True)
class WayAxes:
    """Upper ends of the panels of one way; a panel that would be empty has 0 and is left out.

    Attributes:
        mbps: of the rate; 0 for the way down, whose rate is drawn above all panels.
        delay_ms: of the delay.
        queue_packets: of the queue.
        packets: of the drops.
    """

    mbps: float = 0.0
    delay_ms: float = 0.0
    queue_packets: float = 0.0
    packets: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[LinkSecond], *, has_rate: bool) -> WayAxes:
        """Room for all of these."""
        has_bottleneck = any(one.asked_bits > 0 for one in seconds)
        delays_ms = [one.delay_p99_ms or 0.0 for one in seconds if has_bottleneck]
        rates_mbps = [one.asked_mbps for one in seconds if has_rate]
        return cls(
            mbps=_HEADROOM * max(rates_mbps, default=0.0),
            delay_ms=_HEADROOM * max(delays_ms, default=0.0),
            queue_packets=max((one.backlog_packets or 0.0 for one in seconds), default=0.0),
            packets=float(max(map(_touched, seconds), default=0)),
        )

    @property
    def height(self) -> float:
        """Of all panels together, with a gap above each."""
        panels = (
            (self.mbps, RATE_HEIGHT),
            (self.delay_ms, DELAY_HEIGHT),
            (self.queue_packets, QUEUE_HEIGHT),
            (self.packets, DROPS_HEIGHT),
        )
        return sum(GAP + height for top, height in panels if top > 0)


@dataclass(frozen=True, slots=True)
class LinkAxes:
    """What the panels of one trace share.

    Attributes:
        down: the way towards the client.
        up: the way towards the server.
    """

    down: WayAxes = WayAxes()
    up: WayAxes = WayAxes()

    @classmethod
    def of(cls, seconds: Sequence[LinkSecond]) -> LinkAxes:
        """Room for all of these."""
        return cls(
            WayAxes.of(_of(seconds, "down"), has_rate=False),
            WayAxes.of(_of(seconds, "up"), has_rate=True),
        )

    @property
    def height(self) -> float:
        """Of all panels together, with a gap above each."""
        return self.down.height + self.up.height


def draw_link(
    svg: Svg,
    x: Scale,
    top: float,
    axes: LinkAxes,
    seconds: Sequence[LinkSecond],
    panel: Panel,
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
    _draw_way(svg, x, top, axes.down, _of(seconds, "down"), panel, "")
    _draw_way(svg, x, top + axes.down.height, axes.up, _of(seconds, "up"), panel, "up ")


def edges_s(seconds: Sequence[LinkSecond]) -> list[float]:
    """Borders of seconds that follow each other: when the counters were really read."""
    return [one.span_s[0] for one in seconds] + [seconds[-1].span_s[1]]


def _of(seconds: Sequence[LinkSecond], direction: Direction) -> list[LinkSecond]:
    return [one for one in seconds if one.direction == direction]


def _draw_way(
    svg: Svg,
    x: Scale,
    top: float,
    axes: WayAxes,
    seconds: Sequence[LinkSecond],
    panel: Panel,
    prefix: str,
) -> None:
    if axes.mbps > 0:
        y = Scale(0.0, axes.mbps, top + GAP + RATE_HEIGHT, top + GAP)
        panel(y, f"{prefix}Mbit/s", significant(axes.mbps, 2))
        _steps(svg, x, seconds, lambda one: y(one.asked_mbps), "asked")
        _steps(svg, x, seconds, lambda one: y(one.delivered_mbps), "delivered")
        top += GAP + RATE_HEIGHT
    if axes.delay_ms > 0:
        y = Scale(0.0, axes.delay_ms, top + GAP + DELAY_HEIGHT, top + GAP)
        panel(y, f"{prefix}delay", f"{significant(axes.delay_ms, 2)} ms")
        _steps(svg, x, seconds, lambda one: y(one.delay_p99_ms or 0.0), "delay-tail")
        _steps(svg, x, seconds, lambda one: y(one.delay_p50_ms or 0.0), "delay")
        top += GAP + DELAY_HEIGHT
    if axes.queue_packets > 0:
        y = Scale(0.0, axes.queue_packets, top + GAP + QUEUE_HEIGHT, top + GAP)
        panel(y, f"{prefix}queue", f"{axes.queue_packets:g}")
        _steps(svg, x, seconds, lambda one: y(one.backlog_packets or 0.0), "queue")
        top += GAP + QUEUE_HEIGHT
    if axes.packets > 0:
        y = Scale(0.0, axes.packets, top + GAP + DROPS_HEIGHT, top + GAP)
        panel(y, f"{prefix}drops", f"{axes.packets:g}")
        for one in seconds:
            _drops(svg, x, y, one)


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
