"""The sections of an experiment file that only task ``scheduling`` has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster_sim.arrivals import BurstyArrivals
from cluster_sim.durations import Disturbances
from cluster_sim.simulated import MOVING_DELAY_MS, MS_PER_SECOND, Outage
from cluster_sim.speculation import SpeculationConfig
from testbed.experiment_sections import FORBID_UNKNOWN


@dataclass(frozen=True, kw_only=True)
class OutageConfig:
    """``[[cluster.outages]]``: an executor is gone for a while, with the task that it ran.

    Attributes:
        executor: which, from 0.
        from_s: when it is lost.
        until_s: when it is back; never by default.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    executor: int
    from_s: float
    until_s: float | None = None

    @property
    def outage(self) -> Outage:
        """As the simulator takes it."""
        until_ms = None if self.until_s is None else self.until_s * MS_PER_SECOND
        return Outage(self.executor, self.from_s * MS_PER_SECOND, until_ms)


@dataclass(frozen=True, kw_only=True)
class SpeculationSettings:
    """``[cluster.speculation]``: second attempts for slow tasks, as Spark decides on them.

    Attributes:
        quantile: share of the stage's tasks that must have finished first.
        multiplier: a task is slow beyond this multiple of their median duration.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    quantile: float = 0.75
    multiplier: float = 1.5

    @property
    def config(self) -> SpeculationConfig:
        """As the machine takes it.

        Raises:
            ValueError: a value out of range.
        """
        return SpeculationConfig(quantile=self.quantile, multiplier=self.multiplier)


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """``[cluster]``: what the cluster is like besides the number of its executors.

    Attributes:
        moving_delay_s: how long an executor takes to another job.
        warmup_s: added to the first task of a fresh executor where fresh ones were not measured;
            by default as the jobs have it: 1 s for those measured in waves, none for others.
        straggler_share: share of the tasks that are slow for no reason of their own.
        straggler_slowdown: how many times longer those take.
        speculation: second attempts for slow tasks; without the table there are none.
        outages: executors that are lost.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    moving_delay_s: float = MOVING_DELAY_MS / MS_PER_SECOND
    warmup_s: float | None = None
    straggler_share: float = 0.0
    straggler_slowdown: float = 4.0
    speculation: SpeculationSettings | None = None
    outages: tuple[OutageConfig, ...] = ()

    @property
    def disturbances(self) -> Disturbances:
        """What makes tasks slower.

        Raises:
            ValueError: a value out of range.
        """
        return Disturbances(
            straggler_share=self.straggler_share, straggler_slowdown=self.straggler_slowdown
        )


@dataclass(frozen=True, kw_only=True)
class BurstSettings:
    """``[bursts]``, of ``arrivals = "bursty"``.

    Attributes:
        mean_jobs: mean number of jobs of a burst.
        inner_gap_s: mean gap inside a burst.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    mean_jobs: float = 5.0
    inner_gap_s: float = 1.0

    def arrivals(self, mean_gap_s: float) -> BurstyArrivals:
        """Arrivals with that mean gap over all.

        Raises:
            ArrivalError: a value out of range.
        """
        return BurstyArrivals(
            mean_gap_ms=mean_gap_s * MS_PER_SECOND,
            mean_burst=self.mean_jobs,
            inner_gap_ms=self.inner_gap_s * MS_PER_SECOND,
        )


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """``[scheduler]``: what becomes of decisions that cannot be carried out.

    Attributes:
        fallback: controller that decides in the place of one that fails or names what may not be
            chosen; without one the session fails.
        decision_timeout_s: longest wait for a decision, emulated runs.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    fallback: str | None = None
    decision_timeout_s: float = 5.0

    @property
    def chunk_timeout_s(self) -> float:
        """No limit: nothing is downloaded."""
        return math.inf
