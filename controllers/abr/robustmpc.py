"""RobustMPC of Yin et al., SIGCOMM 2015: MPC on a lower bound of the throughput.

The bound is the harmonic mean over (1 + the largest relative error of the last five predictions).
All plans are searched, and the errors are those of this session alone: public reimplementations
that move by one level at most or keep errors across sessions are clearly weaker.
"""

from __future__ import annotations

from dataclasses import dataclass

from controllers.planning import best_level
from controllers.registry import register
from controllers.throughput import harmonic_mean_kbps, worst_recent_error
from player.observation import UPCOMING_LIMIT, AbrObservation
from player.qoe import PENSIEVE_QOE, QoeWeights


@register("abr", "robustmpc")
@dataclass(frozen=True, slots=True, kw_only=True)
class RobustMpc:
    """Best of all plans at a pessimistic throughput.

    Attributes:
        horizon: chunks to look ahead, 1 to 8; never more than ``planning.MAX_PLANS`` plans.
        qoe: weights of the QoE that is planned for.
    """

    horizon: int = 5
    qoe: QoeWeights = PENSIEVE_QOE

    def __post_init__(self) -> None:
        if not 1 <= self.horizon <= UPCOMING_LIMIT:
            raise ValueError(f"horizon must be 1 to {UPCOMING_LIMIT}, is {self.horizon}")

    def decide(self, observation: AbrObservation) -> int:
        """Returns the first level of the best plan; the lowest before any measurement."""
        predicted = harmonic_mean_kbps(observation.history)
        if predicted is None:
            return 0
        bound_kbps = predicted / (1 + worst_recent_error(observation.history))
        return best_level(observation, bound_kbps, horizon=self.horizon, weights=self.qoe)
