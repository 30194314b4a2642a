"""Planning with a throughput model, whatever its history is read by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adapters.stochastic_planning import Plans, level_values
from adapters.throughput_model import PastThroughput, ThroughputModel, past_throughput
from player.vectorised import Observations
from player.video import Video

#: Chunks ahead. Those whose sizes are not told yet count as the mean of those that are: a plan that
#: ends with them empties the buffer as if nothing came behind.
HORIZON = 24
#: Sessions planned at once: their arrays stay within the processor's cache.
BATCH = 32


def planned_levels(model: ThroughputModel, seen: Observations, video: Video) -> NDArray[np.int64]:
    """Levels for many sessions of :class:`player.vectorised.Sessions`, ``(B,)``.

    They are those of :meth:`Fugu.decide`, up to the rounding of sums, if the sessions observe as
    many past chunks as the network is told.
    """
    if not seen.known:
        return np.zeros(len(seen.buffer_s), dtype=np.int64)
    past = past_throughput(seen.throughput_kbps, seen.download_s, seen.known)
    sizes_bytes = seen.upcoming_sizes_bytes[:, : seen.chunks_left]
    levels = []
    for start in range(0, len(seen.buffer_s), BATCH):
        part = slice(start, start + BATCH)
        values = planned_values(
            model,
            PastThroughput(past.features[part], past.reference_kbps[part]),
            levels_kbps=video.levels_kbps,
            chunk_s=video.chunk_s,
            buffer_s=seen.buffer_s[part],
            last_level=seen.last_level[part],
            sizes_bytes=sizes_bytes[part],
            chunks_left=seen.chunks_left,
        )
        levels.append(values.argmax(axis=1))
    return np.concatenate(levels)


def planned_values(
    model: ThroughputModel,
    past: PastThroughput,
    *,
    levels_kbps: tuple[float, ...],
    chunk_s: float,
    buffer_s: NDArray[np.float64],
    last_level: NDArray[np.int64],
    sizes_bytes: NDArray[np.int64],
    chunks_left: int,
) -> NDArray[np.float32]:
    """``(B, L)`` expected QoE of each level; see :class:`Plans` for the arguments."""
    untold = max(min(HORIZON, chunks_left) - sizes_bytes.shape[1], 0)
    mean = sizes_bytes.mean(axis=1, keepdims=True)
    sizes = np.concatenate([sizes_bytes, np.repeat(mean, untold, axis=1)], axis=1)  # (B, H, L)
    throughput_kbps, first, later = model.predict(past, sizes[:, : model.config.horizon])
    return level_values(
        Plans(
            levels_kbps=np.asarray(levels_kbps),
            chunk_s=chunk_s,
            buffer_s=buffer_s,
            last_level=last_level,
            sizes_bytes=sizes,
            throughput_kbps=throughput_kbps,
            first=first,
            later=later,
        )
    )
