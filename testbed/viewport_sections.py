"""The sections of an experiment file that only task ``viewport`` has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from player.tile_allocation import LEAST_SHARE
from player.tiled_video import DEFAULT_CHUNK_S, DEFAULT_GRID, DEFAULT_LEVELS_KBPS
from player.tiles import FieldOfView, TileGrid
from player.viewport_observation import MAX_EARLIER_VIEWERS
from testbed.experiment_sections import FORBID_UNKNOWN


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """``[predict]``: what is predicted from what; samples are 0.2 s apart.

    Attributes:
        history: samples that the controller is told.
        horizon: samples ahead that it predicts.
        step: samples from one evaluated window to the next; ``offline`` only.
        earlier_viewers: whose motion of the same video the controller is told: ``none``;
            ``rest``: the users of the folder that ``users`` does not name; or these users.
        earlier_limit: at most so many of them, the first ones.
        batch: windows that a controller which can is asked about at once; ``offline`` only.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    history: int = 10
    horizon: int = 20
    step: int = 15
    earlier_viewers: Literal["none", "rest"] | tuple[int, ...] = "none"
    earlier_limit: int = MAX_EARLIER_VIEWERS
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """``[tiles]``: how the sphere is cut up, and what is seen of it at once.

    Attributes:
        rows: of tiles, from the top down.
        columns: of tiles, around the horizon.
        levels_kbps: rate of the whole sphere at each level.
        chunk_s: length of a chunk.
        sizes: bytes of each tile: ``builtin:NAME``, or ``data:PATH`` or a path of a table, or of a
            folder with a table ``videoVV.json`` for each video.
        fov_width_deg: width of the field of view.
        fov_height_deg: its height.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    rows: int = DEFAULT_GRID.rows
    columns: int = DEFAULT_GRID.columns
    levels_kbps: tuple[float, ...] = DEFAULT_LEVELS_KBPS
    chunk_s: float = DEFAULT_CHUNK_S
    sizes: str = "builtin:spots"
    fov_width_deg: float = 100.0
    fov_height_deg: float = 100.0

    @property
    def grid(self) -> TileGrid:
        """The grid."""
        return TileGrid(self.rows, self.columns)

    @property
    def fov(self) -> FieldOfView:
        """The field of view."""
        return FieldOfView(self.fov_width_deg, self.fov_height_deg)


@dataclass(frozen=True, kw_only=True)
class TiledPlayerSettings:
    """``[player]`` of a tiled player; see :class:`player.tiled_events.TiledPlayerConfig`.

    Attributes:
        buffer_cap_s: a chunk is asked for when no more than this lies ahead of its start.
        connections: tiles that are downloaded at once, at most.
        missing: ``blank``: what is not there in time is not shown; ``stall``: playback waits.
        base: ``seen``: only tiles that may be seen are fetched; ``all``: all, at least at level 0.
        least_share: of the field of view that a tile must be expected to fill to be fetched ahead.
        base_first: whether level 0 of all of those comes before any better level.
        safety: share of the time that is left which is planned for.
        piece_s: tiles that take longer than this on the whole link come in pieces; 0: never.
        refresh_s: age at which a prediction is asked for again, with time to spare; 0: never.
        decision_timeout_s: longest wait for a decision, emulated runs.
        fallback: controller that decides when the asked one does not answer in time, or in
            ``offline`` runs what is no answer; without one the session fails.
        chunk_timeout_s: longest wait for one tile, emulated runs.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    buffer_cap_s: float = 2.0
    connections: int = 4
    missing: Literal["blank", "stall"] = "blank"
    base: Literal["seen", "all"] = "seen"
    least_share: float = LEAST_SHARE
    base_first: bool = False
    safety: float = 0.95
    piece_s: float = 0.1
    refresh_s: float = 0.4
    decision_timeout_s: float = 5.0
    fallback: str | None = None
    chunk_timeout_s: float = 300.0
