"""Emulated tiled streaming: real tiles through private networks, decided by the service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from viewport_entries import TOML, rows_of, run_cli, write_experiment

from testbed.sandbox import sandbox_mode

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(sandbox_mode() is None, reason="no private namespaces on this machine"),
]

EXPERIMENT = (
    TOML.replace('"offline"', '"emulated"\ntraces = "fast"\nchunks = 4\nrecordings = 1', 1).replace(
        '"linear"', '"oracle"'
    )
    + '[player]\nmissing = "stall"\nleast_share = 0.001\n[capture]\nenabled = true\n'
)


def test_a_session_moves_tiles_and_its_record_is_like_a_simulated_one(tmp_path: Path) -> None:
    (tmp_path / "fast").write_text("0 6\n300 6\n")
    path, out = write_experiment(tmp_path, EXPERIMENT), tmp_path / "out"
    done = run_cli("run", path, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["driver"] == "emulated"
    assert [arm["sessions"] for arm in summary["arms"]] == [1, 1]
    rows = {row["arm"]: row for row in rows_of(out / "sessions.jsonl")}
    simulated = tmp_path / "simulated"
    text = EXPERIMENT.partition("[capture]")[0]
    model = write_experiment(tmp_path, text)
    assert run_cli("run", model, "--out", simulated, "--driver", "simulated").returncode == 0
    for row in rows_of(simulated / "sessions.jsonl"):
        emulated = rows[row["arm"]]
        assert emulated.keys() == row.keys()
        assert emulated["status"] == "ok", emulated["error"]
        assert len(emulated["chunks"]) == len(row["chunks"]) == 4
        assert max(emulated["blank_ratio"], row["blank_ratio"]) < 0.001  # what nobody sees
        assert emulated["viewport_level"] >= 0
        assert emulated["decisions_ms"]
    assert rows["oracle"]["mae_deg"] < 0.5  # decided where the recording is known
    requests = rows_of(out / "requests.jsonl")
    for row in rows.values():
        sent = [one for one in requests if one["arm"] == row["arm"] and "tile-" in one["path"]]
        assert {one["recording"] for one in sent} == {"video01/user01"}
        # what was still on its way at the end counts for the server alone
        assert sum(one["bytes_sent"] for one in sent) >= row["bytes_used"] + row["bytes_wasted"]
        assert row["capture"]["ending"] == "complete"
    assert rows["static"]["capture"]["exchanges_ms"]
    assert not rows["oracle"]["capture"]["exchanges_ms"]
    seconds = rows_of(out / "link.jsonl")
    assert {one["recording"] for one in seconds} == {"video01/user01"}
    # a finished run has nothing left to do
    again = run_cli("run", path, "--out", out, "--resume")
    assert again.returncode == 2  # the file on disk is another one now
    write_experiment(tmp_path, EXPERIMENT)
    again = run_cli("run", path, "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert len(rows_of(out / "sessions.jsonl")) == 2
