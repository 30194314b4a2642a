"""First in, first out, with a cap per job: what NetLLM (Wu et al., SIGCOMM 2024) calls FIFO."""

from __future__ import annotations

from dataclasses import dataclass

from cluster_sim.observation import Assignment, ClusterView
from controllers.job_order import serve_in_order
from controllers.registry import register


@register("scheduling", "fifo_capped")
@dataclass(frozen=True, slots=True, kw_only=True)
class FifoCapped:
    """The oldest job first; no job gets more than a share of the executors.

    Attributes:
        share: of the cluster's executors.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("needs 0 < share <= 1")

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        return serve_in_order(observation, caps=max(1, int(observation.executors * self.share)))
