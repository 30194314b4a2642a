"""Forward passes that compute a few new tokens against kept keys and values of those before.

A token's key and value in every layer depend on the tokens that it may look at and on nothing else.
Where these are the tokens before it, what was computed once stays true however the sequence goes
on; so a pass over the new tokens, each looking at the kept ones and at the new ones before it,
gives what a pass over the whole sequence would give (up to the rounding of another order of sums).

Sequences of a batch are packed: the tokens of all rows lie behind each other on one axis N, so that
nothing is padded where the arithmetic is, and each row attends to its own memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError
from adapters.compiled import CompiledPass, compiled
from adapters.encoders import StepEncoder
from adapters.features import NO_ACTION, PAST_CHUNKS, StepFeatures
from adapters.lean import describe
from adapters.products import MakeProduct, RoundedWeights, dense
from player.observation import UPCOMING_LIMIT


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


Weights = Literal["own", "int20", "int8"]
BITS: dict[Weights, int] = {"int20": 20, "int8": 8}


class LeanPass:
    """The arithmetic of a transformer in plain tensor operations, over the weights it is given.

    On a CPU a few tokens go through ``adapters.compiled`` instead, if it was built.
    """

    _compiled: CompiledPass | None = None

    def __init__(
        self,
        backbone: Backbone,
        *,
        adapter: str | None = None,
        weights: Weights = "own",
    ) -> None:
        """Takes the weights of a backbone, and its updates as they are now, merged or not.

        Args:
            backbone: whose frozen weights are used where they lie.
            adapter: name of the updates; None: those that it carries.
            weights: ``own``: as they are; else rounded to integers.

        Raises:
            BackboneError: it is of a family, or a variant, that has no description here.
        """
        make: MakeProduct = dense
        if weights != "own":
            make = RoundedWeights(backbone.frozen, BITS[weights])
        self.model = describe(backbone, make, adapter or backbone.adapter or "default")
        self.dtype = backbone.dtype
        self.memory_shape = (
            len(self.model.layers),
            2,
            self.model.key_heads,
            self.model.head_size,
        )
        self._compiled = compiled(self.model, backbone.hidden_size)

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Sequence[Row]) -> Tensor:
        """See :class:`Pass`."""
        fast = self._compiled
        if fast is not None and (fast.most_tokens is None or len(tokens) <= fast.most_tokens):
            return fast(tokens, positions, rows)
        model = self.model
        ends = [part.stop - 1 for _, part in parts(rows)]
        longest = max(row.total for row in rows)
        hidden = tokens.to(self.dtype)
        causal = hidden.new_full((longest, longest), -torch.inf).triu_(1)  # (T, T), for the scores
        if model.places is not None:
            hidden = hidden + model.places[positions]  # (N, D)
        turn = None if model.rotate is None else model.rotate(positions)
        hidden = _applied(model.enter, hidden)
        for index, layer in enumerate(model.layers):
            is_last = index == len(model.layers) - 1
            entered = _applied(layer.before_attention, hidden)
            mixed = self._attention(index, entered, rows, causal, turn, only_ends=is_last)
            if is_last and len(ends) < len(hidden):  # of whose outputs only one per row is read
                hidden = hidden[ends]  # (B, D)
            hidden = _applied(layer.after_attention, layer.out(mixed).add_(hidden))
            entered = _applied(layer.before_feed, hidden)
            if layer.gate is None:
                fed = model.activation(layer.up(entered))  # (N, F), at last (B, F)
            else:
                fed = model.activation(layer.gate(entered)).mul_(layer.up(entered))
            hidden = _applied(layer.after_feed, layer.down(fed).add_(hidden))  # (N, D)
        return _applied(model.leave, hidden).float()  # (B, D)

    def _attention(
        self,
        index: int,
        hidden: Tensor,
        rows: Sequence[Row],
        causal: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        *,
        only_ends: bool,
    ) -> Tensor:
        """What the tokens see: all ``(N, H d)``, or ``(B, H d)`` for the last of each row."""
        model = self.model
        heads, groups, width = model.heads, model.key_heads, model.head_size
        qkv = model.layers[index].qkv(hidden).view(-1, heads + 2 * groups, width)
        if turn is not None:
            qkv = torch.cat([_turned(qkv[:, :-groups], *turn), qkv[:, -groups:]], dim=1)
        qkv = qkv.transpose(0, 1)  # (H + 2 G, N, d)
        fresh = qkv[heads:].view(2, groups, -1, width)  # (2, G, N, d)
        mixed = []
        for row, part in parts(rows):
            memory = row.memory[index, :, :, : row.total]  # (2, G, T, d)
            memory[:, :, row.known :] = fresh[:, :, part]
            held = memory.to(hidden.dtype)
            asked = slice(part.stop - 1, part.stop) if only_ends else part
            queries = asked.stop - asked.start  # Q
            # One query, the last, sees all.
            mask = None if queries == 1 else causal[row.known : row.total, : row.total]
            seen = F.scaled_dot_product_attention(
                qkv[None, :heads, asked],  # (1, H, Q, d)
                held[:1],  # (1, G, T, d)
                held[1:],
                mask,  # (Q, T)
                scale=model.scale,
                enable_gqa=groups < heads,
            )  # (1, H, Q, d)
            mixed.append(seen[0].transpose(0, 1).reshape(queries, heads * width))  # (Q, H d)
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _applied(function: Callable[[Tensor], Tensor] | None, hidden: Tensor) -> Tensor:
    return hidden if function is None else function(hidden)


def _turned(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021) of ``(N, heads, d)``, by ``(N, d)`` each."""
    first, second = vectors.chunk(2, dim=-1)
    crossed = torch.cat([-second, first], dim=-1)
    return vectors * cosines[:, None] + crossed * sines[:, None]


Affine = tuple[Tensor, Tensor]  # weight (out, in) and bias (out,)


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

        dtype = self.backbone.dtype
        cache: Any = DynamicCache()
        for layer, (keys, values) in enumerate(kept):  # (B, H, K, d) each
            cache.update(keys.to(dtype), values.to(dtype), layer)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=embeddings.device)
        mask = mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)
        model: Any = self.backbone.model
        hidden: Tensor = model(
            inputs_embeds=embeddings.to(dtype),
            attention_mask=mask[:, None],  # (B, 1, Q, K + Q)
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden.float(), cache


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
