"""What the user-space link does to real packets: loss, jitter, copies, queues, opportunities."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from typing import Any

import emulation_entries as entries
import pytest

from testbed.links.spec import GilbertElliott
from testbed.sandbox import run_in_sandbox

QUANTILE_99 = 2.576  # of the normal distribution, two-sided
COUNT = 3000
FAST = {"rate_mbps": 100.0, "queue": {"packets": 5000}}


@functools.cache
def tap_problem() -> str | None:
    messages: list[dict[str, Any]] = []
    run_in_sandbox("userspace_entries:probe_tap", {}, on_message=messages.append)
    return messages[0]["problem"]


def collect(entry: str, job: dict[str, Any]) -> dict[str, Any]:
    entries.require(network=True)
    if problem := tap_problem():
        pytest.skip(problem)
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"userspace_entries:{entry}", job, on_message=messages.append)
    return messages[0]


def rate_mbps(second: dict[str, Any]) -> float:
    rate: float = second["delivered_bits"] / (second["end_s"] - second["begin_s"]) / 1e6
    return rate


def total(seen: dict[str, Any], name: str, direction: str = "down") -> float:
    return sum(s[name] for s in seen["seconds"] if s["direction"] == direction)


@pytest.mark.emulation
def test_losses_come_in_bursts_as_long_as_asked_and_again_the_same() -> None:
    asked = GilbertElliott(to_bad=0.01, to_good=0.25)
    bursts = {"to_bad": asked.to_bad, "to_good": asked.to_good}
    job = {"down": {**FAST, "bursts": bursts, "seed": "7"}, "count": COUNT}
    first, again = (collect("datagrams", job) for _ in range(2))
    arrived = {number for number, _ in first["arrived"]}
    lost = [number not in arrived for number in range(COUNT)]
    runs = [len(list(group)) for is_lost, group in itertools.groupby(lost) if is_lost]
    # The losses follow each other, so that their number spreads more than a binomial one.
    stretch = 2 / (asked.to_bad + asked.to_good) - 1
    spread = math.sqrt(COUNT * asked.mean_loss * (1 - asked.mean_loss) * stretch)
    assert abs(sum(lost) - COUNT * asked.mean_loss) <= QUANTILE_99 * spread
    mean_burst = 1 / asked.to_good
    burst_spread = math.sqrt((1 - asked.to_good) / asked.to_good**2 / len(runs))
    assert abs(statistics.mean(runs) - mean_burst) <= QUANTILE_99 * burst_spread
    assert {number for number, _ in again["arrived"]} == arrived
    assert total(first, "losses") == sum(lost)


@pytest.mark.emulation
@pytest.mark.parametrize("reorder", [False, True])
def test_jitter_keeps_the_order_unless_asked_otherwise(reorder: bool) -> None:
    down = {**FAST, "delay_ms": 20.0, "jitter_ms": 10.0, "reorder": reorder}
    seen = collect("datagrams", {"down": down, "count": 1000})
    numbers = [number for number, _ in seen["arrived"]]
    assert sorted(numbers) == list(range(1000))
    assert (numbers == sorted(numbers)) is not reorder
    delays = [s["delay_p50_ms"] for s in seen["seconds"] if s["direction"] == "down"]
    assert all(10 <= delay <= 35 for delay in delays if delay is not None)


@pytest.mark.emulation
def test_packets_come_twice_as_often_as_asked() -> None:
    share = 0.1
    seen = collect("datagrams", {"down": {**FAST, "duplicate": share}, "count": COUNT})
    copies = len(seen["arrived"]) - COUNT
    assert abs(copies - COUNT * share) <= QUANTILE_99 * math.sqrt(COUNT * share * (1 - share))
    assert total(seen, "duplicates") == copies


@pytest.mark.emulation
def test_delivery_opportunities_are_at_whole_milliseconds() -> None:
    down = {
        "times_s": [0.0, 10.0],
        "rates_mbps": [0.12, 0.12],  # a packet of 1,500 bytes every 100 ms
        "replay": "opportunities",
    }
    job = {"down": down, "count": 5, "padding": 1468, "burst": 10, "pause_s": 0.0, "tail_s": 0.8}
    seen = collect("datagrams", job)
    delivered = [s for s in seen["seconds"] if s["direction"] == "down"]
    # Sent before the first opportunity, one leaves at each; ends of connections that were tried
    # before may be among them.
    assert total(seen, "delivered_bits") == pytest.approx(5 * 1500 * 8, rel=0.05)
    for name in ("delay_p50_ms", "delay_p99_ms"):
        waited = delivered[0][name] / 100  # in opportunities
        assert waited == pytest.approx(round(waited), abs=0.2)
        assert 2 <= round(waited) <= 7


@pytest.mark.emulation
@pytest.mark.parametrize(("queue", "delay_ms"), [("codel", 40), ("pie", 60), ("droptail", None)])
def test_an_active_queue_stays_short_under_tcp(queue: str, delay_ms: float | None) -> None:
    down = {"rate_mbps": 5.0, "queue": {"kind": queue, "packets": 400}}
    seen = collect("transfers", {"down": down, "seconds": 6.0, "ways": 1})
    late = [s["delay_p50_ms"] for s in seen["seconds"] if s["direction"] == "down"][3:6]
    if delay_ms is None:
        assert min(late) >= 150  # the queue that the others avoid
    else:
        assert max(late) <= delay_ms
        assert total(seen, "aqm_drops") > 0
    assert seen["record"]["wire_nmae_1s"] <= 0.02


@pytest.mark.emulation
def test_flows_with_ecn_are_marked_in_the_place_of_drops() -> None:
    down = {"rate_mbps": 5.0, "queue": {"kind": "codel", "packets": 400, "ecn": True}}
    hosts = {name: {"settings": {"ecn": 1}} for name in ("server", "client")}
    seen = collect("transfers", {"down": down, "seconds": 5.0, "ways": 1, "hosts": hosts})
    assert total(seen, "marks") > 0
    assert total(seen, "aqm_drops") == 0
    assert total(seen, "drops") == 0


@pytest.mark.emulation
def test_both_ways_follow_their_own_traces_and_changes() -> None:
    job = {
        "down": {"times_s": [0, 1, 2, 3], "rates_mbps": [2, 2, 4, 1], "delay_ms": 5.0},
        "up": {"rate_mbps": 2.0, "delay_ms": 5.0},
        "changes": [{"at_s": 4.0, "direction": "up", "rate_mbps": 0.8}],
        "seconds": 8.0,
    }
    seen = collect("transfers", job)
    assert seen["record"]["wire_nmae_1s"] <= 0.02
    assert seen["record"]["up_wire_nmae_1s"] <= 0.02
    busy = [s for s in seen["seconds"] if s["direction"] == "up" and s["saturated"]]
    before = [rate_mbps(second) for second in busy if second["end_s"] < 4.0]
    after = [rate_mbps(second) for second in busy if second["begin_s"] > 4.0]
    assert before == pytest.approx([2.0] * len(before), rel=0.05)
    assert after == pytest.approx([0.8] * len(after), rel=0.05)
    assert before
    assert after


@pytest.mark.emulation
def test_a_link_that_stops_at_the_end_delivers_no_more() -> None:
    down = {"times_s": [0.0, 1.0], "rates_mbps": [1.0, 1.0], "at_end": "stop"}
    job = {"down": down, "count": 200, "padding": 972, "pause_s": 0.005, "tail_s": 1.5}
    seen = collect("datagrams", job | {"down": down | {"queue": {"packets": 500}}})
    assert max(at_s for _, at_s in seen["arrived"]) <= 1.2 + 1.5  # read late, not sent late
    assert total(seen, "delivered_bits") == pytest.approx(1e6, rel=0.02)
    assert total(seen, "asked_bits") == pytest.approx(1e6)
