"""Tiles and fields of view: closed forms, counted directions, poles, seam and roll."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from player.tiles import (
    SPHERE_SR,
    FieldOfView,
    TileGrid,
    TilingError,
    coverage,
    covered_sr,
)

GRID = TileGrid(6, 12)
FOV = FieldOfView()
FloatArray = NDArray[np.float64]

EDGE_POSES = (
    (0, 0, 0),
    (0, 0, 180),
    (0, 0, -180),
    (0, 0, 179.999999),
    (0, 90, 0),
    (30, 90, -77),
    (0, -90, 10),
    (180, -90, -180),
    (0, 40, 0),  # the upper edge touches the pole
    (0, -40, 90),
    (90, 40, 33),
    (180, 0, 15),
    (-45, 60, 179),
    (45, -89.9999, -15),
)


def counted(
    grid: TileGrid, fov: FieldOfView, pose: FloatArray, directions: FloatArray
) -> FloatArray:
    """Share of ``directions`` in the field of view and each tile, by turning them all."""
    roll, pitch, yaw = np.radians(pose)
    turn_yaw = [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
    turn_pitch = [[np.cos(pitch), 0, -np.sin(pitch)], [0, 1, 0], [np.sin(pitch), 0, np.cos(pitch)]]
    turn_roll = [[1, 0, 0], [0, np.cos(roll), np.sin(roll)], [0, -np.sin(roll), np.cos(roll)]]
    turn = np.array(turn_yaw) @ turn_pitch @ turn_roll
    ahead, aside, above = (directions @ turn).T
    is_seen = (
        (ahead > 0)
        & (np.abs(aside) <= math.tan(math.radians(fov.width_deg / 2)) * ahead)
        & (np.abs(above) <= math.tan(math.radians(fov.height_deg / 2)) * ahead)
    )
    x, y, z = directions[is_seen].T
    rows = ((90 - np.degrees(np.arcsin(z))) / 180 * grid.rows).astype(int)
    columns = ((np.degrees(np.arctan2(y, x)) + 180) / 360 * grid.columns).astype(int)
    tiles = np.clip(rows, 0, grid.rows - 1) * grid.columns + np.clip(columns, 0, grid.columns - 1)
    return np.bincount(tiles, minlength=grid.tiles) / len(directions)


def random_poses(count: int, rng: np.random.Generator) -> FloatArray:
    return rng.uniform((-180, -90, -180), (180, 90, 180), size=(count, 3))


@pytest.mark.parametrize(
    ("grid", "fov"),
    [
        (GRID, FOV),
        (TileGrid(1, 1), FOV),
        (TileGrid(2, 1), FieldOfView(170, 20)),
        (TileGrid(5, 7), FieldOfView(30, 150)),
        (TileGrid(4, 8), FieldOfView(179, 179)),
        (TileGrid(32, 64), FieldOfView(110, 90)),
    ],
)
def test_tiles_hold_as_many_directions_as_counted(grid: TileGrid, fov: FieldOfView) -> None:
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(100_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    poses = np.concatenate([np.array(EDGE_POSES, dtype=float), random_poses(20, rng)])
    shares = covered_sr(grid, fov, poses) / SPHERE_SR
    for pose, share in zip(poses, shares, strict=True):
        found = counted(grid, fov, pose, directions)
        # Five standard errors of the count, and one direction for the smallest tiles.
        allowed = 5 * np.sqrt(share * (1 - share) / len(directions)) + 2e-5
        assert (np.abs(found - share) <= allowed).all(), pose


@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.floats(1, 179),
    st.floats(1, 179),
    st.tuples(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180)),
)
def test_shares_add_up(
    rows: int, columns: int, width: float, height: float, pose: tuple[float, float, float]
) -> None:
    grid, fov = TileGrid(rows, columns), FieldOfView(width, height)
    covered = covered_sr(grid, fov, [pose])
    assert covered.sum() == pytest.approx(fov.solid_angle_sr, abs=1e-6)
    assert (covered >= 0).all()
    assert (covered <= grid.solid_angles_sr + 1e-6).all()
    assert coverage(grid, fov, [pose]).sum() == pytest.approx(1.0)


def test_sizes_of_fields_of_view() -> None:
    assert FieldOfView(90, 90).solid_angle_sr == pytest.approx(SPHERE_SR / 6)  # face of a cube
    assert FieldOfView(179.9999, 179.9999).solid_angle_sr == pytest.approx(SPHERE_SR / 2, rel=1e-5)
    assert FOV.solid_angle_sr / SPHERE_SR == pytest.approx(0.1996, abs=5e-5)


def test_face_of_a_cube_on_its_tiles() -> None:
    # Ahead lie two columns of 45 degrees; the face of a cube fills them from edge to edge.
    shares = coverage(TileGrid(2, 8), FieldOfView(90, 90), [(0, 0, 0)])[0]
    assert shares.reshape(2, 8)[:, 3:5] == pytest.approx(0.25)
    assert np.count_nonzero(shares) == 4
    up = coverage(TileGrid(2, 8), FieldOfView(90, 90), [(0, 90, 0)])[0].reshape(2, 8)
    assert up[0] == pytest.approx(1 / 8)
    assert (up[1] == 0).all()


def test_a_quarter_turn_of_yaw_moves_the_columns() -> None:
    poses = random_poses(50, np.random.default_rng(1))
    turned = poses + np.array((0, 0, 90))
    moved = np.roll(coverage(GRID, FOV, poses).reshape(-1, 6, 12), 3, axis=2)
    assert coverage(GRID, FOV, turned).reshape(-1, 6, 12) == pytest.approx(moved, abs=1e-7)


def test_symmetries() -> None:
    fov = FieldOfView(100, 60)
    poses = random_poses(50, np.random.default_rng(2))
    shares = coverage(GRID, fov, poses).reshape(-1, 6, 12)
    upside_down = coverage(GRID, fov, poses * (-1, -1, 1)).reshape(-1, 6, 12)
    assert upside_down[:, ::-1] == pytest.approx(shares, abs=1e-7)
    mirrored = coverage(GRID, fov, poses * (-1, 1, -1)).reshape(-1, 6, 12)
    assert mirrored[:, :, ::-1] == pytest.approx(shares, abs=1e-7)
    half_a_roll = coverage(GRID, fov, poses + np.array((180, 0, 0))).reshape(-1, 6, 12)
    assert half_a_roll == pytest.approx(shares, abs=1e-7)
    on_its_side = coverage(GRID, FieldOfView(60, 100), poses + np.array((90, 0, 0))).reshape(
        -1, 6, 12
    )
    assert on_its_side == pytest.approx(shares, abs=1e-7)


def test_roll_turns_the_top_towards_growing_yaw() -> None:
    narrow = FieldOfView(10, 120)
    upper = coverage(TileGrid(2, 12), narrow, [(45, 0, 0)])[0].reshape(2, 12)
    assert upper[0, 6:].sum() > 0.4 > 0.1 > upper[0, :6].sum()


def test_poses_are_independent_of_each_other() -> None:
    poses = np.concatenate([np.array(EDGE_POSES), random_poses(200, np.random.default_rng(3))])
    together = covered_sr(GRID, FOV, poses)
    for pose, row in zip(poses, together, strict=True):
        assert covered_sr(GRID, FOV, [pose])[0] == pytest.approx(row, abs=1e-12)
    assert covered_sr(GRID, FOV, np.empty((0, 3))).shape == (0, 72)


@pytest.mark.parametrize("step", range(-20, 21))
def test_a_corner_on_the_pole_is_no_special_case(step: int) -> None:
    fov = FieldOfView(90, 70)
    across, upward = math.tan(math.radians(45)), math.tan(math.radians(35))
    roll = math.degrees(math.atan2(across, upward))
    pitch = 90 - math.degrees(math.atan(math.hypot(across, upward)))
    for yaw in (0.0, 17.3, 30.0, 180.0):
        there, beside = covered_sr(
            GRID, fov, [(roll, pitch + step * 1e-14, yaw), (roll, pitch + 1e-7, yaw)]
        )
        assert there == pytest.approx(beside, abs=1e-6)


def test_grid() -> None:
    assert GRID.tiles == 72
    assert GRID.solid_angles_sr.sum() == pytest.approx(SPHERE_SR)
    assert GRID.solid_angles_sr[0] == pytest.approx((1 - math.cos(math.radians(30))) * math.pi / 6)
    assert not GRID.solid_angles_sr.flags.writeable
    assert GRID.centres_deg[0] == pytest.approx((75, -165))
    for tile, (pitch, yaw) in enumerate(GRID.centres_deg):
        assert GRID.tile_at(pitch, yaw) == GRID.tile_at(pitch, yaw - 360) == tile
    assert GRID.tile_at(90, -180) == GRID.tile_at(90, 180) == 0
    assert GRID.tile_at(-90, 179.9) == 71


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 0), (-1, 4), (65, 1), (1, 129)])
def test_grids_that_are_none(rows: int, columns: int) -> None:
    with pytest.raises(TilingError, match=f"1 to 64 rows.* not {rows} and {columns}"):
        TileGrid(rows, columns)


@pytest.mark.parametrize("angle", [0.0, -1.0, 180.0, math.nan, math.inf])
def test_fields_of_view_that_are_none(angle: float) -> None:
    with pytest.raises(TilingError, match="width_deg of a field of view"):
        FieldOfView(width_deg=angle)
    with pytest.raises(TilingError, match="height_deg of a field of view"):
        FieldOfView(height_deg=angle)


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        ([0.0, 0.0, 0.0], r"shape \(n, 3\), not \(3,\)"),
        ([[0.0, 0.0]], r"not \(1, 2\)"),
        ([[0.0, math.nan, 0.0]], "finite"),
    ],
)
def test_poses_that_are_none(poses: list[list[float]], message: str) -> None:
    with pytest.raises(TilingError, match=message):
        coverage(GRID, FOV, poses)
