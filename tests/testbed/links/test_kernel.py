"""The kernel's link as a whole: both directions, and changes while it runs."""

from __future__ import annotations

import json
from typing import Any

import kernel_entries as entries
import numpy as np
import pytest

from player.trace import Trace
from testbed.links.htb import ShapingError
from testbed.links.kernel import UNLIMITED_MBPS, planned_capacity, rate_steps
from testbed.links.replay import LONGEST_LIVE_DEBT_S
from testbed.links.spec import DirectionSpec, LinkChange

LOOSE_NMAE = 0.02
STEPS = {"times_s": [0, 0.7, 1.5, 2.6, 4], "rates_mbps": [1, 0.5, 4, 1, 2]}
CONSTANT = {"times_s": [0, 1], "rates_mbps": [2, 2]}
TRACE = Trace("test", np.array([0.0, 1.0, 3.0]), np.array([9.0, 1.0, 4.0]))


def test_only_changes_of_the_rate_of_a_direction_are_its_steps() -> None:
    changes = (
        LinkChange(at_s=5, rate_mbps=3.0),
        LinkChange(at_s=1, rate_mbps=2.0, direction="up"),
        LinkChange(at_s=2, rate_mbps=1.0, direction="down"),
        LinkChange(at_s=3, delay_ms=1.0),
        LinkChange(at_s=2, rate_mbps=0.0, direction="down"),
    )
    assert rate_steps(changes, "down") == [(2, 0.0), (5, 3.0)]
    assert rate_steps(changes, "up") == [(1, 2.0), (5, 3.0)]


@pytest.mark.parametrize("start_s", [0.0, 0.5, 2.0, 7.25])
@pytest.mark.parametrize("at_s", [0.0, 0.25, 1.0, 4.0, 100.5])
def test_planned_rates_take_the_place_of_the_trace(start_s: float, at_s: float) -> None:
    spec = DirectionSpec(trace=TRACE, start_s=start_s)
    planned, position_s = planned_capacity(spec, [(at_s, 5.0), (at_s + 2, 0.0)])
    assert planned is not None
    moments = position_s + np.linspace(0.0, at_s, 50)
    expected = TRACE.bits_until(start_s + np.linspace(0.0, at_s, 50)) - TRACE.bits_until(start_s)
    given = planned.bits_until(moments) - planned.bits_until(position_s)
    assert given == pytest.approx(expected, abs=1.0)
    behind = planned.bits_until(position_s + at_s + np.array([0.0, 1.0, 2.0, 50.0, 5e6]))
    assert behind - behind[0] == pytest.approx([0.0, 5e6, 10e6, 10e6, 10e6])


def test_a_direction_without_a_trace_is_unlimited_until_its_first_rate() -> None:
    planned, start_s = planned_capacity(DirectionSpec(), [(2.0, 3.0)])
    assert planned is not None
    assert [planned.rate_mbps(start_s + at_s) for at_s in (1.0, 3.0)] == [UNLIMITED_MBPS, 3.0]
    assert planned_capacity(DirectionSpec(), []) == (None, 0.0)


def test_a_trace_that_stops_stops_ahead_of_the_change_too() -> None:
    spec = DirectionSpec(trace=TRACE, start_s=1.0, at_end="stop")
    planned, _ = planned_capacity(spec, [(5.0, 3.0)])
    assert planned is not None
    assert [planned.rate_mbps(at_s) for at_s in (1.5, 3.0, 6.0)] == [4.0, 0.0, 3.0]


def test_a_plan_has_bounds() -> None:
    with pytest.raises(ShapingError, match=r"100000000.0 s .* test"):
        planned_capacity(DirectionSpec(trace=TRACE), [(1e8, 1.0)])


# ---- real packets -------------------------------------------------------------------------------


def saturate(**job: Any) -> dict[str, list[dict[str, Any]]]:
    (seen,) = entries.collect("saturate", job)
    return {
        direction: [s for s in seen["seconds"] if s["direction"] == direction]
        for direction in ("down", "up")
    }


def error(seconds: list[dict[str, Any]]) -> float:
    """NMAE of the seconds in which packets waited all the time, behind the first one."""
    busy = [second for second in seconds[1:] if second["saturated"]]
    assert len(busy) >= 2
    wrong = sum(abs(second["asked_bits"] - second["delivered_bits"]) for second in busy)
    return wrong / sum(second["asked_bits"] for second in busy)


@pytest.mark.emulation
@pytest.mark.parametrize("direction", ["down", "up"])
def test_each_direction_follows_its_trace(direction: str) -> None:
    entries.require()
    seen = saturate(down=STEPS | {"start_s": 0.5}, up=STEPS, load=[direction], seconds=4)
    assert error(seen[direction]) <= LOOSE_NMAE
    assert abs(len(seen["down"]) - len(seen["up"])) <= 1
    last = seen[direction][-1]
    assert last["backlog_bytes"] > last["backlog_packets"] * 1000
    # What waits now takes that long at 1 to 4 Mbit/s.
    waits_ms = last["backlog_bytes"] * 8 / np.array([4e3, 0.5e3])
    assert waits_ms[0] / 2 <= last["delay_p50_ms"] <= waits_ms[1]


@pytest.mark.emulation
def test_a_direction_of_which_nothing_is_asked_is_counted() -> None:
    entries.require()
    seen = saturate(down=CONSTANT, load=["down"], seconds=3)
    for second in seen["up"]:
        assert second["asked_bits"] == 0.0
        assert not second["saturated"]
        assert second["delivered_bits"] > 10_000  # acknowledgements
        assert second["delay_p99_ms"] == 0.0


CHANGES = [
    {"at_s": 1.5, "rate_mbps": 0.5, "direction": "down"},
    {"at_s": 2.5, "rate_mbps": 0.0, "direction": "down"},
    {"at_s": 4.2, "rate_mbps": 4.0, "direction": "down"},
]


@pytest.mark.emulation
@pytest.mark.parametrize("how", ["changes", "live"])
def test_the_rate_follows_a_change_and_so_does_what_is_asked(how: str) -> None:
    entries.require()
    down = saturate(down=CONSTANT, load=["down"], seconds=6.4, **{how: CHANGES})["down"]
    if how == "changes":
        assert error(down) <= LOOSE_NMAE
    else:  # the packet on its way may block the bottleneck that long
        assert error(down) * 10e6 <= LONGEST_LIVE_DEBT_S * 4e6
    assert error([down[0], *down[-2:]]) <= 0.05
    asked_bits = sum(second["asked_bits"] for second in down)
    end_s = down[-1]["end_s"]
    assert asked_bits == pytest.approx(1.5 * 2e6 + 0.5e6 + (end_s - 4.2) * 4e6, rel=0.01)
    dead = [s for s in down if s["begin_s"] > 2.6 and s["end_s"] < 4.2]
    assert sum(s["delivered_bits"] for s in dead) <= 24_000


@pytest.mark.emulation
def test_a_change_of_the_rate_keeps_the_queue() -> None:
    entries.require()
    slow = {"times_s": [0, 1], "rates_mbps": [0.02, 0.02], "queue": {"packets": 1000}}
    change = {"at_s": 0.0, "rate_mbps": 5.0}
    job = {"datagrams": 300, "every_s": 0.001, "change_before": 250, "change": change}
    (seen,) = entries.collect("arrivals", {"down": slow} | job)
    assert seen["numbers"] == list(range(300))
    assert max(s["backlog_packets"] for s in seen["seconds"]) >= 200


@pytest.mark.emulation
def test_a_bottleneck_can_come_later() -> None:
    entries.require()
    change = {"at_s": 1.0, "rate_mbps": 3.0, "direction": "up"}
    up = saturate(down=CONSTANT, load=["up"], seconds=4, live=[change])["up"]
    assert up[0]["delivered_bits"] > 10e6
    assert error(up[1:]) <= LOOSE_NMAE


@pytest.mark.emulation
def test_nothing_is_set_up_where_nothing_is_asked() -> None:
    entries.require()
    job = {"down": STEPS | {"queue": {"size_bytes": 20_000}}}
    (seen,) = entries.collect("set_up", job)
    here = {q["dev"]: q for q in json.loads(seen["here"]) if q["kind"] != "noqueue"}
    assert set(here) == {"s1-eth2"}
    assert here["s1-eth2"] | {"handle": None} == here["s1-eth2"] | {
        "kind": "bfifo",
        "handle": None,
        "parent": "1:1",
        "options": {"limit": 20_000},
    }
    assert "netem" not in seen["server"]


@pytest.mark.emulation
def test_netem_sits_with_the_senders_and_behind_the_way_up() -> None:
    entries.require("netem")
    job = {"down": STEPS | {"loss": 0.1}, "up": STEPS | {"delay_ms": 5.0}}
    (seen,) = entries.collect("set_up", job)
    kinds = {(q["dev"], q["kind"]) for q in json.loads(seen["here"]) if q["kind"] != "noqueue"}
    assert kinds == {
        ("s1-eth2", "htb"),
        ("s1-eth2", "pfifo"),
        ("s1-eth1", "htb"),
        ("s1-eth1", "pfifo"),
        ("s0-eth1", "netem"),
    }
    assert [q["kind"] for q in json.loads(seen["server"]) if q["kind"] != "noqueue"] == ["netem"]


@pytest.mark.emulation
@pytest.mark.parametrize(
    ("kind", "asked"), [("netem", {"delay_ms": 5.0}), ("codel", {"queue": {"kind": "codel"}})]
)
def test_what_the_kernel_lacks_is_an_error(kind: str, asked: dict[str, Any]) -> None:
    entries.require()
    if entries.qdisc_missing(kind) is None:
        pytest.skip(f"this kernel has {kind}")
    (seen,) = entries.collect("set_up", {"down": STEPS | asked})
    assert kind in seen["error"]


@pytest.mark.emulation
def test_a_change_that_the_kernel_cannot_make_ends_the_session() -> None:
    entries.require()
    if entries.qdisc_missing("netem") is None:
        pytest.skip("this kernel has netem")
    with pytest.raises(Exception, match="netem") as caught:
        saturate(down=CONSTANT, load=[], seconds=1, live=[{"at_s": 0.2, "loss": 0.1}])
    assert getattr(caught.value, "kind", None) == "ShapingError"
