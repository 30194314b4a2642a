"""Equirectangular maps of one chunk: what was fetched, where the viewer looked and was expected to.

One unit is one degree; yaw -180 is on the left, pitch 90 at the top. What crosses the seam is drawn
on both sides of it, and a field of view around a pole as the line all around that it is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from markupsafe import Markup

from player.angles import unwrap
from player.tiles import FieldOfView, TileGrid, view_axes
from player.trace import FloatArray
from player.viewport_observation import HeadPose
from player.viewport_records import TiledChunkRecord
from testbed.svg import Svg, number, path_through

WIDTH, HEIGHT = 360.0, 180.0
_HALF_TURN, _QUARTER_TURN = 180.0, 90.0
_POINTS = 9  # per edge of a field of view; more would be finer than the line is wide
_MISSING = -1
_LEAST_SPREAD = 0.5  # degrees; what is smaller is hidden by the line


def chunk_map(chunk: TiledChunkRecord, grid: TileGrid, fov: FieldOfView, label: str) -> Markup:
    """Draws a chunk of a session.

    Args:
        chunk: its record; without ``path`` and ``predicted`` only its tiles are drawn.
        grid: of its tiles.
        fov: what the viewer saw at once.
        label: what the drawing is called.
    """
    svg = Svg(WIDTH, HEIGHT, label, "sphere")
    svg.rect(0, 0, WIDTH, HEIGHT, "absent")
    _tiles(svg, chunk, grid)
    if chunk.predicted:
        predicted = np.array(chunk.predicted, dtype=np.float64)
        with svg.group("spread"):
            _spreads(svg, predicted)
    if chunk.path:
        middle = chunk.path[len(chunk.path) // 2]
        _curve(svg, fov_outline(fov, middle), "outline")
    if chunk.predicted:
        _curve(svg, predicted[:, 1:3], "predicted", has_ends=True)
    if chunk.path:
        _curve(svg, np.array(chunk.path)[:, 1:], "looked", has_ends=True)
    return svg.render()


def fov_outline(fov: FieldOfView, pose: HeadPose) -> FloatArray:
    """The border of a field of view, closed: pitch and yaw in degrees ``(n, 2)``."""
    gaze, side, up = view_axes(np.radians(np.array([pose], dtype=np.float64)))
    right = math.tan(math.radians(fov.width_deg / 2)) * side
    top = math.tan(math.radians(fov.height_deg / 2)) * up
    along = np.linspace(-1.0, 1.0, _POINTS, endpoint=False)[:, None]
    ones = np.ones_like(along)
    across = np.concatenate([along, ones, -along, -ones])
    upwards = np.concatenate([-ones, along, ones, -along])
    points = gaze + across * right + upwards * top  # (4 * _POINTS, 3)
    points = np.concatenate([points, points[:1]])
    pitch = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
    yaw = np.arctan2(points[:, 1], points[:, 0])
    border: FloatArray = np.degrees(np.stack([pitch, yaw], axis=1))
    return border


def _tiles(svg: Svg, chunk: TiledChunkRecord, grid: TileGrid) -> None:
    """A path per level; neighbours in a row that are of one level are one rectangle."""
    if len(chunk.final_levels) != grid.tiles:
        return  # of another grid than the experiment says
    width, height = WIDTH / grid.columns, HEIGHT / grid.rows
    commands: dict[int, list[str]] = {}
    late = []
    for row in range(grid.rows):
        first = row * grid.columns
        tiles = range(first, first + grid.columns)
        for level, run in groupby(tiles, key=lambda tile: chunk.final_levels[tile]):
            some = list(run)
            left, across = (some[0] - first) * width, len(some) * width
            commands.setdefault(level, []).append(
                f"M{number(left)} {number(row * height)}h{number(across)}v{number(height)}"
                f"h{number(-across)}z"
            )
        late += [
            f"M{number((tile - first + 0.5) * width)} {number((row + 0.5) * height)}h0"
            for tile in tiles
            if chunk.levels[tile] != chunk.final_levels[tile]
        ]
    for level in sorted(commands):
        if level != _MISSING:
            svg.path("".join(commands[level]), f"l{level}")
    borders = [f"M{number(column * width)} 0v180" for column in range(1, grid.columns)]
    borders += [f"M0 {number(row * height)}h360" for row in range(1, grid.rows)]
    svg.path("".join(borders), "borders")
    if late:
        svg.path("".join(late), "late")


def _spreads(svg: Svg, predicted: FloatArray) -> None:
    for _, pitch, yaw, pitch_spread, yaw_spread in predicted.tolist():
        across, up = max(yaw_spread, _LEAST_SPREAD), max(pitch_spread, _LEAST_SPREAD)
        x = (yaw + _HALF_TURN) % WIDTH
        for shift in _copies(x - across, x + across):
            svg.ellipse(x + shift, _QUARTER_TURN - pitch, min(across, WIDTH), up, "one")


def _curve(svg: Svg, pitch_yaw: FloatArray, css: str, *, has_ends: bool = False) -> None:
    """A line on the sphere, with a casing that sets it off, and a dot at its end.

    What of it lies beyond the seam comes in again on the other side.
    """
    yaws = unwrap(pitch_yaw[:, 1])
    yaws = yaws - math.floor((yaws[0] + _HALF_TURN) / WIDTH) * WIDTH
    xs = yaws + _HALF_TURN
    ys = _QUARTER_TURN - pitch_yaw[:, 0]
    places = list(zip(xs.tolist(), ys.tolist(), strict=True))
    shifts = _copies(float(xs.min()), float(xs.max()))
    commands = "".join(path_through((x + shift, y) for x, y in places) for shift in shifts)
    svg.path(commands, f"{css} casing")
    svg.path(commands, css)
    if has_ends:
        x, y = places[-1]
        svg.circle(x % WIDTH, y, 3.2, f"{css}-end")


def _copies(left: float, right: float) -> Sequence[float]:
    """Shifts by whole turns that bring some of an interval onto the map."""
    first, last = math.ceil(-right / WIDTH), math.floor((WIDTH - left) / WIDTH)
    return [turn * WIDTH for turn in range(first, last + 1)]
