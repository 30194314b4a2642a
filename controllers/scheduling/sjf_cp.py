"""Shortest job first, and of its stages the one on the critical path (a baseline of Decima)."""

from __future__ import annotations

from dataclasses import dataclass

from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView
from controllers.job_order import critical_path_s, remaining_work_s
from controllers.registry import register


@register("scheduling", "sjf_cp")
@dataclass(frozen=True, slots=True, kw_only=True)
class SjfCp:
    """All executors go to the job with the least work left, however far they are from it."""

    def decide(self, observation: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        jobs = [job for job in observation.jobs if any(one.is_schedulable for one in job.stages)]
        if not jobs:
            return LEAVE_IDLE
        job = min(jobs, key=lambda one: (remaining_work_s(one), one.job))
        path_s = critical_path_s(job)
        stage = max(
            (one for one in job.stages if one.is_schedulable),
            key=lambda one: (path_s[one.stage], -one.stage),
        )
        return Assignment(job.job, stage.stage, observation.committable)
