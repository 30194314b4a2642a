"""The viewer of a session: recorded head motion, replayed by position in the video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from player.head_motion import HeadMotion
from player.prediction_errors import PredictionErrors
from player.trace import FloatArray
from player.viewport_observation import (
    PITCH_RANGE_DEG,
    SAMPLE_S,
    HeadPose,
    Viewport,
    ViewportObservation,
)

#: Of the number of samples, which are sums of floats apart.
ROUNDING = 1e-6
#: Of the angles that controllers are told: finer than any recording, and a third of the bytes.
DECIMALS = 2


class Viewer:
    """Where one viewer looks, and what a controller is told about it.

    The video begins where the recording does; behind the recording's end the head stands. What
    controllers are told are times of the recording, by which those of one video line up.
    """

    def __init__(
        self,
        motion: HeadMotion,
        earlier: Sequence[HeadMotion] = (),
        *,
        history: int,
        horizon: int,
    ) -> None:
        """A viewer who has not begun to look.

        Args:
            motion: the recording.
            earlier: recordings of others who watched the same video before.
            history: samples that a controller is told, at most.
            horizon: samples ahead that it predicts.
        """
        self.motion = motion
        self.errors = PredictionErrors(motion, horizon)
        self._earlier = tuple(earlier)
        self._history = history
        self._horizon = horizon

    def poses(self, media_s: FloatArray) -> FloatArray:
        """``(n, 3)`` real poses at positions in the video."""
        return self.motion.at(self.motion.start_s + media_s)

    def observe(self, media_s: float) -> ViewportObservation:
        """What a controller may know at a position in the video."""
        past = min(self._history, int(media_s / SAMPLE_S + ROUNDING) + 1)
        now_s = self.motion.start_s + media_s
        times_s = now_s + SAMPLE_S * np.arange(1 - past, self._horizon + 1, dtype=np.float64)
        return ViewportObservation(
            history=_poses(self.motion, times_s[:past]),
            horizon=self._horizon,
            media_time_s=now_s,
            earlier=tuple(_poses(motion, times_s) for motion in self._earlier),
        )

    def score(self, viewports: Sequence[Viewport], media_s: float) -> None:
        """Takes predictions that were made at a position in the video into :attr:`errors`."""
        self.errors.score(viewports, self.motion.start_s + media_s)


def _poses(motion: HeadMotion, times_s: FloatArray) -> tuple[HeadPose, ...]:
    return tuple(
        HeadPose(roll, min(max(pitch, PITCH_RANGE_DEG[0]), PITCH_RANGE_DEG[1]), yaw)
        for roll, pitch, yaw in motion.at(times_s).round(DECIMALS).tolist()
    )
