"""What is written down about a scheduling session: the rows of its ``sessions.jsonl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from player.records import Status


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of many jobs.

    Attributes:
        mean: over the jobs.
        p50: half of them stay at or below.
        p95: likewise, 95 %.
        p99: likewise, 99 %.
    """

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedJob:
    """A finished job; times are seconds since the session began.

    Attributes:
        id: its number.
        arrived_s: when it arrived.
        finished_s: when its last task was finished.
        jct_s: what lies between.
        name: of its graph.
        stages: how many it has.
        tasks: of all stages.
        work_s: rough executor time that it takes.
        queueing_s: until its first task began; None: not recorded.
    """

    id: int
    arrived_s: float
    finished_s: float
    jct_s: float
    name: str = ""
    stages: int = 0
    tasks: int = 0
    work_s: float = 0.0
    queueing_s: float | None = None


class Stint(NamedTuple):
    """An executor at work for one job without a break; in JSON an array."""

    executor: int
    job: int
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """How a stage was run.

    Attributes:
        stage: its index.
        parents: indices of the stages that it reads.
        tasks: how many.
        busy_s: executor time that they took, attempts in vain included.
        began_s: when its first task began.
        finished_s: when its last one was finished.
    """

    stage: int
    parents: tuple[int, ...]
    tasks: int
    busy_s: float
    began_s: float
    finished_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """How a job was run.

    Attributes:
        job: its number.
        stages: by index.
    """

    job: int
    stages: tuple[StageRun, ...]


class TaskRun(NamedTuple):
    """One attempt at a task that reads over a network; in JSON an array.

    Attributes:
        job: number of the job.
        stage: index of the stage.
        task: index of the task.
        attempt: from 0; above 0 it is a copy, or begun anew after a loss.
        executor: where.
        start_s: when it began to read.
        compute_s: when it had read all; None: it never had.
        end_s: when it ended.
        ended: ``finished``, ``killed`` or ``lost``; one attempt at each task is finished.
        local_bytes: what it read of its own executor's output.
        remote_bytes: what it received from others.
        bytes_per_s: the latter by the time that it read; None: nothing was to be received.
    """

    job: int
    stage: int
    task: int
    attempt: int
    executor: int
    start_s: float
    compute_s: float | None
    end_s: float
    ended: str
    local_bytes: int
    remote_bytes: int
    bytes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """Who ran what when.

    Attributes:
        stints: of all executors, by when they began.
        stages: of the job that took longest, by index.
        longest_job: its number.
        jobs: all of them, by number.
        runs: with a network, every attempt at a task, in the order in which they ended.
    """

    stints: tuple[Stint, ...]
    stages: tuple[StageRun, ...]
    longest_job: int
    jobs: tuple[JobRun, ...] = ()
    runs: tuple[TaskRun, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedTwin:
    """The same session in simulation, with the fluid model of the same network.

    Attributes:
        jct_s: mean job completion time.
        makespan_s: when the last job was finished.
        fetch_s: time that tasks read, over all of them.
    """

    jct_s: float
    makespan_s: float
    fetch_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecord:
    """What a cluster with a network did besides; bytes are those that really move.

    Attributes:
        backend: what made the links: ``kernel``, ``userspace`` or ``model:fluid``.
        planned_bytes: what the tasks that finished were to read.
        local_bytes: what they read of their own executors' output.
        remote_bytes: what they received from others.
        wasted_bytes: what was received in vain.
        wire_bytes: what the hosts' links carried to them, headers and all; None in simulation.
        reruns: tasks begun anew after a loss.
        lost: executors that were lost, in order.
        fetch_s: time that tasks read, over all that finished.
        late_ms: real time by which tasks began late: median, 99th percentile and most.
        held_s: real time in which the cluster's clock stood still, because its driver was behind.
        load: load average of the machine before.
        simulated: the same session in simulation; None: not asked for.
    """

    backend: str
    planned_bytes: int
    local_bytes: int
    remote_bytes: int
    wasted_bytes: int
    wire_bytes: int | None
    reruns: int
    lost: tuple[int, ...]
    fetch_s: float
    late_ms: tuple[float, float, float] | None = None
    held_s: float = 0.0
    load: float | None = None
    simulated: SimulatedTwin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingSessionRecord:
    """One session: one arm on the jobs of one seed.

    Attributes:
        arm: label of the arm.
        controller: its controller.
        seed: of jobs, arrivals and durations.
        driver: ``simulated`` or ``emulated``.
        status: ``ok`` or ``failed``.
        error: why it failed.
        jct_s: job completion time; None for a session that failed, like the following ones.
        makespan_s: when the last job was finished.
        decisions: how many were asked for, those of a failed session until then.
        events: what happened in the cluster, decisions left aside.
        wall_s: real time that the session took.
        executors: of the cluster.
        fallbacks: decisions of the fallback.
        utilisation: share of the executors' time until the last job was finished that they ran
            tasks in; None: not recorded.
        queueing_s: from arrival to the first task; None: not recorded.
        jobs: by number.
        decisions_ms: each decision, milliseconds.
        tasks: who ran what when; None: not recorded.
        network: what a cluster with a network did besides; None: it has none, or failed.
    """

    arm: str
    controller: str
    seed: int
    driver: str
    status: Status
    error: str | None
    jct_s: Spread | None
    makespan_s: float | None
    decisions: int
    events: int
    wall_s: float
    executors: int
    fallbacks: int
    utilisation: float | None
    queueing_s: Spread | None
    jobs: tuple[FinishedJob, ...]
    decisions_ms: tuple[float, ...] = ()
    tasks: TaskRecord | None = None
    network: NetworkRecord | None = None
