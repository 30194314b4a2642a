"""Model-predictive control: MPC of Yin et al., SIGCOMM 2015."""

from __future__ import annotations

from dataclasses import dataclass

from controllers.planning import best_level
from controllers.registry import register
from controllers.throughput import harmonic_mean_kbps
from player.observation import UPCOMING_LIMIT, AbrObservation
from player.qoe import PENSIEVE_QOE, QoeWeights


@register("abr", "mpc")
@dataclass(frozen=True, slots=True, kw_only=True)
class Mpc:
    """Best of all plans at the harmonic mean of past throughput.

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
        predicted = self.predicted_kbps(observation)
        if predicted is None:
            return 0
        return best_level(observation, predicted, horizon=self.horizon, weights=self.qoe)

    def predicted_kbps(self, observation: AbrObservation) -> float | None:
        """Throughput to plan with, kbit/s; None before any measurement."""
        return harmonic_mean_kbps(observation.history)
