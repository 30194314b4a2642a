"""What happens to the packets of one interface besides queueing: the kernel's netem.

Source: ``tc-netem(8)`` and ``net/sched/sch_netem.c``. What follows from the latter:

* netem sorts packets by the time at which each is to leave, so jitter, or a delay that falls, lets
  them overtake each other. With a ``rate`` a packet leaves no earlier than the one before it. One
  so high that it adds nanoseconds keeps the order and does nothing else.
* Jitter without a ``distribution`` is uniform over ± jitter; a packet that would have to leave
  before it came leaves at once.
* A change in place (``tc qdisc change``) touches only packets that come later; those that wait keep
  their times. It restarts the process of bursty loss in its good state.
* Duplication is decided first. Of a packet that is both doubled and lost one copy gets through, and
  the second copy may be lost by itself. So netem loses a little less than asked where both are
  asked, by the product of the two shares. It does not count duplicates.
* Its draws cannot be repeated (with Linux before 6.7; ``tc`` of Debian 12 knows no seed either).
"""

from __future__ import annotations

import dataclasses
import math
import socket
import struct
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from testbed.links.htb import ShapingError, run_tool
from testbed.links.netlink import (
    NS_PER_TICK,
    TCA_OPTIONS,
    Netlink,
    attributes,
    payloads,
    qdisc_request,
)
from testbed.links.process import Port
from testbed.links.queues import read_counts
from testbed.links.spec import DirectionSpec, GilbertElliott
from testbed.namespaces import in_network_of

P = ParamSpec("P")
T = TypeVar("T")

QUEUE_PACKETS = 100_000  # netem must hold delay × rate and never drop
ORDERING_RATE = "1tbit"  # a whole packet in 12 ns
ORDERING_BYTES_PER_S = 125_000_000_000
HANDLE = 0x00200000  # 20:
PERCENT = 100.0
NS_PER_MS = 1e6
MAX_U32 = 2**32 - 1
SHARE_SLACK = 1e-6
TIME_SLACK_NS = 2_000.0

# <linux/pkt_sched.h>
TCA_NETEM_LOSS, TCA_NETEM_RATE64, TCA_NETEM_LATENCY64, TCA_NETEM_JITTER64 = 5, 8, 10, 11
NETEM_LOSS_GE = 2
QOPT = struct.Struct("=IIIIII")  # latency (ticks), limit, loss, gap, duplicate, jitter (ticks)
GE_MODEL = struct.Struct("=IIII")  # p, r, h, 1-k
S64 = struct.Struct("=q")
U64 = struct.Struct("=Q")


def at_port(port: Port, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function in the network namespace of a port."""
    if port.pid is None:
        return function(*args, **kwargs)
    return in_network_of(port.pid, function, *args, **kwargs)


def is_impaired(spec: DirectionSpec) -> bool:
    """Whether the direction asks for anything that is netem's."""
    return bool(spec.delay_ms or spec.jitter_ms or spec.loss or spec.duplicate)


def netem_options(spec: DirectionSpec) -> tuple[str, ...]:
    """Arguments for ``tc qdisc add … netem``; empty if nothing is asked."""
    if not is_impaired(spec):
        return ()
    return ("limit", str(QUEUE_PACKETS), *_delay(spec), *_loss(spec.loss), *_duplicate(spec))


def _delay(spec: DirectionSpec) -> list[str]:
    if not (spec.delay_ms or spec.jitter_ms):
        return []
    options = ["delay", f"{spec.delay_ms:.3f}ms"]
    if spec.jitter_ms:
        options.append(f"{spec.jitter_ms:.3f}ms")
        if spec.jitter == "normal":
            options += ["distribution", "normal"]
    if not spec.reorder:
        options += ["rate", ORDERING_RATE]
    return options


def _loss(loss: float | GilbertElliott) -> list[str]:
    if not loss:
        return []
    if isinstance(loss, GilbertElliott):
        shares = (loss.to_bad, loss.to_good, loss.loss_bad, loss.loss_good)
        return ["loss", "gemodel", *map(_percent, shares)]
    return ["loss", _percent(loss)]


def _duplicate(spec: DirectionSpec) -> list[str]:
    return ["duplicate", _percent(spec.duplicate)] if spec.duplicate else []


def _percent(share: float) -> str:
    return f"{share * PERCENT:.6f}%"


class Netem:
    """netem at the output of one interface; there is none as long as nothing is asked of it."""

    def __init__(self, port: Port, spec: DirectionSpec) -> None:
        """Sets it up.

        Raises:
            ShapingError: the kernel refused, or took something else than asked.
        """
        self._port = port
        self._spec = spec
        self._counter: _NetemCounter | None = None
        if is_impaired(spec):
            self._install()

    def change(self, *, delay_ms: float | None, loss: float | None) -> None:
        """Changes it in place; packets that wait keep their times. What is None stays.

        Raises:
            ShapingError: the kernel refused, or took something else than asked.
        """
        if delay_ms is not None:
            self._spec = dataclasses.replace(self._spec, delay_ms=delay_ms)
        if loss is not None:
            self._spec = dataclasses.replace(self._spec, loss=loss)
        self._install()

    def read_losses(self) -> int:
        """Packets lost so far."""
        return 0 if self._counter is None else self._counter.read_losses()

    def verify(self) -> None:
        """Checks that the kernel has what was asked last.

        Raises:
            ShapingError: it has something else.
        """
        if self._counter is not None and (differs := self._counter.difference(self._spec)):
            raise ShapingError(
                f"{self._port.interface}: asked for netem {' '.join(netem_options(self._spec))}, "
                f"the kernel has {differs}"
            )

    def close(self) -> None:
        """Closes the counter; netem stays."""
        if self._counter is not None:
            self._counter.close()

    def _install(self) -> None:
        is_new = self._counter is None
        at_port(self._port, _set_netem, self._port.interface, self._spec, is_new=is_new)
        if is_new:
            self._counter = at_port(self._port, _NetemCounter, self._port.interface)
        self.verify()


def _set_netem(interface: str, spec: DirectionSpec, *, is_new: bool) -> None:
    # In a change, netem keeps a rate that is not named, but nothing else of what is read back here.
    options = netem_options(spec) or ("limit", str(QUEUE_PACKETS))
    run_tool(
        *("tc", "qdisc", "add" if is_new else "change", "dev", interface),
        *("root", "handle", "20:", "netem", *options),
    )


class _NetemCounter(Netlink):
    """Reads netem at the root of one interface; belongs to the namespace where it was made."""

    def __init__(self, interface: str) -> None:
        index = socket.if_nametoindex(interface)
        super().__init__()
        self._interface = interface
        self._get = qdisc_request(index, HANDLE)

    def read_losses(self) -> int:
        return read_counts("netem", self._read()).full_drops

    def difference(self, spec: DirectionSpec) -> str | None:
        """What the kernel has, if that is not what is asked."""
        return difference(spec, self._read())

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> bytes:
        try:
            return self.ask(self._get)
        except OSError as error:
            raise ShapingError(f"{self._interface}: reading netem: {error}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class _Settings:
    """What netem does, in its own units."""

    delay_ns: float
    jitter_ns: float
    loss: tuple[float, ...]
    duplicate: float
    keeps_order: bool


def difference(spec: DirectionSpec, answer: bytes) -> str | None:
    """Compares what is asked with what the kernel says about its netem.

    Returns:
        What the kernel has; None if that is as asked.
    """
    found = _parse(answer)
    asked = _Settings(
        spec.delay_ms * NS_PER_MS,
        spec.jitter_ms * NS_PER_MS,
        dataclasses.astuple(spec.loss) if isinstance(spec.loss, GilbertElliott) else (spec.loss,),
        spec.duplicate,
        not spec.reorder and bool(spec.delay_ms or spec.jitter_ms),
    )
    is_same = (
        abs(found.delay_ns - asked.delay_ns) <= TIME_SLACK_NS
        and abs(found.jitter_ns - asked.jitter_ns) <= TIME_SLACK_NS
        and len(found.loss) == len(asked.loss)
        and all(map(_is_close, found.loss, asked.loss))
        and _is_close(found.duplicate, asked.duplicate)
        and found.keeps_order >= asked.keeps_order
    )
    return None if is_same else str(found)


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, abs_tol=SHARE_SLACK)


def _parse(answer: bytes) -> _Settings:
    begin, end = payloads(answer)[TCA_OPTIONS]
    latency, _, loss, _, duplicate, jitter = QOPT.unpack_from(answer, begin)
    delay_ns, jitter_ns = latency * NS_PER_TICK, jitter * NS_PER_TICK
    losses: tuple[float, ...] = (loss / MAX_U32,)
    rate = 0
    for kind, at, stop in attributes(answer, begin + QOPT.size, end):
        if kind == TCA_NETEM_LATENCY64:
            (delay_ns,) = S64.unpack_from(answer, at)
        elif kind == TCA_NETEM_JITTER64:
            (jitter_ns,) = S64.unpack_from(answer, at)
        elif kind == TCA_NETEM_RATE64:
            (rate,) = U64.unpack_from(answer, at)
        elif kind == TCA_NETEM_LOSS:
            for model, inner, _ in attributes(answer, at, stop):
                if model == NETEM_LOSS_GE:
                    p, r, h, k1 = GE_MODEL.unpack_from(answer, inner)
                    losses = (p / MAX_U32, r / MAX_U32, 1.0 - h / MAX_U32, k1 / MAX_U32)
    return _Settings(delay_ns, jitter_ns, losses, duplicate / MAX_U32, rate == ORDERING_BYTES_PER_S)
