"""The live cluster on a network of Mininet, shaped by either back-end."""

from __future__ import annotations

import itertools
from typing import Any

import cluster_entries as entries
import emulation_entries
import pytest

from cluster_sim.fabric import Fabric
from testbed.cluster_fabric import FabricNetwork
from testbed.sandbox import run_in_sandbox
from testbed.topology import TopologyError

CHAIN = {"chain": [6, 1000, 3_000_001], "jobs": 1, "hosts": 6, "host_mbps": 2, "time_scale": 0.1}
LEAF_SPINE = {"leaves": 3, "spines": 2, "oversubscription": 2.0}


def run(job: dict[str, Any]) -> dict[str, Any]:
    emulation_entries.require(network=True)
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"{entries.__name__}:run", job, on_message=messages.append)
    return messages[0]


@pytest.mark.emulation
@pytest.mark.parametrize(("backend", "shape"), [("kernel", LEAF_SPINE), ("userspace", {})])
def test_bytes_cross_the_fabric_as_planned(backend: str, shape: dict[str, Any]) -> None:
    seen = run({**CHAIN, **shape, "backend": backend})
    shuffle = seen["shuffle"]
    assert seen["backend"] == backend
    assert seen["finished_tasks"] == seen["total_tasks"] == 12
    assert shuffle["planned_bytes"] == seen["edge_bytes"] == 3_000_001
    assert shuffle["local_bytes"] + shuffle["remote_bytes"] == 3_000_001
    # Headers, requests and acknowledgements come on top; nothing may be missing on the wire.
    assert 1.0 < sum(seen["received"]) / shuffle["remote_bytes"] < 1.25
    assert shuffle["fetch_s"] > 0.8 * seen["simulated_shuffle"]["fetch_s"]


@pytest.mark.emulation
@pytest.mark.parametrize("backend", ["kernel", "userspace"])
def test_links_follow_their_traces_from_the_begin_of_every_session(backend: str) -> None:
    # Nothing passes from 5 to 20 s of the cluster, 0.25 to 1 s; what is to be read is from 12 s on.
    traces = [[[0.0, 5.0, 20.0, 1000.0], [0.0, 4.0, 0.0, 4.0]]]
    job = {"chain": [3, 10_000, 600_000], "hosts": 3, "traces": traces, "time_scale": 0.05}
    seen = run({**CHAIN, **job, "backend": backend, "sessions": 2})
    assert seen["backend"] == backend
    assert seen["finished_tasks"] == seen["total_tasks"] == 6
    times_s = [at_s for at_s, _ in seen["samples"]]
    second = next(
        place for place, pair in enumerate(itertools.pairwise(times_s)) if pair[1] < pair[0]
    )
    for samples in (seen["samples"][: second + 1], seen["samples"][second + 1 :]):
        within = [moved for at_s, moved in samples if 0.3 < at_s < 0.98]
        # A packet that is due on each output may be under way.
        assert max(within) - min(within) < 10 * 1500 < samples[-1][1] - within[0]


@pytest.mark.emulation
def test_jobs_finish_although_an_agent_is_killed() -> None:
    seen = run({**CHAIN, "kill": [8]})
    assert seen["finished_tasks"] == seen["total_tasks"]
    assert len(seen["lost"]) == 1
    assert seen["shuffle"]["planned_bytes"] == seen["edge_bytes"]
    assert seen["shuffle"]["local_bytes"] + seen["shuffle"]["remote_bytes"] == seen["edge_bytes"]


def test_too_many_hosts_are_refused() -> None:
    with pytest.raises(TopologyError, match="250 are the most"):
        FabricNetwork(Fabric.star(251, 1.0)).check()
