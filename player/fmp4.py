"""The few boxes of a fragmented MP4 that padded content must read and patch.

ISO/IEC 14496-12 (ISO base media file format): ``mdhd`` 8.4.2, ``mfhd`` 8.8.5, ``trun`` 8.8.8,
``tfdt`` 8.8.12, ``free`` 8.1.2; the ``avcC`` box is of ISO/IEC 14496-15.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

BOX_HEADER = struct.Struct(">I4s")  # size, type
MAX_BOX_BYTES = 2**32 - 1

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_FULL_BOX_BYTES = BOX_HEADER.size + 4  # version and flags follow the header


class ContentError(ValueError):
    """Media that is not what it should be, cannot be made, or does not fit a video's sizes."""


@dataclass(frozen=True, slots=True)
class Box:
    """Place of one box: ``data[start:end]``, header included."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yields the boxes that lie next to each other in ``data[start:end]``.

    Raises:
        ContentError: a box reaches beyond the end.
    """
    end = len(data) if end is None else end
    while start < end:
        if end - start < BOX_HEADER.size:
            raise ContentError(f"{end - start} stray bytes behind the last box")
        size, kind = BOX_HEADER.unpack_from(data, start)
        if not BOX_HEADER.size <= size <= end - start:
            raise ContentError(f"box {kind!r} at {start} has size {size}, {end - start} are left")
        yield Box(kind, start, start + size)
        start += size


def find(data: bytes, *path: bytes) -> Box:
    """The first box at ``path``, such as ``find(data, b"moof", b"traf", b"tfdt")``.

    Raises:
        ContentError: there is none.
    """
    start, end = 0, len(data)
    for kind in path:
        for box in boxes(data, start, end):
            if box.kind == kind:
                break
        else:
            raise ContentError(f"no {b'/'.join(path).decode('latin-1')} box")
        start, end = box.start + BOX_HEADER.size, box.end
    return box


def timescale(init: bytes) -> int:
    """Ticks per second of the first track of an initialisation segment."""
    mdhd = find(init, b"moov", b"trak", b"mdia", b"mdhd")
    version = init[mdhd.start + BOX_HEADER.size]
    times_bytes = 16 if version == 1 else 8  # creation and modification time come first
    return int(_U32.unpack_from(init, mdhd.start + _FULL_BOX_BYTES + times_bytes)[0])


def codecs(init: bytes) -> str:
    """RFC 6381 codec string of an H.264 initialisation segment, such as ``avc1.4D4015``."""
    at = init.find(b"avcC")
    if at < 0 or len(init) < at + 8:
        raise ContentError("no avcC box: not H.264")
    return f"avc1.{init[at + 5 : at + 8].hex().upper()}"  # profile, constraints, level


@dataclass(frozen=True, slots=True)
class Fragment:
    """A media segment of one ``moof`` and one ``mdat`` that can be moved along the timeline.

    Attributes:
        data: the segment as encoded.
        sequence_at: offset of the fragment's sequence number.
        decode_time_at: offset of its 64-bit decode time.
        frames: number of samples.
    """

    data: bytes
    sequence_at: int
    decode_time_at: int
    frames: int

    @classmethod
    def parse(cls, data: bytes) -> Fragment:
        """Reads a segment.

        Raises:
            ContentError: it is not exactly one ``moof`` and one ``mdat`` with a 64-bit ``tfdt``.
        """
        kinds = [box.kind for box in boxes(data)]
        if kinds != [b"moof", b"mdat"]:
            raise ContentError(f"a segment must be moof and mdat, not {kinds}")
        mfhd = find(data, b"moof", b"mfhd")
        tfdt = find(data, b"moof", b"traf", b"tfdt")
        trun = find(data, b"moof", b"traf", b"trun")
        if data[tfdt.start + BOX_HEADER.size] != 1 or tfdt.end - tfdt.start < _FULL_BOX_BYTES + 8:
            raise ContentError("the decode time (tfdt) must have 64 bits")
        return cls(
            data=data,
            sequence_at=mfhd.start + _FULL_BOX_BYTES,
            decode_time_at=tfdt.start + _FULL_BOX_BYTES,
            frames=int(_U32.unpack_from(data, trun.start + _FULL_BOX_BYTES)[0]),
        )

    def moved(self, *, sequence: int, decode_time: int) -> bytearray:
        """A copy with another sequence number and decode time (ticks)."""
        copy = bytearray(self.data)
        _U32.pack_into(copy, self.sequence_at, sequence)
        _U64.pack_into(copy, self.decode_time_at, decode_time)
        return copy
