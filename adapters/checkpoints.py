"""Checkpoints: a folder of ``adapter.safetensors``, ``config.json`` and ``card.json``. No pickle.

Only what training changed is stored, in half precision: encoders, head and low-rank updates, a few
megabytes. The backbone is named in the configuration, with a fingerprint of its weights.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.backbones import Backbone, BackboneError, load_backbone
from adapters.inference import CACHE_BYTES, Inference
from adapters.policy import AbrModelConfig, AbrPolicy

CHECKPOINT_FORMAT = "netllm-testbed checkpoint 1"
BUILTIN = "builtin:"
WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "card.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or made for something else; names file and key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneInfo:
    """Which backbone the adapters belong to."""

    name: str
    family: str
    hidden_size: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Contents of ``config.json``.

    Attributes:
        format: version of this format.
        task: ``abr``.
        backbone: the frozen model below.
        model: shape of the adapters.
        versions: package versions that wrote it.
    """

    format: str
    task: str
    backbone: BackboneInfo
    model: AbrModelConfig
    versions: dict[str, str]


def builtin_checkpoints() -> tuple[str, ...]:
    """Names of the checkpoints that are shipped."""
    root = files("adapters") / "shipped"
    if not root.is_dir():
        return ()
    return tuple(sorted(f"{BUILTIN}{entry.name}" for entry in root.iterdir() if entry.is_dir()))


def checkpoint_folder(spec: str) -> Path:
    """Folder of a checkpoint named ``builtin:NAME`` or by its path.

    Raises:
        CheckpointError: there is none.
    """
    if spec.startswith(BUILTIN):
        name = spec.removeprefix(BUILTIN)
        if spec not in builtin_checkpoints():
            raise CheckpointError(
                f"unknown checkpoint {spec!r}; shipped: {', '.join(builtin_checkpoints()) or '-'}"
            )
        return Path(str(files("adapters") / "shipped" / name))
    folder = Path(spec)
    if not folder.is_dir():
        raise CheckpointError(
            f"{spec}: no such folder; a checkpoint is a folder with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, or one of {', '.join(builtin_checkpoints()) or '-'}"
        )
    return folder


def save_checkpoint(
    folder: Path, policy: AbrPolicy, card: dict[str, Any], *, task: str = "abr"
) -> None:
    """Writes a checkpoint; the folder is made. The policy must not be frozen yet."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = policy.backbone
    config = CheckpointConfig(
        format=CHECKPOINT_FORMAT,
        task=task,
        backbone=BackboneInfo(
            name=backbone.name,
            family=backbone.family,
            hidden_size=backbone.hidden_size,
            fingerprint=backbone.fingerprint,
        ),
        model=policy.config,
        versions=_versions(),
    )
    weights = {
        key: value.detach().cpu().to(torch.float16).contiguous()
        for key, value in policy.adapter_state().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, dataclasses.asdict(config))
    write_json(folder / CARD_FILE, card)


def read_config(folder: Path, *, task: str) -> CheckpointConfig:
    """Reads ``config.json``.

    Raises:
        CheckpointError: missing, malformed, or for another task.
    """
    path = folder / CONFIG_FILE
    document = _read_json(path)
    if document.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: format is {document.get('format')!r}, this version reads "
            f"{CHECKPOINT_FORMAT!r}"
        )
    if document.get("task") != task:
        raise CheckpointError(
            f"{path}: checkpoint is for task {document.get('task')!r}, asked for {task!r}"
        )
    try:
        return pydantic.TypeAdapter(CheckpointConfig).validate_python(document)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from (
            error
        )


def load_checkpoint(
    spec: str,
    task: str = "abr",
    *,
    device: str = "cpu",
    backbone: str | None = None,
    inference: Inference | Literal["auto"] = "auto",
    cache_bytes: int = CACHE_BYTES,
) -> AbrPolicy:
    """Loads a checkpoint on its backbone, ready to answer.

    Args:
        spec: ``builtin:NAME`` or a folder.
        task: the task that it must be for.
        device: where to put it.
        backbone: where to find the backbone, if elsewhere than in training.
        inference: how answers are computed, see :meth:`AbrPolicy.freeze`.
        cache_bytes: bound of what is kept of past tokens.

    Raises:
        CheckpointError: see the class.
        BackboneError: this way to compute answers does not work with the backbone.
        ValueError: the bound is too small for one window.
    """
    folder = checkpoint_folder(spec)
    config = read_config(folder, task=task)
    try:
        model = load_backbone(backbone or config.backbone.name, device=device)
    except BackboneError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: backbone: {error}") from error
    _check_backbone(folder / CONFIG_FILE, config.backbone, model)
    try:
        policy = AbrPolicy(config.model, model)
    except BackboneError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: model.block: {error}") from error
    load_adapter(policy, folder / WEIGHTS_FILE)
    return policy.to(device).freeze(inference, cache_bytes=cache_bytes)


def load_adapter(policy: AbrPolicy, path: Path) -> None:
    """Fills in the trained weights.

    Raises:
        CheckpointError: the file is missing or damaged, or a weight is missing, unknown or of
            another shape.
    """
    weights = read_weights(path)
    expected = policy.adapter_state()
    for key, value in expected.items():
        if key not in weights:
            raise CheckpointError(f"{path}: weight {key!r} is missing")
        if weights[key].shape != value.shape:
            raise CheckpointError(
                f"{path}: weight {key!r} has shape {tuple(weights[key].shape)}, the model needs "
                f"{tuple(value.shape)}"
            )
        if not torch.isfinite(weights[key]).all():
            raise CheckpointError(f"{path}: weight {key!r} has a value that is not finite")
    unknown = sorted(set(weights) - set(expected))
    if unknown:
        raise CheckpointError(f"{path}: weight {unknown[0]!r} does not belong to the model")
    policy.load_state_dict(
        {key: value.to(expected[key].dtype) for key, value in weights.items()}, strict=False
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document for machines and people."""
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: must be a JSON object")
    return document


def _check_backbone(path: Path, expected: BackboneInfo, found: Backbone) -> None:
    for key in ("family", "hidden_size", "fingerprint"):
        wanted, has = getattr(expected, key), getattr(found, key)
        if wanted != has:
            raise CheckpointError(
                f"{path}: backbone.{key}: the adapters were trained on {expected.name!r} with "
                f"{wanted!r}, but {found.name!r} has {has!r}"
            )


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("netllm-testbed", "torch", "transformers", "peft", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
