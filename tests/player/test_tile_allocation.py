"""Tile allocation: expected views against sampled ones, greedy levels, the estimate of the link."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.tile_allocation import (
    LEAST_SHARE,
    MISSING,
    Assumed,
    LinkEstimate,
    ThroughputMeter,
    allocate,
    expected_share,
    predicted_at,
)
from player.tiles import FieldOfView, TileGrid, coverage
from player.viewport_observation import HeadPose, Viewport

GRID = TileGrid(6, 12)
FOV = FieldOfView()
EXACT = Assumed(0.0, 0.0)
LEVELS_KBPS = (400.0, 1200.0, 3000.0, 6000.0)
FAST = LinkEstimate(rate_kbps=1e9, latency_s=0.0, connections=4)


def share_of(viewport: Viewport, *, assumed: Assumed = EXACT) -> np.ndarray:
    """The viewer stands still there, and so says the prediction."""
    ahead_s = np.array([1.0])
    predicted = predicted_at(viewport.pose, [viewport] * 10, ahead_s, assumed)
    return expected_share(GRID, FOV, predicted)


@pytest.mark.parametrize("pose", [(0, 0, 0), (20, 35, -170), (-5, -80, 93), (3, 88, 179)])
def test_exact_predictions_are_the_coverage_itself(pose: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(share_of(Viewport(*pose)), coverage(GRID, FOV, [pose])[0])


@pytest.mark.parametrize("pose", [(0, 0, 0), (0, 40, -178), (0, -85, 93)])
@pytest.mark.parametrize("spread", [2.0, 12.0, 40.0])
def test_spread_predictions_are_the_mean_over_a_laplace_distribution(
    pose: tuple[float, float, float], spread: float
) -> None:
    rng = np.random.default_rng(1)
    poses = np.repeat([pose], 2_000, axis=0).astype(float)
    poses[:, 1] = np.clip(poses[:, 1] + rng.laplace(0.0, spread / 2, len(poses)), -90, 90)
    poses[:, 2] += rng.laplace(0.0, spread, len(poses))
    sampled = coverage(GRID, FOV, poses).mean(axis=0)
    viewport = Viewport(*pose, pitch_spread_deg=spread / 2, yaw_spread_deg=spread)
    share = share_of(viewport)
    assert share.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(share, sampled, atol=0.012)


def test_assumed_spreads_grow_with_time_and_only_where_none_is_named() -> None:
    pose = Viewport(0.0, 0.0, 0.0)
    assumed = Assumed(pitch_spread_deg=3.0, yaw_spread_deg=12.0)
    named = Viewport(0.0, 0.0, 0.0, pitch_spread_deg=3.0, yaw_spread_deg=12.0)
    np.testing.assert_allclose(share_of(pose, assumed=assumed), share_of(named), atol=1e-12)
    certain = Viewport(0.0, 0.0, 0.0, pitch_spread_deg=0.0, yaw_spread_deg=0.0)
    np.testing.assert_allclose(share_of(certain, assumed=assumed), share_of(pose), atol=1e-12)
    later = expected_share(
        GRID, FOV, predicted_at(pose.pose, [pose] * 20, np.array([4.0]), assumed)
    )
    wide = Viewport(0.0, 0.0, 0.0, pitch_spread_deg=6.0, yaw_spread_deg=24.0)
    np.testing.assert_allclose(later, share_of(wide), atol=1e-12)


def test_between_predictions_the_head_turns_the_shorter_way() -> None:
    now = HeadPose(0.0, 0.0, 178.0)
    predicted = predicted_at(now, [Viewport(0.0, 0.0, -178.0)], np.array([0.1]), EXACT)
    share = expected_share(GRID, FOV, predicted)
    np.testing.assert_allclose(share, coverage(GRID, FOV, [(0.0, 0.0, 180.0)])[0], atol=1e-12)


def sizes(tiles: int) -> list[list[int]]:
    return [[round(kbps * 125 / tiles) for kbps in LEVELS_KBPS]] * tiles


def test_a_fast_link_gives_all_that_may_be_seen_the_top_level() -> None:
    shares = share_of(Viewport(0, 0, 0))
    levels = allocate(shares, sizes(72), LEVELS_KBPS, [MISSING] * 72, budget_s=1.0, link=FAST)
    assert [level == 3 for level in levels] == (shares >= LEAST_SHARE).tolist()
    assert set(levels) == {MISSING, 3}
    whole = allocate(
        shares, sizes(72), LEVELS_KBPS, [MISSING] * 72, budget_s=1.0, link=FAST, is_whole_base=True
    )
    assert set(whole) == {0, 3}


def test_the_least_share_decides_what_is_fetched_ahead() -> None:
    shares = np.array([0.9, 0.06, 0.03, 0.01])
    for least_share, fetched in ((0.001, 4), (0.01, 4), (0.02, 3), (0.05, 2)):
        levels = allocate(
            shares,
            sizes(4),
            LEVELS_KBPS,
            [MISSING] * 4,
            budget_s=1.0,
            link=FAST,
            least_share=least_share,
        )
        assert [level != MISSING for level in levels] == [tile < fetched for tile in range(4)]


@pytest.mark.parametrize(("link", "budget_s"), [(None, 10.0), (FAST, 0.0), (FAST, -1.0)])
def test_without_time_or_knowledge_there_is_only_the_base(
    link: LinkEstimate | None, budget_s: float
) -> None:
    shares = share_of(Viewport(0, 0, 0))
    levels = allocate(shares, sizes(72), LEVELS_KBPS, [MISSING] * 72, budget_s=budget_s, link=link)
    assert [level == 0 for level in levels] == (shares >= LEAST_SHARE).tolist()


def test_one_step_by_hand() -> None:
    link = LinkEstimate(rate_kbps=8.0, latency_s=0.0, connections=1)  # 1 s per 1,000 bytes
    shares = np.array([0.6, 0.4, 0.0])
    tiles = [[1000, 2000], [1000, 2000], [1000, 2000]]
    levels = allocate(shares, tiles, (1.0, 2.0), [MISSING] * 3, budget_s=3.0, link=link)
    assert levels == (1, 0, MISSING)
    # What is there costs nothing, but to replace it costs the whole new tile.
    levels = allocate(shares, tiles, (1.0, 2.0), [0, MISSING, MISSING], budget_s=2.0, link=link)
    assert levels == (0, 1, MISSING)
    assert allocate(shares, tiles, (1.0, 2.0), [0, 0, 0], budget_s=2.0, link=link) == (1, 0, 0)


@given(st.data())
def test_levels_never_fall_and_the_budget_holds(data: st.DataObject) -> None:
    tiles = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shares = rng.dirichlet(np.full(tiles, 0.5))
    table = np.maximum.accumulate(rng.integers(1, 20_000, (tiles, 4)), axis=1).tolist()
    have = rng.integers(-1, 4, tiles).tolist()
    budget_s = data.draw(st.floats(0, 3))
    link = LinkEstimate(
        data.draw(st.floats(10, 1e5)), data.draw(st.floats(0, 0.5)), data.draw(st.integers(1, 6))
    )
    levels = allocate(shares, table, LEVELS_KBPS, have, budget_s=budget_s, link=link)
    changed = [tile for tile in range(tiles) if levels[tile] != have[tile]]
    assert all(levels[tile] > have[tile] for tile in changed)
    base_s = sum(link.seconds(table[tile][0]) for tile in changed if have[tile] == MISSING)
    spent_s = sum(link.seconds(table[tile][levels[tile]]) for tile in changed)
    assert spent_s <= max(budget_s, base_s) + 1e-9


@pytest.mark.parametrize("latency_s", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("size_bytes", [2_000, 50_000])
def test_the_meter_finds_the_link_behind_round_trips(latency_s: float, size_bytes: int) -> None:
    true = LinkEstimate(rate_kbps=4000.0, latency_s=latency_s, connections=4)
    meter = ThroughputMeter(4)
    assert meter.estimate() is None
    every_s = true.seconds(size_bytes)
    for _ in range(50):
        meter.took(size_bytes, busy_s=every_s, latency_s=latency_s)
    found = meter.estimate()
    assert found is not None
    assert found.latency_s == latency_s
    seen_kbps = size_bytes * 8 / 1000 / every_s
    assert found.rate_kbps == pytest.approx(min(true.rate_kbps, 4 * seen_kbps))
    assert every_s * 0.999 < found.seconds(size_bytes) < every_s * 1.1  # never cheaper


def test_the_meter_follows_the_link() -> None:
    meter = ThroughputMeter(2)
    for rate_kbps in (8000.0, 800.0):
        for _ in range(round(10 * rate_kbps / 80)):
            meter.took(10_000, busy_s=80 / rate_kbps, latency_s=0.0)
        found = meter.estimate()
        assert found is not None
        assert found.rate_kbps == pytest.approx(rate_kbps, rel=0.05)


def steady(seconds: float, rate_kbps: float = 8000.0) -> ThroughputMeter:
    """A meter that 10,000 bytes after 10,000 came to."""
    meter = ThroughputMeter(1)
    for _ in range(round(seconds * rate_kbps / 80)):
        meter.took(10_000, busy_s=80 / rate_kbps, latency_s=0.0)
    return meter


def rate_of(meter: ThroughputMeter, waiting_s: float = 0.0) -> float:
    found = meter.estimate(waiting_s)
    assert found is not None
    return found.rate_kbps


def test_the_meter_believes_a_drop_sooner_than_a_rise() -> None:
    after_s = 0.5  # half of what the quick mean knows, and less of what the slow one does
    fallen, risen = steady(10.0), steady(10.0, 800.0)
    for _ in range(round(after_s * 800 / 80)):
        fallen.took(10_000, busy_s=80 / 800, latency_s=0.0)
    for _ in range(round(after_s * 8000 / 80)):
        risen.took(10_000, busy_s=80 / 8000, latency_s=0.0)
    assert rate_of(fallen) == pytest.approx(800 + 7200 * 0.5, rel=0.05)
    assert rate_of(risen) < 800 + 7200 * 0.25


def test_what_is_overdue_lowers_the_rate_before_it_is_in() -> None:
    meter = steady(10.0)  # an answer every 0.01 s
    assert rate_of(meter, 0.01) == rate_of(meter)
    assert rate_of(meter, 0.51) == pytest.approx(0.5 * rate_of(meter), rel=0.2)
    assert rate_of(meter, 10.0) < 0.01 * rate_of(meter)
    before = rate_of(meter)
    rate_of(meter, 5.0)
    assert rate_of(meter) == before
