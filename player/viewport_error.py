"""How far a predicted pose is off: per axis, as published, and as an angle on the sphere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from player.angles import FULL_TURN_DEG
from player.trace import FloatArray
from player.viewport_observation import PITCH_RANGE_DEG, Viewport


def predicted_deg(viewports: Sequence[Viewport]) -> FloatArray:
    """``(n, 3)`` roll, pitch, yaw as the controller answered them, not brought into range."""
    return np.array([(one.roll_deg, one.pitch_deg, one.yaw_deg) for one in viewports])


def absolute_error_deg(predicted_deg: FloatArray, actual_deg: FloatArray) -> FloatArray:
    """Absolute error of each angle, degrees, either way round.

    The mean over samples, steps and axes is the published MAE (NetLLM, SIGCOMM 2024). For two
    angles within ±180 this is the shorter way round, at most 180. A prediction that was
    extrapolated beyond that range counts as published too: one full turn is forgiven, not more.

    Args:
        predicted_deg: ``(..., 3)``; may lie beyond the range of a pose.
        actual_deg: ``(..., 3)``.

    Returns:
        ``(..., 3)``.
    """
    distance = np.abs(predicted_deg - actual_deg)
    return np.minimum(distance, np.abs(distance - FULL_TURN_DEG))


def great_circle_deg(predicted_deg: FloatArray, actual_deg: FloatArray) -> FloatArray:
    """Angle between the gaze directions of poses, degrees; roll does not matter.

    A pitch beyond a pole counts as the pole, which is what a player can show.

    Args:
        predicted_deg: ``(..., 3)``; may lie beyond the range of a pose.
        actual_deg: ``(..., 3)``.

    Returns:
        ``(...)``, 0 to 180.
    """
    _, pitch, yaw = np.moveaxis(np.radians(predicted_deg), -1, 0)
    _, actual_pitch, actual_yaw = np.moveaxis(np.radians(actual_deg), -1, 0)
    pitch = np.clip(pitch, *np.radians(PITCH_RANGE_DEG))
    # The haversine formula keeps its precision for small angles, where the arc cosine loses it.
    haversine = (
        np.sin((pitch - actual_pitch) / 2) ** 2
        + np.cos(pitch) * np.cos(actual_pitch) * np.sin((yaw - actual_yaw) / 2) ** 2
    )
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(haversine, 0.0, 1.0)))))
