"""The adapted language model: NetLLM for viewports (Wu et al., SIGCOMM 2024), see ``adapters``.

Small networks foretell from the viewer's own motion and from earlier viewers; the language model
adds to what they say (``adapters.viewport_policy``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from controllers.registry import register
from player.viewport_observation import Viewport, ViewportObservation

if TYPE_CHECKING:
    from adapters.viewport_policy import ViewportPolicy


@register("viewport", "netllm")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetLlm:
    """Foretells up to 20 steps from ten samples of history and any number of earlier viewers.

    Attributes:
        checkpoint: ``builtin:NAME``, or a folder that ``testbed train viewport`` wrote.
        backbone: where to find the language model, if elsewhere than in training.
        device: where to compute; ``auto`` takes the GPU where there is one.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.
        inference: how the language model is run: ``lean`` in a pass of our own, ``full`` in the
            library's; ``auto`` takes ``lean`` where it works, told by ``policy.inference``.
        caution: the spreads that are told over the errors that are expected. Large turns are more
            frequent than under a Laplace distribution of the expected error; wider spreads give
            away a part of a better picture for fewer blanks.
    """

    checkpoint: str = "builtin:viewport-minilm"
    backbone: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    inference: Literal["auto", "lean", "full"] = "auto"
    caution: float = 1.2
    policy: Any = dataclasses.field(init=False, repr=False, compare=False)

    #: Steps that it foretells at most.
    max_horizon = 20

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, is {self.threads}")
        if not 0 < self.caution < math.inf:
            raise ValueError(f"caution must be positive, is {self.caution}")
        object.__setattr__(self, "policy", self._load())

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step.

        Raises:
            HorizonError: more than 20 steps are asked for.
            ImageFeaturesError: image features of another length than the checkpoint takes.
        """
        return self.decide_many([observation])[0]

    def decide_many(
        self, observations: Sequence[ViewportObservation]
    ) -> list[tuple[Viewport, ...]]:
        """Returns one viewport per step for each observation, computed in one batch."""
        policy: ViewportPolicy = self.policy
        return policy.decide_many(observations, caution=self.caution)

    def _load(self) -> ViewportPolicy:
        import torch

        from adapters.viewport_checkpoints import load_viewport

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' is not available here; use 'auto' or 'cpu'")
        if self.threads:
            torch.set_num_threads(self.threads)
        return load_viewport(
            self.checkpoint,
            network="crowd",
            device="cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu",
            backbone=self.backbone,
            inference=self.inference,
        )
