from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from player.trace import Trace
from testbed.links import replay
from testbed.links.heartbeat import Heartbeat
from testbed.links.htb import ClassState
from testbed.links.queues import QueueCounts
from testbed.links.replay import PAYBACK_S, LinkReplay, Replay
from testbed.links.spec import LinkChange


class FakeClass:
    """Stands in for a shaped interface whose queue is never empty."""

    def __init__(self, bytes_per_s: int, takes_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.takes_s = takes_s
        self.changes: list[tuple[int, bool]] = []

    def change(self, bytes_per_s: int, *, is_busy: bool) -> None:
        time.sleep(self.takes_s)
        self.bytes_per_s = bytes_per_s
        self.changes.append((bytes_per_s, is_busy))

    def read(self) -> ClassState:
        return ClassState(self.bytes_per_s, 0, 0, backlog_packets=5, backlog_bytes=7500)

    def read_counts(self) -> QueueCounts:
        return QueueCounts()

    def verify(self) -> None:
        pass


class FakeCounter:
    def read(self) -> tuple[int, int]:
        return 0, 0


def busy_replay(rates_mbps: list[float], *, takes_s: float = 0.0) -> tuple[Replay, FakeClass]:
    trace = Trace("test", np.arange(len(rates_mbps) + 1.0), np.array([1.0, *rates_mbps]))
    shaped = FakeClass(round(rates_mbps[0] * 125_000), takes_s)
    made = Replay(trace, 0.0, shaped, FakeCounter())  # type: ignore[arg-type]
    made._poll()
    shaped.changes.clear()
    return made, shaped


def test_a_change_in_time_is_just_that() -> None:
    made, shaped = busy_replay([1, 2])
    made._change_rate(250_000, time.monotonic())
    assert shaped.changes == [(250_000, True)]


def test_what_a_late_rise_did_not_give_is_given_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, shaped = busy_replay([1, 2])
    monkeypatch.setattr(replay.time, "monotonic", lambda: made._began_s + 1.1)
    made._change_rate(250_000, made._began_s + 1.0)
    owed = 0.1 * 125_000
    assert shaped.changes == [(250_000, True), (250_000 + round(owed / PAYBACK_S), True)]
    assert made._payback_until_s == pytest.approx(made._began_s + 1.1 + PAYBACK_S)


def test_what_a_late_fall_gave_too_much_is_taken_back_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, shaped = busy_replay([8, 4])
    monkeypatch.setattr(replay.time, "monotonic", lambda: made._began_s + 1.1)
    made._change_rate(500_000, made._began_s + 1.0)
    assert shaped.changes == [(500_000, True), (250_000, True)]
    assert made._payback_until_s == pytest.approx(made._began_s + 1.1 + 0.2)


def test_a_rate_ahead_of_an_outage_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made, shaped = busy_replay([8, 0, 8])
    monkeypatch.setattr(replay.time, "monotonic", lambda: made._began_s + 1.05)
    made._change_rate(1600, made._began_s + 1.0)
    assert {rate for rate, _ in shaped.changes} == {1600}


def test_what_is_asked_follows_a_change_while_the_link_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, shaped = busy_replay([2, 4])
    began_s = made._began_s
    monkeypatch.setattr(replay.time, "monotonic", lambda: began_s + 0.5)
    made.apply(LinkChange(at_s=9.0, rate_mbps=1.0), due_s=began_s + 0.5)
    assert shaped.changes[-1] == (125_000, True)
    monkeypatch.setattr(replay.time, "monotonic", lambda: began_s + 2.0)
    (second,) = made.finish()
    assert second.asked_bits == pytest.approx(0.5 * 2e6 + 1.5 * 1e6)


def test_an_outage_that_nobody_foresaw_lets_a_packet_a_second_through() -> None:
    made, shaped = busy_replay([2, 4])
    made.apply(LinkChange(at_s=0.0, rate_mbps=0.0), due_s=made._began_s)
    assert shaped.changes[-1] == (1500, True)


def test_delays_are_what_the_trace_takes_for_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = busy_replay([2, 4])
    made._delay_ms = 20.0
    received = iter([(0, 0), (10, 15_000)])
    monkeypatch.setattr(FakeCounter, "read", lambda self: next(received))
    made.begin(made._began_s)
    made._poll()
    monkeypatch.setattr(replay.time, "monotonic", lambda: made._began_s + 0.2)
    (second,) = made.finish()
    # 7,500 bytes at 2 Mbit/s.
    assert second.delay_p50_ms == pytest.approx(20.0 + 30.0)
    assert (second.backlog_packets, second.backlog_bytes) == (5, 7500)


def talk(*messages: object, changes: Sequence[LinkChange] = ()) -> list[dict[str, Any]]:
    """What a link with one direction says to messages that come at once."""
    made, _ = busy_replay([2, 4])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
        return list(LinkReplay([made], changes, Heartbeat("it")).run(theirs))


def test_messages_may_come_together() -> None:
    change = {"change": asdict(LinkChange(at_s=0.0, rate_mbps=1.0))}
    began, measured = talk(change, change, {"stop": True}, change)
    assert set(began) == {"began_s"}
    assert set(measured) == {"seconds"}


def test_a_change_that_is_planned_comes_in_time() -> None:
    applied: list[tuple[float, float]] = []
    made, _ = busy_replay([2, 4])
    made.apply = lambda change, *, due_s: applied.append(  # type: ignore[method-assign]
        (change.at_s, time.monotonic() - due_s)
    )
    ours, theirs = socket.socketpair()
    plan = [LinkChange(at_s=0.1), LinkChange(at_s=0.05, direction="down")]
    with ours, theirs:
        running = LinkReplay(
            [made], [*plan, LinkChange(at_s=0.0, direction="up")], Heartbeat("it")
        ).run(theirs)
        next(running)
        stop = threading.Timer(0.3, ours.sendall, (b'{"stop": true}\n',))
        stop.start()
        next(running)
        stop.join()
    assert [at_s for at_s, _ in applied] == [0.05, 0.1]
    assert all(0.0 <= late_s < 0.1 for _, late_s in applied)
