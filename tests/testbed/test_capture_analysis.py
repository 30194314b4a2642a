"""Captures made by hand, of which everything is known."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from testbed import pcapng
from testbed.capture_analysis import CaptureFormatError, analyse
from testbed.pcapng import INBOUND, OUTBOUND, InterfaceStatistics

MS = 1_000_000
BEGAN_NS = 1_700_000_000 * 1_000_000_000
CLIENT, SERVER = ("10.0.0.2", 40000), ("10.0.0.1", 8000)
HEADERS = pcapng.section_block() + pcapng.interface_block("client-eth0", 1514)
COMPLETE = pcapng.statistics_block(0, BEGAN_NS, InterfaceStatistics(100, 3))
QUESTION = b"POST /v1/abr/bba/decide HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 8\r\n\r\n"
ISN = 2**32 - 700  # wraps early


class Conversation:
    """Writes down the packets of a connection; sequence numbers count from the first byte."""

    def __init__(self, client: tuple[str, int] = CLIENT, *, has_timestamps: bool = True) -> None:
        self.blocks: list[bytes] = []
        self._client = client
        self._has_timestamps = has_timestamps

    def up(self, at_ms: float, flags: str = "A", **more: Any) -> None:
        self._packet(at_ms, flags, OUTBOUND, **more)

    def down(self, at_ms: float, flags: str = "A", **more: Any) -> None:
        self._packet(at_ms, flags, INBOUND, **more)

    def open(self, rtt_ms: float) -> None:
        self.up(0, "S", tsval=1)
        self.down(rtt_ms, "SA", tsval=1, tsecr=1)
        self.up(rtt_ms, tsval=2, tsecr=1)

    def _packet(
        self,
        at_ms: float,
        flags: str,
        direction: int,
        *,
        seq: int = 0,
        payload: bytes = b"",
        tsval: int = 0,
        tsecr: int = 0,
        snap_bytes: int = 1514,
    ) -> None:
        (source, source_port), (sink, sink_port) = (
            (self._client, SERVER) if direction == OUTBOUND else (SERVER, self._client)
        )
        options = [("Timestamp", (tsval, tsecr))] if self._has_timestamps else []
        packet = bytes(
            Ether()
            / IP(src=source, dst=sink)
            / TCP(
                sport=source_port,
                dport=sink_port,
                flags=flags,
                seq=(ISN + (0 if "S" in flags else 1 + seq)) % 2**32,
                options=options,
            )
            / payload
        )
        time_ns = BEGAN_NS + round(at_ms * MS)
        self.blocks.append(
            pcapng.packet_block(0, time_ns, packet[:snap_bytes], len(packet), direction)
        )


def write(folder: Path, *conversations: Conversation, end: bytes = COMPLETE) -> Path:
    path = folder / "session.pcapng"
    blocks = [block for conversation in conversations for block in conversation.blocks]
    path.write_bytes(HEADERS + b"".join(blocks) + end)
    return path


def test_a_download_has_its_closed_form(tmp_path: Path) -> None:
    """1000 bytes every 10 ms, 20 ms there and back; number 3 is lost and sent again."""
    talk = Conversation()
    talk.open(rtt_ms=20)
    talk.up(30, seq=0, payload=b"GET", tsval=30, tsecr=1)
    for number in (0, 1, 2, 4, 5):
        talk.down(
            50 + 10 * number,
            seq=1000 * number, payload=bytes(1000), tsval=40 + 10 * number, tsecr=30 + number,
            snap_bytes=96,
        )  # fmt: skip
        talk.up(50 + 10 * number, tsval=31 + number, tsecr=40 + 10 * number)
    talk.down(130, seq=3000, payload=bytes(1000), tsval=120, tsecr=36, snap_bytes=96)
    talk.down(140, seq=3000, payload=bytes(1000), tsval=130, tsecr=36, snap_bytes=96)
    record = analyse(write(tmp_path, talk), controllers=[])
    assert (record.ending, record.packets, record.dropped_packets) == ("complete", 16, 3)
    assert (record.exchanges_ms, record.unanswered) == ((), 0)
    (seen,) = record.connections
    assert (seen.client, seen.server) == ("10.0.0.2:40000", "10.0.0.1:8000")
    assert not seen.is_controller
    assert (seen.started_s, seen.duration_s) == (0, pytest.approx(0.140))
    assert (seen.packets_down, seen.packets_up) == (8, 8)
    assert (seen.payload_bytes_down, seen.payload_bytes_up) == (6000, 3)
    assert seen.l3_bytes_down == 7 * 1052 + 52
    assert seen.throughput_kbps == pytest.approx(6000 * 8 / 90)
    assert (seen.retransmissions_down, seen.out_of_order_down) == (2, 0)
    assert (seen.retransmissions_up, seen.missing_bytes_down) == (0, 0)
    assert seen.handshake_rtt_ms == 20
    # 1: the handshake; 30, 31, 32: echoed 20, 10, 10 ms later; 34, 35 and 36 likewise.
    assert seen.rtt_samples == 6
    assert (seen.rtt_min_ms, seen.rtt_p50_ms) == (10, pytest.approx(15))


def test_what_never_comes_is_missing(tmp_path: Path) -> None:
    talk = Conversation()
    talk.open(rtt_ms=1)
    talk.down(5, seq=100, payload=bytes(10), tsval=9)
    (seen,) = analyse(write(tmp_path, talk), controllers=[]).connections
    assert (seen.missing_bytes_down, seen.payload_bytes_down) == (100, 10)
    assert seen.throughput_kbps is None


def test_a_repeated_syn_leaves_the_handshake_open(tmp_path: Path) -> None:
    talk = Conversation(has_timestamps=False)
    talk.up(0, "S")
    talk.up(1000, "S")
    talk.down(1010, "SA")
    (seen,) = analyse(write(tmp_path, talk), controllers=[]).connections
    assert (seen.handshake_rtt_ms, seen.retransmissions_up, seen.rtt_samples) == (None, 1, 0)
    assert (seen.rtt_min_ms, seen.rtt_p50_ms, seen.rtt_p99_ms) == (None, None, None)


def test_questions_and_answers_are_timed_on_the_wire(tmp_path: Path) -> None:
    talk = Conversation()
    talk.open(rtt_ms=1)
    asked, told = 0, 0

    def ask(at_ms: float, payload: bytes, *, times: int = 1) -> None:
        nonlocal asked
        for attempt in range(times):
            talk.up(at_ms + attempt, seq=asked, payload=payload)
        asked += len(payload)

    def tell(at_ms: float, payload: bytes) -> None:
        nonlocal told
        talk.down(at_ms, seq=told, payload=payload)
        told += len(payload)

    ask(100, QUESTION, times=2)  # sent again after 1 ms
    ask(102, b"{}")
    tell(110, ANSWER)
    tell(112.5, b"{      }")
    ask(200, QUESTION + b"{}")
    tell(207, ANSWER + b"{      }")
    ask(300, QUESTION + b"{}")
    tell(301, ANSWER + b"{ ")  # and no more
    ask(400, QUESTION + b"{}")  # never answered
    path = write(tmp_path, talk)
    record = analyse(path, controllers=[SERVER])
    assert record.exchanges_ms == (12.5, 7)
    assert record.unanswered == 2
    (seen,) = record.connections
    assert seen.is_controller
    assert seen.retransmissions_up == 1
    other = analyse(path, controllers=[("10.0.0.1", 8001)])
    assert (other.exchanges_ms, other.unanswered) == ((), 0)


def test_exchanges_of_all_clients_are_in_order(tmp_path: Path) -> None:
    talks = []
    for number in range(2):
        talk = Conversation((f"10.0.0.{2 + number}", 40000))
        for turn in range(3):
            at_ms = 10 * turn + 5 * number
            talk.up(at_ms, seq=turn * len(QUESTION), payload=QUESTION)
            talk.down(at_ms + 1 + number + turn / 10, seq=2 * turn, payload=b"ok")
        talks.append(talk)
    record = analyse(write(tmp_path, *talks), controllers=[SERVER])
    assert record.exchanges_ms == (1, 2, 1.1, 2.1, 1.2, 2.2)
    assert [seen.client for seen in record.connections] == ["10.0.0.2:40000", "10.0.0.3:40000"]
    assert [seen.started_s for seen in record.connections] == [0, 0.005]


def test_ports_that_are_used_again_are_another_connection(tmp_path: Path) -> None:
    first, second = Conversation(), Conversation()
    first.open(rtt_ms=1)
    second.open(rtt_ms=1)
    packet = Ether() / IP(src=CLIENT[0], dst=SERVER[0]) / TCP(sport=40000, dport=8000, seq=5)
    second.blocks[0] = pcapng.packet_block(0, BEGAN_NS + 9 * MS, bytes(packet), 60, OUTBOUND)
    record = analyse(write(tmp_path, first, second), controllers=[])
    assert [seen.packets_up for seen in record.connections] == [2, 2]


def test_what_is_not_of_a_connection_is_counted(tmp_path: Path) -> None:
    over = Conversation()
    over.down(0, "FA")
    over.up(1, "A")
    datagram = bytes(Ether() / IP() / UDP())
    over.blocks.append(pcapng.packet_block(0, BEGAN_NS, datagram, len(datagram), INBOUND))
    record = analyse(write(tmp_path, over), controllers=[])
    assert (record.connections, record.other_packets, record.packets) == ((), 3, 3)


def test_a_full_file_says_so(tmp_path: Path) -> None:
    full = pcapng.statistics_block(0, BEGAN_NS, InterfaceStatistics(9, 0, "enough"))
    assert analyse(write(tmp_path, end=full), controllers=[]).ending == "full"


TORN = Conversation()
TORN.open(rtt_ms=20)
TORN_BYTES = HEADERS + b"".join(TORN.blocks) + COMPLETE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(len(HEADERS), len(TORN_BYTES) - 1))
def test_a_torn_file_is_read_as_far_as_it_goes(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "torn.pcapng"
    path.write_bytes(TORN_BYTES[:size_bytes])
    record = analyse(path, controllers=[])
    whole = [len(HEADERS) + sum(map(len, TORN.blocks[:n])) <= size_bytes for n in (1, 2, 3)]
    assert (record.ending, record.packets) == ("torn", sum(whole))
    assert record.dropped_packets is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(TORN_BYTES) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, at: int, damage: bytes) -> None:
    path = tmp_path / "damaged.pcapng"
    path.write_bytes(TORN_BYTES[:at] + damage + TORN_BYTES[at + len(damage) :])
    with contextlib.suppress(CaptureFormatError):
        assert analyse(path, controllers=[SERVER]).packets <= 3


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x1f\x8b" + bytes(20), HEADERS[:20]])
def test_what_is_no_capture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.pcapng"
    path.write_bytes(content)
    with pytest.raises(CaptureFormatError, match=r"no\.pcapng"):
        analyse(path, controllers=[])


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, TORN)
    path.write_bytes(
        path.read_bytes().replace(b"\1\0\0\0\x30\0\0\0\1\0", b"\1\0\0\0\x30\0\0\0\x65\0")
    )
    with pytest.raises(CaptureFormatError, match="link type 101"):
        analyse(path, controllers=[])


def test_scapy_is_loaded_late_and_quietly(tmp_path: Path) -> None:
    path = write(tmp_path, TORN, end=b"torn")
    program = (
        "import sys; from pathlib import Path; from testbed import capture, capture_analysis;"
        "assert 'scapy' not in sys.modules;"
        f"capture_analysis.analyse(Path({str(path)!r}), controllers=[])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == done.stdout == ""
    assert logging.getLogger("scapy.runtime").level == logging.NOTSET
