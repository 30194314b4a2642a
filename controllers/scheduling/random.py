"""A stage and a number of executors drawn uniformly: the floor for all others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView
from controllers.registry import register

_HALF_BITS = 32


@register("scheduling", "random")
@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Drawn from a hash of the observation, so that it keeps no state.

    Attributes:
        seed: another seed gives another draw for the same observation.
    """

    seed: int = 0

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        choices = [
            (job.job, one.stage, min(one.demand, observation.committable))
            for job in observation.jobs
            for one in job.stages
            if one.is_schedulable
        ]
        if not choices:
            return LEAVE_IDLE
        told = f"{self.seed} {observation.time_s} {observation.committable} {choices}"
        digest = hashlib.blake2b(told.encode(), digest_size=8).digest()
        bits = int.from_bytes(digest, "big")
        job, stage, most = choices[(bits >> _HALF_BITS) % len(choices)]
        return Assignment(job, stage, 1 + bits % 2**_HALF_BITS % most)
