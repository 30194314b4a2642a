"""Checkpoints of learned schedulers with a language model; like those of all adapters."""

from __future__ import annotations

from typing import Literal

from adapters.backbones import Backbone, BackboneError
from adapters.checkpoints import CheckpointConfig, load_adapted
from adapters.scheduling_policy import (
    SchedulingInference,
    SchedulingModelConfig,
    SchedulingPolicy,
)

TASK = "scheduling"


def load_scheduling(
    spec: str,
    *,
    device: str = "cpu",
    backbone: str | None = None,
    inference: SchedulingInference | Literal["auto"] = "auto",
) -> SchedulingPolicy:
    """Loads a scheduler, ready to answer.

    Args:
        spec: ``builtin:NAME`` or a folder.
        device: where to put it.
        backbone: where to find the language model, if elsewhere than in training.
        inference: how its answers are computed.

    Raises:
        CheckpointError: it is missing, damaged or made for something else; names file and key.
        BackboneError: this way to compute answers does not work with the language model.
    """
    policy = load_unfrozen(spec, device=device, backbone=backbone)
    return policy.to(device).freeze(inference)


def load_unfrozen(
    spec: str, *, device: str = "cpu", backbone: str | None = None
) -> SchedulingPolicy:
    """Loads a scheduler that may go on learning; see :func:`load_scheduling`.

    Raises:
        CheckpointError: as there.
    """
    kind = CheckpointConfig[SchedulingModelConfig]
    return load_adapted(spec, TASK, kind, _build, device=device, backbone=backbone)


def _build(config: SchedulingModelConfig, backbone: Backbone) -> SchedulingPolicy:
    try:
        return SchedulingPolicy(config, backbone)
    except BackboneError as error:  # its positions are fewer than the tokens
        raise ValueError(f"most_candidates: {error}") from error
