"""The time-line of one viewer: bandwidth, link, what was in view, what was blank, the buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from player.qoe import KBPS_PER_MBPS
from player.trace import Trace
from player.viewport_records import TiledChunkRecord, ViewportSessionRecord
from testbed.link_timelines import LinkAxes, draw_link
from testbed.result_rows import MS_PER_S, LinkSecond
from testbed.svg import Scale, Svg, fixed, path_through, significant
from testbed.timelines import (
    AXIS,
    BANDWIDTH,
    GAP,
    LEFT,
    RIGHT,
    WIDTH,
    Rate,
    draw_bandwidth,
    panel,
    time_axis,
)
from testbed.viewport_runs import Tiling

_RATE, _BLANK, _AHEAD = 50.0, 26.0, 34.0
_HEADROOM = 1.1
_MARK = 7.0  # room above a panel for what stands on it


@dataclass(frozen=True, slots=True)
class ViewerAxes:
    """What the time-lines of one recording and trace share, so that they can be compared.

    Attributes:
        end_s: right end of the time axis.
        top_mbps: upper end of the bandwidth axis; faster is cut off.
        top_kbps: upper end of the bitrate in view.
        ahead_s: upper end of the buffer.
        link: of the panels that show the link.
    """

    end_s: float
    top_mbps: float
    top_kbps: float
    ahead_s: float
    link: LinkAxes


def viewer_axes(
    rows: Sequence[ViewportSessionRecord],
    trace: Trace | None,
    tiling: Tiling,
    seconds: Sequence[LinkSecond] = (),
) -> ViewerAxes:
    """Axes for the sessions of one recording and trace; ``seconds`` are those of all of them."""
    chunks = [chunk for row in rows for chunk in row.chunks]
    ends = [
        begins_s[-1] + tiling.chunk_s for row in rows if (begins_s := play_times_s(row, tiling))
    ]
    top_kbps = max(tiling.levels_kbps, default=KBPS_PER_MBPS)
    if trace is not None:
        fastest = float(np.percentile(trace.steps_mbps, 98))
    else:
        seen = [chunk.throughput_kbps or 0.0 for chunk in chunks]
        fastest = max(seen, default=top_kbps) / KBPS_PER_MBPS
    return ViewerAxes(
        end_s=max(ends, default=1.0),
        top_mbps=min(max(fastest * _HEADROOM, 1.0), 2 * top_kbps / KBPS_PER_MBPS),
        top_kbps=top_kbps,
        ahead_s=max((chunk.buffer_s for chunk in chunks), default=1.0) or 1.0,
        link=LinkAxes.of(seconds),
    )


def play_times_s(row: ViewportSessionRecord, tiling: Tiling) -> list[float]:
    """When each chunk began to play; what stood still within it counts as before it."""
    stalled_s, begins_s = 0.0, []
    for chunk in row.chunks:
        stalled_s += chunk.stall_s
        begins_s.append(stalled_s + chunk.index * tiling.chunk_s)
    return begins_s


def viewer_timeline(
    row: ViewportSessionRecord,
    axes: ViewerAxes,
    tiling: Tiling,
    trace: Trace | None,
    seconds: Sequence[LinkSecond],
) -> Markup:
    """Draws a session.

    Args:
        row: the session.
        axes: shared with the other sessions of the recording and trace.
        tiling: how the sphere was cut up.
        trace: what the link was asked for, when ``seconds`` does not say so.
        seconds: what the link was asked for and did, for emulated sessions.
    """
    height = BANDWIDTH + axes.link.height + _RATE + _BLANK + _AHEAD + 3 * GAP + _MARK + AXIS
    svg = Svg(WIDTH, height, f"Time-line of {row.arm}: {row.recording}, {row.trace}", "timeline")
    x = Scale(0.0, axes.end_s, LEFT, WIDTH - RIGHT)
    bottom = height - AXIS
    begins_s = play_times_s(row, tiling)
    time_axis(svg, x, bottom)
    _stalls(svg, x, row.chunks, begins_s, bottom)
    asked_s = [chunk.asked_s for chunk in row.chunks]
    seen = [
        Rate(chunk.asked_s, max(until_s, chunk.asked_s), chunk.throughput_kbps)
        for chunk, until_s in zip(row.chunks, [*asked_s[1:], axes.end_s], strict=False)
        if chunk.throughput_kbps is not None
    ]
    y = Scale(0.0, axes.top_mbps, BANDWIDTH, 2.0)
    draw_bandwidth(svg, x, y, trace, row.start_index, seconds, seen)
    draw_link(
        *(svg, x, BANDWIDTH, axes.link, seconds),
        panel=lambda y, label, top: panel(svg, y, label, 0.0, y.high, top),
    )
    _in_view(svg, x, row.chunks, begins_s, axes, tiling, bottom - _AHEAD - _BLANK - 2 * GAP)
    _blanks(svg, x, row.chunks, begins_s, tiling, bottom - _AHEAD - GAP)
    _ahead(svg, x, Scale(0.0, axes.ahead_s, bottom, bottom - _AHEAD), row.chunks)
    return svg.render()


def _stalls(
    svg: Svg,
    x: Scale,
    chunks: Sequence[TiledChunkRecord],
    begins_s: Sequence[float],
    bottom: float,
) -> None:
    for chunk, begin_s in zip(chunks, begins_s, strict=True):
        if chunk.stall_s <= 0:
            continue
        what, css = ("start-up", "startup") if chunk.index == 0 else ("stall", "stall")
        left, right = x(begin_s - chunk.stall_s), x(begin_s)
        title = f"{what} {fixed(chunk.stall_s, 2)} s, before or within chunk {chunk.index}"
        svg.rect(left, 0, max(right - left, 1.0), bottom, css, title)


def _in_view(
    svg: Svg,
    x: Scale,
    chunks: Sequence[TiledChunkRecord],
    begins_s: Sequence[float],
    axes: ViewerAxes,
    tiling: Tiling,
    bottom: float,
) -> None:
    y = Scale(0.0, axes.top_kbps, bottom, bottom - _RATE)
    panel(svg, y, "in view", 0.0, y.high, f"{y.high / KBPS_PER_MBPS:g} M")
    best = len(tiling.levels_kbps) - 1
    for chunk, begin_s in zip(chunks, begins_s, strict=True):
        left, right = x(begin_s), x(begin_s + tiling.chunk_s)
        top = y(chunk.viewport_bitrate_kbps)
        level = min(max(round(chunk.viewport_level), 0), best)
        width = max(right - left - 0.6, 1.0)  # a hair of space between neighbours
        svg.rect(left, top, width, max(bottom - top, 0.8), f"l{level}", describe(chunk))
        asked, took = x(chunk.asked_s), x(chunk.asked_s + chunk.decision_s)
        if chunk.decision_s > 0:
            svg.rect(asked, bottom, max(took - asked, 0.8), 4, "decision")
        if chunk.fallback:
            middle = (left + right) / 2
            svg.path(f"M{middle - 4:.1f} {bottom - _RATE - _MARK:.1f}h8l-4 7Z", "fallback")


def _blanks(
    svg: Svg,
    x: Scale,
    chunks: Sequence[TiledChunkRecord],
    begins_s: Sequence[float],
    tiling: Tiling,
    bottom: float,
) -> None:
    y = Scale(0.0, 1.0, bottom, bottom - _BLANK)
    panel(svg, y, "blank", 0.0, 1.0, "")
    for chunk, begin_s in zip(chunks, begins_s, strict=True):
        if chunk.blank_ratio > 0:
            left, right = x(begin_s), x(begin_s + tiling.chunk_s)
            height = max(bottom - y(chunk.blank_ratio), 0.8)
            title = f"chunk {chunk.index}: {fixed(chunk.blank_ratio * 100, 1)} % blank"
            svg.rect(left, bottom - height, max(right - left, 1.0), height, "blank", title)


def _ahead(svg: Svg, x: Scale, y: Scale, chunks: Sequence[TiledChunkRecord]) -> None:
    panel(svg, y, "ahead", 0.0, y.high, f"{y.high:.1f} s")
    if chunks:
        points = [(x(chunk.asked_s), y(chunk.buffer_s)) for chunk in chunks]
        line = path_through(points)
        svg.path(f"{line}V{y(0.0):.1f}H{points[0][0]:.1f}Z", "buffer-area")
        svg.path(line, "buffer")


def describe(chunk: TiledChunkRecord) -> str:
    """A chunk in a few words."""
    said = [
        f"chunk {chunk.index}: level {fixed(chunk.viewport_level, 2)} in view, "
        f"{fixed(chunk.viewport_bitrate_kbps, 0)} kbit/s, "
        f"{fixed(chunk.blank_ratio * 100, 1)} % blank",
        f"{significant(chunk.size_bytes / 1e6)} MB, {chunk.late_tiles} tiles late, "
        f"{chunk.replaced_tiles} replaced",
    ]
    if chunk.decision_s > 0:
        said.append(f"decisions {chunk.decisions}, {significant(chunk.decision_s * MS_PER_S)} ms")
    if chunk.fallback:
        said.append("decided by the fallback")
    return "\n".join(said)
