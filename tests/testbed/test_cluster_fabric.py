"""The live cluster on a network of Mininet, shaped by either back-end."""

from __future__ import annotations

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
def test_jobs_finish_although_an_agent_is_killed() -> None:
    seen = run({**CHAIN, "kill": [8]})
    assert seen["finished_tasks"] == seen["total_tasks"]
    assert len(seen["lost"]) == 1
    assert seen["shuffle"]["planned_bytes"] == seen["edge_bytes"]
    assert seen["shuffle"]["local_bytes"] + seen["shuffle"]["remote_bytes"] == seen["edge_bytes"]


def test_too_many_hosts_are_refused() -> None:
    with pytest.raises(TopologyError, match="250 are the most"):
        FabricNetwork(Fabric.star(251, 1.0)).check()
