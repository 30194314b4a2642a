"""One interface shaped by the kernel's HTB so that its output follows a bandwidth trace exactly.

HTB (``tc-htb(8)``) lets a packet go when its bucket is not in debt, then takes the time that the
packet would need at the *present* rate out of the bucket. Four properties of it would spoil a
trace, and are dealt with here:

* It takes a segmentation-offload packet of 64 kB as one. So whatever feeds the interface may only
  build packets of one segment (:func:`disable_offloads`; ``gso off`` alone does not do that).
* It counts bytes of layer 2, a trace those of layer 3. A size table with an overhead of -14 bytes
  (``tc-stab(8)``) makes it count layer 3, at any packet size.
* Capacity that was not used is saved up in the bucket, up to its size. A timer of the kernel may
  be late by many milliseconds on a machine with other work to do, so the bucket must be large while
  packets wait, or capacity gets lost; and small while none do, or a burst would follow a pause.
  It is switched between the two.
* A debt made at a low rate stays when the rate rises: behind a second of 10 kbit/s one packet would
  block the link for 1.2 s. So the rate that is set at time t is not the trace's rate r(t), but that
  at which a whole packet that leaves at t takes just as long as the trace, with the steps ahead of
  it, allows: ``L / (C⁻¹(C(t) + L) - t)``, C being the integral of the trace. Far from the steps
  that is r(t). With it, every packet of a queue leaves exactly when the trace says, there is no
  lowest rate, and the link stands still during an outage and goes on at its end.

Rates are changed in place with a prebuilt netlink message (``rtnetlink(7)``) and acknowledged,
about 40 µs each.
"""

from __future__ import annotations

import fcntl
import json
import math
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from player.trace import FloatArray, Trace
from testbed.links.netlink import (
    NLM_F_ACK,
    NLM_F_ECHO,
    NLM_F_REQUEST,
    NLMSG_HEADER,
    NS_PER_TICK,
    STATS_QUEUE,
    TCA_KIND,
    TCA_OPTIONS,
    TCA_STATS2,
    TCA_STATS_BASIC,
    TCA_STATS_QUEUE,
    TCMSG,
    Netlink,
    attribute,
    attributes,
    payloads,
    qdisc_request,
    request,
)
from testbed.links.queues import (
    QueueCounts,
    is_as_asked,
    qdisc_kind,
    qdisc_options,
    read_counts,
)
from testbed.links.spec import QueueSpec

PACKET_BYTES = 1500  # layer 3
BITS_PER_BYTE = 8
ETHERNET_HEADER_BYTES = 14
IDLE_CREDIT_S = 0.004  # capacity that a silent link saves up
BUSY_CREDIT_S = 0.1  # how late the kernel's timer may be without loss of capacity
MIN_BYTES_PER_S = 25  # HTB forgives debts of more than 60 s = 1,500 bytes at this rate
MAX_BYTES_PER_S = 2**32 - 1
SCHEDULE_GRID_S = 0.001
RATE_NOISE = 0.01  # bytes per second that arithmetic may add to a rate
TIME_RESOLUTION = 0.002  # a change of the time that a packet takes is left out below this share
LONG_S = 1.0  # of it or of this, whichever is less

# <linux/rtnetlink.h>, <linux/pkt_sched.h>, <linux/if_link.h>
RTM_NEWTCLASS, RTM_GETTCLASS, RTM_GETSTATS = 40, 42, 94
TCA_HTB_PARMS = 1
IFLA_STATS_LINK_64 = 1
LINKLAYER_ETHERNET = 1
BUSY_CREDIT_TICKS = round(BUSY_CREDIT_S * 1e9 / NS_PER_TICK)
RATESPEC = struct.Struct("=BBHhHI")  # cell log, link layer, overhead, align, mpu, bytes per second
HTB_BUCKETS = struct.Struct("=IIIII")  # buffer, cbuffer (ticks), quantum, level, priority
STATS_BASIC = struct.Struct("=QI")  # bytes, packets
IF_STATS = struct.Struct("=BBHII")  # family, pad, pad, ifindex, filter
LINK_STATS = struct.Struct("=QQQ32xQ")  # rx packets, tx packets, rx bytes, …, tx dropped

ROOT_HANDLE = 0x00010000  # 1:
CLASS_HANDLE = 0x00010001  # 1:1
LEAF_HANDLE = 0x00100000  # 10:

# <linux/ethtool.h>, <linux/sockios.h>
SIOCETHTOOL = 0x8946
ETHTOOL_SETTERS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}
ETHTOOL_STXCSUM = 0x17


class ShapingError(RuntimeError):
    """The kernel did not shape the link as asked; a session must not run on it."""


TOOL_TIMEOUT_S = 30.0


def run_tool(*command: str) -> str:
    """Runs a system tool and returns its output.

    Raises:
        ShapingError: it failed, with what it said, or hangs.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise ShapingError(f"the program {command[0]} is missing: install iproute2") from error
    except subprocess.TimeoutExpired as error:
        raise ShapingError(f"{' '.join(command)}: no answer in {TOOL_TIMEOUT_S} s") from error
    if done.returncode:
        raise ShapingError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def qdisc_problem(kind: str, *options: str, interface: str = "lo") -> str | None:
    """Tries a queueing discipline on an interface of this namespace and removes it again.

    Returns:
        What the kernel said if it refused, None if it works.
    """
    try:
        run_tool("tc", "qdisc", "add", "dev", interface, "root", kind, *options)
    except ShapingError as error:
        return str(error)
    run_tool("tc", "qdisc", "del", "dev", interface, "root")
    return None


def disable_offloads(interface: str) -> None:
    """Lets an interface of this namespace carry packets of one segment only.

    Raises:
        ShapingError: the kernel did not take it.
    """
    run_tool("ip", "link", "set", "dev", interface, "gso_max_segs", "1")
    for feature in ETHTOOL_SETTERS.values():
        _ethtool_off(interface, feature)
    shown: list[dict[str, Any]] = json.loads(
        run_tool("ip", "-details", "-json", "link", "show", "dev", interface)
    )
    if (segments := shown[0].get("gso_max_segs")) != 1:
        raise ShapingError(f"{interface}: gso_max_segs is {segments} after it was set to 1")


def disable_checksum_offload(interface: str) -> None:
    """Has checksums computed at once; a switch in user space needs them."""
    _ethtool_off(interface, ETHTOOL_STXCSUM)


def _ethtool_off(interface: str, command: int) -> None:
    value = np.array([command, 0], dtype=np.uint32)
    request = struct.pack("16sP8x", interface.encode(), value.ctypes.data)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, SIOCETHTOOL, request)
        except OSError as error:
            raise ShapingError(f"{interface}: switching an offload off: {error}") from error


# ---- schedule -----------------------------------------------------------------------------------


def packet_rates(trace: Trace, position_s: FloatArray) -> FloatArray:
    """Rate at which a whole packet that leaves at each position takes as long as the trace says.

    Args:
        trace: capacity at layer 3.
        position_s: ``(n,)`` positions in the trace, seconds.

    Returns:
        ``(n,)`` bytes per second.
    """
    took_s = trace.transfer_s(PACKET_BYTES * BITS_PER_BYTE, position_s)
    return np.clip(PACKET_BYTES / took_s, MIN_BYTES_PER_S, MAX_BYTES_PER_S)


def clip_rate(bytes_per_s: float) -> int:
    """The nearest rate that HTB can have."""
    return min(max(round(bytes_per_s), MIN_BYTES_PER_S), MAX_BYTES_PER_S)


def steps_between(trace: Trace, from_s: float, to_s: float) -> FloatArray:
    """Positions in ``[from_s, to_s)`` at which the trace's rate may change, passes included."""
    begins_s, found = trace.edges_s[:-1], []
    for number in range(int(from_s // trace.duration_s), int(to_s // trace.duration_s) + 1):
        pass_s = number * trace.duration_s
        first, last = np.searchsorted(begins_s, (from_s - pass_s, to_s - pass_s))
        found.append(pass_s + begins_s[max(first - 1, 0) : last + 1])
    steps = np.concatenate(found)
    return np.asarray(steps[(steps >= from_s) & (steps < to_s)])


def rate_changes(trace: Trace, from_s: float, to_s: float) -> tuple[FloatArray, FloatArray]:
    """When to set which rate between two positions of the trace.

    Returns:
        Two ``(n,)`` arrays: positions in seconds, the first being ``from_s``, and bytes per second.
    """
    grid = np.arange(from_s, to_s, SCHEDULE_GRID_S)
    steps = steps_between(trace, from_s, to_s)
    times = np.union1d(grid, steps)
    middles = (times + np.append(times[1:], to_s)) / 2
    rates = packet_rates(trace, middles)
    took_s = PACKET_BYTES / rates
    scale = np.where(took_s < LONG_S, np.log(np.minimum(took_s, LONG_S)), took_s / LONG_S - 1)
    coarse = np.round(scale / TIME_RESOLUTION)
    keep = np.isin(times, steps) | np.append(True, np.diff(coarse) != 0)
    return times[keep], rates[keep]


def schedule(trace: Trace, start_s: float, block_s: float = 1.0) -> Iterator[tuple[float, int]]:
    """All rate changes from position ``start_s`` on, without end, computed block by block.

    Yields:
        Seconds since the start, and bytes per second to set.
    """
    begin_s = start_s
    while True:
        times, rates = rate_changes(trace, begin_s, begin_s + block_s)
        for at_s, rate in zip((times - start_s).tolist(), rates.tolist(), strict=True):
            # Rounded up: woken a little early in an outage, one packet leaves before its end;
            # woken late, capacity would be lost behind it.
            yield at_s, math.ceil(rate - RATE_NOISE)
        begin_s += block_s


# ---- kernel -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClassState:
    """What the kernel says about the class.

    Attributes:
        bytes_per_s: its rate.
        sent_bytes: layer 3.
        sent_packets: packets that have left.
        backlog_packets: packets that wait.
        backlog_bytes: their bytes, layer 3.
    """

    bytes_per_s: int
    sent_bytes: int
    sent_packets: int
    backlog_packets: int
    backlog_bytes: int


class HtbClass(Netlink):
    """The shaped output of one interface of this network namespace: HTB over one queue."""

    def __init__(
        self,
        interface: str,
        *,
        queue: QueueSpec,
        bytes_per_s: int,
        idle_credit_s: float = IDLE_CREDIT_S,
    ) -> None:
        """Sets the interface up.

        Args:
            interface: its name.
            queue: in front of it.
            bytes_per_s: rate at layer 3.
            idle_credit_s: capacity that it saves up while no packets wait.

        Raises:
            ShapingError: the kernel refused, or took something else than asked.
        """
        self.interface = interface
        self._leaf_kind = qdisc_kind(queue)
        device = ("dev", interface)
        run_tool(
            *("tc", "qdisc", "add", *device, "root", "handle", "1:"),
            *("stab", "overhead", str(-ETHERNET_HEADER_BYTES), "linklayer", "ethernet"),
            *("htb", "default", "1"),
        )
        run_tool(
            *("tc", "class", "add", *device, "parent", "1:", "classid", "1:1", "htb"),
            *("rate", "1mbit", "quantum", str(PACKET_BYTES)),
        )
        run_tool(
            *("tc", "qdisc", "add", *device, "parent", "1:1", "handle", "10:"),
            *(self._leaf_kind, *qdisc_options(queue)),
        )
        self._verify_qdiscs(queue)
        index = socket.if_nametoindex(interface)
        super().__init__()
        self._change, self._rate_at, self._credit_at = _change_message(index)
        self._get = request(RTM_GETTCLASS, NLM_F_REQUEST | NLM_F_ECHO, _tcmsg(index))
        self._get_leaf = qdisc_request(index, LEAF_HANDLE)
        self.bytes_per_s = bytes_per_s
        self._idle_credit_ticks = _ticks(idle_credit_s)
        self.change(bytes_per_s, is_busy=False)
        self.verify()

    def _verify_qdiscs(self, queue: QueueSpec) -> None:
        shown = json.loads(run_tool("tc", "-json", "qdisc", "show", "dev", self.interface))
        kinds = {qdisc["kind"]: qdisc.get("options", {}) for qdisc in shown}
        if "htb" not in kinds or not is_as_asked(queue, kinds.get(self._leaf_kind, {})):
            asked = " ".join((self._leaf_kind, *qdisc_options(queue)))
            raise ShapingError(
                f"{self.interface}: asked for HTB over {asked}, the kernel has {kinds}"
            )

    def change(self, bytes_per_s: int, *, is_busy: bool) -> None:
        """Changes the rate and the size of the bucket in place.

        Args:
            bytes_per_s: rate at layer 3.
            is_busy: whether packets wait.

        Raises:
            ShapingError: the kernel refused.
        """
        for offset in self._rate_at:
            struct.pack_into("=I", self._change, offset, bytes_per_s)
        ticks = BUSY_CREDIT_TICKS if is_busy else self._idle_credit_ticks
        struct.pack_into("=II", self._change, self._credit_at, ticks, ticks)
        self._ask(self._change, f"setting {bytes_per_s} bytes per second")
        self.bytes_per_s = bytes_per_s

    def read(self) -> ClassState:
        """Reads the class back.

        Raises:
            ShapingError: it is not there any more.
        """
        answer = self._ask(self._get, "reading the HTB class")
        found = payloads(answer)
        rate = sent_bytes = sent_packets = packets = size = 0
        for inner, at, _ in attributes(answer, *found.get(TCA_OPTIONS, (0, 0))):
            if inner == TCA_HTB_PARMS:
                rate = RATESPEC.unpack_from(answer, at)[5]
        for inner, at, _ in attributes(answer, *found.get(TCA_STATS2, (0, 0))):
            if inner == TCA_STATS_BASIC:
                sent_bytes, sent_packets = STATS_BASIC.unpack_from(answer, at)
            elif inner == TCA_STATS_QUEUE:
                packets, size = STATS_QUEUE.unpack_from(answer, at)[:2]
        return ClassState(rate, sent_bytes, sent_packets, packets, size)

    def read_counts(self) -> QueueCounts:
        """Reads what the queue did so far.

        Raises:
            ShapingError: it is not there any more.
        """
        return read_counts(self._leaf_kind, self._ask(self._get_leaf, "reading the queue"))

    def verify(self) -> None:
        """Checks that the kernel has the rate that was set last.

        Raises:
            ShapingError: it has another one.
        """
        found = self.read().bytes_per_s
        if found != self.bytes_per_s:
            raise ShapingError(
                f"{self.interface}: asked for {self.bytes_per_s} bytes per second, "
                f"the kernel has {found}"
            )

    def _ask(self, message: bytearray, what: str) -> bytes:
        try:
            return self.ask(message)
        except OSError as error:
            raise ShapingError(f"{self.interface}: {what}: {error}") from error


class ReceiveCounter(Netlink):
    """Counts what one interface of this network namespace has received; readable from any other."""

    def __init__(self, interface: str) -> None:
        index = socket.if_nametoindex(interface)
        super().__init__()
        self._get = request(
            RTM_GETSTATS, NLM_F_REQUEST, IF_STATS.pack(0, 0, 0, index, IFLA_STATS_LINK_64)
        )

    def read(self) -> tuple[int, int]:
        """Packets and layer-3 bytes received so far."""
        packets, _, size, _ = self._counters()
        return packets, size - ETHERNET_HEADER_BYTES * packets

    def read_unsent(self) -> int:
        """Packets that could not be sent so far."""
        return self._counters()[3]

    def _counters(self) -> tuple[int, int, int, int]:
        answer = self.ask(self._get)
        for _, at, _ in attributes(answer, NLMSG_HEADER.size + IF_STATS.size, len(answer)):
            received, sent, size, unsent = LINK_STATS.unpack_from(answer, at)
            return received, sent, size, unsent
        raise ShapingError("the kernel gave no interface statistics")


def _ticks(seconds: float) -> int:
    return round(seconds * 1e9 / NS_PER_TICK)


def _tcmsg(index: int) -> bytes:
    return TCMSG.pack(socket.AF_UNSPEC, 0, 0, index, CLASS_HANDLE, ROOT_HANDLE, 0)


def _change_message(index: int) -> tuple[bytearray, tuple[int, int], int]:
    """The message that changes the class, and where in it the rate (twice) and the credit go.

    The bucket holds a time, not a size, so its credit is the same share of capacity at any rate.
    """
    ratespec = RATESPEC.pack(0, LINKLAYER_ETHERNET, 0, 0, 0, 0)
    parameters = 2 * ratespec + HTB_BUCKETS.pack(0, 0, PACKET_BYTES, 0, 0)
    options = attribute(TCA_OPTIONS, attribute(TCA_HTB_PARMS, parameters))
    message = request(
        RTM_NEWTCLASS,
        NLM_F_REQUEST | NLM_F_ACK,
        _tcmsg(index) + attribute(TCA_KIND, b"htb\0") + options,
    )
    begin = len(message) - len(parameters)
    first = begin + RATESPEC.size - 4
    return message, (first, first + RATESPEC.size), begin + 2 * RATESPEC.size
