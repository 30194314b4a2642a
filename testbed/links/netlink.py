"""What is asked of the kernel often, or must be exact: netlink messages without a tool between.

The layouts are those of ``rtnetlink(7)``, <linux/rtnetlink.h>, <linux/pkt_sched.h> and
<linux/gen_stats.h>. A request takes about 20 µs where ``tc`` takes milliseconds.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO = 1, 4, 8
NLMSG_ERROR = 2
RTM_GETQDISC = 38
TCA_KIND, TCA_OPTIONS, TCA_STATS2 = 1, 2, 7
TCA_STATS_BASIC, TCA_STATS_QUEUE, TCA_STATS_APP = 1, 3, 4
NLMSG_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
TCMSG = struct.Struct("=BBHiIII")  # family, pad, pad, ifindex, handle, parent, info
RTATTR = struct.Struct("=HH")
STATS_QUEUE = struct.Struct("=IIIII")  # packets, bytes, drops, requeues, overlimits
ATTRIBUTE_KIND = 0x3FFF  # the two highest bits are flags
NS_PER_TICK = 64
RECEIVE_BYTES = 65536
ANSWER_TIMEOUT_S = 1.0


class Netlink:
    """A routing netlink socket; it belongs to the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._sequence = 0

    def ask(self, message: bytearray) -> bytes:
        """Sends one request with a fresh sequence number.

        Returns:
            The answer with its header.

        Raises:
            OSError: the kernel refused.
        """
        self._sequence += 1
        struct.pack_into("=I", message, 8, self._sequence)
        self._socket.send(message)
        while True:
            answer = self._socket.recv(RECEIVE_BYTES)
            _, kind, _, sequence, _ = NLMSG_HEADER.unpack_from(answer)
            if sequence != self._sequence:
                continue  # the answer to a request that timed out
            if kind == NLMSG_ERROR and (
                number := struct.unpack_from("=i", answer, NLMSG_HEADER.size)[0]
            ):
                raise OSError(-number, os.strerror(-number))
            return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the socket."""
        self._socket.close()


def request(kind: int, flags: int, body: bytes) -> bytearray:
    """A message of its own length; its sequence number is filled in when it is sent."""
    return bytearray(NLMSG_HEADER.pack(NLMSG_HEADER.size + len(body), kind, flags, 0, 0) + body)


def qdisc_request(interface_index: int, handle: int) -> bytearray:
    """Asks for a queueing discipline with its options and counters."""
    body = TCMSG.pack(socket.AF_UNSPEC, 0, 0, interface_index, handle, 0, 0)
    return request(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_ECHO, body)


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    padding = b"\0" * (-len(payload) % RTATTR.size)
    return RTATTR.pack(RTATTR.size + len(payload), kind) + payload + padding


def attributes(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, begin and end of the payload of each attribute."""
    while at + RTATTR.size <= end:
        length, kind = RTATTR.unpack_from(message, at)
        if length < RTATTR.size:
            return
        yield kind & ATTRIBUTE_KIND, at + RTATTR.size, at + length
        at += (length + 3) & ~3


def payloads(answer: bytes) -> dict[int, tuple[int, int]]:
    """Where the attributes of an answer about traffic control begin and end, by their kind."""
    begin = NLMSG_HEADER.size + TCMSG.size
    return {kind: (at, end) for kind, at, end in attributes(answer, begin, len(answer))}
