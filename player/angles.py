"""Angles in degrees that wrap around, for single numbers and for arrays alike."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FULL_TURN_DEG = 360.0
HALF_TURN_DEG = 180.0

AngleOrAngles = TypeVar("AngleOrAngles", float, NDArray[np.float64])


def wrap_deg(angle_deg: AngleOrAngles) -> AngleOrAngles:
    """The same direction within [-180, 180), up to the rounding of the last digit."""
    return (angle_deg + HALF_TURN_DEG) % FULL_TURN_DEG - HALF_TURN_DEG


def unwrap(angles_deg: NDArray[np.float64], axis: int = 0) -> NDArray[np.float64]:
    """Angles along ``axis`` without jumps: each step goes the shorter way round."""
    return np.asarray(np.unwrap(angles_deg, axis=axis, period=FULL_TURN_DEG))
