"""Experience pools of scheduling: decisions as columns, from which every observation is rebuilt.

A pool is a folder of ``pool.json`` (format, how it was made, checksums), ``episodes.parquet`` (a
row per session), ``decisions.parquet`` (a row per decision that was kept) and ``stages.parquet`` (a
row per unfinished stage of every such decision, with what an expert says of those that may be
chosen: a score, and the logarithm of the share of the cluster that their job may have).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
import pydantic

from adapters.decima_features import Float32Array
from adapters.pools import PoolError
from cluster_sim.observation import Assignment, ClusterView, JobView, StageView

if TYPE_CHECKING:
    from adapters.decima import Ratings

POOL_FORMAT = "netllm-testbed scheduling pool 1"
DESCRIPTION_FILE = "pool.json"
EPISODES_FILE = "episodes.parquet"
DECISIONS_FILE = "decisions.parquet"
STAGES_FILE = "stages.parquet"
NONE = -1  # no job, no stage

EPISODE_COLUMNS: Mapping[str, Any] = {
    "episode": pl.UInt32,
    "arm": pl.String,
    "controller": pl.String,
    "expert": pl.String,
    "seed": pl.Int64,
    "executors": pl.Int32,
    "jobs": pl.Int32,
    "decisions": pl.Int64,
    "mean_jct_s": pl.Float64,
}
DECISION_COLUMNS: Mapping[str, Any] = {
    "episode": pl.UInt32,
    "index": pl.UInt32,
    "time_s": pl.Float64,
    "executors": pl.Int32,
    "committable": pl.Int32,
    "source_job": pl.Int32,
    "job": pl.Int32,
    "stage": pl.Int32,
    "assigned": pl.Int32,
}
STAGE_COLUMNS: Mapping[str, Any] = {
    "episode": pl.UInt32,
    "index": pl.UInt32,
    "job": pl.Int32,
    "arrived_s": pl.Float64,
    "job_executors": pl.Int32,
    "stage": pl.Int32,
    "remaining_tasks": pl.Int32,
    "running_tasks": pl.Int32,
    "expected_task_s": pl.Float64,
    "demand": pl.Int32,
    "is_schedulable": pl.Boolean,
    "parents": pl.List(pl.Int32),
    "score": pl.Float32,
    "log_limit": pl.Float32,
}


class Rater(Protocol):
    """Whoever says of every stage that may be chosen how good it is."""

    def rate(self, view: ClusterView) -> Ratings:
        """Scores and limits, jobs in order of number."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LabelledDecision:
    """A decision and what an expert says.

    Attributes:
        view: what was seen.
        taken: what was decided.
        scores: ``(C,)`` the expert's, of the stages that may be chosen, jobs in order of number.
        log_limits: ``(C,)`` likewise.
    """

    view: ClusterView
    taken: Assignment
    scores: Float32Array
    log_limits: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedEpisode:
    """One session of which decisions were kept.

    Attributes:
        arm: label of the arm that decided.
        controller: its controller.
        expert: who labelled.
        seed: of jobs, arrivals and durations.
        executors: of the cluster.
        jobs: how many.
        decisions: how many there were.
        mean_jct_s: what came of it.
    """

    arm: str
    controller: str
    expert: str
    seed: int
    executors: int
    jobs: int
    decisions: int
    mean_jct_s: float


@dataclass(frozen=True, eq=False)
class SchedulingPool:
    """Episodes and their decisions.

    Attributes:
        episodes: the sessions.
        decisions: ``DECISION_COLUMNS``, in order.
        stages: ``STAGE_COLUMNS``, in order.
        made_by: how it was made.
    """

    episodes: tuple[PlayedEpisode, ...]
    decisions: pl.DataFrame
    stages: pl.DataFrame
    made_by: tuple[str, ...] = ()

    def labelled(self) -> Iterator[tuple[int, LabelledDecision]]:
        """Number of the episode and decision, in order."""
        rows = self.stages.iter_rows()
        row = next(rows, None)
        for episode, index, *decision in self.decisions.iter_rows():
            held: list[tuple[Any, ...]] = []
            while row is not None and row[:2] == (episode, index):
                held.append(row[2:])
                row = next(rows, None)
            yield episode, _rebuilt(decision, held)


class EpisodeColumns:
    """Takes the decisions of one session, one by one."""

    def __init__(self) -> None:
        self._decisions: dict[str, list[Any]] = {name: [] for name in DECISION_COLUMNS}
        self._stages: dict[str, list[Any]] = {name: [] for name in STAGE_COLUMNS}

    def add(self, index: int, decision: LabelledDecision) -> None:
        """Adds a decision, the ``index``-th of its session."""
        view, taken = decision.view, decision.taken
        _append(
            self._decisions,
            (
                *(0, index, view.time_s, view.executors, view.committable),
                *map(_or_none, (view.source_job, taken.job, taken.stage)),
                taken.executors,
            ),
        )
        choices = [
            (job.job, one.stage)
            for job in sorted(view.jobs, key=lambda one: one.job)
            for one in job.stages
            if one.is_schedulable
        ]
        said = dict(
            zip(
                choices,
                zip(decision.scores.tolist(), decision.log_limits.tolist(), strict=True),
                strict=True,
            )
        )
        for job in view.jobs:
            for one in job.stages:
                score, log_limit = said.get((job.job, one.stage), (math.nan, math.nan))
                _append(
                    self._stages,
                    (
                        *(0, index, job.job, job.arrived_s, job.executors),
                        *(one.stage, one.remaining_tasks, one.running_tasks),
                        *(one.expected_task_s, one.demand, one.is_schedulable),
                        *(list(one.parents), score, log_limit),
                    ),
                )

    def frames(self, episode: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Decisions and stages, as those of this episode."""
        decisions = pl.DataFrame(self._decisions, schema=dict(DECISION_COLUMNS))
        stages = pl.DataFrame(self._stages, schema=dict(STAGE_COLUMNS))
        number = pl.lit(episode, dtype=pl.UInt32).alias("episode")
        return decisions.with_columns(number), stages.with_columns(number)


def pool_of_episodes(
    episodes: Sequence[tuple[PlayedEpisode, EpisodeColumns]], *, made_by: Sequence[str] = ()
) -> SchedulingPool:
    """A pool of sessions.

    Raises:
        PoolError: there are none.
    """
    if not episodes:
        raise PoolError("no finished session to make a pool from")
    frames = [columns.frames(number) for number, (_, columns) in enumerate(episodes)]
    return SchedulingPool(
        tuple(played for played, _ in episodes),
        pl.concat([decisions for decisions, _ in frames]),
        pl.concat([stages for _, stages in frames]),
        tuple(made_by),
    )


@dataclass(frozen=True)
class _Description:
    format: str
    task: str
    made_by: tuple[str, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)


def write_scheduling_pool(pool: SchedulingPool, folder: Path) -> None:
    """Writes a pool; the folder is made. ``pool.json`` comes last, so a torn pool is no pool."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
    rows = [
        {"episode": number, **dataclasses.asdict(one)} for number, one in enumerate(pool.episodes)
    ]
    frames = {
        EPISODES_FILE: pl.DataFrame(rows, schema=dict(EPISODE_COLUMNS)),
        DECISIONS_FILE: pool.decisions,
        STAGES_FILE: pool.stages,
    }
    for name, frame in frames.items():
        frame.write_parquet(folder / name)
    description = _Description(
        POOL_FORMAT, "scheduling", pool.made_by, {name: _sha256(folder / name) for name in frames}
    )
    text = json.dumps(dataclasses.asdict(description), indent=1)
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def read_scheduling_pool(folder: Path) -> SchedulingPool:
    """Reads a pool.

    Raises:
        PoolError: a file is missing or malformed; the message names it, and the column or key.
    """
    description = _read_description(folder / DESCRIPTION_FILE)
    episodes, decisions, stages = (
        _read_frame(folder / name, columns, description.sha256)
        for name, columns in (
            (EPISODES_FILE, EPISODE_COLUMNS),
            (DECISIONS_FILE, DECISION_COLUMNS),
            (STAGES_FILE, STAGE_COLUMNS),
        )
    )
    if not episodes.height:
        raise PoolError(f"{folder / EPISODES_FILE}: the pool is empty")
    if decisions["episode"].max() != episodes.height - 1 or episodes["episode"].to_list() != list(
        range(episodes.height)
    ):
        raise PoolError(f"{folder / EPISODES_FILE}: column 'episode' does not count the episodes")
    keys = ["episode", "index"]
    if not stages.select(keys).unique(maintain_order=True).equals(decisions.select(keys)):
        raise PoolError(f"{folder / STAGES_FILE}: column 'index' does not follow {DECISIONS_FILE}")
    said = stages.filter("is_schedulable").select("score", "log_limit")
    if not all(bool(column.is_finite().all()) for column in said):
        raise PoolError(f"{folder / STAGES_FILE}: columns 'score', 'log_limit': not finite")
    return SchedulingPool(
        tuple(PlayedEpisode(**row) for row in episodes.drop("episode").iter_rows(named=True)),
        decisions,
        stages,
        description.made_by,
    )


def join_scheduling_pools(pools: Sequence[SchedulingPool]) -> SchedulingPool:
    """One pool of all episodes.

    Raises:
        PoolError: no pool is given.
    """
    if not pools:
        raise PoolError("no pool is given")
    decisions, stages, before = [], [], 0
    for pool in pools:
        moved = (pl.col("episode") + before).cast(pl.UInt32)
        decisions.append(pool.decisions.with_columns(moved))
        stages.append(pool.stages.with_columns(moved))
        before += len(pool.episodes)
    return SchedulingPool(
        tuple(one for pool in pools for one in pool.episodes),
        pl.concat(decisions),
        pl.concat(stages),
        tuple(dict.fromkeys(line for pool in pools for line in pool.made_by)),
    )


def _rebuilt(decision: Sequence[Any], rows: Iterable[tuple[Any, ...]]) -> LabelledDecision:
    time_s, executors, committable, source_job, job, stage, assigned = decision
    stages: dict[int, list[StageView]] = {}
    figures: dict[int, tuple[float, int]] = {}
    said: list[tuple[int, float, float]] = []
    for (
        number,
        arrived_s,
        supply,
        index,
        remaining,
        running,
        expected_s,
        demand,
        may,
        *rest,
    ) in rows:
        parents, score, log_limit = rest
        figures[number] = arrived_s, supply
        stages.setdefault(number, []).append(
            StageView(index, remaining, running, expected_s, demand, may, tuple(parents))
        )
        if may:
            said.append((number, score, log_limit))
    said.sort(key=lambda one: one[0])  # stages stay in their order
    view = ClusterView(
        time_s,
        executors,
        committable,
        None if source_job == NONE else source_job,
        tuple(JobView(one, *figures[one], tuple(stages[one])) for one in figures),
    )
    taken = Assignment(None if job == NONE else job, None if stage == NONE else stage, assigned)
    return LabelledDecision(
        view,
        taken,
        np.array([score for _, score, _ in said], dtype=np.float32),
        np.array([log_limit for _, _, log_limit in said], dtype=np.float32),
    )


def _append(columns: dict[str, list[Any]], row: Sequence[Any]) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def _or_none(number: int | None) -> int:
    return NONE if number is None else number


def _read_description(path: Path) -> _Description:
    try:
        text = path.read_text(encoding="utf-8")
        description = pydantic.TypeAdapter(_Description).validate_json(text)
    except (OSError, UnicodeDecodeError) as error:
        raise PoolError(f"{path}: cannot be read: {error}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "document"
        raise PoolError(f"{path}: {key}: {first['msg']}") from error
    if (description.format, description.task) != (POOL_FORMAT, "scheduling"):
        raise PoolError(
            f"{path}: format {description.format!r}, task {description.task!r}; "
            f"this version reads {POOL_FORMAT!r}, 'scheduling'"
        )
    return description


def _read_frame(path: Path, columns: Mapping[str, Any], sha256: Mapping[str, str]) -> pl.DataFrame:
    if not path.is_file():
        raise PoolError(f"{path}: missing")
    try:
        if sha256.get(path.name) not in (None, _sha256(path)):
            raise PoolError(
                f"{path}: its checksum is not the one in {DESCRIPTION_FILE}: damaged, or of "
                "another pool; if it was changed on purpose, remove 'sha256' there"
            )
        frame = pl.read_parquet(path, glob=False)
    # Polars panics in some damaged files; that is no PolarsError.
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise PoolError(f"{path}: cannot be read: {problem}") from error
    if dict(frame.schema) != dict(columns):
        raise PoolError(
            f"{path}: columns must be "
            + ", ".join(f"{name} {dtype}" for name, dtype in columns.items())
        )
    for name in columns:
        if frame[name].null_count():
            raise PoolError(f"{path}: column {name!r} has empty entries")
    return frame


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
