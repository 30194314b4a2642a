"""Encoders that turn the features of a step into its tokens: NetLLM's multimodal encoder."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from adapters.features import NO_ACTION, PAST_CHUNKS, StepFeatures
from adapters.throughput_model import REFERENCE_CHUNKS
from adapters.tokens import NETLLM, Token
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
        return normed.reshape(batch, count * NETLLM.step_tokens, -1)


class ForecastEncoder(nn.Module):
    """Makes ``(B, S, D)`` token embeddings of what is known of the throughput.

    Nothing of the player enters (buffer, levels, sizes): what the link will do does not depend on
    it, and in training it would tell which policy played. Each token gets an embedding of its
    step's place in the window, then a LayerNorm.
    """

    def __init__(self, *, hidden_size: int, feature_size: int, max_steps: int) -> None:
        super().__init__()
        past = PAST_CHUNKS - HISTORY_KERNEL + 1
        self.throughput = _series(2, HISTORY_KERNEL, past, feature_size, hidden_size)
        self.download = _series(2, HISTORY_KERNEL, past, feature_size, hidden_size)
        self.summary = _scalar(FORECAST_SUMMARY, feature_size, hidden_size)
        self.step = nn.Embedding(max_steps, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, steps: StepTensors, places: Tensor | None = None) -> Tensor:
        """Returns the tokens of B windows of S steps each.

        Args:
            steps: ``(B, S, …)``.
            places: ``(S,)`` of the steps in the window; from 0 on if not given.
        """
        reference, summary = _throughput_summary(steps)
        relative = torch.stack(
            [
                (steps.throughput[..., 0, :] - reference) * steps.throughput[..., 1, :],
                steps.throughput[..., 1, :],
            ],
            dim=-2,
        )  # (B, S, 2, K)
        tokens = (
            _each_step(self.throughput, relative)
            + _each_step(self.download, steps.download)
            + self.summary(summary)
        )
        if places is None:
            places = torch.arange(tokens.shape[1], device=tokens.device)
        normed: Tensor = self.norm(tokens + self.step(places))
        return normed


#: Numbers that sum up the throughputs told at a step.
FORECAST_SUMMARY = 5


def _throughput_summary(steps: StepTensors) -> tuple[Tensor, Tensor]:
    """``(…, 1)`` log of the harmonic mean of the last throughputs, and ``(…, 5)`` with more."""
    throughput, known = steps.throughput.unbind(-2)  # (…, K)
    slowness = (torch.exp(-throughput) * known)[..., -REFERENCE_CHUNKS:].sum(-1, keepdim=True)
    count = known[..., -REFERENCE_CHUNKS:].sum(-1, keepdim=True)
    reference = torch.where(
        count > 0, torch.log(count.clamp(min=1) / slowness.clamp(min=1e-9)), 0.0
    )
    relative = (throughput - reference) * known
    chunks = known.sum(-1, keepdim=True).clamp(min=1)
    mean = relative.sum(-1, keepdim=True) / chunks
    spread = ((relative - mean).square() * known).sum(-1, keepdim=True).div(chunks).sqrt()
    return reference, torch.cat(
        [
            reference,
            mean,
            spread,
            relative.amin(-1, keepdim=True),
            relative.amax(-1, keepdim=True),
        ],
        dim=-1,
    )


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
