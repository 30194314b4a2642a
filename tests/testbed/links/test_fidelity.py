"""The measure in closed form, and the recorder against packets that are known."""

from __future__ import annotations

from typing import Any

import emulation_entries as entries
import numpy as np
import pytest

from player.trace import FloatArray, Trace
from testbed.links.fidelity import Arrivals, room_for, wire_nmae
from testbed.sandbox import run_in_sandbox

PACKET_BYTES = 1500
PACKET_BITS = PACKET_BYTES * 8
BEGAN_S = 1000.0
SECONDS = 20.0
CONSTANT = Trace("constant", np.array([0.0, 60.0]), np.array([0.5, 0.5]))
STEPS = Trace(
    "steps", np.arange(8.0) * 0.7, np.array([1.0, 1.0, 3.0, 0.1, 0.0, 9.0, 2.5, 0.6])
)  # fmt: skip


def packets(trace: Trace, *, speed: float = 1.0, start_s: float = 0.0, delay_s: float = 0.0) -> Any:
    """What a link does whose queue is never empty, ``speed`` times as fast as asked."""
    begin_bits = float(trace.bits_until(start_s))
    count = int((float(trace.bits_until(start_s + 2 * SECONDS)) - begin_bits) / PACKET_BITS)
    bits = np.arange(1, count + 1) * PACKET_BITS / speed
    arrival_s = BEGAN_S + delay_s + trace.time_of_bits(begin_bits + bits) - start_s
    return arrivals(arrival_s)


def arrivals(arrival_s: FloatArray) -> Arrivals:
    return Arrivals(arrival_s, np.full(len(arrival_s), PACKET_BYTES))


def judge(came: Arrivals, trace: Trace, **options: Any) -> Any:
    return wire_nmae(came, trace, began_s=BEGAN_S, ended_s=BEGAN_S + SECONDS, **options)


@pytest.mark.parametrize("trace", [CONSTANT, STEPS])
@pytest.mark.parametrize("bin_s", [0.1, 1.0])
@pytest.mark.parametrize("borders", ["moved", "split"])
@pytest.mark.parametrize(("start_s", "delay_s"), [(0.0, 0.0), (3.3, 0.0), (0.4, 0.25)])
def test_a_perfect_link_has_no_error(
    trace: Trace, bin_s: float, borders: str, start_s: float, delay_s: float
) -> None:
    came = packets(trace, start_s=start_s, delay_s=delay_s)
    fidelity = judge(came, trace, bin_s=bin_s, start_s=start_s, delay_s=delay_s, borders=borders)
    assert fidelity.nmae == pytest.approx(0.0, abs=1e-6)
    assert fidelity.total_error == pytest.approx(0.0, abs=1e-6)
    assert fidelity.bins == round((SECONDS - 2.0) / bin_s)


@pytest.mark.parametrize("speed", [0.99, 1.01])
@pytest.mark.parametrize("bin_s", [0.1, 1.0])
@pytest.mark.parametrize("borders", ["moved", "split"])
def test_one_per_cent_too_slow_or_too_fast_is_one_per_cent(
    speed: float, bin_s: float, borders: str
) -> None:
    came = packets(CONSTANT, speed=speed)
    fidelity = judge(came, CONSTANT, bin_s=bin_s, borders=borders)
    assert fidelity.nmae == pytest.approx(0.01, rel=0.02)
    assert fidelity.total_error == pytest.approx(speed - 1.0, rel=0.02)


def test_fixed_borders_split_packets() -> None:
    """12,000 bits at 0.5 Mbit/s: 4.17 packets per 100 ms, of which 4 or 5 are whole."""
    fidelity = judge(packets(CONSTANT), CONSTANT, bin_s=0.1, borders="fixed")
    share = 0.1 * 0.5e6 / PACKET_BITS % 1.0
    whole = 0.1 * 0.5e6 / PACKET_BITS
    assert fidelity.nmae == pytest.approx(2 * share * (1 - share) / whole, rel=0.05)
    assert abs(fidelity.total_error) < 1 / (whole * fidelity.bins)


@pytest.mark.parametrize("borders", ["moved", "split", "fixed"])
def test_a_link_that_stops_shows_in_both_figures(borders: Any) -> None:
    came = packets(CONSTANT).arrival_s
    fidelity = judge(arrivals(came[came < BEGAN_S + 11.0]), CONSTANT, borders=borders)
    assert fidelity.nmae == pytest.approx(0.5, abs=0.01)
    assert fidelity.total_error == pytest.approx(-0.5, abs=0.01)


def test_a_burst_behind_a_pause_shows_in_short_bins_only() -> None:
    """The packets of half a second come together at its end, 40 ms before that of a bin."""
    came = packets(CONSTANT).arrival_s.copy()
    came[(came >= BEGAN_S + 5.41) & (came < BEGAN_S + 5.91)] = BEGAN_S + 5.91
    late_bytes = 0.41 * 0.5e6 / 8  # behind the fourth of five borders in the pause, and as many
    for borders in ("split", "fixed"):
        fidelity = judge(arrivals(came), CONSTANT, bin_s=0.1, borders=borders)
        assert fidelity.total_error == pytest.approx(0.0, abs=1e-3)
        assert fidelity.nmae * fidelity.asked_bytes > late_bytes
    assert judge(arrivals(came), CONSTANT, bin_s=1.0).nmae == pytest.approx(0.0, abs=1e-3)


def test_a_wrong_position_in_the_trace_shows() -> None:
    came = packets(STEPS, start_s=0.5)
    assert judge(came, STEPS, bin_s=0.1).nmae > 0.2


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no bin of 1\.0 s"):
        wire_nmae(packets(CONSTANT), CONSTANT, began_s=BEGAN_S, ended_s=BEGAN_S + 2.5)
    silent = Trace("silent", np.array([0.0, 100.0, 101.0]), np.array([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="silent has no capacity"):
        judge(arrivals(np.empty(0)), silent)


def test_a_recorder_gets_room_for_more_than_can_come() -> None:
    assert room_for(CONSTANT, 60.0) > 0.5e6 * 60.0 / PACKET_BITS


# ---- recorder -----------------------------------------------------------------------------------


def collect(entry: str, job: dict[str, Any]) -> dict[str, Any]:
    entries.require()
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"fidelity_entries:{entry}", job, on_message=messages.append)
    (message,) = messages
    return message


@pytest.mark.emulation
def test_the_recorder_notes_what_comes_in_and_nothing_else() -> None:
    sizes = [60, 1500, 28, 777, 1500]
    seen = collect("record", {"sizes": sizes, "packets": 100})
    assert seen["sizes"] == sizes
    for sent_s, arrival_s, after_s in zip(
        seen["before_s"], seen["arrival_s"], seen["after_s"], strict=True
    ):
        assert sent_s - 0.001 <= arrival_s <= after_s + 0.001


@pytest.mark.emulation
def test_the_recorder_says_what_it_had_no_room_for() -> None:
    seen = collect("overflow", {})
    assert "packets came that the ring had no room for" in seen["error"]


@pytest.mark.emulation
@pytest.mark.parametrize("packets", [0, 1 << 21])
def test_room_is_bounded(packets: int) -> None:
    seen = collect("refuse", {"packets": packets})
    assert f"packets {packets} is not from 1 to" in seen["error"]
