"""The carrier of ``_carrier.c``: several times faster than Python, with the same decisions.

The library is built when the package is installed, if there is a C compiler; without it links run
in Python.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib.machinery
import math
import os
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from testbed.links.carrier import Carrier, PythonCarrier
from testbed.links.draws import normal_quantiles
from testbed.links.pipe import PipeRow, PipeSettings, TraceArrays

ABI_VERSION = 1  # of _carrier.c
LOOP_VARIABLE = "TESTBED_LINK_LOOP"
MAX_READY = 64  # watched descriptors that one call says to be readable
QUEUE_KINDS = ("droptail", "codel", "pie")
STAYS = math.nan
GONE = "the interface is gone"


class CarrierNotBuilt(RuntimeError):
    """The compiled carrier was asked for, and there is none."""


# ---- what Python and C hand to each other, in the order of the structs there --------------------


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("delay_s", "jitter_s", "loss_good", "loss_bad")),
        *((name, ctypes.c_double) for name in ("to_bad", "to_good", "duplicate")),
        *((name, ctypes.c_double) for name in ("mean_bits_per_s", "start_s", "duration_s")),
        *((name, ctypes.c_double) for name in ("target_s", "interval_s")),
        *((name, ctypes.c_int64) for name in ("is_normal", "may_reorder", "has_bottleneck")),
        *((name, ctypes.c_int64) for name in ("queue", "limit_packets", "limit_bytes", "ecn")),
        *((name, ctypes.c_uint64) for name in ("loss_key", "burst_key", "jitter_key")),
        *((name, ctypes.c_uint64) for name in ("duplicate_key", "pie_key")),
    ]


class _Arrays(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("edges_s", "cumulative_bits", "speeds")),
        ("opportunities_s", ctypes.c_void_p),
        ("steps", ctypes.c_uint64),
        ("opportunities", ctypes.c_uint64),
    ]


class _Row(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("begin_s", "end_s", "late_s")),
        *((name, ctypes.c_double) for name in ("delay_p50_s", "delay_p95_s", "delay_p99_s")),
        *((name, ctypes.c_int64) for name in ("delivered_bytes", "delivered_packets")),
        *((name, ctypes.c_int64) for name in ("saturated", "backlog_packets", "backlog_bytes")),
        *((name, ctypes.c_int64) for name in ("drops", "losses", "aqm_drops", "marks")),
        *((name, ctypes.c_int64) for name in ("duplicates", "pipe")),
    ]


def _signatures() -> dict[str, tuple[object, list[object]]]:
    """Result and arguments of each function of the library."""
    handle, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    descriptor, pointer = ctypes.c_int32, ctypes.POINTER
    return {
        "link_abi": (ctypes.c_int, []),
        "link_new": (handle, [ctypes.c_void_p]),
        "link_free": (None, [handle]),
        "link_add": (
            number,
            [handle, descriptor, descriptor, pointer(_Settings), pointer(_Arrays)],
        ),
        "link_start": (ctypes.c_int, [handle, number, real]),
        "link_change": (ctypes.c_int, [handle, number, real, real, real, real]),
        "link_finish": (number, [handle, number, real]),
        "link_remove": (ctypes.c_int, [handle, number]),
        "link_watch": (ctypes.c_int, [handle, descriptor, descriptor]),
        "link_run": (ctypes.c_int, [handle, real, pointer(descriptor), descriptor]),
        "link_take_rows": (pointer(_Row), [handle, pointer(ctypes.c_uint64)]),
        "link_take_broken": (number, [handle, pointer(descriptor), pointer(descriptor)]),
        "link_test": (ctypes.c_int, [handle, number, real, handle]),
        "link_test_admit": (
            ctypes.c_int,
            [handle, number, ctypes.c_char_p, ctypes.c_uint64, real],
        ),
        "link_test_advance": (real, [handle, number, real]),
    }


def library_path() -> Path | None:
    """The library beside this file, if it was built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_carrier{suffix}")
        if path.is_file():
            return path
    return None


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads the library.

    Raises:
        CarrierNotBuilt: there is none, or one that does not fit.
    """
    path = library_path()
    if path is None:
        raise CarrierNotBuilt("the compiled loop of links is not built; remedy: ./setup.sh")
    try:
        library = ctypes.CDLL(str(path), use_errno=True)
        found = library.link_abi()
    except (OSError, AttributeError) as error:
        raise CarrierNotBuilt(f"{path.name}: {error}; remedy: ./setup.sh") from error
    if found != ABI_VERSION:
        raise CarrierNotBuilt(
            f"{path.name} has version {found}, not {ABI_VERSION}; remedy: ./setup.sh"
        )
    for name, (result, arguments) in _signatures().items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def best_carrier() -> Carrier:
    """A new carrier: the compiled one if it is built, or what ``TESTBED_LINK_LOOP`` asks for.

    Raises:
        CarrierNotBuilt: the variable asks for a compiled one, and there is none.
        ValueError: the variable has another value.
    """
    asked = os.environ.get(LOOP_VARIABLE, "")
    if asked not in ("", "compiled", "python"):
        raise ValueError(f"{LOOP_VARIABLE} {asked!r} is neither 'compiled' nor 'python'")
    if asked == "python":
        return PythonCarrier()
    try:
        return CompiledCarrier()
    except CarrierNotBuilt:
        if asked:
            raise
        return PythonCarrier()


class CompiledCarrier:
    """A carrier in C; see :class:`testbed.links.carrier.Carrier`. For one thread at a time."""

    name = "compiled"

    def __init__(self) -> None:
        """Makes a carrier without pipes.

        Raises:
            CarrierNotBuilt: there is no library.
        """
        self._library = load_library()
        quantiles = array("d", normal_quantiles())
        self._handle = self._library.link_new(quantiles.buffer_info()[0])
        if not self._handle:
            raise MemoryError("no memory or no descriptor for a carrier")
        weakref.finalize(self, self._library.link_free, self._handle)
        self._ready = (ctypes.c_int32 * MAX_READY)()

    def add(self, source: int, sink: int, settings: PipeSettings, arrays: TraceArrays) -> int:
        """See :class:`Carrier`."""
        # What is in the tuple must live until it is copied.
        handed, _kept = _arrays(arrays)
        number: int = self._library.link_add(
            self._handle, source, sink, ctypes.byref(_settings(settings)), ctypes.byref(handed)
        )
        return _checked(number)

    def start(self, pipe: int, now_s: float) -> None:
        """See :class:`Carrier`."""
        _checked(self._library.link_start(self._handle, pipe, now_s))

    def change(
        self,
        pipe: int,
        now_s: float,
        *,
        bits_per_s: float | None = None,
        delay_s: float | None = None,
        loss: float | None = None,
    ) -> None:
        """See :class:`Carrier`."""
        values = [STAYS if value is None else value for value in (bits_per_s, delay_s, loss)]
        _checked(self._library.link_change(self._handle, pipe, now_s, *values))

    def finish(self, pipe: int, now_s: float) -> int:
        """See :class:`Carrier`."""
        return _checked(self._library.link_finish(self._handle, pipe, now_s))

    def remove(self, pipe: int) -> None:
        """See :class:`Carrier`."""
        _checked(self._library.link_remove(self._handle, pipe))

    def watch(self, descriptor: int) -> None:
        """See :class:`Carrier`."""
        _checked(self._library.link_watch(self._handle, descriptor, True))

    def unwatch(self, descriptor: int) -> None:
        """See :class:`Carrier`."""
        _checked(self._library.link_watch(self._handle, descriptor, False))

    def run(self, until_s: float) -> list[int]:
        """See :class:`Carrier`."""
        while True:
            count: int = self._library.link_run(self._handle, until_s, self._ready, MAX_READY)
            if count != -errno.EINTR:  # else Python's handlers had their turn by now
                return self._ready[: _checked(count)]

    def take_rows(self) -> list[tuple[int, PipeRow]]:
        """See :class:`Carrier`."""
        count = ctypes.c_uint64()
        rows = self._library.link_take_rows(self._handle, ctypes.byref(count))
        return [(rows[n].pipe, _row(rows[n])) for n in range(count.value)]

    def take_broken(self) -> list[tuple[int, str]]:
        """See :class:`Carrier`."""
        broken = []
        is_reading, why = ctypes.c_int32(), ctypes.c_int32()
        by_reference = ctypes.byref(is_reading), ctypes.byref(why)
        while (pipe := self._library.link_take_broken(self._handle, *by_reference)) >= 0:
            what = "read" if is_reading.value else "deliver"
            error = OSError(why.value, os.strerror(why.value)) if why.value else GONE
            broken.append((pipe, f"cannot {what}: {error}"))
        return broken


def _checked(result: int) -> int:
    """What a function returned, unless that is an error."""
    if result == -errno.ENOENT:
        raise KeyError("there is no such pipe")
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _settings(settings: PipeSettings) -> _Settings:
    if settings.queue not in QUEUE_KINDS:
        raise ValueError(f"queue {settings.queue!r} is none of {', '.join(QUEUE_KINDS)}")
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values["queue"] = QUEUE_KINDS.index(settings.queue)
    return _Settings(**values)


def _arrays(arrays: TraceArrays) -> tuple[_Arrays, list[array[float]]]:
    """The arrays for C, and what keeps their memory."""
    steps = len(arrays.speeds)
    for values, name in ((arrays.edges_s, "edges_s"), (arrays.cumulative_bits, "cumulative_bits")):
        if len(values) != (steps + 1 if steps else 0):
            raise ValueError(f"{name}: {len(values)} values do not fit {steps} steps")
    if steps and not (arrays.edges_s[-1] > 0.0 and arrays.cumulative_bits[-1] > 0.0):
        raise ValueError("a trace needs a duration and a capacity")
    kept = [_doubles(values) for values in (arrays.edges_s, arrays.cumulative_bits)]
    kept += [_doubles(values) for values in (arrays.speeds, arrays.opportunities_s)]
    addresses = [values.buffer_info()[0] for values in kept]
    return _Arrays(*addresses, steps, len(arrays.opportunities_s)), kept


def _doubles(values: Sequence[float]) -> array[float]:
    # Number by number, a long trace would hold up the links of all other sessions.
    return array("d", values.tobytes() if isinstance(values, memoryview) else values)


def _row(row: _Row) -> PipeRow:
    values = {name: getattr(row, name) for name in PipeRow._fields}
    return PipeRow(**{**values, "saturated": bool(row.saturated)})
