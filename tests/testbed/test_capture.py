"""Captures of real packets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import emulation_entries as entries
import pytest
from scapy.utils import RawPcapNgReader

from testbed.capture import HEADERS_BYTES, WHOLE_PACKET_BYTES
from testbed.capture_analysis import analyse
from testbed.sandbox import run_in_sandbox

CONTROLLER = ("10.0.1.1", entries.PORT)
SLACK_MS = 100.0


def collect(entry: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"capture_entries:{entry}", job, on_message=messages.append)
    return messages


@pytest.mark.emulation
def test_a_session_is_on_the_wire_what_its_ends_know(tmp_path: Path) -> None:
    """Bytes, lost packets and times, compared with what was sent and with the server's kernel."""
    entries.require(network=True)
    job = {
        "path": str(tmp_path / "session.pcapng"),
        "times_s": [0, 1],
        "rates_mbps": [8, 8],
        "link": {"queue_packets": 30},
        "bytes": 2_000_000,
        "questions": 5,
        "think_s": 0.02,
    }
    sent, answered = collect("download_and_ask", job)
    record = analyse(Path(job["path"]), controllers=[CONTROLLER])
    assert (record.ending, record.dropped_packets) == ("complete", 0)
    media, control = record.connections
    assert media.payload_bytes_down == job["bytes"]
    assert media.payload_bytes_up == 1
    assert media.missing_bytes_down == 0
    assert sent["retransmissions"] > 0  # the queue is short enough for that
    # What is sent again and lost again is not seen.
    assert 0 < media.retransmissions_down <= sent["retransmissions"]
    assert 4000 < (media.throughput_kbps or 0) < 8000
    # The queue of 30 packets takes 45 ms.
    assert 20 < (media.rtt_p50_ms or 0) < 45 + SLACK_MS
    assert control.is_controller
    assert record.unanswered == 0
    for wire_ms, took_s in zip(record.exchanges_ms, answered["took_s"], strict=True):
        assert job["think_s"] * 1000 <= wire_ms <= took_s * 1000
        assert took_s * 1000 - wire_ms <= SLACK_MS


@pytest.mark.emulation
@pytest.mark.parametrize("snap_bytes", [HEADERS_BYTES, WHOLE_PACKET_BYTES])
def test_packets_are_kept_as_far_as_asked(tmp_path: Path, snap_bytes: int) -> None:
    entries.require()
    job = {"path": str(tmp_path / "lo.pcapng"), "snap_bytes": snap_bytes, "max_bytes": 1 << 20}
    collect("datagrams", {**job, "count": 50, "is_stopped": False})
    packets: Any = list(RawPcapNgReader(job["path"]))
    wire = 14 + 20 + 8 + 400
    sent = [(data, about) for data, about in packets if about.wirelen == wire]  # others: ICMP
    assert [about.direction for _, about in sent] == [2, 1] * 50  # out, and in again
    assert {about.ifname for _, about in sent} == {b"lo"}
    assert {len(data) for data, _ in sent} == {min(snap_bytes, wire)}
    assert [data[42:46] for data, _ in sent[::2]] == [n.to_bytes(4) for n in range(50)]
    times = [(about.tshigh << 32) + about.tslow for _, about in sent]
    assert times == sorted(times)


@pytest.mark.emulation
def test_what_was_not_read_in_time_is_counted(tmp_path: Path) -> None:
    entries.require()
    job = {"path": str(tmp_path / "lo.pcapng"), "snap_bytes": HEADERS_BYTES, "max_bytes": 1 << 24}
    collect("datagrams", {**job, "count": 12_000, "is_stopped": True})
    record = analyse(Path(job["path"]), controllers=[])
    assert record.ending == "complete"
    assert record.packets >= 16_384  # as much as a ring holds
    assert record.dropped_packets is not None
    assert record.dropped_packets > 0
    assert record.packets + record.dropped_packets >= 24_000


@pytest.mark.emulation
def test_a_capture_ends_when_its_file_is_full(tmp_path: Path) -> None:
    entries.require()
    job = {"path": str(tmp_path / "lo.pcapng"), "snap_bytes": HEADERS_BYTES, "max_bytes": 20_000}
    (seen,) = collect("datagrams", {**job, "count": 1000, "is_stopped": False})
    record = analyse(Path(job["path"]), controllers=[])
    assert record.ending == "full"
    assert 100 < record.packets < 200
    assert seen["bytes"] < 20_000 + 200  # the statistics at its end come on top


@pytest.mark.emulation
def test_a_capture_that_was_killed_is_read_and_told_of(tmp_path: Path) -> None:
    entries.require()
    path = tmp_path / "lo.pcapng"
    (told,) = collect("killed", {"path": str(path)})
    assert "lo.pcapng is incomplete" in told["error"]
    record = analyse(path, controllers=[])
    assert (record.ending, record.dropped_packets) == ("torn", None)
    assert len(record.connections) == 1


@pytest.mark.emulation
def test_an_interface_that_is_not_there_is_named(tmp_path: Path) -> None:
    entries.require()
    (told,) = collect("nowhere", {"path": str(tmp_path / "no.pcapng")})
    assert "eth9" in told["error"]
