"""What a live cluster is asked to be, and what a run on it leaves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cluster_sim.machine import ClusterConfig
from cluster_sim.simulated import MOVING_DELAY_MS, ClusterRun
from cluster_sim.task_records import ShuffleTotals, TaskRecord

P99 = 98  # place of the 99th percentile among 99


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """A live cluster.

    Attributes:
        cluster: executors and speculation.
        time_scale: seconds that pass per second of the cluster.
        moving_delay_ms: how long an executor takes to another job.
        decision_ms: how long a decision holds up all others; None: the time measured.
        fan_in: see :class:`cluster_sim.map_outputs.MapOutputs`.
        joined_within_s: for the agents to come; real time.
        dead_after_s: an agent that says nothing for so long is lost; real time.
    """

    cluster: ClusterConfig
    time_scale: float = 1.0
    moving_delay_ms: float = MOVING_DELAY_MS
    decision_ms: float | None = None
    fan_in: int | None = 2
    joined_within_s: float = 30.0
    dead_after_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.time_scale <= 1:
            raise ValueError(f"time_scale {self.time_scale}; it must be above 0, and at most 1")


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A live run.

    Attributes:
        cluster: as of a simulated one.
        tasks: every attempt at a task, in the order in which they ended.
        shuffle: what they read.
        lost: executors that were lost, in order.
        wall_s: how long it took.
        late_ms: how much later than the cluster had it tasks began, in real time: median, 99th
            percentile and most.
        held_s: real time in which the cluster's clock stood still, because the driver was behind.
        moved_ms: how much later than they were due events were handled, on the cluster's clock:
            mean over all.
    """

    cluster: ClusterRun
    tasks: tuple[TaskRecord, ...]
    shuffle: ShuffleTotals
    lost: tuple[int, ...]
    wall_s: float
    late_ms: tuple[float, float, float]
    held_s: float
    moved_ms: float


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and most."""
    if len(values) < 2:
        only = values[0] if values else 0.0
        return (only, only, only)
    return (
        statistics.median(values),
        statistics.quantiles(values, n=P99 + 2, method="inclusive")[P99],
        max(values),
    )
