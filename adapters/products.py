"""Products of a few tokens with a frozen matrix: in its own type, or in integers.

A handful of tokens costs about what reading the weights costs, so it counts how these lie in
memory and how many bytes they are. Stored by columns of the (out, in) weight, that is as (in, out),
they are read by the fastest path of the library (GPT-2 comes like that; the others are brought into
that form when they are loaded, see ``adapters.shared_backbones``).

Integers are of the weights alone, symmetric, with a scale per output and group of input channels;
inputs stay floats. With 20 bits the rounding is about that of sums in floats and 66 % of the bytes
are read (scales included), with 8 bits 28 %. They are fast in ``adapters.compiled``; the products
here first make floats again, which saves memory but no time.
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
#: Input channels that share a scale.
GROUP = 32
#: Outputs that lie together; of integers of 20 bits also so many inputs, and halves of outputs.
PANEL, INPUTS, HALF = 32, 4, 16
#: What an integer of 20 bits is multiplied by where it fills the upper bits of 32.
UNIT = 2 ** (32 - 20)
#: Bits of these integers that lie apart from the upper 16.
LOWER_BITS = 4
#: Taken for the largest weight of a group of zeros, so that no scale is 0.
SMALLEST = 1e-20


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
class IntegerWeight:
    """Integers of 8 or 20 bits and their scales, in panels of outputs read one after the other.

    Attributes:
        panels: of 8 bits ``(P, in, PANEL)``, the last panel filled up with zeros; of 20 as in
            ``pack``.
        scales: ``(P, groups, PANEL)``, of groups of input channels.
        bits: of an integer.
        size: inputs.
        out: outputs.
    """

    panels: Tensor
    scales: Tensor
    bits: int
    size: int
    out: int

    @classmethod
    def of(cls, weight: Tensor, bits: int) -> IntegerWeight:
        """Rounds an (in, out) weight."""
        size, out = weight.shape
        whole = F.pad(weight.float(), (0, -out % PANEL))
        groups = torch.split(whole, GROUP)
        most = 2 ** (bits - 1) - 1
        scales = [one.abs().amax(0).clamp_min(SMALLEST) / most for one in groups]
        exact = torch.cat([one / its for one, its in zip(groups, scales, strict=True)])
        panels, scale = (_panels(one) for one in (exact, torch.stack(scales)))
        if bits == 8:
            return cls(panels.round().to(torch.int8), scale, bits, size, out)
        return cls(pack(panels), scale / UNIT, bits, size, out)

    def floats(self) -> Tensor:
        """The ``(in, out)`` weight that it stands for."""
        integers = self.panels if self.bits == 8 else unpack(self.panels)[:, : self.size]
        scales = self.scales.repeat_interleave(GROUP, dim=1)[:, : self.size]
        return (integers * scales).transpose(0, 1).flatten(1)[:, : self.out]


def _panels(columns: Tensor) -> Tensor:
    """``(…, P · PANEL)`` to ``(P, …, PANEL)``."""
    return columns.view(len(columns), -1, PANEL).transpose(0, 1).contiguous()


def pack(panels: Tensor) -> Tensor:
    """Rounds to integers of 20 bits, to be unpacked with few instructions.

    Unpacked, an integer fills the upper 20 of 32 bits. The 12 below it hold lower bits of other
    integers, and nobody clears them: they count as a fraction. So the others are rounded first, and
    each integer such that with its fraction it is nearest to the float.

    Args:
        panels: ``(P, in, PANEL)`` floats, at most 2^19 - 1.

    Returns:
        ``(P, in / INPUTS, 1 + INPUTS, HALF)`` int32: for INPUTS inputs the lower bits, then the
        upper 16 of each, with those of the first HALF outputs in the lower half.
    """
    padded = F.pad(panels, (0, 0, 0, -panels.shape[1] % INPUTS))
    exact = padded.view(len(panels), -1, INPUTS, 2, HALF)  # (P, blocks, INPUTS, 2, HALF)
    lower = torch.zeros_like(exact[:, :, 0, 0], dtype=torch.int64)  # (P, blocks, HALF)
    pairs = torch.zeros_like(exact[:, :, :, 0], dtype=torch.int64)  # (P, blocks, INPUTS, HALF)
    for half in (1, 0):
        for index in reversed(range(INPUTS)):
            place = 16 * (1 - half)  # of the half of a word that has the lower bits
            below = lower << LOWER_BITS * index >> place & (UNIT - 1)
            rounded = (exact[:, :, index, half] - below / UNIT).round().long()
            its_lower = rounded & 2**LOWER_BITS - 1
            lower |= its_lower << place + 16 - LOWER_BITS * (index + 1)
            pairs[:, :, index] |= (rounded >> LOWER_BITS & 0xFFFF) << 16 * half
    return torch.cat([lower[:, :, None], pairs], dim=2).to(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """The ``(P, in, PANEL)`` integers again, UNIT times as large and with what stands below."""
    shifts = LOWER_BITS * torch.arange(INPUTS)[:, None]  # (INPUTS, 1)
    lower = packed[:, :, :1].long() << shifts  # (P, blocks, INPUTS, HALF)
    pairs = packed[:, :, 1:].long()
    halves = [pairs << 16 | lower >> 16 & 0xFFFF, pairs & ~0xFFFF | lower & 0xFFFF]
    return torch.stack(halves, dim=3).to(torch.int32).flatten(3).flatten(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A product with integers, in floats."""

    weight: IntegerWeight
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """See :class:`Product`."""
        product = inputs @ self.weight.floats()
        return product if self.bias is None else product.add_(self.bias)


class RoundedWeights:
    """Makes products with rounded weights, which are shared where the frozen ones are.

    What is shared goes when the frozen model goes.
    """

    _held: ClassVar[
        weakref.WeakKeyDictionary[FrozenModel, dict[tuple[int, int], IntegerWeight]]
    ] = weakref.WeakKeyDictionary()

    def __init__(self, frozen: FrozenModel, bits: int) -> None:
        self._shared = self._held.setdefault(frozen, {})
        self._frozen = {one.data_ptr() for one in frozen.model.parameters()}
        self._bits = bits

    def __call__(self, weight: Tensor, bias: Tensor | None, is_shared: bool) -> Product:
        """See :data:`MakeProduct`."""
        place = weight.data_ptr(), self._bits
        if not is_shared or place[0] not in self._frozen:
            return Rounded(IntegerWeight.of(weight, self._bits), bias)
        if place not in self._shared:
            self._shared[place] = IntegerWeight.of(weight, self._bits)
        return Rounded(self._shared[place], bias)
