"""The adapted language model: NetLLM for cluster scheduling (Wu et al., SIGCOMM 2024).

A small graph network rates the stages that may be chosen; the language model adds to what it says
(``adapters.scheduling_policy``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster_sim.observation import Assignment, ClusterView
from controllers.registry import register

if TYPE_CHECKING:
    from adapters.decima import Ratings
    from adapters.scheduling_policy import SchedulingPolicy


@register("scheduling", "netllm")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetLlm:
    """The stage with the highest score, among jobs below their limits.

    Attributes:
        checkpoint: ``builtin:NAME``, or a folder that ``testbed train scheduling`` wrote.
        backbone: where to find the language model, if elsewhere than in training.
        device: where to compute; ``auto`` takes the GPU where there is one.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.
        inference: how the language model is run: ``lean`` in a pass of our own, ``full`` in the
            library's; ``auto`` takes ``lean`` where it works, told by ``policy.inference``.
    """

    checkpoint: str = "builtin:scheduling-minilm"
    backbone: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    inference: Literal["auto", "lean", "full"] = "auto"
    policy: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, is {self.threads}")
        object.__setattr__(self, "policy", self._load())

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        policy: SchedulingPolicy = self.policy
        return policy.decide(observation)

    def rate(self, observation: ClusterView) -> Ratings:
        """Returns what it thinks of every stage that may be chosen, to learn from."""
        policy: SchedulingPolicy = self.policy
        return policy.rate(observation)

    def _load(self) -> SchedulingPolicy:
        import torch

        from adapters.scheduling_checkpoints import load_scheduling

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' is not available here; use 'auto' or 'cpu'")
        if self.threads:
            torch.set_num_threads(self.threads)
        return load_scheduling(
            self.checkpoint,
            device="cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu",
            backbone=self.backbone,
            inference=self.inference,
        )
