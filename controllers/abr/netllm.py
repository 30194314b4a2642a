"""The adapted language model: NetLLM for ABR (Wu et al., SIGCOMM 2024), see ``adapters``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from controllers.registry import register
from player.observation import AbrObservation

if TYPE_CHECKING:
    from adapters.policy import AbrPolicy


@register("abr", "netllm")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetLlm:
    """The level that the adapted model scores highest; the lowest before any measurement.

    The model is loaded when the controller is made. It keeps nothing between two decisions.

    Attributes:
        checkpoint: ``builtin:NAME``, or a folder that ``testbed train`` wrote.
        device: where to compute; ``auto`` takes the GPU where there is one.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.
    """

    checkpoint: str = "builtin:abr-minilm"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    policy: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, is {self.threads}")
        object.__setattr__(self, "policy", _load(self.checkpoint, self.device, self.threads))

    def decide(self, observation: AbrObservation) -> int:
        """Returns the level.

        Raises:
            LadderError: the ladder has another length than the checkpoint's.
        """
        return self.decide_many([observation])[0]

    def decide_many(self, observations: Sequence[AbrObservation]) -> list[int]:
        """Returns a level for each observation, computed in one batch."""
        policy: AbrPolicy = self.policy
        return policy.decide_many(observations)


def _load(checkpoint: str, device: str, threads: int) -> AbrPolicy:
    import torch

    from adapters.checkpoints import load_checkpoint

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available here; use 'auto' or 'cpu'")
    if threads:
        torch.set_num_threads(threads)
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return load_checkpoint(checkpoint, task="abr", device=chosen)
