"""Training windows of the adapted model, cut from a pool so that none crosses an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from adapters.features import Float32Array, StepFeatures, pad_steps, stack, step_features
from adapters.pools import NO_LABEL, Episode, Pool, PoolError
from adapters.tokens import window_start, window_steps

IGNORED = -100  # label that cross-entropy skips

#: Chunks over which the return-to-go is averaged.
RETURN_HORIZON = 8
#: Normalised returns are kept within this.
RETURN_LIMIT = 3.0


@dataclass(frozen=True, slots=True)
class ReturnScale:
    """Median and interquartile range of the returns of a pool: outliers do not squeeze the rest."""

    median: float
    spread: float

    def normalise(self, returns: NDArray[np.float64]) -> Float32Array:
        """Returns in interquartile ranges from the median, limited."""
        scaled = (returns - self.median) / self.spread
        return np.clip(scaled, -RETURN_LIMIT, RETURN_LIMIT).astype(np.float32)


def returns_to_go(episode: Episode) -> NDArray[np.float64]:
    """``(n,)`` mean QoE of each chunk and those behind it, up to ``RETURN_HORIZON`` chunks."""
    total = np.concatenate(([0.0], np.cumsum(episode.qoe)))
    first = np.arange(episode.chunks)
    last = np.minimum(first + RETURN_HORIZON, episode.chunks)
    return np.asarray((total[last] - total[first]) / (last - first))


def return_scale(episodes: Sequence[Episode]) -> ReturnScale:
    """Robust scale of the returns over episodes, chunk 0 left out."""
    every = np.concatenate([returns_to_go(episode)[1:] for episode in episodes])
    low, median, high = np.quantile(every, (0.25, 0.5, 0.75))
    return ReturnScale(float(median), max(float(high - low), 1e-3))


@dataclass(frozen=True)
class LabelledEpisode:
    """Features and labels of one episode, arrays over its chunks.

    Attributes:
        features: ``(n, …)``.
        label: ``(n,)`` level to learn; IGNORED where there is none.
        regret: ``(n, levels)`` loss of value against the best level; 0 where it is unknown.
        returns: ``(n, 1)`` normalised return-to-go, 0 if it is not told.
    """

    features: StepFeatures
    label: NDArray[np.int64]
    regret: Float32Array
    returns: Float32Array


def label_episode(
    episode: Episode, *, use_expert: bool, scale: ReturnScale | None, max_regret: float
) -> LabelledEpisode:
    """Prepares an episode; chunk 0 is no decision and gets no label.

    Args:
        episode: the session.
        use_expert: learn the expert's levels, else those that were taken.
        scale: tells the return-to-go; None: it is not told.
        max_regret: larger losses of value count as this.
    """
    rows = stack([step_features(episode.observation(index)) for index in range(episode.chunks)])
    features = replace(rows, action=episode.level)
    chosen = episode.expert if use_expert else episode.level
    label = np.where(chosen == NO_LABEL, IGNORED, chosen)
    label[0] = IGNORED
    known = np.isfinite(episode.values).all(axis=1, keepdims=True)
    values = np.where(known, episode.values, 0.0)
    regret = np.minimum(values.max(axis=1, keepdims=True) - values, max_regret)
    returns = np.zeros((episode.chunks, 1), dtype=np.float32)
    if scale is not None:
        returns[:, 0] = scale.normalise(returns_to_go(episode))
    return LabelledEpisode(features, label, regret.astype(np.float32), returns)


@dataclass(frozen=True, slots=True)
class Batch:
    """B windows of S steps; padding has label IGNORED and regret 0.

    Attributes:
        features: ``(B, S, …)``.
        label: ``(B, S)``.
        regret: ``(B, S, levels)``.
        returns: ``(B, S, 1)``.
        counts: ``(B, S)`` whether a step is a decision.
    """

    features: StepFeatures
    label: NDArray[np.int64]
    regret: Float32Array
    returns: Float32Array
    counts: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """Steps ``first`` to ``last - 1`` of an episode."""

    episode: int
    first: int
    last: int


def windows(
    episodes: Sequence[LabelledEpisode], block: int, rng: np.random.Generator | None
) -> list[Window]:
    """Windows that cover every step of every episode once, as decisions see them.

    Args:
        episodes: the episodes.
        block: steps per block.
        rng: shuffles the windows, and pairs the blocks of each episode from an even or an odd one
            on; None: in order, from an even one on.
    """
    found: list[Window] = []
    for number, episode in enumerate(episodes):
        steps = len(episode.label)
        # A window ends with a block; its first block is then seen with less context than the
        # longest, as the first block of a session is.
        ends_odd = 1 if rng is None else int(rng.integers(2))
        for end in range(ends_odd, -(-steps // block) + 1, 2):
            first = window_start(end * block, block)
            last = min((end + 1) * block, steps)
            if last > first:
                found.append(Window(number, first, last))
    if rng is not None:
        return [found[index] for index in rng.permutation(len(found))]
    return found


class Batches(Sequence[Batch]):
    """Batches of windows in their order, each cut when it is asked for."""

    def __init__(
        self,
        episodes: Sequence[LabelledEpisode],
        order: Sequence[Window],
        *,
        block: int,
        batch_size: int,
    ) -> None:
        self._episodes, self._order = episodes, order
        self._length, self._batch_size = window_steps(block), batch_size

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self._batch_size
        return self._cut(self._order[first : first + self._batch_size])

    def _cut(self, chosen: Sequence[Window]) -> Batch:
        """Cuts windows out of their episodes and pads them to the longest window."""
        episodes, length = self._episodes, self._length
        return Batch(
            features=stack(
                [
                    pad_steps(episodes[one.episode].features[one.first : one.last], length)
                    for one in chosen
                ]
            ),
            label=_fill(
                [episodes[one.episode].label[one.first : one.last] for one in chosen],
                length,
                IGNORED,
            ),
            regret=_fill(
                [episodes[one.episode].regret[one.first : one.last] for one in chosen], length, 0.0
            ),
            returns=_fill(
                [episodes[one.episode].returns[one.first : one.last] for one in chosen], length, 0.0
            ),
            counts=np.array(
                [
                    [max(one.first, 1) <= one.first + step < one.last for step in range(length)]
                    for one in chosen
                ]
            ),
        )


def batches(
    episodes: Sequence[LabelledEpisode],
    order: Sequence[Window],
    *,
    block: int,
    batch_size: int,
) -> Batches:
    """Cuts the windows and pads them to the longest window."""
    return Batches(episodes, order, block=block, batch_size=batch_size)


def _fill(rows: Sequence[NDArray], length: int, value: float) -> NDArray:  # type: ignore[type-arg]
    filled = np.full((len(rows), length, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return filled


def split_episodes(
    pool: Pool, *, fraction: float, rng: np.random.Generator
) -> tuple[list[Episode], list[Episode]]:
    """Training and validation episodes; all episodes on one trace fall to the same side.

    Raises:
        PoolError: the pool has fewer than two traces.
    """
    sources = sorted({episode.source for episode in pool.episodes})
    if len(sources) < 2:
        raise PoolError("a validation split needs sessions on at least two traces")
    held = max(1, min(round(fraction * len(sources)), len(sources) - 1))
    valid = {sources[index] for index in rng.permutation(len(sources))[:held]}
    return (
        [episode for episode in pool.episodes if episode.source not in valid],
        [episode for episode in pool.episodes if episode.source in valid],
    )
