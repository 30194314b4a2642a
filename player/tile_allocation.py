"""Which tiles to fetch at which level, from what a controller predicts and the link allows.

A predicted pose with its spread is a Laplace distribution of yaw and of pitch around the pose. What
part of the field of view a tile is expected to fill is read from a table of fields of view over a
lattice of poses, so that the whole distribution counts, not a few samples of it. Levels are then
raised greedily, always the step that gains most per second of download time; the worth of a level
is the logarithm of its bitrate, as in BOLA (Spiteri et al., INFOCOM 2016).
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from player.angles import unwrap
from player.observation import KILOBITS_PER_BYTE
from player.tiles import FieldOfView, TileGrid, coverage
from player.viewport_observation import PITCH_RANGE_DEG, SAMPLE_S, HeadPose, Viewport

FloatArray = NDArray[np.float64]

#: Level of a tile that is not there.
MISSING = -1
#: Tiles that are expected to fill less of the field of view than this are not fetched ahead. Of
#: 0.001, 0.003, 0.01 and 0.03 the one with the best level in view for "no motion" on training
#: recordings, where what is missing counts as a level below the lowest.
LEAST_SHARE = 0.01
#: Fetching a tile once more wastes what is there, so it has to gain this much.
MIN_GAIN_OF_REPLACEMENT = 0.01
LATTICE_STEP_DEG = 5.0
#: Bytes count half as much after so many seconds of downloading: the least and the most.
HALF_LIVES_S = (0.5, 2.0)
LATENCY_WINDOW = 20
#: As long as round trips, not the link, set the pace, its rate is presumed at most this many times
#: the rate that was seen.
MOST_PRESUMED = 4.0


@dataclass(frozen=True, slots=True)
class Assumed:
    """Spread of predictions whose controller does not say, one second ahead.

    It grows with the square root of time. The defaults are what "no motion" is off on average,
    one second ahead, on eight viewers of the recordings of Jin et al. (2022).

    Attributes:
        pitch_spread_deg: of the pitch.
        yaw_spread_deg: of the yaw.
    """

    pitch_spread_deg: float = 3.3
    yaw_spread_deg: float = 11.6


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """What tiles will cost: each waits a round trip on one of a few connections.

    Attributes:
        rate_kbps: payload rate of all connections together when they are busy.
        latency_s: from request to first byte.
        connections: that download at once.
    """

    rate_kbps: float
    latency_s: float
    connections: int

    def seconds(self, size_bytes: float) -> float:
        """Share of the download time that a tile takes among many.

        The link works on one tile while the other connections wait for theirs; with too few
        connections for that, the round trips set the pace.
        """
        sending_s = size_bytes * KILOBITS_PER_BYTE / self.rate_kbps
        return max(sending_s, (self.latency_s + sending_s) / self.connections)

    def alone_s(self, size_bytes: float) -> float:
        """From request to last byte on a link that is otherwise idle."""
        return self.latency_s + size_bytes * KILOBITS_PER_BYTE / self.rate_kbps


class ThroughputMeter:
    """Estimates a link from what came over it, newer requests counting more.

    Rates are measured over a short and over a long time, and the lower one counts, as in
    Shaka Player: a drop is believed at once, a rise when it lasts.
    """

    def __init__(self, connections: int) -> None:
        self._means = [_FadingMeans(connections, half_life_s) for half_life_s in HALF_LIVES_S]
        self._connections = connections
        self._latencies_s: deque[float] = deque(maxlen=LATENCY_WINDOW)

    def took(self, size_bytes: int, *, busy_s: float, latency_s: float) -> None:
        """What was requested is in.

        Args:
            size_bytes: how much that was.
            busy_s: time since the answer before it, as far as anything was being downloaded.
            latency_s: from its request to its first byte.
        """
        for means in self._means:
            means.took(size_bytes, busy_s)
        self._latencies_s.append(latency_s)

    def estimate(self, waiting_s: float = 0.0) -> LinkEstimate | None:
        """The link, None while nothing is known.

        Args:
            waiting_s: time since the last answer, as far as anything was being downloaded. What is
                overdue lowers the rate before it is in.
        """
        if not self._latencies_s or not self._means[0].busy_s:
            return None
        latency_s = min(self._latencies_s)
        rate_kbps = min(means.rate_kbps(latency_s, waiting_s) for means in self._means)
        return LinkEstimate(rate_kbps, latency_s, self._connections)


@dataclass(slots=True)
class _FadingMeans:
    """Sums over answers, each counting half as much after ``half_life_s`` of downloading."""

    connections: int
    half_life_s: float
    size_bytes: float = 0.0
    busy_s: float = 0.0
    answers: float = 0.0

    def took(self, size_bytes: int, busy_s: float) -> None:
        fade: float = 0.5 ** (busy_s / self.half_life_s)
        self.size_bytes = self.size_bytes * fade + size_bytes
        self.busy_s = self.busy_s * fade + busy_s
        self.answers = self.answers * fade + 1

    def rate_kbps(self, latency_s: float, waiting_s: float) -> float:
        """Rate of the link.

        With ``c`` connections an answer comes every ``max(s, (latency + s) / c)`` seconds, if the
        link needs ``s`` for its bytes; here this is solved for ``s``.
        """
        every_s = self.busy_s / self.answers
        sending_s = max(self.connections * every_s - latency_s, every_s / MOST_PRESUMED)
        sending_s = min(sending_s, every_s)
        rate_kbps = self.size_bytes / self.answers * KILOBITS_PER_BYTE / sending_s
        overdue_s = max(waiting_s - latency_s - every_s, 0.0)
        faded_s: float = self.busy_s * 0.5 ** (overdue_s / self.half_life_s)
        return rate_kbps * faded_s / max(faded_s + overdue_s, 1e-12)


def predicted_at(
    now: HeadPose, viewports: Sequence[Viewport], ahead_s: FloatArray, assumed: Assumed
) -> FloatArray:
    """Where the viewer will look at some times, and how far off that may be.

    Args:
        now: where the viewer looks now.
        viewports: where the viewer will look, ``SAMPLE_S`` apart, the first that far ahead.
        ahead_s: ``(n,)`` times of interest, from now on; behind the last viewport it holds on.
        assumed: spreads where the controller names none.

    Returns:
        ``(n, 5)`` roll, pitch and yaw, spread of pitch and of yaw; see
        :class:`player.viewport_records.PredictedPose`.
    """
    times_s = np.arange(len(viewports) + 1) * SAMPLE_S
    poses = unwrap(np.array([now, *(one.pose for one in viewports)], dtype=np.float64))
    root = np.sqrt(times_s)
    pitch_spreads = root * assumed.pitch_spread_deg
    yaw_spreads = root * assumed.yaw_spread_deg
    for step, one in enumerate(viewports, start=1):
        if one.pitch_spread_deg is not None:
            pitch_spreads[step] = one.pitch_spread_deg
        if one.yaw_spread_deg is not None:
            yaw_spreads[step] = one.yaw_spread_deg
    columns = [*poses.T, pitch_spreads, yaw_spreads]
    predicted = np.stack([np.interp(ahead_s, times_s, column) for column in columns], axis=1)
    predicted[:, 1] = np.clip(predicted[:, 1], *PITCH_RANGE_DEG)
    return predicted


def expected_share(grid: TileGrid, fov: FieldOfView, predicted: FloatArray) -> FloatArray:
    """Share of the field of view that each tile is expected to fill, mean over some times.

    Args:
        grid: the tiles.
        fov: the field of view.
        predicted: ``(n, 5)``, see :func:`predicted_at`.

    Returns:
        ``(tiles,)``, sums to 1.
    """
    roll, pitch, yaw, pitch_spread, yaw_spread = predicted.T
    if not pitch_spread.any() and not yaw_spread.any():
        return np.asarray(coverage(grid, fov, np.stack([roll, pitch, yaw], axis=1)).mean(axis=0))
    return _lattice(grid, fov).mean_share(pitch, pitch_spread, yaw, yaw_spread)


@dataclass(frozen=True)
class _Lattice:
    """Fields of view over a lattice of poses without roll.

    Attributes:
        pitches_deg: ``(P,)`` from -90 to 90.
        yaws_deg: ``(Y,)`` all around.
        shares: ``(P, Y, tiles)``.
    """

    pitches_deg: FloatArray
    yaws_deg: FloatArray
    shares: FloatArray

    def mean_share(
        self,
        pitch_deg: FloatArray,
        pitch_spread_deg: FloatArray,
        yaw_deg: FloatArray,
        yaw_spread_deg: FloatArray,
    ) -> FloatArray:
        """Mean share over times ``(n,)`` and distributions, ``(tiles,)``."""
        turn, half = 360.0, 180.0
        step = self.pitches_deg[1] - self.pitches_deg[0]
        beyond = np.arange(step, half, step)  # a pitch beyond a pole counts as the pole
        points = np.concatenate(
            [self.pitches_deg[0] - beyond[::-1], self.pitches_deg, self.pitches_deg[-1] + beyond]
        )
        weights = _lattice_weights(points - pitch_deg[:, None], pitch_spread_deg, step)
        pitch_weights = weights[:, len(beyond) : -len(beyond)].copy()
        pitch_weights[:, 0] += weights[:, : len(beyond)].sum(axis=1)
        pitch_weights[:, -1] += weights[:, -len(beyond) :].sum(axis=1)
        offsets = (self.yaws_deg - yaw_deg[:, None] + half) % turn - half
        step = self.yaws_deg[1] - self.yaws_deg[0]
        yaw_weights = sum(
            _lattice_weights(offsets + around, yaw_spread_deg, step)
            for around in (-turn, 0.0, turn)
        )
        joint = pitch_weights.T @ yaw_weights  # (P, Y), summed over the times
        share = joint.ravel() @ self.shares.reshape(joint.size, -1)
        return np.asarray(share / share.sum())


def _lattice_weights(offsets: FloatArray, spread: FloatArray, step: float) -> FloatArray:
    """Weights of lattice points for Laplace distributions around 0, linear in between.

    The mean of a hat function is a second difference of the mean of |X - x|, which is
    |x| + b exp(-|x| / b); with b = 0 this is linear interpolation.

    Args:
        offsets: ``(n, points)``.
        spread: ``(n,)`` scale b.
        step: between two points.
    """
    scale = np.maximum(spread, 1e-9)[:, None]

    def mean_distance(x: FloatArray) -> FloatArray:
        distance = np.abs(x)
        return np.asarray(distance + scale * np.exp(-distance / scale))

    middle = mean_distance(offsets)
    outer = mean_distance(offsets - step) + mean_distance(offsets + step)
    return np.asarray((outer - 2 * middle) / (2 * step))


@functools.lru_cache(maxsize=8)
def _lattice(grid: TileGrid, fov: FieldOfView) -> _Lattice:
    """The lattice; a turn by a whole tile only moves the columns on."""
    pitches = np.linspace(-90.0, 90.0, round(180 / LATTICE_STEP_DEG) + 1, dtype=np.float64)
    per_tile = math.ceil(360 / grid.columns / LATTICE_STEP_DEG)
    yaws = np.linspace(-180.0, 180.0, grid.columns * per_tile, endpoint=False, dtype=np.float64)
    poses = [(0.0, pitch, yaw) for pitch in pitches for yaw in yaws[:per_tile]]
    first = coverage(grid, fov, np.array(poses)).reshape(
        len(pitches), per_tile, grid.rows, grid.columns
    )
    turned = [np.roll(first, columns, axis=-1) for columns in range(grid.columns)]
    shares = np.stack(turned, axis=1)  # (P, columns, per_tile, rows, columns)
    return _Lattice(pitches, yaws, shares.reshape(len(pitches), len(yaws), grid.tiles))


def allocate(
    shares: FloatArray,
    sizes_bytes: Sequence[Sequence[int]],
    levels_kbps: Sequence[float],
    have: Sequence[int],
    *,
    budget_s: float,
    link: LinkEstimate | None,
    least_share: float = LEAST_SHARE,
    is_whole_base: bool = False,
    is_base_kept: bool = False,
) -> tuple[int, ...]:
    """The level that each tile should have.

    First every tile that may be seen gets level 0, whatever it takes; what is left of the budget
    raises levels.

    Args:
        shares: ``(tiles,)`` expected share of the field of view.
        sizes_bytes: what is left to be requested of each tile at each level.
        levels_kbps: nominal rates of the levels.
        have: levels that are there or on their way to the last byte, ``MISSING`` for none.
        budget_s: seconds of download time.
        link: what tiles cost; None: not known yet, nothing above level 0.
        least_share: of the field of view that a tile must be expected to fill.
        is_whole_base: whether all tiles get level 0, not only those that may be seen.
        is_base_kept: whether level 0 is fetched even of tiles that get a better level.

    Returns:
        Levels, never below ``have``; ``MISSING``: not to be fetched.
    """
    chosen = [
        0 if level == MISSING and (is_whole_base or share >= least_share) else level
        for level, share in zip(have, shares.tolist(), strict=True)
    ]
    if link is None:
        return tuple(chosen)
    worth = [math.log(kbps / levels_kbps[0]) for kbps in levels_kbps]
    left_s = budget_s
    costs: dict[int, list[float]] = {}
    for tile in np.flatnonzero(shares >= least_share).tolist():
        costs[tile] = [link.seconds(size) for size in sizes_bytes[tile]]
    left_s -= sum(
        link.seconds(sizes_bytes[tile][0])
        for tile, (level, before) in enumerate(zip(chosen, have, strict=True))
        if level > before
    )
    share_of = shares.tolist()
    steps: list[tuple[float, int, int, float]] = []

    def push_best_step(tile: int) -> None:
        level, cost = chosen[tile], costs[tile]
        is_there = level == have[tile]
        is_paid_for = is_there or (is_base_kept and level == 0)
        paid_s = 0.0 if is_paid_for else cost[level]
        least_gain = MIN_GAIN_OF_REPLACEMENT if is_there else 0.0
        best: tuple[float, int, int, float] | None = None
        for higher in range(level + 1, len(cost)):
            extra_s = max(cost[higher] - paid_s, 1e-12)
            gain = share_of[tile] * (worth[higher] - worth[level])
            if extra_s <= left_s and gain >= least_gain:
                step = (-gain / extra_s, tile, higher, extra_s)
                best = step if best is None else min(best, step)
        if best is not None:
            heapq.heappush(steps, best)

    for tile in costs:
        push_best_step(tile)
    while steps:
        _, tile, level, extra_s = heapq.heappop(steps)
        if extra_s <= left_s:
            left_s -= extra_s
            chosen[tile] = level
        push_best_step(tile)
    return tuple(chosen)
