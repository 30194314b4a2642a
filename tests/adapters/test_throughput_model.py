"""The throughput model: what it is told, what training does to it, how it is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.checkpoints import CONFIG_FILE, CheckpointError
from adapters.throughput_checkpoints import (
    WEIGHTS_FILE,
    load_throughput_model,
    save_throughput_model,
)
from adapters.throughput_model import (
    FEATURES,
    SUMMARY_CHUNKS,
    ThroughputConfig,
    ThroughputModel,
    past_throughput,
    past_throughput_of,
)
from adapters.throughput_training import (
    Rounds,
    ThroughputTraining,
    draw_video,
    nll,
    session_examples,
    train_throughput,
)
from player.observation import PastChunk
from player.trace import Trace

SMALL = ThroughputConfig(bins=9, horizon=4, hidden=16, row_hidden=12)


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """Links that stay where they are for a while: what comes can be told from what was."""
    rng = np.random.default_rng(1)
    rates = np.repeat(rng.lognormal(0.2, 0.7, (4, 20)), 10, axis=1)
    return [Trace(f"t{i}", np.arange(200) * 2.0, row) for i, row in enumerate(rates)]


@pytest.fixture(scope="module")
def trained(traces: list[Trace]) -> ThroughputModel:
    config = ThroughputTraining(steps=40, batch_size=256, sessions=16, learning_rate=5e-3)
    model, _ = train_throughput([traces], [], config=config, model_config=SMALL)
    return model


def ask(model: ThroughputModel) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
    rng = np.random.default_rng(2)
    past = past_throughput(rng.lognormal(7, 0.5, (3, 10)), rng.lognormal(0.5, 0.5, (3, 10)), 10)
    return model.predict(past, rng.integers(10**5, 10**6, (3, 4, 5)))


def test_bins_cover_every_ratio_and_are_finest_near_one() -> None:
    config = ThroughputConfig()
    centres = config.centres()
    assert np.argmin(np.diff(centres)) in (config.bins // 2 - 1, config.bins // 2)
    np.testing.assert_array_equal(config.bin_of(centres), np.arange(config.bins))
    assert config.bin_of(np.array([-99.0, 99.0])).tolist() == [0, config.bins - 1]


def test_what_is_predicted_are_probabilities(trained: ThroughputModel) -> None:
    throughput_kbps, first, later = ask(trained)
    assert throughput_kbps.shape == (3, 9)
    assert first.shape == (3, 5, 9)
    assert later.shape == (3, 3, 5, 9, 9)
    assert (np.diff(throughput_kbps) > 0).all()
    np.testing.assert_allclose(first.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(later.sum(axis=-1), 1, rtol=1e-5)


def test_the_history_and_the_arrays_tell_the_same() -> None:
    rng = np.random.default_rng(3)
    history = [
        PastChunk(0, int(size), float(seconds), 0.0, 4.0)
        for size, seconds in zip(rng.integers(1e5, 1e6, 40), rng.uniform(0.2, 5, 40), strict=True)
    ]
    one = past_throughput_of(history)
    throughput = np.array([[past.throughput_kbps for past in history]])
    two = past_throughput(throughput, np.array([[past.download_s for past in history]]), 40)
    np.testing.assert_array_equal(one.features, two.features)
    assert one.features.shape == (1, FEATURES)
    forgotten = past_throughput_of(history[-SUMMARY_CHUNKS:])
    np.testing.assert_array_equal(one.features, forgotten.features)
    with pytest.raises(ValueError, match="nothing is known"):
        past_throughput_of([])


def test_extremes_stay_finite() -> None:
    history = [PastChunk(0, 1, 1e6, 1e6, 0.0), PastChunk(0, 10**12, 1e-6, 0.0, 4.0)]
    assert np.isfinite(past_throughput_of(history).features).all()


def test_examples_are_what_came() -> None:
    throughput = np.array([[1000.0, 2000.0, 500.0]])
    download = np.array([[1.0, 2.0, 4.0]])
    size = (throughput * download * 125).astype(np.int64)
    examples = session_examples(throughput, download, size, horizon=2)
    harmonic = 2 / (1 / 1000 + 1 / 2000)
    expected = np.log([[2000 / 1000, 500 / 1000], [500 / harmonic, np.nan]])
    assert np.isnan(examples.log_ratio[0, 0]).all()  # nothing is foretold before the first chunk
    np.testing.assert_allclose(examples.log_ratio[0, 1:], expected, rtol=1e-6)
    expected_s = np.log([2000 * 2 / 1000, 500 * 4 / 1000])
    np.testing.assert_allclose(examples.log_expected_s[0, 1], expected_s, rtol=1e-6)


def test_a_short_training_improves_the_likelihood(
    traces: list[Trace], trained: ThroughputModel
) -> None:
    rounds = Rounds([traces], horizon=4, sessions=32, rng=np.random.default_rng(9), augment=False)
    examples = rounds.play()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = ThroughputModel(SMALL)
    with torch.inference_mode():
        before, after = (nll(model, examples) for model in (untrained, trained))
    assert (after < before - 0.2).all()


def test_training_repeats_with_its_seed(traces: list[Trace]) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        config = ThroughputTraining(steps=3, batch_size=64, sessions=8, seed=seed, report_every=2)
        model, reports = train_throughput([traces], [traces], config=config, model_config=SMALL)
        assert [report.step for report in reports] == [2, 3]
        assert all(np.isfinite(report.valid_nll).all() for report in reports)
        return model.state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["out.weight"], other["out.weight"])


def test_videos_to_train_on_differ() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_video(rng) for _ in range(12)]
    assert len({video.levels for video in drawn}) > 2
    assert len({video.chunk_s for video in drawn}) > 2


def test_saved_and_loaded_it_answers_the_same(trained: ThroughputModel, tmp_path: Path) -> None:
    save_throughput_model(tmp_path, trained, {"command": "test"})
    loaded = load_throughput_model(str(tmp_path))
    assert loaded.config == SMALL
    for one, two in zip(ask(trained), ask(loaded), strict=True):
        np.testing.assert_array_equal(one, two)


def test_damaged_checkpoints_are_told(trained: ThroughputModel, tmp_path: Path) -> None:
    def refused(says: str) -> None:
        with pytest.raises(CheckpointError, match=says):
            load_throughput_model(str(tmp_path))

    refused(r"config\.json: missing")
    with pytest.raises(CheckpointError, match="format is 'netllm-testbed checkpoint"):
        load_throughput_model("builtin:abr-minilm")
    save_throughput_model(tmp_path, trained, {})
    config, weights = tmp_path / CONFIG_FILE, tmp_path / WEIGHTS_FILE
    whole, tensors = config.read_text(), load_file(weights)
    document = json.loads(whole)
    for edit, says in (
        ({"model": {**document["model"], "bins": 1}}, r"config\.json: model: .*bins must be"),
        ({"model": {**document["model"], "bins": "x"}}, r"model\.bins"),
        ({"model": {**document["model"], "hidden": 17}}, "has shape"),
        ({"more": 1}, "more"),
    ):
        config.write_text(json.dumps({**document, **edit}))
        refused(says)
    config.write_text("{")
    refused(r"config\.json: not JSON")
    config.write_text(whole)
    save_file({**tensors, "extra": torch.zeros(1)}, weights)
    refused("'extra' does not belong")
    save_file({key: value for key, value in tensors.items() if key != "ratio"}, weights)
    refused("'ratio' is missing")
    save_file({**tensors, "ratio": torch.zeros(9)}, weights)
    refused("'ratio' must be positive")
    save_file({**tensors, "ratio": torch.full((9,), torch.nan)}, weights)
    refused("not finite")
    weights.write_bytes(weights.read_bytes()[:40])
    refused("not a readable safetensors file")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_gpu_predicts_the_same(trained: ThroughputModel) -> None:
    there = copy.deepcopy(trained).to("cuda")
    for found, expected in zip(ask(there), ask(trained), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_endless_learning_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        ThroughputTraining(learning_rate=float("inf"))
