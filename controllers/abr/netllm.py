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

BYTES_PER_MIB = 2**20


@register("abr", "netllm")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetLlm:
    """The level that the adapted model scores highest; the lowest before any measurement.

    The model is loaded when the controller is made. What it keeps between two decisions makes them
    faster and never different: keys and values of past tokens, found by the history that they
    stand for (``adapters.inference``).

    Attributes:
        checkpoint: ``builtin:NAME``, or a folder that ``testbed train`` wrote.
        device: where to compute; ``auto`` takes the GPU where there is one.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.
        inference: how answers are computed: ``lean`` with kept keys and values in a pass of our
            own, ``cached`` in the library's, ``full`` without; ``auto`` takes the first of these
            that works with the backbone, told by ``policy.inference``. ``int20`` and ``int8`` are
            ``lean`` with a copy of the weights as integers: of 20 bits, as close to ``full`` as
            ``lean`` and taken by ``auto`` for models of 128 MiB to 1 GiB; of 8, so that a decision
            may be another.
        cache_mib: bound of what is kept, in 2^20 bytes.
    """

    checkpoint: str = "builtin:abr-minilm"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    inference: Literal["auto", "graphed", "lean", "int20", "cached", "int8", "full"] = "auto"
    cache_mib: int = 256
    policy: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, is {self.threads}")
        if self.cache_mib < 1:
            raise ValueError(f"cache_mib must be at least 1, is {self.cache_mib}")
        object.__setattr__(self, "policy", self._load())

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

    def _load(self) -> AbrPolicy:
        import torch

        from adapters.checkpoints import load_checkpoint

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' is not available here; use 'auto' or 'cpu'")
        if self.threads:
            torch.set_num_threads(self.threads)
        return load_checkpoint(
            self.checkpoint,
            task="abr",
            device="cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu",
            inference=self.inference,
            cache_bytes=self.cache_mib * BYTES_PER_MIB,
        )
