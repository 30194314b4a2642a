"""A recurrent network over the viewer's own motion: the learned baseline without a language model.

Two layers of gated recurrent units, trained as the adapted language model is, on the same
recordings, but told nothing of earlier viewers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controllers.registry import register
from player.viewport_observation import Viewport, ViewportObservation

if TYPE_CHECKING:
    from adapters.viewport_policy import ViewportPolicy


@register("viewport", "gru")
@dataclass(frozen=True, slots=True, kw_only=True)
class Gru:
    """Foretells up to 20 steps from ten samples of history.

    Attributes:
        checkpoint: ``builtin:NAME``, or a folder that ``testbed train viewport`` wrote.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.
    """

    checkpoint: str = "builtin:viewport-gru"
    threads: int = 1
    policy: Any = dataclasses.field(init=False, repr=False, compare=False)

    #: Steps that it foretells at most.
    max_horizon = 20

    uses_earlier_viewers = False

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, is {self.threads}")
        object.__setattr__(self, "policy", self._load())

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step.

        Raises:
            HorizonError: more than 20 steps are asked for.
        """
        return self.decide_many([observation])[0]

    def decide_many(
        self, observations: Sequence[ViewportObservation]
    ) -> list[tuple[Viewport, ...]]:
        """Returns one viewport per step for each observation, computed in one batch."""
        policy: ViewportPolicy = self.policy
        return policy.decide_many(observations)

    def _load(self) -> ViewportPolicy:
        from adapters.throughput_model import set_threads
        from adapters.viewport_checkpoints import load_viewport

        if self.threads:
            set_threads(self.threads)
        return load_viewport(self.checkpoint, network="gru")
