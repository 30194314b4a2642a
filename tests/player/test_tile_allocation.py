"""What tiles are worth and cost: expected views against sampled ones, the estimate of the link."""

from __future__ import annotations

import numpy as np
import pytest

from player.tile_allocation import (
    DOUBT,
    Assumed,
    LinkEstimate,
    ThroughputMeter,
    doubted_share,
    expected_share,
    predicted_at,
)
from player.tiles import FieldOfView, TileGrid, coverage
from player.viewport_observation import HeadPose, Viewport

GRID = TileGrid(6, 12)
FOV = FieldOfView()
EXACT = Assumed(0.0, 0.0)


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


def test_a_surprise_is_always_possible_unless_the_controller_is_certain() -> None:
    ahead_s = np.array([1.0])
    sure = Viewport(0.0, 0.0, 0.0, pitch_spread_deg=1.0, yaw_spread_deg=1.0)
    predicted = predicted_at(sure.pose, [sure] * 10, ahead_s, Assumed())
    foretold = expected_share(GRID, FOV, predicted)
    doubted = doubted_share(GRID, FOV, predicted, ahead_s, Assumed())
    assert doubted.sum() == pytest.approx(1.0)
    aside = foretold < 1e-4
    assert doubted[aside].sum() > foretold[aside].sum() + 0.001
    assert np.abs(doubted - foretold).sum() < 2 * DOUBT
    certain = predicted_at(sure.pose, [Viewport(0, 0, 0, 0, 0, 0)] * 10, ahead_s, EXACT)
    np.testing.assert_array_equal(
        doubted_share(GRID, FOV, certain, ahead_s, Assumed()), expected_share(GRID, FOV, certain)
    )


@pytest.mark.parametrize("latency_s", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("size_bytes", [2_000, 50_000])
def test_the_meter_finds_the_link_behind_round_trips(latency_s: float, size_bytes: int) -> None:
    true = LinkEstimate(rate_kbps=4000.0, latency_s=latency_s, connections=4)
    meter = ThroughputMeter(4)
    assert meter.estimate is None
    every_s = true.seconds(size_bytes)
    for _ in range(50):
        meter.took(size_bytes, busy_s=every_s, latency_s=latency_s)
    found = meter.estimate
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
        assert meter.estimate is not None
        assert meter.estimate.rate_kbps == pytest.approx(rate_kbps, rel=0.3)
