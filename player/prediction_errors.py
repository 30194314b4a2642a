"""How far the predictions of a session were off, as far as the recording goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from player.head_motion import HeadMotion
from player.viewport_error import absolute_error_deg, predicted_deg
from player.viewport_observation import SAMPLE_S, Viewport

#: Sums of floats that end where the recording does.
ROUNDING_S = 1e-6


class PredictionErrors:
    """Sums of absolute errors by step ahead."""

    def __init__(self, motion: HeadMotion, horizon: int) -> None:
        self._motion = motion
        self._ahead_s = SAMPLE_S * np.arange(1, horizon + 1, dtype=np.float64)
        self._sums_deg = np.zeros((horizon, 3))
        self._counts = np.zeros(horizon, dtype=np.int64)

    def score(self, viewports: Sequence[Viewport], media_s: float) -> None:
        """Compares ``horizon`` predictions made at a position in the video."""
        times_s = media_s + self._ahead_s
        is_known = times_s <= self._motion.end_s + ROUNDING_S
        errors = absolute_error_deg(predicted_deg(viewports), self._motion.at(times_s))
        self._sums_deg[is_known] += errors[is_known]
        self._counts += is_known

    @property
    def mae_by_step_deg(self) -> tuple[float | None, ...]:
        """Mean over predictions and axes for each step; None: none to compare with."""
        means = self._sums_deg.mean(axis=1) / np.maximum(self._counts, 1)
        return tuple(
            float(mean) if count else None for mean, count in zip(means, self._counts, strict=True)
        )

    @property
    def mae_deg(self) -> float | None:
        """Mean over predictions, steps and axes; None without any."""
        count = int(self._counts.sum())
        return float(self._sums_deg.sum()) / (count * 3) if count else None
