"""Offline optimum: the best levels when the whole trace is known. Simulation only.

A beam search over the session: for each chunk, every kept state (level, buffer, position in the
trace) is continued with every level under the same link model that the session runs on. States
alike in level and buffer compete, and the best few of each such cell stay, so that states rich in
buffer are never crowded out by states rich in QoE. The result is a feasible plan, and with the
default width within a fraction of a percent of the true optimum.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from controllers.registry import register
from player.link_models import LinkModel
from player.machine import PlayerConfig
from player.observation import AbrObservation
from player.qoe import KBPS_PER_MBPS
from player.trace import FloatArray
from player.video import Video

BUFFER_CELL_S = 0.25


@register("abr", "oracle")
@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Plays back the plan that the search found for this very session.

    Attributes:
        width: states kept per level and quarter second of buffer.
    """

    needs_future = True

    width: int = 8
    plan: tuple[int, ...] = dataclasses.field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, is {self.width}")

    def for_session(
        self, video: Video, link: LinkModel, start_s: float, player: PlayerConfig
    ) -> Oracle:
        """The oracle for one session: plans it from the trace."""
        bound = Oracle(width=self.width)
        plan = optimal_levels(video, link, start_s=start_s, player=player, width=self.width)
        object.__setattr__(bound, "plan", plan)
        return bound

    def decide(self, observation: AbrObservation) -> int:
        """Returns the planned level.

        Raises:
            LookupError: the oracle was not bound to a session.
        """
        if observation.chunk_index >= len(self.plan):
            raise LookupError("the oracle needs the trace: it works in simulated sessions only")
        return self.plan[observation.chunk_index]


@dataclass(frozen=True)
class _Beam:
    """States reached after some chunks, ``(N,)`` each."""

    qoe: FloatArray
    buffer_s: FloatArray
    position_s: FloatArray
    idle_s: FloatArray
    level: np.ndarray
    parent: np.ndarray

    def take(self, index: np.ndarray) -> _Beam:
        return _Beam(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def optimal_levels(
    video: Video,
    link: LinkModel,
    *,
    start_s: float,
    player: PlayerConfig,
    width: int = 8,
) -> tuple[int, ...]:
    """Levels of all chunks that maximise the session's QoE when decisions take no time.

    Args:
        video: the video.
        link: model of the link, which knows the trace.
        start_s: position in the trace at the start.
        player: buffer cap, first level and QoE weights.
        width: states kept per cell.
    """
    rates_mbps = np.asarray(video.levels_kbps) / KBPS_PER_MBPS
    beam = _Beam(
        qoe=np.zeros(1),
        buffer_s=np.zeros(1),
        position_s=np.full(1, start_s),
        idle_s=np.full(1, np.inf),
        level=np.full(1, -1),
        parent=np.full(1, -1),
    )
    beams: list[_Beam] = []
    for index, sizes in enumerate(video.sizes_bytes):
        levels = np.arange(video.levels)
        if index == 0 and player.first_level is not None:
            levels = levels[player.first_level : player.first_level + 1]
        beam = _prune(
            _extend(beam, np.asarray(sizes, float), levels, rates_mbps, link, video, player), width
        )
        beams.append(beam)
    best = int(np.argmax(beam.qoe))
    plan: list[int] = []
    for beam in reversed(beams):
        plan.append(int(beam.level[best]))
        best = int(beam.parent[best])
    return tuple(reversed(plan))


def _extend(
    beam: _Beam,
    sizes: FloatArray,
    levels: np.ndarray,
    rates_mbps: FloatArray,
    link: LinkModel,
    video: Video,
    player: PlayerConfig,
) -> _Beam:
    """Every state continued with every level."""
    parent = np.repeat(np.arange(len(beam.qoe)), len(levels))
    level = np.tile(levels, len(beam.qoe))
    before = beam.take(parent)
    outcome = link.download(sizes[level], before.position_s, before.idle_s)
    left_s = before.buffer_s - outcome.download_s
    buffer_s = np.maximum(left_s, 0.0) + video.chunk_s
    excess_s = np.maximum(buffer_s - player.buffer_cap_s, 0.0)
    wait_s = np.ceil(excess_s / player.wait_step_s) * player.wait_step_s
    if before.level[0] < 0:  # chunk 0 is not scored
        qoe = np.zeros(len(level))
    else:
        switch_mbps = np.abs(rates_mbps[level] - rates_mbps[before.level])
        stall_s = np.maximum(-left_s, 0.0)
        weights = player.qoe
        qoe = rates_mbps[level] - weights.rebuffer * stall_s - weights.switch * switch_mbps
    return _Beam(
        qoe=before.qoe + qoe,
        buffer_s=buffer_s - wait_s,
        position_s=before.position_s + outcome.moved_s + wait_s,
        idle_s=wait_s,
        level=level,
        parent=parent,
    )


def _prune(beam: _Beam, width: int) -> _Beam:
    """The best ``width`` states of each cell of level and buffer."""
    cell = np.floor(beam.buffer_s / BUFFER_CELL_S).astype(np.int64) * 1024 + beam.level
    order = np.lexsort((-beam.qoe, cell))
    ordered = cell[order]
    first_of_cell = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    cell_start = np.maximum.accumulate(np.where(first_of_cell, np.arange(len(order)), 0))
    rank = np.arange(len(order)) - cell_start
    return beam.take(order[rank < width])
