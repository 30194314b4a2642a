"""What the tiled player requests: tiles, whole or in pieces.

A large tile on its way when the link drops keeps everything else waiting. In pieces that take the
link a moment each, what comes next is decided anew after every one of them; a tile that is not
worth its time any more is left unfinished, which costs what is there of it, but no connection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from player.observation import KILOBITS_PER_BYTE
from player.tile_allocation import LinkEstimate

#: Less is not worth the head of an answer, whatever the link.
MIN_PIECE_BYTES = 8000


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tile that is to be fetched, or what is left of it."""

    chunk: int
    tile: int
    level: int


@dataclass(frozen=True, slots=True)
class Flight:
    """A tile that is being fetched, or a piece of it."""

    chunk: int
    tile: int
    level: int
    size_bytes: int
    requested_s: float


def piece_bytes(
    left_bytes: int, link: LinkEstimate | None, piece_s: float | None, connections: int
) -> int:
    """How much of a tile to request at once.

    Args:
        left_bytes: what has not been requested of it.
        link: what is known of the link; None: nothing, then all is requested.
        piece_s: seconds of the link's time that a piece takes; None: all is requested. More where
            the pieces on the other connections would come in before the next answer begins.
        connections: that download at once.

    Returns:
        All, or one of the fewest equal pieces that are short enough.
    """
    if link is None or piece_s is None:
        return left_bytes
    longest_s = max(piece_s, link.latency_s / max(connections - 1, 1))
    most_bytes = max(link.rate_kbps * longest_s / KILOBITS_PER_BYTE, MIN_PIECE_BYTES)
    return math.ceil(left_bytes / math.ceil(left_bytes / most_bytes))
