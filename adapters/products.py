"""Products of a few tokens with a frozen matrix: in the weights' own type, or in int8.

A handful of tokens costs about what reading the weights costs, so it counts how these lie in
memory and how many bytes they are. Stored by columns of the (out, in) weight, that is as (in, out),
they are read by the fastest path of the library (GPT-2 comes like that; the others are brought into
that form when they are loaded, see ``adapters.shared_backbones``).

Int8 is symmetric: a scale per output of the weights, found once, and a scale per token of the
inputs, found anew for each. The products are then sums of integers, hence exact, and what becomes
of a token depends on no other token of the batch.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from adapters.shared_backbones import FrozenModel

#: Up to so many tokens a product with weights stored by rows is made in blocks of so many rows: the
#: library reads them faster along its path for small matrices.
FEW_TOKENS, BLOCK_ROWS = 15, 192
INT8_MAX = 127
#: Smallest scale of a token, for tokens of zeros.
SMALLEST = 1e-12


class Product(Protocol):
    """``(N, in)`` to ``(N, out)``."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Multiplies."""
        ...


#: Makes a product from an (in, out) weight and a bias; ``is_shared``: the weight is the frozen one.
MakeProduct = Callable[[Tensor, Tensor | None, bool], Product]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Weights as they are.

    Attributes:
        weight: ``(in, out)``, a view of the (out, in) one for most families.
        bias: ``(out,)``.
        update: low-rank factors ``(in, r)`` and ``(r, out)`` that are not in the weight.
    """

    weight: Tensor
    bias: Tensor | None
    update: tuple[Tensor, Tensor] | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """See :class:`Product`."""
        if len(inputs) <= FEW_TOKENS and not self.weight.is_contiguous() and self.bias is not None:
            product = in_blocks(inputs, self.weight.t(), self.bias)
        elif self.bias is None:
            product = inputs @ self.weight
        else:
            product = torch.addmm(self.bias, inputs, self.weight)
        if self.update is not None:
            down, up = self.update
            product = product + ((inputs.to(down.dtype) @ down) @ up).to(product.dtype)
        return product


def in_blocks(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``(N, out)`` for an (out, in) weight, block by block of its rows."""
    out, size = weight.shape
    count, rows = len(inputs), math.gcd(out, BLOCK_ROWS)
    blocks = weight.reshape(-1, rows, size)  # (out / rows, rows, in)
    product = torch.baddbmm(
        bias.view(-1, 1, rows), inputs.expand(len(blocks), count, size), blocks.transpose(1, 2)
    )  # (out / rows, N, rows)
    return product.transpose(0, 1).reshape(count, out)


def dense(weight: Tensor, bias: Tensor | None, is_shared: bool) -> Product:
    """See :data:`MakeProduct`."""
    return Dense(weight, bias)


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """Integers and their scales.

    Attributes:
        integers: ``(out, in)`` int8.
        scales: ``(out,)``.
    """

    integers: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8Weight:
        """Rounds an (in, out) weight."""
        rows = weight.t().float()  # (out, in)
        scales = rows.abs().amax(1).clamp_min(SMALLEST) / INT8_MAX
        return cls((rows / scales[:, None]).round().to(torch.int8).contiguous(), scales)


@dataclass(frozen=True, slots=True, eq=False)
class Int8:
    """A product in integers."""

    weight: Int8Weight
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """See :class:`Product`."""
        largest = torch.linalg.vector_norm(inputs, math.inf, dim=1, keepdim=True)  # (N, 1)
        scales = largest.clamp_min_(SMALLEST) / INT8_MAX
        integers = (inputs / scales).round_().to(torch.int8)
        sums = torch._int_mm(integers, self.weight.integers.t())  # (N, out) int32
        product: Tensor = (sums * scales).mul_(self.weight.scales)
        if self.bias is not None:
            product += self.bias
        return product


class Int8Weights:
    """Makes int8 products; of weights that adapters share, the integers are shared too.

    What is shared goes when the frozen model goes.
    """

    _held: ClassVar[weakref.WeakKeyDictionary[FrozenModel, dict[int, Int8Weight]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, frozen: FrozenModel) -> None:
        self._shared = self._held.setdefault(frozen, {})
        self._frozen = {one.data_ptr() for one in frozen.model.parameters()}

    def __call__(self, weight: Tensor, bias: Tensor | None, is_shared: bool) -> Product:
        """See :data:`MakeProduct`."""
        place = weight.data_ptr()
        if not is_shared or place not in self._frozen:
            return Int8(Int8Weight.of(weight), bias)
        if place not in self._shared:
            self._shared[place] = Int8Weight.of(weight)
        return Int8(self._shared[place], bias)
