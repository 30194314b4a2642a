"""What an ABR controller is told before each chunk."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

#: Past chunks told to a controller; sessions longer than that show the last ones.
HISTORY_LIMIT = 64
#: Chunks ahead whose sizes are told to a controller.
UPCOMING_LIMIT = 8
KILOBITS_PER_BYTE = 8 / 1000
#: Bounds of what is possible, far beyond any session: within them no controller can overflow.
MAX_LEVELS = 20  # planners search all plans of a few chunks
MAX_CHUNKS = 10**6
MAX_SIZE_BYTES = 10**12
POSITIVE_RANGE = (1e-6, 1e9)  # seconds, kbit/s

_FORBID_UNKNOWN_KEYS = {"extra": "forbid"}  # read by pydantic at the edges


class ObservationError(ValueError):
    """A well-formed observation that no player could have made; ``field`` names the culprit."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class PastChunk:
    """One downloaded chunk.

    Attributes:
        level: rung of the ladder, from 0.
        size_bytes: payload size.
        download_s: from request to last byte.
        rebuffer_s: stall between the arrival of the previous chunk and of this one; for chunk 0
            the start-up time, as in Pensieve.
        buffer_s: buffer once the chunk was in and any wait for the buffer cap was over.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    level: int
    size_bytes: int
    download_s: float
    rebuffer_s: float
    buffer_s: float

    @property
    def throughput_kbps(self) -> float:
        """Application throughput, kbit/s, request time included."""
        return self.size_bytes * KILOBITS_PER_BYTE / self.download_s


@dataclass(frozen=True, slots=True)
class AbrObservation:
    """State of a session just before chunk ``chunk_index`` is requested.

    Attributes:
        levels_kbps: the ladder, increasing.
        chunk_s: seconds of video per chunk.
        chunk_index: the chunk to decide, from 0.
        chunks_left: chunks not yet requested, this one included.
        buffer_s: seconds of video in the buffer.
        upcoming_sizes_bytes: sizes per level of this chunk and up to 7 more.
        history: past chunks, oldest first, at most the last 64.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    levels_kbps: tuple[float, ...]
    chunk_s: float
    chunk_index: int
    chunks_left: int
    buffer_s: float
    upcoming_sizes_bytes: tuple[tuple[int, ...], ...]
    history: tuple[PastChunk, ...]

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.levels_kbps)

    @property
    def last_level(self) -> int:
        """Level of the previous chunk; 0 before the first."""
        return self.history[-1].level if self.history else 0


def check_observation(observation: AbrObservation) -> None:
    """Raises :class:`ObservationError` for values that cannot occur in a session.

    Types are the reader's business (pydantic at the HTTP edge); this checks meaning.
    """
    ladder = observation.levels_kbps
    _require(1 <= len(ladder) <= MAX_LEVELS, "levels_kbps", f"must hold 1 to {MAX_LEVELS} levels")
    for value in ladder:
        _require(_is_positive(value), "levels_kbps", "must be 1e-6 to 1e9")
    if any(later <= earlier for earlier, later in itertools.pairwise(ladder)):
        raise ObservationError("levels_kbps", "must increase")
    _require(_is_positive(observation.chunk_s), "chunk_s", "must be 1e-6 to 1e9")
    _require(0 <= observation.chunk_index < MAX_CHUNKS, "chunk_index", "must be 0 to 1e6")
    _require(1 <= observation.chunks_left <= MAX_CHUNKS, "chunks_left", "must be 1 to 1e6")
    _require(_is_duration(observation.buffer_s), "buffer_s", "must be 0 to 1e9")
    upcoming = observation.upcoming_sizes_bytes
    _require(
        1 <= len(upcoming) <= min(UPCOMING_LIMIT, observation.chunks_left),
        "upcoming_sizes_bytes",
        f"must hold 1 to {UPCOMING_LIMIT} chunks and no more than chunks_left",
    )
    for row in upcoming:
        _require(len(row) == len(ladder), "upcoming_sizes_bytes", "needs one size per level")
        for size_bytes in row:
            _require(_is_size(size_bytes), "upcoming_sizes_bytes", "sizes must be 1 to 1e12")
    _require(
        len(observation.history) == min(observation.chunk_index, HISTORY_LIMIT),
        "history",
        f"must hold all chunks so far, or the last {HISTORY_LIMIT}",
    )
    for past in observation.history:
        _require(0 <= past.level < len(ladder), "history.level", "is off the ladder")
        _require(_is_size(past.size_bytes), "history.size_bytes", "must be 1 to 1e12")
        _require(_is_positive(past.download_s), "history.download_s", "must be 1e-6 to 1e9")
        _require(_is_duration(past.rebuffer_s), "history.rebuffer_s", "must be 0 to 1e9")
        _require(_is_duration(past.buffer_s), "history.buffer_s", "must be 0 to 1e9")


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise ObservationError(field, message)


def _is_positive(value: float) -> bool:
    least, most = POSITIVE_RANGE
    return least <= value <= most  # false for NaN


def _is_duration(value: float) -> bool:
    return 0 <= value <= POSITIVE_RANGE[1]


def _is_size(value: int) -> bool:
    return 0 < value <= MAX_SIZE_BYTES
