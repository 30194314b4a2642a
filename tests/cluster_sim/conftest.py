"""Workloads that need no data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cluster_sim.arrivals import Arrivals, PoissonArrivals
from cluster_sim.durations import ConstantDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.jobs import Edge, Job, JobGraph, Stage
from cluster_sim.workload import make_workload

Workload = Callable[..., tuple[Job, ...]]


@pytest.fixture(scope="session")
def generated() -> Workload:
    """Draws a workload from the generative model."""

    def make(seed: int, num_jobs: int = 8, arrivals: Arrivals | None = None) -> tuple[Job, ...]:
        return make_workload(
            GeneratedLibrary(),
            arrivals or PoissonArrivals(),
            num_jobs=num_jobs,
            rng=np.random.default_rng(seed),
        )

    return make


@pytest.fixture(scope="session")
def constant_job() -> Callable[..., Job]:
    """A job whose stages have (tasks, ms) and edges."""

    def make(
        *stages: tuple[int, float],
        edges: tuple[tuple[int, int], ...] = (),
        job: int = 0,
        arrived_ms: float = 0.0,
        warmup_ms: float = 0.0,
    ) -> Job:
        graph = JobGraph(
            f"job-{job}",
            tuple(Stage(tasks, ConstantDurations(ms, warmup_ms)) for tasks, ms in stages),
            tuple(Edge(*edge) for edge in edges),
        )
        return Job(job, arrived_ms, graph)

    return make
