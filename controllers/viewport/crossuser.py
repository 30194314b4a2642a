"""Where earlier viewers of the same video looked, as far as they foretell each other right now.

Each earlier viewer proposes the pose they had at that point of the video, moved by how far this
viewer looks away from them now; that distance fades with the horizon. The proposals and the
viewer's own damped motion (see ``damping``) meet in a weighted median per step and angle: viewers
who looked at the same things over the past second weigh more, and a few who look elsewhere move
nothing. What the median proposes is then trusted as far as the same rule, applied to each earlier
viewer in turn, would have foretold them: at moments when viewers go separate ways they say so
themselves, and the answer falls back to the damped motion, which it is without earlier viewers.

The constants were chosen on the train splits of Jin2022 and Wu2017 (videos and users, each viewer
foretold from the others).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controllers.damping import Damping
from controllers.head_poses import ErrorGrowth, ahead_s, as_poses_deg, as_viewports, poses_deg
from controllers.registry import register
from controllers.viewport.damped import ERROR as DAMPED_ERROR
from player.head_motion import wrap_deg
from player.trace import FloatArray
from player.viewport_observation import Viewport, ViewportObservation

AGREEMENT_SAMPLES = 5  # of the history that agreement is judged by: one second
#: Steps that share one judgement of how far the proposals can be trusted; the middle one stands
#: for all of them.
STEPS_PER_TRUST = 5
TRUST_SCALE_DEG = 30.0  # viewers this much alike judge 1/e as much
PRIOR_TRUST = 0.3
PRIOR_TRUST_SHARE = 0.3  # weight of the prior beside all viewers together
SMALLEST_PROPOSAL_DEG = 0.5  # a proposal below it says nothing about trust
SLOPE_RANGE = (-0.5, 1.5)

#: Fitted on the Jin2022 train split (videos and users).
ERROR = ErrorGrowth((5.0, 2.9, 16.2), (0.38, 0.52, 0.74), (1.0, 1.0, 1.5))


@register("viewport", "crossuser")
@dataclass(frozen=True, slots=True, kw_only=True)
class CrossUser:
    """Combines the viewer's own damped motion with what earlier viewers did.

    Attributes:
        agreement_deg: viewers whose gaze differed by this much weigh 1/e.
        fade_s: time constant with which the distance to another viewer fades.
        own_weight: weight of the viewer's own motion; a viewer who agrees fully has 1.
    """

    agreement_deg: float = 40.0
    fade_s: float = 4.0
    own_weight: float = 2.0

    def __post_init__(self) -> None:
        for name in ("agreement_deg", "fade_s", "own_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, is {getattr(self, name)}")

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step."""
        history = poses_deg(observation.history)
        ahead = ahead_s(observation.horizon)
        own = Damping().offsets_deg(history, ahead)  # (H, 3)
        if not observation.earlier:
            spreads = DAMPED_ERROR.spreads_deg(history, ahead)
            return as_viewports(as_poses_deg(history[-1] + own), spreads)
        others = np.array(observation.earlier, dtype=np.float64)  # (V, n + H, 3)
        past, future = others[:, : len(history)], others[:, len(history) :]
        distance = _distances_deg(history[None], past)  # (1, V)
        proposed = self._proposals(
            history[None, -1], own[None], past[:, -1], future, distance, ahead
        )[0]  # (H, 3)
        trust = self._trust(past, future, distance[0], ahead)
        spreads = ERROR.spreads_deg(history, ahead)
        return as_viewports(as_poses_deg(history[-1] + own + trust * proposed), spreads)

    def _proposals(
        self,
        now: FloatArray,
        own: FloatArray,
        others_now: FloatArray,
        others_future: FloatArray,
        distances: FloatArray,
        ahead: FloatArray,
    ) -> FloatArray:
        """How far the others would move viewers away from their own damped motion.

        Args:
            now: ``(U, 3)`` poses of those viewers.
            own: ``(U, H, 3)`` offsets of their damped motion.
            others_now: ``(V, 3)``.
            others_future: ``(V, H, 3)``.
            distances: ``(U, V)`` degrees; infinite where one is not to count.
            ahead: ``(H,)`` seconds.

        Returns:
            ``(U, H, 3)``.
        """
        apart = wrap_deg(others_now - now[:, None])  # (U, V, 3)
        faded = np.exp(-ahead / self.fade_s)[:, None] * apart[:, :, None]  # (U, V, H, 3)
        offsets = wrap_deg(others_future - now[:, None, None] - faded) - own[:, None]
        weights = np.exp(-distances / self.agreement_deg)  # (U, V)
        stay = np.zeros_like(offsets[:, :1])
        return _weighted_median(
            np.concatenate((stay, offsets), axis=1),
            np.insert(weights, 0, self.own_weight, axis=1)[:, :, None, None],
        )

    def _trust(
        self, past: FloatArray, future: FloatArray, distance: FloatArray, ahead: FloatArray
    ) -> FloatArray:
        """``(H, 3)`` share of the proposals to follow, 0 to 1.

        It is the slope through the origin, least in absolute error, of what earlier viewers did
        over what the others would have proposed to them.
        """
        horizon = len(ahead)
        middles = np.arange(0, horizon, STEPS_PER_TRUST) + STEPS_PER_TRUST // 2
        middles = np.minimum(middles, horizon - 1)
        own = Damping().offsets_deg(past, ahead[middles])  # (V, M, 3)
        among = _distances_deg(past, past)
        np.fill_diagonal(among, np.inf)
        now = past[:, -1]
        proposed = self._proposals(now, own, now, future[:, middles], among, ahead[middles])
        moved = wrap_deg(future[:, middles] - now[:, None]) - own
        says_something = np.abs(proposed) > SMALLEST_PROPOSAL_DEG
        slopes = np.clip(
            np.divide(moved, proposed, out=np.zeros_like(moved), where=says_something),
            *SLOPE_RANGE,
        )
        alike = np.exp(-distance / TRUST_SCALE_DEG)[:, None, None]
        weights = np.where(says_something, np.abs(proposed) * alike, 0.0)
        prior = PRIOR_TRUST_SHARE * weights.sum(axis=0) + np.finfo(np.float64).tiny
        slopes = np.insert(slopes, 0, PRIOR_TRUST, axis=0)
        trust = _weighted_median(slopes[None], np.insert(weights, 0, prior, axis=0)[None])[0]
        return np.repeat(np.clip(trust, 0.0, 1.0), STEPS_PER_TRUST, axis=0)[:horizon]


def _distances_deg(of: FloatArray, to: FloatArray) -> FloatArray:
    """``(U, V)`` mean distance in pitch and yaw over the last second of ``(…, n, 3)``."""
    apart = wrap_deg(to[None, :, -AGREEMENT_SAMPLES:, 1:] - of[:, None, -AGREEMENT_SAMPLES:, 1:])
    return np.asarray(np.sqrt((apart**2).sum(axis=-1)).mean(axis=-1))


def _weighted_median(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Along axis 1; ``weights`` is broadcast to ``values``."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(np.broadcast_to(weights, values.shape), order, axis=1)
    below = np.cumsum(ordered, axis=1)
    middle = (below < below[:, -1:] / 2).sum(axis=1, keepdims=True)
    chosen = np.take_along_axis(order, middle, axis=1)
    return np.take_along_axis(values, chosen, axis=1)[:, 0]
