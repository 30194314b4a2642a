"""Task viewport from the command line: offline and simulated runs, files, exit codes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from viewport_entries import TOML, rows_of, run_cli, write_experiment

from controllers.client import ControllerClient
from player.viewport_observation import HeadPose, Viewport, ViewportObservation

STREAMED = (
    TOML.replace('"offline"', '"simulated"\ntraces = "builtin:fcc"\nlimit = 2\nchunks = 8')
    + "[simulation]\ndecision_s = 0.01\n"
)
PUBLISHED = """
task = "viewport"
driver = "offline"
viewports = "data:viewports/jin2022"
videos = [3, 7, 12, 10, 20, 27]
users = [9, 25, 73, 29, 31, 70, 58, 11, 14, 38, 16, 76, 77, 74, 24, 5, 17, 20, 51, 68, 36]
[[arms]]
controller = "static"
[[arms]]
controller = "velocity"
"""


def test_the_published_errors_from_the_command_line(tmp_path: Path, data_dir: Path) -> None:
    if not (data_dir / "viewports" / "jin2022").is_dir():
        pytest.skip("no recordings viewports/jin2022 in the research data")
    out = tmp_path / "out"
    path = write_experiment(tmp_path, PUBLISHED)
    done = run_cli("run", path, "--out", out, "--json", data=data_dir)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["task"], summary["driver"]) == ("viewport", "offline")
    static, velocity = summary["arms"]
    assert static["mae_deg"]["mean"] == pytest.approx(8.446, abs=0.0005)
    assert velocity["mae_deg"]["mean"] == pytest.approx(15.389, abs=0.0005)
    assert static["samples"] == velocity["samples"]
    assert len(static["mae_deg"]["by_step"]) == 20
    low, high = static["mae_deg"]["ci95"]
    assert low < 8.446 < high
    assert static["sessions"] == summary["pairs"][0]["n"] == 126


def test_an_offline_run_leaves_its_files_and_goes_on(tmp_path: Path) -> None:
    path, out = write_experiment(tmp_path), tmp_path / "out"
    done = run_cli("run", path, "--out", out, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "MAE" in done.stdout
    assert {one.name for one in out.iterdir()} >= {
        *("experiment.toml", "environment.json", "sessions.jsonl", "summary.json"),
    }
    before = [(row["arm"], row["recording"]) for row in rows_of(out / "sessions.jsonl")]
    assert len(before) == 12
    lines = (out / "sessions.jsonl").read_text().splitlines(keepends=True)
    (out / "sessions.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    resumed = run_cli("run", path, "--out", out, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    after = rows_of(out / "sessions.jsonl")
    assert [(row["arm"], row["recording"]) for row in after] == before
    assert [arm["sessions"] for arm in json.loads(resumed.stdout)["arms"]] == [6, 6]
    (out / "summary.json").unlink()
    again = run_cli("report", out)
    assert again.returncode == 0, again.stderr
    assert (out / "summary.json").exists()


def test_a_simulated_run_streams_tiles_the_same_over_any_number_of_processes(
    tmp_path: Path,
) -> None:
    path = write_experiment(tmp_path, STREAMED)
    for jobs in (1, 2):
        done = run_cli("run", path, "--out", tmp_path / str(jobs), "--jobs", jobs, "--json")
        assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "1" / "sessions.jsonl")
    assert rows == rows_of(tmp_path / "2" / "sessions.jsonl")
    assert len(rows) == 12
    for row in rows:
        assert row["status"] == "ok"
        assert len(row["chunks"]) == 8
        assert 0 <= row["blank_ratio"] <= 1
        assert row["bytes_used"] == sum(chunk["used_bytes"] for chunk in row["chunks"])
        assert row["bytes_wasted"] >= 0
        assert row["wall_s"] == pytest.approx(8.0 + row["startup_s"] + row["stall_s"])
    summary = json.loads((tmp_path / "1" / "summary.json").read_text())
    static, linear = summary["arms"]
    assert linear["mae_deg"]["mean"] < static["mae_deg"]["mean"]
    assert set(summary["pairs"][0]) == {
        *("a", "b", "n", "delta"),
        *("viewport_bitrate_kbps", "blank_ratio", "mae_deg"),
    }
    resumed = run_cli("run", path, "--out", tmp_path / "1", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert rows_of(tmp_path / "1" / "sessions.jsonl") == rows


def test_one_that_knows_the_future_is_the_ceiling(tmp_path: Path) -> None:
    text = TOML.replace('controller = "linear"', 'controller = "oracle"')
    done = run_cli("run", write_experiment(tmp_path, text), "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    static, oracle = json.loads(done.stdout)["arms"]
    assert oracle["mae_deg"]["mean"] < 0.01 < static["mae_deg"]["mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", 'arms.0.controller="bba"'), "there are "),
        (("--set", "predict.hops=3"), "unknown key 'predict.hops'"),
        (("--set", "users=[7]"), "no user 7; there are 1, 2, 3"),
        (("--driver", "simulated", "--set", "chunks=500"), "lasts for"),
        (("--driver", "simulated", "--set", "tiles.levels_kbps=[3.0, 1.0]"), "increase"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_is_wrong(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    path = write_experiment(tmp_path)
    done = run_cli("run", path, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_pools_and_reports_refuse_results_of_another_task(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_cli("run", write_experiment(tmp_path), "--out", out).returncode == 0
    imported = run_cli("pool", "import", out, "--out", tmp_path / "pool")
    assert imported.returncode == 2
    assert "'abr'" in imported.stderr
    collected = run_cli("collect", write_experiment(tmp_path), "--out", tmp_path / "pool")
    assert collected.returncode == 2
    assert "pools of 'abr' only" in collected.stderr


def test_controllers_of_the_task_are_served() -> None:
    command = [sys.executable, "-m", "testbed.cli", "serve", "--task", "viewport"]
    history = tuple(HeadPose(0.0, 1.0, float(step)) for step in range(10))

    async def ask(url: str) -> tuple[Viewport, ...]:
        async with ControllerClient(url, "viewport", "static", deadline_s=30.0) as client:
            answer: tuple[Viewport, ...] = await client.ask(ViewportObservation(history, 20, 1.8))
            return answer

    with subprocess.Popen(
        [*command, "--arm", "static", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as serving:
        try:
            assert serving.stdout is not None
            url = serving.stdout.readline().split()[-1]
            answer = asyncio.run(ask(url))
        finally:
            serving.send_signal(signal.SIGINT)
    assert len(answer) == 20
    assert answer[-1].yaw_deg == 9.0
