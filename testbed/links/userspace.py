"""The user-space link: packets go from one TAP interface to another through a program of ours.

Each link is a pair of TAP interfaces, one in the network of either end. The engine
(``testbed.links.engine``) reads a frame from one and writes it into the other when
``testbed.links.pipe`` says so. It needs no queueing discipline of the kernel.

What the engine says that it handed over is not taken on trust: at the end, the kernel's counters of
the receiving interfaces must say the same, and no packet may have been dropped before it was read.
The engine also leaves a sign of life in shared memory, so that one that stands still is noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from player.trace import BITS_PER_MEGABIT, FloatArray, Trace
from testbed.links.active_queues import (
    CODEL_INTERVAL_S,
    CODEL_TARGET_S,
    PIE_TARGET_S,
    PIE_UPDATE_S,
)
from testbed.links.draws import stream_key
from testbed.links.engine import (
    CHANNEL_BUFFER_BYTES,
    MAX_LINE_BYTES,
    MS_PER_S,
    EngineHandle,
    PipeOrder,
)
from testbed.links.htb import ReceiveCounter, ShapingError
from testbed.links.measurement import LinkMeasurement, LinkSecond, measure
from testbed.links.pipe import PipeRow, PipeSettings
from testbed.links.process import ANSWER_TIMEOUT_S, LinkPorts, Port
from testbed.links.spec import (
    FOREVER_S,
    Direction,
    DirectionSpec,
    GilbertElliott,
    LinkChange,
    LinkSpec,
    constant_trace,
)
from testbed.namespaces import in_network_of
from testbed.traces import opportunities_ms

AQM_DEFAULTS_S = {
    "codel": (CODEL_TARGET_S, CODEL_INTERVAL_S),
    "pie": (PIE_TARGET_S, PIE_UPDATE_S),
    "droptail": (0.0, 0.0),
}
BITS_PER_BYTE = 8


@dataclass(frozen=True, slots=True)
class TapPair:
    """The two ends of a link: descriptors of TAP interfaces.

    Attributes:
        near: the servers' side, or the controller's.
        far: the clients' side.
    """

    near: int
    far: int

    def close(self) -> None:
        """Closes both; the interfaces vanish unless another process holds them."""
        os.close(self.near)
        os.close(self.far)


class UserspaceLink:
    """Handle on one session's links in the engine; a ``process.RunningLink``."""

    backend = "userspace"

    def __init__(
        self,
        link: LinkSpec,
        *,
        engine: EngineHandle,
        media: TapPair,
        controls: Sequence[TapPair] = (),
        controller_delay_ms: float = 0.0,
        ports: LinkPorts | None = None,
    ) -> None:
        """Hands the TAPs over to the engine and closes this process's copies.

        Args:
            link: the bottleneck.
            engine: carries its packets.
            media: the bottleneck's ends.
            controls: ends of links to the controller.
            controller_delay_ms: one-way delay of these.
            ports: where the bottleneck's packets are counted; None trusts the engine.

        Raises:
            ShapingError: the engine died.
        """
        self._link = link
        self._engine = engine
        self._ports = ports
        self._began_s = 0.0
        self._rows: dict[Direction, list[PipeRow]] = {"down": [], "up": []}
        self._rates: dict[Direction, list[tuple[float, Trace | None]]] = {
            name: [(0.0, spec.trace and spec.capacity)] for name, spec in link.directions
        }
        self._heard = b""
        pairs = (media, *controls)
        descriptors = [end for pair in pairs for end in (pair.near, pair.far)]
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(ANSWER_TIMEOUT_S)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER_BYTES)
        try:
            with theirs:
                orders = [_order(0, 1, link.down, "down"), _order(1, 0, link.up, "up")]
                plain = PipeSettings(delay_s=controller_delay_ms / MS_PER_S)
                for near in range(2, len(descriptors), 2):
                    orders += [PipeOrder(near, near + 1, plain), PipeOrder(near + 1, near, plain)]
                engine.attach(theirs, descriptors, orders, link.changes)
        except BaseException:
            self._channel.close()
            raise
        finally:
            for pair in pairs:
                pair.close()

    def start(self) -> float:
        """See ``RunningLink``."""
        self._say({"start": True})
        self._began_s = float(self._listen_for("began_s"))
        return self._began_s

    def change(self, change: LinkChange) -> None:
        """See ``RunningLink``."""
        self._say({"change": dataclasses.asdict(change)})
        self._listen_for("changed")

    def check_alive(self) -> None:
        """See ``RunningLink``; to be called about twice a second.

        Raises:
            ShapingError: the engine died or stands still, or an interface failed.
        """
        self._engine.check_alive()
        self._channel.setblocking(False)
        try:
            while True:
                self._receive()
        except BlockingIOError:
            pass
        finally:
            self._channel.settimeout(ANSWER_TIMEOUT_S)

    def stop(self) -> LinkMeasurement:
        """See ``RunningLink``."""
        self._say({"stop": True})
        delivered = self._listen_for("stopped")
        if self._ports is not None:
            self._check_counters(self._ports, delivered)
        seconds = [
            self._second(number, direction, row)
            for direction, rows in self._rows.items()
            for number, row in enumerate(rows)
        ]
        return LinkMeasurement(measure(seconds, backend=self.backend), tuple(seconds))

    def close(self) -> None:
        """Ends the link; its interfaces vanish, even if a forked process holds the channel too."""
        with contextlib.suppress(OSError):  # it was closed before
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    def _listen_for(self, key: str) -> Any:
        while True:
            for message in self._receive():
                if key in message:
                    return message[key]

    def _receive(self) -> list[dict[str, Any]]:
        """Reads some messages, notes what is in them and returns them.

        Raises:
            ShapingError: the engine died or hangs, or says that something is wrong.
        """
        try:
            block = self._channel.recv(MAX_LINE_BYTES)
        except TimeoutError as error:
            raise ShapingError("the engine of the user-space links hangs") from error
        except ConnectionResetError:
            block = b""
        if not block:
            raise ShapingError("the engine of the user-space links died")
        *lines, self._heard = (self._heard + block).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            match message:
                case {"error": str(problem)}:
                    raise ShapingError(problem)
                case {"row": [direction, *values]}:
                    self._rows[direction].append(PipeRow(*values))
                case {"changed": [at_s, direction, rate_mbps]} if rate_mbps is not None:
                    for name in self._rates if direction is None else (direction,):
                        self._rates[name].append((at_s, constant_trace(rate_mbps)))
        return messages

    def _check_counters(self, ports: LinkPorts, delivered: dict[str, int]) -> None:
        unread = 0
        for direction, port in (("down", ports.down_receiver), ("up", ports.up_receiver)):
            with _counter(port) as counter:
                received, _ = counter.read()
                unread += counter.read_unsent()
            if received != delivered[direction]:  # the interface is as old as the link
                raise ShapingError(
                    f"the user-space link delivered {delivered[direction]} packets {direction}, "
                    f"the interface {port.interface} received {received}"
                )
        if unread:
            raise ShapingError(f"the user-space link was too slow to read {unread} packets")

    def _second(self, number: int, direction: Direction, row: PipeRow) -> LinkSecond:
        return LinkSecond(
            second=number,
            begin_s=row.begin_s - self._began_s,
            end_s=row.end_s - self._began_s,
            asked_bits=self._asked_bits(direction, row.begin_s, row.end_s),
            delivered_bits=float(row.delivered_bytes * BITS_PER_BYTE),
            saturated=row.saturated,
            backlog_packets=row.backlog_packets,
            drops=row.drops,
            late_s=row.late_s,
            direction=direction,
            backlog_bytes=row.backlog_bytes,
            losses=row.losses,
            aqm_drops=row.aqm_drops,
            marks=row.marks,
            duplicates=row.duplicates,
            delay_p50_ms=_delay_ms(row.delay_p50_s),
            delay_p95_ms=_delay_ms(row.delay_p95_s),
            delay_p99_ms=_delay_ms(row.delay_p99_s),
        )

    def _asked_bits(self, direction: Direction, from_s: float, to_s: float) -> float:
        """Integral of what the direction was to follow between two moments."""
        spec = self._link.down if direction == "down" else self._link.up
        rates = self._rates[direction]
        if spec.trace is None:
            return 0.0
        bits = 0.0
        for (since_s, trace), (until_s, _) in zip(
            rates, [*rates[1:], (float("inf"), None)], strict=True
        ):
            begin_s, end_s = max(from_s, since_s), min(to_s, until_s)
            if trace is not None and begin_s < end_s:
                moments = np.array([begin_s, end_s]) - self._began_s + spec.start_s
                bits += float(np.diff(trace.bits_until(moments))[0])
        return bits


def _delay_ms(delay_s: float) -> float | None:
    return delay_s * MS_PER_S if delay_s >= 0.0 else None


def _counter(port: Port) -> ReceiveCounter:
    if port.pid is None:
        return ReceiveCounter(port.interface)
    return in_network_of(port.pid, ReceiveCounter, port.interface)


def _order(source: int, sink: int, spec: DirectionSpec, direction: Direction) -> PipeOrder:
    arrays, settings = _arrays(spec), _settings(spec, direction)
    if "opportunities_s" in arrays:
        loops = spec.at_end == "loop"
        duration_s = float(arrays["opportunities_s"][-1]) if loops else FOREVER_S
        settings = dataclasses.replace(settings, duration_s=duration_s)
    return PipeOrder(source, sink, settings, arrays=arrays, direction=direction)


def _settings(spec: DirectionSpec, direction: Direction) -> PipeSettings:
    loss = spec.loss
    if not isinstance(loss, GilbertElliott):
        loss = GilbertElliott(to_bad=0.0, to_good=1.0, loss_good=loss)
    target_s, interval_s = AQM_DEFAULTS_S[spec.queue.kind]
    if spec.queue.target_ms is not None:
        target_s = spec.queue.target_ms / MS_PER_S
    if spec.queue.interval_ms is not None:
        interval_s = spec.queue.interval_ms / MS_PER_S
    seed = f"{spec.seed}/{direction}"
    return PipeSettings(
        delay_s=spec.delay_ms / MS_PER_S,
        jitter_s=spec.jitter_ms / MS_PER_S,
        is_normal=spec.jitter == "normal",
        may_reorder=spec.reorder,
        loss_good=loss.loss_good,
        loss_bad=loss.loss_bad,
        to_bad=loss.to_bad,
        to_good=loss.to_good,
        duplicate=spec.duplicate,
        has_bottleneck=spec.trace is not None,
        mean_bits_per_s=(spec.mean_mbps or 0.0) * BITS_PER_MEGABIT,
        start_s=spec.start_s,
        queue=spec.queue.kind,
        limit_packets=spec.queue.packets,
        limit_bytes=spec.queue.size_bytes or 0,
        ecn=spec.queue.ecn,
        target_s=target_s,
        interval_s=interval_s,
        loss_key=stream_key(seed, "loss"),
        burst_key=stream_key(seed, "burst"),
        jitter_key=stream_key(seed, "jitter"),
        duplicate_key=stream_key(seed, "duplicate"),
        pie_key=stream_key(seed, "pie"),
    )


def _arrays(spec: DirectionSpec) -> dict[str, FloatArray]:
    trace = spec.capacity
    if trace is None or spec.trace is None:
        return {}
    if spec.replay == "opportunities":
        return {"opportunities_s": opportunities_ms(spec.trace) / MS_PER_S}
    speeds = trace.steps_mbps * BITS_PER_MEGABIT
    bits = np.concatenate(([0.0], np.cumsum(np.diff(trace.edges_s) * speeds)))
    return {"edges_s": trace.edges_s, "cumulative_bits": bits, "speeds": speeds}
