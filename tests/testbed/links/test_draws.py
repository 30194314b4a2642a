from __future__ import annotations

import statistics

import pytest

from testbed.links.draws import NORMAL_STEPS, draw, normal_quantiles, stream_key

# SplitMix64 with the seed 1234567, as published with its reference implementation.
REFERENCE_SEED = 1234567
REFERENCE = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)


def test_draws_are_the_outputs_of_splitmix64() -> None:
    expected = [(value >> 11) * 2.0**-53 for value in REFERENCE]
    assert [draw(REFERENCE_SEED, number) for number in range(5)] == expected


def test_draws_are_uniform() -> None:
    draws = [draw(stream_key("0", "loss"), number) for number in range(20_000)]
    assert all(0.0 <= value < 1.0 for value in draws)
    assert statistics.fmean(draws) == pytest.approx(0.5, abs=0.01)
    for tenth in range(10):
        share = sum(tenth <= 10 * value < tenth + 1 for value in draws) / len(draws)
        assert share == pytest.approx(0.1, abs=0.01)


def test_streams_have_keys_of_their_own() -> None:
    keys = {stream_key(seed, stream) for seed in ("0", "1", "") for stream in ("loss", "jitter")}
    assert len(keys) == 6
    assert all(0 <= key < 2**64 for key in keys)
    assert stream_key("0", "loss") == stream_key("0", "loss")
    assert stream_key("1", "0loss") != stream_key("10", "loss")


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    quantiles = normal_quantiles()
    assert len(quantiles) == NORMAL_STEPS
    assert quantiles == sorted(quantiles)
    assert statistics.fmean(quantiles) == pytest.approx(0.0, abs=1e-9)
    assert statistics.pstdev(quantiles) == pytest.approx(1.0, abs=1e-3)
