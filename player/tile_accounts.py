"""What became of the tiles of one chunk: fetched, shown, looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from player.tile_allocation import MISSING
from player.viewport_observation import HeadPose
from player.viewport_records import PredictedPose, TiledChunkRecord

FloatArray = NDArray[np.float64]
#: Of angles in records: finer than any recording, and short.
DECIMALS = 2


@dataclass(eq=False)
class ChunkAccount:
    """One chunk, from the first question about it to its last byte.

    Attributes:
        index: chunk number.
        levels_kbps: nominal rates of the levels.
        sizes_bytes: of each tile at each level.
        path: ``(ticks, 3)`` where the viewer really looks in the middle of each tick.
        coverage: ``(ticks, tiles)`` what part of the field of view each tile really fills in each
            of the equal ticks that the chunk plays in.
        levels: level of each tile that is there.
        pending: level of each tile that is there or on its way to the last byte.
        predicted: ``(ticks, 5)`` where the viewer was last expected to look; None: unasked.
        shares: share of the field of view that each tile was last expected to fill, likewise.
        asked_s: when it was first asked for, on the player's clock; when it began, if never.
        asked_media_s: position in the video when it was last asked for.
        began: levels when it began to play; None before.
        is_over: whether it has been played.
    """

    index: int
    levels_kbps: Sequence[float]
    sizes_bytes: Sequence[Sequence[int]]
    path: FloatArray
    coverage: FloatArray
    asked_s: float
    predicted: FloatArray | None = None
    shares: FloatArray | None = None
    asked_media_s: float = 0.0
    buffer_s: float = 0.0
    throughput_kbps: float | None = None
    decisions: int = 0
    decision_s: float = 0.0
    fallback: bool = False
    stall_s: float = 0.0
    began: tuple[int, ...] | None = None
    is_over: bool = False
    size_bytes: int = 0
    used_bytes: int = 0
    late_tiles: int = 0
    replaced_tiles: int = 0
    levels: list[int] = field(init=False)
    pending: list[int] = field(init=False)

    def __post_init__(self) -> None:
        tiles = self.coverage.shape[1]
        self.levels = [MISSING] * tiles
        self.pending = [MISSING] * tiles
        self._left = [list(sizes) for sizes in self.sizes_bytes]
        self._coming: dict[tuple[int, int], int] = {}  # bytes of a tile at a level that are not in
        self._unused_bytes = np.zeros(tiles, dtype=np.int64)
        self._shown = np.full(tiles, MISSING)
        self._rates_kbps = np.array([*self.levels_kbps, 0.0])  # the last one for MISSING
        self._level_s = self._rate_s = self._blank_s = self._shown_s = 0.0

    @property
    def left_bytes(self) -> Sequence[Sequence[int]]:
        """Of each tile at each level, what has not been requested yet."""
        return self._left

    def quickest_level(self, tile: int) -> int:
        """The level of which least is left to be requested; of equal ones the best."""
        left = self._left[tile]
        return min(reversed(range(len(left))), key=left.__getitem__)

    def request(self, tile: int, level: int, piece_bytes: int) -> int:
        """The next bytes of a tile are requested; returns the first one's place in the tile."""
        left = self._left[tile]
        first_byte = self.sizes_bytes[tile][level] - left[level]
        left[level] -= piece_bytes
        if not left[level]:
            self.pending[tile] = level
        return first_byte

    def take_in(self, tile: int, level: int, piece_bytes: int) -> None:
        """Some of a tile has arrived.

        Once it is whole, it is shown from now on, unless a better one is there.
        """
        size_bytes = self.sizes_bytes[tile][level]
        self.size_bytes += piece_bytes
        coming = self._coming.get((tile, level), size_bytes) - piece_bytes
        self._coming[tile, level] = coming
        if coming:
            return
        self.late_tiles += self.began is not None
        if level > self.levels[tile]:
            self.replaced_tiles += self.levels[tile] != MISSING
            self.levels[tile] = level
            self._shown[tile] = level
            self._unused_bytes[tile] = size_bytes

    def show(self, tick: int, seconds: float) -> None:
        """What is there is shown for a while, within one tick."""
        seen = self.coverage[tick]
        is_blank = self._shown == MISSING
        self._shown_s += seconds
        self._level_s += seconds * float(seen @ self._shown)
        self._rate_s += seconds * float(seen @ self._rates_kbps[self._shown])
        self._blank_s += seconds * float(seen @ is_blank)
        used = (seen > 0) & ~is_blank
        self.used_bytes += int(self._unused_bytes @ used)
        self._unused_bytes[used] = 0

    def missing(self, tick: int, least_share: float) -> list[int]:
        """Tiles that fill some of the field of view and are not there, the largest share first."""
        seen = self.coverage[tick]
        tiles = np.flatnonzero((seen >= least_share) & (self._shown == MISSING))
        return [int(tile) for tile in tiles[np.argsort(-seen[tiles], kind="stable")]]

    def record(self, began_s: float) -> TiledChunkRecord:
        """All of it; times count from ``began_s``."""
        shown_s = self._shown_s or 1.0
        blank_ratio = min(max(self._blank_s / shown_s, 0.0), 1.0)
        return TiledChunkRecord(
            index=self.index,
            asked_s=self.asked_s - began_s,
            decision_s=self.decision_s,
            decisions=self.decisions,
            fallback=self.fallback,
            levels=self.began or tuple(self.levels),
            final_levels=tuple(self.levels),
            size_bytes=self.size_bytes,
            used_bytes=self.used_bytes,
            throughput_kbps=self.throughput_kbps,
            buffer_s=self.buffer_s,
            stall_s=self.stall_s,
            viewport_level=self._level_s / shown_s,
            viewport_bitrate_kbps=self._rate_s / shown_s,
            blank_ratio=blank_ratio,
            late_tiles=self.late_tiles,
            replaced_tiles=self.replaced_tiles,
            path=tuple(HeadPose(*pose) for pose in self.path.round(DECIMALS).tolist()),
            predicted=()
            if self.predicted is None
            else tuple(PredictedPose(*pose) for pose in self.predicted.round(DECIMALS).tolist()),
        )
