"""The windows on which head motion prediction is evaluated, as published with NetLLM.

A window at t has the samples t-10 to t-1 as its history and t to t+19 as its future, counted in
rows as they are recorded: neither gaps nor uneven intervals are mended (NetLLM, SIGCOMM 2024).
Windows lie at t = 30, 45, … below N - 60 of a recording of N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from player.head_motion import HeadMotion
from player.trace import FloatArray
from player.viewport_observation import (
    MAX_EARLIER_VIEWERS,
    SAMPLE_S,
    HeadPose,
    ViewportObservation,
)

HISTORY = 10
HORIZON = 20
STEP = 15
FIRST_INDEX = 30
LAST_SAMPLES = 60  # no window begins within them


@dataclass(frozen=True, eq=False)
class Windows:
    """The n windows of one recording.

    Attributes:
        history: ``(n, history, 3)`` roll, pitch, yaw, oldest first.
        future: ``(n, horizon, 3)``.
        index: ``(n,)`` row of the recording at which the future begins.
    """

    history: FloatArray
    future: FloatArray
    index: NDArray[np.int64]


def windows(
    motion: HeadMotion, history: int = HISTORY, horizon: int = HORIZON, step: int = STEP
) -> Windows:
    """The published windows of a recording; none if it is too short.

    Raises:
        ValueError: a history or horizon that the margins of a recording cannot hold, or a step
            below 1.
    """
    if not 1 <= history <= FIRST_INDEX:
        raise ValueError(f"history must be 1 to {FIRST_INDEX} samples, not {history}")
    if not 1 <= horizon <= LAST_SAMPLES:
        raise ValueError(f"horizon must be 1 to {LAST_SAMPLES} samples, not {horizon}")
    if step < 1:
        raise ValueError(f"step must be at least 1, not {step}")
    index = np.arange(FIRST_INDEX, len(motion) - LAST_SAMPLES, step, dtype=np.int64)
    past = index[:, None] + np.arange(-history, 0)
    ahead = index[:, None] + np.arange(horizon)
    return Windows(motion.poses_deg[past], motion.poses_deg[ahead], index)


def observation_at(
    motion: HeadMotion,
    index: int,
    history: int = HISTORY,
    horizon: int = HORIZON,
    earlier: Sequence[HeadMotion] = (),
) -> ViewportObservation:
    """What a controller is told before row ``index`` of a recording.

    Args:
        motion: the viewer's recording.
        index: first row that the viewer has not reached yet.
        history: rows before it.
        horizon: steps to predict.
        earlier: recordings of others who watched the same video; those who did not watch this
            part of it are left out, and so is the viewer.

    Raises:
        ValueError: the recording has no such history.
    """
    if not history <= index <= len(motion):
        raise ValueError(f"{motion.name}: no {history} samples before row {index}")
    past_s = motion.times_s[index - history : index]
    now_s = float(past_s[-1])
    # The viewer's own stamps to come are not known yet; their nominal spacing is.
    times_s = np.concatenate((past_s, now_s + SAMPLE_S * np.arange(1, horizon + 1)))
    others = [
        other
        for other in earlier
        if other is not motion and other.covers(float(times_s[0]), float(times_s[-1]))
    ]
    return ViewportObservation(
        history=as_poses(motion.poses_deg[index - history : index]),
        horizon=horizon,
        media_time_s=now_s,
        earlier=tuple(as_poses(other.at(times_s)) for other in others[:MAX_EARLIER_VIEWERS]),
    )


def as_poses(poses_deg: FloatArray) -> tuple[HeadPose, ...]:
    """``(n, 3)`` roll, pitch, yaw as poses."""
    return tuple(HeadPose._make(pose) for pose in poses_deg.tolist())
