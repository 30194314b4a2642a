"""First in, first out, as Spark does by default: the oldest job takes what it can use."""

from __future__ import annotations

from dataclasses import dataclass

from cluster_sim.observation import Assignment, ClusterView
from controllers.job_order import serve_in_order
from controllers.registry import register


@register("scheduling", "fifo")
@dataclass(frozen=True, slots=True, kw_only=True)
class Fifo:
    """The oldest job first, without a cap."""

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        return serve_in_order(observation, caps=observation.executors)
