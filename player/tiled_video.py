"""A tiled 360° video as the controller and the link see it: bytes per chunk, tile and level.

Rates are those of the whole sphere: a level of 3,000 kbit/s costs a tile its share of that. The
generated video is a model, not fitted to an encoder: a tile's rate grows with its area on the
sphere and with what happens in it, sky and ground at the poles are cheap, and neighbours are alike
in space and time.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pydantic
from numpy.typing import NDArray

from player.tiles import TileGrid, TilingError
from player.trace import FloatArray

DEFAULT_GRID = TileGrid(rows=4, columns=8)
#: For links of 1 to 5 Mbit/s: a field of view of 100° by 100° touches tiles of 38 % of the sphere
#: (4 by 8 tiles, poses of Jin et al. 2022), so that a perfect prediction buys a level about 2.5
#: times the link's rate, and fetching everything in advance one below it.
DEFAULT_LEVELS_KBPS = (400.0, 1200.0, 3000.0, 6000.0, 12000.0)
DEFAULT_CHUNK_S = 1.0
MIN_CHUNK_S = 0.01
MAX_CHUNK_S = 3600.0
MAX_TABLE_BYTES = 64 * 2**20
MAX_LEVELS = 32
MAX_TILE_BYTES = 2**30
#: Smallest generated tile: below it the headers of a segment would not fit.
MIN_GENERATED_BYTES = 24
BITS_PER_BYTE = 8
BITS_PER_KILOBIT = 1000

# Of the generated content, in units of the logarithm of the rate unless said otherwise.
_SPOTS = 16  # places on the sphere where something happens
_SPOT_SHARPNESS = 6.0  # concentration (von Mises-Fisher) of a spot: about 25° wide
_SPOT_SIGMA = 0.4
_SPOT_CORRELATION_1S = 0.9  # from one second to the next
_SCENE_SIGMA = 0.18  # of the whole picture, as in a video that is not tiled
_SCENE_CORRELATION_1S = 0.9
_TILE_SIGMA = 0.08  # of each tile alone
_LEVEL_SIGMA = 0.04
_POLE_DETAIL = 0.5  # rate per area there, relative to the horizon


class TiledVideoError(ValueError):
    """A table of tile sizes with a hole, a non-number, or levels that do not increase."""


@dataclass(frozen=True)
class TiledVideo:
    """Tile sizes of one video.

    Attributes:
        name: label for reports and the server's paths.
        grid: how the sphere is cut up.
        levels_kbps: nominal bitrate of the whole sphere at each level, increasing.
        chunk_s: seconds of video per chunk.
        sizes_bytes: per chunk and tile, the size in bytes at each level.
    """

    name: str
    grid: TileGrid
    levels_kbps: tuple[float, ...]
    chunk_s: float
    sizes_bytes: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        _check_rates(self.name, self.levels_kbps, self.chunk_s)
        if not self.sizes_bytes:
            raise TiledVideoError(f"{self.name}: the size table is empty")
        tiles, levels = self.grid.tiles, len(self.levels_kbps)
        for chunk, rows in enumerate(self.sizes_bytes):
            if len(rows) != tiles:
                raise TiledVideoError(
                    f"{self.name}: chunk {chunk} has {len(rows)} tiles, a grid of "
                    f"{self.grid.rows} by {self.grid.columns} has {tiles}"
                )
            for tile, sizes in enumerate(rows):
                if len(sizes) != levels:
                    raise TiledVideoError(
                        f"{self.name}: chunk {chunk}, tile {tile} has {len(sizes)} sizes for "
                        f"{levels} levels"
                    )
                if min(sizes) < 1 or max(sizes) > MAX_TILE_BYTES:
                    raise TiledVideoError(
                        f"{self.name}: chunk {chunk}, tile {tile} has a size that is not 1 to "
                        f"{MAX_TILE_BYTES} bytes"
                    )

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.levels_kbps)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.sizes_bytes)

    @property
    def duration_s(self) -> float:
        """Length of the video, seconds."""
        return self.chunks * self.chunk_s

    @cached_property
    def size_array(self) -> NDArray[np.int64]:
        """The sizes once more ``(chunks, tiles, levels)``, read-only."""
        sizes = np.array(self.sizes_bytes, dtype=np.int64)
        sizes.flags.writeable = False
        return sizes

    def first(self, chunks: int) -> TiledVideo:
        """The video cut to its first ``chunks`` chunks.

        Raises:
            TiledVideoError: it has fewer than that.
        """
        if not 1 <= chunks <= self.chunks:
            raise TiledVideoError(f"{self.name} has {self.chunks} chunks, asked for {chunks}")
        return TiledVideo(
            self.name, self.grid, self.levels_kbps, self.chunk_s, self.sizes_bytes[:chunks]
        )


def _check_rates(name: str, levels_kbps: tuple[float, ...], chunk_s: float) -> None:
    if not MIN_CHUNK_S <= chunk_s <= MAX_CHUNK_S:  # false for NaN
        raise TiledVideoError(
            f"{name}: chunk_s must be {MIN_CHUNK_S:g} to {MAX_CHUNK_S:g}, not {chunk_s}"
        )
    if not 1 <= len(levels_kbps) <= MAX_LEVELS:
        raise TiledVideoError(f"{name}: 1 to {MAX_LEVELS} levels, not {len(levels_kbps)}")
    if not all(
        earlier < later < math.inf
        for earlier, later in zip((0.0, *levels_kbps), levels_kbps, strict=False)
    ):
        raise TiledVideoError(f"{name}: levels_kbps must be positive and increase: {levels_kbps}")


@dataclass(frozen=True, slots=True)
class _Table:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    rows: int
    columns: int
    levels_kbps: tuple[float, ...]
    chunk_s: float
    sizes_bytes: tuple[tuple[tuple[int, ...], ...], ...]


@functools.cache
def _table_adapter() -> pydantic.TypeAdapter[_Table]:
    return pydantic.TypeAdapter(_Table)


def write_tile_sizes(video: TiledVideo) -> bytes:
    """The JSON table of tile sizes: ``rows, columns, levels_kbps, chunk_s, sizes_bytes``."""
    table = {
        "rows": video.grid.rows,
        "columns": video.grid.columns,
        "levels_kbps": video.levels_kbps,
        "chunk_s": video.chunk_s,
        "sizes_bytes": video.sizes_bytes,
    }
    return json.dumps(table, separators=(",", ":")).encode()


def parse_tile_sizes(data: bytes, *, name: str, source: str) -> TiledVideo:
    """The video that a JSON table describes.

    Args:
        data: what :func:`write_tile_sizes` writes.
        name: of the video.
        source: file or URL, for messages.

    Raises:
        TiledVideoError: it is malformed; the message says where.
    """
    if len(data) > MAX_TABLE_BYTES:
        raise TiledVideoError(f"{source}: larger than {MAX_TABLE_BYTES} bytes, not a size table")
    try:
        table = _table_adapter().validate_json(data, strict=True)
        grid = TileGrid(table.rows, table.columns)
        return TiledVideo(name, grid, table.levels_kbps, table.chunk_s, table.sizes_bytes)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise TiledVideoError(f"{source}: {where}: {first['msg']}") from error
    except (TiledVideoError, TilingError) as error:
        raise TiledVideoError(f"{source}: {error}") from error


def read_tiled_video(path: Path, *, name: str | None = None) -> TiledVideo:
    """Reads a JSON table of tile sizes; the video is called like the file unless named.

    Raises:
        TiledVideoError: there is no such file, or it is malformed.
    """
    if not path.is_file():
        raise TiledVideoError(f"{path}: no such file; expected a JSON table of tile sizes")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise TiledVideoError(f"{path}: larger than {MAX_TABLE_BYTES} bytes, not a size table")
    return parse_tile_sizes(path.read_bytes(), name=name or path.stem, source=str(path))


def write_tiled_video(video: TiledVideo, path: Path) -> None:
    """Writes the table that :func:`read_tiled_video` reads."""
    path.write_bytes(write_tile_sizes(video))


def generate_tiled_video(
    name: str,
    chunks: int,
    rng: np.random.Generator,
    *,
    grid: TileGrid = DEFAULT_GRID,
    levels_kbps: tuple[float, ...] = DEFAULT_LEVELS_KBPS,
    chunk_s: float = DEFAULT_CHUNK_S,
) -> TiledVideo:
    """A synthetic tiled video.

    The bytes of a chunk follow a factor of the scene, first-order autoregressive in time, and are
    shared among the tiles by area times the complexity of what they show. Its logarithm is a sum of
    smooth spots at random places, whose strengths are autoregressive likewise, and a little noise
    of each tile; it falls towards the poles. Levels are alike but for a little noise. The spots do
    not depend on the grid. Mean rates of the whole sphere equal the nominal ones, up to rounding,
    and a higher level is never smaller.

    Raises:
        TiledVideoError: no chunks, or a ladder or chunk length that is none.
    """
    if chunks < 1:
        raise TiledVideoError(f"{name}: at least 1 chunk, not {chunks}")
    _check_rates(name, levels_kbps, chunk_s)
    places = rng.normal(size=(_SPOTS, 3))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    strengths = _autoregression(rng, (chunks, _SPOTS), _SPOT_CORRELATION_1S**chunk_s) * _SPOT_SIGMA
    scene = _autoregression(rng, (chunks, 1), _SCENE_CORRELATION_1S**chunk_s) * _SCENE_SIGMA

    pitch, yaw = np.radians(grid.centres_deg).T
    centres = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], 1)
    nearness = np.exp(_SPOT_SHARPNESS * (centres @ places.T - 1))  # (tiles, spots)
    noise = rng.normal(0.0, _TILE_SIGMA, size=(chunks, grid.tiles))
    complexity = np.exp(strengths @ nearness.T + noise)  # (chunks, tiles)
    detail = _POLE_DETAIL + (1 - _POLE_DETAIL) * np.cos(pitch)
    shares = grid.solid_angles_sr * detail * complexity
    shares *= np.exp(scene) / shares.sum(axis=1, keepdims=True)
    level_noise = rng.normal(0.0, _LEVEL_SIGMA, size=(chunks, grid.tiles, len(levels_kbps)))
    factor = shares[..., None] * np.exp(level_noise)  # (chunks, tiles, levels)
    factor /= factor.sum(axis=1).mean(axis=0)

    nominal = np.asarray(levels_kbps) * BITS_PER_KILOBIT / BITS_PER_BYTE * chunk_s
    sizes = np.maximum(np.rint(nominal * factor).astype(np.int64), MIN_GENERATED_BYTES)
    table = np.maximum.accumulate(sizes, axis=2).tolist()
    return TiledVideo(
        name, grid, levels_kbps, chunk_s, tuple(tuple(map(tuple, rows)) for rows in table)
    )


def _autoregression(
    rng: np.random.Generator, shape: tuple[int, int], correlation: float
) -> FloatArray:
    """First-order autoregressive along axis 0, stationary, unit variance."""
    shocks = rng.normal(size=shape)
    values = np.empty(shape)
    values[0] = shocks[0]
    for index in range(1, len(values)):
        values[index] = correlation * values[index - 1] + shocks[index] * math.sqrt(
            1 - correlation**2
        )
    return values
