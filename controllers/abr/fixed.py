"""One level for every chunk."""

from __future__ import annotations

from dataclasses import dataclass

from controllers.registry import register
from player.observation import AbrObservation


@register("abr", "fixed")
@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Always the same level, or the top one where the ladder is shorter.

    Attributes:
        level: rung of the ladder, from 0.
    """

    level: int = 0

    def __post_init__(self) -> None:
        if self.level < 0:
            raise ValueError(f"level must not be negative, is {self.level}")

    def decide(self, observation: AbrObservation) -> int:
        """Returns the level."""
        return min(self.level, observation.levels - 1)
