"""Whole emulated runs: real packets through private networks, and what happens when parts die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from testbed.sandbox import sandbox_mode

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(sandbox_mode() is None, reason="no private namespaces on this machine"),
]

EXPERIMENT = """
task = "abr"
driver = "emulated"
traces = "fast"
chunks = 6
[[arms]]
controller = "bba"
[[arms]]
controller = "robustmpc"
"""
#: At 1 Mbit/s a chunk of the lowest level takes 1.2 s: time to kill things in.
SLOW = """
task = "abr"
driver = "emulated"
traces = "slow"
chunks = 8
[player]
decision_timeout_s = 1.0
[[arms]]
controller = "fixed"
"""
PATIENCE_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, points in {"fast": "0 4\n300 4\n", "slow": "0 1\n300 1\n"}.items():
        (tmp_path / name).write_text(points)
    (tmp_path / "fast.toml").write_text(EXPERIMENT)
    (tmp_path / "slow.toml").write_text(SLOW)
    return tmp_path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "testbed.cli", *map(str, arguments)]


def finish(run: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, errors = run.communicate(timeout=PATIENCE_S)
    finally:
        run.kill()
    return run.returncode, errors


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def descendants(pid: int) -> dict[int, str]:
    """Process names by number of everything below a process."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, rest = (entry / "stat").read_text().split(" (", 1)[1].rsplit(") ", 1)
            except OSError:
                continue
            parents[int(entry.name)] = (int(rest.split()[1]), name)
    found: dict[int, str] = {}
    grown = {pid}
    while grown:
        grown = {child for child, (parent, _) in parents.items() if parent in grown}
        found |= {child: parents[child][1] for child in grown}
    return found


def kill_when_it_appears(run: subprocess.Popen[str], name: str, *, after_s: float) -> None:
    """Kills the descendant of that name, some time after it came up."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        matching = [pid for pid, found in descendants(run.pid).items() if found == name[:15]]
        if matching:
            time.sleep(after_s)
            for pid in matching:
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError(f"no process {name!r} below the run")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sessions_move_real_bytes_and_say_how_faithfully(folder: Path) -> None:
    out = folder / "out"
    status, errors = finish(start("run", folder / "fast.toml", "--out", out, "--json"))
    assert status == 0, errors
    sessions = rows(out / "sessions.jsonl")
    assert {row["arm"] for row in sessions} == {"bba", "robustmpc"}
    for row in sessions:
        chunks = row["chunks"]
        assert isinstance(chunks, list)
        assert len(chunks) == 6
        assert not any(chunk["fallback"] for chunk in chunks)
        assert all(chunk["decision_s"] > 0 for chunk in chunks[1:])
        # 4 Mbit/s at layer 3 carry at most 1448/1500 of that as payload
        big = [chunk for chunk in chunks if chunk["size_bytes"] > 400_000]
        assert big
        assert all(3000 < chunk["throughput_kbps"] < 3900 for chunk in big)
        link = row["link"]
        assert isinstance(link, dict)
        assert link["backend"] == "kernel"
    link_rows = rows(out / "link.jsonl")
    assert {"arm", "trace", "second", "asked_bits", "delivered_bits"} <= set(link_rows[0])
    media = [row for row in rows(out / "requests.jsonl") if "chunk-" in str(row["path"])]
    assert len(media) == 12
    told = media[5]["cmcd"]
    assert isinstance(told, dict)
    assert {"sid", "br", "d", "ot", "bl"} <= set(told)


def test_emulated_and_simulated_sessions_agree(folder: Path) -> None:
    measured: dict[str, dict[str, float]] = {}
    for driver in ("emulated", "simulated"):
        out = folder / driver
        run = start("run", folder / "slow.toml", "--out", out, "--driver", driver, "--json")
        status, errors = finish(run)
        assert status == 0, errors
        chunks = rows(out / "sessions.jsonl")[0]["chunks"]
        assert isinstance(chunks, list)
        measured[driver] = {
            "download_s": sum(chunk["download_s"] for chunk in chunks),
            "buffer_s": chunks[-1]["buffer_s"],
        }
    assert measured["emulated"] == pytest.approx(measured["simulated"], rel=0.05)


def test_a_controller_killed_in_mid_session_is_replaced_by_the_fallback(folder: Path) -> None:
    out = folder / "out"
    run = start(
        *("run", folder / "slow.toml", "--out", out, "--json"), "--set", 'player.fallback="fixed"'
    )
    kill_when_it_appears(run, "serve_controllers", after_s=4.0)
    status, errors = finish(run)
    assert status == 0, errors
    chunks = rows(out / "sessions.jsonl")[0]["chunks"]
    assert isinstance(chunks, list)
    fallbacks = [chunk["fallback"] for chunk in chunks]
    assert len(fallbacks) == 8
    assert fallbacks[-1]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["arms"][0]["fallbacks"] == sum(fallbacks)


def test_without_a_fallback_the_session_fails_with_its_chunks_kept(folder: Path) -> None:
    out = folder / "out"
    run = start("run", folder / "slow.toml", "--out", out, "--json")
    kill_when_it_appears(run, "serve_controllers", after_s=4.0)
    status, errors = finish(run)
    assert status == 1, errors
    session = rows(out / "sessions.jsonl")[0]
    assert session["status"] == "failed"
    assert "ControllerUnavailable" in str(session["error"])
    assert session["chunks"]


def test_a_server_killed_in_mid_session_fails_that_session_alone(folder: Path) -> None:
    out = folder / "out"
    run = start(
        *("run", folder / "slow.toml", "--out", out, "--json", "--jobs", 1),
        *("--set", 'arms=[{controller="fixed"}, {controller="rate"}]', "--set", "chunks=4"),
    )
    kill_when_it_appears(run, "run_server", after_s=2.0)
    status, errors = finish(run)
    assert status == 1, errors
    first, second = rows(out / "sessions.jsonl")
    assert (first["status"], second["status"]) == ("failed", "ok")
    assert "PlaybackError" in str(first["error"])
    resumed, errors = finish(
        start(
            *("run", folder / "slow.toml", "--out", out, "--json", "--resume"),
            *("--set", 'arms=[{controller="fixed"}, {controller="rate"}]', "--set", "chunks=4"),
        )
    )
    assert resumed == 0, errors
    assert [arm["failed"] for arm in json.loads((out / "summary.json").read_text())["arms"]] == [
        0,
        0,
    ]


def test_a_session_whose_process_dies_is_recorded_as_failed(folder: Path) -> None:
    out = folder / "out"
    run = start("run", folder / "slow.toml", "--out", out, "--json")
    kill_when_it_appears(run, "play_session", after_s=2.0)
    status, errors = finish(run)
    assert status == 1, errors
    (session,) = rows(out / "sessions.jsonl")
    assert session["status"] == "failed"
    assert "died: signal 9" in str(session["error"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_nothing_and_can_be_resumed(folder: Path, number: int) -> None:
    out = folder / "out"
    run = start("run", folder / "slow.toml", "--out", out, "--json")
    deadline = time.monotonic() + PATIENCE_S
    while "run_player" not in descendants(run.pid).values():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = set(descendants(run.pid))
    run.send_signal(number)
    status, _ = finish(run)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + 5.0
    while left := {pid for pid in below if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert {path.name for path in out.iterdir()} <= {
        "experiment.toml",
        "environment.json",
        "traces.json",
    }
    if number == signal.SIGKILL:
        resumed, errors = finish(start("run", folder / "slow.toml", "--out", out, "--resume"))
        assert resumed == 0, errors


SHARED = """
task = "abr"
driver = "emulated"
traces = "fast"
chunks = 3
[link]
delay_ms = 5
[link.up]
rate_mbps = 1.0
[network]
shared_by = "all"
[capture]
enabled = true
[hosts.server]
tcp = { slow_start_after_idle = 0 }
[[background]]
kind = "bulk"
[[arms]]
controller = "fixed"
[[arms]]
controller = "rate"
"""


def test_players_share_a_bottleneck_with_other_traffic_and_are_captured(folder: Path) -> None:
    (folder / "shared.toml").write_text(SHARED)
    out = folder / "out"
    arguments = ("run", folder / "shared.toml", "--out", out, "--json")
    status, errors = finish(start(*arguments))
    assert status == 0, errors
    fixed, rate = sessions = rows(out / "sessions.jsonl")
    assert [(row["arm"], row["client"]) for row in sessions] == [("fixed", 0), ("rate", 1)]
    assert {row["group"] for row in sessions} == {"fixed+rate"}
    assert fixed["link"] == rate["link"]
    for row in sessions:
        capture, (background,) = row["capture"], row["background"]
        assert capture["ending"] == "complete"
        assert len(capture["exchanges_ms"]) == 2
        assert any(not one["is_controller"] for one in capture["connections"])
        assert background["received_bytes"] > 0
        assert background["throughput_mbps"] < 4
    assert len(list((out / "captures").glob("*.pcapng"))) == 2
    link_rows = rows(out / "link.jsonl")
    assert {row["arm"] for row in link_rows} == {"fixed+rate"}
    assert {row["direction"] for row in link_rows} == {"down", "up"}
    requests = rows(out / "requests.jsonl")
    media = [row for row in requests if "chunk-" in row["path"]]
    assert {(row["arm"], row["client"]) for row in media} == {("fixed", 0), ("rate", 1)}
    assert len(json.loads((out / "summary.json").read_text())["fairness"]) == 1
    # a player that is missing has the whole group played again
    (out / "sessions.jsonl").write_text(json.dumps(fixed) + "\n")
    status, errors = finish(start(*arguments, "--resume"))
    assert status == 0, errors
    assert [row["arm"] for row in rows(out / "sessions.jsonl")] == ["fixed", "rate"]
    assert len(rows(out / "requests.jsonl")) == len(requests)


def test_an_engine_that_dies_ends_the_run(folder: Path) -> None:
    out = folder / "out"
    run = start(
        *("run", folder / "slow.toml", "--out", out, "--json", "--jobs", 1),
        *("--set", "link.backend=userspace"),
        *("--set", 'arms=[{controller="fixed"}, {controller="rate"}]'),
    )
    kill_when_it_appears(run, "link_engine", after_s=8.0)
    status, errors = finish(run)
    if "needs TUN/TAP" in errors:
        pytest.skip(errors)
    assert status == 1, errors
    assert "the engine of the user-space links died" in errors
    (session,) = rows(out / "sessions.jsonl")
    assert session["status"] == "failed"
    assert "engine" in session["error"]
    assert session["chunks"]


def test_a_session_that_outlives_its_trace_fails(folder: Path) -> None:
    (folder / "short").write_text("0 1\n3 1\n")
    out = folder / "out"
    status, errors = finish(
        start(
            *("run", folder / "slow.toml", "--out", out, "--json"),
            *("--set", "traces=short", "--set", "link.at_end=stop"),
        )
    )
    assert status == 1, errors
    (session,) = rows(out / "sessions.jsonl")
    assert "TraceEnded" in session["error"]
    assert session["chunks"]


def test_what_the_kernel_cannot_do_is_said_before_the_run(folder: Path) -> None:
    done = subprocess.run(
        command(
            *("run", folder / "fast.toml", "--out", folder / "out"),
            *("--set", "link.loss=0.01", "--set", "link.backend=kernel"),
        ),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode == 0:
        pytest.skip("this kernel has netem")
    assert done.returncode == 2
    assert "netem" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()
