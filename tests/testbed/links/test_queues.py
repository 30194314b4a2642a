"""The kernel's queues: what tc is told, what is read back, what is counted."""

from __future__ import annotations

import struct

import kernel_entries as entries
import pytest

from testbed.links.netlink import (
    NLMSG_HEADER,
    STATS_QUEUE,
    TCA_STATS2,
    TCA_STATS_APP,
    TCA_STATS_QUEUE,
    TCMSG,
    attribute,
)
from testbed.links.queues import (
    QueueCounts,
    is_as_asked,
    qdisc_kind,
    qdisc_options,
    read_counts,
)
from testbed.links.spec import QueueSpec

ECN_CAPABLE = 0b10  # of the type of service, RFC 3168


@pytest.mark.parametrize(
    ("queue", "asked"),
    [
        (QueueSpec(packets=30), "pfifo limit 30"),
        (QueueSpec(packets=100, size_bytes=30_000), "bfifo limit 30000"),
        (QueueSpec(packets=10, size_bytes=30_000), "pfifo limit 10"),
        (QueueSpec(kind="codel"), "codel limit 100"),
        (
            QueueSpec(kind="codel", target_ms=2.5, interval_ms=50, ecn=True),
            "codel limit 100 target 2500us interval 50000us ecn",
        ),
        (
            QueueSpec(kind="pie", packets=200, target_ms=20, interval_ms=30),
            "pie limit 200 target 20000us tupdate 30000us",
        ),
    ],
)
def test_tc_is_told_what_is_asked(queue: QueueSpec, asked: str) -> None:
    assert " ".join((qdisc_kind(queue), *qdisc_options(queue))) == asked


@pytest.mark.parametrize(
    ("found", "is_right"),
    [
        ({"limit": 100, "target": 4999, "interval": 99999, "ecn": True}, True),
        ({"limit": 100, "target": 4999, "interval": 99999}, False),
        ({"limit": 100, "target": 9999, "interval": 99999, "ecn": True}, False),
        ({"limit": 1000, "target": 4999, "interval": 99999, "ecn": True}, False),
        ({"limit": 100, "ecn": True}, False),
        ({}, False),
    ],
)
def test_what_is_read_back_must_be_what_was_asked(found: dict[str, int], is_right: bool) -> None:
    queue = QueueSpec(kind="codel", target_ms=5, interval_ms=100, ecn=True)
    assert is_as_asked(queue, found) == is_right


def answer(drops: int, extra: bytes) -> bytes:
    queue = attribute(TCA_STATS_QUEUE, STATS_QUEUE.pack(3, 4500, drops, 0, 0))
    stats = attribute(TCA_STATS2, queue + attribute(TCA_STATS_APP, extra))
    return bytes(NLMSG_HEADER.size + TCMSG.size) + stats


def test_drops_of_a_full_queue_and_of_its_management_are_told_apart() -> None:
    codel = struct.pack("=IIIIiIIII", 1500, 0, 0, 0, -5, 4, 7, 0, 0)
    pie = struct.pack("=QIIIIIIII", 1 << 50, 0, 0, 0, 500, 10, 4, 60, 7)
    assert read_counts("codel", answer(10, codel)) == QueueCounts(4, 6, 7)
    assert read_counts("pie", answer(10, pie)) == QueueCounts(4, 6, 7)
    assert read_counts("pfifo", answer(10, b"")) == QueueCounts(full_drops=10)


@pytest.mark.emulation
@pytest.mark.parametrize(
    ("queue", "packets"), [({"packets": 10}, 10), ({"packets": 10, "size_bytes": 6000}, 6)]
)
def test_as_much_waits_as_the_queue_has_room_for(queue: dict[str, int], packets: int) -> None:
    entries.require("bfifo")
    (seen,) = entries.collect("fill_queue", {"queue": queue, "packets": 30, "size_bytes": 1000})
    state, counts = seen["state"], seen["counts"]
    assert state["backlog_packets"] == packets
    assert state["backlog_bytes"] == 1000 * packets
    assert counts["full_drops"] == 30 - packets - state["sent_packets"]


@pytest.mark.emulation
@pytest.mark.parametrize("kind", ["codel", "pie"])
@pytest.mark.parametrize("ecn", [False, True])
def test_active_queue_management_drops_or_marks(kind: str, ecn: bool) -> None:
    entries.require(kind)
    trace = {"times_s": [0, 1], "rates_mbps": [0.5, 0.5]}
    down = trace | {"queue": {"packets": 200, "kind": kind, "ecn": ecn}}
    flood = {"every_s": 0.010, "tos": ECN_CAPABLE}
    job = {"down": down, "load": [], "flood": flood, "seconds": 4}
    (seen,) = entries.collect("saturate", job)
    assert any(s["marks"] for s in seen["seconds"]) == ecn
    assert ecn or any(s["aqm_drops"] for s in seen["seconds"])
