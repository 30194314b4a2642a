"""Packet captures: one pcapng file with all packets of some interfaces of one host.

The kernel copies the beginning of each packet, both ways, with its own time stamp into a ring that
it shares with this program (``packet(7)`` and ``Documentation/networking/packet_mmap.rst`` of the
kernel, TPACKET_V2). A process of low priority empties the rings a few times a second; it costs no
system call per packet and delays no packet, and the times are the kernel's whenever it runs.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from testbed.namespaces import Child, fork_into, in_network_of
from testbed.pcapng import (
    INBOUND,
    NANOSECONDS_PER_S,
    OUTBOUND,
    InterfaceStatistics,
    interface_block,
    packet_block,
    section_block,
    statistics_block,
)

log = logging.getLogger(__name__)

#: Ethernet (14), IPv4 without options (20), the longest TCP header (60), rounded up.
HEADERS_BYTES = 96
#: A whole packet at the usual MTU of 1500, with its Ethernet header.
WHOLE_PACKET_BYTES = 1514
#: Such a capture says itself that it was ended. An hour of video at 5 Mbit/s has about as much.
MAX_CAPTURE_BYTES = 256 << 20
#: Holds 16384 packets of HEADERS_BYTES: more than a second at 100 Mbit/s.
RING_BYTES = 4 << 20
DRAIN_S = 0.2
NICENESS = 10
STOP_TIMEOUT_S = 10.0

# <linux/if_packet.h>, <linux/if_ether.h>
SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
TPACKET_V2 = 1
ETH_P_ALL = 3
PACKET_OUTGOING = 4
TP_STATUS_KERNEL, TP_STATUS_USER = 0, 1
TPACKET_REQ = struct.Struct("=4I")  # block size, blocks, frame size, frames
TPACKET_STATS = struct.Struct("=2I")
#: tpacket2_hdr: status, length, captured length, offset of the packet, (network offset), seconds,
#: nanoseconds, (VLAN, padding); then sockaddr_ll, of which only the packet type.
TPACKET2_FRAME = struct.Struct("=IIIHxxII18xB")
STATUS = struct.Struct("=I")
PACKET_OFFSET = 66  # of an Ethernet packet in its frame
RING_BLOCK_BYTES = 1 << 16


class CaptureError(RuntimeError):
    """Packets could not be captured as asked."""


@dataclass(frozen=True, slots=True)
class CapturePoint:
    """An interface to capture at.

    Attributes:
        interface: its name.
        snap_bytes: how much of each packet is kept.
    """

    interface: str
    snap_bytes: int = HEADERS_BYTES


class Capture:
    """Captures into a file from ``with`` to its end.

    The file can be read at any time and whatever happens; what is missing at its end is at most a
    few tenths of a second, and its last block may be torn. Only one that was ended properly carries
    the number of packets that were lost (see :func:`testbed.capture_analysis.analyse`).
    """

    def __init__(
        self,
        *,
        pid: int,
        points: Sequence[CapturePoint],
        path: Path,
        max_bytes: int = MAX_CAPTURE_BYTES,
    ) -> None:
        """Notes what to capture.

        Args:
            pid: a process in the network namespace of the interfaces.
            points: where to capture, and how much.
            path: the file; one that is there is replaced.
            max_bytes: the capture ends when the file would become larger.
        """
        self._pid = pid
        self._points = tuple(points)
        self._path = path
        self._max_bytes = max_bytes
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Capture:
        """Starts to capture; no later packet is missed.

        The thread that does this must live as long as the capture: its process ends with it.

        Raises:
            CaptureError: there is no such interface, or the kernel does not hand out packets.
            OSError: the file cannot be written.
        """
        with contextlib.ExitStack() as ours:  # the process has its own
            file = ours.enter_context(self._path.open("wb"))
            file.write(section_block())
            for point in self._points:
                file.write(interface_block(point.interface, point.snap_bytes))
            file.flush()
            rings = [ours.enter_context(_open_ring(self._pid, point)) for point in self._points]
            self._control, theirs = socket.socketpair()
            self._cleanup.callback(self._control.close)
            ours.enter_context(theirs)
            self._child: Child = self._cleanup.enter_context(
                fork_into(None, capture_process, rings, file, self._max_bytes, theirs)
            )
        return self

    @property
    def process_id(self) -> int:
        """The process that writes."""
        return self._child.pid

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the capture with all packets up to now in the file.

        Raises:
            CaptureError: the process failed or hangs, and nothing else is being raised.
        """
        with self._cleanup:
            self._control.shutdown(socket.SHUT_WR)  # seen even if other processes hold a copy
            try:
                status = self._child.wait(STOP_TIMEOUT_S)
            except TimeoutError:
                problem = f"its process does not end within {STOP_TIMEOUT_S:g} s"
            else:
                problem = f"its process ended with status {status}" if status else ""
        if problem and error is None:
            raise CaptureError(f"{self._path} is incomplete: {problem}")
        if problem:
            log.warning("%s is incomplete: %s", self._path, problem)


class Ring:
    """The packets of one interface that wait to be written."""

    def __init__(self, wire: socket.socket, snap_bytes: int) -> None:
        """Sets the socket's ring up.

        A frame of the ring is a power of two, so that frames follow each other without gaps; the
        kernel fills it, which may be a little more than is kept.

        Raises:
            OSError: the kernel refuses.
        """
        self._wire = wire
        self._snap_bytes = snap_bytes
        self._frame_bytes = 1 << (PACKET_OFFSET + snap_bytes - 1).bit_length()
        if self._frame_bytes > RING_BLOCK_BYTES:
            raise ValueError(f"snap_bytes must be below {RING_BLOCK_BYTES >> 1}, not {snap_bytes}")
        wire.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        request = TPACKET_REQ.pack(
            RING_BLOCK_BYTES,
            RING_BYTES // RING_BLOCK_BYTES,
            self._frame_bytes,
            RING_BYTES // self._frame_bytes,
        )
        wire.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        self._memory = mmap.mmap(wire.fileno(), RING_BYTES)
        self._offset = 0
        self._received = self._dropped = 0

    def drain(self, interface: int) -> Iterator[tuple[int, bytes]]:
        """Takes what has arrived: times (ns since 1970) and pcapng blocks, in order."""
        memory, snap_bytes, offset = self._memory, self._snap_bytes, self._offset
        for _ in range(RING_BYTES // self._frame_bytes):
            status, wire_bytes, captured, start, seconds, nanoseconds, kind = (
                TPACKET2_FRAME.unpack_from(memory, offset)
            )
            if not status & TP_STATUS_USER:
                break
            time_ns = seconds * NANOSECONDS_PER_S + nanoseconds
            start += offset
            packet = memory[start : start + min(captured, snap_bytes)]
            STATUS.pack_into(memory, offset, TP_STATUS_KERNEL)
            offset = self._offset = (offset + self._frame_bytes) % RING_BYTES
            direction = OUTBOUND if kind == PACKET_OUTGOING else INBOUND
            yield time_ns, packet_block(interface, time_ns, packet, wire_bytes, direction)

    def read_statistics(self) -> InterfaceStatistics:
        """Packets that the kernel saw and lost since the ring was set up."""
        counts = self._wire.getsockopt(SOL_PACKET, PACKET_STATISTICS, TPACKET_STATS.size)
        received, dropped = TPACKET_STATS.unpack(counts)  # since the last such call
        self._received += received
        self._dropped += dropped
        return InterfaceStatistics(self._received, self._dropped)

    def close(self) -> None:
        """Gives the memory and the socket back; other processes keep theirs."""
        self._memory.close()
        self._wire.close()

    def __enter__(self) -> Ring:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_ring(pid: int, point: CapturePoint) -> Ring:
    """Begins to collect the packets of an interface.

    Raises:
        CaptureError: there is no such interface, or the kernel refuses.
    """
    try:
        # Protocol 0: nothing arrives before the ring is there and the interface chosen.
        wire = in_network_of(pid, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            ring = Ring(wire, point.snap_bytes)
            wire.bind((point.interface, ETH_P_ALL))
        except BaseException:
            wire.close()
            raise
    except OSError as error:
        raise CaptureError(f"cannot capture packets at {point.interface}: {error}") from error
    return ring


def capture_process(
    rings: Sequence[Ring], file: BinaryIO, max_bytes: int, control: socket.socket
) -> None:
    """Body of the process: writes until it is told to stop or the file is full."""
    os.nice(NICENESS)
    left_bytes = max_bytes - file.tell()
    comment = ""
    is_last = False
    while not is_last and not comment:
        is_last = bool(select.select([control], [], [], DRAIN_S)[0])
        arrived = [block for number, ring in enumerate(rings) for block in ring.drain(number)]
        for _, block in sorted(arrived):
            left_bytes -= len(block)
            if left_bytes < 0:
                comment = f"the capture ended early: the file has its {max_bytes} bytes"
                break
            file.write(block)
        file.flush()
    now_ns = time.time_ns()
    for number, ring in enumerate(rings):
        seen = ring.read_statistics()
        statistics = InterfaceStatistics(seen.received, seen.dropped, comment)
        file.write(statistics_block(number, now_ns, statistics))
    file.flush()
