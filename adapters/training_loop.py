"""The loop of every training: optimiser, schedule, epochs, the best weights, a state to resume.

A :class:`Learner` says what is trained: batches, loss, measurement. A :class:`Fit` does the rest.
Every epoch has generators of its own and ends with its state on disk, so that a training that was
killed goes on as if nothing had happened. The state is safetensors and JSON. A loss or gradient
that is not finite ends the training before it reaches the weights.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from adapters.checkpoint_files import CheckpointError, read_weights, write_json, write_weights
from adapters.training_processes import ONE_PROCESS, Processes

STATE_FOLDER = "training-state"
STATE_FILE = "state.json"
STATE_WEIGHTS = "state.safetensors"
#: Share of the peak learning rate at which the cosine ends.
LAST_RATE = 0.02

BatchT = TypeVar("BatchT")


class TrainingError(ValueError):
    """Settings or a state file that do not fit; the message names the key and both values."""


class TrainingDiverged(ArithmeticError):
    """A loss or gradient that is not finite.

    Attributes:
        epoch: where it happened.
        kept_epochs: finished epochs from which ``resume`` goes on.
        learning_rate: the peak rate at which it happened.
    """

    def __init__(self, what: str, *, epoch: int, kept_epochs: int, learning_rate: float) -> None:
        super().__init__(f"the training diverged: {what} in epoch {epoch}")
        self.epoch, self.kept_epochs, self.learning_rate = epoch, kept_epochs, learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How to train, whatever is trained.

    Attributes:
        seed: of the order, the initial weights and dropout.
        epochs: passes at most.
        learning_rate: its peak; it rises over the first steps and falls as a cosine to 2 %.
        warmup_steps: steps of the rise.
        weight_decay: of AdamW.
        gradient_limit: norm to which gradients are cut.
        patience: epochs without improvement after which training stops.
        threads: of torch on the CPU; None leaves them alone.
        device: where to train: ``cpu``, ``cuda``, or ``auto``, which takes the GPU if there is one.
    """

    seed: int = 0
    epochs: int = 10
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 1e-2
    gradient_limit: float = 1.0
    patience: int = 4
    threads: int | None = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, is {getattr(self, name)}")
        for name in ("learning_rate", "gradient_limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"{name} must be positive, is {getattr(self, name)}")
        if self.device not in DEVICES:
            raise TrainingError(
                f"device {self.device!r} is not known; there are {', '.join(DEVICES)}"
            )


DEVICES = ("auto", "cpu", "cuda")
#: What may differ between a training and its continuation: it changes the speed, not the aim.
NOT_COMPARED = ("threads", "device", "gradient_checkpointing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Told to ``on_progress`` behind every step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What an epoch was worth.

    Attributes:
        score: higher is better; the best epoch has the highest.
        metrics: by name, for the history.
    """

    score: float
    metrics: Mapping[str, float | None]


class Learner(abc.ABC, Generic[BatchT]):
    """What a loop trains.

    Attributes:
        module: is trained: its parameters that require gradients.
    """

    module: nn.Module

    @abc.abstractmethod
    def batches(self, epoch: int, rng: np.random.Generator) -> Sequence[BatchT]:
        """The batches of an epoch in their order; batches may be made when they are asked for."""

    @abc.abstractmethod
    def loss(self, batch: BatchT) -> Tensor:
        """``()`` mean loss of a batch."""

    @abc.abstractmethod
    def measure(self, epoch: int) -> Measured:
        """Measures the module as it is behind an epoch; it is in evaluation mode."""

    def weights(self) -> dict[str, Tensor]:
        """What training changes, by name in the module's state; by default all of that."""
        return self.module.state_dict()

    def memory(self) -> dict[str, Tensor]:
        """What later epochs need beside the weights, such as states visited so far."""
        return {}

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Takes back what :meth:`memory` gave."""


@dataclass
class Fit(Generic[BatchT]):
    """One training under way.

    Attributes:
        learner: what is trained.
        config: how.
        folder: ``training-state`` below it lets a killed training go on.
        settings: what a state must agree with to be resumed, beside ``config``; JSON values.
        processes: the processes that train together.
        history: one row per finished epoch: ``epoch``, ``train_loss``, ``gradient_norm`` (mean
            before cutting), ``learning_rate`` (peak), the learner's metrics, ``wall_s``.
        best_epoch: the epoch with the highest score; 0 before the first.
        diverged: one row per time that the training diverged: ``epoch``, ``learning_rate``,
            ``what``.
    """

    learner: Learner[BatchT]
    config: LoopConfig
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    processes: Processes = ONE_PROCESS
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    diverged: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._best_score = -math.inf
        self._best_weights: dict[str, Tensor] = {}
        self._steps_done = 0
        self._trained = [one for one in self.learner.module.parameters() if one.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    @property
    def wall_s(self) -> float:
        """Seconds of all finished epochs."""
        return float(sum(row["wall_s"] for row in self.history))

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Trains until the epochs are over or do not improve, then puts the best weights back.

        Raises:
            TrainingDiverged: something was not finite; the best weights are put back first, and
                the state on disk is that of the last finished epoch.
        """
        try:
            for epoch in range(len(self.history) + 1, self.config.epochs + 1):
                if epoch - 1 - self.best_epoch >= self.config.patience:
                    break
                self._epoch(epoch, on_progress)
                self._save_state()
        except TrainingDiverged as error:
            self.diverged.append(
                {
                    "epoch": error.epoch,
                    "learning_rate": error.learning_rate,
                    "what": str(error),
                }
            )
            self._note_divergence()
            self._restore_best()
            raise
        self._restore_best()

    def forget_state(self) -> None:
        """Removes the state: the training is over and what it gave is kept elsewhere."""
        if self.processes.is_main:
            shutil.rmtree(self.folder / STATE_FOLDER, ignore_errors=True)

    def _restore_best(self) -> None:
        if self._best_weights:
            self.learner.module.load_state_dict(self._best_weights, strict=False)

    def _epoch(self, epoch: int, on_progress: Callable[[Progress], None] | None) -> None:
        began = time.perf_counter()
        # Every epoch has generators of its own, so that a resumed training is the same.
        rng = np.random.default_rng((self.config.seed, epoch))
        torch.manual_seed(int(rng.integers(2**31)) + self.processes.rank)
        batches = self.processes.share(self.learner.batches(epoch, rng))
        self.learner.module.train()
        losses, norms = [], []
        for step, batch in enumerate(batches):
            self._set_rate((epoch - 1 + step / len(batches)) / self.config.epochs)
            loss, norm = self._step(batch, epoch, step + 1)
            losses.append(loss)
            norms.append(norm)
            if on_progress:
                on_progress(
                    Progress(
                        epoch=epoch,
                        epochs=self.config.epochs,
                        step=step + 1,
                        steps=len(batches),
                        loss=loss,
                    )
                )
        self.learner.module.eval()
        measured = self.learner.measure(epoch)
        if not math.isfinite(measured.score):
            raise self._divergence(f"the score is {measured.score} behind the last step", epoch)
        self.history.append(
            {
                "epoch": epoch,
                "train_loss": float(np.mean(losses)),
                "gradient_norm": float(np.mean(norms)),
                "learning_rate": self.config.learning_rate,
                **measured.metrics,
                "wall_s": time.perf_counter() - began,
            }
        )
        if measured.score > self._best_score:
            self._best_score, self.best_epoch = measured.score, epoch
            self._best_weights = {
                key: value.detach().clone() for key, value in self.learner.weights().items()
            }

    def _set_rate(self, progress: float) -> None:
        config = self.config
        warmup = (self._steps_done + 1) / config.warmup_steps if config.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group in self._optimizer.param_groups:
            group["lr"] = (
                config.learning_rate * min(warmup, 1.0) * (LAST_RATE + (1 - LAST_RATE) * cosine)
            )

    def _step(self, batch: BatchT, epoch: int, step: int) -> tuple[float, float]:
        """Takes a step; returns the loss and the norm of its gradient."""
        loss = self.learner.loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        mean_loss = self.processes.average(loss.detach(), self._trained)
        norm = float(nn.utils.clip_grad_norm_(self._trained, self.config.gradient_limit))
        for name, value in (("loss", mean_loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise self._divergence(f"the {name} is {value} at step {step}", epoch)
        self._optimizer.step()
        self._steps_done += 1
        return mean_loss, norm

    def _divergence(self, what: str, epoch: int) -> TrainingDiverged:
        return TrainingDiverged(
            what,
            epoch=epoch,
            kept_epochs=len(self.history),
            learning_rate=self.config.learning_rate,
        )

    def _compared(self) -> dict[str, Any]:
        settings = {
            key: value
            for key, value in dataclasses.asdict(self.config).items()
            if key not in NOT_COMPARED
        }
        return dict(json.loads(json.dumps(settings | dict(self.settings))))

    def _document(self) -> dict[str, Any]:
        return {
            "settings": self._compared(),
            "best_epoch": self.best_epoch,
            "best_score": self._best_score,
            "steps": self._steps_done,
            "epochs": self.history,
            "diverged": self.diverged,
        }

    def _save_state(self) -> None:
        if not self.processes.is_main:
            return
        folder = self.folder / STATE_FOLDER
        fresh = self.folder / f"{STATE_FOLDER}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        tensors = {f"now.{key}": value for key, value in self.learner.weights().items()}
        tensors |= {f"best.{key}": value for key, value in self._best_weights.items()}
        tensors |= {f"memory.{key}": value for key, value in self.learner.memory().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
        write_weights(fresh / STATE_WEIGHTS, tensors)
        write_json(fresh / STATE_FILE, self._document())
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def _note_divergence(self) -> None:
        folder = self.folder / STATE_FOLDER
        if self.processes.is_main and folder.is_dir():
            beside = folder / f"{STATE_FILE}.new"
            write_json(beside, self._document())
            beside.replace(folder / STATE_FILE)

    def resume(self) -> bool:
        """Goes on where a training stopped; returns whether there was a state to go on from.

        One that diverged may go on with another learning rate, any other with the same settings
        only.

        Raises:
            TrainingError: the state cannot be read, or belongs to other settings.
        """
        folder = find_state(self.folder)
        if folder is None:
            return False
        try:
            document = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            tensors = read_weights(folder / STATE_WEIGHTS)
            settings, history = document["settings"], document["epochs"]
            best_epoch, best_score = int(document["best_epoch"]), float(document["best_score"])
            steps, diverged = int(document["steps"]), list(document["diverged"])
            finished = [int(row["epoch"]) for row in history]
        except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
            raise TrainingError(f"{folder}: cannot be resumed: {error}") from error
        if finished != list(range(1, len(finished) + 1)) or best_epoch not in finished:
            raise TrainingError(f"{folder / STATE_FILE}: its epochs are not whole")
        self._check_settings(folder, settings, may_change_rate=bool(diverged))
        self._restore(folder, tensors)
        self.history, self.diverged = history, diverged
        self.best_epoch, self._best_score, self._steps_done = best_epoch, best_score, steps
        return True

    def _check_settings(self, folder: Path, settings: Any, *, may_change_rate: bool) -> None:
        for key, value in self._compared().items():
            if key == "learning_rate" and may_change_rate:
                continue
            if not isinstance(settings, dict) or settings.get(key) != value:
                before = settings.get(key) if isinstance(settings, dict) else None
                raise TrainingError(f"{folder}: was trained with {key} = {before!r}, now {value!r}")

    def _restore(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        now, best = _section(tensors, "now."), _section(tensors, "best.")
        expected = {key: value.shape for key, value in self.learner.weights().items()}
        for part in (now, best):
            if {key: value.shape for key, value in part.items()} != expected:
                raise TrainingError(f"{folder / STATE_WEIGHTS}: these are weights of another model")
        moments: dict[int, dict[str, Tensor]] = {}
        try:
            for key, value in _section(tensors, "adam.").items():
                index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
            state = self._optimizer.state_dict()
            self._optimizer.load_state_dict({**state, "state": moments})
        except ValueError as error:
            raise TrainingError(f"{folder / STATE_WEIGHTS}: cannot be resumed: {error}") from error
        self.learner.module.load_state_dict(now, strict=False)
        self._best_weights = {key: value.to(self._device) for key, value in best.items()}
        self.learner.recall(_section(tensors, "memory."))

    @property
    def _device(self) -> torch.device:
        return next(self.learner.module.parameters()).device


def find_state(folder: Path) -> Path | None:
    """The state that a training left in a checkpoint folder; None if there is none."""
    place = folder / STATE_FOLDER
    # A training killed while it replaced the old state has removed that, or a part of it.
    for one in (place, folder / f"{STATE_FOLDER}.new"):
        if all((one / name).is_file() for name in (STATE_FILE, STATE_WEIGHTS)):
            return one
    return place if (place / STATE_FILE).is_file() else None


def choose_device(config: LoopConfig) -> torch.device:
    """The device that the settings name.

    Raises:
        TrainingError: it is not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device 'cuda' is not available here; use 'auto' or 'cpu'")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    if not use_gpu:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


class Determinism:
    """Sets torch's threads and seed; leaves both as they were found."""

    def __init__(self, config: LoopConfig) -> None:
        self._config = config
        self._fork = torch.random.fork_rng(devices=[])
        self._threads = torch.get_num_threads()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._config.seed)
        if self._config.threads is not None:
            torch.set_num_threads(self._config.threads)

    def __exit__(self, *error: Any) -> None:
        torch.set_num_threads(self._threads)
        self._fork.__exit__(*error)


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
