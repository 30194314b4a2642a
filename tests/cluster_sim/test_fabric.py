"""Max–min fair sharing of a fabric, against closed forms."""

from __future__ import annotations

import itertools
import math

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
