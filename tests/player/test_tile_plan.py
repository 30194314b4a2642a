"""Plans of the tiles to fetch: which get level 0, who is raised, what comes first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.tile_allocation import MISSING, LinkEstimate
from player.tile_plan import (
    BASE_PART,
    FIRST_SHARE,
    LIKELY_SHARE,
    NEGLIGIBLE_SHARE,
    ComingChunk,
    Wanted,
    plan_tiles,
)

LEVELS_KBPS = (400.0, 1200.0, 3000.0, 6000.0)
FAST = LinkEstimate(rate_kbps=1e9, latency_s=0.0, connections=4)
SLOW = LinkEstimate(rate_kbps=8.0, latency_s=0.0, connections=1)  # 1 s per 1,000 bytes


def coming(
    shares: Sequence[float],
    sizes: Sequence[int],
    *,
    budget_s: float = 1.0,
    have: Sequence[int] | None = None,
) -> ComingChunk:
    tiles = len(shares)
    return ComingChunk(
        np.array(shares), [sizes] * tiles, have or [MISSING] * tiles, budget_s=budget_s
    )


def wanted(*chunks: ComingChunk, link: LinkEstimate | None, chunk_s: float = 1.0) -> list[Wanted]:
    return plan_tiles(chunks, LEVELS_KBPS, link, chunk_s=chunk_s)


def test_a_fast_link_brings_all_that_may_be_seen_at_the_top_level() -> None:
    shares = [0.5, 0.4, 0.0996, NEGLIGIBLE_SHARE * 0.8, 0.0]
    found = wanted(coming(shares, (500, 1500, 3750, 7500)), link=FAST)
    assert found == [Wanted(0, 0, 3), Wanted(0, 1, 3), Wanted(0, 2, 3)]


@pytest.mark.parametrize(("link", "budget_s"), [(None, 10.0), (FAST, 0.0), (FAST, -1.0)])
def test_without_time_or_knowledge_there_is_only_the_base(
    link: LinkEstimate | None, budget_s: float
) -> None:
    shares = [0.5, 0.4, 0.096, FIRST_SHARE * 0.8]
    found = wanted(coming(shares, (500, 1500, 3750, 7500), budget_s=budget_s), link=link)
    assert {one.level for one in found} == {0}
    assert len(found) == (3 if link is None else 4)


def test_likely_tiles_get_the_base_whatever_it_takes_and_others_for_a_part_of_the_time() -> None:
    likely, unlikely = 0.3, LIKELY_SHARE / 2
    chunk_s = 4.5 / BASE_PART  # level 0 of four tiles, and not of five
    shares = [likely, likely, likely, *[unlikely] * 10]
    found = wanted(coming(shares, (1000, 2000), budget_s=0.0), link=SLOW, chunk_s=chunk_s)
    assert [one.tile for one in found] == [0, 1, 2, 3]
    found = wanted(coming([likely] * 5, (1000, 2000), budget_s=0.0), link=SLOW, chunk_s=chunk_s)
    assert len(found) == 5
    # What is there already counts.
    there = [0, 0, 0, 0, *[MISSING] * 9]
    found = wanted(
        coming(shares, (1000, 2000), have=there, budget_s=0.0), link=SLOW, chunk_s=chunk_s
    )
    assert found == []


def test_all_tiles_get_the_base_if_so_asked() -> None:
    chunk = coming([1.0, 0.0, 0.0], (1000, 2000), budget_s=0.0)
    found = plan_tiles([chunk], LEVELS_KBPS, SLOW, chunk_s=1.0, is_whole_base=True)
    assert [(one.tile, one.level) for one in found] == [(0, 0), (1, 0), (2, 0)]


def test_one_step_by_hand() -> None:
    shares = [0.6, 0.4, 0.0]
    found = wanted(coming(shares, (1000, 2000), budget_s=3.0), link=SLOW)
    assert found == [Wanted(0, 0, 1), Wanted(0, 1, 0)]
    # What is there costs nothing, but to replace it costs the whole new tile.
    there = [0, MISSING, MISSING]
    found = wanted(coming(shares, (1000, 2000), have=there, budget_s=3.0), link=SLOW)
    assert found == [Wanted(0, 1, 1)]
    there = [0, 0, 0]
    found = wanted(coming(shares, (1000, 2000), have=there, budget_s=2.0), link=SLOW)
    assert found == [Wanted(0, 0, 1)]


def test_the_base_of_later_chunks_comes_before_better_levels() -> None:
    first = coming([1.0], (1000, 2000), have=[0], budget_s=2.0)
    found = wanted(first, coming([1.0], (1000, 2000), budget_s=6.0), link=SLOW)
    assert found == [Wanted(1, 0, 0), Wanted(0, 0, 1), Wanted(1, 0, 1)]


def test_time_spent_on_a_chunk_is_missing_in_later_ones() -> None:
    first = coming([1.0], (1000, 2000), have=[0], budget_s=2.0)
    found = wanted(first, coming([0.1], (1000, 2000), budget_s=4.0), link=SLOW)
    assert found == [Wanted(1, 0, 0), Wanted(0, 0, 1)]


@given(st.data())
def test_levels_never_fall_and_the_budgets_hold(data: st.DataObject) -> None:
    tiles = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    link = LinkEstimate(
        data.draw(st.floats(10, 1e5)), data.draw(st.floats(0, 0.5)), data.draw(st.integers(1, 6))
    )
    budgets_s = np.cumsum(data.draw(st.lists(st.floats(0, 2), min_size=1, max_size=3))).tolist()
    chunks = [
        ComingChunk(
            rng.dirichlet(np.full(tiles, 0.5)),
            np.maximum.accumulate(rng.integers(1, 20_000, (tiles, 4)), axis=1).tolist(),
            rng.integers(-1, 4, tiles).tolist(),
            budget_s,
        )
        for budget_s in budgets_s
    ]
    found = wanted(*chunks, link=link)
    assert len(set(found)) == len(found)
    spent_s = base_s = 0.0
    for number, chunk in enumerate(chunks):
        own = [one for one in found if one.chunk == number]
        assert all(one.level > chunk.have[one.tile] for one in own)
        spent_s += sum(link.seconds(chunk.sizes_bytes[one.tile][one.level]) for one in own)
        missing = {one.tile for one in own if chunk.have[one.tile] == MISSING}
        base_s += sum(link.seconds(chunk.sizes_bytes[tile][0]) for tile in missing)
        if base_s == 0.0:
            assert spent_s <= max(chunk.budget_s, 0.0) + 1e-9
    assert spent_s <= max(budgets_s[-1], base_s) + base_s + 1e-9
    assert math.isfinite(spent_s)
