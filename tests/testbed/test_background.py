from __future__ import annotations

import itertools
from typing import Any

import emulation_entries as entries
import numpy as np
import pydantic
import pytest

from testbed.background import (
    PARETO_RANGE,
    BackgroundTraffic,
    BulkTraffic,
    OnOffTraffic,
    Transfer,
    WebTraffic,
    flow_count,
    transfers,
)
from testbed.background_flows import (
    MAX_OPEN,
    Background,
    CongestionUnavailable,
    check_congestion,
)
from testbed.sandbox import run_in_sandbox

ADAPTER = pydantic.TypeAdapter(tuple[BackgroundTraffic, ...])
ONE_OF_EACH = (
    BulkTraffic(flows=2, stop_s=60.0, congestion="cubic"),
    OnOffTraffic(on_s=5.0, off_s=5.0, direction="up", rate_mbps=1.0),
    WebTraffic(arrivals_per_s=2.0, mean_bytes=100_000, start_s=3.0),
)
LINK_MBPS = 8.0
#: Payload of a packet of 1,500 bytes with TCP time stamps.
GOODPUT_MBPS = LINK_MBPS * 1448 / 1500
JOB = {"rate_mbps": LINK_MBPS}


def first(count: int, traffic: BackgroundTraffic, seed: int = 0) -> list[Transfer]:
    return list(itertools.islice(transfers(traffic, seed), count))


def collect(entry: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"background_entries:{entry}", job, on_message=messages.append)
    return messages


# ---- what is asked ------------------------------------------------------------------------------


def test_tables_are_read_by_their_kind_and_written_back() -> None:
    tables = [
        {"kind": "bulk", "flows": 2, "stop_s": 60.0, "congestion": "cubic"},
        {"kind": "onoff", "on_s": 5, "off_s": 5, "direction": "up", "rate_mbps": 1},
        {"kind": "web", "arrivals_per_s": 2.0, "mean_bytes": 100_000, "start_s": 3},
    ]
    assert ADAPTER.validate_python(tables) == ONE_OF_EACH
    assert ADAPTER.validate_python(ADAPTER.dump_python(ONE_OF_EACH, mode="json")) == ONE_OF_EACH
    assert [flow_count(entry) for entry in ONE_OF_EACH] == [2, 1, 1]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"flows": 2}, "kind"),
        ({"kind": "torrent"}, "'bulk', 'onoff', 'web'"),
        ({"kind": "bulk", "flow": 2}, "flow"),
        ({"kind": "bulk", "flows": 0}, "flows 0 is not from 1"),
        ({"kind": "bulk", "flows": 1000}, "flows 1000"),
        ({"kind": "bulk", "direction": "left"}, "direction"),
        ({"kind": "bulk", "start_s": -1}, "start_s -1"),
        ({"kind": "bulk", "start_s": 5, "stop_s": 5}, "stop_s 5.0 is not above start_s 5.0"),
        ({"kind": "onoff", "on_s": 5}, "off_s"),
        ({"kind": "onoff", "on_s": 0, "off_s": 1}, "on_s 0"),
        ({"kind": "onoff", "on_s": 1, "off_s": 1, "rate_mbps": 0}, "rate_mbps 0"),
        ({"kind": "web", "arrivals_per_s": 0, "mean_bytes": 1e5}, "arrivals_per_s 0"),
        ({"kind": "web", "arrivals_per_s": float("nan"), "mean_bytes": 1e5}, "finite"),
        ({"kind": "web", "arrivals_per_s": 1, "mean_bytes": 1e12}, "mean_bytes 1"),
    ],
)
def test_wrong_tables_are_refused_by_name(table: dict[str, Any], named: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=named):
        ADAPTER.validate_python([table])


def test_a_congestion_control_that_the_kernel_lacks_is_named_with_those_it_has() -> None:
    check_congestion(ONE_OF_EACH)
    with pytest.raises(CongestionUnavailable, match=r"background\.1\.congestion: 'magic'.*cubic"):
        check_congestion((BulkTraffic(), BulkTraffic(congestion="magic")))


# ---- the schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize("traffic", ONE_OF_EACH, ids=lambda traffic: traffic.kind)
def test_equal_seeds_give_equal_schedules_in_order_of_time(traffic: BackgroundTraffic) -> None:
    seen = first(50, traffic)
    assert seen == first(50, traffic)
    assert [transfer.start_s for transfer in seen] == sorted(t.start_s for t in seen)
    assert all(transfer.start_s >= traffic.start_s for transfer in seen)
    assert {transfer.direction for transfer in seen} == {traffic.direction}
    if not isinstance(traffic, BulkTraffic):
        assert seen != first(50, traffic, seed=1)


def test_bulk_flows_begin_together_and_end_together() -> None:
    assert list(transfers(BulkTraffic(flows=2, start_s=1.0, stop_s=9.0), 0)) == [
        Transfer(start_s=1.0, direction="down", until_s=9.0, flow=flow) for flow in (0, 1)
    ]


def test_fixed_periods_follow_the_clock_and_are_cut_at_the_stop() -> None:
    traffic = OnOffTraffic(on_s=2.0, off_s=3.0, periods="fixed", start_s=1.0, stop_s=12.0)
    periods = [(transfer.start_s, transfer.until_s) for transfer in transfers(traffic, 0)]
    assert periods == [(1.0, 3.0), (6.0, 8.0), (11.0, 12.0)]


def test_exponential_periods_have_the_means_that_are_asked() -> None:
    seen = first(4000, OnOffTraffic(on_s=2.0, off_s=6.0))
    starts = np.array([transfer.start_s for transfer in seen])
    on_s = np.array([transfer.until_s for transfer in seen], dtype=float) - starts
    off_s = np.diff(starts) - on_s[:-1]
    # A mean of 4,000 exponentials deviates by 1.6 %; an exponential's deviation is its mean.
    assert on_s.mean() == pytest.approx(2.0, rel=0.06)
    assert off_s.mean() == pytest.approx(6.0, rel=0.06)
    assert on_s.std() == pytest.approx(2.0, rel=0.1)


def test_web_transfers_arrive_as_a_poisson_process() -> None:
    traffic = WebTraffic(arrivals_per_s=4.0, mean_bytes=1e5, stop_s=1000.0)
    starts = np.array([transfer.start_s for transfer in transfers(traffic, 5)])
    assert len(starts) == pytest.approx(4000, rel=0.06)
    gaps = np.diff(starts)
    assert gaps.mean() == pytest.approx(0.25, rel=0.06)
    assert gaps.std() == pytest.approx(0.25, rel=0.1)
    # Counts in windows of one second: as variable as their mean.
    counts = np.histogram(starts, bins=1000, range=(0, 1000))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)


def test_web_sizes_are_heavy_tailed_with_the_mean_that_is_asked() -> None:
    seen = first(100_000, WebTraffic(arrivals_per_s=1.0, mean_bytes=100_000))
    sizes = np.array([transfer.size_bytes for transfer in seen], dtype=float)
    assert sizes.mean() == pytest.approx(100_000, rel=0.06)
    smallest = sizes.min()
    assert smallest == pytest.approx(22_300, rel=0.01)
    assert sizes.max() <= smallest * PARETO_RANGE * 1.001
    # P(size > x) = (x / smallest) ** -1.2 far below the bound
    for times, share in ((2, 0.435), (10, 0.063)):
        assert (sizes > times * smallest).mean() == pytest.approx(share, rel=0.05)
    top = np.sort(sizes)[-len(sizes) // 100 :]
    assert top.sum() > 0.2 * sizes.sum()  # one in a hundred carries much of the bytes


# ---- real packets -------------------------------------------------------------------------------


def test_without_traffic_nothing_is_started() -> None:
    with Background((), seed=0, near=(0, ""), far=(0, "")) as background:
        background.start(0.0)
        assert background.stop() == ()


@pytest.mark.emulation
def test_bulk_flows_fill_the_bottleneck_from_start_to_stop() -> None:
    entries.require(network=True)
    flows = {"kind": "bulk", "flows": 2, "start_s": 0.5, "stop_s": 3.0, "congestion": "reno"}
    later = {"kind": "bulk", "start_s": 60.0}
    record, unstarted = collect("over_a_link", {**JOB, "traffic": [flows, later], "seconds": 3.5})
    assert (record["started"], record["finished"], record["errors"]) == (2, 2, 0)
    assert 0.8 * GOODPUT_MBPS < record["throughput_mbps"] < 1.1 * GOODPUT_MBPS
    assert sum(record["flows_mbps"]) == pytest.approx(record["throughput_mbps"])
    assert min(record["flows_mbps"]) > 0.05 * GOODPUT_MBPS
    assert (unstarted["started"], unstarted["throughput_mbps"]) == (0, 0.0)


@pytest.mark.emulation
def test_sources_that_fall_silent_send_what_they_are_asked_to() -> None:
    entries.require(network=True)
    periods = {"kind": "onoff", "on_s": 0.5, "off_s": 0.5, "periods": "fixed"}
    traffic = [{**periods, "rate_mbps": 4}, {**periods, "direction": "up", "rate_mbps": 16}]
    seen = collect("over_a_link", {**JOB, "traffic": traffic, "seconds": 2.8})
    for record in seen:
        assert (record["started"], record["finished"], record["errors"]) == (3, 3, 0)
    # Three periods of half a second; the way up has no bottleneck
    assert seen[0]["received_bytes"] * 8 == pytest.approx(1.5 * 4e6, rel=0.1)
    assert seen[1]["received_bytes"] * 8 == pytest.approx(1.5 * 16e6, rel=0.1)
    assert (seen[0]["direction"], seen[1]["direction"]) == ("down", "up")


@pytest.mark.emulation
def test_web_transfers_complete_and_say_how_long_they_took() -> None:
    entries.require(network=True)
    web = WebTraffic(arrivals_per_s=10.0, mean_bytes=20_000, stop_s=2.0)
    traffic = ADAPTER.dump_python((web,), mode="json")
    (record,) = collect("over_a_link", {**JOB, "traffic": traffic, "seconds": 3.5})
    expected = [transfer.size_bytes or 0 for transfer in transfers(web, (1, 0))]
    assert record["started"] == record["finished"] == len(expected)
    assert record["received_bytes"] == sum(expected)
    assert min(expected) * 8 / (LINK_MBPS * 1e6) < record["completion_p50_s"] < 0.5
    assert record["completion_p50_s"] <= record["completion_p95_s"] < 2.0


@pytest.mark.emulation
def test_flows_go_on_after_an_outage() -> None:
    entries.require(network=True)
    job = {**JOB, "traffic": [{"kind": "bulk"}], "outage": [1.0, 1.5], "seconds": 4.0}
    (record,) = collect("over_a_link", job)
    assert (record["started"], record["finished"]) == (1, 0)
    # More than the time before the outage can have carried
    assert record["received_bytes"] * 8 > 1.3 * GOODPUT_MBPS * 1e6


@pytest.mark.emulation
def test_more_transfers_than_can_be_open_are_counted_as_errors() -> None:
    entries.require(network=True)
    flood = {"kind": "web", "arrivals_per_s": 800, "mean_bytes": 1_000_000}
    (record,) = collect("over_a_link", {**JOB, "traffic": [flood], "seconds": 1.2})
    assert record["errors"] > 0
    open_at_the_end = record["started"] - record["finished"] - record["errors"]
    assert 0 < open_at_the_end <= MAX_OPEN


@pytest.mark.emulation
def test_connections_that_fail_are_counted_and_only_endless_ones_come_back() -> None:
    entries.require()
    traffic = [
        {"kind": "bulk"},
        {"kind": "web", "arrivals_per_s": 20, "mean_bytes": 1000, "stop_s": 1.0},
    ]
    bulk, web = collect("unreachable", {"traffic": traffic, "seconds": 1.6})
    assert (bulk["started"], bulk["finished"], bulk["errors"]) == (1, 0, 2)
    assert web["errors"] == web["started"] > 5
    assert web["received_bytes"] == web["finished"] == 0
    assert web["completion_p50_s"] is None


@pytest.mark.emulation
def test_the_traffic_never_outlives_its_owner() -> None:
    entries.require()
    running, ended, unstarted, orphaned, killed = collect("ends", {"traffic": [{"kind": "bulk"}]})
    assert running["processes"] == 1
    assert ended["processes"] == 0
    assert (unstarted["processes"], unstarted["started"]) == (0, 0)
    assert orphaned["processes"] == 0
    assert killed["type"] == "BackgroundDied"
    assert "signal 9" in killed["error"]
