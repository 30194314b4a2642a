"""Products of a few tokens with a frozen matrix: in its own type, in 24 bits or in int8.

A handful of tokens costs about what reading the weights costs, so it counts how these lie in
memory and how many bytes they are. Stored by columns of the (out, in) weight, that is as (in, out),
they are read by the fastest path of the library (GPT-2 comes like that; the others are brought into
that form when they are loaded, see ``adapters.shared_backbones``).

Of 24 bits a float keeps sign, exponent and 15 bits of the fraction, rounded: three quarters of the
bytes are read. Int8 is of the weights alone, symmetric, with a scale per output and group of input
channels; inputs stay floats. A quarter of the bytes is read. Both by ``adapters.compiled``; the
products here first make floats again, which saves memory but no time.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adapters.shared_backbones import FrozenModel

#: Up to so many tokens a product with weights stored by rows is made in blocks of so many rows: the
#: library reads them faster along its path for small matrices.
FEW_TOKENS, BLOCK_ROWS = 15, 192
INT8_MAX = 127
#: Input channels that share a scale, and outputs that lie together: a cache line of them.
INT8_GROUP, PANEL = 32, 64
#: Bytes behind packed floats that a whole vector of the last ones takes in.
READ_BEYOND = 64
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
        integers: ``(P, in, PANEL)`` int8, the last panel filled up with zeros.
        scales: ``(groups, P · PANEL)``, of groups of input channels.
        out: outputs.
    """

    integers: Tensor
    scales: Tensor
    out: int

    @classmethod
    def of(cls, weight: Tensor) -> Int8Weight:
        """Rounds an (in, out) weight."""
        size, out = weight.shape
        whole = F.pad(weight.float(), (0, -out % PANEL))
        groups = torch.split(whole, INT8_GROUP)
        scales = [one.abs().amax(0).clamp_min(SMALLEST) / INT8_MAX for one in groups]
        rounded = [(one / its).round() for one, its in zip(groups, scales, strict=True)]
        integers = torch.cat(rounded).to(torch.int8).view(size, -1, PANEL)
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


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """The upper 24 bits of floats, rounded to the nearest, in panels of outputs.

    Attributes:
        panels: ``(P · in · PANEL · 3,)`` bytes and some more that may be read: per panel and input
            the upper three of each float, in the machine's order; the last panel filled up with
            zeros.
        size: inputs.
        out: outputs.
    """

    panels: Tensor
    size: int
    out: int

    @classmethod
    def of(cls, weight: Tensor) -> PackedWeight:
        """Rounds an (in, out) weight."""
        size, out = weight.shape
        whole = F.pad(weight.float(), (0, -out % PANEL)).contiguous().view(torch.int32)
        whole = whole + 0x80  # a carry into the exponent is meant
        panels = whole.view(size, -1, PANEL).transpose(0, 1).contiguous().view(torch.uint8)
        upper = panels.view(-1, 4)[:, 1:].flatten()
        return cls(F.pad(upper, (0, READ_BEYOND)), size, out)

    def floats(self) -> Tensor:
        """The ``(in, out)`` weight that it stands for."""
        upper = self.panels[:-READ_BEYOND].view(-1, 3)
        panels = F.pad(upper, (1, 0)).view(torch.float32).view(-1, self.size, PANEL)
        return panels.transpose(0, 1).flatten(1)[:, : self.out]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A product with packed floats."""

    weight: PackedWeight
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """See :class:`Product`."""
        product = inputs @ self.weight.floats()
        return product if self.bias is None else product.add_(self.bias)


class RoundedWeights:
    """Makes products with rounded weights, which are shared where the frozen ones are.

    What is shared goes when the frozen model goes.
    """

    _held: ClassVar[weakref.WeakKeyDictionary[FrozenModel, dict[tuple[int, type], Any]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, frozen: FrozenModel, product: type[Int8] | type[Packed]) -> None:
        self._shared = self._held.setdefault(frozen, {})
        self._frozen = {one.data_ptr() for one in frozen.model.parameters()}
        self._product = product
        self._round: Any = Int8Weight.of if product is Int8 else PackedWeight.of

    def __call__(self, weight: Tensor, bias: Tensor | None, is_shared: bool) -> Product:
        """See :data:`MakeProduct`."""
        place = weight.data_ptr(), self._product
        if not is_shared or place[0] not in self._frozen:
            return self._product(self._round(weight), bias)
        if place not in self._shared:
            self._shared[place] = self._round(weight)
        return self._product(self._shared[place], bias)
