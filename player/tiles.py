"""Tiles of an equirectangular sphere, and how much of each lies in a viewer's field of view.

The field of view is what a pinhole camera sees: the intersection of four half-spaces through the
viewer, a convex polygon of great circles on the sphere. Its share of each tile is exact up to
rounding: by Green's theorem the area is a sum of integrals of ``sin(latitude)`` over longitude
along the four edges, which for a great circle, also one cut off at a parallel, is an arcsine. The
poles, the seam at yaw ±180 and roll are no special cases.

Directions: x ahead at yaw 0, y at yaw 90, z up. Roll turns the field of view around the gaze, its
top towards growing yaw for positive roll, then come pitch and yaw. Whether yaw grows to the left
or to the right the recordings do not say; nothing here depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from player.trace import FloatArray

SPHERE_SR = 4 * math.pi
MAX_ROWS = 64
MAX_COLUMNS = 128
MAX_FIELD_OF_VIEW_DEG = 180.0
#: Of a tile of which less lies in the field of view nothing does: far less than a pixel, far more
#: than rounding leaves behind.
NEGLIGIBLE_SR = 1e-8

_BLOCK = 2**13  # border crossings per edge worked on at once: beyond, memory is what takes time
_POLE_TANGENT = 1e30  # of the latitude ±90; infinity times zero would be no number
_LEAST_TILT = 1e-30  # of an edge along the equator, which is divided by
_AT_POLE = 1e-11  # radians; a corner that close to a pole has no longitude worth its name
_OFF_POLE = 1e-9  # radians by which such a pose is turned


class TilingError(ValueError):
    """A grid or a field of view that is none, or poses that are not ``(n, 3)`` finite numbers."""


@dataclass(frozen=True)
class TileGrid:
    """Tiles of equal height and width in degrees; tile ``row * columns + column``.

    Attributes:
        rows: from the top, pitch 90, to the bottom.
        columns: from yaw -180 on.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MAX_ROWS or not 1 <= self.columns <= MAX_COLUMNS:
            raise TilingError(
                f"a grid has 1 to {MAX_ROWS} rows and 1 to {MAX_COLUMNS} columns, "
                f"not {self.rows} and {self.columns}"
            )

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.rows * self.columns

    @cached_property
    def solid_angles_sr(self) -> FloatArray:
        """Size of each tile on the sphere ``(tiles,)``; together the whole sphere."""
        rows = np.diff(self._row_sines)[::-1] * (2 * math.pi / self.columns)
        return _read_only(np.repeat(rows, self.columns))

    @cached_property
    def centres_deg(self) -> FloatArray:
        """Pitch and yaw of the middle of each tile ``(tiles, 2)``."""
        pitches = 90 - (np.arange(self.rows) + 0.5) * (180 / self.rows)
        yaws = (np.arange(self.columns) + 0.5) * (360 / self.columns) - 180
        return _read_only(np.stack(np.meshgrid(pitches, yaws, indexing="ij"), -1).reshape(-1, 2))

    def tile_at(self, pitch_deg: float, yaw_deg: float) -> int:
        """The tile that holds a direction."""
        row = min(max(int((90 - pitch_deg) / 180 * self.rows), 0), self.rows - 1)
        column = math.floor((yaw_deg + 180) % 360 / 360 * self.columns)
        return row * self.columns + min(column, self.columns - 1)

    @cached_property
    def _row_latitudes(self) -> FloatArray:
        """Borders of the rows from the bottom up, radians ``(rows + 1,)``."""
        return np.linspace(-math.pi / 2, math.pi / 2, self.rows + 1)

    @cached_property
    def _row_sines(self) -> FloatArray:
        return np.sin(self._row_latitudes)

    @cached_property
    def _row_tangents(self) -> FloatArray:
        tangents = np.tan(self._row_latitudes)
        tangents[[0, -1]] = -_POLE_TANGENT, _POLE_TANGENT
        return tangents

    @cached_property
    def _column_borders(self) -> FloatArray:
        """Western borders, radians ``(columns,)``."""
        return np.linspace(-math.pi, math.pi, self.columns, endpoint=False)


@dataclass(frozen=True, slots=True)
class FieldOfView:
    """What a viewer sees at once: a rectangle on the screen of a perspective projection.

    Attributes:
        width_deg: angle between the left and the right edge, through the centre.
        height_deg: angle between the upper and the lower edge, likewise.
    """

    width_deg: float = 100.0
    height_deg: float = 100.0

    def __post_init__(self) -> None:
        for name, value in (("width_deg", self.width_deg), ("height_deg", self.height_deg)):
            if not 0 < value < MAX_FIELD_OF_VIEW_DEG:  # false for NaN
                raise TilingError(
                    f"{name} of a field of view must lie between 0 and "
                    f"{MAX_FIELD_OF_VIEW_DEG:g}, not {value}"
                )

    @property
    def solid_angle_sr(self) -> float:
        """Its size on the sphere."""
        half_width, half_height = (
            math.radians(self.width_deg / 2),
            math.radians(self.height_deg / 2),
        )
        return 4 * math.asin(math.sin(half_width) * math.sin(half_height))


def coverage(
    grid: TileGrid, fov: FieldOfView, poses: FloatArray | Sequence[Sequence[float]]
) -> FloatArray:
    """Share of the field of view that lies in each tile.

    Args:
        grid: the tiles.
        fov: the field of view.
        poses: roll, pitch and yaw in degrees ``(n, 3)``.

    Returns:
        ``(n, tiles)``; rows sum to 1.

    Raises:
        TilingError: the poses have another shape or hold a number that is not finite.
    """
    covered = covered_sr(grid, fov, poses)
    covered /= covered.sum(axis=1, keepdims=True)
    return covered


def covered_sr(
    grid: TileGrid, fov: FieldOfView, poses: FloatArray | Sequence[Sequence[float]]
) -> FloatArray:
    """Solid angle of the field of view in each tile; see :func:`coverage`.

    Returns:
        ``(n, tiles)`` in steradian; rows sum to ``fov.solid_angle_sr``.

    Raises:
        TilingError: the poses have another shape or hold a number that is not finite.
    """
    angles_deg = np.asarray(poses, dtype=np.float64)
    if angles_deg.ndim != 2 or angles_deg.shape[1] != 3:
        raise TilingError(f"poses must have the shape (n, 3), not {angles_deg.shape}")
    if not np.isfinite(angles_deg).all():
        raise TilingError("poses must be finite numbers")
    covered = np.empty((len(angles_deg), grid.rows, grid.columns))
    block = max(_BLOCK // ((grid.rows + 1) * (grid.columns + 3)), 1)
    for start in range(0, len(angles_deg), block):
        edges = _edges(fov, np.radians(angles_deg[start : start + block]))
        below = _area_below(grid, edges)  # (block, rows + 1, columns)
        covered[start : start + block] = np.diff(below, axis=1)[:, ::-1]
    covered[covered < NEGLIGIBLE_SR] = 0.0
    return covered.reshape(len(angles_deg), grid.tiles)


@dataclass(frozen=True, slots=True)
class _Edges:
    """The four edges of the field of view of each pose, as intervals of longitude ``(n, 4)``.

    Attributes:
        slope: cosine of the highest latitude of the great circle; 0: it is a meridian.
        tilt: sine of that latitude.
        is_floor: whether the field of view lies north of it, not south.
        start_longitude: of its western end.
        start: the same, from the longitude of the circle's highest point on, -pi to pi.
        extent: how far east it goes, at most pi.
    """

    slope: FloatArray
    tilt: FloatArray
    is_floor: NDArray[np.bool_]
    start_longitude: FloatArray
    start: FloatArray
    extent: FloatArray


def view_axes(angles: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Directions of a viewer's screen: to its middle, to its side of growing yaw, to its top.

    Args:
        angles: roll, pitch and yaw in radians ``(n, 3)``.

    Returns:
        Three times unit vectors ``(n, 3)``.
    """
    sine, cosine = np.sin(angles), np.cos(angles)
    (sin_roll, sin_pitch, sin_yaw), (cos_roll, cos_pitch, cos_yaw) = sine.T, cosine.T
    zero = np.zeros(len(angles))
    gaze = np.stack([cos_pitch * cos_yaw, cos_pitch * sin_yaw, sin_pitch], axis=1)  # (n, 3)
    level = np.stack([-sin_yaw, cos_yaw, zero], axis=1)  # towards growing yaw, before roll
    upright = np.stack([-sin_pitch * cos_yaw, -sin_pitch * sin_yaw, cos_pitch], axis=1)
    side = cos_roll[:, None] * level - sin_roll[:, None] * upright
    up = cos_roll[:, None] * upright + sin_roll[:, None] * level
    return gaze, side, up


def _edges(fov: FieldOfView, angles: FloatArray) -> _Edges:
    gaze, side, up = view_axes(angles)
    half_width, half_height = math.radians(fov.width_deg / 2), math.radians(fov.height_deg / 2)
    # Counter-clockwise as seen from outside, so that the inside lies to the left of every edge.
    right, top = math.tan(half_width) * side, math.tan(half_height) * up
    corners = np.stack(
        [gaze - right - top, gaze + right - top, gaze + right + top, gaze - right + top], axis=1
    )  # (n, 4, 3)
    is_at_pole = np.hypot(corners[..., 0], corners[..., 1]) < _AT_POLE * np.abs(corners[..., 2])
    if is_at_pole.any():
        off = np.array([0.0, _OFF_POLE, 0.0])
        return _edges(fov, angles + off * is_at_pole.any(axis=1, keepdims=True))
    inward = np.stack(
        [
            math.sin(half_height) * gaze + math.cos(half_height) * up,
            math.sin(half_width) * gaze - math.cos(half_width) * side,
            math.sin(half_height) * gaze - math.cos(half_height) * up,
            math.sin(half_width) * gaze + math.cos(half_width) * side,
        ],
        axis=1,
    )  # (n, 4, 3), unit vectors
    is_floor = inward[..., 2] >= 0
    # With the inside to the left, a floor runs east and a ceiling west.
    longitude = np.arctan2(corners[..., 1], corners[..., 0])
    following = np.roll(longitude, -1, axis=1)
    start_longitude = np.where(is_floor, longitude, following)
    highest = np.where(is_floor, -1.0, 1.0)[..., None] * inward[..., :2]
    return _Edges(
        slope=np.abs(inward[..., 2]),
        tilt=np.maximum(np.hypot(inward[..., 0], inward[..., 1]), _LEAST_TILT),
        is_floor=is_floor,
        start_longitude=start_longitude,
        start=_wrapped(start_longitude - np.arctan2(highest[..., 1], highest[..., 0])),
        extent=np.abs(_wrapped(following - longitude)),
    )


def _area_below(grid: TileGrid, edges: _Edges) -> FloatArray:
    """Area of the field of view south of each border between rows, per column.

    On a meridian the field of view reaches from a floor, or the south pole, up to a ceiling, or the
    north pole. What lies of that below a border is ``min(sin(upper), sin(border)) -
    min(sin(lower), sin(border))``, to be integrated over longitude. Where the south pole is the
    lower end, the second term is the same for all borders and left out: only differences count.

    Returns:
        ``(n, rows + 1, columns)``, borders from the bottom up.
    """
    turn = 2 * math.pi
    # How far along its edge each border of columns cuts it.
    ahead = np.mod(grid._column_borders - edges.start_longitude[..., None], turn)
    ahead = np.concatenate([ahead, ahead[..., :1]], axis=-1)  # (n, 4, columns + 1)
    starts_inside = ahead[..., 1:] <= ahead[..., :-1]
    along = np.empty((*edges.start.shape, grid.columns + 3))
    along[..., 0], along[..., -1] = 0.0, edges.extent
    np.minimum(ahead, edges.extent[..., None], out=along[..., 1:-1])
    # Along its circle, from the highest point on.
    theta = along + edges.start[..., None]
    is_over = theta > math.pi
    theta[is_over] -= turn

    # The integral of min(sin(latitude), sine) from the highest point on is odd in theta. Up to the
    # cut, where the circle crosses the parallel, the sine is the smaller one.
    slope, tilt, sines = edges.slope[..., None], edges.tilt[..., None], grid._row_sines
    cut = np.arccos(np.clip(slope * grid._row_tangents / tilt, -1.0, 1.0))  # (n, 4, rows + 1)
    behind_cut = sines * cut - _integral(slope, tilt, cut)
    distance = np.abs(theta)
    integral = np.where(
        distance[..., None, :] < cut[..., None],
        sines[:, None] * distance[..., None, :],
        _integral(slope, tilt, distance)[..., None, :] + behind_cut[..., None],
    )  # (n, 4, rows + 1, columns + 3)
    integral *= np.where(theta < 0, -1.0, 1.0)[..., None, :]
    integral += 2 * behind_cut[..., None] * is_over[..., None, :]

    per_column = np.diff(integral[..., 1:-1], axis=-1)
    whole = integral[..., -1] - integral[..., 0]
    per_column += whole[..., None] * starts_inside[..., None, :]
    area: FloatArray = np.einsum("ne,nerc->nrc", np.where(edges.is_floor, -1.0, 1.0), per_column)
    is_north_pole_inside = edges.is_floor.all(axis=1, keepdims=True)
    area += (is_north_pole_inside * sines * (turn / grid.columns))[..., None]
    return area


def _integral(slope: FloatArray, tilt: FloatArray, theta: FloatArray) -> FloatArray:
    """Integral of sin(latitude) along a great circle: arcsin(tilt * sin(theta)), without loss."""
    sine, cosine = np.sin(theta), np.cos(theta)
    integral: FloatArray = np.arctan2(tilt * sine, np.hypot(slope * sine, cosine))
    return integral


def _wrapped(angle: FloatArray) -> FloatArray:
    """To -pi up to pi."""
    wrapped: FloatArray = np.mod(angle + math.pi, 2 * math.pi) - math.pi
    return wrapped


def _read_only(array: FloatArray) -> FloatArray:
    array.flags.writeable = False
    return array
