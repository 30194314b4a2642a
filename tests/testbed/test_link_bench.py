from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import emulation_entries as entries
import pytest

PATIENCE_S = 120.0
LOOSE = 0.02


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed.cli", "link", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rate:fast"], "rate:fast: expected rate: and a number"),
        (["rate:1", "--traffic", "pigeons"], "'pigeons' is not one of udp, cubic"),
        (["rate:1", "--seconds", "1"], "seconds: 1.0 is not from 4.0"),
        (["rate:1000", "--seconds", "60"], "more than the 1048576 that can be noted"),
        (["rate:1", "--set", "delay"], "delay"),
        (["rate:1", "--set", "speed=3"], "speed"),
        (
            ["rate:1", "--set", "delay_ms=1", "--set", "delay_ms.x=1"],
            "delay_ms is a value, not a table",
        ),
        (["rate:1", "--backend", "magic"], "magic"),
        (["builtin:nothing"], "nothing"),
        (["rate:1", "--count", "0"], "--count"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], named: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert done.stdout == ""


@pytest.mark.emulation
@pytest.mark.parametrize("traffic", ["udp", "cubic"])
def test_links_are_measured_by_what_arrives(traffic: str) -> None:
    entries.require(network=True)
    done = bench(
        *("rate:2", "rate:4", "--count", "2", "--seconds", "5", "--traffic", traffic, "--json")
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert [link["trace"] for link in found["links"]] == ["rate:2#0", "rate:4#1"]
    for link, rate_mbps in zip(found["links"], (2.0, 4.0), strict=True):
        assert link["delivered_mbps"] == pytest.approx(rate_mbps, rel=LOOSE)
        assert link["nmae_1s"] <= LOOSE
        assert abs(link["total_error"]) <= LOOSE
        if traffic == "udp":
            assert link["queue_drops"] > 0
            assert link["delay_p50_ms"] > 100  # a full queue of 100 packets
    assert found["backend"]["name"] in ("kernel", "userspace")
    assert 0 < found["cpu"] < 2


@pytest.mark.emulation
def test_the_delay_is_measured_by_an_echo() -> None:
    entries.require(network=True)
    done = bench(
        *("rate:100", "--count", "1", "--seconds", "4", "--traffic", "echo"),
        *("--backend", "userspace", "--set", "delay_ms=10", "--json"),
    )
    if "TUN" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    (link,) = json.loads(done.stdout)["links"]
    assert link["echoes_lost"] == 0
    assert 0 < link["rtt_error_p50_ms"] <= 3.0
