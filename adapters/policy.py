"""The adapted model for ABR: encoders, frozen language model with LoRA, action head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError, add_lora, merge_lora
from adapters.encoders import ForecastEncoder, StepEncoder, StepTensors
from adapters.features import StepFeatures, pad_steps, stack, window_features
from adapters.inference import (
    CACHE_BYTES,
    PREPARING,
    CachedInference,
    Encode,
    Inference,
    choose_pass,
)
from adapters.passes import LeanEncoder
from adapters.throughput_model import (
    AdaptedHistory,
    PastThroughput,
    ThroughputConfig,
    ThroughputModel,
    past_throughput_of,
)
from adapters.throughput_planning import BATCH, HORIZON, planned_values
from adapters.tokens import LAYOUTS, Layout, window_steps
from player.observation import HISTORY_LIMIT, AbrObservation, ObservationError


class LadderError(ObservationError):
    """An observation whose ladder has another length than the model was trained for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbrModelConfig:
    """Shape of the adapted model; written into the checkpoint.

    Attributes:
        levels_kbps: ladder of the training data; with the layout ``forecast`` any other will do.
        layout: ``netllm``, the published one, scores the levels; ``forecast`` tells the
            distribution of throughput, with which levels are planned. See ``adapters.tokens``.
        block: steps per block of the context window, which holds one to two blocks.
        feature_size: width of the encoders in front of the projection to the hidden size.
        lora_rank: rank of the updates.
        lora_alpha: their scale times the rank.
        dropout: of the updates and in front of the head, in training only.
        return_target: normalised return-to-go that the model is asked for; None: it is not told
            any return, in training neither.
    """

    levels_kbps: tuple[float, ...]
    layout: Literal["netllm", "forecast"] = "netllm"
    block: int = 5
    feature_size: int = 64
    lora_rank: int = 32
    lora_alpha: float = 64.0
    dropout: float = 0.05
    return_target: float | None = None

    def __post_init__(self) -> None:
        for name in ("block", "feature_size", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if window_steps(self.block) > HISTORY_LIMIT:
            raise ValueError(
                f"block must be at most {HISTORY_LIMIT // 2}, is {self.block}: windows are rebuilt "
                f"from the last {HISTORY_LIMIT} chunks"
            )
        if self.layout == "forecast" and self.return_target is not None:
            raise ValueError("return_target needs the layout 'netllm': 'forecast' tells no returns")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, is {self.dropout}")

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.levels_kbps)

    @property
    def tokens(self) -> Layout:
        """The layout."""
        return LAYOUTS[self.layout]


class AbrPolicy(nn.Module):
    """Answers for every step of a window. A function of its input in evaluation mode."""

    def __init__(self, config: AbrModelConfig, backbone: Backbone) -> None:
        super().__init__()
        layout, steps = config.tokens, window_steps(config.block)
        window = layout.window_tokens(config.block)
        if window > backbone.max_positions:
            raise BackboneError(
                f"{backbone.name}: a window of two blocks of {config.block} steps has {window} "
                f"tokens, more than its {backbone.max_positions} positions"
            )
        self.config = config
        sizes = {"hidden_size": backbone.hidden_size, "feature_size": config.feature_size}
        self.encoder: StepEncoder | ForecastEncoder
        self.head: nn.Linear | ThroughputModel
        if config.layout == "netllm":
            self.encoder = StepEncoder(levels=config.levels, max_steps=steps, **sizes)
            self.head = nn.Linear(backbone.hidden_size, config.levels)
        else:
            self.encoder = ForecastEncoder(max_steps=steps, **sizes)
            shape = ThroughputConfig()
            self.head = ThroughputModel(shape, AdaptedHistory(backbone.hidden_size, shape))
        self.backbone = backbone.share()
        add_lora(
            self.backbone, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.dropout
        )
        self.dropout = nn.Dropout(config.dropout)
        allowed = torch.from_numpy(layout.attention_allowed(window))
        self.register_buffer("allowed", allowed, persistent=False)
        self.inference: Inference = "full"
        self._cached: CachedInference | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.norm.weight.device

    def train(self, mode: bool = True) -> AbrPolicy:
        """Switches dropout of the adapters; the frozen model has none."""
        super().train(mode)
        if mode:
            self.inference, self._cached = "full", None  # what is kept belongs to these weights
        return self

    def forward(self, steps: StepTensors) -> Tensor:
        """Returns the answers for B windows of S steps, aligned as in the layout.

        Returns:
            ``(B, S, levels)`` logits; with the layout ``forecast`` ``(B, S, D)``, what the
            ``AdaptedHistory`` of the head takes.
        """
        tokens = self.encoder(steps)  # (B, T, D)
        count = tokens.shape[1]
        allowed: Tensor = self.get_buffer("allowed")[:count, :count]
        hidden = self.backbone(tokens, allowed)  # (B, T, D)
        read = hidden[:, self.config.tokens.read_positions(steps.action.shape[1])]  # (B, S, D)
        return self._answers(self.dropout(read))

    def _answers(self, read: Tensor) -> Tensor:
        """Answers ``(…, levels)`` or ``(…, D)`` from the hidden states ``(…, D)``."""
        answers: Tensor = self.head(read) if isinstance(self.head, nn.Linear) else read
        return answers

    @torch.no_grad()
    def answers(self, observations: Sequence[AbrObservation]) -> Tensor:
        """Returns the answers for the steps to decide, ``(B, levels)`` or ``(B, D)``.

        The observations' ladders must be equally long.

        Raises:
            LadderError: a ladder has another number of levels than the model can decide.
        """
        self._check_ladders(observations)
        if self._cached is not None:
            return self._cached.answers(observations)
        windows = [window_features(one, self.config.block) for one in observations]
        steps = [len(window.action) for window in windows]
        batch = stack([pad_steps(window, max(steps)) for window in windows])
        every = self.forward(self.tensors(batch))  # (B, S, …)
        return every[torch.arange(len(steps)), torch.tensor(steps) - 1]

    def _check_ladders(self, observations: Sequence[AbrObservation]) -> None:
        if self.config.layout == "forecast":
            return
        for observation in observations:
            if observation.levels != self.config.levels:
                raise LadderError(
                    "levels_kbps",
                    f"the ladder has {observation.levels} levels, but the checkpoint was trained "
                    f"for a ladder of {self.config.levels}",
                )

    def tensors(self, batch: StepFeatures, returns: Tensor | None = None) -> StepTensors:
        """Puts ``(B, S, …)`` features where the weights are; returns default to the target."""
        if returns is None:
            shape = (*batch.action.shape, 1)
            returns = torch.full(shape, float(self.config.return_target or 0.0))
        return StepTensors.of(batch, returns, self.device)

    def decide(self, observation: AbrObservation) -> int:
        """Returns the level with the highest score; 0 before any history."""
        return self.decide_many([observation])[0]

    def decide_many(self, observations: Sequence[AbrObservation]) -> list[int]:
        """Decides several observations, of one session or of many, in one pass.

        Raises:
            LadderError: a ladder has another number of levels than the model can decide.
        """
        self._check_ladders(observations)
        alike: dict[int, list[int]] = {}  # by the length of the ladder
        for index, one in enumerate(observations):
            if one.history:
                alike.setdefault(one.levels, []).append(index)
        levels = [0] * len(observations)
        for indices in alike.values():
            asked = [observations[index] for index in indices]
            for index, level in zip(indices, self._levels(asked, self.answers(asked)), strict=True):
                levels[index] = level
        return levels

    def _levels(self, observations: Sequence[AbrObservation], answers: Tensor) -> list[int]:
        """The levels with the highest scores, or the first ones of the best plans."""
        if not isinstance(self.head, ThroughputModel):
            return [int(level) for level in answers.argmax(dim=1)]
        together: dict[tuple[object, ...], list[int]] = {}  # those that one call can plan
        for index, one in enumerate(observations):
            ahead = min(one.chunks_left, HORIZON), len(one.upcoming_sizes_bytes)
            together.setdefault((one.levels_kbps, one.chunk_s, *ahead), []).append(index)
        levels = [0] * len(observations)
        for indices in together.values():
            for first in range(0, len(indices), BATCH):
                part = indices[first : first + BATCH]
                planned = self._plans([observations[index] for index in part], answers[part])
                for index, level in zip(part, planned, strict=True):
                    levels[index] = level
        return levels

    def _plans(self, observations: Sequence[AbrObservation], answers: Tensor) -> list[int]:
        """First levels of the best plans, with the throughput that ``(B, D)`` answers foretell."""
        assert isinstance(self.head, ThroughputModel)
        past = [past_throughput_of(one.history) for one in observations]
        told = np.concatenate([one.features for one in past])
        features = np.concatenate([answers.float().cpu().numpy(), told], axis=1)
        first = observations[0]
        values = planned_values(
            self.head,
            PastThroughput(features, np.concatenate([one.reference_kbps for one in past])),
            levels_kbps=first.levels_kbps,
            chunk_s=first.chunk_s,
            buffer_s=np.array([one.buffer_s for one in observations]),
            last_level=np.array([one.last_level for one in observations]),
            sizes_bytes=np.array([one.upcoming_sizes_bytes for one in observations]),
            chunks_left=first.chunks_left,
        )
        return [int(level) for level in values.argmax(axis=1)]

    def freeze(
        self, inference: Inference | Literal["auto"] = "full", *, cache_bytes: int = CACHE_BYTES
    ) -> AbrPolicy:
        """Makes the model ready to answer: updates folded in, no dropout, no gradients.

        Args:
            inference: how answers are computed; ``auto`` takes the fastest exact way, which the
                attribute ``inference`` tells afterwards. None changes an answer.
            cache_bytes: bound of what is kept of past tokens.

        Raises:
            BackboneError: this way does not work with the backbone.
            ValueError: not one window fits into the bound.
        """
        self.eval()
        merge_lora(self.backbone)
        self.requires_grad_(False)
        layout, block = self.config.tokens, self.config.block
        self.inference, run = choose_pass(self.backbone, layout, block, inference)
        if run is not None:
            self._cached = CachedInference(
                encode=self._lean_encoder(),
                run=run,
                answer=self._answers,
                layout=layout,
                block=block,
                device=self.device,
                limit_bytes=cache_bytes,
                prepares=self.inference in PREPARING,
            )
        return self

    def _lean_encoder(self) -> Encode:
        encoder = self.encoder
        if isinstance(encoder, StepEncoder):
            return LeanEncoder(encoder, float(self.config.return_target or 0.0))

        def encode(steps: StepFeatures, places: Sequence[int]) -> Tensor:
            place = torch.tensor(places, device=self.device)
            tokens: Tensor = encoder(self.tensors(steps[None]), place)
            return tokens[0].view(len(places), self.config.tokens.step_tokens, -1)

        return encode

    def adapter_state(self) -> dict[str, Tensor]:
        """The weights that training changes: encoders, head and low-rank updates."""
        return {key: value for key, value in self.state_dict().items() if not _is_frozen(key)}


def _is_frozen(key: str) -> bool:
    return key.startswith("backbone.") and "lora_" not in key
