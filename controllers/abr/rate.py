"""Rate-based adaptation: the highest level that the predicted throughput sustains."""

from __future__ import annotations

from dataclasses import dataclass

from controllers.registry import register
from controllers.throughput import WINDOW, harmonic_mean_kbps
from player.observation import AbrObservation


@register("abr", "rate")
@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Harmonic mean of past throughput against the ladder.

    Attributes:
        window: past chunks in the mean.
        safety: fraction of the prediction that may be used.
    """

    window: int = WINDOW
    safety: float = 1.0

    def __post_init__(self) -> None:
        if not (self.window >= 1 and self.safety > 0):
            raise ValueError("window must be at least 1 and safety positive")

    def decide(self, observation: AbrObservation) -> int:
        """Returns the highest level at or below the prediction, else the lowest."""
        predicted = harmonic_mean_kbps(observation.history, self.window)
        if predicted is None:
            return 0
        budget_kbps = self.safety * predicted
        return max(sum(rate <= budget_kbps for rate in observation.levels_kbps) - 1, 0)
