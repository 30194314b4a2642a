"""Workloads: jobs from a library of graphs, arriving one after the other."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cluster_sim.arrivals import Arrivals
from cluster_sim.jobs import Job, JobError, JobGraph


class JobLibrary(Protocol):
    """Where jobs come from."""

    def pick(self, rng: np.random.Generator) -> JobGraph:
        """Draws a job."""
        ...


def make_workload(
    library: JobLibrary, arrivals: Arrivals, *, num_jobs: int, rng: np.random.Generator
) -> tuple[Job, ...]:
    """Jobs numbered from 0 in order of arrival.

    With TPC-H, Poisson arrivals and ``np.random.default_rng(seed)`` these are the jobs that the
    public reference, spark-sched-sim, makes of the same seed: graph and gap are drawn in turn.

    Raises:
        JobError: fewer arrivals were recorded than jobs are asked for.
    """
    jobs: list[Job] = []
    if num_jobs < 1:
        raise JobError(f"a workload of {num_jobs} jobs")
    for time_ms in arrivals.times_ms(rng):
        jobs.append(Job(len(jobs), time_ms, library.pick(rng)))
        if len(jobs) == num_jobs:
            return tuple(jobs)
    raise JobError(f"{num_jobs} jobs asked for, but {len(jobs)} arrivals were recorded")
