"""A level drawn uniformly: the floor that every other controller should clear."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from controllers.registry import register
from player.observation import AbrObservation


@register("abr", "random")
@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Uniform over the ladder, drawn from a hash of the observation, so that it keeps no state.

    Attributes:
        seed: another seed gives another draw for the same observation.
    """

    seed: int = 0

    def decide(self, observation: AbrObservation) -> int:
        """Returns a level."""
        digest = hashlib.blake2b(f"{self.seed} {observation}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % observation.levels
