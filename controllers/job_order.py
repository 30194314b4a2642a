"""What rule-based schedulers share: the order in which jobs are served, and their stages."""

from __future__ import annotations

from collections.abc import Mapping

from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, JobView, StageView


def next_stage(job: JobView) -> StageView | None:
    """The first stage that may be chosen; those whose parents are finished come before others."""
    waiting: StageView | None = None
    for one in job.stages:
        if one.is_schedulable:
            if not one.parents:
                return one
            waiting = waiting or one
    return waiting


def source_job(view: ClusterView) -> JobView | None:
    """The unfinished job whose executors are to be placed."""
    if view.source_job is None:
        return None
    return next((job for job in view.jobs if job.job == view.source_job), None)


def serve_in_order(view: ClusterView, *, caps: int | Mapping[int, int]) -> Assignment:
    """Executors stay with their job; else they go to the oldest that has less than its cap.

    Args:
        view: the observation.
        caps: executors of a job: of each alike, or by number of the job.
    """
    source = source_job(view)
    if source is not None and (stage := next_stage(source)) is not None:
        return Assignment(source.job, stage.stage, view.committable)
    for job in view.jobs:
        room = (caps if isinstance(caps, int) else caps[job.job]) - job.executors
        if room > 0 and job is not source and (stage := next_stage(job)) is not None:
            return Assignment(job.job, stage.stage, min(view.committable, room))
    return LEAVE_IDLE


def remaining_work_s(job: JobView) -> float:
    """Rough executor time that the job still takes, tasks that run counted as a whole."""
    return sum(
        (one.remaining_tasks + one.running_tasks) * one.expected_task_s for one in job.stages
    )


def critical_path_s(job: JobView) -> dict[int, float]:
    """Per stage the rough time from its start to the job's end, with executors without end."""
    children: dict[int, list[int]] = {one.stage: [] for one in job.stages}
    for one in job.stages:
        for parent in one.parents:
            children[parent].append(one.stage)
    expected_s = {one.stage: one.expected_task_s for one in job.stages}
    waits_for = {stage: len(below) for stage, below in children.items()}
    parents = {one.stage: one.parents for one in job.stages}
    path_s: dict[int, float] = {}
    free = [stage for stage, count in waits_for.items() if count == 0]
    while free:
        stage = free.pop()
        below_s = max((path_s[child] for child in children[stage]), default=0.0)
        path_s[stage] = expected_s[stage] + below_s
        for parent in parents[stage]:
            waits_for[parent] -= 1
            if waits_for[parent] == 0:
                free.append(parent)
    return path_s
