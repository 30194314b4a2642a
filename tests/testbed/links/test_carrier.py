from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import carrier_entries
import emulation_entries as entries
import pytest

from testbed.links.carrier import Carrier, PythonCarrier
from testbed.links.compiled import CompiledCarrier, library_path
from testbed.links.pipe import FRAME_BYTES, PipeSettings, TraceArrays
from testbed.sandbox import run_in_sandbox

DEADLINE_S = 10.0
HEADER = b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x08\x00"

needs_library = pytest.mark.skipif(library_path() is None, reason="_carrier.c is not built")


def collect(entry: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs an entry in a sandbox; its messages."""
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"carrier_entries:{entry}", job, on_message=messages.append)
    return messages


@pytest.fixture(params=["python", pytest.param("compiled", marks=needs_library)])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    return PythonCarrier() if request.param == "python" else CompiledCarrier()


class Wire:
    """Two sockets that keep the borders of messages, each with an end for the carrier."""

    def __init__(self) -> None:
        self.near, self.source = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far, self.sink = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.near, self.source, self.far, self.sink):
            end.setblocking(False)

    def close(self) -> None:
        for end in (self.near, self.source, self.far, self.sink):
            end.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def frame_of(number: int, size: int = 100) -> bytes:
    return HEADER + struct.pack("!I", number) + bytes(size - 4)


def drain(end: socket.socket) -> list[bytes]:
    frames = []
    while select.select([end], [], [], 0)[0]:
        frames.append(end.recv(FRAME_BYTES))
    return frames


def run_for(carrier: Carrier, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        carrier.run(until_s)
        if carrier.take_broken():
            return


def test_frames_come_in_order_after_their_delay(carrier: Carrier, wire: Wire) -> None:
    settings_ = PipeSettings(delay_s=0.1)
    pipe = carrier.add(wire.source.fileno(), wire.sink.fileno(), settings_, TraceArrays())
    sent = [frame_of(number) for number in range(150)]
    for frame in sent:
        wire.near.send(frame)
    began_s = time.monotonic()
    carrier.start(pipe, began_s)
    carrier.run(began_s + 0.01)
    assert drain(wire.far) == []
    carrier.run(began_s + 0.3)
    assert drain(wire.far) == sent
    assert carrier.finish(pipe, time.monotonic()) == len(sent)
    ((number, row),) = carrier.take_rows()
    assert number == pipe
    assert row.delivered_packets == len(sent)
    assert row.delivered_bytes == 100 * len(sent)
    assert 0.1 <= row.delay_p50_s < 1.0
    assert carrier.take_rows() == []


def test_run_returns_with_a_bin_and_with_what_is_watched(carrier: Carrier, wire: Wire) -> None:
    pipe = carrier.add(wire.source.fileno(), wire.sink.fileno(), PipeSettings(), TraceArrays())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        carrier.watch(theirs.fileno())
        began_s = time.monotonic()
        carrier.start(pipe, began_s)
        assert carrier.run(began_s + DEADLINE_S) == []
        assert 1.0 <= time.monotonic() - began_s < DEADLINE_S
        assert len(carrier.take_rows()) == 1
        ours.send(b"!")
        assert carrier.run(time.monotonic() + DEADLINE_S) == [theirs.fileno()]
        carrier.unwatch(theirs.fileno())
        assert carrier.run(time.monotonic() + 0.02) == []


def test_a_pipe_that_fails_does_not_stop_the_others(carrier: Carrier, wire: Wire) -> None:
    other = Wire()
    numbers = []
    for each in (other, wire):
        numbers.append(
            carrier.add(each.source.fileno(), each.sink.fileno(), PipeSettings(), TraceArrays())
        )
        carrier.start(numbers[-1], time.monotonic())
    other.far.close()
    other.near.send(frame_of(1))
    carrier.run(time.monotonic() + DEADLINE_S)
    ((broken, why),) = carrier.take_broken()
    assert broken == numbers[0]
    assert why.startswith("cannot deliver: [Errno 32] ")
    wire.near.send(frame_of(2))
    carrier.run(time.monotonic() + 0.02)
    assert drain(wire.far) == [frame_of(2)]
    assert carrier.take_broken() == []
    carrier.finish(broken, time.monotonic())
    carrier.remove(broken)
    wire.near.close()
    carrier.run(time.monotonic() + DEADLINE_S)
    assert carrier.take_broken() == [(numbers[1], "cannot read: the interface is gone")]
    other.close()


def test_a_failure_is_not_told_of_a_pipe_that_was_removed(carrier: Carrier, wire: Wire) -> None:
    pipe = carrier.add(wire.source.fileno(), wire.sink.fileno(), PipeSettings(), TraceArrays())
    wire.near.close()
    carrier.run(time.monotonic() + DEADLINE_S)
    carrier.remove(pipe)
    assert carrier.take_broken() == []


def test_a_removed_pipe_lets_go_of_its_descriptors(carrier: Carrier, wire: Wire) -> None:
    ends = wire.source.fileno(), wire.sink.fileno()
    first = carrier.add(*ends, PipeSettings(delay_s=DEADLINE_S), TraceArrays())
    with pytest.raises(OSError, match="File exists"):
        carrier.add(*ends, PipeSettings(), TraceArrays())
    wire.near.send(frame_of(1))
    carrier.run(time.monotonic() + 0.001)
    carrier.remove(first)
    second = carrier.add(*ends, PipeSettings(delay_s=0.01), TraceArrays())
    wire.near.send(frame_of(2))
    carrier.run(time.monotonic() + 0.1)
    assert drain(wire.far) == [frame_of(2)]
    carrier.remove(second)
    with pytest.raises(KeyError):
        carrier.remove(second)


def test_both_directions_of_many_pipes_at_once(carrier: Carrier) -> None:
    wires = [Wire() for _ in range(20)]
    for each in wires:
        fast = PipeSettings(has_bottleneck=True, mean_bits_per_s=1e8, delay_s=0.001)
        carrier.add(each.source.fileno(), each.sink.fileno(), fast, TraceArrays())
        carrier.add(each.sink.fileno(), each.source.fileno(), fast, TraceArrays())
    for number in range(30):
        for each in wires:
            each.near.send(frame_of(number))
            each.far.send(frame_of(1000 + number))
    run_for(carrier, 0.3)
    for each in wires:
        assert drain(each.far) == [frame_of(number) for number in range(30)]
        assert drain(each.near) == [frame_of(1000 + number) for number in range(30)]
        each.close()


@needs_library
def test_the_compiled_loop_lets_other_threads_run(wire: Wire) -> None:
    carrier = CompiledCarrier()
    carrier.add(wire.source.fileno(), wire.sink.fileno(), PipeSettings(), TraceArrays())
    answers: list[bytes] = []

    def talk() -> None:
        wire.near.send(frame_of(7))
        select.select([wire.far], [], [], DEADLINE_S)
        answers.extend(drain(wire.far))

    thread = threading.Thread(target=talk)
    thread.start()
    run_for(carrier, 0.2)
    thread.join(DEADLINE_S)
    assert answers == [frame_of(7)]


@pytest.mark.emulation
@pytest.mark.parametrize("loop", ["python", pytest.param("compiled", marks=needs_library)])
def test_a_tap_interface_that_vanishes_breaks_its_pipe_only(loop: str) -> None:
    entries.require()
    (tap,) = collect("probe_tap", {})
    if tap["problem"]:
        pytest.skip(tap["problem"])
    pipes, first, broken, second, rest = (
        next(iter(message.values())) for message in collect("lose_interface", {"loop": loop})
    )
    assert first == second == list(range(carrier_entries.FRAMES))
    ((pipe, why),) = broken
    assert pipe == pipes[0]
    assert why.startswith("cannot read: [Errno 77] ")
    assert rest == []
