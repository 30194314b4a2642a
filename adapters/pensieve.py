"""The policy of Pensieve (Mao et al., SIGCOMM 2017): its observation, its network, its checkpoints.

The state is Pensieve's: bitrate of the last chunk, buffer, chunks left, throughput and download
time of the last 8 chunks, sizes of the next one. So is the network: a 1-D convolution over each of
the three series, a layer over each of the three scalars, 128 units each, one layer of 128 behind.
The policy names any level of the ladder. Departures: throughput counts in Mbit/s instead of MB/s,
values are limited to what training can reach, and the most probable level is taken, not a drawn
one, because a controller is a function of its observation.

A checkpoint is a folder of ``policy.safetensors``, ``config.json`` and ``card.json``. No pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from adapters.checkpoint_files import (
    builtin_checkpoints,
    checkpoint_folder,
    read_config,
    read_matching,
    require_increasing,
    write_checkpoint,
)
from adapters.policy import LadderError
from player.observation import AbrObservation
from player.qoe import KBPS_PER_MBPS
from player.vectorised import Observations

PENSIEVE_FORMAT = "netllm-testbed pensieve 1"
POLICY_FILE = "policy.safetensors"

#: Past chunks in the state, and width of every layer of the network.
PAST_CHUNKS = 8
UNITS = 128
KERNEL = 4
SCALARS = 3
#: Pensieve's units, which bring the state near 1.
BUFFER_UNIT_S = 10.0
DOWNLOAD_UNIT_S = 10.0
CHUNKS_LEFT_UNIT = 48.0
BYTES_PER_MEGABYTE = 1e6
#: Limits, so that a stalled link, a local one or an odd video stays within reach of training.
MAX_THROUGHPUT_MBPS = 20.0
MAX_DOWNLOAD_S = 100.0
MAX_BUFFER_S = 120.0
MAX_SIZE_MEGABYTES = 20.0

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PensieveConfig:
    """Contents of ``config.json``.

    Attributes:
        format: version of this format.
        task: ``abr``.
        method: how the policy was trained, ``pensieve`` or ``genet``.
        levels_kbps: ladder that it was trained on.
    """

    format: str
    task: str
    method: str
    levels_kbps: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels_kbps) < KERNEL:
            raise ValueError(f"the network needs {KERNEL} levels, there are {self.levels_kbps}")
        require_increasing(self.levels_kbps)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.levels_kbps)


def state_size(levels: int) -> int:
    """Numbers in a state: three scalars, two series of past chunks, sizes of the next chunk."""
    return SCALARS + 2 * PAST_CHUNKS + levels


def state_bound() -> float:
    """No number in a state is larger; none is below 0."""
    return max(
        1.0,
        MAX_THROUGHPUT_MBPS,
        MAX_DOWNLOAD_S / DOWNLOAD_UNIT_S,
        MAX_BUFFER_S / BUFFER_UNIT_S,
        MAX_SIZE_MEGABYTES,
    )


def states_seen(seen: Observations, levels_kbps: Sequence[float]) -> Float32Array:
    """``(B, state_size)`` states of B sessions side by side, which show 8 past chunks."""
    return _states(
        bitrate_kbps=np.asarray(levels_kbps)[seen.last_level],
        top_kbps=levels_kbps[-1],
        buffer_s=seen.buffer_s,
        chunks_left=seen.chunks_left,
        throughput_kbps=seen.throughput_kbps,
        download_s=seen.download_s,
        sizes_bytes=seen.upcoming_sizes_bytes[:, 0],
    )


def states_of(observations: Sequence[AbrObservation]) -> Float32Array:
    """``(B, state_size)`` states of B observations; the newest of 8 past chunks comes last."""
    shape = len(observations), PAST_CHUNKS
    throughput_kbps, download_s = np.zeros(shape), np.zeros(shape)
    for row, observation in enumerate(observations):
        for back, past in enumerate(observation.history[: -PAST_CHUNKS - 1 : -1], start=1):
            throughput_kbps[row, -back] = past.throughput_kbps
            download_s[row, -back] = past.download_s
    return _states(
        bitrate_kbps=[one.levels_kbps[one.last_level] for one in observations],
        top_kbps=np.array([one.levels_kbps[-1] for one in observations]),
        buffer_s=[one.buffer_s for one in observations],
        chunks_left=[one.chunks_left for one in observations],
        throughput_kbps=throughput_kbps,
        download_s=download_s,
        sizes_bytes=np.array([one.upcoming_sizes_bytes[0] for one in observations]),
    )


def _states(
    *,
    bitrate_kbps: ArrayLike,
    top_kbps: ArrayLike,
    buffer_s: ArrayLike,
    chunks_left: ArrayLike,
    throughput_kbps: NDArray[np.float64],
    download_s: NDArray[np.float64],
    sizes_bytes: NDArray[np.int64],
) -> Float32Array:
    state = np.empty((len(sizes_bytes), state_size(sizes_bytes.shape[1])), dtype=np.float32)
    state[:, 0] = np.asarray(bitrate_kbps) / top_kbps
    state[:, 1] = np.minimum(buffer_s, MAX_BUFFER_S) / BUFFER_UNIT_S
    state[:, 2] = np.minimum(chunks_left, CHUNKS_LEFT_UNIT) / CHUNKS_LEFT_UNIT
    past, ahead = SCALARS + PAST_CHUNKS, SCALARS + 2 * PAST_CHUNKS
    state[:, SCALARS:past] = np.minimum(throughput_kbps / KBPS_PER_MBPS, MAX_THROUGHPUT_MBPS)
    state[:, past:ahead] = np.minimum(download_s, MAX_DOWNLOAD_S) / DOWNLOAD_UNIT_S
    state[:, ahead:] = np.minimum(sizes_bytes / BYTES_PER_MEGABYTE, MAX_SIZE_MEGABYTES)
    return state


class PensieveTower(nn.Module):
    """From states to 128 numbers: what Pensieve's actor computes in front of its last layer."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.throughput = nn.Conv1d(1, UNITS, KERNEL)
        self.download = nn.Conv1d(1, UNITS, KERNEL)
        self.sizes = nn.Conv1d(1, UNITS, KERNEL)
        self.scalars = nn.ModuleList(nn.Linear(1, UNITS) for _ in range(SCALARS))
        series = 2 * (PAST_CHUNKS - KERNEL + 1) + levels - KERNEL + 1
        self.merge = nn.Linear(UNITS * (series + SCALARS), UNITS)

    def forward(self, states: Tensor) -> Tensor:
        """Takes ``(B, state_size)``, returns ``(B, UNITS)``."""
        past, ahead = SCALARS + PAST_CHUNKS, SCALARS + 2 * PAST_CHUNKS
        parts = [layer(states[:, at : at + 1]) for at, layer in enumerate(self.scalars)]
        parts += [
            conv(series[:, None]).flatten(1)  # (B, 1, n) -> (B, UNITS, n - 3) -> flat
            for conv, series in (
                (self.throughput, states[:, SCALARS:past]),
                (self.download, states[:, past:ahead]),
                (self.sizes, states[:, ahead:]),
            )
        ]
        merged: Tensor = self.merge(F.relu(torch.cat(parts, dim=1)))
        return F.relu(merged)


class PensieveActor(nn.Module):
    """Pensieve's actor: scores of the levels. A function of the state."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.tower = PensieveTower(levels)
        self.head = nn.Linear(UNITS, levels)

    def forward(self, states: Tensor) -> Tensor:
        """Takes ``(B, state_size)``, returns ``(B, levels)`` logits."""
        logits: Tensor = self.head(self.tower(states))
        return logits


class PensievePolicy:
    """A trained actor that answers observations."""

    def __init__(self, config: PensieveConfig, actor: PensieveActor) -> None:
        self.config = config
        self.actor = actor.eval().requires_grad_(False)

    def decide(self, observation: AbrObservation) -> int:
        """Returns the most probable level; 0 before any history."""
        return self.decide_many([observation])[0]

    @torch.no_grad()
    def decide_many(self, observations: Sequence[AbrObservation]) -> list[int]:
        """Decides several observations in one pass.

        Raises:
            LadderError: a ladder has another number of levels than the policy's.
        """
        for observation in observations:
            if observation.levels != self.config.levels:
                raise LadderError(
                    "levels_kbps",
                    f"the ladder has {observation.levels} levels, but the checkpoint was trained "
                    f"for a ladder of {self.config.levels}",
                )
        if not observations:
            return []
        best = self.actor(torch.from_numpy(states_of(observations))).argmax(dim=1).tolist()
        return [
            level if observation.history else 0
            for level, observation in zip(best, observations, strict=True)
        ]

    @torch.no_grad()
    def decide_seen(self, seen: Observations) -> NDArray[np.int64]:
        """``(B,)`` levels for sessions side by side, as :meth:`decide_many` has them."""
        if not seen.known:
            return np.zeros(len(seen.buffer_s), dtype=np.int64)
        states = torch.from_numpy(states_seen(seen, self.config.levels_kbps))
        levels: NDArray[np.int64] = self.actor(states).argmax(dim=1).numpy()
        return levels


def save_pensieve(folder: Path, policy: PensievePolicy, card: dict[str, Any]) -> None:
    """Writes a checkpoint; the folder is made."""
    write_checkpoint(folder, POLICY_FILE, policy.actor.state_dict(), policy.config, card)


def load_pensieve(spec: str, *, threads: int = 0) -> PensievePolicy:
    """Loads a checkpoint, ready to answer.

    Args:
        spec: ``builtin:NAME`` or a folder.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.

    Raises:
        CheckpointError: it is missing, damaged, or made for something else.
    """
    if threads:
        torch.set_num_threads(threads)
    folder = checkpoint_folder(spec, POLICY_FILE)
    config = read_config(folder, PensieveConfig, file_format=PENSIEVE_FORMAT, task="abr")
    with torch.device("meta"):
        expected = PensieveActor(config.levels).state_dict()
    weights = read_matching(folder / POLICY_FILE, expected)
    actor = PensieveActor(config.levels)
    actor.load_state_dict(weights)
    return PensievePolicy(config, actor)


def builtin_policies() -> tuple[str, ...]:
    """Names of the checkpoints of this kind that are shipped."""
    return builtin_checkpoints(POLICY_FILE)
