"""What is written down about a session: the rows of ``sessions.jsonl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed"]


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """One chunk of one session; times are seconds since the session began.

    Attributes:
        index: chunk number, from 0.
        level: chosen rung of the ladder.
        bitrate_kbps: nominal rate of that rung.
        size_bytes: payload size.
        requested_s: when the request was sent.
        download_s: from request to last byte.
        throughput_kbps: size over ``download_s``.
        buffer_s: buffer once the chunk was in and any wait for the buffer cap was over.
        rebuffer_s: stall since the previous chunk's arrival; chunk 0: the start-up time.
        decision_s: from question to answer.
        fallback: whether the fallback decided because the controller did not answer.
        qoe: QoE-lin of this chunk (see ``player.qoe``).
        wait_s: pause behind this chunk because the buffer was above its cap.
    """

    index: int
    level: int
    bitrate_kbps: float
    size_bytes: int
    requested_s: float
    download_s: float
    throughput_kbps: float
    buffer_s: float
    rebuffer_s: float
    decision_s: float
    fallback: bool
    qoe: float
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRecord:
    """How faithfully the link followed its trace during one session.

    Attributes:
        backend: ``kernel`` or ``userspace``, or ``model:NAME`` for a simulated link.
        wire_nmae_1s: sum of |delivered - asked| over the sum of asked L3 bytes in bins of 1 s,
            over the bins in which the link was saturated; None when there was none.
        total_error: (delivered - asked) / asked over the same bins.
        saturated_s: seconds that these bins cover.
    """

    backend: str
    wire_nmae_1s: float | None = None
    total_error: float | None = None
    saturated_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One session: one arm on one trace; a failed one keeps the chunks it finished."""

    arm: str
    controller: str
    trace: str
    seed: int
    driver: str
    status: Status
    error: str | None
    qoe_per_chunk: float | None
    startup_s: float | None
    wall_s: float
    start_index: int
    link: LinkRecord
    chunks: tuple[ChunkRecord, ...]
