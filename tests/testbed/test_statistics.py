import math

import numpy as np
import pytest

from testbed.statistics import (
    Estimate,
    jains_index,
    mean,
    mean_ci,
    paired_delta_ci,
    percentile,
)


def test_empty_and_single_samples_have_no_interval() -> None:
    assert mean_ci([]) == Estimate(0, None, None)
    assert mean_ci([2.5]) == Estimate(1, 2.5, None)
    assert mean_ci([]).as_json() == {"mean": None, "ci95": None}
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5
    assert percentile([], 50) is None


def test_percentiles_interpolate() -> None:
    assert percentile([3.0], 99) == 3.0
    assert percentile([0.0, 10.0], 50) == 5.0
    assert percentile(list(map(float, range(101))), 99) == pytest.approx(99.0)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_ci([0.5] * 8).ci95 == (0.5, 0.5)


def test_the_interval_matches_students_t_for_a_normal_sample() -> None:
    # 97.5 % quantile of Student's t with 7 degrees of freedom, from a table.
    t = 2.3646
    sample = np.random.default_rng(3).normal(10.0, 2.0, size=8)
    half = t * sample.std(ddof=1) / math.sqrt(8)
    estimate = mean_ci(sample.tolist())
    assert estimate.ci95 is not None
    low, high = estimate.ci95
    assert low < sample.mean() < high
    # The bootstrap knows the sample only, so it follows its tails: within a quarter of the width.
    assert high - low == pytest.approx(2 * half, rel=0.25)


@pytest.mark.parametrize("size", [8, 40])
def test_intervals_cover_the_truth_about_as_often_as_they_say(size: int) -> None:
    rng = np.random.default_rng(11)
    trials = 300
    hits = 0
    for _ in range(trials):
        estimate = mean_ci(rng.normal(0.0, 1.0, size=size).tolist(), resamples=800)
        assert estimate.ci95 is not None
        hits += estimate.ci95[0] <= 0.0 <= estimate.ci95[1]
    assert 0.90 < hits / trials < 0.985


def test_results_are_the_same_every_time_and_depend_on_the_seed() -> None:
    sample = np.random.default_rng(0).normal(size=12).tolist()
    assert mean_ci(sample) == mean_ci(sample)
    assert mean_ci(sample).ci95 != mean_ci(sample, seed=1).ci95


def test_many_values_are_drawn_in_blocks_without_changing_the_count() -> None:
    estimate = mean_ci([0.0, 1.0] * 400, resamples=5000)
    assert estimate.ci95 is not None
    half = 1.96 * 0.5 / math.sqrt(800)
    assert estimate.ci95 == pytest.approx((0.5 - half, 0.5 + half), abs=0.1 * half)


def test_pairing_removes_what_the_traces_differ_by() -> None:
    rng = np.random.default_rng(0)
    traces = rng.normal(0.0, 5.0, size=20)
    a = (traces + 0.3 + rng.normal(0.0, 0.05, size=20)).tolist()
    b = traces.tolist()
    delta = paired_delta_ci(a, b)
    assert delta.ci95 is not None
    assert 0.2 < delta.ci95[0] < 0.3 < delta.ci95[1] < 0.4
    alone = mean_ci(a)
    assert alone.ci95 is not None
    assert alone.ci95[1] - alone.ci95[0] > 10 * (delta.ci95[1] - delta.ci95[0])


def test_a_difference_changes_sign_with_its_order() -> None:
    a, b = [1.0, 2.0, 4.0], [0.5, 2.5, 1.0]
    assert paired_delta_ci(a, b).mean == pytest.approx(1.0)
    assert paired_delta_ci(b, a).mean == pytest.approx(-1.0)


def test_wrong_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_delta_ci([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        mean_ci([1.0, float("nan")])


def test_jains_index_is_the_share_of_those_who_are_served_equally() -> None:
    assert jains_index([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jains_index([5.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 4)
    assert jains_index([2.0] * 3 + [0.0] * 7) == pytest.approx(0.3)
    assert jains_index([1.0, 2.0, 3.0]) == pytest.approx(36 / (3 * 14))
    assert jains_index([7.0]) == jains_index([0.0, 0.0]) == 1.0


def test_jains_index_does_not_depend_on_the_unit() -> None:
    shares = [1.0, 2.0, 3.0]
    for unit in (1e-200, 1e6, 1e200):
        scaled = [share * unit for share in shares]
        assert jains_index(scaled) == pytest.approx(jains_index(shares))


@pytest.mark.parametrize("shares", [[], [1.0, -1.0], [1.0, float("nan")], [float("inf")]])
def test_jains_index_refuses_what_is_no_share(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="share"):
        jains_index(shares)
