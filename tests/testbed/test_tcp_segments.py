from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from testbed.tcp_segments import REORDERING_NS, Echoes, Segment, Stream

U32 = st.integers(0, 2**32 - 1)
MS = 1_000_000


def frame(options: list[Any], payload: bytes = b"", **fields: Any) -> bytes:
    ends = {"src": "10.0.0.2", "dst": "10.0.0.1"}
    return bytes(Ether() / IP(**ends) / TCP(sport=5, dport=80, options=options, **fields) / payload)


@given(U32, U32, U32, U32, st.binary(max_size=50), st.permutations(["NOP", "MSS", "WScale"]))
def test_headers_that_scapy_makes_are_read(
    seq: int, ack: int, tsval: int, tsecr: int, payload: bytes, others: list[str]
) -> None:
    values = {"NOP": None, "MSS": 1460, "WScale": 7, "Timestamp": (tsval, tsecr)}
    options = [(name, values[name]) for name in (*others[:2], "Timestamp", others[2])]
    made = frame(options, payload, seq=seq, ack=ack, flags="PA")
    read = Segment.read(made)
    assert read is not None
    assert (read.source, read.destination) == ((b"\n\0\0\2", 5), (b"\n\0\0\1", 80))
    assert (read.seq, read.ack, read.tsval, read.tsecr) == (seq, ack, tsval, tsecr)
    assert made[read.payload_start :] == payload
    assert read.payload_bytes == len(payload)
    assert read.l3_bytes == len(made) - 14


def test_the_usual_layout_of_timestamps_is_read() -> None:
    read = Segment.read(frame([("NOP", None), ("NOP", None), ("Timestamp", (7, 9))], flags="A"))
    assert read is not None
    assert (read.tsval, read.tsecr) == (7, 9)


def test_the_echo_of_a_syn_means_nothing() -> None:
    read = Segment.read(frame([("Timestamp", (7, 0))], flags="S"))
    assert read is not None
    assert (read.tsval, read.tsecr) == (7, None)


@pytest.mark.parametrize(
    "other",
    [
        b"",
        bytes(60),
        bytes(Ether() / IP() / UDP()),
        bytes(Ether() / IP(frag=5, proto=6) / bytes(40)),
        frame([])[:50],
        bytes(Ether() / IP(len=30) / TCP()),
    ],
)
def test_what_is_no_whole_tcp_header_is_none(other: bytes) -> None:
    assert Segment.read(other) is None


@given(st.binary(max_size=120))
def test_anything_can_be_read(noise: bytes) -> None:
    Segment.read(noise)
    Segment.read(frame([])[:34] + noise)


@given(
    st.sampled_from([0, 1000, 2**31, 2**32 - 30]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=30),
)
def test_bytes_are_counted_as_a_set_would(isn: int, pieces: list[tuple[int, int]]) -> None:
    stream, seen, again, filling = Stream(), set[int](), 0, 0
    stream.begin(isn)
    for begin, size in pieces:
        piece = set(range(begin, begin + size))
        if begin < max(seen, default=-1) + 1:
            is_new_below = any(
                byte not in seen for byte in range(begin, max(seen) + 1) if byte in piece
            )
            filling += is_new_below
            again += not is_new_below
        fresh = stream.take((isn + 1 + begin) % 2**32, size, time_ns=0, tsval=None)
        assert fresh == len(piece - seen)
        seen |= piece
    assert stream.payload_bytes == len(seen)
    assert stream.missing_bytes == max(seen, default=-1) + 1 - len(seen)
    assert (stream.out_of_order, stream.retransmissions) == (filling, again)


@pytest.mark.parametrize(
    ("tsval", "time_ns", "kind"),
    [
        (99, 50 * MS, "out_of_order"),
        (100, 50 * MS, "out_of_order"),
        (101, 1 * MS, "retransmissions"),
        (None, REORDERING_NS, "out_of_order"),
        (None, REORDERING_NS + 1, "retransmissions"),
    ],
)
def test_who_fills_a_gap_was_overtaken_or_sent_again(
    tsval: int | None, time_ns: int, kind: str
) -> None:
    stream = Stream()
    stream.begin(2**32 - 1)
    stream.take(0, 10, 0, 100)
    stream.take(20, 10, 0, 100)
    assert stream.missing_bytes == 10
    assert stream.take(10, 10, time_ns, tsval) == 10
    assert {name: getattr(stream, name) for name in ("out_of_order", "retransmissions")} == {
        "out_of_order": 0,
        "retransmissions": 0,
        kind: 1,
    }


@pytest.mark.parametrize("first", [0, 2**32 - 2])
def test_a_round_trip_is_from_the_first_use_of_a_value_to_its_first_echo(first: int) -> None:
    echoes = Echoes()
    for later, at_ms in ((0, 0), (0, 3), (1, 10), (2, 20), (3, 30)):
        echoes.send((first + later) % 2**32, at_ms * MS)
    for later, at_ms in ((0, 40), (0, 41), (2, 65), (1, 66), (9, 99)):
        echoes.receive((first + later) % 2**32, at_ms * MS)
    assert echoes.samples_ns == [40 * MS, 45 * MS]
