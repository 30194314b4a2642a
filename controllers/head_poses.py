"""What viewport controllers share: poses as arrays, answers, and how far off they tend to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from player.head_motion import wrap_deg
from player.trace import FloatArray
from player.viewport_observation import MAX_SPREAD_DEG, SAMPLE_S, HeadPose, Viewport

AXES = 3  # roll, pitch, yaw
PITCH = 1


@dataclass(frozen=True, slots=True)
class ErrorGrowth:
    """Expected absolute error of a predictor: it grows with the horizon and saturates.

    ``(rest + per_speed * speed) * (1 - exp(-ahead / time_constant))`` for each axis, where speed is
    how fast that angle has moved on average over the history. Fitted by least squares.

    Attributes:
        rest_deg: of a head at rest, for roll, pitch and yaw.
        per_speed_s: degrees more per degree/s.
        time_constant_s: of the growth.
        max_deg: no spread is larger, whatever the speed.
    """

    rest_deg: tuple[float, float, float]
    per_speed_s: tuple[float, float, float]
    time_constant_s: tuple[float, float, float]
    max_deg: tuple[float, float, float] = (60.0, 45.0, 120.0)

    def spreads_deg(self, history_deg: FloatArray, ahead_s: FloatArray) -> FloatArray:
        """``(horizon, 3)`` for a history ``(n, 3)`` and times ahead ``(horizon,)``."""
        final_deg = np.asarray(self.rest_deg)
        if len(history_deg) > 1:
            speed = np.abs(wrap_deg(np.diff(history_deg, axis=0))).mean(axis=0) / SAMPLE_S
            final_deg = final_deg + np.asarray(self.per_speed_s) * speed
        growth = -np.expm1(-ahead_s[:, None] / np.asarray(self.time_constant_s))
        return np.asarray(np.minimum(final_deg, self.max_deg) * growth)


def ahead_s(horizon: int) -> FloatArray:
    """``(horizon,)`` times of the steps to predict, seconds from now."""
    return np.arange(1, horizon + 1, dtype=np.float64) * SAMPLE_S


def poses_deg(poses: Sequence[HeadPose]) -> FloatArray:
    """``(n, 3)`` roll, pitch, yaw."""
    return np.array(poses, dtype=np.float64).reshape(len(poses), AXES)


def as_viewports(angles_deg: FloatArray, spreads_deg: FloatArray) -> tuple[Viewport, ...]:
    """The answer, from predictions and their spreads, ``(horizon, 3)`` each."""
    rows = np.concatenate((angles_deg, np.minimum(spreads_deg, MAX_SPREAD_DEG)), axis=1)
    return tuple(Viewport(*row) for row in rows.tolist())


def as_poses_deg(angles_deg: FloatArray) -> FloatArray:
    """``(..., 3)`` brought into the range of a pose: roll and yaw wrapped, pitch at most a pole."""
    inside = wrap_deg(angles_deg)
    inside[..., PITCH] = np.clip(angles_deg[..., PITCH], -90.0, 90.0)
    return inside
