"""A training of adapters from start to checkpoint, for every task.

A task says what is learned, as an :class:`AdaptedLearner`; :func:`train_adapters` does what all
trainings do alike, around the loop of ``adapters.training_loop``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from adapters.checkpoints import CONFIG_FILE, AdaptedModel, save_checkpoint
from adapters.provenance import describe_origin
from adapters.training_loop import (
    STATE_FOLDER,
    BatchT,
    Determinism,
    Fit,
    Learner,
    LoopConfig,
    Progress,
    TrainingDiverged,
    TrainingError,
    choose_device,
    find_state,
)
from adapters.training_processes import join_processes


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTraining(LoopConfig):
    """How to train adapters, whatever the task.

    Attributes:
        batch_size: windows per step.
        gradient_checkpointing: compute the language model's activations twice instead of keeping
            them: less memory, more time, the same weights.
    """

    batch_size: int = 16
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        if self.batch_size < 1:
            raise TrainingError(f"batch_size must be at least 1, is {self.batch_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """Outcome of a training.

    Attributes:
        checkpoint: folder of the best weights.
        best_epoch: the epoch that they come from.
        epochs: one row per epoch, see :class:`adapters.training_loop.Fit`.
        trained_parameters: number of weights that training changed.
    """

    checkpoint: str
    best_epoch: int
    epochs: tuple[dict[str, Any], ...]
    trained_parameters: int

    @classmethod
    def of(cls, out: Path, learner: AdaptedLearner[Any], fit: Fit[Any]) -> AdapterReport:
        """That of a training whose checkpoint is in a folder."""
        return cls(
            checkpoint=str(out),
            best_epoch=fit.best_epoch,
            epochs=tuple(fit.history),
            trained_parameters=learner.trained_parameters,
        )


class AdaptedLearner(Learner[BatchT]):
    """What a task trains: adapters on a frozen language model.

    Attributes:
        policy: the adapted model; also the ``module``.
        chosen_by: the metric that the score stands for.
    """

    policy: AdaptedModel
    chosen_by: str = "valid_loss"

    def weights(self) -> dict[str, Tensor]:
        """The adapters."""
        return self.policy.adapter_state()

    @property
    def trained_parameters(self) -> int:
        """Number of weights that training changes."""
        return sum(value.numel() for value in self.weights().values())

    def data(self) -> Mapping[str, Any]:
        """What is learned from, as JSON values; a state with other data is not resumed."""
        return {}

    def card(self) -> Mapping[str, Any]:
        """What the card tells beside what all cards tell, as JSON values; by default the data."""
        return self.data()


LearnerT = TypeVar("LearnerT", bound=AdaptedLearner[Any])


def train_adapters(
    task: str,
    make_learner: Callable[[], LearnerT],
    out: Path,
    *,
    config: AdapterTraining,
    command: str = "",
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[LearnerT, Fit[Any]]:
    """Trains adapters and writes the checkpoint of the best epoch to ``out``.

    Args:
        task: what for; the checkpoint tells it.
        make_learner: makes what is trained, on the CPU, from the seed of ``config``.
        out: checkpoint folder; ``training-state`` in it lets a killed training go on.
        config: how to train.
        command: the command that started this, for the card.
        resume: go on from ``training-state``; start if the folder is empty.
        on_progress: is told of every step.

    Returns:
        The learner with the weights of the best epoch, and what happened.

    Raises:
        TrainingError: ``out`` holds something, or with ``resume`` something else than a training;
            that has finished, or was one with other settings.
        TrainingDiverged: a loss or gradient was not finite; the checkpoint of the best epoch so
            far is written if there is one, and ``training-state`` stays.
    """
    _check_out(out, resume=resume)
    device = choose_device(config)
    with Determinism(config):
        learner = make_learner()
        learner.module.to(device)
        backbone = learner.policy.backbone
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        same = {
            "backbone": backbone.fingerprint,
            "model": dataclasses.asdict(learner.policy.config),
            **learner.data(),
        }
        fit = Fit(learner, config, out, settings=same, processes=join_processes(device))
        if resume:
            fit.resume()
        try:
            fit.run(on_progress)
        except TrainingDiverged:
            if fit.best_epoch:
                _write(task, out, learner, fit, command)
            raise
        _write(task, out, learner, fit, command)
        fit.forget_state()
        fit.processes.wait()
        return learner, fit


def _check_out(out: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something, unless a training in it can go on."""
    if not out.exists():
        return
    if not out.is_dir():
        raise TrainingError(f"{out} is not a folder")
    held = sorted(path.name for path in out.iterdir())
    if held and not resume:
        raise TrainingError(f"{out} is not empty; resume its training or choose another folder")
    if not held or find_state(out) is not None:
        return
    if CONFIG_FILE in held:
        raise TrainingError(f"{out}: this training has finished; nothing to resume")
    if not any(name.startswith(STATE_FOLDER) for name in held):
        raise TrainingError(
            f"{out}: holds no {STATE_FOLDER} to resume, but {held[0]!r}; choose another folder"
        )


def _write(task: str, out: Path, learner: AdaptedLearner[Any], fit: Fit[Any], command: str) -> None:
    """Writes the checkpoint of the best epoch, whose weights are in place."""
    if not fit.processes.is_main:
        return
    card = {
        "task": task,
        "command": command,
        "seed": fit.config.seed,
        "backbone": learner.policy.backbone.name,
        "training": dataclasses.asdict(fit.config),
        **learner.card(),
        "trained_parameters": learner.trained_parameters,
        "best_epoch": fit.best_epoch,
        "chosen_by": learner.chosen_by,
        "epochs": fit.history,
        "wall_s": fit.wall_s,
        "processes": fit.processes.count,
        "diverged": fit.diverged,
        **describe_origin(next(learner.module.parameters()).device),
    }
    save_checkpoint(out, learner.policy, card, task=task)
