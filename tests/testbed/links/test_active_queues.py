from __future__ import annotations

import itertools
import math
import random
import struct
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.links.active_queues import (
    CODEL_INTERVAL_S,
    CODEL_TARGET_S,
    PIE_BURST_S,
    PIE_MARK_BELOW,
    PIE_TARGET_S,
    PIE_UPDATE_S,
    CoDel,
    Packet,
    Pie,
    marked,
)

PACKET_BYTES = 1500
ETHERNET = b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02"
IPV4, IPV6, ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"


def checksum(header: bytes) -> int:
    """Of an IPv4 header, computed in full (RFC 1071); 0 over one that contains a right one."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def ipv4_header(traffic_class: int, rest: bytes, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    start = struct.pack("!BBHHHBB", 0x40 | words, traffic_class, 1500, *rest_words(rest))
    header = bytearray(start + b"\0\0" + rest[6:14] + options)
    header[10:12] = checksum(bytes(header)).to_bytes(2)
    return bytes(header)


def rest_words(rest: bytes) -> tuple[int, int, int, int]:
    return (*struct.unpack("!HHBB", rest[:6]),)


# ---- marks --------------------------------------------------------------------------------------


@given(
    st.integers(0, 255),
    st.binary(min_size=14, max_size=14),
    st.sampled_from([b"", bytes(4), b"\x94\x04\0\0"]),
)
def test_a_marked_ipv4_packet_has_a_right_checksum(
    traffic_class: int, rest: bytes, options: bytes
) -> None:
    header = ipv4_header(traffic_class, rest, options)
    assert checksum(header) == 0
    frame = ETHERNET + IPV4 + header + b"payload"
    changed = marked(frame)
    if traffic_class & 3 == 0:
        assert changed is None
        return
    assert changed is not None
    assert checksum(changed[14 : 14 + len(header)]) == 0
    assert changed[15] == traffic_class | 3
    same = [n for n in range(len(frame)) if frame[n] == changed[n]]
    assert set(range(len(frame))) - set(same) <= {15, 24, 25}


@given(st.integers(0, 255), st.integers(0, 2**20 - 1))
def test_a_marked_ipv6_packet_has_nothing_else_changed(traffic_class: int, flow: int) -> None:
    start = struct.pack("!I", 6 << 28 | traffic_class << 20 | flow)
    expected = struct.pack("!I", 6 << 28 | (traffic_class | 3) << 20 | flow)
    frame = ETHERNET + IPV6 + start + bytes(40)
    changed = marked(frame)
    if traffic_class & 3 == 0:
        assert changed is None
    else:
        assert changed == ETHERNET + IPV6 + expected + bytes(40)


def test_what_is_no_ip_or_too_short_cannot_be_marked() -> None:
    assert marked(ETHERNET + ARP + b"\xff" * 28) is None
    assert marked(ETHERNET + IPV4 + b"\xff" * 19) is None
    assert marked(ETHERNET) is None


# ---- CoDel --------------------------------------------------------------------------------------


def packet_at(at_s: float) -> Packet:
    return Packet(ETHERNET + IPV4 + bytes(PACKET_BYTES), PACKET_BYTES, at_s, at_s)


class Queue:
    """A queue that notes when something is dropped or marked."""

    def __init__(self, *, ecn: bool = False) -> None:
        self.packets: deque[Packet] = deque()
        self.waiting_bytes = 0
        self.now_s = 0.0
        self.struck_s: list[float] = []
        self._ecn = ecn

    def push(self, packet: Packet) -> None:
        self.packets.append(packet)
        self.waiting_bytes += packet.size_bytes

    def pop(self) -> Packet | None:
        if not self.packets:
            return None
        packet = self.packets.popleft()
        self.waiting_bytes -= packet.size_bytes
        return packet

    def discard(self, packet: Packet) -> None:
        self.struck_s.append(self.now_s)

    def mark(self, packet: Packet) -> bool:
        if self._ecn:
            self.struck_s.append(self.now_s)
        return self._ecn


def serve(queue: Queue, *, delay_s: float, seconds: float, step_s: float = 0.001) -> list[float]:
    """Takes a packet at each step, always one that waited as long; their times of arrival."""
    codel = CoDel()
    arrivals_s = []
    for step in range(1, round(seconds / step_s)):
        queue.now_s = 100.0 + step * step_s
        while len(queue.packets) < 10:  # all that CoDel may take now is as old
            queue.push(packet_at(0.0))
        for packet in queue.packets:
            packet.arrives_s = queue.now_s - delay_s
        taken = codel.take(queue, queue.now_s)
        assert taken is not None
        arrivals_s.append(taken.arrives_s)
    return arrivals_s


def test_codel_leaves_short_delays_alone() -> None:
    queue = Queue()
    serve(queue, delay_s=CODEL_TARGET_S * 0.99, seconds=3.0)
    assert queue.struck_s == []


@pytest.mark.parametrize("ecn", [False, True])
def test_codel_strikes_after_an_interval_and_then_ever_more_often(ecn: bool) -> None:
    queue = Queue(ecn=ecn)
    serve(queue, delay_s=CODEL_TARGET_S * 2, seconds=3.0)
    first, *_ = queue.struck_s
    assert first == pytest.approx(100.0 + CODEL_INTERVAL_S, abs=0.003)
    gaps_s = [after - before for before, after in itertools.pairwise(queue.struck_s)]
    expected_s = [CODEL_INTERVAL_S / math.sqrt(count) for count in range(1, len(gaps_s) + 1)]
    assert len(gaps_s) > 50
    # It can only act when a packet leaves, each millisecond; what that costs does not add up.
    assert gaps_s == pytest.approx(expected_s, abs=0.00201)
    assert sum(gaps_s) == pytest.approx(sum(expected_s), abs=0.003)


def test_codel_goes_on_where_it_stopped_when_the_queue_comes_back_soon() -> None:
    queue, codel = Queue(), CoDel()

    def take(delay_s: float, seconds: float) -> int:
        before = len(queue.struck_s)
        for _ in range(round(seconds / 0.001)):
            queue.now_s += 0.001
            while len(queue.packets) < 10:
                queue.push(packet_at(0.0))
            for packet in queue.packets:
                packet.arrives_s = queue.now_s - delay_s
            codel.take(queue, queue.now_s)
        return len(queue.struck_s) - before

    queue.now_s = 50.0
    first = take(0.02, 1.0)
    assert take(0.001, 0.05) == 0
    again = take(0.02, 1.0)
    assert again > first
    assert take(0.001, 5.0) == 0
    assert take(0.02, 1.0) == first


def test_codel_never_takes_the_last_packet() -> None:
    queue, codel = Queue(), CoDel()
    for step in range(1000):
        queue.now_s = 100.0 + step * 0.1
        queue.push(packet_at(queue.now_s - 1.0))
        assert codel.take(queue, queue.now_s) is not None
        assert codel.take(queue, queue.now_s) is None
    assert queue.struck_s == []


# ---- PIE ----------------------------------------------------------------------------------------

MANY_BYTES = 100 * PACKET_BYTES


def strikes(pie: Pie, delay_s: float, *, begin_s: float, seconds: float) -> list[bool]:
    """What happens to a packet each millisecond while those sent waited as long."""
    fates = []
    for step in range(round(seconds * 1000)):
        pie.sent(delay_s)
        fates.append(pie.strikes(begin_s + step * 0.001, MANY_BYTES))
    return fates


def test_pie_leaves_short_delays_alone() -> None:
    pie = Pie(1)
    assert not any(strikes(pie, PIE_TARGET_S * 0.9, begin_s=9.0, seconds=5.0))


def test_pie_lets_a_burst_pass_and_then_strikes_ever_more() -> None:
    pie = Pie(1)
    burst = round(PIE_BURST_S * 1000)
    fates = strikes(pie, 0.1, begin_s=9.0, seconds=10.0)
    assert not any(fates[:burst])
    shares = [sum(fates[second * 1000 :][:1000]) for second in range(5)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    assert sum(fates[-1000:]) > 900  # by then its probability is 1
    assert not pie.may_mark


def test_pie_forgets_when_the_queue_is_short_again() -> None:
    pie = Pie(1)
    strikes(pie, 0.05, begin_s=9.0, seconds=2.0)
    assert any(strikes(pie, 0.05, begin_s=11.0, seconds=1.0))
    strikes(pie, 0.0, begin_s=12.0, seconds=10.0)
    assert not any(strikes(pie, 0.005, begin_s=22.0, seconds=1.0))
    assert pie.may_mark


def test_pie_moves_as_the_rfc_computes_it() -> None:
    pie, probability, old_s = Pie(1), 0.0, 0.0
    rng = random.Random(4)
    now_s = 9.0
    pie.strikes(now_s, MANY_BYTES)
    for _ in range(400):
        delay_s = rng.uniform(0.09, 0.1)
        pie.sent(delay_s)
        now_s += PIE_UPDATE_S
        pie.strikes(now_s + 1e-6, MANY_BYTES)
        step = 0.125 * (delay_s - PIE_TARGET_S) + 1.25 * (delay_s - old_s)
        for below, divisor in ((1e-6, 2048), (1e-5, 512), (1e-4, 128), (1e-3, 32), (1e-2, 8)):
            if probability < below:
                step /= divisor
                break
        else:
            if probability < 0.1:
                step /= 2
            else:
                step = min(step, 0.02)
        probability = min(max(probability + step, 0.0), 1.0)
        old_s = delay_s
        assert pie._probability == pytest.approx(probability)
    assert probability > PIE_MARK_BELOW


def test_pie_spares_a_queue_of_two_packets() -> None:
    pie = Pie(1)
    strikes(pie, 0.1, begin_s=9.0, seconds=10.0)
    assert not any(pie.strikes(19.0, 2 * PACKET_BYTES) for _ in range(100))
    assert all(pie.strikes(19.0, MANY_BYTES) for _ in range(100))
