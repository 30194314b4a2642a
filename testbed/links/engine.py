"""The engine: one process that carries the packets of all user-space links of a sandbox.

A session hands over the descriptors of its TAP interfaces, a socket of its own to talk about them
(the channel), and a file in memory that says what each direction does. When the channel is closed,
because the session ended or died, the engine closes the interfaces, and they vanish.

On a channel both sides write one JSON document per line. The session says ``{"start": true}``,
``{"change": {…}}`` and ``{"stop": true}``; the engine answers ``{"began_s": …}``,
``{"changed": …}`` and ``{"stopped": {direction: packets}}``, tells every bin in between as
``{"row": […]}``, and what went wrong as ``{"error": …}``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from player.trace import BITS_PER_MEGABIT, FloatArray
from testbed.links.carrier import Carrier
from testbed.links.compiled import best_carrier
from testbed.links.heartbeat import BEAT_S, Heartbeat
from testbed.links.htb import ShapingError
from testbed.links.pipe import PipeSettings, TraceArrays
from testbed.links.process import ANSWER_TIMEOUT_S
from testbed.links.replay import REAL_TIME_PRIORITY
from testbed.links.spec import DIRECTIONS, Direction, LinkChange
from testbed.namespaces import Child, fork_into, set_timer_slack_ns

MAX_DESCRIPTORS = 250  # that go over a socket at once: SCM_MAX_FD is 253
MAX_LINE_BYTES = 1 << 16
CHANNEL_BUFFER_BYTES = 1 << 20  # rows wait here until the session reads them
MS_PER_S = 1000.0
_LENGTH = struct.Struct("=Q")
_ARRAYS = ("edges_s", "cumulative_bits", "speeds", "opportunities_s")
_DOUBLE_BYTES = 8


@dataclass(frozen=True)
class PipeOrder:
    """One direction that the engine is to carry.

    Attributes:
        source: number of the descriptor, among those handed over, that frames are read from.
        sink: likewise, that they are written to.
        settings: what happens to them.
        arrays: what the bottleneck follows, by the names of ``TraceArrays``.
        direction: of the link that is measured; None for another one beside it.
    """

    source: int
    sink: int
    settings: PipeSettings
    arrays: Mapping[str, FloatArray] = field(default_factory=dict)
    direction: Direction | None = None


class EngineHandle:
    """How the other processes of the sandbox, forked later, reach the engine."""

    def __init__(self, child: Child, control: socket.socket, heart: Heartbeat) -> None:
        self._child = child
        self._control = control
        self._heart = heart

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._child.pid

    def fileno(self) -> int:
        """A descriptor that becomes readable when the engine dies."""
        return self._child.fileno()

    def check_alive(self) -> None:
        """Looks whether the engine lives; to be called about twice a second.

        Raises:
            ShapingError: it died or stands still.
        """
        if select.select([self], [], [], 0)[0]:
            raise ShapingError("the engine of the user-space links died")
        self._heart.check()

    def attach(
        self,
        channel: socket.socket,
        descriptors: Sequence[int],
        orders: Sequence[PipeOrder],
        changes: Sequence[LinkChange],
    ) -> None:
        """Hands a link over; the caller keeps its own copies of all descriptors.

        Raises:
            ShapingError: the engine died or hangs, or there are too many descriptors.
        """
        if len(descriptors) > MAX_DESCRIPTORS:
            raise ShapingError(
                f"a session has {len(descriptors)} interfaces in user space, "
                f"more than {MAX_DESCRIPTORS}; use fewer clients or controller_link.delay_ms = 0"
            )
        blueprint = _write_blueprint(orders, changes)
        try:
            socket.send_fds(self._control, [b"link"], [channel.fileno(), blueprint, *descriptors])
        except TimeoutError as error:
            raise ShapingError("the engine of the user-space links hangs") from error
        except OSError as error:
            raise ShapingError(f"the engine of the user-space links died: {error}") from error
        finally:
            os.close(blueprint)


@contextlib.contextmanager
def engine_process() -> Iterator[EngineHandle]:
    """The engine, in a process of its own, for as long as the context lasts.

    Processes that are forked inside the context can use the handle too.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(ANSWER_TIMEOUT_S)
    heart = Heartbeat("the engine of the user-space links")
    with ours:
        with theirs:
            child = fork_into(None, link_engine, theirs, ours, heart)
        with child:
            yield EngineHandle(child, ours, heart)
    heart.close()


def link_engine(control: socket.socket, parents_end: socket.socket, heart: Heartbeat) -> None:
    """Body of the process."""
    parents_end.close()  # or the end of the sandbox could not be seen
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # it holds those of all sessions
    with contextlib.suppress(ValueError):  # more than this kernel lets anyone have
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    carrier = best_carrier()
    gc.disable()
    gc.freeze()
    set_timer_slack_ns(1)
    with contextlib.suppress(PermissionError):  # only root outside of user namespaces
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))
    Engine(carrier, control, heart).run()


@dataclass
class _Link:
    """A link that a session handed over."""

    channel: socket.socket
    descriptors: list[int]
    pipes: dict[int, Direction | None]
    changes: list[LinkChange]
    began_s: float | None = None
    heard: bytes = b""
    unsaid: bytes = b""

    def measured(self) -> Iterator[tuple[int, Direction]]:
        """The pipes that are measured."""
        for pipe, direction in self.pipes.items():
            if direction is not None:
                yield pipe, direction

    def say(self, **message: object) -> None:
        """Tells the session; what it does not read in time waits here."""
        self.unsaid += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as it goes."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsaid:
                self.unsaid = self.unsaid[self.channel.send(self.unsaid) :]


class Engine:
    """Carries packets until nobody holds the other end of its control socket."""

    def __init__(self, carrier: Carrier, control: socket.socket, heart: Heartbeat) -> None:
        self._carrier = carrier
        self._control = control
        self._heart = heart
        self._links: dict[int, _Link] = {}  # by the descriptor of the channel
        self._owners: dict[int, _Link] = {}  # by the number of the pipe

    def run(self) -> None:
        """The loop."""
        carrier, control = self._carrier, self._control.fileno()
        carrier.watch(control)
        while True:
            now_s = time.monotonic()
            self._heart.beat(now_s)
            for descriptor in carrier.run(min(now_s + BEAT_S, self._next_change_s())):
                if descriptor != control:
                    self._hear(self._links[descriptor])
                elif not self._attach():
                    return
            for pipe, row in carrier.take_rows():
                owner = self._owners[pipe]
                if (direction := owner.pipes[pipe]) is not None:
                    owner.say(row=[direction, *row])
            for pipe, why in carrier.take_broken():
                self._owners[pipe].say(error=f"the user-space link {why}")
            self._change_in_time()

    def _attach(self) -> bool:
        """Takes a link over; False when there will not be any more."""
        data, descriptors, flags, _ = socket.recv_fds(self._control, 16, MAX_DESCRIPTORS + 2)
        if not data:
            return False
        if flags & socket.MSG_CTRUNC:  # no more descriptors: this session fails, not the others
            for descriptor in descriptors:
                os.close(descriptor)
            return True
        channel_fd, blueprint, *own = descriptors
        channel = socket.socket(fileno=channel_fd)
        channel.setblocking(False)
        try:
            orders, changes = _read_blueprint(blueprint)
        finally:
            os.close(blueprint)
        pipes = {}
        for order, arrays in orders:
            number = self._carrier.add(own[order.source], own[order.sink], order.settings, arrays)
            pipes[number] = order.direction
        link = _Link(channel, own, pipes, changes)
        self._links[channel_fd] = link
        self._owners.update(dict.fromkeys(pipes, link))
        self._carrier.watch(channel_fd)
        return True

    def _hear(self, link: _Link) -> None:
        try:
            block = link.channel.recv(MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            block = b""
        if not block:
            self._detach(link)
            return
        *lines, link.heard = (link.heard + block).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"start": True}:
                    self._start(link)
                case {"change": change}:
                    self._change(link, LinkChange(**change), time.monotonic())
                case {"stop": True}:
                    self._stop(link)

    def _start(self, link: _Link) -> None:
        link.began_s = time.monotonic()
        for pipe in link.pipes:
            self._carrier.start(pipe, link.began_s)
        link.say(began_s=link.began_s)

    def _stop(self, link: _Link) -> None:
        now_s = time.monotonic()
        delivered = {
            direction: self._carrier.finish(pipe, now_s) for pipe, direction in link.measured()
        }
        for pipe, row in self._carrier.take_rows():
            owner = self._owners[pipe]
            if owner.pipes[pipe] is not None:
                owner.say(row=[owner.pipes[pipe], *row])
        link.say(stopped=delivered)

    def _detach(self, link: _Link) -> None:
        self._carrier.unwatch(link.channel.fileno())
        for pipe in link.pipes:
            self._carrier.remove(pipe)
            del self._owners[pipe]
        for descriptor in link.descriptors:
            os.close(descriptor)
        del self._links[link.channel.fileno()]
        link.channel.close()

    def _next_change_s(self) -> float:
        return min(
            (
                link.began_s + link.changes[0].at_s
                for link in self._links.values()
                if link.began_s is not None and link.changes
            ),
            default=float("inf"),
        )

    def _change_in_time(self) -> None:
        now_s = time.monotonic()
        for link in self._links.values():
            if link.unsaid:
                link.flush()
            while (
                link.began_s is not None
                and link.changes
                and (due_s := link.began_s + link.changes[0].at_s) <= now_s
            ):
                self._change(link, link.changes.pop(0), due_s)

    def _change(self, link: _Link, change: LinkChange, at_s: float) -> None:
        for pipe, direction in link.measured():
            if change.direction in (None, direction):
                self._carrier.change(
                    pipe,
                    at_s,
                    bits_per_s=_scaled(change.rate_mbps, BITS_PER_MEGABIT),
                    delay_s=_scaled(change.delay_ms, 1.0 / MS_PER_S),
                    loss=change.loss,
                )
        link.say(changed=[at_s, change.direction, change.rate_mbps])


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _write_blueprint(orders: Sequence[PipeOrder], changes: Sequence[LinkChange]) -> int:
    """A file in memory: length of the text, the text (JSON), and the arrays one after the other."""
    blocks: list[bytes] = []
    pipes = []
    for order in orders:
        pipe: dict[str, Any] = {
            "source": order.source,
            "sink": order.sink,
            "direction": order.direction,
            "settings": dataclasses.asdict(order.settings),
        }
        for name in _ARRAYS:
            values = np.ascontiguousarray(order.arrays.get(name, ()), dtype=np.float64)
            pipe[name] = len(values)
            blocks.append(values.tobytes())
        pipes.append(pipe)
    document = {"pipes": pipes, "changes": [dataclasses.asdict(change) for change in changes]}
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % _DOUBLE_BYTES)
    descriptor = os.memfd_create("link", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(b"".join([_LENGTH.pack(len(text)), text, *blocks]))
    return descriptor


def _read_blueprint(
    descriptor: int,
) -> tuple[list[tuple[PipeOrder, TraceArrays]], list[LinkChange]]:
    """Inverse of :func:`_write_blueprint`; the arrays stay where they are, nothing is parsed."""
    view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    (length,) = _LENGTH.unpack_from(view)
    at = _LENGTH.size + length
    document = json.loads(bytes(view[_LENGTH.size : at]))
    orders = []
    for pipe in document["pipes"]:
        arrays: dict[str, Sequence[float]] = {}
        for name in _ARRAYS:
            end = at + pipe[name] * _DOUBLE_BYTES
            arrays[name] = view[at:end].cast("d")
            at = end
        direction = pipe["direction"] if pipe["direction"] in DIRECTIONS else None
        settings = PipeSettings(**pipe["settings"])
        order = PipeOrder(pipe["source"], pipe["sink"], settings, direction=direction)
        orders.append((order, TraceArrays(**arrays)))
    return orders, [LinkChange(**change) for change in document["changes"]]
