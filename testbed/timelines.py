"""The time-line of one player: bandwidth, link, level of each chunk, buffer and stalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from player.qoe import KBPS_PER_MBPS
from player.records import ChunkRecord, SessionRecord
from player.trace import BITS_PER_MEGABIT, FloatArray, Trace
from testbed.link_timelines import LinkAxes, draw_link
from testbed.link_timelines import edges_s as link_edges_s
from testbed.result_rows import MS_PER_S, LinkSecond
from testbed.svg import Scale, Svg, fixed, path_of_steps, path_through, significant

WIDTH = 980.0
LEFT, RIGHT = 66.0, 12.0
BANDWIDTH, _LEVEL, _BUFFER, GAP, AXIS = 70.0, 40.0, 44.0, 8.0, 20.0
_MOST_STEPS = 450  # steps of the bandwidth curve; more would be finer than a pixel
#: Bandwidth axis: room above the fastest step, and its bounds in units of the top bitrate.
_HEADROOM, _LOWEST_TOP, _HIGHEST_TOP = 1.1, 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate that was seen for a while."""

    begin_s: float
    end_s: float
    kbps: float


@dataclass(frozen=True, slots=True)
class Axes:
    """What the time-lines of one trace share, so that they can be compared.

    Attributes:
        end_s: right end of the time axis.
        top_mbps: upper end of the bandwidth axis; faster is cut off.
        buffer_s: upper end of the buffer axis.
        levels: number of levels.
        link: of the panels that show the link.
    """

    end_s: float
    top_mbps: float
    buffer_s: float
    levels: int
    link: LinkAxes


def shared_axes(
    rows: Sequence[SessionRecord],
    trace: Trace | None,
    ladder_kbps: Sequence[float | None],
    seconds: Sequence[LinkSecond] = (),
) -> Axes:
    """Axes for the sessions of one trace; ``seconds`` are those of all of them."""
    ends = [row.chunks[-1].requested_s + row.chunks[-1].download_s for row in rows if row.chunks]
    buffers = [chunk.buffer_s + chunk.wait_s for row in rows for chunk in row.chunks]
    known_kbps = [rate for rate in ladder_kbps if rate is not None]
    top_level_mbps = max(known_kbps, default=KBPS_PER_MBPS) / KBPS_PER_MBPS
    if trace is not None:
        fastest = float(np.percentile(trace.steps_mbps, 98))
    else:
        rates = [chunk.throughput_kbps / KBPS_PER_MBPS for row in rows for chunk in row.chunks]
        fastest = max(rates, default=top_level_mbps)
    return Axes(
        end_s=max(ends, default=1.0),
        top_mbps=min(
            max(fastest * _HEADROOM, top_level_mbps * _LOWEST_TOP), top_level_mbps * _HIGHEST_TOP
        ),
        buffer_s=max(buffers, default=1.0),
        levels=len(ladder_kbps),
        link=LinkAxes.of(seconds),
    )


def session_timeline(
    row: SessionRecord, axes: Axes, trace: Trace | None, seconds: Sequence[LinkSecond]
) -> Markup:
    """Draws a session.

    Args:
        row: the session.
        axes: shared with the other sessions on the trace.
        trace: what the link was asked for, when ``seconds`` does not say so.
        seconds: what the link was asked for and did, for emulated sessions.
    """
    height = BANDWIDTH + axes.link.height + _LEVEL + _BUFFER + 2 * GAP + AXIS
    svg = Svg(WIDTH, height, f"Time-line of {row.arm} on {row.trace}", "timeline")
    x = Scale(0.0, axes.end_s, LEFT, WIDTH - RIGHT)
    bottom = height - AXIS
    time_axis(svg, x, bottom)
    _stalls(svg, x, row.chunks, bottom)
    got = [
        Rate(chunk.requested_s, chunk.requested_s + chunk.download_s, chunk.throughput_kbps)
        for chunk in row.chunks
    ]
    y = Scale(0.0, axes.top_mbps, BANDWIDTH, 2.0)
    draw_bandwidth(svg, x, y, trace, row.start_index, seconds, got)
    draw_link(
        *(svg, x, BANDWIDTH, axes.link, seconds),
        panel=lambda y, label, top: panel(svg, y, label, 0.0, y.high, top),
    )
    _levels(svg, x, row.chunks, axes.levels, bottom - _BUFFER - GAP)
    _buffer(svg, x, Scale(0.0, axes.buffer_s, bottom, bottom - _BUFFER), row.chunks)
    return svg.render()


def time_axis(svg: Svg, x: Scale, bottom: float) -> None:
    """Seconds below all panels, and lines through them."""
    for value in x.ticks(10):
        svg.line(x(value), 0, x(value), bottom, "grid")
        svg.text(x(value), bottom + 14, f"{value:g} s", "tick", "middle")


def _stalls(svg: Svg, x: Scale, chunks: Sequence[ChunkRecord], bottom: float) -> None:
    for chunk in chunks:
        if chunk.rebuffer_s <= 0:
            continue
        arrived_s = chunk.requested_s + chunk.download_s
        left, right = x(arrived_s - chunk.rebuffer_s), x(arrived_s)
        what, css = ("start-up", "startup") if chunk.index == 0 else ("stall", "stall")
        title = f"{what} {fixed(chunk.rebuffer_s, 2)} s, until chunk {chunk.index} arrived"
        svg.rect(left, 0, max(right - left, 1.0), bottom, css, title)


def draw_bandwidth(
    svg: Svg,
    x: Scale,
    y: Scale,
    trace: Trace | None,
    start_index: int,
    seconds: Sequence[LinkSecond],
    seen: Sequence[Rate],
) -> None:
    """What the link was asked for and did.

    Args:
        svg: the drawing.
        x: of seconds.
        y: of Mbit/s.
        trace: what was asked for, when ``seconds`` does not say so.
        start_index: where in the trace the session began.
        seconds: what the link was asked for and delivered.
        seen: what the player saw, drawn where ``seconds`` has nothing.
    """
    panel(svg, y, "Mbit/s", 0.0, y.high, f"{y.high:.1f}")
    edges: list[float] = []
    down = [one for one in seconds if one.direction == "down"]
    if down:
        edges = list(map(x, link_edges_s(down)))
        asked = [y(one.asked_mbps) for one in down]
    elif trace is not None:
        edges_s, asked_mbps = _asked(trace, start_index, x.high)
        edges, asked = list(map(x, edges_s.tolist())), list(map(y, asked_mbps.tolist()))
    if edges:
        steps = path_of_steps(edges, asked)
        svg.path(f"{steps}V{BANDWIDTH:g}H{edges[0]:.1f}Z", "asked-area")
        svg.path(steps, "asked")
    if down:
        rates = [y(one.delivered_mbps) for one in down]
        svg.path(path_of_steps(edges, rates), "delivered")
        return
    for one in seen:
        level, left = y(one.kbps / KBPS_PER_MBPS), x(one.begin_s)
        svg.line(left, level, max(x(one.end_s), left + 1), level, "got")


def _asked(trace: Trace, start_index: int, end_s: float) -> tuple[FloatArray, FloatArray]:
    """Edges and rates of the trace from the session's start on; averaged where it is too fine."""
    start_s = trace.start_s(min(max(start_index, 1), len(trace.times_s) - 1))
    passes = np.arange(int((start_s + end_s) / trace.duration_s) + 1) * trace.duration_s
    edges_s = np.unique((passes[:, None] + trace.edges_s[None, :]).ravel()) - start_s
    inside = edges_s[(edges_s > 0) & (edges_s < end_s)]
    if len(inside) > _MOST_STEPS:
        inside = np.linspace(0.0, end_s, _MOST_STEPS + 1)[1:-1]
    edges_s = np.concatenate(([0.0], inside, [end_s]))
    edges_s = edges_s[np.concatenate(([True], np.diff(edges_s) > 1e-9))]
    bits = np.diff(trace.bits_until(edges_s + start_s))
    return edges_s, bits / np.diff(edges_s) / BITS_PER_MEGABIT


def _levels(svg: Svg, x: Scale, chunks: Sequence[ChunkRecord], levels: int, bottom: float) -> None:
    svg.text(4, bottom - _LEVEL / 2 + 4, "level", "axis-label")
    svg.line(LEFT, bottom, WIDTH - RIGHT, bottom, "ax")
    for chunk in chunks:
        left, right = x(chunk.requested_s), x(chunk.requested_s + chunk.download_s)
        height = _LEVEL * (chunk.level + 1) / max(levels, chunk.level + 1)
        width = max(right - left - 0.6, 1.0)  # a hair of space between neighbours
        svg.rect(left, bottom - height, width, height, f"l{chunk.level}", _describe(chunk))
        if chunk.decision_s > 0:
            asked = x(chunk.requested_s - chunk.decision_s)
            svg.rect(asked, bottom, max(left - asked, 0.8), 4, "decision")
        if chunk.fallback:
            middle, top = (left + right) / 2, bottom - _LEVEL - 7
            svg.path(f"M{middle - 4:.1f} {top:.1f}h8l-4 7Z", "fallback")


def _buffer(svg: Svg, x: Scale, y: Scale, chunks: Sequence[ChunkRecord]) -> None:
    panel(svg, y, "buffer", 0.0, y.high, f"{y.high:.0f} s")
    if not chunks:
        return
    points: list[tuple[float, float]] = []
    buffer_s, since_s = 0.0, 0.0
    for chunk in chunks:
        arrived_s = chunk.requested_s + chunk.download_s
        if chunk.rebuffer_s > 0:  # a stall lasts until the chunk is in
            points.append((x(arrived_s - chunk.rebuffer_s), y(0.0)))
        left_s = 0.0 if chunk.rebuffer_s > 0 else max(buffer_s - (arrived_s - since_s), 0.0)
        points.append((x(arrived_s), y(left_s)))
        buffer_s, since_s = chunk.buffer_s + chunk.wait_s, arrived_s
        points.append((x(arrived_s), y(buffer_s)))
    line = path_through(points)
    svg.path(f"{line}V{y(0.0):.1f}H{points[0][0]:.1f}Z", "buffer-area")
    svg.path(line, "buffer")


def panel(svg: Svg, y: Scale, label: str, low: float, high: float, top_label: str) -> None:
    """The base line of a panel, its name and its upper end."""
    svg.line(LEFT, y(low), WIDTH - RIGHT, y(low), "ax")
    svg.text(4, (y(low) + y(high)) / 2 + 4, label, "axis-label")
    svg.text(LEFT - 5, y(high) + 9, top_label, "tick", "end")


def _describe(chunk: ChunkRecord) -> str:
    said = [
        f"chunk {chunk.index}: level {chunk.level}, {chunk.bitrate_kbps:g} kbit/s",
        f"{chunk.size_bytes / 1e6:.2f} MB in {fixed(chunk.download_s, 2)} s, "
        f"{significant(chunk.throughput_kbps / KBPS_PER_MBPS)} Mbit/s",
        f"buffer {fixed(chunk.buffer_s, 1)} s, QoE {fixed(chunk.qoe, 2)}",
    ]
    if chunk.latency_s is not None:
        said.append(f"{fixed(chunk.latency_s, 2)} s behind the event")
    if chunk.decision_s > 0:
        said.append(f"decision {significant(chunk.decision_s * MS_PER_S)} ms")
    if chunk.index > 0 and chunk.rebuffer_s > 0:
        said.append(f"stall {fixed(chunk.rebuffer_s, 2)} s")
    if chunk.fallback:
        said.append("decided by the fallback")
    return "\n".join(said)
