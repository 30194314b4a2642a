"""The adapted model for ABR: encoders, frozen language model with LoRA, action head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError, add_lora, merge_lora
from adapters.encoders import StepEncoder, StepTensors
from adapters.features import StepFeatures, pad_steps, stack, window_features
from adapters.inference import CACHE_BYTES, CachedInference, Inference, choose_pass
from adapters.passes import LeanEncoder
from adapters.tokens import attention_allowed, read_positions, window_steps, window_tokens
from player.observation import HISTORY_LIMIT, AbrObservation, ObservationError


class LadderError(ObservationError):
    """An observation whose ladder has another length than the model was trained for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbrModelConfig:
    """Shape of the adapted model; written into the checkpoint.

    Attributes:
        levels_kbps: ladder of the training data.
        block: steps per block of the context window, which holds one to two blocks.
        feature_size: width of the encoders in front of the projection to the hidden size.
        lora_rank: rank of the updates.
        lora_alpha: their scale times the rank.
        dropout: of the updates and in front of the head, in training only.
        return_target: normalised return-to-go that the model is asked for; None: it is not told
            any return, in training neither.
    """

    levels_kbps: tuple[float, ...]
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, is {self.dropout}")

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.levels_kbps)


class AbrPolicy(nn.Module):
    """Scores the levels of every step of a window. A function of its input in evaluation mode."""

    def __init__(self, config: AbrModelConfig, backbone: Backbone) -> None:
        super().__init__()
        if window_tokens(config.block) > backbone.max_positions:
            raise BackboneError(
                f"{backbone.name}: a window of two blocks of {config.block} steps has "
                f"{window_tokens(config.block)} tokens, more than its {backbone.max_positions} "
                "positions"
            )
        self.config = config
        self.encoder = StepEncoder(
            levels=config.levels,
            hidden_size=backbone.hidden_size,
            feature_size=config.feature_size,
            max_steps=window_steps(config.block),
        )
        add_lora(backbone, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.dropout)
        self.backbone = backbone
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(backbone.hidden_size, config.levels)
        allowed = torch.from_numpy(attention_allowed(window_tokens(config.block)))
        self.register_buffer("allowed", allowed, persistent=False)
        self.inference: Inference = "full"
        self._cached: CachedInference | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def train(self, mode: bool = True) -> AbrPolicy:
        """Switches dropout of the adapters; the frozen model's own dropout stays off."""
        super().train(mode)
        if mode:
            self.inference, self._cached = "full", None  # what is kept belongs to these weights
            for name, module in self.backbone.named_modules():
                if isinstance(module, nn.Dropout) and "lora_" not in name:
                    module.eval()
        return self

    def forward(self, steps: StepTensors) -> Tensor:
        """Returns ``(B, S, levels)`` logits of B windows of S steps, aligned as in the layout."""
        tokens = self.encoder(steps)  # (B, T, D), T = 8 S
        count = tokens.shape[1]
        allowed: Tensor = self.get_buffer("allowed")[:count, :count]
        hidden = self.backbone(tokens, allowed)  # (B, T, D)
        read = hidden[:, read_positions(steps.action.shape[1])]  # (B, S, D)
        logits: Tensor = self.head(self.dropout(read))
        return logits

    @torch.no_grad()
    def logits(self, observations: Sequence[AbrObservation]) -> Tensor:
        """Returns ``(B, levels)`` logits of the steps to decide.

        Raises:
            LadderError: a ladder has another number of levels than the model's.
        """
        self._check_ladders(observations)
        if self._cached is not None:
            return self._cached.logits(observations)
        windows = [window_features(one, self.config.block) for one in observations]
        steps = [len(window.action) for window in windows]
        batch = stack([pad_steps(window, max(steps)) for window in windows])
        every = self.forward(self.tensors(batch))  # (B, S, levels)
        return every[torch.arange(len(steps)), torch.tensor(steps) - 1]

    def _check_ladders(self, observations: Sequence[AbrObservation]) -> None:
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
            LadderError: a ladder has another number of levels than the model's.
        """
        self._check_ladders(observations)
        known = [index for index, one in enumerate(observations) if one.history]
        levels = np.zeros(len(observations), dtype=np.int64)
        if known:
            logits = self.logits([observations[index] for index in known])
            levels[known] = logits.argmax(dim=1).cpu().numpy()
        return [int(level) for level in levels]

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
        self.inference, run = choose_pass(self.backbone, self.config.block, inference)
        if run is not None:
            self._cached = CachedInference(
                encoder=LeanEncoder(self.encoder, float(self.config.return_target or 0.0)),
                run=run,
                head=self.head,
                block=self.config.block,
                limit_bytes=cache_bytes,
            )
        return self

    def adapter_state(self) -> dict[str, Tensor]:
        """The weights that training changes: encoders, head and low-rank updates."""
        return {key: value for key, value in self.state_dict().items() if not _is_frozen(key)}


def _is_frozen(key: str) -> bool:
    return key.startswith("backbone.") and "lora_" not in key
