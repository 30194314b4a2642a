"""Plans of task ``scheduling``: jobs, when they arrive, and how long their tasks take, loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cluster_sim.alibaba import AlibabaFormatError, AlibabaLibrary, read_alibaba
from cluster_sim.durations import (
    ConstantDurations,
    DrawnDurations,
    DurationModel,
    RecordedDurations,
    WaveDurations,
)
from cluster_sim.episodes import Episode, EpisodeFormatError, read_episode
from cluster_sim.fabric import Fabric
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.jobs import Job, JobError, JobGraph
from cluster_sim.machine import ClusterConfig
from cluster_sim.simulated import MS_PER_SECOND, SimulationConfig
from cluster_sim.tpch import TpchFormatError, TpchLibrary
from cluster_sim.workload import JobLibrary, make_workload
from player.trace import Trace
from testbed.builtin import BUILTIN_PREFIX, DataNotFound, resolve_path, resolve_traces
from testbed.experiment_base import ConfigError
from testbed.experiment_sections import ArmConfig
from testbed.scheduling_experiment import SchedulingExperiment
from testbed.session_records import scheduling_unit
from testbed.sessions import Plan

#: Jobs that need no data; a library numbers its jobs, so every workload has one of its own.
BUILTIN_JOBS: Mapping[str, Callable[[], JobLibrary]] = MappingProxyType(
    {"tpch-like": GeneratedLibrary}
)


@dataclass(frozen=True, slots=True)
class SchedulingSession:
    """One arm on the jobs of one seed.

    Attributes:
        number: position in the experiment's list of sessions.
        arm: the arm.
        seed: of jobs, arrivals and durations.
        is_recorded: whether it is kept who ran what when.
    """

    number: int
    arm: ArmConfig
    seed: int
    is_recorded: bool

    @property
    def client(self) -> int:
        """Nothing is shared."""
        return 0

    @property
    def group(self) -> str:
        """Nothing is shared."""
        return self.arm.label

    @property
    def unit(self) -> str:
        """What it is played on, equal for all arms."""
        return scheduling_unit(self.seed)


@dataclass(frozen=True)
class SchedulingPlan(Plan):
    """An experiment with its jobs.

    Attributes:
        workloads: by seed; with a network, their bytes are those that really move.
        episode: the recorded run that is repeated; None: durations are drawn.
        link_traces: what the links of executors follow, as in their files; none: they are constant.
        data_dir: what ``data:`` stood for.
        base: folder that relative paths started from.
    """

    experiment: SchedulingExperiment
    sessions: tuple[SchedulingSession, ...]
    workloads: Mapping[int, tuple[Job, ...]]
    episode: Episode | None
    link_traces: tuple[Trace, ...]
    data_dir: Path | None
    base: Path

    @property
    def executors(self) -> int:
        """Of the cluster."""
        return self.experiment.executors if self.episode is None else self.episode.executors

    @property
    def fabric(self) -> Fabric | None:
        """The network between executors, in the cluster's time; None: bytes take no time."""
        settings = self.experiment.fabric_settings
        return None if settings is None else settings.fabric(self.executors, self.link_traces)

    @property
    def simulation(self) -> SimulationConfig:
        """The simulated cluster."""
        experiment, episode = self.experiment, self.episode
        cluster = experiment.cluster
        speculation = None if cluster.speculation is None else cluster.speculation.config
        return SimulationConfig(
            cluster=ClusterConfig(
                executors=self.executors,
                speculation=speculation,
            ),
            moving_delay_ms=(
                cluster.moving_delay_s * MS_PER_SECOND
                if episode is None
                else episode.moving_delay_ms
            ),
            decision_ms=experiment.decision_ms,
            outages=tuple(one.outage for one in cluster.outages),
        )

    def durations(self, seed: int) -> DurationModel:
        """How long tasks take in a session with this seed: the same for all arms."""
        if self.episode is not None:
            return RecordedDurations(self.episode.draws)
        disturbances = self.experiment.cluster.disturbances
        return DrawnDurations(self.workloads[seed], seed=seed, disturbances=disturbances)


def plan_scheduling(
    experiment: SchedulingExperiment, data_dir: Path | None, base: Path
) -> SchedulingPlan:
    """Loads jobs, draws the workload of every seed, and lists the sessions.

    Args:
        experiment: the checked experiment.
        data_dir: what ``data:`` stands for.
        base: folder that relative paths start from.

    Raises:
        ConfigError, DataNotFound, TraceFormatError, UnknownController: what is wrong, and where.
    """
    experiment.check_controllers()
    seeds = experiment.session_seeds
    episode = None
    if experiment.episode is None:
        workloads = _workloads(experiment, data_dir, base)
    else:
        episode = _episode(resolve_path(experiment.episode, data_dir, base))
        workloads = {seeds[0]: episode.jobs}
    if (settings := experiment.fabric_settings) is not None:
        workloads = {
            seed: with_bytes(jobs, settings.byte_scale) for seed, jobs in workloads.items()
        }
    traces: tuple[Trace, ...] = ()
    if settings is not None and settings.traces is not None:
        hosts = experiment.executors if episode is None else episode.executors
        traces = resolve_traces(settings.traces, data_dir, base, limit=hosts)
    pairs = [(seed, arm) for seed in seeds for arm in experiment.arms]
    recorded = experiment.recorded_seeds
    return SchedulingPlan(
        experiment,
        tuple(
            SchedulingSession(number, arm, seed, seed in recorded)
            for number, (seed, arm) in enumerate(pairs)
        ),
        workloads,
        episode,
        traces,
        data_dir,
        base,
    )


def with_bytes(jobs: Sequence[Job], factor: float) -> tuple[Job, ...]:
    """The same jobs with other sizes of their shuffles."""
    scaled: dict[int, JobGraph] = {}  # by identity: jobs share graphs
    for job in jobs:
        if id(job.graph) not in scaled:
            edges = (
                dataclasses.replace(edge, shuffle_bytes=round(edge.shuffle_bytes * factor))
                for edge in job.graph.edges
            )
            scaled[id(job.graph)] = JobGraph(job.graph.name, job.graph.stages, tuple(edges))
    return tuple(dataclasses.replace(job, graph=scaled[id(job.graph)]) for job in jobs)


def _episode(path: Path) -> Episode:
    try:
        return read_episode(path)
    except (EpisodeFormatError, JobError) as error:
        raise ConfigError(f"episode: {error}") from error
    except OSError as error:
        raise ConfigError(f"episode: {path}: {error.strerror}") from error


def _workloads(
    experiment: SchedulingExperiment, data_dir: Path | None, base: Path
) -> dict[int, tuple[Job, ...]]:
    try:
        if experiment.jobs.startswith(BUILTIN_PREFIX):
            make = _builtin_library(experiment.jobs.removeprefix(BUILTIN_PREFIX))
        else:
            path = resolve_path(experiment.jobs, data_dir, base)
            if not path.is_dir():
                return _of_trace(experiment, path)
            queries = TpchLibrary(path)
            make = lambda: queries  # noqa: E731  it keeps what it has read
        _require_no_trace(experiment)
        return {seed: _drawn(experiment, make(), seed) for seed in experiment.session_seeds}
    except (TpchFormatError, AlibabaFormatError, JobError) as error:
        raise ConfigError(f"jobs: {error}") from error
    except OSError as error:
        raise ConfigError(f"jobs: {experiment.jobs}: {error.strerror}") from error


def _builtin_library(name: str) -> Callable[[], JobLibrary]:
    if name not in BUILTIN_JOBS:
        raise DataNotFound(
            f"no built-in jobs {name!r}; there are "
            + ", ".join(BUILTIN_PREFIX + known for known in BUILTIN_JOBS)
        )
    return BUILTIN_JOBS[name]


def _of_trace(experiment: SchedulingExperiment, path: Path) -> dict[int, tuple[Job, ...]]:
    """Workloads of a trace: the jobs as they came, or drawn from among them."""
    try:
        trace = read_alibaba(path, limit=experiment.limit)
    except UnicodeDecodeError as error:
        raise AlibabaFormatError(f"{path}: is no text: {error}") from error
    if experiment.arrivals != "recorded":
        library = AlibabaLibrary(trace)
        return {seed: _drawn(experiment, library, seed) for seed in experiment.session_seeds}
    if len(trace) < experiment.num_jobs:
        raise ConfigError(
            f"num_jobs: {path} has {len(trace)} whole jobs, asked for {experiment.num_jobs}"
        )
    jobs = _warmed(trace[: experiment.num_jobs], experiment.cluster.warmup_s)
    return dict.fromkeys(experiment.session_seeds, jobs)


def _require_no_trace(experiment: SchedulingExperiment) -> None:
    if experiment.arrivals == "recorded":
        raise ConfigError(
            f"arrivals: {experiment.jobs} has no recorded arrivals; there are poisson, bursty"
        )
    if experiment.limit is not None:
        raise ConfigError(f"limit: of jobs read from a trace; {experiment.jobs} is none")


def _drawn(experiment: SchedulingExperiment, library: JobLibrary, seed: int) -> tuple[Job, ...]:
    jobs = make_workload(
        library,
        experiment.drawn_arrivals(),
        num_jobs=experiment.num_jobs,
        rng=np.random.default_rng(seed),
    )
    return _warmed(jobs, experiment.cluster.warmup_s)


def _warmed(jobs: tuple[Job, ...], warmup_s: float | None) -> tuple[Job, ...]:
    """The jobs with another warm-up; as they are for None."""
    if warmup_s is None:
        return jobs
    warmed: dict[int, JobGraph] = {}  # by identity: jobs share graphs
    for job in jobs:
        if id(job.graph) not in warmed:
            warmed[id(job.graph)] = _with_warmup(job.graph, warmup_s * MS_PER_SECOND)
    return tuple(dataclasses.replace(job, graph=warmed[id(job.graph)]) for job in jobs)


def _with_warmup(graph: JobGraph, warmup_ms: float) -> JobGraph:
    stages = []
    for stage in graph.stages:
        durations = stage.durations
        if isinstance(durations, WaveDurations | ConstantDurations):
            durations = dataclasses.replace(durations, warmup_ms=warmup_ms)
        stages.append(dataclasses.replace(stage, durations=durations))
    return JobGraph(graph.name, tuple(stages), graph.edges)
