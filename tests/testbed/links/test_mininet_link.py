from __future__ import annotations

import functools
from typing import Any

import emulation_entries as entries
import pytest

from testbed.sandbox import run_in_sandbox


@functools.cache
def require_tap() -> None:
    entries.require(network=True)
    (tap,) = collect("userspace_entries:probe_tap", {})
    if tap["problem"]:
        pytest.skip(tap["problem"])


def collect(entry: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    run_in_sandbox(entry, job, on_message=messages.append)
    return messages


@pytest.mark.emulation
def test_any_mininet_topology_can_have_such_links() -> None:
    require_tap()
    (seen,) = collect("userspace_entries:mininet_star", {"delay_ms": 15.0, "hosts": 3})
    assert len(seen["rtt_s"]) == 3
    for rtt_s in seen["rtt_s"]:
        assert 0.03 <= rtt_s <= 0.1  # host, switch: only the host's link has a delay
    assert seen["delivered"] > 0
    assert seen["left"] == ["lo"]
