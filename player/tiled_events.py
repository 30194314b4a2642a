"""What the tiled player is told and what it answers; see ``player/tiled_machine.py``."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from player.machine import Started, Stop, TimerFired, WaitUntil
from player.tile_allocation import LEAST_SHARE, Assumed
from player.tiles import FieldOfView
from player.viewport_observation import Viewport, ViewportObservation

#: A controller.
DecideViewports = Callable[[ViewportObservation], tuple[Viewport, ...]]


class TiledPlayerStateError(RuntimeError):
    """The driver sent an event that the player does not take now, or time ran backwards: a bug."""


class TiledPlayerConfigError(ValueError):
    """Settings that cannot be played with; the message names them."""


class TiledState(enum.Enum):
    """Where playback stands between two events."""

    NEW = enum.auto()
    STARTING = enum.auto()
    PLAYING = enum.auto()
    STALLED = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class ViewportsDecided:
    """The controller, or the fallback in its place, said where the viewer will look."""

    viewports: tuple[Viewport, ...]
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class TileArrived:
    """The last byte of what was requested on this connection is in.

    Attributes:
        connection: from 0.
        first_byte_s: when the first byte of the answer came.
    """

    connection: int
    first_byte_s: float


TiledEvent = Started | ViewportsDecided | TileArrived | TimerFired


@dataclass(frozen=True, slots=True)
class AskViewports:
    """Ask the controller; answer with ViewportsDecided."""

    observation: ViewportObservation
    chunk: int


@dataclass(frozen=True, slots=True)
class FetchTile:
    """Download a tile, or a piece of it, on an idle connection; answer with TileArrived.

    Attributes:
        connection: from 0.
        chunk: number of the chunk.
        tile: number of the tile.
        level: level of the tile.
        size_bytes: to be downloaded.
        first_byte: of the tile, where they begin.
    """

    connection: int
    chunk: int
    tile: int
    level: int
    size_bytes: int
    first_byte: int = 0


TiledCommand = AskViewports | FetchTile | WaitUntil | Stop

EXPECTS: dict[TiledState, frozenset[type[TiledEvent]]] = {
    TiledState.NEW: frozenset({Started}),
    TiledState.STARTING: frozenset({ViewportsDecided, TileArrived}),
    TiledState.PLAYING: frozenset({ViewportsDecided, TileArrived, TimerFired}),
    TiledState.STALLED: frozenset({ViewportsDecided, TileArrived}),
    TiledState.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledPlayerConfig:
    """How the player plays.

    Attributes:
        fov: what the viewer sees at once.
        history: samples that the controller is told, at most.
        horizon: samples ahead that it predicts.
        buffer_cap_s: a chunk is asked for when no more than this lies ahead of its start.
        connections: tiles that are downloaded at once, at most.
        missing: ``blank``: what is not there in time is not shown; ``stall``: playback
            waits for it.
        base: ``seen``: only tiles that may be seen are fetched; ``all``: all of them, at
            least at level 0.
        least_share: of the field of view that a tile must be expected to fill to be fetched ahead.
            Less: fewer blanks, for lower levels of what is seen.
        base_first: whether all tiles that are wanted come at level 0 before any comes at a better
            one, which replaces it: fewer blanks when the link drops, for more bytes.
        safety: share of the time that is left which is planned for.
        refresh_s: with time to spare, predictions that are older than this are asked for again to
            fetch better levels; None: never.
        piece_s: tiles that take longer than this on the whole link are requested in pieces, and
            what comes next is decided anew after each; None: tiles are requested whole.
        assumed: spread of predictions whose controller does not name any.

    Raises:
        TiledPlayerConfigError: a value out of range.
    """

    fov: FieldOfView = field(default_factory=FieldOfView)
    history: int = 10
    horizon: int = 20
    buffer_cap_s: float = 2.0
    connections: int = 4
    missing: Literal["blank", "stall"] = "blank"
    base: Literal["seen", "all"] = "seen"
    least_share: float = LEAST_SHARE
    base_first: bool = False
    safety: float = 0.95
    refresh_s: float | None = 0.4
    piece_s: float | None = 0.1
    assumed: Assumed = field(default_factory=Assumed)

    def __post_init__(self) -> None:
        for name, is_right, range_ in (
            ("history", self.history >= 1, "at least 1"),
            ("horizon", self.horizon >= 1, "at least 1"),
            ("buffer_cap_s", 0 < self.buffer_cap_s < math.inf, "positive"),
            ("connections", self.connections >= 1, "at least 1"),
            ("missing", self.missing in ("blank", "stall"), "blank or stall"),
            ("base", self.base in ("seen", "all"), "seen or all"),
            ("least_share", 0 < self.least_share < 1, "above 0, below 1"),
            ("safety", 0 < self.safety <= 1, "above 0, at most 1"),
            ("refresh_s", self.refresh_s is None or self.refresh_s > 0, "positive or None"),
            ("piece_s", self.piece_s is None or self.piece_s > 0, "positive or None"),
        ):
            if not is_right:
                raise TiledPlayerConfigError(f"{name} must be {range_}: {getattr(self, name)!r}")
