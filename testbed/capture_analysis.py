"""What a packet capture says about each TCP connection and about the questions to a controller.

The capture was made at the client (:mod:`testbed.capture`). What one end can know:

* Round-trip times come from TCP timestamps (RFC 7323, section 4): from the first packet that leaves
  with a TSval to the first that comes back with it as TSecr, one sample per value, as in Nichols'
  pping (https://pollere.net/pping). They include the queues on the way, and the time that the other
  end takes until it has something to send. The handshake gives one sample of its own.
* Packets lost on the way to the client are not in the capture. A gap in the sequence numbers that
  is filled later is a retransmission, unless the filling packet was sent no later than the one
  behind the gap, by its TSval; then it was overtaken. (Without timestamps: if it follows within the
  round-trip time of the handshake, or 3 ms where that is not known.) Bytes that come once more are
  a retransmission that was not necessary. A packet lost at the end of what there is to send leaves
  no gap, so its retransmission looks like a first transmission. Packets that the capture itself
  lost look like packets lost on the way.
* On the way from the client every retransmission is seen, whether it was necessary or not.

scapy reads the file. The headers of the packets are taken apart with ``struct`` (see
:mod:`testbed.tcp_segments`), which takes a small part of the time that scapy needs for that.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import re
import socket
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from player.records import CaptureEnding, CaptureRecord, ConnectionRecord
from testbed.pcapng import (
    LINKTYPE_ETHERNET,
    NANOSECONDS_PER_S,
    OUTBOUND,
    SECTION_MAGIC,
    STATISTICS_BLOCK,
    InterfaceStatistics,
    read_statistics,
)
from testbed.tcp_segments import ACK, SYN, Echoes, Segment, Stream

MAX_FILE_BYTES = 1 << 30
NANOSECONDS_PER_MS = 1_000_000
BITS_PER_BYTE, BITS_PER_KILOBIT = 8, 1000

_REQUEST = re.compile(rb"[A-Z]{3,7} \S+ HTTP/1\.[01]\r\n")
_RESPONSE_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_HEADERS_END = b"\r\n\r\n"


class CaptureFormatError(ValueError):
    """A file is not a packet capture that can be read, or too large."""


def analyse(path: Path, *, controllers: Collection[tuple[str, int]]) -> CaptureRecord:
    """What the capture in a file says; one that was cut off is read as far as it goes.

    Args:
        path: a pcapng file, made at the client.
        controllers: addresses and ports of controllers; exchanges are looked for there.

    Raises:
        OSError: the file cannot be read.
        CaptureFormatError: it is not a pcapng file of Ethernet packets, or larger than
            MAX_FILE_BYTES.
    """
    statistics: list[InterfaceStatistics] = []
    connections = _Connections(controllers)
    packets = other_packets = 0
    for packet in _read_packets(path, statistics):
        packets += 1
        segment = Segment.read(packet.frame)
        if segment is None:
            other_packets += 1
        else:
            connections.take(segment, packet)
    exchanges = connections.exchanges()
    answered = sorted(answer for exchange in exchanges for answer in exchange.answered)
    return CaptureRecord(
        ending=_ending(statistics),
        packets=packets,
        dropped_packets=sum(each.dropped for each in statistics) if statistics else None,
        other_packets=other_packets + connections.remnant_packets(),
        connections=connections.records(),
        exchanges_ms=tuple(took_ns / NANOSECONDS_PER_MS for _, took_ns in answered),
        unanswered=sum(exchange.unanswered for exchange in exchanges),
    )


def _ending(statistics: Sequence[InterfaceStatistics]) -> CaptureEnding:
    if not statistics:
        return "torn"
    return "full" if any(each.comment for each in statistics) else "complete"


# ---- the file -----------------------------------------------------------------------------------


class _Packet(NamedTuple):
    """A packet of the file: when (since 1970), what is kept of it, and which way, if known."""

    time_ns: int
    frame: bytes
    is_outbound: bool | None


def _read_packets(path: Path, statistics: list[InterfaceStatistics]) -> Iterator[_Packet]:
    """The packets; what the file says of its interfaces is added to ``statistics``."""

    def note(body: bytes, _: int) -> None:
        try:
            statistics.append(read_statistics(body))
        except ValueError as error:
            raise CaptureFormatError(f"{path}: {error}") from error

    with _quiet_scapy(), _mapped(path) as file:
        from scapy.error import Scapy_Exception  # takes a while, and few need it
        from scapy.utils import RawPcapNgReader

        try:
            reader: Any = RawPcapNgReader(file)  # type: ignore[arg-type] # it takes files too
            reader.blocktypes[STATISTICS_BLOCK] = note
            for frame, about in reader:
                if about.linktype != LINKTYPE_ETHERNET:
                    raise CaptureFormatError(f"{path}: link type {about.linktype}, not Ethernet")
                ticks = ((about.tshigh or 0) << 32) + (about.tslow or 0)
                time_ns = ticks * NANOSECONDS_PER_S // about.tsresol
                is_outbound = about.direction == OUTBOUND if about.direction else None
                yield _Packet(time_ns, frame, is_outbound)
        except Scapy_Exception as error:
            raise CaptureFormatError(f"{path}: {error}") from error


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file in memory: a length in it that is wrong cannot ask for more than there is."""
    with path.open("rb") as file:
        magic = file.read(len(SECTION_MAGIC))
        if magic != SECTION_MAGIC:
            raise CaptureFormatError(f"{path} is no pcapng file: it begins with {magic!r}")
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise CaptureFormatError(f"{path} has {size_bytes} bytes, more than {MAX_FILE_BYTES}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


@contextlib.contextmanager
def _quiet_scapy() -> Iterator[None]:
    """What scapy says about the machine when it is loaded, and about torn files, is known here."""
    loggers = [logging.getLogger(f"scapy.{name}") for name in ("loading", "runtime")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---- connections --------------------------------------------------------------------------------

Endpoint = tuple[bytes, int]


class _Connections:
    """All connections of a capture."""

    def __init__(self, controllers: Collection[tuple[str, int]]) -> None:
        self._controllers = {(socket.inet_aton(address), port) for address, port in controllers}
        self._current: dict[tuple[Endpoint, Endpoint], _Connection] = {}
        self._all: list[_Connection] = []

    def take(self, segment: Segment, packet: _Packet) -> None:
        """Hands a packet to its connection; one whose way is not known begins a connection."""
        ends = (segment.source, segment.destination)
        back = (segment.destination, segment.source)
        is_up = ends in self._current or (
            back not in self._current and packet.is_outbound is not False
        )
        client, server = ends if is_up else back
        connection = self._current.get((client, server))
        if connection is None or (is_up and connection.is_opened_again(segment)):
            is_controller = server in self._controllers
            connection = _Connection(client, server, packet.time_ns, is_controller=is_controller)
            self._current[client, server] = connection
            self._all.append(connection)
        connection.take(segment, packet, is_up=is_up)

    def exchanges(self) -> list[Exchanges]:
        """Of all connections to controllers, none left open."""
        found = [connection.exchanges for connection in self._all if connection.exchanges]
        for exchanges in found:
            exchanges.finish()
        return found

    def remnant_packets(self) -> int:
        """Packets of connections that were over when the capture began."""
        return sum(connection.packets for connection in self._all if connection.is_remnant)

    def records(self) -> tuple[ConnectionRecord, ...]:
        """In the order in which they began; times count from the first of them."""
        found = (connection for connection in self._all if not connection.is_remnant)
        ordered = sorted(found, key=lambda connection: connection.began_ns)
        return tuple(connection.record(ordered[0].began_ns) for connection in ordered)


class _Connection:
    """One TCP connection: what has been seen so far."""

    def __init__(
        self, client: Endpoint, server: Endpoint, began_ns: int, *, is_controller: bool
    ) -> None:
        self.began_ns = self._last_ns = began_ns
        self.exchanges = Exchanges() if is_controller else None
        self._client, self._server = client, server
        self._up, self._down = Stream(), Stream()
        self._echoes = Echoes()
        self._syn: tuple[int, int] | None = None  # sequence number and time
        self._syns = 0
        self._has_begun = False
        self._handshake_ns: int | None = None
        self._packets_up = self._packets_down = 0
        self._l3_bytes_up = self._l3_bytes_down = 0
        self._payload_ns: tuple[int, int] | None = None  # first and last with payload for us

    @property
    def packets(self) -> int:
        """Packets both ways."""
        return self._packets_up + self._packets_down

    @property
    def is_remnant(self) -> bool:
        """Whether neither its beginning nor any payload was seen."""
        return not (self._has_begun or self._up.payload_bytes or self._down.payload_bytes)

    def is_opened_again(self, segment: Segment) -> bool:
        """Whether this packet opens another connection between the same ports."""
        opens = segment.flags & (SYN | ACK) == SYN
        return opens and (self._syn is None or self._syn[0] != segment.seq)

    def take(self, segment: Segment, packet: _Packet, *, is_up: bool) -> None:
        """Notes a packet."""
        self._last_ns = max(self._last_ns, packet.time_ns)
        self._has_begun |= bool(segment.flags & SYN)
        take = self._take_up if is_up else self._take_down
        take(segment, packet.time_ns, packet.frame)

    def _take_up(self, segment: Segment, time_ns: int, frame: bytes) -> None:
        self._packets_up += 1
        self._l3_bytes_up += segment.l3_bytes
        if segment.tsval is not None:
            self._echoes.send(segment.tsval, time_ns)
        if segment.flags & SYN:
            self._up.begin(segment.seq)
            self._syns += 1
            self._syn = self._syn or (segment.seq, time_ns)
        elif segment.payload_bytes:
            fresh = self._up.take(segment.seq, segment.payload_bytes, time_ns, segment.tsval)
            if self.exchanges and fresh:
                self.exchanges.ask(time_ns, frame[segment.payload_start :])

    def _take_down(self, segment: Segment, time_ns: int, frame: bytes) -> None:
        self._packets_down += 1
        self._l3_bytes_down += segment.l3_bytes
        if segment.tsecr is not None:
            self._echoes.receive(segment.tsecr, time_ns)
        if segment.flags & SYN:
            self._down.begin(segment.seq)
            if self._syn and self._syns == 1 and self._handshake_ns is None:
                self._handshake_ns = time_ns - self._syn[1]
                self._down.reordering_ns = self._handshake_ns
        elif segment.payload_bytes:
            fresh = self._down.take(segment.seq, segment.payload_bytes, time_ns, segment.tsval)
            self._payload_ns = (self._payload_ns[0] if self._payload_ns else time_ns, time_ns)
            if self.exchanges and fresh:
                self.exchanges.answer(time_ns, fresh, frame[segment.payload_start :])

    def record(self, first_ns: int) -> ConnectionRecord:
        """All of it; times count from ``first_ns``."""
        rtts_ns = self._echoes.samples_ns
        return ConnectionRecord(
            client=_name(self._client),
            server=_name(self._server),
            is_controller=self.exchanges is not None,
            started_s=(self.began_ns - first_ns) / NANOSECONDS_PER_S,
            duration_s=(self._last_ns - self.began_ns) / NANOSECONDS_PER_S,
            packets_down=self._packets_down,
            packets_up=self._packets_up,
            l3_bytes_down=self._l3_bytes_down,
            l3_bytes_up=self._l3_bytes_up,
            payload_bytes_down=self._down.payload_bytes,
            payload_bytes_up=self._up.payload_bytes,
            throughput_kbps=self._throughput_kbps(),
            handshake_rtt_ms=_milliseconds(self._handshake_ns),
            rtt_samples=len(rtts_ns),
            rtt_min_ms=_milliseconds(min(rtts_ns, default=None)),
            rtt_p50_ms=_percentile_ms(rtts_ns, 50),
            rtt_p99_ms=_percentile_ms(rtts_ns, 99),
            retransmissions_down=self._down.retransmissions,
            retransmissions_up=self._up.retransmissions + max(self._syns - 1, 0),
            out_of_order_down=self._down.out_of_order,
            missing_bytes_down=self._down.missing_bytes,
        )

    def _throughput_kbps(self) -> float | None:
        if self._payload_ns is None or self._payload_ns[0] >= self._payload_ns[1]:
            return None
        seconds = (self._payload_ns[1] - self._payload_ns[0]) / NANOSECONDS_PER_S
        return self._down.payload_bytes * BITS_PER_BYTE / BITS_PER_KILOBIT / seconds


def _name(end: Endpoint) -> str:
    return f"{socket.inet_ntoa(end[0])}:{end[1]}"


def _milliseconds(time_ns: float | None) -> float | None:
    return None if time_ns is None else time_ns / NANOSECONDS_PER_MS


def _percentile_ms(times_ns: Sequence[int], percent: float) -> float | None:
    return float(np.percentile(times_ns, percent)) / NANOSECONDS_PER_MS if times_ns else None


class Exchanges:
    """Questions and answers of HTTP/1.1 on one connection, one at a time (no pipelining).

    A question begins with the packet that begins with a request line. Its answer, of whatever
    status, is all that comes until the next question.

    Attributes:
        answered: per question that got all of its answer: when it began and how long it took, ns.
        unanswered: the others.
    """

    def __init__(self) -> None:
        self.answered: list[tuple[int, int]] = []
        self.unanswered = 0
        self._began_ns: int | None = None
        self._last_ns = self._got_bytes = self._due_bytes = 0

    def ask(self, time_ns: int, payload: bytes) -> None:
        """New bytes go to the server."""
        if _REQUEST.match(payload):
            self.finish()
            self._began_ns = time_ns
            self._got_bytes = 0

    def answer(self, time_ns: int, fresh_bytes: int, payload: bytes) -> None:
        """New bytes come from the server."""
        if not self._got_bytes:
            self._due_bytes = _response_bytes(payload)
        self._got_bytes += fresh_bytes
        self._last_ns = time_ns

    def finish(self) -> None:
        """Nothing more belongs to the question that was asked last."""
        if self._began_ns is None:
            return
        if self._got_bytes and self._got_bytes >= self._due_bytes:
            self.answered.append((self._began_ns, self._last_ns - self._began_ns))
        else:
            self.unanswered += 1
        self._began_ns = None


def _response_bytes(payload: bytes) -> int:
    """Length of the response that begins so; 0 if it does not say."""
    headers, found, _ = payload.partition(_HEADERS_END)
    length = _RESPONSE_LENGTH.search(headers + b"\r\n")
    return len(headers) + len(found) + int(length[1]) if length and found else 0
