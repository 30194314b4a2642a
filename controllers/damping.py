"""Head motion that dies out: the current velocity decays while pitch and roll return to level.

The half-life was chosen on the Jin2022 train split (videos and users), levelling as a compromise
between the train splits of Jin2022 and Wu2017, both by the mean absolute error over 4 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from player.head_motion import wrap_deg
from player.trace import FloatArray
from player.viewport_observation import SAMPLE_S

HALF_LIFE_S = 0.2
MAX_TIME_CONSTANT_S = 60.0
LEVEL_S = 8.0
REST_DEG = 6.0
LEVELLING_AXES = (0, 1)  # roll and pitch; a heading has no level


@dataclass(frozen=True, slots=True, kw_only=True)
class Damping:
    """How motion dies out.

    Attributes:
        half_life_s: time in which the velocity halves; 0 means that it stops at once.
        level_s: time constant with which roll and pitch return towards level.
        rest_deg: up to this far from level a head rests, and returns no further.
    """

    half_life_s: float = HALF_LIFE_S
    level_s: float = LEVEL_S
    rest_deg: float = REST_DEG

    def __post_init__(self) -> None:
        if not 0 <= self.half_life_s <= MAX_TIME_CONSTANT_S:
            raise ValueError(
                f"half_life_s must be 0 to {MAX_TIME_CONSTANT_S:g}, is {self.half_life_s}"
            )
        if not self.level_s > 0:
            raise ValueError(f"level_s must be above 0, is {self.level_s}")
        if not self.rest_deg >= 0:
            raise ValueError(f"rest_deg must not be negative, is {self.rest_deg}")

    def offsets_deg(self, histories_deg: FloatArray, ahead_s: FloatArray) -> FloatArray:
        """How far each angle moves from the last pose on.

        Args:
            histories_deg: ``(..., n, 3)`` roll, pitch, yaw, ``SAMPLE_S`` apart, oldest first.
            ahead_s: ``(horizon,)`` times, seconds from the last pose.

        Returns:
            ``(..., horizon, 3)``.
        """
        now = histories_deg[..., -1, :]
        velocity = _velocity_now(histories_deg)
        decay = 0.5 ** (SAMPLE_S / self.half_life_s) if self.half_life_s > 0 else 0.0
        # The sum of decay + decay² + … up to each step.
        travel = decay * (1 - decay ** (ahead_s / SAMPLE_S)) / (1 - decay)
        offsets = np.asarray(velocity[..., None, :] * travel[:, None])
        for axis in LEVELLING_AXES:
            tilt = now[..., axis]
            beyond = tilt - np.clip(tilt, -self.rest_deg, self.rest_deg)
            offsets[..., axis] += beyond[..., None] * np.expm1(-ahead_s / self.level_s)
        return offsets


def _velocity_now(histories_deg: FloatArray) -> FloatArray:
    """Degrees per sample at the last pose, ``(..., 3)``.

    The last step is the velocity half a sample ago; the change since the step before it carries
    it on to now.
    """
    steps = wrap_deg(np.diff(histories_deg[..., -3:, :], axis=-2))
    if steps.shape[-2] == 0:
        return np.zeros_like(histories_deg[..., -1, :])
    last = steps[..., -1, :]
    return np.asarray(last + (last - steps[..., 0, :]) / 2)
