"""Checkpoints of viewport predictors: like those of all adapters, also without a language model."""

from __future__ import annotations

from typing import Literal

import torch

from adapters.backbones import Backbone
from adapters.checkpoint_files import (
    CONFIG_FILE,
    CheckpointError,
    checkpoint_folder,
    read_config,
    read_matching,
)
from adapters.checkpoints import (
    CHECKPOINT_FORMAT,
    WEIGHTS_FILE,
    CheckpointConfig,
    load_adapted,
)
from adapters.viewport_model import ViewportModelConfig
from adapters.viewport_policy import NO_BACKBONE, ViewportInference, ViewportPolicy

TASK = "viewport"


def load_viewport(
    spec: str,
    *,
    network: Literal["crowd", "gru"] | None = None,
    device: str = "cpu",
    backbone: str | None = None,
    inference: ViewportInference | Literal["auto"] = "auto",
) -> ViewportPolicy:
    """Loads a viewport predictor, ready to answer.

    Args:
        spec: ``builtin:NAME`` or a folder.
        network: what its networks must be; None: any.
        device: where to put it.
        backbone: where to find the language model, if elsewhere than in training.
        inference: how its answers are computed.

    Raises:
        CheckpointError: it is missing, damaged or made for something else; names file and key.
        BackboneError: this way to compute answers does not work with the language model.
    """
    folder = checkpoint_folder(spec, WEIGHTS_FILE)
    path = folder / CONFIG_FILE
    kind = CheckpointConfig[ViewportModelConfig]
    config = read_config(folder, kind, file_format=CHECKPOINT_FORMAT, task=TASK)
    if network is not None and config.model.network != network:
        raise CheckpointError(
            f"{path}: model.network is {config.model.network!r}, asked for {network!r}"
        )
    if config.backbone.name != NO_BACKBONE:
        policy = load_adapted(spec, TASK, kind, _build, device=device, backbone=backbone)
        return policy.to(device).freeze(inference)
    try:
        with torch.device("meta"):
            expected = ViewportPolicy(config.model).adapter_state()
    except ValueError as error:
        raise CheckpointError(f"{path}: model.{error}") from error
    policy = ViewportPolicy(config.model)
    policy.load_state_dict(read_matching(folder / WEIGHTS_FILE, expected))
    return policy.to(device).freeze(inference)


def _build(config: ViewportModelConfig, backbone: Backbone) -> ViewportPolicy:
    return ViewportPolicy(config, backbone)
