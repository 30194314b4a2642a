"""The sections of an experiment file that only task ``scheduling`` has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster_sim.arrivals import BurstyArrivals
from cluster_sim.durations import Disturbances
from cluster_sim.fabric import Fabric
from cluster_sim.link_traces import scaled_trace
from cluster_sim.simulated import MOVING_DELAY_MS, MS_PER_SECOND, Outage
from cluster_sim.speculation import SpeculationConfig
from player.trace import Trace
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
class FabricSettings:
    """``[fabric]``: the network between executors, in the time of the cluster.

    Attributes:
        shape: ``star``: all hosts at one switch that is never the bottleneck.
        host_mbps: capacity of the link of a host, each way. With ``traces`` it caps nothing; the
            links to the spines still follow from it.
        traces: what the links of hosts follow, over and over, host i trace i modulo their number:
            ``builtin:NAME``, a trace or a folder of traces; None: ``host_mbps``.
        leaves: ``leaf-spine``: switches that hosts are at.
        spines: ``leaf-spine``: switches that join those.
        oversubscription: ``leaf-spine``: what the hosts of a leaf can send, as a multiple of what
            its links to the spines carry.
        delay_ms: one-way delay of each link.
        byte_scale: share of all bytes that really moves, at rates as much lower.
        fan_in: ranges of each parent's output that a task reads; 0: a part of each executor's.
        queue_packets: emulated: before each output of a link.
        congestion: emulated: TCP congestion control of the hosts.
        backend: emulated: how links are made.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    shape: Literal["star", "leaf-spine"] = "star"
    host_mbps: float = 1000.0
    traces: str | None = None
    leaves: int = 4
    spines: int = 2
    oversubscription: float = 2.0
    delay_ms: float = 0.0
    byte_scale: float = 0.001
    fan_in: int = 2
    queue_packets: int = 1000
    congestion: str = "cubic"
    backend: Literal["auto", "kernel", "userspace"] = "auto"

    def fabric(self, hosts: int, traces: Sequence[Trace] = ()) -> Fabric:
        """The network with so many hosts, for as many bytes as really move.

        Args:
            hosts: how many.
            traces: those that are named, as they are in the file.

        Raises:
            FabricError: a value out of range.
        """
        rate_mbps = self.host_mbps * self.byte_scale
        if self.shape == "star":
            fabric = Fabric.star(hosts, rate_mbps)
        else:
            fabric = Fabric.leaf_spine(
                hosts,
                rate_mbps,
                leaves=self.leaves,
                spines=self.spines,
                oversubscription=self.oversubscription,
            )
        return dataclasses.replace(
            fabric,
            delay_ms=self.delay_ms,
            traces=tuple(scaled_trace(trace, rate=self.byte_scale) for trace in traces),
        )

    @property
    def ranges(self) -> int | None:
        """See :class:`cluster_sim.map_outputs.MapOutputs`."""
        return self.fan_in or None


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
