"""Checkpoints of adapters: ``adapter.safetensors`` with ``config.json`` and ``card.json``.

Only what training changed is stored, in half precision: encoders, head and low-rank updates, a few
megabytes. The backbone is named in the configuration, with a fingerprint of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from adapters.backbones import Backbone, BackboneError, load_backbone
from adapters.checkpoint_files import CONFIG_FILE as CONFIG_FILE
from adapters.checkpoint_files import (
    CheckpointError,
    checkpoint_folder,
    read_config,
    read_matching,
    require_increasing,
    write_checkpoint,
)
from adapters.checkpoint_files import builtin_checkpoints as builtin_checkpoints
from adapters.inference import CACHE_BYTES, Inference
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.provenance import package_versions

CHECKPOINT_FORMAT = "netllm-testbed checkpoint 1"
WEIGHTS_FILE = "adapter.safetensors"
PACKAGES = ("netllm-testbed", "torch", "transformers", "peft", "safetensors")


class AdaptedModel(Protocol):
    """A frozen language model with what training adds to it, for any task."""

    backbone: Backbone

    @property
    def config(self) -> Any:
        """Its shape: a dataclass of JSON values."""

    def adapter_state(self) -> dict[str, Tensor]:
        """The weights that training changes, by name in the model's state."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = ...) -> Any:
        """As modules of torch have it."""


ConfigT = TypeVar("ConfigT")
ModelT = TypeVar("ModelT", bound=AdaptedModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneInfo:
    """Which backbone the adapters belong to."""

    name: str
    family: str
    hidden_size: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig(Generic[ConfigT]):
    """Contents of ``config.json``.

    Attributes:
        format: version of this format.
        task: what the model was adapted to, such as ``abr``.
        backbone: the frozen model below.
        model: shape of the adapters.
        versions: package versions that wrote it.
    """

    format: str
    task: str
    backbone: BackboneInfo
    model: ConfigT
    versions: dict[str, str]


def save_checkpoint(
    folder: Path, policy: AdaptedModel, card: dict[str, Any], *, task: str = "abr"
) -> None:
    """Writes a checkpoint; the folder is made. The policy must not be frozen yet."""
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
        versions=package_versions(*PACKAGES),
    )
    weights = {key: value.to(torch.float16) for key, value in policy.adapter_state().items()}
    write_checkpoint(folder, WEIGHTS_FILE, weights, config, card)


def load_checkpoint(
    spec: str,
    task: str = "abr",
    *,
    device: str = "cpu",
    backbone: str | None = None,
    inference: Inference | Literal["auto"] = "auto",
    cache_bytes: int = CACHE_BYTES,
) -> AbrPolicy:
    """Loads a checkpoint for ABR on its backbone, ready to answer.

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
    policy = load_adapted(
        spec, task, CheckpointConfig[AbrModelConfig], _build_abr, device=device, backbone=backbone
    )
    return policy.to(device).freeze(inference, cache_bytes=cache_bytes)


def load_adapted(
    spec: str,
    task: str,
    kind: type[CheckpointConfig[ConfigT]],
    build: Callable[[ConfigT, Backbone], ModelT],
    *,
    device: str = "cpu",
    backbone: str | None = None,
) -> ModelT:
    """Loads a checkpoint of any task on its backbone; the adapters are still on the CPU.

    Args:
        spec: ``builtin:NAME`` or a folder.
        task: the task that it must be for.
        kind: ``CheckpointConfig`` of the shape of the task's model.
        build: makes the model of its shape, or raises a ValueError that begins with a key of the
            shape. It is called twice: first on the device ``meta``, to see which weights there
            must be.
        device: where to put the backbone.
        backbone: where to find the backbone, if elsewhere than in training.

    Raises:
        CheckpointError: see the class.
    """
    folder = checkpoint_folder(spec, WEIGHTS_FILE)
    path = folder / CONFIG_FILE
    config = read_config(folder, kind, file_format=CHECKPOINT_FORMAT, task=task)
    try:
        frozen = load_backbone(backbone or config.backbone.name, device=device)
    except BackboneError as error:
        raise CheckpointError(f"{path}: backbone: {error}") from error
    _check_backbone(path, config.backbone, frozen)
    try:
        with torch.device("meta"):
            expected = build(config.model, frozen).adapter_state()
    except ValueError as error:
        raise CheckpointError(f"{path}: model.{error}") from error
    weights = read_matching(folder / WEIGHTS_FILE, expected)
    model = build(config.model, frozen)
    model.load_state_dict(weights, strict=False)
    return model


def _build_abr(config: AbrModelConfig, backbone: Backbone) -> AbrPolicy:
    require_increasing(config.levels_kbps)
    try:
        return AbrPolicy(config, backbone)
    except BackboneError as error:  # its positions are fewer than a window's tokens
        raise ValueError(f"block: {error}") from error


def _check_backbone(path: Path, expected: BackboneInfo, found: Backbone) -> None:
    for key in ("family", "hidden_size", "fingerprint"):
        wanted, has = getattr(expected, key), getattr(found, key)
        if wanted != has:
            raise CheckpointError(
                f"{path}: backbone.{key}: the adapters were trained on {expected.name!r} with "
                f"{wanted!r}, but {found.name!r} has {has!r}"
            )
