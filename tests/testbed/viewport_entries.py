"""What the viewport tests share: recordings on disk, experiments over them, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 180
TOML = """
task = "viewport"
driver = "offline"
viewports = "recordings"
[[arms]]
controller = "static"
[[arms]]
controller = "linear"
"""


def write_recordings(
    folder: Path, *, videos: tuple[int, ...] = (1, 2), users: tuple[int, ...] = (1, 2, 3)
) -> Path:
    """Viewers who turn steadily, each at a pace of their own; returns the folder."""
    for video in videos:
        place = folder / f"video{video:02d}"
        place.mkdir(parents=True)
        for user in users:
            times_s = np.arange(SAMPLES) * 0.2
            yaw_deg = (times_s * (2.0 * user + video) + 180) % 360 - 180
            rows = [f"{t:.3f},0.0,5.0,{yaw:.4f}" for t, yaw in zip(times_s, yaw_deg, strict=True)]
            (place / f"user{user:02d}.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_experiment(folder: Path, text: str = TOML) -> Path:
    """An experiment over such recordings; returns its file."""
    if not (folder / "recordings").exists():
        write_recordings(folder / "recordings")
    path = folder / "viewport.toml"
    path.write_text(text)
    return path


def run_cli(*arguments: object, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``testbed`` with these arguments."""
    environment = {key: value for key, value in os.environ.items() if key != "TESTBED_DATA"}
    if data is not None:
        environment["TESTBED_DATA"] = str(data)
    return subprocess.run(
        [sys.executable, "-m", "testbed.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
