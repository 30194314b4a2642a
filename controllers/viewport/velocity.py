"""Constant velocity over the history, as published: the mean step from its first to its last pose.

The second baseline of NetLLM (SIGCOMM 2024). Where an angle wraps within the history the velocity
is that of nearly a full turn, as published; ``unwrap`` mends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controllers.head_poses import ErrorGrowth, ahead_s, as_viewports, poses_deg
from controllers.registry import register
from player.head_motion import unwrap
from player.viewport_observation import Viewport, ViewportObservation

#: Fitted on the Jin2022 train split (videos and users).
ERROR = ErrorGrowth((7.0, 3.3, 17.9), (3.67, 4.77, 1.77), (4.0, 5.0, 1.5))


@register("viewport", "velocity")
@dataclass(frozen=True, slots=True, kw_only=True)
class Velocity:
    """Extrapolates by the mean step of the history; answers are not brought into range.

    Attributes:
        unwrap: take steps the shorter way round, unlike the published baseline.
    """

    unwrap: bool = False

    uses_earlier_viewers = False

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step."""
        history = poses_deg(observation.history)
        ahead = ahead_s(observation.horizon)
        path = unwrap(history) if self.unwrap else history
        step_deg = (path[-1] - path[0]) / max(len(path) - 1, 1)
        steps = np.arange(1, observation.horizon + 1)[:, None]
        return as_viewports(path[-1] + step_deg * steps, ERROR.spreads_deg(history, ahead))
