"""Share of the field of view in each tile: against counted directions, and how long it takes.

    .venv/bin/python benchmarks/tiles.py [--poses 1000] [--directions 1000000] [--rounds 200]

Counted: for each pose, directions drawn evenly over the sphere are turned to the viewer and
projected; those that fall on the screen are counted by tile. A third of the poses is drawn evenly,
a third looks at a pole or past it, a third across the seam at yaw ±180; roll is any. The greatest
difference is printed as a share of the sphere, beside the standard error of the counts themselves:
in units of it, the differences of an exact result are normally distributed around zero. Timed:
batches of poses, in time on the processor; spread and load are printed with the figures.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time

import numpy as np
from rich.console import Console
from rich.progress import track

from player.tiles import SPHERE_SR, FieldOfView, TileGrid, coverage, covered_sr
from player.trace import FloatArray

GRIDS = (TileGrid(4, 8), TileGrid(6, 12), TileGrid(32, 64))
BATCHES = (1, 20, 200)
SEED = 7
NEAR_POLE_DEG = 20.0
NEAR_SEAM_DEG = 60.0
MIN_EXPECTED = 100.0  # directions in a tile, for its count to be near normal


def drawn_poses(count: int, rng: np.random.Generator) -> FloatArray:
    """Roll, pitch, yaw in degrees ``(count, 3)``."""
    poses = rng.uniform((-180, -90, -180), (180, 90, 180), size=(count, 3))
    sign = rng.choice([-1.0, 1.0], size=count)
    poses[::3, 1] = (sign * (90 - np.abs(rng.uniform(0, NEAR_POLE_DEG, count))))[::3]
    poses[1::3, 2] = (sign * (180 - rng.uniform(0, NEAR_SEAM_DEG, count)))[1::3]
    return poses


def counted(
    grid: TileGrid, fov: FieldOfView, pose: FloatArray, directions: int, rng: np.random.Generator
) -> FloatArray:
    """Share of evenly drawn directions that lie on the screen, by tile."""
    sine = rng.uniform(-1, 1, directions)
    yaw = rng.uniform(-math.pi, math.pi, directions)
    cosine = np.sqrt(1 - sine**2)
    drawn = np.stack([cosine * np.cos(yaw), cosine * np.sin(yaw), sine])
    a, b, c = np.radians(pose)
    turn_roll = [[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]]
    turn_pitch = [[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]]
    turn_yaw = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    turn = np.array(turn_yaw) @ turn_pitch @ turn_roll
    ahead, aside, above = turn.T @ drawn
    is_seen = ahead > 0
    is_seen &= np.abs(aside) <= math.tan(math.radians(fov.width_deg / 2)) * ahead
    is_seen &= np.abs(above) <= math.tan(math.radians(fov.height_deg / 2)) * ahead
    rows = ((0.5 - np.arcsin(sine[is_seen]) / math.pi) * grid.rows).astype(int)
    columns = ((yaw[is_seen] / (2 * math.pi) + 0.5) * grid.columns).astype(int)
    tiles = rows.clip(0, grid.rows - 1) * grid.columns + columns.clip(0, grid.columns - 1)
    return np.bincount(tiles, minlength=grid.tiles) / directions


def main() -> None:
    """Prints the greatest difference, and microseconds per call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--poses", type=int, default=1000)
    parser.add_argument("--directions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=200, help="of the timing")
    arguments = parser.parse_args()
    console, fov, rng = Console(), FieldOfView(), np.random.default_rng(SEED)
    grid = GRIDS[1]
    poses = drawn_poses(arguments.poses, rng)
    exact = covered_sr(grid, fov, poses) / SPHERE_SR
    found = np.stack(
        [
            counted(grid, fov, pose, arguments.directions, rng)
            for pose in track(poses, "counting", console=Console(stderr=True))
        ]
    )
    error = np.sqrt(exact * (1 - exact) / arguments.directions)
    difference = np.abs(found - exact)
    is_many = exact * arguments.directions >= MIN_EXPECTED
    in_errors = (found - exact)[is_many] / error[is_many]
    console.print(
        f"{len(poses)} poses, {grid.rows} by {grid.columns} tiles, {arguments.directions} "
        f"directions each, seed {SEED}:\n"
        f"greatest difference {difference.max():.4%} of the sphere (standard error of that count "
        f"{error.ravel()[difference.argmax()]:.4%}, greatest {error.max():.4%});\n"
        f"{is_many.sum()} tiles with {MIN_EXPECTED:g} directions or more: differences in standard "
        f"errors: mean {in_errors.mean():+.3f}, deviation {in_errors.std():.3f}, greatest "
        f"{np.abs(in_errors).max():.2f};\n"
        f"directions counted where nothing should be seen: "
        f"{round(found[exact == 0].sum() * arguments.directions)}",
        highlight=False,
    )
    for timed in GRIDS:
        for batch in BATCHES:
            some = drawn_poses(batch, rng)
            took_us = []
            for _ in range(arguments.rounds):
                began = time.process_time()
                coverage(timed, fov, some)
                took_us.append((time.process_time() - began) * 1e6)
            low, median, high = statistics.quantiles(took_us, n=4)
            console.print(
                f"{timed.rows} by {timed.columns} tiles, {batch} poses: {median:.0f} µs "
                f"(quartiles {low:.0f} to {high:.0f})",
                highlight=False,
            )
    console.print(
        f"{arguments.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
