"""Numbers that the encoders take, per step, as a function of the observation and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.tokens import window_start
from player.observation import KILOBITS_PER_BYTE, UPCOMING_LIMIT, AbrObservation, PastChunk
from player.vectorised import Observations
from player.video import Video

Float32Array = NDArray[np.float32]

#: Past chunks in the throughput and download tokens of one step.
PAST_CHUNKS = 8
#: Units that bring the features near 1.
KBPS_UNIT = 1000.0
BUFFER_UNIT_S = 10.0
DOWNLOAD_UNIT_S = 4.0
#: Videos longer than Pensieve's look like its beginning until the end comes near.
CHUNKS_LEFT_UNIT = 48.0
#: Limits, so that a stalled link, a local one or an odd ladder stays within reach of training.
MIN_KBPS, MAX_KBPS = 10.0, 100_000.0
MIN_DOWNLOAD_S, MAX_DOWNLOAD_S = 0.01, 100.0
MAX_BUFFER_S = 120.0
MAX_BITRATE_KBPS = 100_000.0
MAX_LOG_SIZE = 10.0
NO_ACTION = -1


@dataclass(frozen=True, slots=True)
class StepFeatures:
    """Features of a run of steps, leading axis S (or B, S).

    Attributes:
        bitrate: ``(…, 1)`` bitrate of the previous chunk, Mbit/s.
        buffer: ``(…, 2)`` buffer in 10 s, and the same saturating at 10 s, where stalls threaten.
        throughput: ``(…, 2, PAST_CHUNKS)`` log throughput, and whether there was a chunk.
        download: ``(…, 2, PAST_CHUNKS)`` log download time in 4 s, and likewise.
        chunks_left: ``(…, 1)`` chunks not yet requested over 48, at most 1.
        sizes: ``(…, UPCOMING_LIMIT, levels)`` log Mbit/s of upcoming chunks, 0 beyond the end.
        action: ``(…,)`` level that was taken; NO_ACTION for the step to decide.
    """

    bitrate: Float32Array
    buffer: Float32Array
    throughput: Float32Array
    download: Float32Array
    chunks_left: Float32Array
    sizes: Float32Array
    action: NDArray[np.int64]

    def __getitem__(self, index: object) -> StepFeatures:
        return StepFeatures(*(getattr(self, field.name)[index] for field in fields(self)))


def stack(features: list[StepFeatures]) -> StepFeatures:
    """Stacks features along a new leading axis."""
    return StepFeatures(
        *(
            np.stack([getattr(one, field.name) for one in features])
            for field in fields(StepFeatures)
        )
    )


def vectorised_features(seen: Observations, video: Video) -> StepFeatures:
    """``(B, …)`` features of B simulated sessions before their next chunk: as ``step_features``.

    Args:
        seen: with at least ``PAST_CHUNKS`` past chunks.
        video: what they play.
    """
    count, known = len(seen.buffer_s), min(seen.known, PAST_CHUNKS)
    throughput = np.zeros((count, 2, PAST_CHUNKS), dtype=np.float32)
    download = np.zeros((count, 2, PAST_CHUNKS), dtype=np.float32)
    if known:
        kbps = np.clip(seen.throughput_kbps[:, -known:], MIN_KBPS, MAX_KBPS)
        seconds = np.clip(seen.download_s[:, -known:], MIN_DOWNLOAD_S, MAX_DOWNLOAD_S)
        throughput[:, 0, -known:], throughput[:, 1, -known:] = np.log(kbps / KBPS_UNIT), 1.0
        download[:, 0, -known:], download[:, 1, -known:] = np.log(seconds / DOWNLOAD_UNIT_S), 1.0
    tens = np.minimum(seen.buffer_s, MAX_BUFFER_S) / BUFFER_UNIT_S
    bitrate = np.minimum(np.asarray(video.levels_kbps)[seen.last_level], MAX_BITRATE_KBPS)
    ahead = min(UPCOMING_LIMIT, seen.chunks_left)
    upcoming = seen.upcoming_sizes_bytes[0, :ahead]  # those of one are those of all
    sizes = np.zeros((UPCOMING_LIMIT, video.levels), dtype=np.float32)
    sizes[:ahead] = _log_mbps(upcoming, video.chunk_s)

    def all_of(value: Any) -> Float32Array:
        row = np.asarray(value, dtype=np.float32)
        return np.repeat(row[None], count, axis=0)

    return StepFeatures(
        bitrate=(bitrate / KBPS_UNIT).astype(np.float32)[:, None],
        buffer=np.stack([tens, np.minimum(tens, 1.0)], axis=1).astype(np.float32),
        throughput=throughput,
        download=download,
        chunks_left=all_of([min(seen.chunks_left / CHUNKS_LEFT_UNIT, 1.0)]),
        sizes=all_of(sizes),
        action=np.full(count, NO_ACTION, dtype=np.int64),
    )


def first_features(video: Video, sessions: int) -> StepFeatures:
    """``(B, …)`` features before chunk 0 of a video, when nothing is known yet."""
    nothing = AbrObservation(
        levels_kbps=video.levels_kbps,
        chunk_s=video.chunk_s,
        chunk_index=0,
        chunks_left=video.chunks,
        buffer_s=0.0,
        upcoming_sizes_bytes=video.sizes_bytes[:UPCOMING_LIMIT],
        history=(),
    )
    return stack([step_features(nothing)] * sessions)


def join_steps(steps: Sequence[StepFeatures]) -> StepFeatures:
    """``(B, S, …)`` features of S steps with ``(B, …)`` each."""
    return StepFeatures(
        *(
            np.stack([getattr(one, field.name) for one in steps], axis=1)
            for field in fields(StepFeatures)
        )
    )


def pad_steps(features: StepFeatures, steps: int) -> StepFeatures:
    """Repeats the last step up to ``steps``; no token looks at a later one."""
    index = np.minimum(np.arange(steps), len(features.action) - 1)
    return features[index]


def step_features(observation: AbrObservation) -> StepFeatures:
    """Features of the step to decide."""
    one = _past_features(
        observation.history, observation.buffer_s, observation.chunks_left, observation
    )
    return StepFeatures(
        *one,
        sizes=_size_features(observation),
        action=np.asarray(NO_ACTION, dtype=np.int64),
    )


def window_features(
    observation: AbrObservation, block: int, *, first: int | None = None
) -> StepFeatures:
    """``(S, …)`` features of the window in which the step is decided, oldest first.

    Past steps are rebuilt from the history; their sizes are unknown and set to 0, which no token
    that matters looks at (see ``adapters.tokens``).

    Args:
        observation: of the step.
        block: steps per block of the window.
        first: leaves out the steps of the window before this one.
    """
    step = observation.chunk_index
    forgotten = step - len(observation.history)
    no_sizes = np.zeros((UPCOMING_LIMIT, observation.levels), dtype=np.float32)
    rows: list[StepFeatures] = []
    for past in range(window_start(step, block) if first is None else first, step):
        history = observation.history[: past - forgotten]
        buffer_s = history[-1].buffer_s if history else 0.0
        one = _past_features(history, buffer_s, observation.chunks_left + step - past, observation)
        action = np.asarray(observation.history[past - forgotten].level, dtype=np.int64)
        rows.append(StepFeatures(*one, sizes=no_sizes, action=action))
    return stack([*rows, step_features(observation)])


def _past_features(
    history: tuple[PastChunk, ...], buffer_s: float, chunks_left: int, observation: AbrObservation
) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array, Float32Array]:
    level = history[-1].level if history else 0
    throughput = np.zeros((2, PAST_CHUNKS), dtype=np.float32)
    download = np.zeros((2, PAST_CHUNKS), dtype=np.float32)
    for slot, past in enumerate(reversed(history[-PAST_CHUNKS:]), start=1):
        kbps = min(max(past.throughput_kbps, MIN_KBPS), MAX_KBPS)
        seconds = min(max(past.download_s, MIN_DOWNLOAD_S), MAX_DOWNLOAD_S)
        throughput[:, -slot] = np.log(kbps / KBPS_UNIT), 1.0
        download[:, -slot] = np.log(seconds / DOWNLOAD_UNIT_S), 1.0
    tens = min(buffer_s, MAX_BUFFER_S) / BUFFER_UNIT_S
    bitrate_kbps = min(observation.levels_kbps[level], MAX_BITRATE_KBPS)
    return (
        np.array([bitrate_kbps / KBPS_UNIT], dtype=np.float32),
        np.array([tens, min(tens, 1.0)], dtype=np.float32),
        throughput,
        download,
        np.array([min(chunks_left / CHUNKS_LEFT_UNIT, 1.0)], dtype=np.float32),
    )


def _size_features(observation: AbrObservation) -> Float32Array:
    sizes = np.zeros((UPCOMING_LIMIT, observation.levels), dtype=np.float32)
    upcoming = np.asarray(observation.upcoming_sizes_bytes)
    sizes[: len(upcoming)] = _log_mbps(upcoming, observation.chunk_s)
    return sizes


def _log_mbps(sizes_bytes: NDArray[np.int64], chunk_s: float) -> NDArray[np.float64]:
    megabits = sizes_bytes * (KILOBITS_PER_BYTE / KBPS_UNIT)
    return np.asarray(np.clip(np.log(megabits) - np.log(chunk_s), -MAX_LOG_SIZE, MAX_LOG_SIZE))
