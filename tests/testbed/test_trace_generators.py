import numpy as np
import pytest

from player.trace import Trace
from testbed.trace_generators import GENERATORS, UnknownTraceFamily, generate_trace
from testbed.traces import step_means_mbps

# Middle 80 % of public traces per family: mean, variation, correlation of neighbouring steps.
# FCC: Pensieve's cooked broadband traces; HSDPA: windows of 320 s of Riiser et al.; LTE: downlinks
# of Mahimahi, whose mean the generator halves on purpose.
MEASURED = {
    "fcc": (5.0, (0.49, 2.81), (0.08, 0.61), (0.06, 0.85)),
    "hsdpa": (1.0, (0.71, 2.21), (0.35, 0.68), (0.75, 0.93)),
    "lte": (1.0, (4.75 / 2, 15.13 / 2), (0.57, 0.82), (0.72, 0.90)),
}


def some(family: str, count: int = 80, seed: int = 5) -> list[Trace]:
    return [
        generate_trace(family, f"{family}-{index}", np.random.default_rng((seed, index)))
        for index in range(count)
    ]


@pytest.mark.parametrize("family", GENERATORS)
def test_medians_lie_where_measured_traces_lie(family: str) -> None:
    step_s, mean, variation, correlation = MEASURED[family]
    rows = []
    for trace in some(family):
        rates = step_means_mbps(trace, step_s)
        rows.append(
            (rates.mean(), rates.std() / rates.mean(), np.corrcoef(rates[1:], rates[:-1])[0, 1])
        )
    medians = np.median(rows, axis=0)
    for median, (low, high) in zip(medians, (mean, variation, correlation), strict=True):
        assert low < median < high


@pytest.mark.parametrize("family", GENERATORS)
def test_equal_seeds_give_equal_traces(family: str) -> None:
    first, second = (
        generate_trace(family, "t", np.random.default_rng(seed), 60.0) for seed in (7, 7)
    )
    other = generate_trace(family, "t", np.random.default_rng(8), 60.0)
    assert first.rates_mbps.tolist() == second.rates_mbps.tolist()
    assert first.rates_mbps.tolist() != other.rates_mbps.tolist()
    assert first.duration_s == 60.0


@pytest.mark.parametrize("family", ["hsdpa", "lte"])
def test_mobile_families_have_outages(family: str) -> None:
    down = [np.mean(trace.steps_mbps == 0) for trace in some(family)]
    assert 0.001 < np.mean(down) < 0.1


@pytest.mark.parametrize("family", GENERATORS)
def test_very_short_traces_are_still_traces(family: str) -> None:
    for seed in range(50):
        trace = generate_trace(family, "t", np.random.default_rng(seed), 0.05)
        assert len(trace.times_s) == 2
        assert trace.mean_mbps > 0


def test_wrong_input_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UnknownTraceFamily, match="'5g'; there are fcc, hsdpa, lte"):
        generate_trace("5g", "t", rng)
    for duration_s in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="duration_s"):
            generate_trace("fcc", "t", rng, duration_s)
