"""Observations of the cluster: as JSON and back, and what cannot be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from cluster_sim.durations import DrawnDurations
from cluster_sim.jobs import Job
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import (
    Assignment,
    ClusterView,
    JobView,
    StageView,
    check_cluster_view,
)
from cluster_sim.simulated import SimulationConfig, run_simulated
from controllers import registry
from player.observation import ObservationError

WIRE = pydantic.TypeAdapter(ClusterView)
FIRST = StageView(0, 4, 2, 1.5, 3, True, ())
SECOND = StageView(1, 7, 0, 0.2, 7, False, (0,))
VIEW = ClusterView(10.0, 5, 2, 3, (JobView(3, 1.0, 3, (FIRST, SECOND)),))


def with_stage(**changes: Any) -> ClusterView:
    stages = (FIRST, dataclasses.replace(SECOND, **changes))
    return dataclasses.replace(VIEW, jobs=(dataclasses.replace(VIEW.jobs[0], stages=stages),))


def with_job(**changes: Any) -> ClusterView:
    return dataclasses.replace(VIEW, jobs=(dataclasses.replace(VIEW.jobs[0], **changes),))


def test_edges_are_those_among_unfinished_stages() -> None:
    assert VIEW.jobs[0].edges == ((0, 1),)
    check_cluster_view(VIEW)


@pytest.mark.parametrize(
    ("view", "field"),
    [
        (dataclasses.replace(VIEW, time_s=float("nan")), "time_s"),
        (dataclasses.replace(VIEW, executors=0), "executors"),
        (dataclasses.replace(VIEW, committable=0), "committable"),
        (dataclasses.replace(VIEW, committable=6), "committable"),
        (dataclasses.replace(VIEW, source_job=4), "source_job"),
        (dataclasses.replace(VIEW, jobs=()), "jobs"),
        (dataclasses.replace(VIEW, jobs=VIEW.jobs * 2), "jobs.job"),
        (with_job(job=-1), "source_job"),
        (with_job(arrived_s=11.0), "jobs.arrived_s"),
        (with_job(executors=6), "jobs.executors"),
        (with_job(stages=()), "jobs.stages"),
        (with_job(stages=(FIRST, FIRST)), "jobs.stages.stage"),
        (with_job(stages=(SECOND,)), "jobs.stages.parents"),
        (with_job(stages=(dataclasses.replace(FIRST, is_schedulable=False),)), "jobs.stages.is_sc"),
        (with_stage(stage=-1), "jobs.stages.stage"),
        (with_stage(remaining_tasks=-1), "jobs.stages.remaining_tasks"),
        (with_stage(running_tasks=10**9), "jobs.stages.running_tasks"),
        (with_stage(expected_task_s=float("inf")), "jobs.stages.expected_task_s"),
        (with_stage(demand=8), "jobs.stages.demand"),
        (with_stage(demand=0, is_schedulable=True), "jobs.stages.is_schedulable"),
        (with_stage(parents=(0, 0)), "jobs.stages.parents"),
        (with_stage(parents=(1,)), "jobs.stages.parents"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(view: ClusterView, field: str) -> None:
    with pytest.raises(ObservationError) as caught:
        check_cluster_view(view)
    assert caught.value.field.startswith(field)


def test_observations_survive_json(generated: Callable[..., tuple[Job, ...]]) -> None:
    jobs = generated(2, 4)
    controller = registry.create("scheduling", "fair")
    seen: list[ClusterView] = []

    def decide(view: ClusterView) -> Assignment:
        seen.append(view)
        assignment: Assignment = controller.decide(view)
        return assignment

    config = SimulationConfig(cluster=ClusterConfig(executors=7))
    run_simulated(jobs, config, DrawnDurations(jobs, seed=0), decide)
    for view in seen:
        assert WIRE.validate_json(WIRE.dump_json(view), strict=True) == view


@pytest.mark.parametrize("key", ["unknown", "committable"])
def test_unknown_and_missing_keys_are_refused(key: str) -> None:
    document = json.loads(WIRE.dump_json(VIEW))
    if key in document:
        del document[key]
    else:
        document[key] = 1
    with pytest.raises(pydantic.ValidationError, match=key):
        WIRE.validate_json(json.dumps(document), strict=True)
