"""Pools on disk: a folder of ``pool.json``, ``episodes.parquet`` and ``chunks.parquet``.

``pool.json`` has the format, the videos, how the pool was made, and the checksums of the others;
``episodes.parquet`` one row per session, ``chunks.parquet`` one row per chunk, in order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pydantic

from adapters.pools import Episode, Pool, PoolError, check_episode
from player.video import Video, VideoFormatError

POOL_FORMAT = "netllm-testbed pool 1"
TASK = "abr"
DESCRIPTION_FILE = "pool.json"
EPISODES_FILE = "episodes.parquet"
CHUNKS_FILE = "chunks.parquet"

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


@dataclass(frozen=True)
class _Description:
    format: str
    task: str
    videos: tuple[Video, ...]
    made_by: tuple[str, ...]
    duplicates_dropped: int = 0
    sha256: Mapping[str, str] = field(default_factory=dict)


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
    description = _Description(
        format=POOL_FORMAT,
        task=TASK,
        videos=tuple(videos),
        made_by=pool.made_by,
        duplicates_dropped=pool.duplicates_dropped,
        sha256={name: _sha256(folder / name) for name in (EPISODES_FILE, CHUNKS_FILE)},
    )
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
    meta = _read_frame(folder / EPISODES_FILE, EPISODE_COLUMNS, description.sha256)
    chunks = _read_frame(folder / CHUNKS_FILE, CHUNK_COLUMNS, description.sha256)
    parts = chunks.partition_by("episode", as_dict=True, maintain_order=True)
    episodes = []
    for row in meta.iter_rows(named=True):
        number, video = row.pop("episode"), row.pop("video")
        part = parts.pop((number,), None)
        if part is None:
            raise PoolError(f"{folder / CHUNKS_FILE}: column 'episode': {number} is missing")
        if video >= len(description.videos):
            raise PoolError(
                f"{folder / EPISODES_FILE}: column 'video': {video} is not one of the "
                f"{len(description.videos)} in {DESCRIPTION_FILE}"
            )
        episodes.append(
            _read_episode(part, description.videos[video], row, path=folder / CHUNKS_FILE)
        )
    if parts:
        raise PoolError(
            f"{folder / CHUNKS_FILE}: column 'episode': {next(iter(parts))[0]} is not in "
            f"{EPISODES_FILE}"
        )
    if not episodes:
        raise PoolError(f"{folder / EPISODES_FILE}: the pool is empty")
    return Pool(tuple(episodes), description.made_by, description.duplicates_dropped)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_frame(path: Path, columns: dict[str, Any], sha256: Mapping[str, str]) -> pl.DataFrame:
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
    for name in names:
        if name not in part.columns:
            raise PoolError(f"{path}: column {name!r} is missing")
        if not part[name].dtype.is_float():
            raise PoolError(f"{path}: column {name!r} is {part[name].dtype}, expected Float32")
    count = part.height
    if not 2 <= count <= video.chunks or part["index"].to_list() != list(range(count)):
        raise PoolError(
            f"{path}: column 'index' does not count the chunks of an episode from 0 to at most "
            f"{video.chunks - 1}"
        )
    episode = Episode(
        video=video,
        level=part["level"].to_numpy().astype(np.int64),
        size_bytes=part["size_bytes"].to_numpy(),
        download_s=part["download_s"].to_numpy(),
        rebuffer_s=part["rebuffer_s"].to_numpy(),
        buffer_s=part["buffer_s"].to_numpy(),
        qoe=part["qoe"].to_numpy(),
        expert=part["expert"].to_numpy().astype(np.int64),
        values=part.select(names).to_numpy().astype(np.float64),
        **row,
    )
    check_episode(episode, where=str(path))
    return episode
