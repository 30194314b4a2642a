"""The lean pass of ``_lean.c``: a few tokens on a CPU at about what reading the weights costs.

The library is built when the package is installed, if there is a C compiler; without it everything
is computed by torch, with the same answers up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adapters.lean import TANH_GELU, Function, LeanLayer, LeanModel, Norm
from adapters.products import GROUP, Dense, Product, Rounded

if TYPE_CHECKING:
    from adapters.passes import Row

ABI_VERSION = 5  # of _lean.c
#: In the order of the enum there.
ACTIVATIONS: tuple[Function, ...] = (F.relu, F.silu, F.gelu, TANH_GELU)
#: Tokens up to which the compiled pass is the faster one; with more, the weights are not what takes
#: the time. What is not plain floats is multiplied here only.
MOST_TOKENS = 48
#: Floats that the processor works on at once: all that it can.
LANES = 16
#: Of Linux: lets the pages of a range be large ones from now on.
MADV_COLLAPSE = 25
LARGE_PAGE = 2 * 2**20


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("dense", "panels", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("in", "out", "group", "bits")),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("eps", ctypes.c_double),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("qkv", "out", "up", "down", "gate")),
        *(
            (name, _Norm)
            for name in ("before_attention", "after_attention", "before_feed", "after_feed")
        ),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("places", ctypes.c_void_p),
        ("enter", _Norm),
        ("leave", _Norm),
        *((name, ctypes.c_int64) for name in ("layers_count", "places_count", "size", "heads")),
        *((name, ctypes.c_int64) for name in ("key_heads", "head_size", "activation")),
        ("scale", ctypes.c_double),
    ]


class _Row(ctypes.Structure):
    _fields_ = [
        ("memory", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("places", "known", "fresh")),
    ]


class _Question(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "cosines", "sines")),
        ("rows", ctypes.POINTER(_Row)),
        *((name, ctypes.c_int64) for name in ("tokens_count", "rows_count", "longest")),
    ]


class CompiledError(RuntimeError):
    """The compiled pass failed."""


def library_path() -> Path | None:
    """The library beside this file, if it was built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_lean{suffix}")
        if path.is_file():
            return path
    return None


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where there is none that fits."""
    path = library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))  # with the threads of torch, which is loaded already
        if library.lean_abi() != ABI_VERSION:
            return None
    except (OSError, AttributeError):
        return None
    library.lean_run.restype = ctypes.c_int
    library.lean_run.argtypes = [
        ctypes.POINTER(_Model),
        ctypes.POINTER(_Question),
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
    ]
    return library


class CompiledPass:
    """Runs a model whose weights all lie in the memory of the CPU, in float32 or as integers.

    Attributes:
        most_tokens: up to which it is to be used; None: always.
    """

    def __init__(self, library: ctypes.CDLL, model: LeanModel, size: int) -> None:
        """Takes a model that :func:`compiled` has found to fit."""
        self._library, self._held = library, model  # its tensors must live as long as pointers
        self._layers = (_Layer * len(model.layers))(*(_layer(one) for one in model.layers))
        self._model = _Model(
            layers=self._layers,
            places=_address(model.places),
            enter=_norm(model.enter),
            leave=_norm(model.leave),
            layers_count=len(model.layers),
            places_count=0 if model.places is None else len(model.places),
            size=size,
            heads=model.heads,
            key_heads=model.key_heads,
            head_size=model.head_size,
            activation=ACTIVATIONS.index(model.activation),
            scale=model.scale,
        )
        self._size, self._rotate = size, model.rotate
        self.most_tokens = MOST_TOKENS if isinstance(model.layers[0].out, Dense) else None

    def __call__(
        self, tokens: Tensor, positions: Tensor, rows: Sequence[Row], *, lanes: int = LANES
    ) -> Tensor:
        """See :class:`adapters.passes.Pass`.

        Raises:
            CompiledError: memory is short, or a place is beyond the model's positions or the row's.
        """
        tokens, positions = tokens.contiguous(), positions.contiguous()
        cosines = sines = None
        if self._rotate is not None:
            cosines, sines = (one.float().contiguous() for one in self._rotate(positions))
        lines = (_Row * len(rows))()
        for line, row in zip(lines, rows, strict=True):
            memory = row.memory
            assert memory.is_contiguous()
            assert memory.dtype == torch.float32
            line.memory, line.places = memory.data_ptr(), memory.shape[3]
            line.known, line.fresh = row.known, row.new
        question = _Question(
            tokens=tokens.data_ptr(),
            positions=positions.data_ptr(),
            cosines=_address(cosines),
            sines=_address(sines),
            rows=lines,
            tokens_count=len(tokens),
            rows_count=len(rows),
            longest=max(row.total for row in rows),
        )
        answers = torch.empty(len(rows), self._size)
        failed = self._library.lean_run(
            self._model, question, answers.data_ptr(), torch.get_num_threads(), lanes
        )
        if failed:
            says = "memory is short" if failed == -1 else "a token has no place"
            raise CompiledError(f"the compiled pass failed: {says}")
        return answers


def compiled(model: LeanModel, size: int) -> CompiledPass | None:
    """The compiled pass of a model, if there is one for it; its weights come into large pages.

    Args:
        model: as described.
        size: D.
    """
    library = load_library()
    if library is None or not any(model.activation is one for one in ACTIVATIONS):
        return None
    products = [one for layer in model.layers for one in _products(layer)]
    if not all(_fits(one) for one in products) or not all(
        _is_plain(one) for one in _vectors(model)
    ):
        return None
    for one in products:
        use_large_pages(_held(one))
    return CompiledPass(library, model, size)


def use_large_pages(tensor: Tensor) -> None:
    """Asks Linux to hold a tensor in pages of 2 MiB, which are read faster; others ignore it.

    Nothing but speed depends on it, so that a refusal is no error.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    begin = tensor.data_ptr() // LARGE_PAGE * LARGE_PAGE
    end = -(-(tensor.data_ptr() + tensor.nbytes) // LARGE_PAGE) * LARGE_PAGE
    advise = _madvise()
    for page in range(begin, end, LARGE_PAGE):  # one by one: of some only a part may be in use
        advise(page, LARGE_PAGE, mmap.MADV_HUGEPAGE)
        advise(page, LARGE_PAGE, MADV_COLLAPSE)


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def _products(layer: LeanLayer) -> list[Product]:
    every = [layer.qkv, layer.out, layer.up, layer.down]
    return every if layer.gate is None else [*every, layer.gate]


def _vectors(model: LeanModel) -> Iterator[Tensor | None]:
    """Everything but the matrices."""
    yield model.places
    norms = [model.enter, model.leave]
    for layer in model.layers:
        norms += [
            layer.before_attention,
            layer.after_attention,
            layer.before_feed,
            layer.after_feed,
        ]
        yield from (one.bias for one in _products(layer))  # type: ignore[attr-defined]
    for norm in norms:
        if norm is not None:
            yield from (norm.weight, norm.bias)


def _is_plain(tensor: Tensor | None) -> bool:
    if tensor is None:
        return True
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _fits(product: Product) -> bool:
    if isinstance(product, Rounded):
        return product.weight.panels.device.type == "cpu"
    return isinstance(product, Dense) and product.update is None and _is_plain(product.weight)


def _held(product: Product) -> Tensor:
    """The weights as they lie in memory."""
    if isinstance(product, Rounded):
        return product.weight.panels
    assert isinstance(product, Dense)
    return product.weight


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _norm(norm: Norm | None) -> _Norm:
    if norm is None:
        return _Norm()
    return _Norm(norm.weight.data_ptr(), _address(norm.bias), norm.eps)


def _matrix(product: Product | None) -> _Matrix:
    if product is None:
        return _Matrix()
    address, bias = _held(product).data_ptr(), _address(product.bias)  # type: ignore[attr-defined]
    if isinstance(product, Rounded):
        its = product.weight
        scales = its.scales.data_ptr()
        return _Matrix(None, address, scales, bias, its.size, its.out, GROUP, its.bits)
    assert isinstance(product, Dense)
    return _Matrix(address, None, None, bias, *product.weight.shape, 0, 0)


def _layer(layer: LeanLayer) -> _Layer:
    return _Layer(
        *(_matrix(one) for one in (layer.qkv, layer.out, layer.up, layer.down, layer.gate)),
        _norm(layer.before_attention),
        _norm(layer.after_attention),
        _norm(layer.before_feed),
        _norm(layer.after_feed),
    )
