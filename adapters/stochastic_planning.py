"""Planning over a distribution of throughput, by dynamic programming; after Fugu.

Fugu (Yan et al., NSDI 2020) plans by value iteration over the buffer and the last level, with an
independent distribution per chunk ahead. Here the throughput of a chunk may also depend on that of
the chunk before it (a Markov chain over bins of throughput), so that a plan counts on learning how
fast the link is; independent chunks are the case in which all rows of the chain are the same.

Buffers between the points of the grid are interpolated: the values are exact when every download
time, the chunk length and the buffer are multiples of the grid's step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from player.observation import KILOBITS_PER_BYTE
from player.qoe import KBPS_PER_MBPS, PENSIEVE_QOE, QoeWeights

Float32Array = NDArray[np.float32]

#: Points of the buffer's grid per chunk: a chunk that arrives moves by whole points.
POINTS_PER_CHUNK = 4
#: Chunks in the fullest buffer that counts, 60 s of Pensieve's; more buffer is worth as much.
MAX_BUFFER_CHUNKS = 15
#: Downloads longer than this many points of the grid count as this: sums stay finite.
MAX_DOWNLOAD = 1e6


@dataclass(frozen=True, slots=True)
class Plans:
    """B decisions to make on the same ladder, H chunks ahead, with C bins of throughput.

    Attributes:
        levels_kbps: ``(L,)`` the ladder.
        chunk_s: seconds of video per chunk.
        buffer_s: ``(B,)`` seconds of video in the buffer.
        last_level: ``(B,)`` level of the previous chunk.
        sizes_bytes: ``(B, H, L)`` sizes of the next chunks, or what they are expected to be.
        throughput_kbps: ``(B, C)`` of each bin.
        first: ``(B, L, C)`` probability of each bin for the next chunk, by its level.
        later: ``(B, K, L, C, C)`` the same for the K chunks behind it, by level and by the bin of
            the chunk before; the last of them holds for all further chunks.
    """

    levels_kbps: NDArray[np.float64]
    chunk_s: float
    buffer_s: NDArray[np.float64]
    last_level: NDArray[np.int64]
    sizes_bytes: NDArray[Any]
    throughput_kbps: Float32Array
    first: Float32Array
    later: Float32Array


def level_values(plans: Plans, weights: QoeWeights = PENSIEVE_QOE) -> Float32Array:
    """Expected QoE-lin over the horizon after each level, if later levels are the best ones.

    Args:
        plans: what to decide.
        weights: of the QoE.

    Returns:
        ``(B, L)`` values.
    """
    step_s = plans.chunk_s / POINTS_PER_CHUNK
    most = MAX_BUFFER_CHUNKS * POINTS_PER_CHUNK
    rates_mbps = (np.asarray(plans.levels_kbps) / KBPS_PER_MBPS).astype(np.float32)  # (L,)
    stall_cost = np.float32(weights.rebuffer * step_s)  # per point of the grid
    kilobits = plans.sizes_bytes[..., None] * KILOBITS_PER_BYTE  # (B, H, L, 1)
    steps = kilobits / plans.throughput_kbps[:, None, None] / step_s
    download = np.minimum(steps, MAX_DOWNLOAD).astype(np.float32)  # (B, H, L, C)
    buffer = np.minimum(plans.buffer_s / step_s, most).astype(np.float32)  # (B,)
    points = most + 1  # N
    within = np.minimum(download, points)
    whole = np.ceil(within).astype(np.int64)
    share = (whole - within)[..., None].astype(np.float32)
    # What a chunk brings whatever the buffer: its rate, less the part of a stall beyond the grid.
    sure = (rates_mbps[:, None] - stall_cost * (download - within))[..., None]
    batch, level, outcome = np.ogrid[tuple(map(slice, whole[:, 0].shape))]
    value: Float32Array | None = None  # (B, L, C, N) by last level, its bin, buffer
    for chunk in range(plans.sizes_bytes.shape[1] - 1, 0, -1):
        windows = _windows(value, download[:, chunk].shape, points, stall_cost)
        moved = windows[batch, level, outcome, points - whole[:, chunk]]  # (B, L, C, N + 1)
        gain = moved[..., 1:] - moved[..., :-1]
        gain *= share[:, chunk]
        gain += moved[..., :-1]
        gain += sure[:, chunk]
        chain = plans.later[:, min(chunk, plans.later.shape[1]) - 1]
        expected = np.matmul(chain, gain)  # (B, L, C before, N)
        value = _best_after(expected, weights.switch * np.diff(rates_mbps))
    outcomes = _after_first_download(value, buffer, download[:, 0], stall_cost)  # (B, L, C)
    switch_mbps = np.abs(rates_mbps - rates_mbps[plans.last_level][:, None])
    values = (plans.first * outcomes).sum(axis=2) + rates_mbps - weights.switch * switch_mbps
    return np.asarray(values, dtype=np.float32)


def _windows(
    value: Float32Array | None, shape: tuple[int, ...], points: int, stall_cost: np.float32
) -> Float32Array:
    """Values behind a download, less its stall, from every buffer, for all whole download times.

    Args:
        value: ``(B, L, C, N)`` of the state that the chunk leads to; None where the plan ends.
        shape: ``(B, L, C)``.
        points: N, buffers from 0.
        stall_cost: of one point.

    Returns:
        ``(B, L, C, N + 1, N + 1)``, views: at ``N - d`` the values from the buffers -d, 1 - d, …
    """
    table = np.empty((*shape, 2 * points + 1), dtype=np.float32)
    if value is None:
        table[..., points:] = 0.0
    else:
        kept = points - POINTS_PER_CHUNK
        table[..., points : points + kept] = value[..., POINTS_PER_CHUNK:]
        table[..., points + kept :] = value[..., -1:]
    stalls = stall_cost * np.arange(-points, 0, dtype=np.float32)
    np.add(table[..., points : points + 1], stalls, out=table[..., :points])
    return np.lib.stride_tricks.as_strided(
        table,
        (*shape, points + 1, points + 1),
        (*table.strides, table.strides[-1]),
        writeable=False,
    )


def _after_first_download(
    value: Float32Array | None, buffer: Float32Array, download: Float32Array, stall_cost: np.float32
) -> Float32Array:
    """``(B, L, C)`` value behind a download, less its stall, from the ``(B,)`` buffers."""
    left = buffer[:, None, None] - download
    stall = stall_cost * np.maximum(-left, 0)
    if value is None:
        return np.asarray(-stall)
    place = np.maximum(left, 0)
    whole = place.astype(np.int64)
    top = value.shape[3] - 1
    low, high = (
        np.take_along_axis(value, np.minimum(whole + more, top)[..., None], axis=3)[..., 0]
        for more in (POINTS_PER_CHUNK, POINTS_PER_CHUNK + 1)
    )
    return np.asarray(low + (place - whole) * (high - low) - stall, dtype=np.float32)


def _best_after(expected: Float32Array, switch_cost: Float32Array) -> Float32Array:
    """Best value of the next chunk by the level of the last one, in place.

    The penalty is a distance along the ladder, so passing the best on from neighbour to neighbour,
    up and down, compares all pairs.

    Args:
        expected: ``(B, L, C, N)`` by the next level.
        switch_cost: ``(L - 1,)`` between neighbours.
    """
    for level, cost in enumerate(switch_cost, start=1):
        np.maximum(expected[:, level], expected[:, level - 1] - cost, out=expected[:, level])
    for level, cost in reversed(list(enumerate(switch_cost))):
        np.maximum(expected[:, level], expected[:, level + 1] - cost, out=expected[:, level])
    return expected
