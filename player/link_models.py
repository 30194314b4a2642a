"""Models of a link that replays a trace, for the simulated driver.

A model turns a chunk size and a position in the trace into a download time. It keeps no state,
so that a search over the future (the ``oracle`` controller) evaluates it on arrays as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from player.trace import FloatArray, Trace

BITS_PER_BYTE = 8


@dataclass(frozen=True, slots=True)
class Download:
    """Outcome of one download, arrays element by element.

    Attributes:
        download_s: from request to last byte.
        moved_s: how far the position in the trace moves on meanwhile.
    """

    download_s: FloatArray | float
    moved_s: FloatArray | float


class LinkModel(Protocol):
    """What the simulated driver asks of a link."""

    @property
    def trace(self) -> Trace:
        """The trace that the link replays."""
        ...

    def download(
        self,
        size_bytes: FloatArray | float,
        position_s: FloatArray | float,
        idle_s: FloatArray | float = 0.0,
    ) -> Download:
        """Downloads ``size_bytes`` from ``position_s`` on, after ``idle_s`` of silence."""
        ...

    def connect(self) -> Download:
        """What a new connection takes before a request can be sent."""
        ...


@dataclass(frozen=True)
class PensieveLink:
    """The link of Pensieve's simulator (Mao et al., SIGCOMM 2017, ``fixed_env``).

    95 % of the capacity is payload, and every chunk costs one fixed round trip during which the
    trace stands still, as it does there.
    """

    trace: Trace
    payload_fraction: float = 0.95
    rtt_s: float = 0.080

    def download(
        self,
        size_bytes: FloatArray | float,
        position_s: FloatArray | float,
        idle_s: FloatArray | float = 0.0,
    ) -> Download:
        """See :class:`LinkModel`; silence does not matter here."""
        wire_bits = size_bytes * BITS_PER_BYTE / self.payload_fraction
        moved_s = self.trace.transfer_s(wire_bits, position_s)
        return Download(moved_s + self.rtt_s, moved_s)

    def connect(self) -> Download:
        """One more round trip, in which the trace stands still as well."""
        return Download(self.rtt_s, 0.0)


@dataclass(frozen=True)
class TcpLink:
    """One persistent TCP connection over the link, in fluid form.

    A request takes one round trip until the first byte is back. On a connection that was silent
    for longer than a retransmission time-out, the congestion window starts again at ten segments
    (RFC 6928) and doubles each round trip (RFC 5681) until it fills the link; after that the
    bottleneck is busy to the last byte. Headers of IP, TCP with time stamps, and HTTP count.

    Attributes:
        trace: layer-3 capacity.
        delay_s: one-way propagation delay.
    """

    trace: Trace
    delay_s: float = 0.0

    SEGMENT_BYTES = 1448  # payload of a 1,500-byte packet: 20 IP, 20 TCP, 12 time stamps
    PACKET_BYTES = 1500
    INITIAL_WINDOW = 10
    RESPONSE_HEADER_BYTES = 450
    MIN_TIMEOUT_S = 0.2  # Linux TCP_RTO_MIN

    def download(
        self,
        size_bytes: FloatArray | float,
        position_s: FloatArray | float,
        idle_s: FloatArray | float = 0.0,
    ) -> Download:
        """See :class:`LinkModel`."""
        payload = size_bytes + self.RESPONSE_HEADER_BYTES
        wire_bits = payload * (self.PACKET_BYTES / self.SEGMENT_BYTES) * BITS_PER_BYTE
        rtt_s = 2 * self.delay_s
        sending_from = position_s + rtt_s
        lost_s: FloatArray | float = 0.0
        if rtt_s > 0:
            is_cold = np.asarray(idle_s) > self.MIN_TIMEOUT_S + rtt_s
            if is_cold.any():
                lost_s = is_cold * self._slow_start_loss_s(wire_bits, sending_from, rtt_s)
        moved_s = rtt_s + lost_s + self.trace.transfer_s(wire_bits, sending_from + lost_s)
        return Download(moved_s, moved_s)

    def connect(self) -> Download:
        """The handshake: one round trip."""
        return Download(2 * self.delay_s, 2 * self.delay_s)

    def _slow_start_loss_s(
        self, wire_bits: FloatArray | float, sending_from: FloatArray | float, rtt_s: float
    ) -> FloatArray:
        """Time the link stands idle between the rounds of slow start."""
        lost = np.zeros(np.broadcast(wire_bits, sending_from).shape)
        sent = np.zeros_like(lost)
        window = self.INITIAL_WINDOW * self.PACKET_BYTES * float(BITS_PER_BYTE)
        while True:
            busy_s = self.trace.transfer_s(window, sending_from + lost)
            gap_s = np.where(sent + window < wire_bits, np.maximum(rtt_s - busy_s, 0.0), 0.0)
            if not gap_s.any():
                return lost
            lost += gap_s
            sent += window
            window *= 2
