"""Experience pools: recorded sessions as columns, from which every observation can be rebuilt.

A pool is a folder: ``pool.json`` (format, videos, how it was made), ``episodes.parquet`` (one row
per session) and ``chunks.parquet`` (one row per chunk, in order). Episodes keep their borders, so
no training window crosses them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pydantic
from numpy.typing import NDArray

from player.observation import HISTORY_LIMIT, UPCOMING_LIMIT, AbrObservation, PastChunk
from player.records import SessionRecord
from player.trace import FloatArray
from player.video import Video, VideoFormatError

POOL_FORMAT = "netllm-testbed pool 1"
TASK = "abr"
DESCRIPTION_FILE = "pool.json"
EPISODES_FILE = "episodes.parquet"
CHUNKS_FILE = "chunks.parquet"
NO_LABEL = -1

IntArray = NDArray[np.int64]
Decide = Callable[[AbrObservation], int]

EPISODE_COLUMNS = {
    "episode": pl.UInt32,
    "video": pl.UInt32,
    "arm": pl.String,
    "controller": pl.String,
    "trace": pl.String,
    "seed": pl.Int64,
    "start_index": pl.Int64,
}
CHUNK_COLUMNS = {
    "episode": pl.UInt32,
    "index": pl.UInt32,
    "level": pl.Int16,
    "size_bytes": pl.Int64,
    "download_s": pl.Float64,
    "rebuffer_s": pl.Float64,
    "buffer_s": pl.Float64,
    "qoe": pl.Float64,
    "expert": pl.Int16,
}
VALUE_PREFIX = "value_"


class PoolError(ValueError):
    """A pool that is missing, malformed or empty; the message names file and column."""


@dataclass(frozen=True)
class Episode:
    """One session, arrays over its chunks.

    Attributes:
        video: what was played.
        arm: label of the arm that played.
        controller: its controller.
        trace: name of the trace.
        seed: seed of the run.
        start_index: where in the trace it started.
        level: ``(n,)`` levels taken.
        size_bytes: ``(n,)``.
        download_s: ``(n,)``.
        rebuffer_s: ``(n,)``.
        buffer_s: ``(n,)`` buffer behind each chunk.
        qoe: ``(n,)`` QoE of each chunk.
        expert: ``(n,)`` level that an expert takes in the same state; NO_LABEL if none was asked.
        values: ``(n, levels)`` what each level would have been worth in hindsight; NaN if unknown.
    """

    video: Video
    arm: str
    controller: str
    trace: str
    seed: int
    start_index: int
    level: IntArray
    size_bytes: IntArray
    download_s: FloatArray
    rebuffer_s: FloatArray
    buffer_s: FloatArray
    qoe: FloatArray
    expert: IntArray
    values: FloatArray

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.level)

    @property
    def source(self) -> str:
        """What a validation split must not tear apart: the trace."""
        return self.trace

    def observation(self, index: int) -> AbrObservation:
        """What the controller was told before chunk ``index``."""
        past = slice(max(0, index - HISTORY_LIMIT), index)
        columns = (self.level, self.size_bytes, self.download_s, self.rebuffer_s, self.buffer_s)
        rows = zip(*(column[past].tolist() for column in columns), strict=True)
        return AbrObservation(
            levels_kbps=self.video.levels_kbps,
            chunk_s=self.video.chunk_s,
            chunk_index=index,
            chunks_left=self.video.chunks - index,
            buffer_s=float(self.buffer_s[index - 1]) if index else 0.0,
            upcoming_sizes_bytes=self.video.sizes_bytes[index : index + UPCOMING_LIMIT],
            history=tuple(PastChunk(*row) for row in rows),
        )


@dataclass(frozen=True)
class Pool:
    """Episodes and how they came about.

    Attributes:
        episodes: the sessions.
        made_by: free description for the checkpoint's card: command, experiment, expert.
    """

    episodes: tuple[Episode, ...]
    made_by: tuple[str, ...] = ()

    @property
    def chunks(self) -> int:
        """Number of chunks in all."""
        return sum(episode.chunks for episode in self.episodes)

    @property
    def has_expert(self) -> bool:
        """Whether every decision has an expert's label."""
        return all((episode.expert[1:] != NO_LABEL).all() for episode in self.episodes)

    @property
    def has_values(self) -> bool:
        """Whether every decision has its values in hindsight."""
        return all(np.isfinite(episode.values[1:]).all() for episode in self.episodes)


@dataclass(frozen=True)
class PlayedSession:
    """A session and the video that it played, as :func:`pool_from_sessions` takes it."""

    video: Video
    record: SessionRecord


Expert = Callable[[PlayedSession], Decide]
Values = Callable[[PlayedSession], FloatArray]


def pool_from_sessions(
    sessions: Iterable[PlayedSession],
    *,
    expert: Expert | None = None,
    values: Values | None = None,
    made_by: Sequence[str] = (),
) -> Pool:
    """Makes a pool; failed sessions and those of fewer than two chunks are left out.

    Args:
        sessions: what was played, by any arms.
        expert: makes, for a session, the expert that is asked in each of its states.
        values: gives, for a session, ``(chunks, levels)`` values in hindsight.
        made_by: lines for :attr:`Pool.made_by`.

    Raises:
        PoolError: no session is left, or the expert or the values do not fit a session.
    """
    episodes = tuple(
        _episode(session, expert, values)
        for session in sessions
        if session.record.status == "ok" and len(session.record.chunks) > 1
    )
    if not episodes:
        raise PoolError("no finished session of two chunks or more to make a pool from")
    return Pool(episodes, tuple(made_by))


def _episode(session: PlayedSession, expert: Expert | None, values: Values | None) -> Episode:
    video, record = session.video, session.record
    chunks = record.chunks
    if len(chunks) > video.chunks:
        raise PoolError(
            f"a session on {record.trace} has {len(chunks)} chunks, its video {video.chunks}"
        )
    shape = (len(chunks), video.levels)
    worth = np.full(shape, np.nan) if values is None else np.asarray(values(session), dtype=float)
    if worth.shape != shape:
        raise PoolError(f"values of shape {worth.shape} for a session of {shape}")
    episode = Episode(
        video=video,
        arm=record.arm,
        controller=record.controller,
        trace=record.trace,
        seed=record.seed,
        start_index=record.start_index,
        level=np.array([chunk.level for chunk in chunks], dtype=np.int64),
        size_bytes=np.array([chunk.size_bytes for chunk in chunks], dtype=np.int64),
        download_s=np.array([chunk.download_s for chunk in chunks]),
        rebuffer_s=np.array([chunk.rebuffer_s for chunk in chunks]),
        buffer_s=np.array([chunk.buffer_s for chunk in chunks]),
        qoe=np.array([chunk.qoe for chunk in chunks]),
        expert=np.full(len(chunks), NO_LABEL, dtype=np.int64),
        values=worth,
    )
    if expert is None:
        return episode
    decide = expert(session)
    labels = [NO_LABEL, *(decide(episode.observation(index)) for index in range(1, len(chunks)))]
    if any(not 0 <= label < video.levels for label in labels[1:]):
        raise PoolError(f"the expert named a level off the ladder for {record.trace}")
    return dataclasses.replace(episode, expert=np.array(labels, dtype=np.int64))


def join_pools(pools: Sequence[Pool]) -> Pool:
    """One pool of all episodes.

    Raises:
        PoolError: no pool is given.
    """
    if not pools:
        raise PoolError("no pool is given")
    return Pool(
        tuple(episode for pool in pools for episode in pool.episodes),
        tuple(line for pool in pools for line in pool.made_by),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """What is in a pool, for people.

    Attributes:
        episodes: number of sessions.
        chunks: number of chunks.
        traces: number of traces.
        levels: ladder sizes that occur.
        has_expert: whether every decision is labelled by an expert.
        has_values: whether every decision has values in hindsight.
        qoe_per_chunk: mean QoE per arm, chunk 0 left out.
        made_by: how the pool was made.
    """

    episodes: int
    chunks: int
    traces: int
    levels: tuple[int, ...]
    has_expert: bool
    has_values: bool
    qoe_per_chunk: dict[str, float]
    made_by: tuple[str, ...]


def describe_pool(pool: Pool) -> PoolSummary:
    """Counts and means."""
    arms: dict[str, list[float]] = {}
    for episode in pool.episodes:
        arms.setdefault(episode.arm, []).append(float(episode.qoe[1:].mean()))
    return PoolSummary(
        episodes=len(pool.episodes),
        chunks=pool.chunks,
        traces=len({episode.trace for episode in pool.episodes}),
        levels=tuple(sorted({episode.video.levels for episode in pool.episodes})),
        has_expert=pool.has_expert,
        has_values=pool.has_values,
        qoe_per_chunk={arm: float(np.mean(qoe)) for arm, qoe in sorted(arms.items())},
        made_by=pool.made_by,
    )


@dataclass(frozen=True)
class _Description:
    format: str
    task: str
    videos: tuple[Video, ...]
    made_by: tuple[str, ...]


def write_pool(pool: Pool, folder: Path) -> None:
    """Writes a pool; the folder is made. ``pool.json`` comes last, so a torn pool is no pool."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
    videos = list(dict.fromkeys(episode.video for episode in pool.episodes))
    place = {video: index for index, video in enumerate(videos)}
    labels = [name for name in EPISODE_COLUMNS if name not in ("episode", "video")]
    rows: dict[str, Any] = {
        "episode": range(len(pool.episodes)),
        "video": [place[episode.video] for episode in pool.episodes],
        **{name: [getattr(episode, name) for episode in pool.episodes] for name in labels},
    }
    pl.DataFrame(rows, schema=EPISODE_COLUMNS).write_parquet(folder / EPISODES_FILE)
    pl.concat(
        [_chunk_frame(number, episode) for number, episode in enumerate(pool.episodes)],
        how="diagonal",
    ).write_parquet(folder / CHUNKS_FILE)
    description = _Description(POOL_FORMAT, TASK, tuple(videos), pool.made_by)
    text = json.dumps(dataclasses.asdict(description), indent=1)
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def _chunk_frame(number: int, episode: Episode) -> pl.DataFrame:
    columns: dict[str, Any] = {
        name: getattr(episode, name) for name in CHUNK_COLUMNS if name not in ("episode", "index")
    }
    count = episode.chunks
    frame = pl.DataFrame(
        {"episode": np.full(count, number), "index": np.arange(count), **columns},
        schema_overrides=CHUNK_COLUMNS,
    ).select(*CHUNK_COLUMNS)
    return frame.with_columns(
        pl.Series(f"{VALUE_PREFIX}{level}", episode.values[:, level], dtype=pl.Float32)
        for level in range(episode.video.levels)
    )


def read_pool(folder: Path) -> Pool:
    """Reads a pool.

    Raises:
        PoolError: a file is missing or malformed; the message names it, and the column or key.
    """
    description = _read_description(folder / DESCRIPTION_FILE)
    meta = _read_frame(folder / EPISODES_FILE, EPISODE_COLUMNS)
    chunks = _read_frame(folder / CHUNKS_FILE, CHUNK_COLUMNS)
    parts = chunks.partition_by("episode", as_dict=True, maintain_order=True)
    episodes = []
    for row in meta.iter_rows(named=True):
        part = parts.get((row.pop("episode"),))
        number = row.pop("video")
        if part is None or number >= len(description.videos):
            raise PoolError(f"{folder / EPISODES_FILE}: an episode lacks its chunks or its video")
        episodes.append(
            _read_episode(part, description.videos[number], row, path=folder / CHUNKS_FILE)
        )
    if not episodes:
        raise PoolError(f"{folder / EPISODES_FILE}: the pool is empty")
    return Pool(tuple(episodes), description.made_by)


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
    except VideoFormatError as error:
        raise PoolError(f"{path}: videos: {error}") from error
    if (description.format, description.task) != (POOL_FORMAT, TASK):
        raise PoolError(
            f"{path}: format {description.format!r}, task {description.task!r}; "
            f"this version reads {POOL_FORMAT!r}, {TASK!r}"
        )
    return description


def _read_frame(path: Path, columns: dict[str, Any]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise PoolError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    for name, dtype in columns.items():
        if name not in frame.columns:
            raise PoolError(f"{path}: column {name!r} is missing")
        if frame[name].dtype != dtype:
            raise PoolError(f"{path}: column {name!r} is {frame[name].dtype}, expected {dtype}")
        if frame[name].null_count():
            raise PoolError(f"{path}: column {name!r} has empty entries")
    return frame


def _read_episode(part: pl.DataFrame, video: Video, row: dict[str, Any], *, path: Path) -> Episode:
    names = [f"{VALUE_PREFIX}{level}" for level in range(video.levels)]
    missing = [name for name in names if name not in part.columns]
    if missing:
        raise PoolError(f"{path}: column {missing[0]!r} is missing")
    count = part.height
    if count > video.chunks or part["index"].to_list() != list(range(count)):
        raise PoolError(f"{path}: column 'index' does not count the chunks of an episode from 0")
    for name in ("size_bytes", "download_s"):
        if not (part[name].is_finite().all() and (part[name] > 0).all()):
            raise PoolError(f"{path}: column {name!r} has a value that is not positive")
    for name in ("rebuffer_s", "buffer_s"):
        if not (part[name].is_finite().all() and (part[name] >= 0).all()):
            raise PoolError(f"{path}: column {name!r} has a value that is negative or not finite")
    if not part["qoe"].is_finite().all():
        raise PoolError(f"{path}: column 'qoe' has a value that is not finite")
    level, expert = part["level"].to_numpy(), part["expert"].to_numpy()
    for name, column, lowest in (("level", level, 0), ("expert", expert, NO_LABEL)):
        if column.min() < lowest or column.max() >= video.levels:
            raise PoolError(f"{path}: column {name!r} is off the ladder of {video.levels}")
    return Episode(
        video=video,
        level=level.astype(np.int64),
        size_bytes=part["size_bytes"].to_numpy(),
        download_s=part["download_s"].to_numpy(),
        rebuffer_s=part["rebuffer_s"].to_numpy(),
        buffer_s=part["buffer_s"].to_numpy(),
        qoe=part["qoe"].to_numpy(),
        expert=expert.astype(np.int64),
        values=part.select(names).to_numpy().astype(np.float64),
        **row,
    )
