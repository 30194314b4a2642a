"""Trains the adapters for ABR on an experience pool; the language model stays frozen.

The loss per decision is cross-entropy against the label (the expert's level, or the level that was
taken) and, where the pool knows what each level would have been worth, the expected loss of value
under the model's probabilities. Validation is on traces of the pool that training does not see.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from torch import Tensor

from adapters.backbones import load_backbone
from adapters.checkpoints import (
    CONFIG_FILE,
    CheckpointError,
    read_weights,
    save_checkpoint,
    write_json,
)
from adapters.datasets import (
    IGNORED,
    Batch,
    LabelledEpisode,
    batches,
    label_episode,
    return_scale,
    split_episodes,
    windows,
)
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.pools import Decide, Pool, PoolError, describe_pool

STATE_FOLDER = "training-state"
STATE_FILE = "state.json"
STATE_WEIGHTS = "state.safetensors"

Evaluate = Callable[[Decide], float]


class TrainingError(ValueError):
    """Settings or a state file that do not fit the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
        seed: of the split, the order, the initial weights and dropout.
        epochs: passes over the pool at most.
        batch_size: windows per step.
        learning_rate: its peak; it rises over the first steps and falls as a cosine to 2 %.
        warmup_steps: steps of the rise.
        weight_decay: of AdamW.
        gradient_limit: norm to which gradients are cut.
        validation_fraction: share of the traces held out.
        patience: epochs without improvement after which training stops.
        label_weight: weight of the cross-entropy.
        regret_weight: weight of the expected loss of value, if the pool knows values.
        max_regret: larger losses of value count as this.
        tell_returns: tell the model the return-to-go of what it imitates, and ask for the
            ``return_quantile`` of the pool when it decides; the labels are then the levels taken.
        return_quantile: see ``tell_returns``.
        threads: of torch; None leaves them alone.
    """

    seed: int = 0
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 1e-2
    gradient_limit: float = 1.0
    validation_fraction: float = 0.15
    patience: int = 4
    label_weight: float = 0.3
    regret_weight: float = 1.0
    max_regret: float = 20.0
    tell_returns: bool = False
    return_quantile: float = 0.9
    threads: int | None = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, is {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise TrainingError(
                f"validation_fraction must be between 0 and 1, is {self.validation_fraction}"
            )
        if self.learning_rate <= 0:
            raise TrainingError(f"learning_rate must be positive, is {self.learning_rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """One epoch.

    Attributes:
        epoch: from 1.
        train_loss: mean over the epoch.
        valid_loss: on the held-out traces.
        valid_accuracy: share of the labels met there.
        valid_regret: mean loss of value of the chosen level there; None without values.
        valid_qoe: what ``evaluate`` returned; None without it.
        wall_s: seconds that the epoch took.
    """

    epoch: int
    train_loss: float
    valid_loss: float
    valid_accuracy: float
    valid_regret: float | None
    valid_qoe: float | None
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """Outcome of a training.

    Attributes:
        checkpoint: folder of the best weights.
        best_epoch: the epoch that they come from.
        epochs: what happened.
        train_episodes: sessions trained on.
        valid_episodes: sessions held out.
        trained_parameters: number of weights that training changed.
    """

    checkpoint: str
    best_epoch: int
    epochs: tuple[EpochReport, ...]
    train_episodes: int
    valid_episodes: int
    trained_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Told to ``on_progress`` behind every step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


def train_abr(
    pool: Pool,
    backbone: str,
    out: Path,
    *,
    config: TrainingConfig | None = None,
    model: AbrModelConfig | None = None,
    evaluate: Evaluate | None = None,
    command: str = "",
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Trains adapters and writes the checkpoint of the best epoch to ``out``.

    Args:
        pool: what to learn from.
        backbone: name or path of the frozen language model.
        out: checkpoint folder; ``training-state`` in it lets a killed training go on.
        config: how to train.
        model: shape of the adapters; the ladder is always that of the pool.
        evaluate: measures a controller, higher is better; the best epoch is then chosen by it
            instead of by the loss on the held-out traces.
        command: the command that started this, for the card.
        resume: go on from ``training-state`` if there is one.
        on_progress: is told of every step.

    Returns:
        What happened.

    Raises:
        PoolError: the pool cannot be trained on.
        TrainingError: the state to resume belongs to other settings.
    """
    settings = config or TrainingConfig()
    with _determinism(settings):
        trainer = _Trainer(pool, backbone, out, settings, model, evaluate, command)
        if resume:
            trainer.load_state()
        return trainer.run(on_progress)


class _Trainer:
    """State of one training."""

    def __init__(
        self,
        pool: Pool,
        backbone: str,
        out: Path,
        config: TrainingConfig,
        model: AbrModelConfig | None,
        evaluate: Evaluate | None,
        command: str,
    ) -> None:
        self.pool, self.out, self.config = pool, out, config
        self.evaluate, self.command = evaluate, command
        train, valid = split_episodes(
            pool, fraction=config.validation_fraction, rng=np.random.default_rng(config.seed)
        )
        use_expert = pool.has_expert and not config.tell_returns
        scale = return_scale(train) if config.tell_returns else None

        def label(episodes: Sequence[Any]) -> list[LabelledEpisode]:
            return [
                label_episode(one, use_expert=use_expert, scale=scale, max_regret=config.max_regret)
                for one in episodes
            ]

        self.train, self.valid = label(train), label(valid)
        target = None
        if scale is not None:
            told = np.concatenate([episode.returns[1:, 0] for episode in self.train])
            target = float(np.quantile(told, config.return_quantile))
        ladder = _ladder(pool)
        shape = dataclasses.replace(
            model or AbrModelConfig(levels_kbps=ladder), levels_kbps=ladder, return_target=target
        )
        self.has_values = pool.has_values
        self.policy = AbrPolicy(shape, load_backbone(backbone))
        trainable = [one for one in self.policy.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.steps_per_epoch = -(-len(windows(self.train, shape.block, None)) // config.batch_size)
        self.history: list[EpochReport] = []
        self.best_score = -math.inf
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}

    @property
    def block(self) -> int:
        return self.policy.config.block

    def run(self, on_progress: Callable[[Progress], None] | None) -> TrainingReport:
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            if epoch - 1 - self.best_epoch >= self.config.patience:
                break
            self._epoch(epoch, on_progress)
            self._save_state()
        self.policy.load_state_dict(self.best_weights, strict=False)
        report = TrainingReport(
            checkpoint=str(self.out),
            best_epoch=self.best_epoch,
            epochs=tuple(self.history),
            train_episodes=len(self.train),
            valid_episodes=len(self.valid),
            trained_parameters=sum(value.numel() for value in self.best_weights.values()),
        )
        save_checkpoint(self.out, self.policy, self._card(report))
        shutil.rmtree(self.out / STATE_FOLDER, ignore_errors=True)
        return report

    def _epoch(self, epoch: int, on_progress: Callable[[Progress], None] | None) -> None:
        began = time.perf_counter()
        # Every epoch has a generator of its own, so that a resumed training is the same.
        rng = np.random.default_rng((self.config.seed, epoch))
        torch.manual_seed(int(rng.integers(2**31)))
        order = windows(self.train, self.block, rng)
        steps = -(-len(order) // self.config.batch_size)
        self.policy.train()
        losses = []
        for step, batch in enumerate(self._batches(self.train, order)):
            progress = min((epoch - 1 + step / steps) / self.config.epochs, 1.0)
            done = (epoch - 1) * self.steps_per_epoch + step
            losses.append(self._step(batch, progress, done))
            if on_progress:
                on_progress(
                    Progress(
                        epoch=epoch,
                        epochs=self.config.epochs,
                        step=step + 1,
                        steps=steps,
                        loss=losses[-1],
                    )
                )
        self.policy.eval()
        loss, accuracy, regret = self._validate()
        qoe = self.evaluate(self.policy.decide) if self.evaluate else None
        self.history.append(
            EpochReport(
                epoch=epoch,
                train_loss=float(np.mean(losses)),
                valid_loss=loss,
                valid_accuracy=accuracy,
                valid_regret=regret if self.has_values else None,
                valid_qoe=qoe,
                wall_s=time.perf_counter() - began,
            )
        )
        score = -loss if qoe is None else qoe
        if score > self.best_score:
            self.best_score, self.best_epoch = score, epoch
            self.best_weights = {
                key: value.detach().clone() for key, value in self.policy.adapter_state().items()
            }

    def _batches(self, episodes: list[LabelledEpisode], order: Any) -> Any:
        return batches(episodes, order, block=self.block, batch_size=self.config.batch_size)

    def _step(self, batch: Batch, progress: float, done: int) -> float:
        config = self.config
        warmup = min((done + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup * cosine
        loss = self._loss(self._logits(batch), batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(
            [one for group in self.optimizer.param_groups for one in group["params"]],
            config.gradient_limit,
        )
        self.optimizer.step()
        return float(loss.detach())

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.policy(
            self.policy.tensors(batch.features, torch.from_numpy(batch.returns))
        )
        return logits  # (B, S, levels)

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        label = torch.from_numpy(batch.label).to(logits.device)
        loss = self.config.label_weight * F.cross_entropy(
            logits.flatten(0, 1), label.flatten(), ignore_index=IGNORED
        )
        if self.has_values:
            counts = torch.from_numpy(batch.counts).to(logits.device)
            regret = torch.from_numpy(batch.regret).to(logits.device)
            expected = (logits.softmax(dim=-1) * regret).sum(dim=-1)  # (B, S)
            loss = loss + self.config.regret_weight * expected[counts].mean()
        return loss

    @torch.no_grad()
    def _validate(self) -> tuple[float, float, float]:
        """Mean loss, accuracy and regret over the held-out decisions."""
        order = windows(self.valid, self.block, None)
        loss = hits = regret = count = 0.0
        for batch in self._batches(self.valid, order):
            logits = self._logits(batch)
            decisions = int(batch.counts.sum())
            chosen = logits.argmax(dim=-1).cpu().numpy()
            loss += float(self._loss(logits, batch)) * decisions
            hits += int((chosen == batch.label)[batch.counts].sum())
            lost = np.take_along_axis(batch.regret, chosen[..., None], axis=-1)[..., 0]
            regret += float(lost[batch.counts].sum())
            count += decisions
        return loss / count, hits / count, regret / count

    def _card(self, report: TrainingReport) -> dict[str, Any]:
        return {
            "task": "abr",
            "command": self.command,
            "seed": self.config.seed,
            "backbone": self.policy.backbone.name,
            "training": dataclasses.asdict(self.config),
            "pool": dataclasses.asdict(describe_pool(self.pool)),
            "train_episodes": report.train_episodes,
            "valid_episodes": report.valid_episodes,
            "trained_parameters": report.trained_parameters,
            "best_epoch": report.best_epoch,
            "epochs": [dataclasses.asdict(epoch) for epoch in report.epochs],
        }

    def _settings(self) -> dict[str, Any]:
        """What a state must agree with to be resumed; the number of epochs shapes the schedule."""
        settings = dataclasses.asdict(self.config)
        del settings["threads"]
        return {
            **settings,
            "backbone": self.policy.backbone.fingerprint,
            "model": json.loads(json.dumps(dataclasses.asdict(self.policy.config))),
            "pool_episodes": len(self.pool.episodes),
            "pool_chunks": self.pool.chunks,
        }

    def _save_state(self) -> None:
        folder = self.out / STATE_FOLDER
        fresh = self.out / f"{STATE_FOLDER}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        tensors = {f"now.{key}": value for key, value in self.policy.adapter_state().items()}
        tensors |= {f"best.{key}": value for key, value in self.best_weights.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
        save_file(
            {key: value.contiguous() for key, value in tensors.items()}, fresh / STATE_WEIGHTS
        )
        write_json(
            fresh / STATE_FILE,
            {
                "settings": self._settings(),
                "best_epoch": self.best_epoch,
                "best_score": self.best_score,
                "epochs": [dataclasses.asdict(epoch) for epoch in self.history],
            },
        )
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def load_state(self) -> None:
        """Goes on where a killed training stopped, or begins if it had not come to a first epoch.

        Raises:
            TrainingError: the training has finished, or its state cannot be read.
        """
        folder = self.out / STATE_FOLDER
        if not folder.exists():  # killed between removing the old state and naming the new one
            folder = self.out / f"{STATE_FOLDER}.new"
        if not (folder / STATE_FILE).is_file():
            if (self.out / CONFIG_FILE).exists():
                raise TrainingError(f"{self.out}: this training has finished; nothing to resume")
            return
        try:
            document = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            tensors = read_weights(folder / STATE_WEIGHTS)
            settings, history = document["settings"], document["epochs"]
            self.history = [EpochReport(**epoch) for epoch in history]
            self.best_epoch, self.best_score = document["best_epoch"], document["best_score"]
        except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
            raise TrainingError(f"{folder}: cannot be resumed: {error}") from error
        for key, value in self._settings().items():
            if settings.get(key) != value:
                raise TrainingError(
                    f"{folder}: was trained with {key} = {settings.get(key)!r}, now {value!r}"
                )
        self.best_weights = _section(tensors, "best.")
        self.policy.load_state_dict(_section(tensors, "now."), strict=False)
        state = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _section(tensors, "adam.").items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**state, "state": moments})


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _ladder(pool: Pool) -> tuple[float, ...]:
    ladders = {episode.video.levels_kbps for episode in pool.episodes}
    if len(ladders) > 1:
        raise PoolError(f"the pool mixes {len(ladders)} ladders; a model is trained for one")
    return ladders.pop()


class _determinism:  # noqa: N801
    """Sets torch's threads and leaves its generators as they were found."""

    def __init__(self, config: TrainingConfig) -> None:
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
