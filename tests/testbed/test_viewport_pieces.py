"""Emulated tiled streaming over a link that drops: large tiles come in pieces, as simulated."""

from __future__ import annotations

from pathlib import Path

import pytest
from viewport_entries import TOML, rows_of, run_cli, write_experiment

from testbed.sandbox import sandbox_mode

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(sandbox_mode() is None, reason="no private namespaces on this machine"),
]

EXPERIMENT = TOML.replace(
    '"offline"', '"emulated"\ntraces = "drops"\nchunks = 8\nrecordings = 1', 1
).replace('"linear"', '"oracle"')
LEVEL_TOLERANCE = 0.25  # of a level: the machine may be busy with other tests


def test_pieces_are_byte_ranges_and_sessions_like_simulated_ones(tmp_path: Path) -> None:
    (tmp_path / "drops").write_text("0 2\n5 2\n8 0.4\n300 2\n")
    path = write_experiment(tmp_path, EXPERIMENT)
    out, simulated = tmp_path / "out", tmp_path / "simulated"
    done = run_cli("run", path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert run_cli("run", path, "--out", simulated, "--driver", "simulated").returncode == 0
    rows = {row["arm"]: row for row in rows_of(out / "sessions.jsonl")}
    for row in rows_of(simulated / "sessions.jsonl"):
        emulated = rows[row["arm"]]
        assert emulated["status"] == "ok", emulated["error"]
        assert len(emulated["chunks"]) == 8
        assert emulated["viewport_level"] == pytest.approx(
            row["viewport_level"], abs=LEVEL_TOLERANCE
        )
    requests = [one for one in rows_of(out / "requests.jsonl") if "tile-" in one["path"]]
    assert all((one["status"] == 206) == (one["range"] is not None) for one in requests)
    for arm in rows:
        assert {one["status"] for one in requests if one["arm"] == arm} == {200, 206}
