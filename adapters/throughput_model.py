"""A small network that tells the distribution of throughput a few chunks ahead, after Fugu.

Fugu (Yan et al., NSDI 2020) predicts a distribution of download times from recent chunks and the
size of the one to come. Departures: what is predicted is the ratio of the throughput to the
harmonic mean of the last chunks, in bins that are finest near 1; and one step depends on the bin of
the step before, so that chunks of one session are slow together.

Nothing here depends on a ladder or a chunk length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.features import KBPS_UNIT, MAX_DOWNLOAD_S, MAX_KBPS, MIN_DOWNLOAD_S, MIN_KBPS
from player.observation import KILOBITS_PER_BYTE, PastChunk

Float32Array = NDArray[np.float32]

#: Past chunks that are told one by one, and that the session's summary covers.
RECENT_CHUNKS, SUMMARY_CHUNKS = 8, 32
#: Past chunks in the harmonic mean that ratios refer to, as in MPC (Yin et al., SIGCOMM 2015).
REFERENCE_CHUNKS = 5
MAX_LOG_RATIO = 4.0
FEATURES = 3 * RECENT_CHUNKS + 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputConfig:
    """Shape of the network and of its bins.

    Attributes:
        bins: C, of the log of the ratio.
        widest_log_ratio: centres of the first and the last bin, minus and plus.
        crowding: how much finer the bins are near 1: their centres are a sinh of that many units.
        horizon: H, chunks ahead.
        hidden: width of the two layers over the history.
        row_hidden: width of the layer per chunk ahead, level and bin before.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012
    bins: int = 31
    widest_log_ratio: float = 3.0
    crowding: float = 3.0
    horizon: int = 8
    hidden: int = 128
    row_hidden: int = 64

    def __post_init__(self) -> None:
        for name in ("bins", "horizon"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, is {getattr(self, name)}")
        for name in ("hidden", "row_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        for name in ("widest_log_ratio", "crowding"):
            if not 0 < getattr(self, name) <= MAX_LOG_RATIO:
                raise ValueError(f"{name} must be above 0 and at most {MAX_LOG_RATIO}")

    def centres(self) -> Float32Array:
        """``(C,)`` log ratios in the middle of the bins."""
        units = np.linspace(-self.crowding, self.crowding, self.bins)
        log_ratio = self.widest_log_ratio * np.sinh(units) / np.sinh(self.crowding)
        return np.asarray(log_ratio, dtype=np.float32)

    def bin_of(self, log_ratio: NDArray[Any]) -> NDArray[np.int64]:
        """Bins of log ratios, any shape; the first and the last take what lies beyond."""
        centres = self.centres()
        return np.searchsorted((centres[1:] + centres[:-1]) / 2, log_ratio)


@dataclass(frozen=True, slots=True)
class PastThroughput:
    """What the network is told about B sessions.

    Attributes:
        features: ``(B, FEATURES)``.
        reference_kbps: ``(B,)`` harmonic mean of the last throughputs.
    """

    features: Float32Array
    reference_kbps: NDArray[np.float64]


def past_throughput(
    throughput_kbps: NDArray[np.float64], download_s: NDArray[np.float64], known: int
) -> PastThroughput:
    """Features of sessions that have played equally many chunks.

    Args:
        throughput_kbps: ``(B, K)`` of past chunks, the newest last.
        download_s: ``(B, K)`` their download times.
        known: how many of the K there are, the last ones; at least 1.

    Raises:
        ValueError: no chunk is known.
    """
    known = min(known, SUMMARY_CHUNKS, throughput_kbps.shape[1])
    if known < 1:
        raise ValueError("nothing is known about the throughput before the first chunk")
    kbps = np.clip(throughput_kbps[:, -known:], MIN_KBPS, MAX_KBPS)
    seconds = np.clip(download_s[:, -known:], MIN_DOWNLOAD_S, MAX_DOWNLOAD_S)
    recent = kbps[:, -REFERENCE_CHUNKS:]
    reference_kbps = recent.shape[1] / (1 / recent).sum(axis=1)
    log_ratio = np.log(kbps / reference_kbps[:, None])
    features = np.zeros((len(kbps), FEATURES), dtype=np.float32)
    told = min(known, RECENT_CHUNKS)
    for start, values in ((0, log_ratio), (RECENT_CHUNKS, np.log(seconds))):
        features[:, start + RECENT_CHUNKS - told : start + RECENT_CHUNKS] = values[:, -told:]
    features[:, 3 * RECENT_CHUNKS - told : 3 * RECENT_CHUNKS] = 1.0
    features[:, 3 * RECENT_CHUNKS :] = np.stack(
        [
            np.log(reference_kbps / KBPS_UNIT),
            log_ratio.mean(axis=1),
            log_ratio.std(axis=1),
            log_ratio.min(axis=1),
            log_ratio.max(axis=1),
            np.full(len(kbps), known / SUMMARY_CHUNKS),
        ],
        axis=1,
    )
    return PastThroughput(features, reference_kbps)


def past_throughput_of(history: Sequence[PastChunk]) -> PastThroughput:
    """Features of one session, leading axis 1; see :func:`past_throughput`."""
    recent = history[-SUMMARY_CHUNKS:]
    throughput_kbps = np.array([[past.throughput_kbps for past in recent]])
    download_s = np.array([[past.download_s for past in recent]])
    return past_throughput(throughput_kbps, download_s, len(recent))


def log_expected_s(sizes_bytes: NDArray[Any], reference_kbps: NDArray[np.float64]) -> Float32Array:
    """Log of the download times at the reference; sizes have axis B first."""
    shape = len(reference_kbps), *(1,) * (sizes_bytes.ndim - 1)
    seconds = sizes_bytes * KILOBITS_PER_BYTE / reference_kbps.reshape(shape)
    return np.log(np.clip(seconds, MIN_DOWNLOAD_S, MAX_DOWNLOAD_S)).astype(np.float32)


class AdaptedHistory(nn.Module):
    """What a small network reads from a history, and what a language model adds to it.

    It takes the hidden state of the language model and behind it the features of
    :func:`past_throughput`. The language model begins by adding nothing.
    """

    def __init__(self, hidden_size: int, config: ThroughputConfig) -> None:
        super().__init__()
        self.small = _small_network(config)
        self.read = nn.Linear(hidden_size, config.row_hidden)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Returns ``(B, row_hidden)`` for ``(B, D + FEATURES)``."""
        hidden, told = features[:, :-FEATURES], features[:, -FEATURES:]
        row: Tensor = self.small(told) + self.read(hidden)
        return row


def _small_network(config: ThroughputConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, config.row_hidden),
    )


class ThroughputModel(nn.Module):
    """Bins of the next throughputs, from the history, the size and the bin before."""

    ratio: Tensor

    def __init__(self, config: ThroughputConfig, history: nn.Module | None = None) -> None:
        """Makes a model.

        Args:
            config: its shape.
            history: makes rows of ``row_hidden`` of the features, which may then be whatever it
                takes; by default a small network on those of :func:`past_throughput`.
        """
        super().__init__()
        self.config = config
        self.history = history or _small_network(config)
        self.before = nn.Embedding(config.bins + 1, config.row_hidden)  # the last: no chunk before
        self.ahead = nn.Embedding(config.horizon, config.row_hidden)
        self.size = nn.Linear(2, config.row_hidden)
        self.out = nn.Linear(config.row_hidden, config.bins)
        self.chain = nn.Embedding(config.bins + 1, config.bins)
        nn.init.zeros_(self.chain.weight)
        # What a bin stands for: training sets the harmonic mean of the ratios it has seen there.
        self.register_buffer("ratio", torch.from_numpy(np.exp(config.centres())))

    def forward(
        self, features: Tensor, ahead: Tensor, before: Tensor, log_expected_s: Tensor
    ) -> Tensor:
        """Logits of the bins.

        Args:
            features: ``(B, FEATURES)``.
            ahead: ``(K,)`` chunks ahead, 0 for the next one.
            before: ``(B | 1, K, L | 1, P)`` bin of the chunk before; C for none.
            log_expected_s: ``(B, K, L)`` of :func:`log_expected_s`.

        Returns:
            ``(B, K, L, P, C)``.
        """
        sizes = torch.stack([log_expected_s, log_expected_s.square()], dim=-1)  # (B, K, L, 2)
        row = self.history(features)[:, None, None, None]  # (B, 1, 1, 1, row_hidden)
        row = row + self.size(sizes)[:, :, :, None] + self.ahead(ahead)[:, None, None]
        row = torch.relu(row + self.before(before))
        logits: Tensor = self.out(row) + self.chain(before)
        return logits

    def start_from(self, other: ThroughputModel) -> None:
        """Takes over the weights of a model that has only a small network.

        Raises:
            ValueError: it has another shape.
        """
        if other.config != self.config:
            raise ValueError(f"a model of shape {other.config} does not fit {self.config}")
        weights = other.state_dict()
        if isinstance(self.history, AdaptedHistory):
            weights = {key.replace("history.", "history.small."): weights[key] for key in weights}
        self.load_state_dict(weights, strict=False)

    @torch.inference_mode()
    def predict(
        self, past: PastThroughput, sizes_bytes: NDArray[Any]
    ) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Distribution over the next chunks.

        Args:
            past: of B sessions.
            sizes_bytes: ``(B, H, L)`` sizes of the next chunks, at most ``horizon``.

        Returns:
            ``(B, C)`` throughputs of the bins, kbit/s; ``(B, L, C)`` probabilities for the next
            chunk; ``(B, H - 1, L, C, C)`` for those behind it, by the bin of the one before.
        """
        device = self.ratio.device
        features = torch.from_numpy(past.features).to(device)
        expected = torch.from_numpy(log_expected_s(sizes_bytes, past.reference_kbps)).to(device)
        bins, steps = self.config.bins, torch.arange(sizes_bytes.shape[1], device=device)
        none = torch.full((1, 1, 1, 1), bins, device=device)
        first = self(features, steps[:1], none, expected[:, :1])[:, 0, :, 0].softmax(-1)
        each = torch.arange(bins, device=device).expand(1, len(steps) - 1, 1, bins)
        later = self(features, steps[1:], each, expected[:, 1:]).softmax(-1)
        throughput_kbps = past.reference_kbps[:, None] * self.ratio.cpu().numpy()
        return throughput_kbps.astype(np.float32), first.cpu().numpy(), later.cpu().numpy()


def set_threads(threads: int) -> None:
    """Sets how many CPU threads torch may use in this process."""
    torch.set_num_threads(threads)
