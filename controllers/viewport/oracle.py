"""The truth: where the recording will look. The ceiling for predictors; needs the recording."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from controllers.head_poses import ahead_s, as_viewports
from controllers.registry import register
from player.head_motion import HeadMotion
from player.viewport_observation import Viewport, ViewportObservation


@register("viewport", "oracle")
@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Answers from the recording that is being replayed."""

    needs_future = True
    uses_earlier_viewers = False

    # The registry would have pydantic look into a HeadMotion, which it cannot.
    motion: object = dataclasses.field(default=None, init=False)

    def for_session(self, motion: HeadMotion) -> Oracle:
        """The oracle for one viewer's recording."""
        bound = Oracle()
        object.__setattr__(bound, "motion", motion)
        return bound

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step, with a spread of 0.

        Raises:
            LookupError: the oracle was not bound to a recording.
        """
        if not isinstance(self.motion, HeadMotion):
            raise LookupError("the oracle needs the recording: bind it with for_session")
        actual = self.motion.at(observation.media_time_s + ahead_s(observation.horizon))
        return as_viewports(actual, np.zeros_like(actual))
