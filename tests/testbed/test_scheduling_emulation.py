"""Emulated clusters from the command line: agents on hosts, real bytes, decided by the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scheduling_entries import TOML, write_experiment
from viewport_entries import rows_of, run_cli

from testbed.sandbox import sandbox_mode

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(sandbox_mode() is None, reason="no private namespaces on this machine"),
]

EXPERIMENT = """
task = "scheduling"
driver = "emulated"
num_jobs = 2
executors = 4
arrival_mean_s = 5.0
time_scale = 0.01
[fabric]
byte_scale = 0.0002
[[cluster.outages]]
executor = 3
from_s = 20.0
until_s = 60.0
[[arms]]
controller = "fair"
[[arms]]
controller = "random"
"""


def test_bytes_cross_the_network_and_losses_are_made_up_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_cli("run", write_experiment(tmp_path, EXPERIMENT), "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["driver"] == "emulated"
    rows = rows_of(out / "sessions.jsonl")
    assert [row["arm"] for row in rows] == ["fair", "random"]
    for row in rows:
        check_session(row)
    seconds = rows_of(out / "link.jsonl")
    for row in rows:
        of_arm = [one for one in seconds if one["arm"] == row["arm"]]
        assert {one["link"] for one in of_arm} == {
            *(f"host{host}>leaf0" for host in range(4)),
            *(f"leaf0>host{host}" for host in range(4)),
        }
        assert sum(one["delivered_bits"] for one in of_arm) > 0
        assert all(one["asked_bits"] > 0 for one in of_arm)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["link"]["backend"] == rows[0]["network"]["backend"]
    page = (out / "report.html").read_text()
    assert "Live against simulation" in page
    assert 'class="timeline links"' in page
    again = run_cli("run", tmp_path / "scheduling.toml", "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert len(rows_of(out / "link.jsonl")) == len(seconds)


def check_session(row: dict[str, Any]) -> None:
    assert (row["status"], row["driver"]) == ("ok", "emulated"), row["error"]
    network = row["network"]
    assert network["lost"] == [3]
    assert network["backend"] in ("kernel", "userspace")
    assert network["planned_bytes"] == network["local_bytes"] + network["remote_bytes"]
    assert network["wire_bytes"] > network["remote_bytes"] > 0
    assert network["simulated"]["jct_s"] > 0
    runs = [
        dict(zip(("job", "stage", "task", "attempt", "executor"), one[:5], strict=True))
        | dict(zip(("start_s", "compute_s", "end_s", "ended"), one[5:9], strict=True))
        | dict(zip(("local_bytes", "remote_bytes", "bytes_per_s"), one[9:], strict=True))
        for one in row["tasks"]["runs"]
    ]
    finished = [one for one in runs if one["ended"] == "finished"]
    assert len(finished) == sum(job["tasks"] for job in row["jobs"])
    assert sum(one["ended"] == "lost" for one in runs) == network["reruns"]
    assert sum(one["remote_bytes"] for one in finished) == network["remote_bytes"]
    assert any(one["bytes_per_s"] for one in finished)
    assert all(one["start_s"] <= one["compute_s"] <= one["end_s"] for one in finished)
    # Nothing is to run at an executor that is gone; what it ran when it was lost ended then.
    gone = [one for one in runs if one["executor"] == 3 and 21 < one["start_s"] < 59]
    assert gone == []
    assert [one["job"] for one in row["tasks"]["jobs"]] == [job["id"] for job in row["jobs"]]


def test_decisions_that_are_late_are_those_of_the_fallback(tmp_path: Path) -> None:
    text = TOML.replace("num_jobs = 4", "num_jobs = 1").replace("seeds = [1, 2]", "compare = false")
    text = text.partition('[[arms]]\ncontroller = "fifo_capped"')[0]
    text = text.replace("[[arms]]", "[scheduler]\ndecision_timeout_s = 1e-6\n[[arms]]")
    path, out = write_experiment(tmp_path, text), tmp_path / "out"
    wanted = ("--driver", "emulated", "--set", "time_scale=0.005", "--set", "executors=3")
    failed = run_cli("run", path, "--out", out, *wanted)
    assert failed.returncode == 1, failed.stderr
    assert rows_of(out / "sessions.jsonl")[0]["error"].startswith(
        "ControllerUnavailable: no answer"
    )
    fallback = ("--set", "scheduler.fallback=fifo")
    done = run_cli("run", path, "--out", tmp_path / "again", "--json", *wanted, *fallback)
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "again" / "sessions.jsonl")
    assert row["fallbacks"] == row["decisions"] > 0
    assert row["network"]["simulated"] is None
    assert json.loads(done.stdout)["arms"][0]["fallbacks"] == row["fallbacks"]
