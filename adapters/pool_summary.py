"""What is in a pool, for people and for the cards of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapters.pools import NO_LABEL, Episode, Pool, count_similar
from player.video import Video

#: Quantiles of the sessions' QoE, in per cent.
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """Sessions of one arm.

    Attributes:
        arm: its label.
        controllers: what decided.
        sessions: number of sessions.
        chunks: number of chunks.
        qoe_mean: mean over sessions of their QoE per chunk, chunk 0 left out.
        qoe_quantiles: likewise at 5, 25, 50, 75 and 95 %.
        stalled: share of the scored chunks that had to be waited for.
        levels: share of the scored chunks at each level.
    """

    arm: str
    controllers: tuple[str, ...]
    sessions: int
    chunks: int
    qoe_mean: float
    qoe_quantiles: tuple[float, ...]
    stalled: float
    levels: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSummary:
    """One video of a pool."""

    name: str
    levels_kbps: tuple[float, ...]
    chunk_s: float
    chunks: int
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """What is in a pool.

    Attributes:
        episodes: number of sessions.
        chunks: number of chunks.
        traces: number of traces.
        levels: ladder sizes that occur.
        videos: what was played.
        has_expert: whether every decision is labelled by an expert.
        has_values: whether every decision has values in hindsight.
        expert_share: share of the decisions that an expert labelled.
        values_share: share of the decisions with values in hindsight.
        expert_agrees: share of the labelled decisions where the level taken is the expert's.
        qoe_per_chunk: mean QoE per arm, chunk 0 left out.
        arms: per arm, in alphabetical order.
        duplicates_dropped: identical sessions that were left out when the pool was made.
        similar: sessions that share trace, start and all levels with another one.
        made_by: how the pool was made.
    """

    episodes: int
    chunks: int
    traces: int
    levels: tuple[int, ...]
    videos: tuple[VideoSummary, ...]
    has_expert: bool
    has_values: bool
    expert_share: float
    values_share: float
    expert_agrees: float | None
    qoe_per_chunk: dict[str, float]
    arms: tuple[ArmSummary, ...]
    duplicates_dropped: int
    similar: int
    made_by: tuple[str, ...]


def describe_pool(pool: Pool) -> PoolSummary:
    """Counts, means and quantiles."""
    by_arm: dict[str, list[Episode]] = {}
    by_video: dict[Video, int] = {}
    for episode in pool.episodes:
        by_arm.setdefault(episode.arm, []).append(episode)
        by_video[episode.video] = by_video.get(episode.video, 0) + 1
    arms = tuple(_describe_arm(arm, episodes) for arm, episodes in sorted(by_arm.items()))
    expert = np.concatenate([episode.expert[1:] for episode in pool.episodes])
    taken = np.concatenate([episode.level[1:] for episode in pool.episodes])
    valued = [np.isfinite(episode.values[1:]).all(axis=1) for episode in pool.episodes]
    labelled = expert != NO_LABEL
    return PoolSummary(
        episodes=len(pool.episodes),
        chunks=pool.chunks,
        traces=len({episode.trace for episode in pool.episodes}),
        levels=tuple(sorted({episode.video.levels for episode in pool.episodes})),
        videos=tuple(
            VideoSummary(
                name=video.name,
                levels_kbps=video.levels_kbps,
                chunk_s=video.chunk_s,
                chunks=video.chunks,
                sessions=sessions,
            )
            for video, sessions in by_video.items()
        ),
        has_expert=pool.has_expert,
        has_values=pool.has_values,
        expert_share=float(labelled.mean()),
        values_share=float(np.concatenate(valued).mean()),
        expert_agrees=float((expert == taken)[labelled].mean()) if labelled.any() else None,
        qoe_per_chunk={one.arm: one.qoe_mean for one in arms},
        arms=arms,
        duplicates_dropped=pool.duplicates_dropped,
        similar=count_similar(pool),
        made_by=pool.made_by,
    )


def _describe_arm(arm: str, episodes: Sequence[Episode]) -> ArmSummary:
    qoe = [float(episode.qoe[1:].mean()) for episode in episodes]
    levels = np.concatenate([episode.level[1:] for episode in episodes])
    stalls = np.concatenate([episode.rebuffer_s[1:] for episode in episodes])
    counts = np.bincount(levels, minlength=max(episode.video.levels for episode in episodes))
    return ArmSummary(
        arm=arm,
        controllers=tuple(sorted({episode.controller for episode in episodes})),
        sessions=len(episodes),
        chunks=sum(episode.chunks for episode in episodes),
        qoe_mean=float(np.mean(qoe)),
        qoe_quantiles=tuple(np.percentile(qoe, QUANTILES).tolist()),
        stalled=float((stalls > 0).mean()),
        levels=tuple((counts / counts.sum()).tolist()),
    )
