"""What is written by hand is what scapy reads."""

from __future__ import annotations

import io
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from scapy.utils import RawPcapNgReader

from testbed import pcapng
from testbed.pcapng import INBOUND, OUTBOUND, InterfaceStatistics

PACKETS = st.tuples(
    st.integers(0, 1),
    st.integers(0, 2**63 - 1),
    st.binary(max_size=100),
    st.integers(0, 2**32 - 1),
    st.sampled_from([INBOUND, OUTBOUND]),
)
COUNTS = st.integers(0, 2**64 - 1)


@given(st.lists(PACKETS))
def test_scapy_reads_every_field(packets: list[tuple[int, int, bytes, int, int]]) -> None:
    file = pcapng.section_block()
    file += pcapng.interface_block("eth0", 96) + pcapng.interface_block("client-eth1", 1514)
    file += b"".join(pcapng.packet_block(*packet) for packet in packets)
    reader: Any = RawPcapNgReader(io.BytesIO(file))  # type: ignore[arg-type]
    read = list(reader)
    assert [(linktype, snap) for linktype, snap, _ in reader.interfaces] == [(1, 96), (1, 1514)]
    assert len(read) == len(packets)
    for (captured, about), (interface, time_ns, data, wire_bytes, direction) in zip(
        read, packets, strict=True
    ):
        assert about.tsresol == 10**9
        assert (about.tshigh << 32) + about.tslow == time_ns
        assert about.ifname == (b"eth0", b"client-eth1")[interface]
        assert (captured, about.wirelen, about.direction) == (data, wire_bytes, direction)


@given(COUNTS, COUNTS, st.text(max_size=30))
def test_statistics_are_read_back(received: int, dropped: int, comment: str) -> None:
    statistics = InterfaceStatistics(received, dropped, comment)
    file = pcapng.section_block() + pcapng.interface_block("eth0", 96)
    reader: Any = RawPcapNgReader(  # type: ignore[arg-type]
        io.BytesIO(file + pcapng.statistics_block(0, 10**18, statistics))
    )
    bodies: list[bytes] = []
    reader.blocktypes[pcapng.STATISTICS_BLOCK] = lambda body, _: bodies.append(body)
    assert list(reader) == []
    assert [pcapng.read_statistics(body) for body in bodies] == [statistics]


@pytest.mark.parametrize("body", [b"", bytes(12), bytes(12) + b"\4\0\x10\0", b"\xff" * 40])
def test_statistics_without_counts_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="counts"):
        pcapng.read_statistics(body)
