"""The training loop on a line to fit: schedule, stop, resume, divergence, several processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters.training_loop import (
    STATE_FILE,
    STATE_FOLDER,
    STATE_WEIGHTS,
    Determinism,
    Fit,
    Learner,
    LoopConfig,
    Measured,
    Progress,
    TrainingDiverged,
    TrainingError,
)
from adapters.training_processes import ONE_PROCESS, Processes, join_processes

CONFIG = LoopConfig(epochs=5, learning_rate=0.05, warmup_steps=3, patience=5, device="cpu")


class Line(Learner[Tensor]):
    """Fits ``y = 2 x`` with dropout; the loss becomes NaN in the epochs named."""

    def __init__(self, *, nan_at: Sequence[int] = (), scores: Sequence[float] = ()) -> None:
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 4))
        self.nan_at, self.scores = nan_at, scores
        self.seen = 0
        self._epoch = 0

    def batches(self, epoch: int, rng: np.random.Generator) -> list[Tensor]:
        self._epoch = epoch
        self.seen += 1
        return [torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32)) for _ in range(4)]

    def loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = (self.module(batch) - 2 * batch).square().mean()
        return loss * float("nan") if self._epoch in self.nan_at else loss

    def measure(self, epoch: int) -> Measured:
        with torch.no_grad():
            loss = float((self.module(torch.eye(4)) - 2 * torch.eye(4)).square().mean())
        score = self.scores[epoch - 1] if self.scores else -loss
        return Measured(score, {"valid_loss": loss})

    def memory(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(self.seen)}

    def recall(self, memory: dict[str, Tensor]) -> None:
        self.seen = int(memory["seen"])


def fit(
    folder: Path,
    config: LoopConfig = CONFIG,
    *,
    resume: bool = False,
    stop_in: int = 0,
    settings: dict[str, Any] | None = None,
    **line: Any,
) -> Fit[Tensor]:
    def stop(progress: Progress) -> None:
        if progress.epoch == stop_in:
            raise KeyboardInterrupt

    with Determinism(config):
        one = Fit(Line(**line), config, folder, settings=settings or {})
        if resume:
            one.resume()
        one.run(stop)
    return one


def weights(one: Fit[Tensor]) -> list[list[float]]:
    return [value.flatten().tolist() for value in one.learner.weights().values()]


def test_the_loss_falls_and_the_history_says_so(tmp_path: Path) -> None:
    one = fit(tmp_path)
    assert [row["epoch"] for row in one.history] == [1, 2, 3, 4, 5]
    assert one.history[-1]["train_loss"] < one.history[0]["train_loss"]
    assert set(one.history[0]) == {
        *("epoch", "train_loss", "gradient_norm", "learning_rate", "valid_loss", "wall_s")
    }
    assert one.wall_s > 0


def test_a_fit_leaves_torch_as_it_was(tmp_path: Path) -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    fit(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_the_best_weights_are_put_back_and_patience_ends_it(tmp_path: Path) -> None:
    config = LoopConfig(**{**as_dict(CONFIG), "patience": 2})
    one = fit(tmp_path, config, scores=(1.0, 3.0, 2.0, 2.5, 9.0))
    assert (one.best_epoch, len(one.history)) == (2, 4)
    assert weights(one) == weights(fit(tmp_path / "b", CONFIG, scores=(1.0, 3.0, 2.0, 2.0, 2.0)))


@pytest.mark.parametrize("stop_in", [2, 5])
def test_a_stopped_fit_goes_on_as_if_nothing_had_happened(tmp_path: Path, stop_in: int) -> None:
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", stop_in=stop_in)
    resumed = fit(tmp_path / "cut", resume=True)
    assert weights(resumed) == weights(whole)
    assert resumed.learner.seen == 5  # type: ignore[attr-defined]
    for before, after in zip(whole.history, resumed.history, strict=True):
        assert before["train_loss"] == after["train_loss"]


def test_a_fit_killed_while_it_changed_its_state_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_in=3)
    (tmp_path / STATE_FOLDER).rename(tmp_path / f"{STATE_FOLDER}.new")
    assert len(fit(tmp_path, resume=True).history) == 5


def test_a_loss_that_is_not_finite_ends_it_and_keeps_what_was_good(tmp_path: Path) -> None:
    one = Fit(Line(nan_at=[3]), CONFIG, tmp_path)
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 1 in epoch 3") as caught:
        one.run()
    assert (caught.value.epoch, caught.value.kept_epochs) == (3, 2)
    assert all(np.isfinite(row).all() for row in weights(one))
    assert [row["epoch"] for row in one.diverged] == [3]
    state = json.loads((tmp_path / STATE_FOLDER / STATE_FILE).read_text())
    assert len(state["epochs"]) == 2
    lower = LoopConfig(**{**as_dict(CONFIG), "learning_rate": 0.01})
    resumed = fit(tmp_path, lower, resume=True)
    assert [row["learning_rate"] for row in resumed.history] == [0.05, 0.05, 0.01, 0.01, 0.01]
    assert len(resumed.diverged) == 1


def test_nothing_is_kept_of_a_fit_that_diverges_at_once(tmp_path: Path) -> None:
    one = Fit(Line(nan_at=[1]), CONFIG, tmp_path)
    with pytest.raises(TrainingDiverged) as caught:
        one.run()
    assert caught.value.kept_epochs == one.best_epoch == 0
    assert not (tmp_path / STATE_FOLDER).exists()


def test_a_score_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="score is nan"):
        fit(tmp_path, scores=(1.0, float("nan"), 0.0, 0.0, 0.0))


def test_another_rate_is_refused_unless_it_diverged(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_in=3, settings={"data": [1, 2]})
    lower = LoopConfig(**{**as_dict(CONFIG), "learning_rate": 0.01})
    with pytest.raises(TrainingError, match=r"learning_rate = 0\.05, now 0\.01"):
        fit(tmp_path, lower, resume=True, settings={"data": [1, 2]})
    with pytest.raises(TrainingError, match=r"data = \[1, 2\], now \[3\]"):
        fit(tmp_path, resume=True, settings={"data": [3]})


def test_damaged_states_are_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_in=3)
    path = tmp_path / STATE_FOLDER / STATE_FILE
    good = path.read_text()
    document = json.loads(good)
    for bad in (
        good[:40],
        "[]",
        json.dumps({**document, "epochs": document["epochs"][1:]}),
        json.dumps({**document, "best_epoch": 9}),
        json.dumps({key: value for key, value in document.items() if key != "steps"}),
    ):
        path.write_text(bad)
        with pytest.raises(TrainingError, match="training-state"):
            fit(tmp_path, resume=True)
    path.write_text(good)
    weights_path = tmp_path / STATE_FOLDER / STATE_WEIGHTS
    weights_path.write_bytes(weights_path.read_bytes()[:-9])
    with pytest.raises(TrainingError, match="safetensors"):
        fit(tmp_path, resume=True)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"learning_rate": float("nan")}, {"gradient_limit": 0.0}, {"device": "tpu"}],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(change))):
        LoopConfig(**{**as_dict(CONFIG), **change})


def test_one_process_takes_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes(torch.device("cpu")) is ONE_PROCESS
    assert ONE_PROCESS.share([1, 2, 3]) == [1, 2, 3]


class FakeAccelerator:
    """Two processes, the other of which has zeros."""

    num_processes = 2

    def __init__(self, rank: int) -> None:
        self.process_index = rank

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "mean"
        return tensor / 2


def test_several_processes_share_batches_and_average_gradients() -> None:
    first, second = (Processes.of(FakeAccelerator(rank)) for rank in (0, 1))
    assert list(first.share([0, 1, 2, 3, 4])) == [0, 2, 4]
    assert list(second.share([0, 1, 2, 3, 4])) == [1, 3, 0]
    assert (first.is_main, second.is_main) == (True, False)
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.full((2, 3), 4.0)
    unused = nn.Parameter(torch.zeros(1))
    assert first.average(torch.tensor(6.0), [parameter, unused]) == 3.0
    assert parameter.grad.tolist() == [[2.0] * 3] * 2


def as_dict(config: LoopConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in LoopConfig.__dataclass_fields__}
