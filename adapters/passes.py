"""Forward passes that compute a few new tokens against kept keys and values of those before.

A token's key and value in every layer depend on the tokens that it may look at and on nothing else.
Where these are the tokens before it, what was computed once stays true however the sequence goes
on; so a pass over the new tokens, each looking at the kept ones and at the new ones before it,
gives what a pass over the whole sequence would give (up to the rounding of another order of sums).

Sequences of a batch are packed: the tokens of all rows lie behind each other on one axis N, so that
nothing is padded where the arithmetic is, and each row attends to its own memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError
from adapters.encoders import StepEncoder
from adapters.features import NO_ACTION, PAST_CHUNKS, StepFeatures
from player.observation import UPCOMING_LIMIT

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
#: Up to so many tokens a product in blocks of so many weight rows is the faster one. Measured with
#: MKL for all products of MiniLM: 8 tokens 3.3 ms instead of 3.9, 14 tokens 4.5 instead of 5.9;
#: from 16 tokens on nothing is gained.
FEW_TOKENS, BLOCK_ROWS = 15, 192


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence of a batch.

    Attributes:
        memory: ``(layers, 2, H, W, d)`` keys and values of its tokens; the pass adds the new ones.
        known: tokens whose keys and values are there.
        new: tokens to compute, at least 1.
    """

    memory: Tensor
    known: int
    new: int

    @property
    def total(self) -> int:
        """Tokens of the sequence."""
        return self.known + self.new


class Pass(Protocol):
    """A way to run a frozen model.

    Attributes:
        memory_shape: ``(layers, 2, H, d)`` of the keys and values of one token.
    """

    memory_shape: tuple[int, int, int, int]

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Sequence[Row]) -> Tensor:
        """Runs the new tokens of all rows.

        Args:
            tokens: ``(N, D)`` embeddings, row behind row.
            positions: ``(N,)`` their places in the model's sequence.
            rows: B rows with N new tokens in total.

        Returns:
            ``(B, D)`` last hidden state of the last token of each row.
        """
        ...


def parts(rows: Sequence[Row]) -> Iterator[tuple[Row, slice]]:
    """Each row with where its new tokens are on the axis N."""
    start = 0
    for row in rows:
        yield row, slice(start, start + row.new)
        start += row.new


Affine = tuple[Tensor, Tensor]  # weight (out, in) and bias (out,)


@dataclass(frozen=True, slots=True, eq=False)
class LeanLayer:
    """Weights of one layer. Norms stand before a sublayer or behind its sum, by family."""

    qkv: Affine  # (3 D, D)
    out: Affine  # (D, D)
    up: Affine  # (F, D)
    down: Affine  # (D, F)
    scale: float  # of the attention scores
    before_attention: nn.LayerNorm | None = None
    after_attention: nn.LayerNorm | None = None
    before_feed: nn.LayerNorm | None = None
    after_feed: nn.LayerNorm | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LeanModel:
    """A family's weights in one form, and what differs between families.

    Attributes:
        places: ``(P, D)`` position embeddings.
        enter: norm behind the embeddings, if any.
        layers: from the first to the last.
        leave: norm behind the last layer, if any.
        activation: between ``up`` and ``down``.
        heads: H.
    """

    places: Tensor
    enter: nn.LayerNorm | None
    layers: tuple[LeanLayer, ...]
    leave: nn.LayerNorm | None
    activation: Callable[[Tensor], Tensor]
    heads: int


class LeanPass:
    """The arithmetic of a transformer in plain tensor operations, over the weights it is given."""

    def __init__(self, backbone: Backbone) -> None:
        """Takes over the weights of a backbone whose updates are merged.

        Raises:
            BackboneError: it is of a family, or a variant, that has no description here.
        """
        describe = LEAN_FAMILIES.get(backbone.family)
        if describe is None:
            raise BackboneError(
                f"{backbone.name}: no lean pass for the family {backbone.family!r}; there is one "
                f"for {', '.join(LEAN_FAMILIES)}"
            )
        model: Any = backbone.model
        self.model = describe(model)
        heads, width = self.model.heads, backbone.hidden_size // self.model.heads
        self.memory_shape = (len(self.model.layers), 2, heads, width)

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Sequence[Row]) -> Tensor:
        """See :class:`Pass`."""
        model = self.model
        ends = torch.tensor([part.stop - 1 for _, part in parts(rows)], device=tokens.device)
        longest = max(row.total for row in rows)
        causal = tokens.new_full((longest, longest), -torch.inf).triu(1)  # (T, T), added to scores
        hidden = _normed(model.enter, tokens + model.places[positions])  # (N, D)
        for index, layer in enumerate(model.layers):
            is_last = index == len(model.layers) - 1
            mixed = self._attention(
                index, _normed(layer.before_attention, hidden), rows, causal, only_ends=is_last
            )  # (N, D), at last (B, D)
            if is_last:  # of whose outputs only one per row is read
                hidden = hidden[ends]  # (B, D)
            hidden = _normed(layer.after_attention, hidden + linear(mixed, layer.out))
            fed = linear(_normed(layer.before_feed, hidden), layer.up)  # (N, F), at last (B, F)
            fed = linear(model.activation(fed), layer.down)  # (N, D), at last (B, D)
            hidden = _normed(layer.after_feed, hidden + fed)
        return _normed(model.leave, hidden)  # (B, D)

    def _attention(
        self, index: int, hidden: Tensor, rows: Sequence[Row], causal: Tensor, *, only_ends: bool
    ) -> Tensor:
        """What the tokens see: all ``(N, D)``, or ``(B, D)`` for the last of each row."""
        _, _, heads, width = self.memory_shape
        layer = self.model.layers[index]
        qkv = linear(hidden, layer.qkv).view(-1, 3, heads, width)  # (N, 3, H, d)
        qkv = qkv.permute(1, 2, 0, 3)  # (3, H, N, d)
        mixed = []
        for row, part in parts(rows):
            memory = row.memory[index, :, :, : row.total]  # (2, H, T, d)
            memory[:, :, row.known :] = qkv[1:, :, part]
            asked = slice(part.stop - 1, part.stop) if only_ends else part
            queries = asked.stop - asked.start  # Q
            seen = F.scaled_dot_product_attention(
                qkv[:1, :, asked],  # (1, H, Q, d)
                memory[:1],  # (1, H, T, d)
                memory[1:],
                causal[row.total - queries : row.total, : row.total],  # (Q, T)
                scale=layer.scale,
            )  # (1, H, Q, d)
            mixed.append(seen[0].transpose(0, 1).reshape(queries, heads * width))  # (Q, D)
        return torch.cat(mixed)


def linear(inputs: Tensor, affine: Affine) -> Tensor:
    """Returns ``(N, out)``: ``inputs @ weight.T + bias``.

    For few tokens the product is made block by block of the weights, so that the library takes its
    path for small matrices: where reading the weights is most of the time, they are read faster.
    """
    weight, bias = affine  # (out, in), (out,)
    out, size = weight.shape
    count = len(inputs)
    if count > FEW_TOKENS:
        return F.linear(inputs, weight, bias)
    rows = math.gcd(out, BLOCK_ROWS)
    blocks = weight.view(-1, rows, size)  # (out / rows, rows, in)
    product = torch.baddbmm(
        bias.view(-1, 1, rows), inputs.expand(len(blocks), count, size), blocks.transpose(1, 2)
    )  # (out / rows, N, rows)
    return product.transpose(0, 1).reshape(count, out)


class LeanEncoder:
    """A ``StepEncoder`` in two layers: the first of all tokens at once, the second of each.

    A convolution over the whole of a short series is a matrix: its columns are what it makes of
    the unit vectors.
    """

    def __init__(self, encoder: StepEncoder, return_target: float) -> None:
        """Takes over the weights of an encoder that always tells the same return."""
        shapes: dict[str, tuple[int, ...]] = {  # of one step, in the order of the tokens
            "bitrate": (1,),
            "buffer": (2,),
            "throughput": (2, PAST_CHUNKS),
            "download": (2, PAST_CHUNKS),
            "chunks_left": (1,),
            "sizes": (UPCOMING_LIMIT, encoder.levels),
        }
        self.names, self.levels = tuple(shapes), encoder.levels
        modules: list[Any] = [getattr(encoder, name) for name in shapes]
        inner = [_matrix(one[0], shapes[name]) for one, name in zip(modules, shapes, strict=True)]
        weights: Tensor = torch.block_diag(*(weight for weight, _ in inner))  # type: ignore[no-untyped-call]
        self.inner = weights, torch.cat([bias for _, bias in inner])  # (ΣF, ΣI), (ΣF,)
        self.widths = [len(bias) for _, bias in inner]
        self.outer = [(one[-1].weight.detach(), one[-1].bias.detach()) for one in modules]  # (D, F)
        self.device = encoder.action.weight.device
        target = torch.tensor([[return_target]], device=self.device)
        self.returns: Tensor = encoder.returns(target).detach()  # (1, D)
        self.action, self.step = encoder.action.weight.detach(), encoder.step.weight.detach()
        self.norm = encoder.norm

    def __call__(self, steps: StepFeatures, places: Sequence[int]) -> Tensor:
        """Returns ``(S, 8, D)`` tokens of ``(S, …)`` steps at S places of their windows."""
        count = len(steps.action)
        flat = [getattr(steps, name).reshape(count, -1) for name in self.names]
        inputs = torch.from_numpy(np.concatenate(flat, axis=1)).to(self.device)  # (S, ΣI)
        actions = np.where(steps.action == NO_ACTION, self.levels, steps.action)
        features = F.gelu(F.linear(inputs, *self.inner))  # (S, ΣF)
        parted = torch.split(features, self.widths, dim=1)  # (S, F) each
        tokens = [
            self.returns.expand(count, -1),
            *(F.linear(one, *outer) for one, outer in zip(parted, self.outer, strict=True)),
            self.action[torch.from_numpy(actions).to(self.device)],
        ]
        stacked = torch.stack(tokens, dim=1)  # (S, 8, D)
        return _normed(self.norm, stacked + self.step[list(places), None])


class LibraryPass:
    """The library's own forward pass and cache, for the families of decoders.

    Rows are padded here: at the end of what is known and at the end of what is new, both hidden by
    the mask.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Asks the model for one token, to learn the shape of its keys.

        Raises:
            BackboneError: it keeps no keys, as an encoder.
        """
        self.backbone = backbone
        device = next(backbone.parameters()).device
        self.memory_shape = (0, 2, 1, 1)
        probe = torch.zeros(1, 1, backbone.hidden_size, device=device)
        place = torch.zeros(1, 1, dtype=torch.int64, device=device)
        allowed = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        _, cache = self._run(probe, place, allowed, [])
        if not cache.layers:
            raise BackboneError(
                f"{backbone.name}: the library keeps no keys for the family {backbone.family!r}"
            )
        _, heads, _, width = cache.layers[0].keys.shape
        self.memory_shape = (len(cache.layers), 2, heads, width)

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Sequence[Row]) -> Tensor:
        """See :class:`Pass`."""
        known, new = max(row.known for row in rows), max(row.new for row in rows)
        batch, size = len(rows), tokens.shape[1]
        embeddings = tokens.new_zeros(batch, new, size)  # (B, Q, D)
        places = positions.new_zeros(batch, new)  # (B, Q)
        allowed = torch.ones(new, known + new, dtype=torch.bool, device=tokens.device).tril(known)
        allowed = allowed.repeat(batch, 1, 1)  # (B, Q, K + Q)
        kept = tokens.new_zeros(self.memory_shape[0], 2, batch, *self._per_row(known))
        for index, (row, part) in enumerate(parts(rows)):
            embeddings[index, : row.new] = tokens[part]
            places[index, : row.new] = positions[part]
            allowed[index, :, row.known : known] = False
            kept[:, :, index, :, : row.known] = row.memory[:, :, :, : row.known]
        hidden, cache = self._run(embeddings, places, allowed, list(kept))
        for layer, held in enumerate(cache.layers):
            for index, row in enumerate(rows):
                fresh = slice(known, known + row.new)
                row.memory[layer, 0, :, row.known : row.total] = held.keys[index, :, fresh]
                row.memory[layer, 1, :, row.known : row.total] = held.values[index, :, fresh]
        ends = torch.tensor([row.new - 1 for row in rows], device=tokens.device)
        return hidden[torch.arange(batch, device=tokens.device), ends]  # (B, D)

    def _per_row(self, known: int) -> tuple[int, int, int]:
        _, _, heads, width = self.memory_shape
        return heads, known, width

    def _run(
        self, embeddings: Tensor, places: Tensor, allowed: Tensor, kept: Sequence[Tensor]
    ) -> tuple[Tensor, Any]:
        """Last hidden states ``(B, Q, D)``, and the library's cache with all keys and values."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        for layer, (keys, values) in enumerate(kept):  # (B, H, K, d) each
            cache.update(keys, values, layer)
        mask = torch.zeros(allowed.shape, device=embeddings.device)
        mask = mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)
        model: Any = self.backbone.model
        hidden: Tensor = model(
            inputs_embeds=embeddings,
            attention_mask=mask[:, None],  # (B, 1, Q, K + Q)
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden, cache


def _normed(norm: nn.LayerNorm | None, hidden: Tensor) -> Tensor:
    if norm is None:
        return hidden
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _matrix(module: nn.Linear | nn.Conv1d, shape: tuple[int, ...]) -> Affine:
    """What a first layer does to inputs of a shape, as ``(F, I)`` and ``(F,)``."""
    weight, bias = module.weight.detach(), module.bias
    assert bias is not None
    if isinstance(module, nn.Linear):
        return weight, bias.detach()
    units = torch.eye(math.prod(shape), device=weight.device).view(-1, *shape)  # (I, C, L)
    answers = F.conv1d(units, weight)  # (I, channels, places)
    return answers.flatten(1).t().contiguous(), bias.detach().repeat_interleave(answers.shape[2])


def _affine(module: Any) -> Affine:
    """Weight and bias below the merged updates, as (out, in) for either way to store them."""
    from transformers.pytorch_utils import Conv1D

    plain = getattr(module, "base_layer", module)
    weight = plain.weight.t() if isinstance(plain, Conv1D) else plain.weight
    return weight.detach().contiguous(), plain.bias.detach()


def _fused(*modules: Any) -> Affine:
    """Several projections of the same input as one."""
    weights, biases = zip(*map(_affine, modules), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise BackboneError(
            f"no lean pass for the activation {name!r}; there is one for {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _bert(model: Any) -> LeanModel:
    """Devlin et al., 2019: norms behind the sums, every token of type 0."""
    embeddings, config = model.embeddings, model.config
    layers = (
        LeanLayer(
            qkv=_fused(one.attention.self.query, one.attention.self.key, one.attention.self.value),
            out=_affine(one.attention.output.dense),
            after_attention=one.attention.output.LayerNorm,
            up=_affine(one.intermediate.dense),
            down=_affine(one.output.dense),
            after_feed=one.output.LayerNorm,
            scale=(config.hidden_size // config.num_attention_heads) ** -0.5,
        )
        for one in model.encoder.layer
    )
    types: Tensor = embeddings.token_type_embeddings.weight.detach()
    return LeanModel(
        places=embeddings.position_embeddings.weight.detach() + types[0],
        enter=embeddings.LayerNorm,
        layers=tuple(layers),
        leave=None,
        activation=_activation(config.hidden_act),
        heads=config.num_attention_heads,
    )


def _gpt2(model: Any) -> LeanModel:
    """Radford et al., 2019: norms before the sublayers, one more behind the last."""
    config = model.config
    layers = (
        LeanLayer(
            qkv=_affine(one.attn.c_attn),
            out=_affine(one.attn.c_proj),
            before_attention=one.ln_1,
            up=_affine(one.mlp.c_fc),
            down=_affine(one.mlp.c_proj),
            before_feed=one.ln_2,
            scale=one.attn.scaling,
        )
        for one in model.h
    )
    return LeanModel(
        places=model.wpe.weight.detach(),
        enter=None,
        layers=tuple(layers),
        leave=model.ln_f,
        activation=_activation(config.activation_function),
        heads=config.num_attention_heads,
    )


LEAN_FAMILIES: dict[str, Callable[[Any], LeanModel]] = {"bert": _bert, "gpt2": _gpt2}
