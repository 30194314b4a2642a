"""Checkpoints of the throughput model: weights, ``config.json`` and ``card.json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors.torch import save_file

from adapters.checkpoints import (
    CARD_FILE,
    CONFIG_FILE,
    CheckpointError,
    checkpoint_folder,
    read_weights,
    write_json,
)
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

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    format: str
    model: ThroughputConfig
    versions: dict[str, str]


def save_throughput_model(folder: Path, model: ThroughputModel, card: dict[str, Any]) -> None:
    """Writes a checkpoint: weights, ``config.json`` and ``card.json``; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    config = ThroughputCheckpoint(
        format=THROUGHPUT_FORMAT,
        model=model.config,
        versions={package: version(package) for package in ("torch", "safetensors")},
    )
    weights = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, dataclasses.asdict(config))
    write_json(folder / CARD_FILE, card)


def load_throughput_model(spec: str) -> ThroughputModel:
    """Loads a checkpoint named ``builtin:NAME`` or by its folder, ready to predict.

    Raises:
        CheckpointError: it is missing, damaged or made for something else; names file and key.
    """
    folder = checkpoint_folder(spec)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    content = path.read_bytes()
    try:
        found = pydantic.TypeAdapter(dict[str, Any]).validate_json(content).get("format")
        if found != THROUGHPUT_FORMAT:
            raise CheckpointError(
                f"{path}: format is {found!r}, a throughput model has {THROUGHPUT_FORMAT!r}"
            )
        config = pydantic.TypeAdapter(ThroughputCheckpoint).validate_json(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise CheckpointError(f"{path}: {where}: {first['msg']}") from error
    model = ThroughputModel(config.model)
    _fill(model, folder / WEIGHTS_FILE)
    return model.eval().requires_grad_(False)


def _fill(model: ThroughputModel, path: Path) -> None:
    weights, expected = read_weights(path), model.state_dict()
    for key in sorted(set(weights) ^ set(expected)):
        raise CheckpointError(
            f"{path}: weight {key!r} "
            + ("is missing" if key in expected else "does not belong to the model")
        )
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{path}: weight {key!r} has shape {tuple(value.shape)}, the model needs "
                f"{tuple(expected[key].shape)}"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: weight {key!r} has a value that is not finite")
    if not (weights["ratio"] > 0).all():
        raise CheckpointError(f"{path}: weight 'ratio' must be positive")
    model.load_state_dict(weights)
