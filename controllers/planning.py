"""Exhaustive planning for model-predictive control (Yin et al., SIGCOMM 2015).

All plans of the horizon are valued at once: the tree of levels grows by one numpy axis per chunk.
"""

from __future__ import annotations

import math

import numpy as np

from player.observation import KILOBITS_PER_BYTE, AbrObservation
from player.qoe import KBPS_PER_MBPS, QoeWeights

#: Long ladders are planned less far ahead: 6 levels give 6 chunks at most, 20 levels 3.
MAX_PLANS = 50_000


def best_level(
    observation: AbrObservation, throughput_kbps: float, *, horizon: int, weights: QoeWeights
) -> int:
    """First level of the plan with the highest QoE-lin at a constant throughput.

    Args:
        observation: the state to plan from.
        throughput_kbps: predicted throughput of every chunk of the plan.
        horizon: chunks to look ahead; less near the end of the video, and for long ladders.
        weights: of the QoE.

    Returns:
        The level for the next chunk. Of equally good plans any may win: sums of floats decide.
    """
    affordable = max(int(math.log(MAX_PLANS, max(observation.levels, 2))), 1)
    sizes = observation.upcoming_sizes_bytes[: min(horizon, affordable)]
    rates_mbps = np.asarray(observation.levels_kbps) / KBPS_PER_MBPS  # (L,)
    switch_cost = weights.switch * np.abs(rates_mbps[:, None] - rates_mbps)  # (L from, L to)
    qoe = np.zeros(1)  # one entry per plan so far; plans with the same beginning are neighbours
    buffer_s = np.full(1, observation.buffer_s)
    last_level = np.full(1, observation.last_level)
    for row in sizes:
        download_s = np.asarray(row) * (KILOBITS_PER_BYTE / throughput_kbps)  # (L,)
        left_s = buffer_s[:, None] - download_s  # (plans, L)
        stall_s = np.maximum(-left_s, 0.0)
        gain = rates_mbps - switch_cost[last_level] - weights.rebuffer * stall_s
        last_level = np.tile(np.arange(observation.levels), len(qoe))
        qoe = (qoe[:, None] + gain).ravel()
        buffer_s = (np.maximum(left_s, 0.0) + observation.chunk_s).ravel()
    plans_per_first_level = len(qoe) // observation.levels
    return int(np.argmax(qoe)) // plans_per_first_level
