"""What the page tells about a session, checked, and the records that are made of it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic

from player.observation import KILOBITS_PER_BYTE
from player.qoe import QoeWeights, chunk_qoe
from player.records import ChunkRecord
from player.video import Video


class PageError(RuntimeError):
    """The page told something that cannot be, or gave up; the message says what."""


@dataclass(frozen=True, slots=True)
class ToldChunk:
    """One chunk as the page tells it; attributes as those of :class:`ChunkRecord`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    index: int
    level: int
    size_bytes: int
    requested_s: float
    download_s: float
    buffer_s: float
    rebuffer_s: float
    decision_s: float
    fallback: bool
    wait_s: float
    latency_s: float | None = None


@functools.cache
def _adapter() -> pydantic.TypeAdapter[ToldChunk]:
    return pydantic.TypeAdapter(ToldChunk)


def read_chunk(
    document: object, video: Video, previous: ChunkRecord | None, weights: QoeWeights
) -> ChunkRecord:
    """The record of a chunk.

    Args:
        document: what the page told.
        video: what it plays.
        previous: record of the chunk before; None for chunk 0.
        weights: of the QoE.

    Raises:
        PageError: it is malformed, out of order, or not a chunk of the video.
    """
    try:
        told = _adapter().validate_json(json.dumps(document), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise PageError(f"the page told a chunk with {where}: {first['msg']}") from error
    expected = 0 if previous is None else previous.index + 1
    if told.index != expected or not expected < video.chunks:
        raise PageError(f"the page told chunk {told.index}, expected was {expected}")
    if not 0 <= told.level < video.levels:
        raise PageError(f"chunk {told.index}: level {told.level} is not one of the ladder")
    if told.size_bytes != (size_bytes := video.sizes_bytes[told.index][told.level]):
        raise PageError(f"chunk {told.index}: {told.size_bytes} bytes, not {size_bytes}")
    times_s = (told.requested_s, told.buffer_s, told.rebuffer_s, told.decision_s, told.wait_s)
    if min(*times_s, told.latency_s or 0.0) < 0 or told.download_s <= 0:
        raise PageError(f"chunk {told.index}: a time that is negative")
    bitrate_kbps = video.levels_kbps[told.level]
    return ChunkRecord(
        index=told.index,
        level=told.level,
        bitrate_kbps=bitrate_kbps,
        size_bytes=told.size_bytes,
        requested_s=told.requested_s,
        download_s=told.download_s,
        throughput_kbps=told.size_bytes * KILOBITS_PER_BYTE / told.download_s,
        buffer_s=told.buffer_s,
        rebuffer_s=told.rebuffer_s,
        decision_s=told.decision_s,
        fallback=told.fallback,
        qoe=chunk_qoe(
            bitrate_kbps,
            previous.bitrate_kbps if previous is not None else bitrate_kbps,
            told.rebuffer_s,
            weights,
        ),
        wait_s=told.wait_s,
        latency_s=told.latency_s,
    )
