"""Encoders that turn the features of a step into its tokens: NetLLM's multimodal encoder."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from adapters.features import NO_ACTION, PAST_CHUNKS, StepFeatures
from adapters.tokens import TOKENS_PER_STEP, Token
from player.observation import UPCOMING_LIMIT

HISTORY_KERNEL = 4


@dataclass(frozen=True, slots=True)
class StepTensors:
    """``StepFeatures`` as tensors with leading axes (B, S), and what only training knows.

    Attributes:
        returns: ``(B, S, 1)`` normalised return-to-go; 0 where it is not told.
    """

    bitrate: Tensor
    buffer: Tensor
    throughput: Tensor
    download: Tensor
    chunks_left: Tensor
    sizes: Tensor
    action: Tensor
    returns: Tensor

    @classmethod
    def of(cls, features: StepFeatures, returns: Tensor, device: torch.device) -> StepTensors:
        """Moves batched features to a device."""
        tensors = {
            field.name: torch.from_numpy(getattr(features, field.name)).to(device)
            for field in fields(features)
        }
        return cls(**tensors, returns=returns.to(device))


class StepEncoder(nn.Module):
    """Makes ``(B, S · 8, D)`` token embeddings: scalars by linear, histories by convolution.

    Every token gets an embedding of its step's place in the window, then a LayerNorm.
    """

    def __init__(self, *, levels: int, hidden_size: int, feature_size: int, max_steps: int) -> None:
        super().__init__()
        self.levels = levels
        past = PAST_CHUNKS - HISTORY_KERNEL + 1
        self.returns = _scalar(1, feature_size, hidden_size)
        self.bitrate = _scalar(1, feature_size, hidden_size)
        self.buffer = _scalar(2, feature_size, hidden_size)
        self.throughput = _series(2, HISTORY_KERNEL, past, feature_size, hidden_size)
        self.download = _series(2, HISTORY_KERNEL, past, feature_size, hidden_size)
        self.chunks_left = _scalar(1, feature_size, hidden_size)
        self.sizes = _series(UPCOMING_LIMIT, levels, 1, feature_size, hidden_size)
        self.action = nn.Embedding(levels + 1, hidden_size)  # the last row: not decided yet
        self.step = nn.Embedding(max_steps, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, steps: StepTensors) -> Tensor:
        """Returns the tokens of B windows of S steps each."""
        batch, count = steps.action.shape
        action = torch.where(steps.action == NO_ACTION, self.levels, steps.action)
        tokens = {
            Token.RETURN: self.returns(steps.returns),
            Token.BITRATE: self.bitrate(steps.bitrate),
            Token.BUFFER: self.buffer(steps.buffer),
            Token.THROUGHPUT: _each_step(self.throughput, steps.throughput),
            Token.DOWNLOAD: _each_step(self.download, steps.download),
            Token.CHUNKS_LEFT: self.chunks_left(steps.chunks_left),
            Token.SIZES: _each_step(self.sizes, steps.sizes),
            Token.ACTION: self.action(action),
        }
        stacked = torch.stack([tokens[token] for token in Token], dim=2)  # (B, S, 8, D)
        place = self.step(torch.arange(count, device=stacked.device))  # (S, D)
        normed: Tensor = self.norm(stacked + place[None, :, None, :])
        return normed.reshape(batch, count * TOKENS_PER_STEP, -1)


def _scalar(inputs: int, feature_size: int, hidden_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, feature_size), nn.GELU(), nn.Linear(feature_size, hidden_size)
    )


def _series(
    channels: int, kernel: int, places: int, feature_size: int, hidden_size: int
) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(channels, feature_size, kernel),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(feature_size * places, hidden_size),
    )


def _each_step(module: nn.Module, series: Tensor) -> Tensor:
    """Applies a module for ``(N, C, L)`` to ``(B, S, C, L)``; returns ``(B, S, D)``."""
    batch, count = series.shape[:2]
    encoded: Tensor = module(series.flatten(0, 1))
    return encoded.view(batch, count, -1)
