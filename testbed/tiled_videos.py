"""Tiled videos that an experiment names: ``builtin:NAME`` generated, or tables of tile sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from player.head_motion import HeadMotion
from player.tiled_video import TiledVideo, generate_tiled_video, read_tiled_video
from testbed.builtin import BUILTIN_PREFIX, DataNotFound, resolve_path
from testbed.experiment_base import ConfigError
from testbed.viewport_sections import TilesConfig

#: Seeds of the generated contents; every video has one of its own.
TILED_VIDEOS: Mapping[str, int] = MappingProxyType({"spots": 401})
#: Generated videos are whole multiples of this long, so that the same recording always means the
#: same video, however many of its chunks are played.
GENERATED_S = 300.0


def resolve_tiled_videos(
    tiles: TilesConfig, recordings: Sequence[HeadMotion], data_dir: Path | None, base: Path
) -> dict[int | None, TiledVideo]:
    """The video behind each recording, by its number.

    Args:
        tiles: names the sizes and how they are cut up.
        recordings: whose videos are wanted.
        data_dir: what ``data:`` stands for.
        base: folder that relative paths start from.

    Raises:
        ConfigError: a table is of another grid, ladder or chunk length than the experiment says.
        DataNotFound: no such name, file or folder.
        TiledVideoError: a table is malformed, or the ladder is none.
    """
    longest_s: dict[int | None, float] = {}
    for motion in recordings:
        longest_s[motion.video] = max(longest_s.get(motion.video, 0.0), motion.duration_s)
    if tiles.sizes.startswith(BUILTIN_PREFIX):
        name = tiles.sizes.removeprefix(BUILTIN_PREFIX)
        return {
            video: _generate(name, tiles, video, lasts_s) for video, lasts_s in longest_s.items()
        }
    path = resolve_path(tiles.sizes, data_dir, base)
    return {video: _read(path, tiles, video) for video in longest_s}


def _generate(name: str, tiles: TilesConfig, video: int | None, lasts_s: float) -> TiledVideo:
    if name not in TILED_VIDEOS:
        known = ", ".join(BUILTIN_PREFIX + one for one in TILED_VIDEOS)
        raise DataNotFound(f"no built-in tile sizes {name!r}; there are {known}")
    length_s = max(math.ceil(lasts_s / GENERATED_S), 1) * GENERATED_S
    seed = np.random.SeedSequence((TILED_VIDEOS[name], 0 if video is None else video))
    return generate_tiled_video(
        name if video is None else f"{name}-video{video:02d}",
        math.ceil(length_s / tiles.chunk_s),
        np.random.Generator(np.random.PCG64(seed)),
        grid=tiles.grid,
        levels_kbps=tiles.levels_kbps,
        chunk_s=tiles.chunk_s,
    )


def _read(path: Path, tiles: TilesConfig, video: int | None) -> TiledVideo:
    if path.is_dir():
        path = path / (f"video{video:02d}.json" if video is not None else "video.json")
    table = read_tiled_video(path)
    if (table.grid, table.levels_kbps, table.chunk_s) != (
        *(tiles.grid, tiles.levels_kbps),
        tiles.chunk_s,
    ):
        found = dataclasses.asdict(table.grid) | {
            "levels_kbps": list(table.levels_kbps),
            "chunk_s": table.chunk_s,
        }
        told = ", ".join(f"{key} = {value}" for key, value in found.items())
        raise ConfigError(f"tiles: {path} is of another video; it has {told}")
    return table
