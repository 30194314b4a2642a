"""Decima: a graph network that learned to schedule, Mao et al., SIGCOMM 2019, ``adapters.decima``.

It is trained by evolution strategies instead of policy gradients, and has a guard against leaving
the cluster idle.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster_sim.observation import Assignment, ClusterView
from controllers.registry import register

if TYPE_CHECKING:
    from adapters.decima import DecimaPolicy, Ratings


@register("scheduling", "decima")
@dataclass(frozen=True, slots=True, kw_only=True)
class Decima:
    """The stage that the trained network scores highest, among jobs below their limits.

    Attributes:
        checkpoint: ``builtin:NAME`` or a folder.
    """

    checkpoint: str = "builtin:scheduling-decima"
    policy: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from adapters.decima import load_decima

        object.__setattr__(self, "policy", load_decima(self.checkpoint))

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        policy: DecimaPolicy = self.policy
        return policy.decide(observation)

    def rate(self, observation: ClusterView) -> Ratings:
        """Returns what it thinks of every stage that may be chosen, to learn from."""
        policy: DecimaPolicy = self.policy
        return policy.rate(observation)
