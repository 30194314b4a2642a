"""The bottleneck of a session: a link that replays a trace, and the proof that it did.

There are two back-ends. The kernel's shapes the output of one interface with HTB (``testbed.htb``)
and leaves one-way delay and loss to netem (``tc-netem(8)``) on other interfaces, before the
bottleneck for what comes down and behind the client for what goes up, so that neither touches the
bottleneck's queue. The one in user space (``testbed.userspace``) carries the packets itself and
needs neither.

A process of its own replays the trace and measures what the client received.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from player.records import LinkRecord
from player.trace import BITS_PER_MEGABIT, Trace
from testbed.htb import BITS_PER_BYTE, HtbClass, ReceiveCounter, clip_rate, qdisc_problem
from testbed.htb import ShapingError as ShapingError  # callers know it from here
from testbed.namespaces import Child, fork_into, in_network_of
from testbed.replay import LinkSecond as LinkSecond
from testbed.replay import Replay, replay_process
from testbed.tap import TUN_REMEDY, tap_problem

BACKENDS = ("auto", "kernel", "userspace")
WARM_UP_BINS = 2  # slow start fills the queue in these
ANSWER_TIMEOUT_S = 10.0
NETEM_QUEUE_PACKETS = 100_000  # netem must hold delay × rate and never drop
NETEM_REMEDY = (
    "use a kernel with the module sch_netem (Debian: a stock or cloud kernel; Ubuntu: "
    "linux-modules-extra-$(uname -r)), or set delay_ms and loss to 0"
)


class LinkUnsupported(ValueError):
    """This machine cannot make such a link; says what is missing and what to do instead."""


@dataclass(frozen=True)
class LinkSpec:
    """The link that a session asks for.

    Attributes:
        trace: capacity at layer 3 towards the client.
        start_s: position in the trace where the session starts.
        delay_ms: one-way delay, both ways.
        loss: share of packets lost on the way to the bottleneck, 0 to 1.
        queue_packets: length of the bottleneck's drop-tail queue.
        backend: ``auto``, ``kernel`` or ``userspace``.
        seed: which packets the user-space link loses; netem draws at random.
    """

    trace: Trace
    start_s: float = 0.0
    delay_ms: float = 0.0
    loss: float = 0.0
    queue_packets: int = 100
    backend: str = "auto"
    seed: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < float("inf"):
            raise ValueError(f"start_s {self.start_s} is not a time from 0 on")
        if not 0.0 <= self.delay_ms < float("inf"):
            raise ValueError(f"delay_ms {self.delay_ms} is not a time from 0 on")
        if not 0.0 <= self.loss < 1.0:
            raise ValueError(f"loss {self.loss} is not between 0 and 1")
        if self.queue_packets < 1:
            raise ValueError(f"queue_packets {self.queue_packets} is not at least 1")


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """What the link did during one session."""

    record: LinkRecord
    seconds: tuple[LinkSecond, ...]


@dataclass(frozen=True, slots=True)
class Backend:
    """What makes the link.

    Attributes:
        name: ``kernel`` or ``userspace``.
        why: why this one, in words.
    """

    name: str
    why: str


def choose_backend(link: LinkSpec, *, controller_delay_ms: float = 0.0) -> Backend:
    """Finds what can make the link, by trying it in this network namespace; touches only ``lo``.

    Raises:
        LinkUnsupported: a back-end that there is not, or that cannot do what is asked here.
    """
    if link.backend not in BACKENDS:
        raise LinkUnsupported(
            f"there is no link back-end {link.backend!r}; there are {', '.join(BACKENDS)}"
        )
    if link.backend == "userspace":
        if problem := tap_problem():
            raise LinkUnsupported(f"the user-space link needs TUN/TAP: {problem}; {TUN_REMEDY}")
        return Backend("userspace", "asked for")
    problem = _kernel_problem(link, controller_delay_ms)
    if link.backend == "kernel":
        if problem is not None:
            raise LinkUnsupported(f"{problem}; or use the link back-end userspace")
        return Backend("kernel", "asked for")
    if problem is None:
        return Backend("kernel", "the kernel can do all that is asked")
    if tun_problem := tap_problem():
        raise LinkUnsupported(
            f"{problem}; or, for the user-space link, {TUN_REMEDY} ({tun_problem})"
        )
    return Backend("userspace", f"the kernel cannot do all that is asked: {problem}")


def _kernel_problem(link: LinkSpec, controller_delay_ms: float) -> str | None:
    """Why the kernel cannot make the link, with the remedy."""
    if problem := qdisc_problem("htb"):
        return f"the kernel has no HTB (module sch_htb): {problem}"
    asked = {
        "delay_ms": link.delay_ms,
        "loss": link.loss,
        "controller delay_ms": controller_delay_ms,
    }
    if any(asked.values()) and (problem := qdisc_problem("netem", "delay", "1ms")):
        wanted = ", ".join(f"{name} = {value}" for name, value in asked.items() if value)
        return f"{wanted} needs netem: {problem}; {NETEM_REMEDY}"
    return None


def netem_options(delay_ms: float, loss: float = 0.0) -> tuple[str, ...]:
    """Arguments for ``tc qdisc add … netem``; empty if nothing is asked."""
    if not (delay_ms or loss):
        return ()
    options = ["limit", str(NETEM_QUEUE_PACKETS)]
    if delay_ms:
        options += ["delay", f"{delay_ms:.3f}ms"]
    if loss:
        options += ["loss", f"{loss * 100:.6f}%"]
    return tuple(options)


def measure(seconds: Sequence[LinkSecond], *, backend: str) -> LinkRecord:
    """How closely the link followed its trace, over all bins behind the warm-up.

    A saturated bin counts with any deviation, another one only with what was delivered too much.
    """
    scored = seconds[WARM_UP_BINS:]
    if not any(bin_.saturated for bin_ in scored):
        scored = seconds
    saturated = [bin_ for bin_ in scored if bin_.saturated]
    asked_bits = sum(bin_.asked_bits for bin_ in saturated)
    if asked_bits <= 0:
        return LinkRecord(backend=backend)
    excess_bits = [bin_.delivered_bits - bin_.asked_bits for bin_ in saturated]
    others = sum(
        max(bin_.delivered_bits - bin_.asked_bits, 0.0) for bin_ in scored if not bin_.saturated
    )
    return LinkRecord(
        backend=backend,
        wire_nmae_1s=(sum(map(abs, excess_bits)) + others) / asked_bits,
        total_error=sum(excess_bits) / asked_bits,
        saturated_s=sum(bin_.end_s - bin_.begin_s for bin_ in saturated),
    )


class LinkProcess:
    """Handle on a process that replays a trace and measures.

    Attributes:
        backend: what makes the link; for the record.
    """

    backend: str

    def __init__(self, body: Callable[[Any, socket.socket, socket.socket], None], job: Any) -> None:
        """Starts the process in this network namespace.

        Args:
            body: takes the job, its end of a socket and this end, which it closes.
            job: handed over.
        """
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self._child: Child = fork_into(None, body, job, theirs, self._control)

    def start(self) -> float:
        """Starts the replay; returns its ``time.monotonic()``."""
        self._send({"start": True})
        began: float = self._receive()["began_s"]
        return began

    def check_alive(self) -> None:
        """Looks after the process while nothing is asked of it.

        Raises:
            ShapingError: it died.
        """
        if not self._child.is_running:
            self._receive()  # its last words, if it had any
            raise ShapingError("the process that replays the trace ended")

    def stop(self) -> LinkMeasurement:
        """Stops the replay and returns what was measured.

        Raises:
            ShapingError: a rate was not taken, or the process died.
        """
        self._send({"stop": True})
        answer = self._receive()
        self._check_answer(answer)
        seconds = tuple(LinkSecond(**second) for second in answer["seconds"])
        return LinkMeasurement(measure(seconds, backend=self.backend), seconds)

    def _check_answer(self, answer: dict[str, Any]) -> None:
        """Compares what the process measured with what else is known; raises ShapingError."""

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> dict[str, Any]:
        received = bytearray()
        while not received.endswith(b"\n"):
            try:
                block = self._control.recv(1 << 16)
            except TimeoutError as error:
                raise ShapingError("the process that replays the trace hangs") from error
            except ConnectionResetError:
                block = b""
            if not block:
                raise ShapingError("the process that replays the trace died")
            received += block
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            raise ShapingError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._control.close()
        self._child.kill()


class Replayer(LinkProcess):
    """Handle on the process that changes the rate of a link of the kernel."""

    backend = "kernel"

    def __init__(self, link: LinkSpec, *, interface: str, client_pid: int, client_interface: str):
        """Shapes the bottleneck and starts the process in this network namespace.

        Until the replay starts, the link has the mean rate of its trace.

        Args:
            link: what to replay.
            interface: the bottleneck, in this namespace.
            client_pid: a process in the client's namespace.
            client_interface: where the client receives.

        Raises:
            ShapingError: the bottleneck could not be set up.
        """
        received = in_network_of(client_pid, ReceiveCounter, client_interface)
        rate = link.trace.mean_mbps * BITS_PER_MEGABIT / BITS_PER_BYTE
        shaped = HtbClass(interface, queue_packets=link.queue_packets, bytes_per_s=clip_rate(rate))
        with shaped, received:
            super().__init__(replay_process, Replay(link.trace, link.start_s, shaped, received))
