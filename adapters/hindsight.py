"""What every level would have been worth, had the future been known: labels for training.

For each step of a recorded session, a search over the link model that the session ran on gives the
best QoE over the next chunks for each first level. A model that sees only the observation and is
trained to lose least of this value learns the level that is best on average over the futures that
an observation leaves open. Copying the optimal plan's levels instead would teach the risks that
only someone who knows the future can take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from player.link_models import LinkModel
from player.machine import PlayerConfig
from player.qoe import KBPS_PER_MBPS
from player.records import ChunkRecord
from player.trace import FloatArray
from player.video import Video


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """How far and how widely to search.

    Attributes:
        horizon: chunks to look ahead.
        width: states kept per step, first level and last level.
        buffer_value: QoE per second of buffer left at the horizon.
        buffer_enough_s: more buffer than that is worth nothing more.
    """

    horizon: int = 8
    width: int = 4
    buffer_value: float = 0.8
    buffer_enough_s: float = 20.0


@dataclass(frozen=True)
class _States:
    """Search states: ``(R, F, N)`` for R steps of the session, F first levels, N states each."""

    qoe: FloatArray
    buffer_s: FloatArray
    position_s: FloatArray
    idle_s: FloatArray
    level: np.ndarray


def hindsight_values(
    video: Video,
    chunks: tuple[ChunkRecord, ...],
    link: LinkModel,
    *,
    start_s: float,
    player: PlayerConfig,
    search: Hindsight,
) -> FloatArray:
    """Returns ``(chunks, levels)`` QoE over the horizon after each first level; row 0 is NaN.

    Args:
        video: the video that was played.
        chunks: records of the session.
        link: model of the link of the session, which knows the trace.
        start_s: position in the trace where the session started.
        player: buffer cap and QoE weights.
        search: extent of the search.
    """
    values = np.full((len(chunks), video.levels), np.nan)
    if len(chunks) > 1:
        states = _states_before(video, chunks, link, start_s)
        values[1:] = _search(states, np.arange(1, len(chunks)), video, link, player, search)
    return values


def _search(
    states: _States,
    chunk: np.ndarray,
    video: Video,
    link: LinkModel,
    player: PlayerConfig,
    search: Hindsight,
) -> FloatArray:
    """``(R, levels)`` value of each first level in R states before the chunks ``chunk``."""
    sizes = np.asarray(video.sizes_bytes, dtype=np.float64)
    values = np.zeros((len(chunk), video.levels))
    for ahead in range(search.horizon):
        index = chunk + ahead
        playing = index < video.chunks
        if not playing.any():
            break
        row = sizes[np.minimum(index, video.chunks - 1)]
        states = _prune(
            _extend(states, row, video, link, player, first=ahead == 0), video.levels, search
        )
        best = _worth(states, index + 1 < video.chunks, search).max(axis=2)
        values = np.where(playing[:, None], best, values)
    return values


def _states_before(
    video: Video, chunks: tuple[ChunkRecord, ...], link: LinkModel, start_s: float
) -> _States:
    """State of the session just before each chunk from 1 on."""
    position_s, idle_s = start_s, float("inf")
    rows: list[tuple[float, float, float, int]] = []
    for chunk in chunks[:-1]:
        outcome = link.download(float(chunk.size_bytes), position_s, idle_s)
        position_s += float(outcome.moved_s) + chunk.wait_s
        idle_s = chunk.wait_s
        rows.append((chunk.buffer_s, position_s, idle_s, chunk.level))
    buffer, position, idle, level = (
        np.asarray(column)[:, None, None] for column in zip(*rows, strict=True)
    )
    return _States(np.zeros(buffer.shape), buffer, position, idle, level)


def _extend(
    states: _States,
    sizes: FloatArray,
    video: Video,
    link: LinkModel,
    player: PlayerConfig,
    *,
    first: bool,
) -> _States:
    """Every state continued with every level: ``(R, F, N · 6)``; at first ``(R, 6, 1)``."""
    rates = np.asarray(video.levels_kbps) / KBPS_PER_MBPS
    level = np.arange(video.levels)
    before = [
        field[..., None]
        for field in (states.qoe, states.buffer_s, states.position_s, states.idle_s)
    ]
    qoe, buffer_s, position_s, idle_s = before  # (R, F, N, 1)
    outcome = link.download(sizes[:, None, None, :], position_s, idle_s)
    left_s = buffer_s - outcome.download_s
    filled_s = np.maximum(left_s, 0.0) + video.chunk_s
    excess_s = np.maximum(filled_s - player.buffer_cap_s, 0.0)
    wait_s = np.ceil(excess_s / player.wait_step_s) * player.wait_step_s
    switch = np.abs(rates - rates[states.level][..., None])
    gained = rates - player.qoe.rebuffer * np.maximum(-left_s, 0.0) - player.qoe.switch * switch
    shape = np.broadcast_shapes(gained.shape, (1, 1, 1, video.levels))
    grown = [
        np.broadcast_to(field, shape)
        for field in (
            qoe + gained,
            filled_s - wait_s,
            position_s + outcome.moved_s + wait_s,
            wait_s,
            level,
        )
    ]
    roots = shape[0]
    if first:  # the first level becomes an axis of its own
        return _States(*(field.reshape(roots, video.levels, 1) for field in grown))
    return _States(*(field.reshape(roots, shape[1], -1) for field in grown))


def _prune(states: _States, levels: int, search: Hindsight) -> _States:
    """Per last level the best few: half of them by QoE, half with the buffer counted in."""
    available = states.qoe.shape[2]
    if available <= levels:
        return states
    half = max(1, search.width // 2)
    picks = []
    for level in range(levels):
        of_level = states.level == level
        for score in (states.qoe, _score(states, search)):
            masked = np.where(of_level, score, -np.inf)
            picks.append(np.argpartition(-masked, half - 1, axis=2)[..., :half])
    index = np.concatenate(picks, axis=2)
    return _States(
        *(
            np.take_along_axis(field, index, axis=2)
            for field in (
                states.qoe,
                states.buffer_s,
                states.position_s,
                states.idle_s,
                states.level,
            )
        )
    )


def _score(states: _States, search: Hindsight) -> FloatArray:
    enough = np.minimum(states.buffer_s, search.buffer_enough_s)
    return np.asarray(states.qoe + 2 * search.buffer_value * enough)


def _worth(states: _States, goes_on: np.ndarray, search: Hindsight) -> FloatArray:
    enough = np.minimum(states.buffer_s, search.buffer_enough_s)
    return np.asarray(states.qoe + goes_on[:, None, None] * search.buffer_value * enough)
