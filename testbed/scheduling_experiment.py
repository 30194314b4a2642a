"""Experiments with task ``scheduling``: every arm runs the same jobs on the same cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cluster_sim.arrivals import MEAN_GAP_MS, ArrivalError, Arrivals, PoissonArrivals
from cluster_sim.fabric import FabricError
from cluster_sim.observation import MAX_EXECUTORS, MAX_JOBS
from cluster_sim.simulated import MS_PER_SECOND
from testbed.experiment_base import Experiment
from testbed.experiment_checks import require
from testbed.scheduling_sections import (
    BurstSettings,
    ClusterSettings,
    FabricSettings,
    SchedulerSettings,
)

#: Hosts of one network; as many as Linux bridges and addresses of the testbed allow.
MAX_EMULATED_EXECUTORS = 250


@dataclass(frozen=True, kw_only=True)
class SchedulingExperiment(Experiment):
    """Scheduling of jobs: the controller gives executors to stages.

    Attributes:
        driver: ``simulated``, or ``emulated``: agents on hosts that move real bytes.
        jobs: where jobs come from: ``builtin:NAME``, a folder of TPC-H queries, or Alibaba's
            ``batch_task.csv``.
        num_jobs: jobs per session.
        executors: of the cluster.
        arrival_mean_s: mean gap between jobs.
        arrivals: how they come; ``recorded``: as in the trace, which then says the jobs, too.
        bursts: of ``bursty`` arrivals.
        seeds: a session per arm and seed; ``seed`` alone by default.
        episode: one recorded run in the place of jobs, executors, arrivals and seeds.
        time_scale: emulated runs: how much shorter a second is.
        compute: emulated runs: what executors do while tasks compute; ``burn`` keeps a core busy.
        compare: emulated runs: whether the same jobs run in simulation, too, for the report.
        record_tasks: sessions that keep who ran what when: of the ``first`` seed, ``all`` or
            ``none``; by default all that are emulated, and the first of those that are simulated,
            where only the machine in Python tells, which is slower.
        cluster: what the cluster is like.
        fabric: the network between executors; simulated runs have none without the table.
        scheduler: what becomes of decisions that cannot be carried out.
    """

    decision_table: ClassVar = "scheduler"
    foreign_keys: ClassVar = (
        *("traces", "starts", "link", "controller_link", "network", "hosts"),
        *("capture", "background"),
    )
    task: Literal["scheduling"]
    driver: Literal["simulated", "emulated"] = "simulated"
    jobs: str = "builtin:tpch-like"
    num_jobs: int = 200
    executors: int = 50
    arrival_mean_s: float = MEAN_GAP_MS / MS_PER_SECOND
    arrivals: Literal["poisson", "bursty", "recorded"] = "poisson"
    bursts: BurstSettings = field(default_factory=BurstSettings)
    seeds: tuple[int, ...] | None = None
    episode: str | None = None
    time_scale: float = 1.0
    compute: Literal["sleep", "burn"] = "sleep"
    compare: bool = True
    record_tasks: Literal["first", "all", "none"] | None = None
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    fabric: FabricSettings | None = None
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)

    @property
    def decision_settings(self) -> SchedulerSettings:
        """The table ``[scheduler]``."""
        return self.scheduler

    @property
    def session_seeds(self) -> tuple[int, ...]:
        """A session of every arm has one of these; a recorded run needs no second."""
        seeds = (self.seed,) if self.seeds is None else self.seeds
        return seeds if self.episode is None else seeds[:1]

    @property
    def recorded_seeds(self) -> tuple[int, ...]:
        """Seeds of the sessions that keep who ran what when."""
        wanted = self.record_tasks or ("all" if self.driver == "emulated" else "first")
        seeds = self.session_seeds
        return {"first": seeds[:1], "all": seeds, "none": ()}[wanted]

    @property
    def fabric_settings(self) -> FabricSettings | None:
        """The network between executors; an emulated cluster has one in any case."""
        if self.fabric is None and self.driver == "emulated":
            return FabricSettings()
        return self.fabric

    @property
    def decision_ms(self) -> float | None:
        """How long a decision holds up the cluster; None: as long as it takes."""
        wanted = self.simulation.decision_s
        if wanted == "auto":
            return 0.0  # as in the public simulators
        return None if wanted == "measured" else wanted * MS_PER_SECOND

    def drawn_arrivals(self) -> Arrivals:
        """How jobs arrive where that is drawn.

        Raises:
            ArrivalError: a value out of range.
        """
        if self.arrivals == "bursty":
            return self.bursts.arrivals(self.arrival_mean_s)
        return PoissonArrivals(self.arrival_mean_s * MS_PER_SECOND)

    def check(self) -> None:
        """See :meth:`Experiment.check`."""
        super().check()
        require(1 <= self.num_jobs <= MAX_JOBS, f"num_jobs: must be 1 to {MAX_JOBS}")
        require(1 <= self.executors <= MAX_EXECUTORS, f"executors: must be 1 to {MAX_EXECUTORS}")
        require(0 < self.time_scale <= 1, "time_scale: must be above 0 and at most 1")
        self._check_seeds()
        self._check_cluster()
        self._check_fabric()
        for key, make in (
            ("arrival_mean_s", lambda: PoissonArrivals(self.arrival_mean_s * MS_PER_SECOND)),
            ("bursts", lambda: self.bursts.arrivals(self.arrival_mean_s)),
        ):
            if key == "bursts" and self.arrivals != "bursty":
                continue
            try:
                make()
            except ArrivalError as error:
                raise ValueError(f"{key}: {error}") from error

    def _check_seeds(self) -> None:
        if self.seeds is None:
            return
        require(bool(self.seeds), "seeds: names none; leave it out for 'seed' alone")
        for seed in self.seeds:
            require(seed >= 0, f"seeds: {seed} must not be negative")
            require(self.seeds.count(seed) == 1, f"seeds: {seed} occurs twice")

    def _check_cluster(self) -> None:
        cluster = self.cluster
        require(cluster.moving_delay_s >= 0, "cluster.moving_delay_s: must not be negative")
        require(
            cluster.warmup_s is None or cluster.warmup_s >= 0,
            "cluster.warmup_s: must not be negative",
        )
        try:
            _ = cluster.disturbances
        except ValueError as error:
            raise ValueError(f"cluster: {error}") from error
        try:
            _ = cluster.speculation and cluster.speculation.config
        except ValueError as error:
            raise ValueError(f"cluster.speculation: {error}") from error
        require(
            self.episode is None or cluster == ClusterSettings(),
            "cluster: a recorded episode has its own; leave the table out",
        )
        self._check_outages()

    def _check_fabric(self) -> None:
        fabric = self.fabric_settings
        if fabric is None:
            return
        require(0 < fabric.byte_scale <= 1, "fabric.byte_scale: must be above 0 and at most 1")
        require(fabric.fan_in >= 0, "fabric.fan_in: must not be negative")
        require(fabric.queue_packets >= 1, "fabric.queue_packets: must be at least 1")
        try:
            fabric.fabric(self.executors)
        except FabricError as error:
            raise ValueError(f"fabric: {error}") from error
        require(
            self.driver == "simulated" or self.executors <= MAX_EMULATED_EXECUTORS,
            f"executors: each is a host; at most {MAX_EMULATED_EXECUTORS} can be emulated",
        )

    def _check_outages(self) -> None:
        free_from_s: dict[int, float] = {}  # when each executor that was lost is back
        outages = self.cluster.outages
        for number, one in sorted(enumerate(outages), key=lambda item: item[1].from_s):
            where = f"cluster.outages.{number}"
            require(
                0 <= one.executor < self.executors,
                f"{where}.executor: must be 0 to {self.executors - 1}",
            )
            require(one.from_s >= 0, f"{where}.from_s: must not be negative")
            until_s = float("inf") if one.until_s is None else one.until_s
            require(until_s > one.from_s, f"{where}.until_s: must lie behind from_s")
            require(
                one.from_s > free_from_s.get(one.executor, -1.0),
                f"{where}: executor {one.executor} is gone already",
            )
            free_from_s[one.executor] = until_s
