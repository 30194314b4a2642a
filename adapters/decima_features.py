"""What Decima's policy reads of an observation: figures of jobs and of stages that may be chosen.

Inputs of the graph network and of the heads behind it, see ``adapters.decima``. The figures of a
job depend on its stages alone, so that they can be kept while these stay as they are. The offsets
of the features and their units belong to what is trained: other ones need other weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster_sim.observation import ClusterView, JobView, StageView

Float32Array = NDArray[np.float32]

#: What the graph network reads of a stage; counts and times as logarithms.
STAGE_INPUTS = (
    "demand",
    "expected_task",
    "running_tasks",
    "has_open_parents",
    "remaining_tasks",
    "is_schedulable",
)
#: What is known of a stage that may be chosen, beside embeddings. Work, paths, counts and times are
#: logarithms, less about their middle. Work is executor time, a path the longest way to the end of
#: the job: ``path`` counts one task per stage, ``work_path`` all their tasks.
FEATURES = (
    "is_source_job",  # the executors come from this job
    "job_work",
    "job_path",
    "job_age",
    "job_executors",  # share of the cluster, without the executors that are to be placed
    "stage_path",
    "expected_task",
    "stage_work",
    "demand",
    "has_open_parents",
    "source_job_work",  # job_work if it is the source job, else 0
    "stage_work_path",
    "has_no_executors",
    "job_stages",
    "parents_left",  # time until the slowest open parent is finished, 0 without one
    "source_has_open_parents",
    "usable_share",  # of the executors to be placed, by this stage
    "committable",  # executors to be placed, share of the cluster
    "job_work_path",
    "job_demand",
    "constant",
    "jobs",
    "cluster_to_job_work",
    "cluster_size",
    "cluster_to_job_demand",
)
#: What the score of a stage is linear in.
SCORE_FEATURES = FEATURES[:20]
#: What the logarithm of the limit is linear in.
LIMIT_FEATURES = (
    "constant",
    "jobs",
    "job_work",
    "job_path",
    "cluster_to_job_work",
    "is_source_job",
    "job_demand",
    "stage_work",
    "expected_task",
    "demand",
    "has_open_parents",
    "committable",
    "job_age",
    "job_stages",
    "job_executors",
    "parents_left",
    "cluster_size",
    "cluster_to_job_demand",
)

_COUNT_SCALE = 0.4  # brings logarithms of counts near 1
#: Added before a logarithm, so that zero has one.
_LEAST_TASK_S, _LEAST_PATH_S, _LEAST_WORK_S = 0.05, 0.1, 1.0
_AGE_UNIT_S = 10.0
#: Cluster whose feature ``cluster_size`` is 0.
_USUAL_EXECUTORS = 50


class JobGraph:
    """What is known of a job whatever the rest of the cluster does: its figures, its graph.

    Attributes:
        stages: how many are not finished.
        inputs: ``(stages, STAGE_INPUTS)``.
        order: places of the stages, children before parents.
        children: per stage, places of its children.
        work_s: executor time that is left.
        path_s: longest way to the end, one task per stage.
        work_path_s: the same with all tasks of each stage.
        demand: of the stages that may be chosen.
        choices: the stages that may be chosen.
    """

    __slots__ = (
        "children",
        "choices",
        "demand",
        "inputs",
        "order",
        "path_s",
        "stages",
        "work_path_s",
        "work_s",
    )

    def __init__(self, stages: tuple[StageView, ...]) -> None:
        place = {one.stage: index for index, one in enumerate(stages)}
        parents = [[place[parent] for parent in one.parents] for one in stages]
        self.stages = len(stages)
        self.children: list[list[int]] = [[] for _ in stages]
        for index, above in enumerate(parents):
            for parent in above:
                self.children[parent].append(index)
        self.order = _upwards(parents, self.children)
        self.inputs = np.array([_stage_inputs(one) for one in stages], dtype=np.float32)
        left_s = [(one.remaining_tasks + one.running_tasks) * one.expected_task_s for one in stages]
        paths_s, work_paths_s = [0.0] * len(stages), [0.0] * len(stages)
        for index in self.order:
            below = self.children[index]
            paths_s[index] = stages[index].expected_task_s + max(
                (paths_s[child] for child in below), default=0.0
            )
            work_paths_s[index] = left_s[index] + max(
                (work_paths_s[child] for child in below), default=0.0
            )
        self.work_s = sum(left_s)
        self.path_s, self.work_path_s = max(paths_s), max(work_paths_s)
        self.choices = tuple(
            Choice(
                index,
                one,
                left_s[index],
                paths_s[index],
                work_paths_s[index],
                [left_s[above] / max(1, stages[above].running_tasks) for above in parents[index]],
            )
            for index, one in enumerate(stages)
            if one.is_schedulable
        )
        self.demand = sum(one.demand for one in self.choices)


class Choice:
    """A stage that may be chosen, with those of its features that depend on its job alone."""

    __slots__ = (
        "demand",
        "expected",
        "has_open_parents",
        "index",
        "log_demand",
        "parents_left",
        "path",
        "stage",
        "work",
        "work_path",
    )

    def __init__(
        self,
        index: int,
        stage: StageView,
        work_s: float,
        path_s: float,
        work_path_s: float,
        parents_left_s: list[float],
    ) -> None:
        self.index, self.stage, self.demand = index, stage.stage, stage.demand
        self.expected = math.log(stage.expected_task_s + _LEAST_TASK_S)
        self.work = math.log(work_s + _LEAST_WORK_S) - 3
        self.log_demand = math.log1p(stage.demand) - 2.5
        self.path = math.log(path_s + _LEAST_PATH_S) - 2
        self.work_path = math.log(work_path_s + _LEAST_WORK_S) - 4
        self.has_open_parents = float(bool(parents_left_s))
        self.parents_left = math.log1p(max(parents_left_s)) - 1 if parents_left_s else 0.0


def _upwards(parents: list[list[int]], children: list[list[int]]) -> list[int]:
    """Places of all stages, children before parents."""
    waits_for = [len(below) for below in children]
    order = [index for index, count in enumerate(waits_for) if count == 0]
    for index in order:  # grows meanwhile
        for parent in parents[index]:
            waits_for[parent] -= 1
            if waits_for[parent] == 0:
                order.append(parent)
    return order


def _stage_inputs(stage: StageView) -> tuple[float, ...]:
    return (
        math.log1p(max(stage.demand, 0)) * _COUNT_SCALE - 1,
        math.log(stage.expected_task_s + _LEAST_TASK_S),
        math.log1p(stage.running_tasks) * _COUNT_SCALE,
        len(stage.parents) > 0,
        math.log1p(stage.remaining_tasks) * _COUNT_SCALE - 1,
        stage.is_schedulable,
    )


class ClusterFigures:
    """What all jobs of an observation share; with it the features of their stages."""

    __slots__ = ("committable", "demand", "jobs", "share", "size", "view", "work")

    def __init__(self, view: ClusterView, graphs: Sequence[JobGraph]) -> None:
        self.view = view
        self.committable = view.committable
        self.share = view.committable / view.executors
        self.jobs = math.log(len(graphs)) - 0.7
        self.work = math.log(sum(one.work_s for one in graphs) + _LEAST_WORK_S)
        self.demand = math.log1p(sum(one.demand for one in graphs))
        self.size = math.log(view.executors / _USUAL_EXECUTORS)

    def features(self, job: JobView, graph: JobGraph, executors: int) -> list[list[float]]:
        """The features of every stage of a job that may be chosen, as in ``FEATURES``."""
        view = self.view
        is_source = float(job.job == view.source_job)
        log_work = math.log(graph.work_s + _LEAST_WORK_S)
        job_work = log_work - 4
        job_path = math.log(graph.path_s + _LEAST_PATH_S) - 2
        job_work_path = math.log(graph.work_path_s + _LEAST_WORK_S) - 4
        age = math.log1p((view.time_s - job.arrived_s) / _AGE_UNIT_S) - 1.5
        job_stages = math.log(graph.stages) - 1.5
        log_demand = math.log1p(graph.demand)
        of_cluster = executors / view.executors
        return [
            [
                is_source,
                job_work,
                job_path,
                age,
                of_cluster,
                one.path,
                one.expected,
                one.work,
                one.log_demand,
                one.has_open_parents,
                is_source * job_work,
                one.work_path,
                executors <= 0,
                job_stages,
                one.parents_left,
                one.has_open_parents * is_source,
                min(one.demand, self.committable) / self.committable,
                self.share,
                job_work_path,
                log_demand - 3,
                1.0,
                self.jobs,
                self.work - log_work,
                self.size,
                self.demand - log_demand,
            ]
            for one in graph.choices
        ]
