"""Training of Pensieve's policy by PPO (Schulman et al., 2017) with stable-baselines3.

Needs the extra ``rl``. Pensieve was published with A3C; its authors have since moved to PPO. With a
curriculum the same training is GENET's. The critic is a small network of its own, which is also
told how much the link will carry: that takes luck out of the advantages and never reaches the
actor. Only the actor is kept, as safetensors and JSON: stable-baselines3's own files are pickles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from adapters.pensieve import (
    PAST_CHUNKS,
    PENSIEVE_FORMAT,
    UNITS,
    PensieveActor,
    PensieveConfig,
    PensievePolicy,
    PensieveTower,
    state_size,
)
from adapters.pensieve_curriculum import STAGES, Curriculum, Promotion
from adapters.pensieve_env import AHEAD_S, PLAYER, SessionsEnv, TraceDraw
from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.trace import Trace
from player.vectorised import Sessions, play_vectorised
from player.video import Video

#: On slower traces than this, Mbit/s, 300 kbit/s stall whoever decides; they do not choose.
PLAYABLE_MBPS = 0.45
VALIDATION_STARTS = 40
VALIDATION_SEED = 123
#: Stalls make advantages heavy-tailed: limit in units of their size on the trace, and the least
#: size, in units of the median over sessions.
MAX_ADVANTAGE, MIN_SIZE = 4.0, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PensieveTraining:
    """How to train.

    Attributes:
        seed: of weights, traces, start points and decisions.
        chunks: decisions in total, rounded up to whole batches of sessions.
        sessions: side by side; every update sees one batch of them from start to end.
        epochs: passes over a batch.
        minibatches: parts of a batch.
        learning_rate: at the beginning; falls linearly to a twentieth.
        entropy: weight of the entropy at the beginning; falls linearly to 0 at 80 %.
        discount: of later rewards, per chunk.
        trace_decay: lambda of generalised advantage estimation.
        validations: how often the policy is measured on the validation traces.
        threads: of torch.
    """

    seed: int = 0
    chunks: int = 1_200_000
    sessions: int = 256
    epochs: int = 2
    minibatches: int = 8
    learning_rate: float = 1e-3
    entropy: float = 0.06
    discount: float = 0.99
    trace_decay: float = 0.95
    validations: int = 24
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("chunks", "sessions", "epochs", "minibatches", "validations", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """The greedy policy on the validation traces.

    Attributes:
        chunks: decisions trained on so far.
        playable_qoe: mean QoE per chunk on traces of at least ``PLAYABLE_MBPS``; this chooses.
        qoe: on all traces.
        entropy: of the decisions in training, nats.
    """

    chunks: int
    playable_qoe: float
    qoe: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Trained:
    """Outcome of a training.

    Attributes:
        policy: the weights that were best on the validation traces.
        best: how good they are there.
        curve: all measurements.
        promotions: stages of the curriculum; none without one.
    """

    policy: PensievePolicy
    best: Validated
    curve: tuple[Validated, ...]
    promotions: tuple[Promotion, ...]


class Validation:
    """Sessions that choose between weights: every trace from many start points, always the same."""

    def __init__(self, traces: Sequence[Trace], video: Video) -> None:
        rng = np.random.default_rng(VALIDATION_SEED)
        self._video = video
        self._links = LinkTable([PensieveLink(trace) for trace in traces])
        self._link = np.repeat(np.arange(len(traces)), VALIDATION_STARTS)
        self._start_s = np.array(
            [
                trace.start_s(int(point))
                for trace in traces
                for point in rng.integers(1, len(trace.times_s), VALIDATION_STARTS)
            ]
        )
        means = np.array([trace.mean_mbps for trace in traces])
        # Where nothing is playable, everything counts.
        self._playable = means >= min(PLAYABLE_MBPS, means.max())

    def __call__(self, policy: PensievePolicy) -> tuple[float, float]:
        """Mean QoE per chunk on the playable traces, and on all."""
        sessions = Sessions(
            self._video,
            self._links,
            self._link,
            self._start_s,
            config=PLAYER,
            past_chunks=PAST_CHUNKS,
        )
        qoe = play_vectorised(sessions, policy.decide_seen)[:, 1:].mean(axis=1)
        by_trace = qoe.reshape(-1, VALIDATION_STARTS).mean(axis=1)
        return float(by_trace[self._playable].mean()), float(by_trace.mean())


def train_pensieve(
    videos: Sequence[Video],
    traces: TraceDraw | Curriculum,
    validation: Validation,
    *,
    config: PensieveTraining | None = None,
    on_validated: Callable[[Validated], None] | None = None,
) -> Trained:
    """Trains a policy.

    Args:
        videos: what is played, of equal ladders and numbers of chunks.
        traces: where to draw traces from; a curriculum chooses them on the way.
        validation: chooses the weights that are kept.
        config: how to train.
        on_validated: is told of every validation.

    Raises:
        TrainingDataError: the videos cannot be trained on together.
    """
    settings = config or PensieveTraining()
    curriculum = traces if isinstance(traces, Curriculum) else None
    draw = traces.draw if isinstance(traces, Curriculum) else traces
    env = SessionsEnv(videos, draw, sessions=settings.sessions, seed=settings.seed)
    batch = env.decisions * settings.sessions
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        model = PPO(
            _ActorCritic,
            env,
            learning_rate=lambda left: settings.learning_rate * (0.05 + 0.95 * left),
            n_steps=env.decisions,
            batch_size=max(math.ceil(batch / settings.minibatches), 2),
            n_epochs=settings.epochs,
            gamma=settings.discount,
            gae_lambda=settings.trace_decay,
            ent_coef=settings.entropy,
            max_grad_norm=1.0,
            rollout_buffer_class=_LimitedAdvantages,
            rollout_buffer_kwargs={"env": env},
            seed=settings.seed,
            device="cpu",
        )
        model.set_logger(Logger(folder=None, output_formats=[]))
        watch = _Watch(settings, batch, validation, curriculum, on_validated)
        model.learn(settings.chunks, callback=watch, log_interval=settings.chunks)
    finally:
        torch.set_num_threads(threads)
    assert watch.best is not None  # a training ends with a validation
    return Trained(
        policy=watch.best_policy,
        best=watch.best,
        curve=tuple(watch.curve),
        promotions=tuple(curriculum.promotions) if curriculum else (),
    )


class _LimitedAdvantages(RolloutBuffer):  # type: ignore[misc]  # the extra may not be installed
    """Advantages in units of their size on the same trace, none beyond ``MAX_ADVANTAGE``."""

    advantages: Any  # (T, B)

    def __init__(self, *args: Any, env: SessionsEnv, **named: Any) -> None:
        super().__init__(*args, **named)
        self._env = env

    def compute_returns_and_advantage(self, last_values: Tensor, dones: Any) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        link = self._env.played_link
        square = np.square(self.advantages).mean(axis=0)  # (B,), per session
        count = np.bincount(link)
        size = np.sqrt(np.bincount(link, square)[link] / count[link])
        size = np.maximum(size, MIN_SIZE * np.median(size))
        limited = np.clip(self.advantages / size, -MAX_ADVANTAGE, MAX_ADVANTAGE)
        self.advantages = limited.astype(np.float32)


class _Networks(nn.Module):
    """What lies in front of the last layers of actor and critic."""

    latent_dim_pi = latent_dim_vf = UNITS

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.size = state_size(levels)
        self.actor = PensieveTower(levels)
        self.critic = nn.Sequential(
            nn.Linear(self.size + len(AHEAD_S), UNITS),
            nn.ReLU(),
            nn.Linear(UNITS, UNITS),
            nn.ReLU(),
        )

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(seen), self.forward_critic(seen)

    def forward_actor(self, seen: Tensor) -> Tensor:
        hidden: Tensor = self.actor(seen[:, : self.size])
        return hidden

    def forward_critic(self, seen: Tensor) -> Tensor:
        hidden: Tensor = self.critic(seen)
        return hidden


class _ActorCritic(ActorCriticPolicy):  # type: ignore[misc]  # the extra may not be installed
    """Pensieve's networks behind the interface of stable-baselines3."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _Networks(int(self.action_space.n))

    def pensieve(self, config: PensieveConfig) -> PensievePolicy:
        """A copy of the actor, as it is now."""
        actor = PensieveActor(config.levels)
        actor.tower.load_state_dict(self.mlp_extractor.actor.state_dict())
        actor.head.load_state_dict(self.action_net.state_dict())
        return PensievePolicy(config, actor)


class _Watch(BaseCallback):  # type: ignore[misc]  # the extra may not be installed
    """Validates, promotes environments, and lets the weight of the entropy fall."""

    def __init__(
        self,
        config: PensieveTraining,
        batch: int,
        validation: Validation,
        curriculum: Curriculum | None,
        on_validated: Callable[[Validated], None] | None,
    ) -> None:
        super().__init__()
        self.config, self.validation, self.curriculum = config, validation, curriculum
        self.on_validated = on_validated
        updates = math.ceil(config.chunks / batch)
        self.validate_at = _spread_out(updates, config.validations)
        self.promote_at = _spread_out(updates, STAGES + 1)
        self.update = 0
        self.curve: list[Validated] = []
        self.best: Validated | None = None

    def policy_now(self) -> PensievePolicy:
        env: SessionsEnv = self.training_env
        config = PensieveConfig(
            format=PENSIEVE_FORMAT,
            task="abr",
            method="genet" if self.curriculum else "pensieve",
            levels_kbps=env.video.levels_kbps,
        )
        policy: PensievePolicy = self.model.policy.pensieve(config)
        return policy

    def _on_rollout_start(self) -> None:
        if self.update in self.validate_at:
            self._validate()
        if self.curriculum and self.update in self.promote_at:
            self.curriculum.promote(self.policy_now())
        done = self.num_timesteps / self.config.chunks
        self.model.ent_coef = self.config.entropy * max(0.0, 1 - done / 0.8)
        self.update += 1

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._validate()

    def _validate(self) -> None:
        policy = self.policy_now()
        playable_qoe, qoe = self.validation(policy)
        entropy = -self.model.logger.name_to_value.get("train/entropy_loss", math.nan)
        now = Validated(
            chunks=self.num_timesteps, playable_qoe=playable_qoe, qoe=qoe, entropy=float(entropy)
        )
        self.curve.append(now)
        if self.best is None or now.playable_qoe > self.best.playable_qoe:
            self.best, self.best_policy = now, policy
        if self.on_validated:
            self.on_validated(now)


def _spread_out(updates: int, parts: int) -> frozenset[int]:
    """Updates, of all from 0, in front of which one of ``parts`` equal parts has ended."""
    return frozenset(round(updates * part / parts) for part in range(1, parts)) - {0, updates}


def as_card(trained: Trained) -> dict[str, object]:
    """Validation figures and curriculum of a training, for a card."""
    return {
        "best": dataclasses.asdict(trained.best),
        "curve": [dataclasses.asdict(one) for one in trained.curve],
        "promotions": [dataclasses.asdict(one) for one in trained.promotions],
    }
