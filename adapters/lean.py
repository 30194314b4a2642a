"""What the lean pass knows of each family: its weights in one form, with an adapter's updates.

The frozen weights are used where they lie. Only query, key and value are copied, fused into one
matrix with the updates of the adapter added: what an adapter costs in memory. Weights of less than
float32 would round the updates away; there they stay beside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError
from adapters.products import Dense, MakeProduct, Product

Function = Callable[[Tensor], Tensor]
TANH_GELU = functools.partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Function] = {
    "gelu": F.gelu,
    "gelu_new": TANH_GELU,
    "gelu_pytorch_tanh": TANH_GELU,
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """Of the last axis: to mean 0 and variance 1, or without a bias to a mean square of 1."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """Normalises."""
        if self.bias is None:
            return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True, eq=False)
class LeanLayer:
    """One layer. Norms stand before a sublayer or behind its sum, by family.

    Attributes:
        qkv: D to (H + 2 G) d, for H heads of queries and G of keys and values.
        out: H d to D.
        up: D to F.
        down: F to D.
        gate: D to F; what it gives goes through the activation and is multiplied with ``up``.
    """

    qkv: Product
    out: Product
    up: Product
    down: Product
    gate: Product | None = None
    before_attention: Norm | None = None
    after_attention: Norm | None = None
    before_feed: Norm | None = None
    after_feed: Norm | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LeanModel:
    """A family's weights in one form, and what differs between families.

    Attributes:
        layers: from the first to the last.
        activation: of the feed-forward sublayer.
        heads: H, of queries.
        key_heads: G, of keys and values; H where they are not grouped.
        head_size: d.
        scale: of the attention scores.
        places: ``(P, D)`` position embeddings, if any.
        rotate: ``(N,)`` positions to cosines and sines ``(N, d)`` that turn queries and keys.
        enter: norm behind the embeddings, if any.
        leave: norm behind the last layer, if any.
    """

    layers: tuple[LeanLayer, ...]
    activation: Function
    heads: int
    key_heads: int
    head_size: int
    scale: float
    places: Tensor | None = None
    rotate: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    enter: Norm | None = None
    leave: Norm | None = None


def describe(backbone: Backbone, make: MakeProduct, adapter: str) -> LeanModel:
    """The weights of a backbone with the updates of one adapter, merged in it or not.

    Raises:
        BackboneError: it is of a family, or a variant, that has no description here.
    """
    family = LEAN_FAMILIES.get(backbone.family)
    if family is None:
        raise BackboneError(
            f"{backbone.name}: no lean pass for the family {backbone.family!r}; there is one "
            f"for {', '.join(LEAN_FAMILIES)}"
        )
    # Not inference tensors, even if made while answering: training may go on afterwards.
    with torch.inference_mode(mode=False), torch.no_grad():
        return family(backbone.model, _Weights(make, adapter))


class _Weights:
    """Makes products out of a model's modules."""

    def __init__(self, make: MakeProduct, adapter: str) -> None:
        self._make, self._adapter = make, adapter

    def shared(self, module: Any) -> Product:
        """A product with the frozen weights of a module without updates."""
        return self._make(_columns(module), _bias(module), True)

    def fused(self, *modules: Any) -> Product:
        """Several projections of the same input as one, with their updates."""
        plain = [getattr(one, "base_layer", one) for one in modules]
        biases = [_bias(one) for one in plain]
        bias = None
        if any(one is not None for one in biases):
            bias = torch.cat(
                [
                    torch.zeros_like(_columns(one)[0]) if its is None else its
                    for one, its in zip(plain, biases, strict=True)
                ]
            )
        weights = [_columns(one) for one in plain]  # (in, out) each
        waiting = [self._has_update(one) for one in modules]
        if weights[0].dtype != torch.float32 and any(waiting):
            weight = torch.cat(weights, dim=1)
            return Dense(weight, bias, self._factors(modules, weights, waiting))
        for index, (module, waits) in enumerate(zip(modules, waiting, strict=True)):
            if waits:
                delta = module.get_delta_weight(self._adapter)
                weights[index] = weights[index] + (delta if _is_transposed(module) else delta.t())
        if len(weights) == 1 and not waiting[0]:
            return self._make(weights[0], bias, True)
        return self._make(torch.cat(weights, dim=1).contiguous(), bias, False)

    def _has_update(self, module: Any) -> bool:
        """Whether a module has an update of the adapter that is not in its weights."""
        if self._adapter not in getattr(module, "lora_A", {}):
            return False
        merged = getattr(module, "merged_adapters", [])
        if merged and merged != [self._adapter]:
            raise BackboneError(
                f"the updates of {', '.join(merged)} are merged; no pass for {self._adapter!r}"
            )
        return not merged

    def _factors(
        self, modules: Sequence[Any], weights: Sequence[Tensor], waiting: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        """``(in, R)`` and ``(R, out)`` in float32, of all modules together."""
        downs, ups = [], []
        for module, weight, waits in zip(modules, weights, waiting, strict=True):
            if not waits:
                ups.append(weight.new_zeros(0, weight.shape[1], dtype=torch.float32))
                continue
            name = self._adapter
            downs.append(module.lora_A[name].weight.float().t() * module.scaling[name])
            ups.append(module.lora_B[name].weight.float().t())
        up: Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
        return torch.cat(downs, dim=1).contiguous(), up.contiguous()


def _is_transposed(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(getattr(module, "base_layer", module), Conv1D)


def _columns(module: Any) -> Tensor:
    """The ``(in, out)`` weight, in whichever way it is stored."""
    weight: Tensor = module.weight.detach()
    return weight if _is_transposed(module) else weight.t()


def _bias(module: Any) -> Tensor | None:
    bias: Tensor | None = module.bias
    return None if bias is None else bias.detach()


def _layer_norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach(), norm.bias.detach(), norm.eps)


def _rms_norm(norm: Any) -> Norm:
    return Norm(norm.weight.detach(), None, norm.variance_epsilon)


def _activation(name: str) -> Function:
    if name not in ACTIVATIONS:
        raise BackboneError(
            f"no lean pass for the activation {name!r}; there is one for {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _bert(model: Any, weights: _Weights) -> LeanModel:
    """Devlin et al., 2019: norms behind the sums, every token of type 0."""
    embeddings, config = model.embeddings, model.config
    layers = [
        LeanLayer(
            qkv=weights.fused(
                one.attention.self.query, one.attention.self.key, one.attention.self.value
            ),
            out=weights.shared(one.attention.output.dense),
            after_attention=_layer_norm(one.attention.output.LayerNorm),
            up=weights.shared(one.intermediate.dense),
            down=weights.shared(one.output.dense),
            after_feed=_layer_norm(one.output.LayerNorm),
        )
        for one in model.encoder.layer
    ]
    size = config.hidden_size // config.num_attention_heads
    types: Tensor = embeddings.token_type_embeddings.weight.detach()
    return LeanModel(
        places=embeddings.position_embeddings.weight.detach() + types[0],
        enter=_layer_norm(embeddings.LayerNorm),
        layers=tuple(layers),
        activation=_activation(config.hidden_act),
        heads=config.num_attention_heads,
        key_heads=config.num_attention_heads,
        head_size=size,
        scale=size**-0.5,
    )


def _gpt2(model: Any, weights: _Weights) -> LeanModel:
    """Radford et al., 2019: norms before the sublayers, one more behind the last."""
    config = model.config
    scales = {one.attn.scaling for one in model.h}
    if len(scales) > 1:
        raise BackboneError("no lean pass for attention scaled layer by layer")
    layers = [
        LeanLayer(
            qkv=weights.fused(one.attn.c_attn),
            out=weights.shared(one.attn.c_proj),
            before_attention=_layer_norm(one.ln_1),
            up=weights.shared(one.mlp.c_fc),
            down=weights.shared(one.mlp.c_proj),
            before_feed=_layer_norm(one.ln_2),
        )
        for one in model.h
    ]
    return LeanModel(
        places=model.wpe.weight.detach(),
        layers=tuple(layers),
        leave=_layer_norm(model.ln_f),
        activation=_activation(config.activation_function),
        heads=config.num_attention_heads,
        key_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        scale=scales.pop(),
    )


def _opt(model: Any, weights: _Weights) -> LeanModel:
    """Zhang et al., 2022: as GPT-2, with an offset of positions; one size has its norms behind."""
    config, decoder = model.config, model.decoder
    if decoder.project_in is not None:
        raise BackboneError("no lean pass for embeddings of another width than the layers")
    is_before = config.do_layer_norm_before
    layers = []
    for one in decoder.layers:
        attention, feed = _layer_norm(one.self_attn_layer_norm), _layer_norm(one.final_layer_norm)
        layers.append(
            LeanLayer(
                qkv=weights.fused(one.self_attn.q_proj, one.self_attn.k_proj, one.self_attn.v_proj),
                out=weights.shared(one.self_attn.out_proj),
                up=weights.shared(one.fc1),
                down=weights.shared(one.fc2),
                before_attention=attention if is_before else None,
                after_attention=None if is_before else attention,
                before_feed=feed if is_before else None,
                after_feed=None if is_before else feed,
            )
        )
    positions = decoder.embed_positions
    last = decoder.final_layer_norm
    size = config.hidden_size // config.num_attention_heads
    return LeanModel(
        places=positions.weight.detach()[positions.offset :],
        layers=tuple(layers),
        leave=None if last is None else _layer_norm(last),
        activation=_activation(config.activation_function),
        heads=config.num_attention_heads,
        key_heads=config.num_attention_heads,
        head_size=size,
        scale=size**-0.5,
    )


def _llama(model: Any, weights: _Weights) -> LeanModel:
    """Touvron et al., 2023: rotary positions, RMS norms before sublayers, grouped keys, a gate.

    Mistral and Qwen2 differ in biases. The mask of the layout replaces any sliding window.
    """
    config = model.config
    layers = [
        LeanLayer(
            qkv=weights.fused(one.self_attn.q_proj, one.self_attn.k_proj, one.self_attn.v_proj),
            out=weights.shared(one.self_attn.o_proj),
            before_attention=_rms_norm(one.input_layernorm),
            gate=weights.shared(one.mlp.gate_proj),
            up=weights.shared(one.mlp.up_proj),
            down=weights.shared(one.mlp.down_proj),
            before_feed=_rms_norm(one.post_attention_layernorm),
        )
        for one in model.layers
    ]
    first = model.layers[0].self_attn

    def rotate(positions: Tensor) -> tuple[Tensor, Tensor]:
        cosines, sines = model.rotary_emb(model.norm.weight, position_ids=positions[None])
        return cosines[0], sines[0]

    return LeanModel(
        layers=tuple(layers),
        leave=_rms_norm(model.norm),
        rotate=rotate,
        activation=_activation(config.hidden_act),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=first.head_dim,
        scale=first.scaling,
    )


LEAN_FAMILIES: dict[str, Callable[[Any, _Weights], LeanModel]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "opt": _opt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
}
