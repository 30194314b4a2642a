"""Products of a few tokens with a frozen matrix: in the weights' own type, or in int8.

A handful of tokens costs about what reading the weights costs, so it counts how these lie in
memory and how many bytes they are. Stored by columns of the (out, in) weight, that is as (in, out),
they are read by the fastest path of the library (GPT-2 comes like that; the others are brought into
that form when they are loaded, see ``adapters.shared_backbones``).

Int8 is of the weights alone, symmetric, with a scale per output and group of input channels; inputs
stay floats. A quarter of the bytes is read, by ``adapters.compiled``; the product here first makes
floats of the integers, which saves memory but no time.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adapters.shared_backbones import FrozenModel

#: Up to so many tokens a product with weights stored by rows is made in blocks of so many rows: the
#: library reads them faster along its path for small matrices.
FEW_TOKENS, BLOCK_ROWS = 15, 192
INT8_MAX = 127
#: Input channels that share a scale, and outputs that lie together: a cache line of them.
INT8_GROUP, INT8_PANEL = 32, 64
#: Smallest scale, for groups of zeros.
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
    """Integers and their scales, in panels of outputs that are read one after the other.

    Attributes:
        integers: ``(P, in, INT8_PANEL)`` int8, the last panel filled up with zeros.
        scales: ``(groups, P · INT8_PANEL)``, of groups of input channels.
        out: outputs.
    """

    integers: Tensor
    scales: Tensor
    out: int

    @classmethod
    def of(cls, weight: Tensor) -> Int8Weight:
        """Rounds an (in, out) weight."""
        size, out = weight.shape
        whole = F.pad(weight.float(), (0, -out % INT8_PANEL))
        groups = torch.split(whole, INT8_GROUP)
        scales = [one.abs().amax(0).clamp_min(SMALLEST) / INT8_MAX for one in groups]
        rounded = [(one / its).round() for one, its in zip(groups, scales, strict=True)]
        integers = torch.cat(rounded).to(torch.int8).view(size, -1, INT8_PANEL)
        return cls(integers.transpose(0, 1).contiguous(), torch.stack(scales), out)

    def floats(self) -> Tensor:
        """The ``(in, out)`` weight that it stands for."""
        size = self.integers.shape[1]
        scales = self.scales.repeat_interleave(INT8_GROUP, dim=0)[:size]
        return (self.integers.transpose(0, 1).flatten(1) * scales)[:, : self.out]


@dataclass(frozen=True, slots=True, eq=False)
class Int8:
    """A product with integers, in floats."""

    weight: Int8Weight
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """See :class:`Product`."""
        product = inputs @ self.weight.floats()
        return product if self.bias is None else product.add_(self.bias)


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
