"""Giving up a chunk that takes too long, and fetching it at a lower level instead.

After dash.js 5 (``AbandonRequestsRule``), from which the grace time and the 1.8 chunk lengths are
taken, and its safety factor for throughput: the rate is that of this request alone, from its first
bytes on; the lowest level is never given up, no chunk twice; and a request goes on when less is
left of it than the chunk has at the lower level. Departing from it, a request goes on as well
where the buffer lasts until it is in.
"""

from __future__ import annotations

from dataclasses import dataclass

from player.observation import KILOBITS_PER_BYTE
from player.video import Video

#: A driver tells at most that often how much of a chunk is in.
PROGRESS_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A request that is being answered.

    Attributes:
        chunk: its number, from 0.
        level: at which it was asked for.
        received_bytes: how much of it is in.
        measured_bytes: how much of that came after the first bytes.
        measured_s: time since the first bytes.
        buffer_s: seconds of video in the buffer.
    """

    chunk: int
    level: int
    received_bytes: int
    measured_bytes: int
    measured_s: float
    buffer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandonment:
    """When a request is given up.

    Attributes:
        grace_s: not before it has been answered for that long.
        chunk_lengths: not if all of it would take less than that many chunk lengths.
        safety: share of the measured rate that the level fetched instead may have.
    """

    grace_s: float = 0.5
    chunk_lengths: float = 1.8
    safety: float = 0.9

    def level_instead(self, request: UnderWay, video: Video) -> int | None:
        """The lower level to fetch in the place of this request; None: it goes on."""
        if request.level == 0 or request.measured_s <= self.grace_s:
            return None
        sizes_bytes = video.sizes_bytes[request.chunk]
        left_bytes = sizes_bytes[request.level] - request.received_bytes
        whole_s = _seconds(sizes_bytes[request.level], request)
        if whole_s < self.chunk_lengths * video.chunk_s:
            return None
        if _seconds(left_bytes, request) <= request.buffer_s:
            return None
        kbps = request.measured_bytes * KILOBITS_PER_BYTE / request.measured_s
        fitting = [
            level
            for level in range(request.level)
            if video.levels_kbps[level] <= self.safety * kbps
        ]
        instead = max(fitting, default=0)
        return instead if left_bytes > sizes_bytes[instead] else None


def _seconds(size_bytes: int, request: UnderWay) -> float:
    """How long so much takes at the measured rate."""
    if request.measured_bytes == 0:
        return float("inf")
    return size_bytes * request.measured_s / request.measured_bytes
