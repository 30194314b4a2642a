"""Linear regression over the history, as published: least squares per angle, then extrapolated.

The first baseline of NetLLM (SIGCOMM 2024). It runs on the angles as they are recorded, so that
one that wraps within the history bends the line, as published; ``unwrap`` mends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controllers.head_poses import ErrorGrowth, ahead_s, as_viewports, poses_deg
from controllers.registry import register
from player.head_motion import unwrap
from player.viewport_observation import Viewport, ViewportObservation

#: Fitted on the Jin2022 train split (videos and users).
ERROR = ErrorGrowth((4.8, 1.8, 17.5), (3.66, 4.82, 1.75), (3.0, 4.0, 1.25))


@register("viewport", "linear")
@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Extrapolates the least-squares line; answers are not brought into range.

    Attributes:
        unwrap: follow angles the shorter way round, unlike the published baseline.
    """

    unwrap: bool = False

    uses_earlier_viewers = False

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step."""
        history = poses_deg(observation.history)
        ahead = ahead_s(observation.horizon)
        path = unwrap(history) if self.unwrap else history
        # Time is counted from the middle of the history, where level and slope are independent.
        times = np.arange(len(path)) - (len(path) - 1) / 2
        slope_deg = times @ path / max(float(times @ times), 1.0)
        steps = times[-1] + np.arange(1, observation.horizon + 1)[:, None]
        predicted = path.mean(axis=0) + slope_deg * steps
        return as_viewports(predicted, ERROR.spreads_deg(history, ahead))
