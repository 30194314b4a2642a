"""How closely a link follows a trace, judged from outside: by the packets that come out of it.

The measure is that of the testbed, Σ|layer-3 bytes that came in a bin − ∫ trace over the bin| over
Σ∫ trace, for links of any kind, as long as the queue before the bottleneck never gets empty.

Packets are noted by the kernel (``packet_mmap.rst``, TPACKET_V2): it writes length and time of
arrival of every packet into a ring of memory that is large enough for the whole measurement and is
read when that is over. So noting takes no process and no time of one, and what did not fit is
counted.
"""

from __future__ import annotations

import mmap
import socket
import struct
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from player.trace import BITS_PER_MEGABIT, FloatArray, Trace

Borders = Literal["split", "moved", "fixed"]

BITS_PER_BYTE = 8
WARM_UP_S = 2.0  # slow start fills the queue in these

# <linux/if_packet.h>, <linux/if_ether.h>
SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
TPACKET_V2 = 1
ETH_P_ALL = 0x0003
RING_REQUEST = struct.Struct("=IIII")  # block size, blocks, frame size, frames
STATISTICS = struct.Struct("=II")  # packets, drops (these included in the former)
FRAME_BYTES = 128  # header, address and the first bytes of the packet
BLOCK_BYTES = 1 << 18
FRAMES_PER_BLOCK = BLOCK_BYTES // FRAME_BYTES
FRAME = np.dtype(  # struct tpacket2_hdr
    {
        "names": ["status", "length", "seconds", "nanoseconds"],
        "formats": ["<u4", "<u4", "<u4", "<u4"],
        "offsets": [0, 4, 16, 20],
        "itemsize": FRAME_BYTES,
    }
)
STATUS_USER = 1
MAX_PACKETS = 1 << 20  # 128 MiB of the kernel's memory
SMALLEST_PACKET_SHARE = 4  # packets that a ring has room for, per whole packet of the trace
SPARE_PACKETS = 4096
PACKET_BYTES = 1500  # layer 3
CLOCK_READINGS = 9
NS_PER_S = 1_000_000_000


class RecorderError(RuntimeError):
    """Packets arrived that were not noted."""


# ---- what came ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrivals:
    """Packets that came in at an interface, in that order.

    Attributes:
        arrival_s: ``(n,)`` when the last bit was in, ``time.monotonic()``.
        size_bytes: ``(n,)`` layer-3 size.
    """

    arrival_s: FloatArray
    size_bytes: NDArray[np.int64]


class Recorder:
    """Notes the packets that come in at one interface, from its making on.

    It stays in the network namespace of the thread that made it: make it there with
    :func:`testbed.namespaces.in_network_of`, read it from anywhere.
    """

    def __init__(self, interface: str, *, packets: int) -> None:
        """Begins to note.

        Args:
            interface: its name.
            packets: room for as many; at most ``MAX_PACKETS``.

        Raises:
            ValueError: room for too many, or for none, is asked.
            OSError: there is no such interface, or this process may not listen.
        """
        if not 1 <= packets <= MAX_PACKETS:
            raise ValueError(f"packets {packets} is not from 1 to {MAX_PACKETS}")
        blocks = -(-packets // FRAMES_PER_BLOCK)
        self._frames = blocks * FRAMES_PER_BLOCK
        self._clock_offset_ns = _clock_offset_ns()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)  # not bound: silent
        try:
            self._socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
            self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            request = RING_REQUEST.pack(BLOCK_BYTES, blocks, FRAME_BYTES, self._frames)
            self._socket.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            self._ring = mmap.mmap(self._socket.fileno(), blocks * BLOCK_BYTES)
            self._socket.bind((interface, ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def read(self) -> Arrivals:
        """All that came so far.

        Raises:
            RecorderError: the ring was too small for it.
        """
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size)
        _, drops = STATISTICS.unpack(statistics)
        if drops:
            raise RecorderError(f"{drops} packets came that the ring had no room for")
        frames = np.frombuffer(self._ring, dtype=FRAME, count=self._frames)
        unused = np.flatnonzero((frames["status"] & STATUS_USER) == 0)
        count = int(unused[0]) if len(unused) else self._frames
        noted = frames[:count].copy()  # or the ring could not be unmapped
        real_ns = noted["seconds"].astype(np.int64) * NS_PER_S + noted["nanoseconds"]
        arrival_s = (real_ns - self._clock_offset_ns) / NS_PER_S
        return Arrivals(arrival_s, noted["length"].astype(np.int64))

    def close(self) -> None:
        """Ends noting and gives the memory back."""
        self._ring.close()
        self._socket.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _clock_offset_ns() -> int:
    """How far the kernel's clock for packets is ahead of the monotonic one."""
    readings = []
    for _ in range(CLOCK_READINGS):  # the quickest one was not interrupted
        before = time.monotonic_ns()
        real = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.monotonic_ns()
        readings.append((after - before, real - (before + after) // 2))
    return min(readings)[1]


def room_for(trace: Trace, seconds: float) -> int:
    """Packets to give a recorder room for while a link replays the trace: more than can come."""
    most_bytes = float(trace.rates_mbps.max()) * BITS_PER_MEGABIT / BITS_PER_BYTE * seconds
    packets = SPARE_PACKETS + int(most_bytes / PACKET_BYTES * SMALLEST_PACKET_SHARE)
    return min(packets, MAX_PACKETS)


# ---- how close it is ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How closely a link followed its trace.

    Attributes:
        nmae: Σ|received − asked| / Σ asked, over bins.
        total_error: (Σ received − Σ asked) / Σ asked; negative: too little.
        bins: how many bins there were.
        asked_bytes: Σ asked.
    """

    nmae: float
    total_error: float
    bins: int
    asked_bytes: float


def wire_nmae(
    arrivals: Arrivals,
    trace: Trace,
    *,
    began_s: float,
    ended_s: float,
    start_s: float = 0.0,
    delay_s: float = 0.0,
    bin_s: float = 1.0,
    skip_s: float = WARM_UP_S,
    borders: Borders = "moved",
) -> Fidelity:
    """Compares what came with what the trace allows, bin by bin.

    A packet counts when its last bit is in. Between ``fixed`` borders that alone is an error of up
    to a packet in every bin, on a perfect link too: at 0.5 Mbit/s, 7 % in bins of 100 ms. There are
    two ways out, and on a perfect link both give 0:

    * A ``moved`` border is where the first packet at or behind it arrived, and what was asked is
      the integral of the trace between the two moments. What is late moves the border with it while
      the trace goes on, so nothing gets lost; but the moment behind a pause, with the rest of a
      burst still to come, is the worst one, and long pauses are met more often than short ones. So
      it says rather too much of a link that delivers in bursts.
    * Borders that ``split`` stay where they are, and the packet that arrives next counts on both
      sides, in the shares that the trace gives. So lateness is seen as it is at that moment, up to
      a packet.

    A border behind which nothing comes any more stays, and nothing is split. ``fixed`` is there to
    compare with the figures of others.

    Args:
        arrivals: what came, also behind ``ended_s``.
        trace: what was asked.
        began_s: when the replay began, ``time.monotonic()``.
        ended_s: until when the sender kept the queue filled; bins that end later do not count.
        start_s: position in the trace at which the replay began.
        delay_s: one-way delay behind the bottleneck; one before it does not move the bins.
        bin_s: width of a bin.
        skip_s: seconds since ``began_s`` that do not count.
        borders: ``moved``, the figure that is quoted, ``split`` or ``fixed``.

    Raises:
        ValueError: there is no whole bin, or the trace has no capacity in them.
    """
    first_s = began_s + delay_s + skip_s
    bins = int((ended_s + delay_s - first_s) / bin_s + 1e-9)
    if bins < 1:
        raise ValueError(f"no bin of {bin_s} s between {skip_s} s and {ended_s - began_s:.3f} s")
    border_s = np.asarray(first_s + bin_s * np.arange(bins + 1, dtype=np.float64))
    if borders == "moved":
        border_s = _move(border_s, arrivals.arrival_s)
    allowed_bytes = _allowed_bytes(trace, border_s - first_s + skip_s + start_s)
    received_bytes = _received_bytes(arrivals, border_s, includes_border=borders == "moved")
    if borders == "split":
        arrived_bytes = _allowed_bytes(trace, arrivals.arrival_s - first_s + skip_s + start_s)
        received_bytes = received_bytes + _parts_bytes(
            arrivals, border_s, arrived_bytes, allowed_bytes
        )
    asked_bytes = np.diff(allowed_bytes)
    total_bytes = float(asked_bytes.sum())
    if total_bytes <= 0.0:
        raise ValueError(f"{trace.name} has no capacity where it was measured")
    errors_bytes = np.diff(received_bytes) - asked_bytes
    return Fidelity(
        nmae=float(np.abs(errors_bytes).sum()) / total_bytes,
        total_error=float(errors_bytes.sum()) / total_bytes,
        bins=bins,
        asked_bytes=total_bytes,
    )


def _allowed_bytes(trace: Trace, position_s: FloatArray) -> FloatArray:
    return np.asarray(trace.bits_until(position_s) / BITS_PER_BYTE)


def _received_bytes(arrivals: Arrivals, at_s: FloatArray, *, includes_border: bool) -> FloatArray:
    """Whole packets that were in by each moment."""
    sums = np.concatenate(([0.0], np.cumsum(arrivals.size_bytes, dtype=np.float64)))
    side: Literal["left", "right"] = "right" if includes_border else "left"
    return np.asarray(sums[np.searchsorted(arrivals.arrival_s, at_s, side=side)])


def _move(border_s: FloatArray, arrival_s: FloatArray) -> FloatArray:
    """Each border to the first arrival at or behind it; it stays where none is."""
    index = np.searchsorted(arrival_s, border_s)
    is_followed = index < len(arrival_s)
    moved_s = border_s.copy()
    moved_s[is_followed] = arrival_s[index[is_followed]]
    return moved_s


def _parts_bytes(
    arrivals: Arrivals, border_s: FloatArray, arrived_bytes: FloatArray, allowed_bytes: FloatArray
) -> FloatArray:
    """What was in, at each border, of the packet that arrived next."""
    index = np.searchsorted(arrivals.arrival_s, border_s)
    parts = np.zeros(len(border_s))
    inside = (index > 0) & (index < len(arrivals.arrival_s))
    after = index[inside]
    begun = arrived_bytes[after - 1]
    took = arrived_bytes[after] - begun
    share = np.divide(
        allowed_bytes[inside] - begun, took, out=np.zeros_like(took), where=took > 0.0
    )
    parts[inside] = share * arrivals.size_bytes[after]
    return parts
