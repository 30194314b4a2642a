"""The engine with sockets that keep the borders of packets in the place of TAP interfaces."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from player.trace import Trace
from testbed.links.engine import MAX_DESCRIPTORS, EngineHandle, engine_process
from testbed.links.htb import ShapingError
from testbed.links.measurement import LinkSecond
from testbed.links.spec import DirectionSpec, LinkChange, LinkSpec, constant_trace
from testbed.links.userspace import TapPair, UserspaceLink

HEADER = bytes(12) + b"\x08\x00"  # to a single address, IPv4
PACKET_BYTES = 1000
PATIENCE_S = 5.0


@pytest.fixture
def engine() -> Iterator[EngineHandle]:
    with engine_process() as handle:
        yield handle


@contextlib.contextmanager
def link_between(
    engine: EngineHandle, spec: LinkSpec, **options: float
) -> Iterator[tuple[UserspaceLink, socket.socket, socket.socket]]:
    """A link, and what stands where its near and its far interface would be."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    taps = []
    for ours, theirs in pairs:
        ours.settimeout(PATIENCE_S)
        theirs.setblocking(False)
        taps.append(theirs.detach())
    near, far = pairs[0][0], pairs[1][0]
    link = UserspaceLink(spec, engine=engine, media=TapPair(*taps), **options)
    with near, far, contextlib.closing(link):
        yield link, near, far


def packet(number: int) -> bytes:
    return HEADER + number.to_bytes(4) + bytes(PACKET_BYTES - 4)


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[len(HEADER) : len(HEADER) + 4])


def arrivals(end: socket.socket, count: int) -> tuple[list[int], float]:
    """Numbers of the packets that come, and when the last one did."""
    numbers = [number_of(end.recv(2048)) for _ in range(count)]
    return numbers, time.monotonic()


def test_packets_take_their_time_both_ways(engine: EngineHandle) -> None:
    spec = LinkSpec(
        down=DirectionSpec(trace=constant_trace(1.0), delay_ms=20.0),
        up=DirectionSpec(delay_ms=50.0),
    )
    with link_between(engine, spec) as (link, near, far):
        link.start()
        began_s = time.monotonic()
        for number in range(10):
            near.send(packet(number))
        numbers, ended_s = arrivals(far, 10)
        assert numbers == list(range(10))
        assert 0.1 <= ended_s - began_s <= 0.4  # 20 ms, and 10 packets of 8 ms
        began_s = time.monotonic()
        far.send(packet(7))
        assert arrivals(near, 1)[0] == [7]
        assert 0.05 <= time.monotonic() - began_s <= 0.3


def test_every_second_of_both_directions_is_told(engine: EngineHandle) -> None:
    trace = Trace("steps", np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.8, 1.6]))
    with link_between(engine, LinkSpec(down=DirectionSpec(trace=trace))) as (link, near, far):
        link.start()
        for number in range(90):  # 0.9 s
            near.send(packet(number))
        far.send(packet(0))
        arrivals(far, 90)
        time.sleep(0.7)
        link.check_alive()
        measurement = link.stop()
    down, up = ([s for s in measurement.seconds if s.direction == d] for d in ("down", "up"))
    assert [second.second for second in down] == [0, 1]
    assert sum(second.delivered_bits for second in down) == 90 * PACKET_BYTES * 8
    assert sum(second.delivered_bits for second in up) == PACKET_BYTES * 8
    assert all(second.asked_bits == 0 and not second.saturated for second in up)
    first: LinkSecond = down[0]
    assert first.asked_bits == pytest.approx(0.8e6 + 1.6e6 * (first.end_s - 1.0), rel=1e-9)
    assert first.delay_p50_ms is not None
    assert first.delay_p99_ms is not None
    assert 200 <= first.delay_p50_ms <= first.delay_p99_ms <= 1500
    assert first.backlog_packets == 90
    assert first.backlog_bytes == 90 * PACKET_BYTES


def test_a_running_link_changes_and_keeps_what_waits(engine: EngineHandle) -> None:
    spec = LinkSpec(down=DirectionSpec(trace=constant_trace(0.08)))  # 10 packets a second
    with link_between(engine, spec) as (link, near, far):
        link.start()
        for number in range(50):
            near.send(packet(number))
        arrivals(far, 2)
        began_s = time.monotonic()
        link.change(LinkChange(at_s=0.0, direction="down", rate_mbps=80.0))
        numbers, ended_s = arrivals(far, 48)
        assert numbers == list(range(2, 50))
        assert ended_s - began_s <= 0.5
        link.change(LinkChange(at_s=0.0, loss=0.999))
        for number in range(50):
            near.send(packet(number))
        time.sleep(0.1)
        measurement = link.stop()
    assert sum(second.losses for second in measurement.seconds) >= 45
    asked = sum(s.asked_bits for s in measurement.seconds if s.direction == "down")
    assert asked >= 0.1 * 80e6  # what was asked follows the change


def test_changes_come_in_time_by_themselves(engine: EngineHandle) -> None:
    changes = (LinkChange(at_s=0.3, delay_ms=200.0, direction="up"),)
    with link_between(engine, LinkSpec(down=DirectionSpec(), changes=changes)) as (link, near, far):
        link.start()
        took_s = []
        for _ in range(2):
            began_s = time.monotonic()
            far.send(packet(1))
            arrivals(near, 1)
            took_s.append(time.monotonic() - began_s)
            time.sleep(0.4)
    assert took_s[0] < 0.15
    assert 0.2 <= took_s[1] < 0.4


def test_links_live_and_die_one_by_one(engine: EngineHandle) -> None:
    with link_between(engine, LinkSpec(down=DirectionSpec())) as (_, near, far):
        with link_between(engine, LinkSpec(down=DirectionSpec())) as (_, other_near, other_far):
            other_near.send(packet(5))
            assert arrivals(other_far, 1)[0] == [5]
        near.send(packet(6))
        assert arrivals(far, 1)[0] == [6]
        engine.check_alive()


def test_an_interface_that_fails_fails_its_link_only(engine: EngineHandle) -> None:
    with (
        link_between(engine, LinkSpec(down=DirectionSpec())) as (link, near, far),
        link_between(engine, LinkSpec(down=DirectionSpec())) as (other, other_near, other_far),
    ):
        far.close()
        near.send(packet(1))
        with pytest.raises(ShapingError, match="cannot"):
            check_until(link, time.monotonic() + PATIENCE_S)
        other.start()
        other_near.send(packet(2))
        assert arrivals(other_far, 1)[0] == [2]


def test_an_engine_that_died_is_reported_by_all_its_links() -> None:
    with (
        engine_process() as engine,
        link_between(engine, LinkSpec(down=DirectionSpec())) as (link, _, _),
    ):
        link.start()
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(ShapingError, match="died"):
            link.stop()
        with pytest.raises(ShapingError, match="died"):
            engine.check_alive()
        with pytest.raises(ShapingError, match="died"):
            link.check_alive()


def test_an_engine_that_stands_still_is_noticed(engine: EngineHandle) -> None:
    with link_between(engine, LinkSpec(down=DirectionSpec())) as (link, _, _):
        link.start()
        os.kill(engine.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        with pytest.raises(ShapingError, match="stands still"):
            check_until(link, began_s + PATIENCE_S)
        os.kill(engine.pid, signal.SIGCONT)


def check_until(link: UserspaceLink, ends_s: float) -> None:
    while time.monotonic() < ends_s:
        link.check_alive()
        time.sleep(0.3)


def test_too_many_interfaces_are_refused(engine: EngineHandle) -> None:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pairs = [
        TapPair(os.dup(ends[0].fileno()), os.dup(ends[1].fileno()))
        for _ in range(MAX_DESCRIPTORS // 2 + 1)
    ]
    with ends[0], ends[1], pytest.raises(ShapingError, match="fewer clients"):
        UserspaceLink(
            LinkSpec(down=DirectionSpec()), engine=engine, media=pairs[0], controls=pairs[1:]
        )


def test_an_engine_without_descriptors_fails_the_link_that_needs_them(
    engine: EngineHandle,
) -> None:
    spec = LinkSpec(down=DirectionSpec())
    with link_between(engine, spec) as (first, near, far):
        first.start()
        _, most = resource.prlimit(engine.pid, resource.RLIMIT_NOFILE)
        limits = (len(os.listdir(f"/proc/{engine.pid}/fd")) + 2, most)
        assert resource.prlimit(engine.pid, resource.RLIMIT_NOFILE, limits) == (most, most)
        with (
            link_between(engine, spec) as (second, _, _),
            pytest.raises(ShapingError, match="died"),
        ):
            second.start()
        near.send(packet(1))
        assert arrivals(far, 1)[0] == [1]


def test_a_closed_link_ends_whoever_else_holds_its_channel(engine: EngineHandle) -> None:
    with link_between(engine, LinkSpec(down=DirectionSpec())) as (link, near, _):
        link.start()
        kept = os.dup(link._channel.fileno())
        link.close()
        assert near.recv(1) == b""
        os.close(kept)
