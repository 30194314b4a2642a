"""Experience pools: recorded sessions as columns, from which every observation can be rebuilt.

Episodes keep their borders, so no training window crosses them. ``adapters.pool_files`` writes and
reads pools, ``adapters.pool_summary`` describes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from player.observation import HISTORY_LIMIT, UPCOMING_LIMIT, AbrObservation, PastChunk
from player.records import SessionRecord
from player.trace import FloatArray
from player.video import Video

NO_LABEL = -1

IntArray = NDArray[np.int64]
Decide = Callable[[AbrObservation], int]


class PoolError(ValueError):
    """A pool that is missing, malformed or empty; the message names file and column."""


@dataclass(frozen=True)
class Episode:
    """One session, arrays over its chunks.

    Attributes:
        video: what was played.
        arm: label of the arm that played.
        controller: its controller.
        trace: name of the trace.
        seed: seed of the run.
        start_index: where in the trace it started.
        level: ``(n,)`` levels taken.
        size_bytes: ``(n,)``.
        download_s: ``(n,)``.
        rebuffer_s: ``(n,)``.
        buffer_s: ``(n,)`` buffer behind each chunk.
        qoe: ``(n,)`` QoE of each chunk.
        expert: ``(n,)`` level that an expert takes in the same state; NO_LABEL if none was asked.
        values: ``(n, levels)`` what each level would have been worth in hindsight; NaN if unknown.
    """

    video: Video
    arm: str
    controller: str
    trace: str
    seed: int
    start_index: int
    level: IntArray
    size_bytes: IntArray
    download_s: FloatArray
    rebuffer_s: FloatArray
    buffer_s: FloatArray
    qoe: FloatArray
    expert: IntArray
    values: FloatArray

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.level)

    @property
    def source(self) -> str:
        """What a validation split must not tear apart: the trace."""
        return self.trace

    def observation(self, index: int) -> AbrObservation:
        """What the controller was told before chunk ``index``."""
        past = slice(max(0, index - HISTORY_LIMIT), index)
        columns = (self.level, self.size_bytes, self.download_s, self.rebuffer_s, self.buffer_s)
        rows = zip(*(column[past].tolist() for column in columns), strict=True)
        return AbrObservation(
            levels_kbps=self.video.levels_kbps,
            chunk_s=self.video.chunk_s,
            chunk_index=index,
            chunks_left=self.video.chunks - index,
            buffer_s=float(self.buffer_s[index - 1]) if index else 0.0,
            upcoming_sizes_bytes=self.video.sizes_bytes[index : index + UPCOMING_LIMIT],
            history=tuple(PastChunk(*row) for row in rows),
        )


@dataclass(frozen=True)
class Pool:
    """Episodes and how they came about.

    Attributes:
        episodes: the sessions.
        made_by: free description for the checkpoint's card: command, experiment, expert.
        duplicates_dropped: identical sessions that were left out on the way here.
    """

    episodes: tuple[Episode, ...]
    made_by: tuple[str, ...] = ()
    duplicates_dropped: int = 0

    @property
    def chunks(self) -> int:
        """Number of chunks in all."""
        return sum(episode.chunks for episode in self.episodes)

    @property
    def has_expert(self) -> bool:
        """Whether every decision has an expert's label."""
        return all((episode.expert[1:] != NO_LABEL).all() for episode in self.episodes)

    @property
    def has_values(self) -> bool:
        """Whether every decision has its values in hindsight."""
        return all(np.isfinite(episode.values[1:]).all() for episode in self.episodes)


@dataclass(frozen=True)
class PlayedSession:
    """A session and the video that it played, as :func:`pool_from_sessions` takes it."""

    video: Video
    record: SessionRecord


Expert = Callable[[PlayedSession], Decide]
Values = Callable[[PlayedSession], FloatArray]


def pool_from_sessions(
    sessions: Iterable[PlayedSession],
    *,
    expert: Expert | None = None,
    values: Values | None = None,
    made_by: Sequence[str] = (),
) -> Pool:
    """Makes a pool; failed sessions and those of fewer than two chunks are left out.

    Args:
        sessions: what was played, by any arms.
        expert: makes, for a session, the expert that is asked in each of its states.
        values: gives, for a session, ``(chunks, levels)`` values in hindsight.
        made_by: lines for :attr:`Pool.made_by`.

    Raises:
        PoolError: no session is left, or the expert or the values do not fit a session.
    """
    episodes = [episode_of(session, expert=expert, values=values) for session in sessions]
    return pool_of([one for one in episodes if one is not None], made_by=made_by)


def pool_of(episodes: Sequence[Episode], *, made_by: Sequence[str] = ()) -> Pool:
    """A pool of episodes.

    Raises:
        PoolError: there are none.
    """
    if not episodes:
        raise PoolError("no finished session of two chunks or more to make a pool from")
    return Pool(tuple(episodes), tuple(made_by))


def episode_of(
    session: PlayedSession, *, expert: Expert | None = None, values: Values | None = None
) -> Episode | None:
    """The session as an episode; None if it failed or has fewer than two chunks.

    See :func:`pool_from_sessions` for the arguments.

    Raises:
        PoolError: the video, the expert or the values do not fit the session.
    """
    video, record = session.video, session.record
    chunks = record.chunks
    if record.status != "ok" or len(chunks) < 2:
        return None
    if len(chunks) > video.chunks:
        raise PoolError(
            f"a session on {record.trace} has {len(chunks)} chunks, its video {video.chunks}"
        )
    shape = (len(chunks), video.levels)
    worth = np.full(shape, np.nan) if values is None else np.asarray(values(session), dtype=float)
    if worth.shape != shape:
        raise PoolError(f"values of shape {worth.shape} for a session of {shape}")
    episode = Episode(
        video=video,
        arm=record.arm,
        controller=record.controller,
        trace=record.trace,
        seed=record.seed,
        start_index=record.start_index,
        level=np.array([chunk.level for chunk in chunks], dtype=np.int64),
        size_bytes=np.array([chunk.size_bytes for chunk in chunks], dtype=np.int64),
        download_s=np.array([chunk.download_s for chunk in chunks]),
        rebuffer_s=np.array([chunk.rebuffer_s for chunk in chunks]),
        buffer_s=np.array([chunk.buffer_s for chunk in chunks]),
        qoe=np.array([chunk.qoe for chunk in chunks]),
        expert=np.full(len(chunks), NO_LABEL, dtype=np.int64),
        values=worth,
    )
    check_episode(episode, where=f"session of {record.arm} on {record.trace}")
    if expert is None:
        return episode
    decide = expert(session)
    labels = [NO_LABEL, *(decide(episode.observation(index)) for index in range(1, len(chunks)))]
    if any(not 0 <= label < video.levels for label in labels[1:]):
        raise PoolError(f"the expert named a level off the ladder for {record.trace}")
    return dataclasses.replace(episode, expert=np.array(labels, dtype=np.int64))


def check_episode(episode: Episode, *, where: str) -> None:
    """Refuses what no session can hold; the message begins with ``where`` and names the column."""

    def require(holds: bool, name: str, problem: str) -> None:
        if not holds:
            raise PoolError(f"{where}: column {name!r} {problem}")

    video = episode.video
    for name, lowest in (("level", 0), ("expert", NO_LABEL)):
        column = getattr(episode, name)
        on_ladder = column.min() >= lowest and column.max() < video.levels
        require(on_ladder, name, f"is off the ladder of {video.levels} levels")
    sizes = np.asarray(video.sizes_bytes)[np.arange(episode.chunks), episode.level]
    require(
        np.array_equal(sizes, episode.size_bytes),
        "size_bytes",
        f"differs from the sizes of video {video.name!r}",
    )
    for name in ("download_s", "rebuffer_s", "buffer_s", "qoe"):
        require(bool(np.isfinite(getattr(episode, name)).all()), name, "has a value not finite")
    require(bool((episode.download_s > 0).all()), "download_s", "has a value that is not positive")
    for name in ("rebuffer_s", "buffer_s"):
        require(bool((getattr(episode, name) >= 0).all()), name, "has a negative value")


def join_pools(pools: Sequence[Pool]) -> Pool:
    """One pool of all episodes.

    Raises:
        PoolError: no pool is given.
    """
    if not pools:
        raise PoolError("no pool is given")
    return Pool(
        tuple(episode for pool in pools for episode in pool.episodes),
        tuple(dict.fromkeys(line for pool in pools for line in pool.made_by)),
        sum(pool.duplicates_dropped for pool in pools),
    )


def drop_duplicates(pool: Pool, *, similar: bool = False) -> Pool:
    """The pool without repetitions; of several sessions the first with the most labels stays.

    Args:
        pool: the pool.
        similar: also drops sessions that share video, trace, start and all levels with another
            one, and differ in what was measured only; else just those that are equal in all.
    """
    chosen: dict[Hashable, Episode] = {}
    for episode in pool.episodes:
        key = _decisions(episode) if similar else _content(episode)
        if key not in chosen or _labels(episode) > _labels(chosen[key]):
            chosen[key] = episode  # in the place of the first
    dropped = len(pool.episodes) - len(chosen)
    return Pool(tuple(chosen.values()), pool.made_by, pool.duplicates_dropped + dropped)


def count_similar(pool: Pool) -> int:
    """Sessions that share video, trace, start and all levels with an earlier one."""
    return len(pool.episodes) - len({_decisions(episode) for episode in pool.episodes})


def _decisions(episode: Episode) -> Hashable:
    return episode.video, episode.trace, episode.start_index, episode.level.tobytes()


def _content(episode: Episode) -> Hashable:
    measured = (episode.download_s, episode.rebuffer_s, episode.buffer_s, episode.qoe)
    return _decisions(episode), *(column.tobytes() for column in measured)


def _labels(episode: Episode) -> int:
    """How many kinds of labels an episode has."""
    return int((episode.expert[1:] != NO_LABEL).all()) + int(np.isfinite(episode.values[1:]).all())


def pool_ladder(pool: Pool) -> tuple[float, ...]:
    """The bitrates of all sessions, kbit/s.

    Raises:
        PoolError: there are several ladders; the message lists them.
    """
    ladders = dict.fromkeys(episode.video.levels_kbps for episode in pool.episodes)
    if len(ladders) > 1:
        listed = "; ".join(", ".join(f"{rate:g}" for rate in ladder) for ladder in ladders)
        raise PoolError(
            f"the pool mixes {len(ladders)} ladders, a model is trained for one: {listed} kbit/s"
        )
    return next(iter(ladders))
