"""Checkpoints of the throughput model: ``throughput.safetensors``, configuration and card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.checkpoint_files import (
    CheckpointError,
    checkpoint_folder,
    read_config,
    read_matching,
    write_checkpoint,
)
from adapters.provenance import package_versions
from adapters.throughput_model import ThroughputConfig, ThroughputModel

THROUGHPUT_FORMAT = "netllm-testbed throughput 1"
WEIGHTS_FILE = "throughput.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputCheckpoint:
    """Contents of ``config.json``.

    Attributes:
        format: version of this format.
        model: shape of the network.
        versions: package versions that wrote it.
    """

    format: str
    model: ThroughputConfig
    versions: dict[str, str]


def save_throughput_model(folder: Path, model: ThroughputModel, card: dict[str, Any]) -> None:
    """Writes a checkpoint; the folder is made."""
    config = ThroughputCheckpoint(
        format=THROUGHPUT_FORMAT,
        model=model.config,
        versions=package_versions("torch", "safetensors"),
    )
    write_checkpoint(folder, WEIGHTS_FILE, model.state_dict(), config, card)


def load_throughput_model(spec: str) -> ThroughputModel:
    """Loads a checkpoint named ``builtin:NAME`` or by its folder, ready to predict.

    Raises:
        CheckpointError: it is missing, damaged or made for something else; names file and key.
    """
    folder = checkpoint_folder(spec)
    config = read_config(folder, ThroughputCheckpoint, file_format=THROUGHPUT_FORMAT)
    path = folder / WEIGHTS_FILE
    with torch.device("meta"):
        expected = ThroughputModel(config.model).state_dict()
    weights = read_matching(path, expected)
    if not (weights["ratio"] > 0).all():
        raise CheckpointError(f"{path}: weight 'ratio' must be positive")
    model = ThroughputModel(config.model)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
