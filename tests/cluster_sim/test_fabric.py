"""Max–min fair sharing of a fabric, against closed forms."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_sim.fabric import (
    BYTES_PER_MS_PER_MBPS,
    TCP_PAYLOAD_SHARE,
    Fabric,
    FabricError,
    FabricFlows,
    fair_shares,
)
from player.trace import Trace

PER_MS = BYTES_PER_MS_PER_MBPS


def finish_times(flows: FabricFlows) -> list[tuple[float, int]]:
    """When readers are done, if nothing else begins."""
    done = []
    while (at_ms := flows.next_ms) < math.inf:
        done += [(at_ms, reader) for reader in flows.finish_next()]
    return done


def test_flows_of_one_link_share_it_equally() -> None:
    assert fair_shares([(0,), (0,), (0,)], [9.0]) == [3.0, 3.0, 3.0]
    assert fair_shares([], [9.0]) == []
    assert fair_shares([()], [9.0]) == [math.inf]


def test_a_long_flow_gets_the_least_and_the_others_what_is_left() -> None:
    # The parking lot: one flow over three links, one on each; the second link is narrow.
    paths = [(0, 1, 2), (0,), (1,), (2,)]
    assert fair_shares(paths, [10.0, 4.0, 10.0]) == [2.0, 8.0, 2.0, 8.0]


@given(
    st.lists(st.floats(0.5, 50.0), min_size=1, max_size=6).flatmap(
        lambda capacities: st.tuples(
            st.just(capacities),
            st.lists(
                st.sets(st.integers(0, len(capacities) - 1), min_size=1).map(sorted),
                min_size=1,
                max_size=12,
            ),
        )
    )
)
def test_each_flow_has_a_full_link_where_none_is_faster(
    drawn: tuple[list[float], list[list[int]]],
) -> None:
    capacities, paths = drawn
    rates = fair_shares(paths, capacities)
    used = [
        sum(rate for rate, path in zip(rates, paths, strict=True) if link in path)
        for link in range(len(capacities))
    ]
    for total, capacity in zip(used, capacities, strict=True):
        assert total <= capacity * (1 + 1e-9)
    for rate, path in zip(rates, paths, strict=True):
        assert any(
            used[link] >= capacities[link] * (1 - 1e-9)
            and all(
                other <= rate * (1 + 1e-9)
                for other, way in zip(rates, paths, strict=True)
                if link in way
            )
            for link in path
        )


def test_one_transfer_takes_size_over_rate() -> None:
    flows = FabricFlows(Fabric.star(3, host_mbps=8.0))
    assert flows.begin(2, {0: 1000, 2: 10**9, 1: 0}, now_ms=5.0)
    assert finish_times(flows) == [(6.0, 2)]
    assert not flows.begin(1, {1: 10**9, 0: 0}, now_ms=7.0)


def test_who_is_done_leaves_its_share_to_the_others() -> None:
    # Both readers fetch from host 0: 500 bytes per ms each, until the shorter one is done.
    flows = FabricFlows(Fabric.star(3, host_mbps=8.0))
    flows.begin(1, {0: 1000}, now_ms=0.0)
    flows.begin(2, {0: 3000}, now_ms=0.0)
    assert finish_times(flows) == [(2.0, 1), (4.0, 2)]
    assert flows.moved_bytes[0] == pytest.approx(4000)


def test_a_later_flow_slows_those_before_it_down() -> None:
    flows = FabricFlows(Fabric.star(3, host_mbps=8.0))
    flows.begin(1, {0: 2000}, now_ms=0.0)
    flows.begin(2, {0: 2000}, now_ms=1.0)
    # 1 has 1000 left at 1 ms, for which it takes 2 ms; 2 has 1000 left then.
    assert finish_times(flows) == [(3.0, 1), (4.0, 2)]


def test_a_reader_is_limited_by_its_own_link_and_one_that_stops_makes_room() -> None:
    flows = FabricFlows(Fabric.star(4, host_mbps=8.0))
    flows.begin(3, {0: 1000, 1: 1000, 2: 1000}, now_ms=0.0)
    assert flows.next_ms == pytest.approx(3.0)
    flows = FabricFlows(Fabric.star(3, host_mbps=8.0))
    flows.begin(1, {0: 2000}, now_ms=0.0)
    flows.begin(2, {0: 2000}, now_ms=0.0)
    flows.stop(2, now_ms=2.0)
    flows.stop(2, now_ms=2.0)
    assert finish_times(flows) == [(3.0, 1)]
    with pytest.raises(ValueError, match="backwards"):
        flows.begin(1, {0: 1}, now_ms=1.0)


def test_a_leaf_spine_fabric_is_full_at_its_spines() -> None:
    fabric = Fabric.leaf_spine(8, 8.0, leaves=2, spines=2, oversubscription=4.0)
    assert fabric.spine_mbps == 4.0
    assert [fabric.leaf_of(host) for host in range(8)] == [0] * 4 + [1] * 4
    names = [fabric.links[link].name for link in fabric.path(1, 7)]
    assert names == ["host1>leaf0", "leaf0>spine1", "spine1>leaf1", "leaf1>host7"]
    assert [fabric.links[link].name for link in fabric.path(0, 3)] == ["host0>leaf0", "leaf0>host3"]
    assert fabric.path(5, 5) == ()
    flows = FabricFlows(fabric)
    flows.begin(4, {0: 1000}, now_ms=0.0)  # both over spine 0, at 4 Mbit/s together
    flows.begin(6, {1: 1000}, now_ms=0.0)
    flows.begin(3, {2: 1000}, now_ms=0.0)  # within its leaf
    assert finish_times(flows) == [(1.0, 3), (4.0, 4), (4.0, 6)]


@pytest.mark.parametrize(("hosts", "leaves", "spines"), [(1, 1, 0), (5, 1, 0), (7, 3, 2)])
def test_every_path_is_made_of_links_that_join(hosts: int, leaves: int, spines: int) -> None:
    fabric = Fabric(
        hosts=hosts, host_mbps=10.0, leaves=leaves, spines=spines, spine_mbps=5.0 * bool(spines)
    )
    assert len({link.name for link in fabric.links}) == len(fabric.links)
    for source in range(hosts):
        for target in set(range(hosts)) - {source}:
            ends = [fabric.links[link].name.split(">") for link in fabric.path(source, target)]
            assert ends[0][0] == f"host{source}"
            assert ends[-1][1] == f"host{target}"
            for (_, here), (there, _) in itertools.pairwise(ends):
                assert here == there


def test_a_shorter_time_needs_faster_links() -> None:
    fabric = Fabric.leaf_spine(4, 10.0, leaves=2, spines=1, oversubscription=2.0)
    faster = fabric.compressed(0.02)
    assert (faster.host_mbps, faster.spine_mbps) == (500.0, 500.0)
    assert {link.rate_mbps for link in faster.links} == {500.0}
    flows = FabricFlows(Fabric.star(2, 8.0).with_headers())
    flows.begin(1, {0: 1000}, now_ms=0.0)
    assert flows.next_ms == pytest.approx(1 / TCP_PAYLOAD_SHARE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hosts": 0}, "leaves"),
        ({"leaves": 5}, "leaves"),
        ({"leaves": 2}, "spine"),
        ({"host_mbps": 0.0}, "host_mbps"),
        ({"host_mbps": math.nan}, "host_mbps"),
        ({"leaves": 2, "spines": 1}, "spine_mbps"),
        ({"payload_share": 0.0}, "payload_share"),
    ],
)
def test_fabrics_that_cannot_be(changes: dict[str, float], message: str) -> None:
    values = {"hosts": 4, "host_mbps": 1.0} | changes
    with pytest.raises(FabricError, match=message):
        Fabric(**values)  # type: ignore[arg-type]
    with pytest.raises(FabricError):
        Fabric.leaf_spine(4, 1.0, leaves=2, spines=0, oversubscription=1.0)
    with pytest.raises(FabricError):
        Fabric.star(4, 1.0).compressed(0.0)
    with pytest.raises(FabricError, match="no host 4"):
        Fabric.star(4, 1.0).path(0, 4)


def traced(*traces: Trace, hosts: int) -> FabricFlows:
    return FabricFlows(dataclasses.replace(Fabric.star(hosts, 1.0), traces=traces))


def steps(*rates_mbps: float, step_s: float = 1.0) -> Trace:
    """A trace with a step per rate."""
    times_s = np.arange(len(rates_mbps) + 1) * step_s
    return Trace("steps", times_s, np.array([0.0, *rates_mbps]))


AMPLE = steps(1e6)


def test_a_flow_over_a_stepped_trace_takes_what_the_integral_says() -> None:
    # A second of 8 Mbit/s is 1e6 bytes; then nothing, then half as much, and so on.
    flows = traced(steps(8.0, 0.0, 4.0), AMPLE, hosts=2)
    flows.begin(1, {0: 1_100_000}, now_ms=500.0)
    # 500 kB until 1 s, 500 kB from 2 to 3 s, 100 kB from then on at 8 Mbit/s: the trace looped.
    assert finish_times(flows) == [(3100.0, 1)]
    assert flows.moved_bytes[0] == pytest.approx(1_100_000)
    assert flows.next_ms == math.inf
    flows.begin(1, {0: 1_000}, now_ms=1_001_500.0)  # long behind, in the third step of a pass
    assert finish_times(flows) == [(1_001_502.0, 1)]


def test_what_ends_with_its_step_does_not_wait_for_the_next_one() -> None:
    flows = traced(steps(0.3, 0.0, step_s=0.1), AMPLE, hosts=2)
    flows.begin(1, {0: 3750}, now_ms=0.0)
    assert finish_times(flows) == [(pytest.approx(100.0), 1)]
    flows.begin(1, {0: 1}, now_ms=100.0)  # within the outage
    assert [at_ms for at_ms, _ in finish_times(flows)] == [pytest.approx(200 + 1 / 37.5)]


def test_hosts_take_turns_with_traces_and_share_what_changes() -> None:
    flows = traced(steps(8.0, 16.0), AMPLE, hosts=4)  # hosts 0 and 2, and 1 and 3, have the same
    links = flows.fabric.links
    assert [link.trace is AMPLE for link in links] == [False, True] * 4
    assert links[0].rate_mbps == 12.0
    assert links[2].bits_between(0.5, 3.5) == pytest.approx(36e6)
    flows.begin(1, {0: 1_500_000}, now_ms=0.0)
    flows.begin(3, {0: 1_500_000}, now_ms=0.0)
    # Half a second's worth each in the first second, then 1 MB a second each.
    assert finish_times(flows) == [(2000.0, 1), (2000.0, 3)]
    flows.begin(2, {1: 500_000}, now_ms=2000.0)  # what comes down follows it too
    assert finish_times(flows) == [(2500.0, 2)]


@given(
    st.lists(st.sampled_from([0.0, 0.5, 3.0, 11.0]), min_size=1, max_size=5).filter(any),
    st.floats(0.0, 9_000.0),
    st.integers(1, 10**7),
)
def test_one_flow_agrees_with_the_trace(
    rates_mbps: list[float], begin_ms: float, size_bytes: int
) -> None:
    trace = steps(*rates_mbps, step_s=0.7)
    flows = traced(trace, AMPLE, hosts=2)
    flows.begin(1, {0: size_bytes}, now_ms=begin_ms)
    took_s = trace.transfer_s(8.0 * size_bytes, begin_ms / 1000)
    ((at_ms, _),) = finish_times(flows)
    assert at_ms == pytest.approx(begin_ms + 1000 * took_s, rel=1e-9)


def test_traces_are_compressed_and_outages_in_turn_are_told() -> None:
    in_turn = steps(8.0, 0.0, step_s=5000.0), steps(0.0, 8.0, step_s=5000.0)
    fabric = dataclasses.replace(Fabric.star(2, 1.0), traces=in_turn)
    faster = fabric.compressed(0.02).traces[0]
    assert (faster.duration_s, faster.mean_mbps) == (200.0, pytest.approx(200.0))
    flows = FabricFlows(fabric)
    flows.begin(1, {0: 1000}, now_ms=0.0)
    with pytest.raises(FabricError, match=r"since 0 s: .*host0>leaf0 … leaf0>host1 never let"):
        finish_times(flows)
