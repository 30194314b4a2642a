"""BOLA: buffer-based Lyapunov optimisation (Spiteri, Urgaonkar and Sitaraman, INFOCOM 2016).

The score of level m at buffer Q is (V (v_m + g) - Q) / S_m with utility v_m = ln(S_m / S_0), sizes
S_m of the chunk at hand. V and g follow from two buffer levels that mean something to a person, as
the paper derives them: the one where the lowest level stops being the best, and the one where the
score of the highest level reaches zero. Scores may be negative here; the paper pauses then, while
this player has a cap of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controllers.registry import register
from controllers.throughput import harmonic_mean_kbps
from player.observation import AbrObservation


@register("abr", "bola")
@dataclass(frozen=True, slots=True, kw_only=True)
class Bola:
    """BOLA-BASIC, by default with the paper's rule against oscillation (BOLA-U).

    Attributes:
        minimum_buffer_s: buffer below which only the lowest level is safe.
        target_buffer_s: buffer at which the highest level is reached.
        limit_by_throughput: do not move up beyond what the measured throughput sustains.
    """

    minimum_buffer_s: float = 10.0
    target_buffer_s: float = 20.0
    limit_by_throughput: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.minimum_buffer_s < self.target_buffer_s:
            raise ValueError("needs 0 < minimum_buffer_s < target_buffer_s")

    def decide(self, observation: AbrObservation) -> int:
        """Returns the level with the best score."""
        rates = observation.levels_kbps
        if len(rates) == 1:
            return 0
        utilities = [math.log(rate / rates[0]) for rate in rates]
        g = utilities[-1] / (self.target_buffer_s / self.minimum_buffer_s - 1)
        v = self.minimum_buffer_s / g
        sizes = observation.upcoming_sizes_bytes[0]
        scores = [
            (v * (utility + g) - observation.buffer_s) / size
            for utility, size in zip(utilities, sizes, strict=True)
        ]
        if max(scores) <= 0:  # fuller than the highest level asks for
            best = len(rates) - 1
        else:
            best = max(range(len(rates)), key=scores.__getitem__)
        if self.limit_by_throughput and best > observation.last_level:
            return max(min(best, self._sustainable(observation)), observation.last_level)
        return best

    @staticmethod
    def _sustainable(observation: AbrObservation) -> int:
        predicted = harmonic_mean_kbps(observation.history)
        if predicted is None:
            return 0
        return max(sum(rate <= predicted for rate in observation.levels_kbps) - 1, 0)
