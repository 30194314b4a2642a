"""Fair sharing with weights that depend on the work left (a baseline of Decima).

Shares are in proportion to (work left) ** exponent; Mao et al. (SIGCOMM 2019, section 7.1) weigh by
the total work, which an observation does not tell, and tune the exponent. So is the one here: the
best of -0.5, 0, 0.125, 0.25, 0.375 and 0.5 on TPC-H with 50 executors, seeds 101 to 140.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster_sim.observation import Assignment, ClusterView
from controllers.job_order import remaining_work_s, serve_in_order
from controllers.registry import register

LEAST_WORK_S = 1e-3


@register("scheduling", "weighted_fair")
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedFair:
    """Shares are rounded up; older jobs are filled up first.

    Attributes:
        exponent: 0 shares equally; above 0 large jobs get more, below 0 small ones.
    """

    exponent: float = 0.125

    def __post_init__(self) -> None:
        if not -10 <= self.exponent <= 10:
            raise ValueError("needs -10 <= exponent <= 10")

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        jobs = observation.jobs
        logs = [self.exponent * math.log(max(remaining_work_s(job), LEAST_WORK_S)) for job in jobs]
        weights = [math.exp(one - max(logs)) for one in logs]
        total = sum(weights)
        caps = {
            job.job: math.ceil(observation.executors * weight / total)
            for job, weight in zip(jobs, weights, strict=True)
        }
        return serve_in_order(observation, caps=caps)
