"""Active queue management: CoDel (RFC 8289) and PIE (RFC 8033), with ECN (RFC 3168).

PIE judges a packet when it comes, CoDel when it is about to be sent. As everywhere here, time is an
argument. ``_carrier.c`` repeats the arithmetic to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from testbed.links.draws import draw

LARGEST_PACKET_BYTES = 1500

CODEL_TARGET_S = 0.005
CODEL_INTERVAL_S = 0.100
CODEL_MEMORY = 16.0  # intervals after which it forgets how often it dropped

PIE_TARGET_S = 0.015
PIE_UPDATE_S = 0.015
PIE_ALPHA = 0.125  # per second
PIE_BETA = 1.25
PIE_BURST_S = 0.150
PIE_MARK_BELOW = 0.1  # above this probability it drops even what it could mark
PIE_SAFE_BELOW = 0.2
PIE_LARGEST_STEP = 0.02
PIE_DECAY = 0.98
#: Below a probability, what is added to it is divided, so that it moves gently (section 4.2).
PIE_DAMPING = ((1e-6, 2048.0), (1e-5, 512.0), (1e-4, 128.0), (1e-3, 32.0), (1e-2, 8.0), (0.1, 2.0))

# ECN field of the IP header, RFC 3168, section 5
_ECN_CAPABLE, _ECN_CONGESTED = (1, 2), 3
_ECN_MASK = 0b11
_ETHERNET_BYTES = 14
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_IPV4_CHECKSUM_AT = 10


@dataclass(slots=True)
class Packet:
    """A packet inside a link.

    Attributes:
        frame: as on the wire, Ethernet header included.
        size_bytes: layer 3.
        entered_s: when the link read it.
        arrives_s: when it comes to the queue.
    """

    frame: bytes
    size_bytes: int
    entered_s: float
    arrives_s: float


class Waiting(Protocol):
    """The queue as CoDel sees it."""

    waiting_bytes: int

    def pop(self) -> Packet | None:
        """Takes the packet at the head."""
        ...

    def discard(self, packet: Packet) -> None:
        """Drops a packet that was taken."""
        ...

    def mark(self, packet: Packet) -> bool:
        """Marks a packet that was taken; False if it must be dropped."""
        ...


class CoDel:
    """The state of section 5 of RFC 8289."""

    def __init__(self, target_s: float = CODEL_TARGET_S, interval_s: float = CODEL_INTERVAL_S):
        self._target_s = target_s
        self._interval_s = interval_s
        self._first_above_s = 0.0
        self._drop_next_s = 0.0
        self._count = 0
        self._last_count = 0
        self._is_dropping = False

    def take(self, queue: Waiting, now_s: float) -> Packet | None:
        """The packet to send now; drops or marks others, or it, on the way."""
        packet, is_late = self._pop(queue, now_s)
        if self._is_dropping:
            if not is_late:
                self._is_dropping = False
            while self._is_dropping and packet is not None and now_s >= self._drop_next_s:
                self._count += 1
                if queue.mark(packet):
                    self._drop_next_s = self._after(self._drop_next_s)
                    break
                queue.discard(packet)
                packet, is_late = self._pop(queue, now_s)
                if is_late:
                    self._drop_next_s = self._after(self._drop_next_s)
                else:
                    self._is_dropping = False
        elif is_late and packet is not None:
            if not queue.mark(packet):
                queue.discard(packet)
                packet, _ = self._pop(queue, now_s)
            self._is_dropping = True
            recent = self._count - self._last_count
            is_recent = now_s - self._drop_next_s < CODEL_MEMORY * self._interval_s
            self._count = recent if recent > 1 and is_recent else 1
            self._last_count = self._count
            self._drop_next_s = self._after(now_s)
        return packet

    def _pop(self, queue: Waiting, now_s: float) -> tuple[Packet | None, bool]:
        """The next packet, and whether delays have been too long for an interval."""
        packet = queue.pop()
        if packet is None:
            self._first_above_s = 0.0
            return None, False
        is_short = now_s - packet.arrives_s < self._target_s
        if is_short or queue.waiting_bytes <= LARGEST_PACKET_BYTES:
            self._first_above_s = 0.0
            return packet, False
        if self._first_above_s == 0.0:
            self._first_above_s = now_s + self._interval_s
            return packet, False
        return packet, now_s >= self._first_above_s

    def _after(self, at_s: float) -> float:
        return at_s + self._interval_s / math.sqrt(self._count)


class Pie:
    """The state of sections 4 and 5.1 of RFC 8033; delays are measured, not estimated."""

    def __init__(
        self, key: int, target_s: float = PIE_TARGET_S, update_s: float = PIE_UPDATE_S
    ) -> None:
        """Starts without any probability.

        Args:
            key: of its stream of draws; one per packet that it judges.
            target_s: delay that it aims for.
            update_s: time between two updates of the probability.
        """
        self._key = key
        self._target_s = target_s
        self._update_s = update_s
        self._number = 0
        self._probability = 0.0
        self._delay_s = 0.0  # of the packet that was sent last
        self._old_delay_s = 0.0
        self._burst_s = PIE_BURST_S
        self._update_at_s = 0.0

    def sent(self, delay_s: float) -> None:
        """Learns how long the packet waited that is sent now."""
        self._delay_s = delay_s

    def strikes(self, now_s: float, waiting_bytes: int) -> bool:
        """Whether a packet that comes now is to be dropped or marked."""
        self._update(now_s, is_empty=waiting_bytes == 0)
        number = self._number
        self._number += 1
        if self._burst_s > 0.0:
            return False
        is_calm = self._old_delay_s < self._target_s / 2.0
        if (is_calm and self._probability < PIE_SAFE_BELOW) or (
            waiting_bytes <= 2 * LARGEST_PACKET_BYTES
        ):
            return False
        return draw(self._key, number) < self._probability

    @property
    def may_mark(self) -> bool:
        """Whether it marks rather than drops for now."""
        return self._probability < PIE_MARK_BELOW

    def _update(self, now_s: float, *, is_empty: bool) -> None:
        if self._update_at_s == 0.0:
            self._update_at_s = now_s + self._update_s
        if is_empty:
            self._delay_s = 0.0
        while self._update_at_s <= now_s:
            self._update_at_s += self._update_s
            self._step()

    def _step(self) -> None:
        delay_s, old_s, probability = self._delay_s, self._old_delay_s, self._probability
        step = PIE_ALPHA * (delay_s - self._target_s) + PIE_BETA * (delay_s - old_s)
        for below, divisor in PIE_DAMPING:
            if probability < below:
                step /= divisor
                break
        if probability >= PIE_MARK_BELOW and step > PIE_LARGEST_STEP:
            step = PIE_LARGEST_STEP
        probability += step
        if delay_s == 0.0 and old_s == 0.0:
            probability *= PIE_DECAY
        self._probability = min(max(probability, 0.0), 1.0)
        self._old_delay_s = delay_s
        self._burst_s = max(self._burst_s - self._update_s, 0.0)
        half_s = self._target_s / 2.0
        if self._probability == 0.0 and delay_s < half_s and old_s < half_s:
            self._burst_s = PIE_BURST_S


def marked(frame: bytes) -> bytes | None:
    """The frame with "congestion experienced" in its IP header; None if its flow has no ECN.

    The checksum of IPv4 is updated as RFC 1624 says.
    """
    kind, ip = frame[12:_ETHERNET_BYTES], _ETHERNET_BYTES
    if len(frame) < ip + 20:
        return None
    if kind == _IPV4:
        ecn = frame[ip + 1] & _ECN_MASK
        if ecn not in (*_ECN_CAPABLE, _ECN_CONGESTED):
            return None
        changed = bytearray(frame)
        changed[ip + 1] |= _ECN_CONGESTED
        at = ip + _IPV4_CHECKSUM_AT
        total = 0xFFFF - int.from_bytes(frame[at : at + 2]) + (_ECN_CONGESTED - ecn)
        total = (total & 0xFFFF) + (total >> 16)
        changed[at : at + 2] = (0xFFFF - total).to_bytes(2)
        return bytes(changed)
    if kind == _IPV6:  # the traffic class stands across the first two bytes
        if (frame[ip + 1] >> 4) & _ECN_MASK == 0:
            return None
        changed = bytearray(frame)
        changed[ip + 1] |= _ECN_CONGESTED << 4
        return bytes(changed)
    return None
