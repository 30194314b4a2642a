"""Buffer-based adaptation: the linear map of Huang et al., SIGCOMM 2014, as in Pensieve."""

from __future__ import annotations

from dataclasses import dataclass

from controllers.registry import register
from player.observation import AbrObservation


@register("abr", "bba")
@dataclass(frozen=True, slots=True, kw_only=True)
class Bba:
    """Lowest level below the reservoir, highest above reservoir + cushion, linear between.

    Attributes:
        reservoir_s: buffer below which the lowest level is chosen.
        cushion_s: width of the linear part.
    """

    reservoir_s: float = 5.0
    cushion_s: float = 10.0

    def __post_init__(self) -> None:
        if not (self.reservoir_s >= 0 and self.cushion_s > 0):
            raise ValueError("needs reservoir_s >= 0 and cushion_s > 0")

    def decide(self, observation: AbrObservation) -> int:
        """Returns the level for the current buffer."""
        top = observation.levels - 1
        filled = (observation.buffer_s - self.reservoir_s) / self.cushion_s
        return int(top * min(max(filled, 0.0), 1.0))
