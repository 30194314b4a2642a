"""Damped motion: the head slows down within fractions of a second, and pitch and roll level out."""

from __future__ import annotations

from dataclasses import dataclass

from controllers.damping import HALF_LIFE_S, LEVEL_S, REST_DEG, Damping
from controllers.head_poses import ErrorGrowth, ahead_s, as_poses_deg, as_viewports, poses_deg
from controllers.registry import register
from player.viewport_observation import Viewport, ViewportObservation

#: Fitted on the Jin2022 train split (videos and users).
ERROR = ErrorGrowth((5.0, 2.8, 19.4), (0.40, 0.59, 0.87), (1.0, 1.0, 2.0))


@register("viewport", "damped")
@dataclass(frozen=True, slots=True, kw_only=True)
class Damped:
    """Extrapolates a velocity that decays; see :class:`controllers.damping.Damping`.

    Attributes:
        half_life_s: time in which the velocity halves, at least 0.
        level_s: time constant with which roll and pitch return towards level, above 0.
        rest_deg: up to this far from level a head rests, at least 0.
    """

    half_life_s: float = HALF_LIFE_S
    level_s: float = LEVEL_S
    rest_deg: float = REST_DEG

    uses_earlier_viewers = False

    def __post_init__(self) -> None:
        self._damping()

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step."""
        history = poses_deg(observation.history)
        ahead = ahead_s(observation.horizon)
        predicted = history[-1] + self._damping().offsets_deg(history, ahead)
        return as_viewports(as_poses_deg(predicted), ERROR.spreads_deg(history, ahead))

    def _damping(self) -> Damping:
        return Damping(half_life_s=self.half_life_s, level_s=self.level_s, rest_deg=self.rest_deg)
