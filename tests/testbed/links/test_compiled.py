from __future__ import annotations

import ctypes
import dataclasses
import itertools
import random
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.links import compiled
from testbed.links.compiled import (
    LOOP_VARIABLE,
    CarrierNotBuilt,
    CompiledCarrier,
    best_carrier,
    load_library,
)
from testbed.links.pipe import FRAME_BYTES, Packet, Pipe, PipeSettings, TraceArrays

DEADLINE_S = 10.0
SINK = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.c_void_p, ctypes.c_uint64)


def not_built() -> str:
    """Why there is no compiled carrier; empty if there is one."""
    try:
        load_library()
    except CarrierNotBuilt as error:
        return str(error)
    return ""


needs_library = pytest.mark.skipif(bool(not_built()), reason=not_built())


# ---- packets ------------------------------------------------------------------------------------


def ethernet(kind: int, rest: bytes, *, to_all: bool = False) -> bytes:
    destination = b"\xff" * 6 if to_all else b"\x02\x00\x00\x00\x00\x01"
    return destination + b"\x02\x00\x00\x00\x00\x02" + struct.pack("!H", kind) + rest


def some_frame(rng: random.Random, largest: int) -> bytes:
    size = rng.choice([40, 576, largest, largest, rng.randint(20, largest)])
    match rng.randrange(20):
        case 0:
            return ethernet(0x0806, rng.randbytes(28), to_all=rng.random() < 0.5)
        case 1:
            return rng.randbytes(rng.choice([0, 1, 13, 14, 15, 33, 34, 2048, 2049, 3000]))
        case 2 | 3 | 4:
            start = struct.pack("!I", 6 << 28 | rng.getrandbits(28))
            return ethernet(0x86DD, start + rng.randbytes(size - 4))
        case _:
            start = struct.pack("!BB", 0x45, rng.choice([0, 1, 2, 2, 3, 0xFD]))
            return ethernet(0x0800, start + rng.randbytes(size - 2))


# ---- the same decisions -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that both implementations are told."""

    settings: PipeSettings
    arrays: TraceArrays
    packets: int
    gap_s: float
    largest: int
    changes: int
    seed: int


class PythonSide:
    """The reference, its deliveries in a list."""

    def __init__(self, scene: Scene) -> None:
        self.log: list[tuple[float, bytes]] = []
        self.clock_s = 0.0
        log = self.log

        class Logged(Pipe):
            def _deliver(self, packet: Packet, due_s: float) -> None:
                log.append((due_s, bytes(packet.frame)))
                super()._deliver(packet, due_s)

        self.pipe = Logged(scene.settings, scene.arrays, bool, lambda: self.clock_s)

    def admit(self, frame: bytes, now_s: float) -> None:
        self.pipe.admit(frame, now_s)

    def advance(self, now_s: float) -> float:
        return self.pipe.advance(now_s)

    def start(self, now_s: float) -> None:
        self.pipe.advance(now_s)
        self.pipe.start(now_s)
        self.pipe.advance(now_s)

    def change(self, now_s: float, **values: float | None) -> None:
        self.pipe.advance(now_s)
        self.pipe.change(now_s, **values)  # type: ignore[arg-type]
        self.pipe.advance(now_s)

    def finish(self, now_s: float) -> int:
        self.pipe.advance(now_s)
        self.pipe.finish(now_s)
        return self.pipe.delivered

    def rows(self) -> list[Any]:
        return self.pipe.rows


class CompiledSide:
    """The library, its deliveries in a list."""

    def __init__(self, scene: Scene) -> None:
        self.log: list[tuple[float, bytes]] = []
        self.carrier = CompiledCarrier()
        self.number = self.carrier.add(-1, -1, scene.settings, scene.arrays)
        self.here = self.carrier._handle, self.number
        self.library = load_library()
        self._sink = SINK(self._take)

    def _take(self, due_s: float, address: int, length: int) -> None:
        self.log.append((due_s, ctypes.string_at(address, length)))

    def _set_clock(self, value: float) -> None:
        self.library.link_test(*self.here, value, self._sink)

    clock_s = property(fset=_set_clock)

    def admit(self, frame: bytes, now_s: float) -> None:
        self.library.link_test_admit(*self.here, frame, len(frame), now_s)

    def advance(self, now_s: float) -> float:
        next_s: float = self.library.link_test_advance(*self.here, now_s)
        return next_s

    def start(self, now_s: float) -> None:
        self.carrier.start(self.number, now_s)

    def change(self, now_s: float, **values: float | None) -> None:
        self.carrier.change(self.number, now_s, **values)  # type: ignore[arg-type]

    def finish(self, now_s: float) -> int:
        return self.carrier.finish(self.number, now_s)

    def rows(self) -> list[Any]:
        return [row for _, row in self.carrier.take_rows()]


def play(side: PythonSide | CompiledSide, scene: Scene) -> dict[str, Any]:
    """The scene on one side; all that can be seen of it."""
    rng = random.Random(scene.seed)
    now_s = rng.choice([7.0, rng.uniform(1.0, 1e6)])
    start_at = rng.randrange(max(scene.packets // 4, 1))
    change_at = set(rng.sample(range(scene.packets), min(scene.changes, scene.packets)))
    wakes_s = []
    is_late = rng.random() < 0.3
    for number in range(scene.packets):
        now_s += rng.expovariate(1.0) * scene.gap_s * (rng.random() < 0.7)
        side.clock_s = now_s + (rng.expovariate(500.0) if is_late else 0.0)
        if number == start_at:
            side.start(now_s)
        if number in change_at:
            side.change(
                now_s,
                bits_per_s=rng.choice([None, 0.0, 1e5, rng.uniform(1e5, 5e7)]),
                delay_s=rng.choice([None, 0.0, rng.uniform(0.0, 0.2)]),
                loss=rng.choice([None, 0.0, rng.random()]),
            )
        side.admit(some_frame(rng, scene.largest), now_s)
        if rng.random() < 0.6:
            wakes_s.append(side.advance(now_s))
            if rng.random() < 0.5 and wakes_s[-1] < now_s + 3.0:
                now_s = wakes_s[-1]
                side.clock_s = now_s
                wakes_s.append(side.advance(now_s))
    for _ in range(rng.randrange(60)):
        now_s += rng.choice([0.0, 0.01, 0.3, 1.0])
        side.clock_s = now_s
        wakes_s.append(side.advance(now_s))
    delivered = side.finish(now_s)
    return {"log": side.log, "wakes_s": wakes_s, "rows": side.rows(), "delivered": delivered}


SHARES = st.sampled_from([0.0, 0.0, 0.01, 0.2, 0.7, 1.0])
RATES = st.sampled_from([0.0, 0.0, 1.2e5, 1e6, 1.2e6, 2.4e6, 1e7]) | st.floats(1e5, 5e7)
STEPS = st.sampled_from([0.1, 0.5, 1.0]) | st.floats(0.01, 2.0)
KEYS = st.integers(0, 2**64 - 1)


@st.composite
def traces(draw: st.DrawFn) -> TraceArrays:
    match draw(st.sampled_from(["none", "rate", "rate", "opportunities"])):
        case "none":
            return TraceArrays()
        case "opportunities":
            times_ms = draw(st.lists(st.integers(1, 400), min_size=1, max_size=60))
            return TraceArrays(opportunities_s=[at / 1000.0 for at in sorted(times_ms)])
    speeds = draw(st.lists(RATES, min_size=1, max_size=6).filter(any))
    steps_s = [draw(STEPS) for _ in speeds]
    edges_s = list(itertools.accumulate(steps_s, initial=0.0))
    bits = [
        (b - a) * speed for (a, b), speed in zip(itertools.pairwise(edges_s), speeds, strict=True)
    ]
    return TraceArrays(edges_s, list(itertools.accumulate(bits, initial=0.0)), speeds)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    arrays = draw(traces())
    times_s = arrays.opportunities_s
    is_bound = bool(arrays.speeds or times_s) or draw(st.booleans())
    queue = draw(st.sampled_from(["droptail", "codel", "pie"]))
    pipe_settings = PipeSettings(
        delay_s=draw(st.sampled_from([0.0, 0.001, 0.05]) | st.floats(0.0, 0.5)),
        jitter_s=draw(st.sampled_from([0.0, 0.0, 0.002, 0.1])),
        is_normal=draw(st.booleans()),
        may_reorder=draw(st.booleans()),
        loss_good=draw(SHARES),
        loss_bad=draw(SHARES),
        to_bad=draw(st.sampled_from([0.0, 0.01, 0.3])),
        to_good=draw(st.sampled_from([0.1, 0.5, 1.0])),
        duplicate=draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
        has_bottleneck=is_bound,
        mean_bits_per_s=draw(st.floats(1e5, 5e7)),
        start_s=draw(st.sampled_from([0.0, 0.3, 77.7])),
        duration_s=times_s[-1] + draw(st.sampled_from([0.0, 0.0103])) if times_s else 0.0,
        queue=queue,
        limit_packets=draw(st.sampled_from([1, 2, 10, 100, 1000])),
        limit_bytes=draw(st.sampled_from([0, 0, 1500, 20_000])),
        ecn=queue != "droptail" and draw(st.booleans()),
        target_s=draw(st.sampled_from([0.005, 0.015, 0.001])),
        interval_s=draw(st.sampled_from([0.1, 0.015, 0.01])),
        loss_key=draw(KEYS),
        burst_key=draw(KEYS),
        jitter_key=draw(KEYS),
        duplicate_key=draw(KEYS),
        pie_key=draw(KEYS),
    )
    return Scene(
        pipe_settings,
        arrays,
        packets=draw(st.sampled_from([20, 200, 700])),
        gap_s=draw(st.sampled_from([1e-4, 1e-3, 5e-3, 0.1])),
        largest=draw(st.sampled_from([100, 1500, 2034])),
        changes=draw(st.integers(0, 4)),
        seed=draw(st.integers(0, 2**32)),
    )


@needs_library
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenes())
def test_c_decides_as_python_does_to_the_last_bit(scene: Scene) -> None:
    assert play(CompiledSide(scene), scene) == play(PythonSide(scene), scene)


def overload(queue: str, *, ecn: bool) -> Scene:
    """More than the bottleneck can carry, for long enough that the queue management acts."""
    return Scene(
        PipeSettings(
            delay_s=0.01,
            has_bottleneck=True,
            mean_bits_per_s=5e6 if queue == "codel" else 7e6,
            queue=queue,
            limit_packets=2000,
            ecn=ecn,
            target_s=0.005,
            interval_s=0.1 if queue == "codel" else 0.015,
            pie_key=99,
        ),
        TraceArrays(),
        packets=12_000,
        gap_s=0.001,
        largest=1500,
        changes=0,
        seed=5,
    )


@needs_library
@pytest.mark.parametrize("ecn", [False, True])
@pytest.mark.parametrize("queue", ["codel", "pie"])
def test_queue_management_is_the_same_over_a_long_time(queue: str, ecn: bool) -> None:
    scene = overload(queue, ecn=ecn)
    python = play(PythonSide(scene), scene)
    assert play(CompiledSide(scene), scene) == python
    assert sum(row.aqm_drops + row.marks for row in python["rows"]) > 20
    assert (sum(row.marks for row in python["rows"]) > 20) == ecn
    assert len(python["rows"]) > 5


@needs_library
def test_delays_are_sampled_alike_when_there_are_many() -> None:
    scene = dataclasses.replace(
        overload("droptail", ecn=False), gap_s=5e-5, packets=20_000, largest=60
    )
    assert play(CompiledSide(scene), scene) == play(PythonSide(scene), scene)


@needs_library
def test_the_last_bit_before_an_outage_is_out_before_it() -> None:
    trace = TraceArrays([0.0, 1.0, 9.0], [0.0, 16_000.0, 16_000.0], [16_000.0, 0.0])
    bound = PipeSettings(has_bottleneck=True, mean_bits_per_s=1.0)
    scene = Scene(bound, trace, 0, 0.0, 0, 0, 0)
    for side in (CompiledSide(scene), PythonSide(scene)):
        side.clock_s = 7.0
        side.start(7.0)
        for _ in range(2):
            side.admit(b"\x02" * 2014, 7.0)
        side.clock_s = 17.0
        side.advance(17.0)
        assert [due_s for due_s, _ in side.log] == [8.0, 17.0]


@needs_library
def test_the_longest_frame_passes_and_a_longer_one_is_a_drop() -> None:
    scene = Scene(PipeSettings(), TraceArrays(), 0, 0.0, 0, 0, 0)
    for side in (CompiledSide(scene), PythonSide(scene)):
        side.clock_s = 1.0
        side.start(1.0)
        for size in (0, 14, 15, FRAME_BYTES, FRAME_BYTES + 1, 65_000):
            side.admit(b"\x02" * size, 1.0)
        side.advance(1.0)
        assert [len(frame) for _, frame in side.log] == [15, FRAME_BYTES]
        assert side.finish(1.5) == 2
        assert [row.drops for row in side.rows()] == [2]


# ---- which one ----------------------------------------------------------------------------------


@needs_library
def test_the_compiled_one_is_taken_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOOP_VARIABLE, raising=False)
    assert best_carrier().name == "compiled"
    monkeypatch.setenv(LOOP_VARIABLE, "compiled")
    assert best_carrier().name == "compiled"


def test_python_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOOP_VARIABLE, "python")
    assert best_carrier().name == "python"
    monkeypatch.setenv(LOOP_VARIABLE, "rust")
    with pytest.raises(ValueError, match="'rust' is neither"):
        best_carrier()


def test_without_a_library_it_is_python_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "load_library", compiled.load_library.__wrapped__)
    monkeypatch.setattr(compiled, "library_path", lambda: None)
    monkeypatch.delenv(LOOP_VARIABLE, raising=False)
    assert best_carrier().name == "python"
    monkeypatch.setenv(LOOP_VARIABLE, "compiled")
    with pytest.raises(CarrierNotBuilt, match=r"not built; remedy: \./setup\.sh"):
        best_carrier()


@needs_library
def test_a_trace_that_does_not_fit_is_refused() -> None:
    carrier = CompiledCarrier()
    with pytest.raises(ValueError, match="edges_s: 2 values do not fit 2 steps"):
        carrier.add(-1, -1, PipeSettings(), TraceArrays([0.0, 1.0], [0.0, 1.0], [1.0, 2.0]))
    with pytest.raises(ValueError, match="capacity"):
        carrier.add(-1, -1, PipeSettings(), TraceArrays([0.0, 1.0], [0.0, 0.0], [0.0]))
    with pytest.raises(ValueError, match="queue 'red' is none of droptail, codel, pie"):
        carrier.add(-1, -1, PipeSettings(queue="red"), TraceArrays())
