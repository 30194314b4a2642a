"""Many simulated sessions at once, to train in: one step plays a chunk of all of them, as arrays.

Every number is, to the last bit, the one that the player machine records when ``player.simulated``
drives it over a :class:`PensieveLink`: the same operations on floats in the same order. All
sessions play the same video and stand before the same chunk, so they end together.

    table = LinkTable([PensieveLink(trace) for trace in traces])
    sessions = Sessions(video, table, *table.draw(4096, rng))
    while not sessions.is_done:
        qoe = sessions.step(policy(sessions.observe()))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from player.link_table import IntArray, LinkTable
from player.machine import InvalidDecision, PlayerConfig, PlayerStateError
from player.observation import (
    HISTORY_LIMIT,
    KILOBITS_PER_BYTE,
    UPCOMING_LIMIT,
    AbrObservation,
    PastChunk,
)
from player.qoe import KBPS_PER_MBPS
from player.records import ChunkRecord
from player.trace import FloatArray
from player.video import Video

#: Past chunks in the arrays of :class:`Observations`, unless asked otherwise.
PAST_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class Observations:
    """What B players see just before they request chunk ``chunk_index``, with K past chunks.

    The fields are those of :class:`AbrObservation`. The newest past chunk comes last; before the
    first ``known`` chunks there are zeros. The arrays never change, so they may be kept.

    Attributes:
        chunk_index: the chunk to decide, from 0.
        chunks_left: chunks not yet requested, this one included.
        known: how many of the K past chunks there are.
        buffer_s: ``(B,)`` seconds of video in the buffer.
        upcoming_sizes_bytes: ``(B, UPCOMING_LIMIT, levels)`` sizes of this chunk and those behind
            it, 0 beyond the end.
        level: ``(B, K)`` levels of past chunks.
        size_bytes: ``(B, K)`` their sizes.
        download_s: ``(B, K)`` from request to last byte.
        throughput_kbps: ``(B, K)`` size over ``download_s``.
        rebuffer_s: ``(B, K)`` stall before the chunk was in; for chunk 0 the start-up time.
        past_buffer_s: ``(B, K)`` buffer once it was in and any pause was over.
    """

    chunk_index: int
    chunks_left: int
    known: int
    buffer_s: FloatArray
    upcoming_sizes_bytes: IntArray
    level: IntArray
    size_bytes: IntArray
    download_s: FloatArray
    throughput_kbps: FloatArray
    rebuffer_s: FloatArray
    past_buffer_s: FloatArray

    @property
    def last_level(self) -> IntArray:
        """``(B,)`` level of the previous chunk; 0 before the first."""
        return self.level[:, -1]


class _Rows:
    """What is recorded: one row per chunk, behind rows of zeros for the chunks before the first."""

    def __init__(self, rows: int, sessions: int) -> None:
        shape = rows, sessions
        self.level = np.zeros(shape, dtype=np.int64)
        self.size_bytes = np.zeros(shape, dtype=np.int64)
        self.requested_s = np.zeros(shape)
        self.download_s = np.zeros(shape)
        self.throughput_kbps = np.zeros(shape)
        self.buffer_s = np.zeros(shape)
        self.rebuffer_s = np.zeros(shape)
        self.decision_s = np.zeros(shape)
        self.qoe = np.zeros(shape)
        self.wait_s = np.zeros(shape)


class Sessions:
    """Sessions from their first chunk to their last; new ones are a new object.

    With a ``first_level`` in the configuration, chunk 0 has been played when they are made.
    """

    def __init__(
        self,
        video: Video,
        links: LinkTable,
        link_index: ArrayLike,
        start_s: ArrayLike,
        *,
        config: PlayerConfig | None = None,
        decision_s: float = 0.0,
        past_chunks: int = PAST_CHUNKS,
    ) -> None:
        """Starts the sessions.

        Args:
            video: what all of them play.
            links: the links that there are.
            link_index: ``(B,)`` number of the link of each session.
            start_s: ``(B,)`` position in its trace where each starts.
            config: how the players play.
            decision_s: how long each decision takes on the playback clock.
            past_chunks: K, in the arrays of :class:`Observations`.

        Raises:
            ValueError: a link that is not in the table, starts that do not fit the links, a number
                that is too small, or a player that does what this one does not; the message names
                it.
            InvalidDecision: the first level is off the ladder.
        """
        self._video, self._links = video, links
        self._config = config or PlayerConfig()
        if past_chunks < 1:
            raise ValueError(f"past_chunks must be at least 1, not {past_chunks}")
        if not 0 <= decision_s < np.inf:
            raise ValueError(f"decision_s must be at least 0 and finite, not {decision_s}")
        if not self._config.wait_step_s > 0:
            raise ValueError(f"wait_step_s must be above 0, not {self._config.wait_step_s}")
        for name in ("live", "abandonment"):
            if getattr(self._config, name) is not None:
                raise ValueError(f"{name}: only sessions one by one have it (player.simulated)")
        self._decision_s, self._past_chunks = decision_s, past_chunks
        self._link_index = _checked_links(link_index, len(links))
        self._position_s = _checked_starts(start_s, self._link_index)
        self._sizes_bytes = np.zeros((video.chunks + UPCOMING_LIMIT, video.levels), dtype=np.int64)
        self._sizes_bytes[: video.chunks] = video.sizes_bytes
        self._sizes_bytes.flags.writeable = False
        self._mbps, self._switch_cost = _qoe_tables(video, self._config)
        self._chunk = 0
        self._rows = _Rows(past_chunks + video.chunks, len(self._link_index))
        self._clock_s = np.zeros(len(self._link_index))
        self._buffer_s = np.zeros(len(self._link_index))
        self._stall_s = np.zeros(len(self._link_index))
        if self._config.first_level is not None:
            first = np.full(len(self._link_index), self._config.first_level)
            self._play_chunk(self._checked_levels(first))

    def __len__(self) -> int:
        return len(self._link_index)

    @property
    def is_done(self) -> bool:
        """Whether the last chunk is in."""
        return self._chunk == self._video.chunks

    @property
    def qoe(self) -> FloatArray:
        """``(B, n)`` QoE of the n chunks that are in; chunk 0 has no predecessor."""
        return self._view(self._rows.qoe, self._past_chunks)

    def observe(self) -> Observations:
        """What the controllers see before the next decision.

        Raises:
            PlayerStateError: the sessions are over.
        """
        self._check_going_on()
        upcoming = self._sizes_bytes[self._chunk : self._chunk + UPCOMING_LIMIT]
        rows = self._rows
        return Observations(
            chunk_index=self._chunk,
            chunks_left=self._video.chunks - self._chunk,
            known=min(self._chunk, self._past_chunks),
            buffer_s=_read_only(self._buffer_s),
            upcoming_sizes_bytes=np.broadcast_to(upcoming, (len(self), *upcoming.shape)),
            level=self._view(rows.level, self._chunk),
            size_bytes=self._view(rows.size_bytes, self._chunk),
            download_s=self._view(rows.download_s, self._chunk),
            throughput_kbps=self._view(rows.throughput_kbps, self._chunk),
            rebuffer_s=self._view(rows.rebuffer_s, self._chunk),
            past_buffer_s=self._view(rows.buffer_s, self._chunk),
        )

    def capacity_mbps(self, ahead_s: FloatArray) -> FloatArray:
        """``(B, H)`` mean capacity of the links over the next H spans, for critics in training.

        Args:
            ahead_s: ``(H,)`` seconds, above 0.
        """
        return self._links.capacity_mbps(self._link_index, self._position_s, ahead_s)

    def step(self, levels: ArrayLike) -> FloatArray:
        """Plays the next chunk of every session at its level.

        Args:
            levels: ``(B,)`` whole numbers.

        Returns:
            ``(B,)`` QoE of the chunk.

        Raises:
            PlayerStateError: the sessions are over.
            InvalidDecision: a level is off the ladder.
        """
        self._check_going_on()
        chosen = self._checked_levels(np.asarray(levels))
        decision_s: FloatArray | float = 0.0
        if self._decision_s > 0:
            decision_s = self._let_pass(self._decision_s)
            self._position_s = self._position_s + self._decision_s
        return self._play_chunk(chosen, decision_s)

    def observation(self, session: int) -> AbrObservation:
        """What one of the players is asked: :meth:`observe` in the form that controllers take.

        Raises:
            PlayerStateError: the sessions are over.
        """
        self._check_going_on()
        video, index = self._video, self._chunk
        known = [self._record(past, session) for past in range(index)[-HISTORY_LIMIT:]]
        return AbrObservation(
            levels_kbps=video.levels_kbps,
            chunk_s=video.chunk_s,
            chunk_index=index,
            chunks_left=video.chunks - index,
            buffer_s=float(self._buffer_s[session]),
            upcoming_sizes_bytes=video.sizes_bytes[index : index + UPCOMING_LIMIT],
            history=tuple(
                PastChunk(
                    past.level, past.size_bytes, past.download_s, past.rebuffer_s, past.buffer_s
                )
                for past in known
            ),
        )

    def chunks(self, session: int) -> tuple[ChunkRecord, ...]:
        """Records of the chunks of one session that are in."""
        return tuple(self._record(index, session) for index in range(self._chunk))

    def _record(self, index: int, session: int) -> ChunkRecord:
        rows, at = self._rows, (index + self._past_chunks, session)
        level = int(rows.level[at])
        return ChunkRecord(
            index=index,
            level=level,
            bitrate_kbps=self._video.levels_kbps[level],
            size_bytes=int(rows.size_bytes[at]),
            requested_s=float(rows.requested_s[at]),
            download_s=float(rows.download_s[at]),
            throughput_kbps=float(rows.throughput_kbps[at]),
            buffer_s=float(rows.buffer_s[at]),
            rebuffer_s=float(rows.rebuffer_s[at]),
            decision_s=float(rows.decision_s[at]),
            fallback=False,
            qoe=float(rows.qoe[at]),
            wait_s=float(rows.wait_s[at]),
        )

    def _view(self, rows: NDArray, first: int) -> NDArray:  # type: ignore[type-arg]
        return _read_only(rows[first : self._chunk + self._past_chunks].T)

    def _check_going_on(self) -> None:
        if self.is_done:
            raise PlayerStateError(f"all {self._video.chunks} chunks of the sessions are played")

    def _checked_levels(self, levels: IntArray) -> IntArray:
        top = self._video.levels - 1
        if levels.shape != self._link_index.shape or levels.dtype.kind not in "iu":
            raise InvalidDecision(
                f"levels for {len(self)} sessions must be as many whole numbers, not "
                f"{levels.dtype} {levels.shape}"
            )
        if levels.min() < 0 or levels.max() > top:
            wrong = levels[(levels < 0) | (levels > top)][0]
            raise InvalidDecision(f"level {wrong} for chunk {self._chunk} is not one of 0 to {top}")
        return levels

    def _let_pass(self, seconds: FloatArray | float) -> FloatArray:
        """Plays on for that long, and returns how much the clock moved, which rounds."""
        now_s = self._clock_s + seconds
        elapsed_s = now_s - self._clock_s
        played_s = np.minimum(self._buffer_s, elapsed_s)
        self._stall_s = self._stall_s + (elapsed_s - played_s)
        self._buffer_s = self._buffer_s - played_s
        self._clock_s = now_s
        return elapsed_s

    def _play_chunk(self, levels: IntArray, decision_s: FloatArray | float = 0.0) -> FloatArray:
        size_bytes = self._sizes_bytes[self._chunk][levels]
        requested_s = self._clock_s
        download_s, moved_s = self._links.download(self._link_index, size_bytes, self._position_s)
        download_s = self._let_pass(download_s)
        self._position_s = self._position_s + moved_s
        self._buffer_s = self._buffer_s + self._video.chunk_s
        excess_s = self._buffer_s - self._config.buffer_cap_s
        step_s = self._config.wait_step_s
        wait_s = np.where(excess_s > 0, np.ceil(excess_s / step_s) * step_s, 0.0)
        self._stall_s, rebuffer_s = np.zeros(len(self)), self._stall_s
        rows, row = self._rows, self._past_chunks + self._chunk
        previous = rows.level[row - 1] if self._chunk else levels
        rows.level[row] = levels
        rows.size_bytes[row] = size_bytes
        rows.requested_s[row] = requested_s
        rows.download_s[row] = download_s
        rows.throughput_kbps[row] = size_bytes * KILOBITS_PER_BYTE / download_s
        rows.buffer_s[row] = self._buffer_s - wait_s
        rows.rebuffer_s[row] = rebuffer_s
        rows.decision_s[row] = decision_s
        rows.qoe[row] = (
            self._mbps[levels]
            - self._config.qoe.rebuffer * rebuffer_s
            - self._switch_cost[previous, levels]
        )
        rows.wait_s[row] = wait_s
        self._chunk += 1
        if wait_s.any():
            self._position_s = self._position_s + self._let_pass(wait_s)
        return _read_only(rows.qoe[row])


def play_vectorised(
    sessions: Sessions, decide_many: Callable[[Observations], ArrayLike]
) -> FloatArray:
    """Plays sessions to their end.

    Args:
        sessions: new ones, or ones under way.
        decide_many: the policy: ``(B,)`` levels for what it is shown.

    Returns:
        ``(B, chunks)`` QoE of every chunk; that of chunk 0 is not scored.
    """
    while not sessions.is_done:
        sessions.step(decide_many(sessions.observe()))
    return sessions.qoe


def _qoe_tables(video: Video, config: PlayerConfig) -> tuple[FloatArray, FloatArray]:
    """Mbit/s of each level, and the penalty from each level to each other."""
    kbps = np.asarray(video.levels_kbps)
    switch_mbps = np.abs(kbps - kbps[:, None]) / KBPS_PER_MBPS
    return kbps / KBPS_PER_MBPS, config.qoe.switch * switch_mbps


def _checked_links(link_index: ArrayLike, links: int) -> IntArray:
    index = np.array(link_index)
    if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu":
        raise ValueError("link_index must be whole numbers, one per session")
    if index.min() < 0 or index.max() >= links:
        raise ValueError(f"link_index must be 0 to {links - 1}: {index.min()} to {index.max()}")
    return index.astype(np.int64)


def _checked_starts(start_s: ArrayLike, link_index: IntArray) -> FloatArray:
    start = np.array(start_s, dtype=np.float64)
    if start.shape != link_index.shape:
        raise ValueError(f"start_s must have shape {link_index.shape}, not {start.shape}")
    if not (np.isfinite(start) & (start >= 0)).all():
        raise ValueError("start_s must be at least 0 and finite")
    return start


def _read_only(array: NDArray) -> NDArray:  # type: ignore[type-arg]
    view = array.view()
    view.flags.writeable = False
    return view
