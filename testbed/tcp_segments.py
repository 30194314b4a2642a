"""TCP as one end sees it: headers, which bytes came and which came again, round-trip times.

See RFC 9293 (TCP) and RFC 7323 (timestamps). Time is an argument: nanoseconds of any clock.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Self

#: As Wireshark assumes: what comes this soon behind a gap was overtaken.
REORDERING_NS = 3_000_000

SYN, ACK = 0x02, 0x10
_ETHERTYPE_IPV4 = b"\x08\x00"
_ETHERNET_BYTES = 14
_PROTOCOL_TCP = 6
_FRAGMENT_OFFSET = 0x1FFF
_END_OF_OPTIONS, _NO_OPERATION, _TIMESTAMPS = 0, 1, 8
_TIMESTAMPS_BYTES = 10
#: RFC 7323, appendix A: the usual layout of the options.
_ALIGNED_TIMESTAMPS = bytes((_NO_OPERATION, _NO_OPERATION, _TIMESTAMPS, _TIMESTAMPS_BYTES))
_HALF_CIRCLE, _CIRCLE = 1 << 31, 1 << 32

_IPV4 = struct.Struct("!BxHxxHxBxx4s4s")
_TCP = struct.Struct("!HHIIBB")
_TCP_BYTES = 20
_TIMES = struct.Struct("!II")


@dataclass(frozen=True, slots=True)
class Segment:
    """The headers of one TCP packet.

    Attributes:
        source: address and port as they stand in the packet, likewise ``destination``.
        seq: sequence number of its first byte.
        flags: SYN, ACK and so on.
        l3_bytes: length of the IP packet.
        payload_start: where the payload begins in the captured bytes.
        payload_bytes: length of the payload, which may not be captured whole.
        tsval: time stamp of the sender, None if there is none.
        tsecr: time stamp that it echoes, None if there is none.
    """

    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    seq: int
    ack: int
    flags: int
    l3_bytes: int
    payload_start: int
    payload_bytes: int
    tsval: int | None
    tsecr: int | None

    @classmethod
    def read(cls, frame: bytes) -> Self | None:
        """Takes an Ethernet frame apart; None if there is no TCP header over IPv4 in it."""
        if frame[12:14] != _ETHERTYPE_IPV4 or len(frame) < _ETHERNET_BYTES + _IPV4.size:
            return None
        first, l3_bytes, fragment, protocol, source, destination = _IPV4.unpack_from(
            frame, _ETHERNET_BYTES
        )
        tcp = _ETHERNET_BYTES + (first & 0xF) * 4
        if (
            protocol != _PROTOCOL_TCP
            or fragment & _FRAGMENT_OFFSET
            or len(frame) < tcp + _TCP_BYTES
        ):
            return None
        source_port, destination_port, seq, ack, offset, flags = _TCP.unpack_from(frame, tcp)
        payload_start = tcp + (offset >> 4) * 4
        payload_bytes = l3_bytes - (payload_start - _ETHERNET_BYTES)
        if payload_start < tcp + _TCP_BYTES or payload_bytes < 0:
            return None
        tsval, tsecr = _timestamps(frame[tcp + _TCP_BYTES : payload_start])
        return cls(
            (source, source_port),
            (destination, destination_port),
            seq,
            ack,
            flags,
            l3_bytes,
            payload_start,
            payload_bytes,
            tsval,
            tsecr if flags & ACK else None,
        )


def _timestamps(options: bytes) -> tuple[int, int] | tuple[None, None]:
    """TSval and TSecr among the options of a TCP header."""
    if options.startswith(_ALIGNED_TIMESTAMPS) and len(options) >= 4 + _TIMES.size:
        tsval, tsecr = _TIMES.unpack_from(options, 4)
        return tsval, tsecr
    at = 0
    while at < len(options) and options[at] != _END_OF_OPTIONS:
        if options[at] == _NO_OPERATION:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if options[at] == _TIMESTAMPS and length == _TIMESTAMPS_BYTES <= len(options) - at:
            tsval, tsecr = _TIMES.unpack_from(options, at + 2)
            return tsval, tsecr
        if length < 2:
            break
        at += length
    return None, None


def _ahead(value: int, reference: int) -> int:
    """How far a 32-bit number is ahead of another on the circle; negative if behind."""
    return (value - reference + _HALF_CIRCLE) % _CIRCLE - _HALF_CIRCLE


@dataclass(slots=True)
class _Gap:
    """Bytes that were skipped, and the packet behind them."""

    begin: int
    end: int
    time_ns: int
    tsval: int | None


class Stream:
    """The bytes of one direction of a connection: which came, which came again.

    Attributes:
        payload_bytes: different bytes.
        retransmissions: packets that were sent again.
        out_of_order: packets that were overtaken.
        reordering_ns: how soon behind a gap an overtaken packet comes, where there are no
            timestamps.
    """

    def __init__(self) -> None:
        self.payload_bytes = self.retransmissions = self.out_of_order = 0
        self.reordering_ns = REORDERING_NS
        self._end: int | None = None  # behind the last byte seen; does not wrap
        self._gaps: list[_Gap] = []

    @property
    def missing_bytes(self) -> int:
        """Bytes in gaps that were never filled."""
        return sum(gap.end - gap.begin for gap in self._gaps)

    def begin(self, seq: int) -> None:
        """Notes the sequence number of the SYN."""
        if self._end is None:
            self._end = seq + 1

    def take(self, seq: int, size_bytes: int, time_ns: int, tsval: int | None) -> int:
        """Notes a packet with payload; returns how many of its bytes are new."""
        if self._end is None:
            self._end = seq
        begin = self._end + _ahead(seq, self._end % _CIRCLE)
        end = begin + size_bytes
        fresh = max(end - max(begin, self._end), 0)
        if begin > self._end:
            self._gaps.append(_Gap(self._end, begin, time_ns, tsval))
        elif begin < self._end:
            filled = self._fill(begin, min(end, self._end), time_ns, tsval)
            fresh += filled
        self._end = max(self._end, end)
        self.payload_bytes += fresh
        return fresh

    def _fill(self, begin: int, end: int, time_ns: int, tsval: int | None) -> int:
        """Fills gaps and counts the packet as one of the two kinds; returns the bytes filled."""
        touched = [gap for gap in self._gaps if gap.begin < end and begin < gap.end]
        if touched and all(self._is_overtaken(gap, time_ns, tsval) for gap in touched):
            self.out_of_order += 1
        else:
            self.retransmissions += 1
        if not touched:
            return 0
        missing = self.missing_bytes
        for gap in touched:
            self._gaps.remove(gap)
            for left, right in ((gap.begin, min(begin, gap.end)), (max(end, gap.begin), gap.end)):
                if left < right:
                    self._gaps.append(_Gap(left, right, gap.time_ns, gap.tsval))
        return missing - self.missing_bytes

    def _is_overtaken(self, gap: _Gap, time_ns: int, tsval: int | None) -> bool:
        if tsval is None or gap.tsval is None:
            return time_ns - gap.time_ns <= self.reordering_ns
        return _ahead(tsval, gap.tsval) <= 0


class Echoes:
    """Round-trip times from time stamps that go out and come back."""

    def __init__(self) -> None:
        self.samples_ns: list[int] = []
        self._out: deque[tuple[int, int]] = deque()  # TSval, when it first went out

    def send(self, tsval: int, time_ns: int) -> None:
        """A packet leaves with a time stamp."""
        if not self._out or _ahead(tsval, self._out[-1][0]) > 0:
            self._out.append((tsval, time_ns))

    def receive(self, tsecr: int, time_ns: int) -> None:
        """A packet arrives with an echo: the first one of its value is a sample."""
        out = self._out
        while out and _ahead(out[0][0], tsecr) < 0:
            out.popleft()  # will not be echoed any more
        if out and out[0][0] == tsecr:
            self.samples_ns.append(time_ns - out.popleft()[1])
