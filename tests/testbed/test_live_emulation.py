"""Whole emulated runs of live events and of requests that are given up: real packets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from player.live import available_s
from player.video import generate_video
from testbed.sandbox import sandbox_mode

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(sandbox_mode() is None, reason="no private namespaces on this machine"),
]

LADDER_KBPS = (300.0, 1000.0, 4000.0)
CHUNK_S = 2.0
CHUNKS = 6
TARGET_S = 4.0
PATIENCE_S = 120.0
EXPERIMENT = f"""
task = "abr"
driver = "emulated"
chunks = {CHUNKS}
[video]
sizes = "video"
levels_kbps = {list(LADDER_KBPS)}
chunk_s = {CHUNK_S}
[link]
delay_ms = 5
queue_packets = 30
"""
LIVE = f"""
[player.live]
target_latency_s = {TARGET_S}
[network]
clients = 2
[[arms]]
controller = "fixed"
options = {{ level = 1 }}
"""
#: Level 2 takes 16 s from the third second on, level 0 more than a second.
ABANDON = """
[player]
abandon = true
[[arms]]
controller = "fixed"
options = { level = 2 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Traces and a video of short chunks."""
    (tmp_path / "fast").write_text("0 6\n300 6\n")
    (tmp_path / "collapse").write_text("0 8\n3 8\n300 0.5\n")
    rng = np.random.default_rng(4)
    video = generate_video("v", chunks=CHUNKS, rng=rng, levels_kbps=LADDER_KBPS, chunk_s=CHUNK_S)
    (tmp_path / "video").mkdir()
    for level in range(video.levels):
        sizes = "\n".join(str(row[level]) for row in video.sizes_bytes)
        (tmp_path / "video" / f"video_size_{level}").write_text(sizes + "\n")
    return tmp_path


def run(folder: Path, keys: str, trace: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of sessions and of requests."""
    (folder / "experiment.toml").write_text(f'traces = "{trace}"\n{EXPERIMENT}{keys}')
    arguments = ["run", str(folder / "experiment.toml"), "--out", str(folder / "out"), "--json"]
    finished = subprocess.run(
        [sys.executable, "-m", "testbed.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return rows(folder / "out" / "sessions.jsonl"), rows(folder / "out" / "requests.jsonl")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_players_join_an_event_together_and_keep_their_latency(folder: Path) -> None:
    sessions, requests = run(folder, LIVE, "fast")
    assert [row["client"] for row in sessions] == [0, 1]
    for row in sessions:
        assert len(row["chunks"]) == CHUNKS
        for chunk in row["chunks"]:
            there_s = available_s(chunk["index"], CHUNK_S) - TARGET_S
            assert chunk["requested_s"] >= there_s - 0.5  # it may join half a second late
            assert TARGET_S <= chunk["latency_s"] < TARGET_S + 2.0
        mean_s = np.mean([chunk["latency_s"] for chunk in row["chunks"]])
        assert row["latency_s"] == pytest.approx(mean_s)
        # The last chunk is available when the event is 12 s old.
        assert row["wall_s"] >= CHUNKS * CHUNK_S - TARGET_S - 0.5
    media = [request for request in requests if "chunk-" in request["path"]]
    assert [request["status"] for request in media] == [200] * 2 * CHUNKS
    events = {request["path"].split("/")[2] for request in requests}
    assert len(events) == 1
    assert events.pop().startswith("start_")


def test_requests_are_given_up_where_the_link_collapses(folder: Path) -> None:
    (session,), requests = run(folder, ABANDON, "collapse")
    chunks = session["chunks"]
    given_up = [chunk for chunk in chunks if chunk["abandoned_level"] is not None]
    assert given_up
    for chunk in given_up:
        assert chunk["abandoned_level"] == 2
        assert chunk["level"] < 2
        assert chunk["abandoned_bytes"] > 0
    media = [request for request in requests if "chunk-" in request["path"]]
    aborted = [request for request in media if request["aborted"]]
    assert len(media) == CHUNKS + len(given_up)
    assert [request["path"].rpartition("/")[2] for request in aborted] == [
        f"chunk-2-{chunk['index'] + 1}.m4s" for chunk in given_up
    ]
    for request, chunk in zip(aborted, given_up, strict=True):
        assert request["bytes_sent"] >= chunk["abandoned_bytes"]
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["arms"][0]["abandoned"] == {
        "chunks": len(given_up),
        "bytes": sum(chunk["abandoned_bytes"] for chunk in given_up),
    }
