"""The blocks of a pcapng file that a packet capture needs, written by hand.

See draft-ietf-opsawg-pcapng, sections 4.1 (section header), 4.2 (interface description), 4.3
(enhanced packet) and 4.6 (interface statistics). scapy's own writer knows neither nanoseconds nor
the snap length of an interface nor statistics; its reader reads all but the last.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

LINKTYPE_ETHERNET = 1
NANOSECONDS_PER_S = 1_000_000_000
#: Directions of a packet, as seen from the host that captures (``epb_flags``).
INBOUND, OUTBOUND = 1, 2
STATISTICS_BLOCK = 5

#: The first bytes of every file.
SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
_SECTION_BLOCK, _INTERFACE_BLOCK, _PACKET_BLOCK = 0x0A0D0D0A, 1, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_VERSION = (1, 0)
_LENGTH_UNKNOWN = -1
_END_OF_OPTIONS, _COMMENT, _INTERFACE_NAME, _TIME_RESOLUTION = 0, 1, 2, 9
_RECEIVED, _DROPPED = 4, 5
_NANOSECONDS = 9  # negative power of ten

_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_OPTION = struct.Struct("<HH")
_SECTION = struct.Struct("<IHHq")
_INTERFACE = struct.Struct("<HxxI")
_PACKET = struct.Struct("<7I")
_PACKET_TAIL = struct.Struct("<HHIHHI")  # epb_flags (code 2, 4 bytes), end of options, length
_FLAGS, _FLAGS_BYTES = 2, 4
_STATISTICS = struct.Struct("<III")
_COUNT = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class InterfaceStatistics:
    """What a capture says of one interface at its end.

    Attributes:
        received: packets that passed the interface.
        dropped: packets among them that were lost because nobody read them in time.
        comment: why the capture ended, empty if because it was told to.
    """

    received: int
    dropped: int
    comment: str = ""


def section_block() -> bytes:
    """Begins a file."""
    return _block(_SECTION_BLOCK, _SECTION.pack(_BYTE_ORDER_MAGIC, *_VERSION, _LENGTH_UNKNOWN))


def interface_block(name: str, snap_bytes: int) -> bytes:
    """Describes the next Ethernet interface; packets refer to it by its place among these."""
    options = _option(_INTERFACE_NAME, name.encode())
    options += _option(_TIME_RESOLUTION, bytes([_NANOSECONDS])) + _OPTION.pack(_END_OF_OPTIONS, 0)
    return _block(_INTERFACE_BLOCK, _INTERFACE.pack(LINKTYPE_ETHERNET, snap_bytes) + options)


def packet_block(
    interface: int, time_ns: int, captured: bytes, wire_bytes: int, direction: int
) -> bytes:
    """One packet.

    Args:
        interface: place of its interface, from 0.
        time_ns: since 1970.
        captured: what is kept of it.
        wire_bytes: how long it was.
        direction: INBOUND or OUTBOUND.
    """
    count = len(captured)
    padding = -count % 4
    length = _PACKET.size + count + padding + _PACKET_TAIL.size
    high, low = time_ns >> 32, time_ns & 0xFFFFFFFF
    return b"".join(
        (
            _PACKET.pack(_PACKET_BLOCK, length, interface, high, low, count, wire_bytes),
            captured,
            bytes(padding),
            _PACKET_TAIL.pack(_FLAGS, _FLAGS_BYTES, direction, _END_OF_OPTIONS, 0, length),
        )
    )


def statistics_block(interface: int, time_ns: int, statistics: InterfaceStatistics) -> bytes:
    """The last word on an interface."""
    options = _option(_COMMENT, statistics.comment.encode()) if statistics.comment else b""
    options += _option(_RECEIVED, _COUNT.pack(statistics.received))
    options += _option(_DROPPED, _COUNT.pack(statistics.dropped))
    body = _STATISTICS.pack(interface, time_ns >> 32, time_ns & 0xFFFFFFFF)
    return _block(STATISTICS_BLOCK, body + options + _OPTION.pack(_END_OF_OPTIONS, 0))


def read_statistics(body: bytes) -> InterfaceStatistics:
    """Reads the body of a :func:`statistics_block`.

    Raises:
        ValueError: it is not one, or lacks a count.
    """
    options: dict[int, bytes] = {}
    offset = _STATISTICS.size
    while offset + _OPTION.size <= len(body):
        code, length = _OPTION.unpack_from(body, offset)
        offset += _OPTION.size
        options[code] = body[offset : offset + length]
        offset += length + -length % 4
    counts = [options.get(code, b"") for code in (_RECEIVED, _DROPPED)]
    if any(len(count) != _COUNT.size for count in counts):
        raise ValueError("an interface statistics block without its counts")
    received, dropped = (_COUNT.unpack(count)[0] for count in counts)
    return InterfaceStatistics(
        received, dropped, options.get(_COMMENT, b"").decode(errors="replace")
    )


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = _FRAME.size + len(body) + _LENGTH.size
    return _FRAME.pack(kind, length) + body + _LENGTH.pack(length)
