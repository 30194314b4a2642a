"""Pensieve: a policy learned by reinforcement, Mao et al., SIGCOMM 2017, see ``adapters.pensieve``.

It chooses any level of the ladder, as published; reimplementations that move by one level at most
are weaker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controllers.registry import register
from player.observation import AbrObservation

if TYPE_CHECKING:
    from adapters.pensieve import PensievePolicy


@register("abr", "pensieve")
@dataclass(frozen=True, slots=True, kw_only=True)
class Pensieve:
    """The level that the trained network scores highest; the lowest before any measurement.

    Attributes:
        checkpoint: ``builtin:NAME``, or a folder that ``testbed train pensieve`` or ``genet``
            wrote.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.
    """

    checkpoint: str = "builtin:abr-pensieve"
    threads: int = 1
    policy: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, is {self.threads}")
        from adapters.pensieve import load_pensieve

        policy = load_pensieve(self.checkpoint, threads=self.threads)
        object.__setattr__(self, "policy", policy)

    def decide(self, observation: AbrObservation) -> int:
        """Returns the level.

        Raises:
            LadderError: the ladder has another length than the checkpoint's.
        """
        return self.decide_many([observation])[0]

    def decide_many(self, observations: Sequence[AbrObservation]) -> list[int]:
        """Returns a level for each observation, computed in one batch."""
        policy: PensievePolicy = self.policy
        return policy.decide_many(observations)
