"""A link that several downloads share, for the simulated driver of the tiled player.

The fluid form of ``player/link_models.py`` for parallel connections: the trace's capacity is shared
equally by all transfers that have something to send. Every request waits one round trip for its
first byte. Over TCP a connection sends a window of segments, then waits for the round trip to pass
before it sends the next, twice as large (RFC 5681); the window begins at ten segments (RFC 6928)
and again after a silence longer than a retransmission time-out. A window that the link needs longer
than a round trip for never waits: from there on the bottleneck, not TCP, sets the pace. Losses are
not modelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from player.link_models import BITS_PER_BYTE, PensieveLink, TcpLink
from player.trace import Trace

#: Less is left of a transfer only by rounding.
ROUNDING_BITS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLinkModel:
    """What a link and the connections over it are like.

    Attributes:
        trace: layer-3 capacity.
        rtt_s: from a request to the first byte of its answer on an idle link.
        wire_ratio: bytes on the wire per byte of payload.
        header_bytes: of an answer, payload to TCP.
        initial_window_bytes: wire bytes that a cold connection sends in its first round trip;
            infinite: there is no slow start.
        idle_limit_s: after such a silence a connection is cold again.
    """

    trace: Trace
    rtt_s: float
    wire_ratio: float = 1.0
    header_bytes: int = 0
    initial_window_bytes: float = math.inf
    idle_limit_s: float = math.inf

    @classmethod
    def tcp(cls, trace: Trace, delay_s: float = 0.0) -> SharedLinkModel:
        """As :class:`player.link_models.TcpLink`, with its constants."""
        return cls(
            trace=trace,
            rtt_s=2 * delay_s,
            wire_ratio=TcpLink.PACKET_BYTES / TcpLink.SEGMENT_BYTES,
            header_bytes=TcpLink.RESPONSE_HEADER_BYTES,
            initial_window_bytes=TcpLink.INITIAL_WINDOW * TcpLink.PACKET_BYTES,
            idle_limit_s=TcpLink.MIN_TIMEOUT_S + 2 * delay_s,
        )

    @classmethod
    def pensieve(cls, trace: Trace) -> SharedLinkModel:
        """As :class:`player.link_models.PensieveLink`: 80 ms per request, 95 % payload.

        There the trace stands still during a round trip; here, with others downloading, it goes on.
        """
        link = PensieveLink(trace)
        return cls(trace=trace, rtt_s=link.rtt_s, wire_ratio=1 / link.payload_fraction)


@dataclass(frozen=True, slots=True)
class Finished:
    """A download is in.

    Attributes:
        connection: on which.
        first_byte_s: when its first byte came.
        at_s: when its last byte came.
    """

    connection: int
    first_byte_s: float
    at_s: float


@dataclass(slots=True)
class _Transfer:
    """A download; ``left_bits`` of the current window, ``behind_bits`` of later ones."""

    connection: int
    first_byte_s: float
    begins_s: float
    left_bits: float
    behind_bits: float


@dataclass(slots=True)
class _Connection:
    window_bits: float
    last_byte_s: float = -math.inf


class SharedLink:
    """Downloads over one link; time only moves in :meth:`run`."""

    def __init__(self, model: SharedLinkModel, connections: int, *, start_s: float = 0.0) -> None:
        """Connections that are open and cold.

        Args:
            model: of the link.
            connections: how many there are.
            start_s: position in the trace at time 0.
        """
        self._model = model
        self._start_s = start_s
        self._clock_s = 0.0
        self._initial_bits = model.initial_window_bytes * BITS_PER_BYTE
        self._connections = [_Connection(self._initial_bits) for _ in range(connections)]
        self._waiting: list[_Transfer] = []
        self._sending: list[_Transfer] = []

    def begin(self, connection: int, size_bytes: int) -> None:
        """Requests ``size_bytes`` now on a connection that has nothing to do."""
        model, state = self._model, self._connections[connection]
        if self._clock_s - state.last_byte_s > model.idle_limit_s:
            state.window_bits = self._initial_bits
        bits = (size_bytes + model.header_bytes) * model.wire_ratio * BITS_PER_BYTE
        first_byte_s = self._clock_s + model.rtt_s
        transfer = _Transfer(connection, first_byte_s, first_byte_s, 0.0, bits)
        self._next_window(transfer)
        self._waiting.append(transfer)

    def run(self, until_s: float) -> Finished | None:
        """Lets time pass until a download is in, or until ``until_s`` if none is before.

        Returns:
            The download, or None; several at the same time come one after the other.
        """
        while True:
            finished = self._pop_finished()
            if finished is not None:
                return finished
            begins_s = min((one.begins_s for one in self._waiting), default=math.inf)
            event_s = min(until_s, begins_s)
            ends_s = math.inf
            if self._sending:
                least_bits = min(one.left_bits for one in self._sending)
                ends_s = self._clock_s + self._transfer_s(least_bits * len(self._sending))
                if ends_s <= event_s:
                    self._send(least_bits)
                    self._clock_s = ends_s
                    continue
            if math.isinf(event_s):
                return None
            if self._sending:
                position_s = self._start_s + self._clock_s
                trace = self._model.trace
                bits = trace.bits_until(position_s + event_s - self._clock_s) - trace.bits_until(
                    position_s
                )
                self._send(min(float(bits) / len(self._sending), least_bits))
            self._clock_s = event_s
            began = [one for one in self._waiting if one.begins_s <= event_s]
            if not began and event_s >= until_s:
                return None
            self._waiting = [one for one in self._waiting if one.begins_s > event_s]
            self._sending.extend(began)

    def _transfer_s(self, bits: float) -> float:
        return self._model.trace.transfer_s(float(bits), float(self._start_s + self._clock_s))

    def _send(self, bits: float) -> None:
        for one in self._sending:
            one.left_bits -= bits

    def _pop_finished(self) -> Finished | None:
        """Ends windows that are sent; the first transfer that this completes, if any."""
        for one in self._sending:
            if one.left_bits > ROUNDING_BITS:
                continue
            self._sending.remove(one)
            if one.behind_bits > 0:
                one.begins_s = max(self._clock_s, one.begins_s + self._model.rtt_s)
                self._connections[one.connection].window_bits *= 2
                self._next_window(one)
                (self._sending if one.begins_s <= self._clock_s else self._waiting).append(one)
                return self._pop_finished()
            self._connections[one.connection].last_byte_s = self._clock_s
            return Finished(one.connection, one.first_byte_s, self._clock_s)
        return None

    def _next_window(self, transfer: _Transfer) -> None:
        window_bits = self._connections[transfer.connection].window_bits
        transfer.left_bits = min(window_bits, transfer.behind_bits)
        transfer.behind_bits -= transfer.left_bits
