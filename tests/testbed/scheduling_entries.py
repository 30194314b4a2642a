"""What the scheduling tests share: small experiments, and controllers that make mistakes."""

from __future__ import annotations

from pathlib import Path

from cluster_sim.observation import Assignment, ClusterView
from controllers.job_order import serve_in_order
from testbed.experiment import plan_experiment, read_experiment
from testbed.scheduling_plans import SchedulingPlan

TOML = """
task = "scheduling"
jobs = "builtin:tpch-like"
num_jobs = 4
executors = 6
seeds = [1, 2]
[[arms]]
controller = "fair"
[[arms]]
controller = "fifo_capped"
"""
#: Two jobs of a trace; the first one's stage 2 reads stage 1.
BATCH_TASKS = """\
M1,4,j_1,1,Terminated,100,130,100,0.5
R2_1,2,j_1,1,Terminated,130,150,100,0.5
M1,3,j_2,1,Terminated,160,170,100,0.5
task_x,1,j_3,1,Running,170,,100,0.5
"""


def write_experiment(folder: Path, text: str = TOML) -> Path:
    """Writes an experiment; returns its file."""
    path = folder / "scheduling.toml"
    path.write_text(text)
    return path


def plan_of(folder: Path, *changes: tuple[str, str]) -> SchedulingPlan:
    """The plan of the small experiment with some changes."""
    text = TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    experiment = read_experiment(write_experiment(folder, text))
    plan = plan_experiment(experiment, data_dir=None, base=folder)
    assert isinstance(plan, SchedulingPlan)
    return plan


class NamesFinishedStages:
    """Right for a while, then a stage that is finished: the first of the oldest job."""

    def decide(self, observation: ClusterView) -> Assignment:
        for job in observation.jobs:
            known = {one.stage for one in job.stages}
            if 0 not in known:
                return Assignment(job.job, 0, 1)
        return serve_in_order(observation, caps=observation.executors)


class NamesTooManyExecutors:
    """One more than the cluster has."""

    def decide(self, observation: ClusterView) -> Assignment:
        right = serve_in_order(observation, caps=observation.executors)
        return Assignment(right.job, right.stage, observation.executors + 1)


class Raises:
    """Has a bug."""

    def decide(self, observation: ClusterView) -> Assignment:
        raise ZeroDivisionError(f"no idea at {observation.time_s:g} s")


class LeavesIdle:
    """Never gives an executor to anybody."""

    def decide(self, observation: ClusterView) -> Assignment:
        return Assignment(None, None, 0)
