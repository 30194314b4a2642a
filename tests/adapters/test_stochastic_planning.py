"""The planner against enumeration of everything that can happen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from adapters.stochastic_planning import MAX_BUFFER_CHUNKS, Plans, level_values
from player.qoe import PENSIEVE_QOE, QoeWeights


def draw_plans(
    *, sessions: int, horizon: int, levels_kbps: tuple[float, ...], chunk_s: float, seed: int
) -> Plans:
    """Decisions in which every time is a multiple of the grid's step, an eighth of a chunk."""
    rng = np.random.default_rng(seed)
    levels, bins = len(levels_kbps), 2

    def probabilities(*shape: int) -> np.ndarray:  # type: ignore[type-arg]
        drawn = rng.random(shape)
        return (drawn / drawn.sum(axis=-1, keepdims=True)).astype(np.float32)

    throughput_kbps = 250.0 * 2.0 ** rng.integers(0, 6, (sessions, bins))
    step_bytes = int(chunk_s / 8 * 8000 * 1000 / 8)  # at 8,000 kbit/s one step of the grid
    return Plans(
        levels_kbps=np.array(levels_kbps),
        chunk_s=chunk_s,
        buffer_s=rng.integers(0, 60, sessions) * chunk_s / 8,
        last_level=rng.integers(0, levels, sessions),
        sizes_bytes=rng.integers(1, 8, (sessions, horizon, levels)) * step_bytes,
        throughput_kbps=throughput_kbps.astype(np.float32),
        first=probabilities(sessions, levels, bins),
        later=probabilities(sessions, horizon - 1, levels, bins, bins),
    )


def enumerate_values(plans: Plans, session: int, weights: QoeWeights) -> np.ndarray:  # type: ignore[type-arg]
    """Expectation over all outcomes, maximum over all levels, chunk by chunk."""
    mbps = plans.levels_kbps / 1000
    horizon = plans.sizes_bytes.shape[1]

    def values(chunk: int, buffer_s: float, last: int, before: int) -> list[float]:
        if chunk == horizon:
            return [0.0]
        found = []
        for level, rate in enumerate(mbps):
            if chunk == 0:
                chances = plans.first[session, level]
            else:
                chances = plans.later[session, chunk - 1, level, before]
            value = rate - weights.switch * abs(rate - mbps[last])
            for outcome, chance in enumerate(chances):
                kbps = plans.throughput_kbps[session, outcome]
                seconds = plans.sizes_bytes[session, chunk, level] * 0.008 / kbps
                stall_s = max(seconds - buffer_s, 0)
                left_s = max(buffer_s - seconds, 0) + plans.chunk_s
                left_s = min(left_s, MAX_BUFFER_CHUNKS * plans.chunk_s)
                rest = max(values(chunk + 1, left_s, level, outcome))
                value += chance * (rest - weights.rebuffer * stall_s)
            found.append(value)
        return found

    start_s = float(plans.buffer_s[session])
    return np.array(values(0, start_s, int(plans.last_level[session]), -1))


@pytest.mark.parametrize(
    ("levels_kbps", "chunk_s", "horizon"),
    [((500.0, 1000.0, 2000.0), 4.0, 3), ((300.0, 900.0), 2.0, 4), ((700.0,), 1.0, 3)],
)
def test_values_are_those_of_enumeration(
    levels_kbps: tuple[float, ...], chunk_s: float, horizon: int
) -> None:
    plans = draw_plans(
        sessions=6, horizon=horizon, levels_kbps=levels_kbps, chunk_s=chunk_s, seed=1
    )
    for weights in (PENSIEVE_QOE, QoeWeights(rebuffer=2.0, switch=0.3)):
        expected = [enumerate_values(plans, session, weights) for session in range(6)]
        np.testing.assert_allclose(level_values(plans, weights), expected, rtol=1e-4, atol=1e-4)


def test_the_last_chunk_is_planned_alone() -> None:
    plans = draw_plans(sessions=5, horizon=1, levels_kbps=(500.0, 1500.0), chunk_s=4.0, seed=2)
    expected = [enumerate_values(plans, session, PENSIEVE_QOE) for session in range(5)]
    np.testing.assert_allclose(level_values(plans), expected, rtol=1e-5, atol=1e-5)


def test_a_batch_is_valued_as_each_alone() -> None:
    plans = draw_plans(
        sessions=7, horizon=6, levels_kbps=(300.0, 750.0, 1850.0, 4300.0), chunk_s=4.0, seed=3
    )
    together = level_values(plans)
    for session in range(7):
        alone = dataclasses.replace(
            plans,
            **{
                name: getattr(plans, name)[session : session + 1]
                for name in (
                    *("buffer_s", "last_level", "sizes_bytes", "throughput_kbps"),
                    *("first", "later"),
                )
            },
        )
        np.testing.assert_allclose(level_values(alone)[0], together[session], rtol=1e-4, atol=1e-4)


def test_times_out_of_all_bounds_stay_finite() -> None:
    plans = draw_plans(sessions=2, horizon=4, levels_kbps=(300.0, 750.0), chunk_s=4.0, seed=4)
    slow = dataclasses.replace(plans, throughput_kbps=np.full((2, 2), 1e-6, dtype=np.float32))
    full = dataclasses.replace(plans, buffer_s=np.array([1e9, 0.0]))
    for extreme in (slow, full):
        assert np.isfinite(level_values(extreme)).all()
