"""Fair sharing: each job in the system gets an equal share of the executors (as in Decima)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster_sim.observation import Assignment, ClusterView
from controllers.job_order import serve_in_order
from controllers.registry import register


@register("scheduling", "fair")
@dataclass(frozen=True, slots=True, kw_only=True)
class Fair:
    """The share is rounded up; older jobs are filled up first."""

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        share = math.ceil(observation.executors / len(observation.jobs))
        return serve_in_order(observation, caps=share)
