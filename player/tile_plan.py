"""Which tiles of the chunks to come to fetch at which level, and in which order.

The base comes first. Blanks are a matter of the link's outages more than of wrong predictions, and
what helps against an outage is that level 0 of seconds to come is there already; as in two-tier
streaming (Duanmu et al., "Prioritized Buffer Control in Two-tier 360 Video Streaming", 2017), it is
fetched as early as possible and better levels replace it closer to when they are shown, by fresher
predictions. Of each chunk the tiles that will probably be seen get level 0 whatever it takes; then
the next most probable, as insurance, until the base takes a certain part of the link's time. What
a blank costs thus is the same for every controller, and who foretells better sees fewer.

What is left of the time raises levels greedily, always the step that gains most per second of
download time, within the time until each chunk is shown. The worth of a level is the logarithm of
its bitrate, as in BOLA (Spiteri et al., INFOCOM 2016).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from player.tile_allocation import MISSING, FloatArray, LinkEstimate

#: Tiles that fill this much of the field of view get level 0 even if that takes long.
LIKELY_SHARE = 0.05
#: Tiles that fill less than this are not worth a request.
NEGLIGIBLE_SHARE = 5e-4
#: As long as nothing is known of the link: what is fetched then delays the start.
FIRST_SHARE = 5e-3
#: Part of the link's time that may go into level 0.
BASE_PART = 0.25
#: Fetching a tile once more wastes what is there, so it has to gain this much.
MIN_GAIN_OF_REPLACEMENT = 0.01
#: Less is no gain.
MIN_GAIN = 1e-4


@dataclass(frozen=True, slots=True)
class ComingChunk:
    """A chunk that has not begun to play.

    Attributes:
        shares: ``(tiles,)`` expected share of the field of view.
        sizes_bytes: of each tile at each level.
        have: levels that are there or on their way, ``MISSING`` for none.
        budget_s: download time until it plays, for this chunk and those before it.
    """

    shares: FloatArray
    sizes_bytes: Sequence[Sequence[int]]
    have: Sequence[int]
    budget_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tile that is to be fetched.

    Attributes:
        chunk: position among the chunks to come.
        tile: of that chunk.
        level: at which.
    """

    chunk: int
    tile: int
    level: int


def plan_tiles(
    chunks: Sequence[ComingChunk],
    levels_kbps: Sequence[float],
    link: LinkEstimate | None,
    *,
    chunk_s: float,
    is_whole_base: bool = False,
) -> list[Wanted]:
    """What to fetch, the most urgent first.

    Args:
        chunks: in the order of playback.
        levels_kbps: nominal rates of the levels.
        link: what tiles cost; None: not known yet, nothing above level 0.
        chunk_s: how long a chunk plays.
        is_whole_base: whether all tiles get level 0, not only those that may be seen.

    Returns:
        Tiles of which nothing is there, at level 0 unless they are of the first chunk; then better
        levels.
    """
    plan = _Plan(chunks, levels_kbps, link)
    for number in range(len(chunks)):
        plan.add_base(number, chunk_s * BASE_PART, is_whole_base=is_whole_base)
    if link is not None:
        plan.raise_levels()
    return plan.in_order()


@dataclass
class _Plan:
    chunks: Sequence[ComingChunk]
    levels_kbps: Sequence[float]
    link: LinkEstimate | None
    chosen: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.chosen = [list(chunk.have) for chunk in self.chunks]
        self._shares = [chunk.shares.tolist() for chunk in self.chunks]
        self._spent_s = [0.0] * len(self.chunks)
        link = self.link
        self._costs_s = (
            []
            if link is None
            else [
                [[link.seconds(size) for size in tile] for tile in chunk.sizes_bytes]
                for chunk in self.chunks
            ]
        )

    def add_base(self, number: int, most_s: float, *, is_whole_base: bool) -> None:
        """Level 0 of a chunk; what is there of it already counts."""
        shares, chosen = self._shares[number], self.chosen[number]
        for tile in sorted(range(len(shares)), key=lambda tile: -shares[tile]):
            cost_s = self._costs_s[number][tile][0] if self._costs_s else 0.0
            most_s -= cost_s
            if self.link is None:
                is_wanted = shares[tile] >= FIRST_SHARE
            else:
                least = NEGLIGIBLE_SHARE if most_s >= 0 else LIKELY_SHARE
                is_wanted = shares[tile] >= least
            if chosen[tile] == MISSING and (is_wanted or is_whole_base):
                chosen[tile] = 0
                self._spent_s[number] += cost_s

    def raise_levels(self) -> None:
        """Spends the time that is left."""
        worth = [math.log(kbps / self.levels_kbps[0]) for kbps in self.levels_kbps]
        left_s = self._left_s()
        steps: list[tuple[float, int, int, int, float]] = []

        def push_best_step(number: int, tile: int) -> None:
            level, cost = self.chosen[number][tile], self._costs_s[number][tile]
            is_there = level == self.chunks[number].have[tile]
            is_paid_for = is_there or (self._keeps_base(number) and level == 0)
            paid_s = 0.0 if is_paid_for else cost[level]
            least_gain = MIN_GAIN_OF_REPLACEMENT if is_there else MIN_GAIN
            best: tuple[float, int, int, int, float] | None = None
            for higher in range(level + 1, len(cost)):
                extra_s = max(cost[higher] - paid_s, 1e-12)
                gain = self._shares[number][tile] * (worth[higher] - worth[level])
                if extra_s <= left_s[number] and gain >= least_gain:
                    step = (-gain / extra_s, number, tile, higher, extra_s)
                    best = step if best is None else min(best, step)
            if best is not None:
                heapq.heappush(steps, best)

        for number, chosen in enumerate(self.chosen):
            for tile, level in enumerate(chosen):
                if level != MISSING:
                    push_best_step(number, tile)
        while steps:
            _, number, tile, level, extra_s = heapq.heappop(steps)
            if extra_s <= left_s[number]:
                self._spent_s[number] += extra_s
                self.chosen[number][tile] = level
                left_s = self._left_s()
            push_best_step(number, tile)

    def in_order(self) -> list[Wanted]:
        """What is not there yet."""
        missing: list[Wanted] = []
        better: list[Wanted] = []
        for number, chunk in enumerate(self.chunks):
            shares, chosen = self._shares[number], self.chosen[number]
            for tile in sorted(range(len(shares)), key=lambda tile: -shares[tile]):
                level, before = chosen[tile], chunk.have[tile]
                if level <= before:
                    continue
                if before > MISSING:
                    better.append(Wanted(number, tile, level))
                    continue
                first = 0 if self._keeps_base(number) else level
                missing.append(Wanted(number, tile, first))
                if first < level:
                    better.append(Wanted(number, tile, level))
        return missing + better

    def _keeps_base(self, number: int) -> bool:
        """Whether level 0 is fetched even of tiles that get a better level."""
        return number > 0

    def _left_s(self) -> list[float]:
        """How much longer each chunk may take without it or a later one being late."""
        spent_s, slack_s = 0.0, []
        for chunk, own_s in zip(self.chunks, self._spent_s, strict=True):
            spent_s += own_s
            slack_s.append(chunk.budget_s - spent_s)
        return [min(slack_s[number:]) for number in range(len(slack_s))]
