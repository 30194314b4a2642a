"""The command line as a user meets it: exit codes, messages, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENT = """
task = "abr"
driver = "simulated"
traces = "builtin:mixed"
limit = 3
chunks = 12
[link]
model = "pensieve"
[[arms]]
controller = "bba"
[[arms]]
name = "two"
controller = "fixed"
options = { level = 2 }
"""
SESSION_KEYS = {
    "arm",
    "controller",
    "trace",
    "seed",
    "status",
    "error",
    "qoe_per_chunk",
    "startup_s",
    "wall_s",
    "link",
    "chunks",
}
CHUNK_KEYS = {
    "index",
    "level",
    "bitrate_kbps",
    "size_bytes",
    "requested_s",
    "download_s",
    "throughput_kbps",
    "buffer_s",
    "rebuffer_s",
    "decision_s",
    "fallback",
    "qoe",
}
FILES = {
    "experiment.toml",
    "environment.json",
    "sessions.jsonl",
    "summary.json",
    "report.html",
    "traces.json",
}


def run_cli(*arguments: object, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TESTBED_DATA"}
    if data is not None:
        environment["TESTBED_DATA"] = str(data)
    return subprocess.run(
        [sys.executable, "-m", "testbed.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def sessions_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "sessions.jsonl").read_text().splitlines()]


def test_a_run_leaves_the_documented_files(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_cli("run", experiment, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == FILES
    summary = json.loads(done.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert [arm["arm"] for arm in summary["arms"]] == ["bba", "two"]
    assert all(arm["sessions"] == 3 and arm["failed"] == 0 for arm in summary["arms"])
    assert summary["pairs"][0]["n"] == 3
    rows = sessions_of(out)
    assert len(rows) == 6
    assert set(rows[0]) >= SESSION_KEYS
    chunks = rows[0]["chunks"]
    assert isinstance(chunks, list)
    assert len(chunks) == 12
    assert set(chunks[0]) >= CHUNK_KEYS
    environment = json.loads((out / "environment.json").read_text())
    assert {"version", "commit", "kernel", "packages", "seed"} <= set(environment)
    assert "torch" in environment["packages"]


def test_a_run_never_writes_over_results_but_goes_on_with_them(
    experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_cli("run", experiment, "--out", out).returncode == 0
    before = (out / "sessions.jsonl").read_text()
    again = run_cli("run", experiment, "--out", out)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert (out / "sessions.jsonl").read_text() == before
    # as a kill leaves it: two sessions, and a third one torn
    lines = before.splitlines(keepends=True)
    (out / "sessions.jsonl").write_text("".join(lines[:2]) + lines[2][:100])
    resumed = run_cli("run", experiment, "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    rows = sessions_of(out)
    assert [(row["arm"], row["trace"]) for row in rows] == [
        (json.loads(line)["arm"], json.loads(line)["trace"]) for line in lines
    ]
    other = run_cli("run", experiment, "--out", out, "--resume", "--set", "seed=5")
    assert other.returncode == 2
    assert "not the experiment" in other.stderr


def test_runs_with_one_and_two_processes_are_equal(experiment: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        done = run_cli("run", experiment, "--out", tmp_path / str(jobs), "--jobs", jobs)
        assert done.returncode == 0, done.stderr
    assert sessions_of(tmp_path / "1") == sessions_of(tmp_path / "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", 'arms.0.controller="bbb"'), "there are bba"),
        (("--set", "link.delay=3"), "unknown key 'link.delay'"),
        (("--set", 'traces="data:traces"'), "--data"),
        (("--data", "/nowhere"), "/nowhere: no such folder"),
        (("--driver", "imagined"), "driver"),
        (("--set", "arms.1.options.level=-1"), "must not be negative"),
        (("--resume",), "--out"),
        (
            ("--set", 'arms.0.controller="netllm"', "--set", 'arms.0.options.checkpoint="/no"'),
            "/no",
        ),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_is_wrong(
    experiment: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = () if arguments == ("--resume",) else ("--out", tmp_path / "out")
    done = run_cli("run", experiment, *out, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_failed_session_keeps_the_others_and_exits_with_1(
    experiment: Path, tmp_path: Path
) -> None:
    # What scores levels is for ladders of six levels; bba takes any.
    levels = "checkpoint='builtin:abr-minilm-levels'"
    out = tmp_path / "out"
    done = run_cli(
        *("run", experiment, "--out", out, "--json", "--set", "limit=1"),
        *("--set", "video.levels_kbps=[300.0, 900.0, 2700.0]"),
        *("--set", f"arms.1={{name='llm', controller='netllm', options={{{levels}}}}}"),
    )
    assert done.returncode == 1, done.stderr
    statuses = {row["arm"]: row["status"] for row in sessions_of(out)}
    assert statuses == {"bba": "ok", "llm": "failed"}
    assert json.loads(done.stdout)["arms"][1]["failed"] == 1
    assert "llm" in (out / "report.html").read_text()


def test_reports_are_rebuilt_and_set_side_by_side(experiment: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run_cli("run", experiment, "--out", one)
    run_cli("run", experiment, "--out", two, "--set", 'link.model="tcp"')
    (one / "summary.json").unlink()
    both = tmp_path / "both.html"
    assert run_cli("report", one, two, "--out", both).returncode == 0
    assert (one / "summary.json").exists()
    assert "<html" in both.read_text()
    missing = run_cli("report", tmp_path / "three")
    assert missing.returncode == 2
    assert "three" in missing.stderr


def test_the_reference_sessions_from_the_command_line(
    tmp_path: Path, data_dir: Path, reference_dir: Path
) -> None:
    path = tmp_path / "reference.toml"
    path.write_text(
        f"""
task = "abr"
driver = "simulated"
traces = "data:traces/broadband-3g/test"
starts = "{reference_dir / "abr_starts.json"}"
[video]
sizes = "data:video/envivio-dash3"
[link]
model = "pensieve"
[[arms]]
controller = "bba"
"""
    )
    out = tmp_path / "out"
    done = run_cli("run", path, "--out", out, data=data_dir)
    assert done.returncode == 0, done.stderr
    expected = json.loads((reference_dir / "abr_sessions.json").read_text())["traces"]
    measured = {row["trace"]: row["qoe_per_chunk"] for row in sessions_of(out)}
    assert len(measured) == len(expected) == 50
    for row in expected:
        assert measured[row["file"]] == pytest.approx(row["bba"], abs=1e-6)


def test_traces_are_generated_shown_and_converted(tmp_path: Path) -> None:
    made = tmp_path / "made"
    done = run_cli("trace", "generate", "lte", "--out", made, "--count", 2, "--seed", 7)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in made.iterdir())
    assert len(names) == 2
    assert run_cli("trace", "generate", "lte", "--out", made, "--seed", 7, "--count", 2).returncode
    shown = run_cli("trace", "show", made, "--json")
    assert shown.returncode == 0, shown.stderr
    before = json.loads(shown.stdout)["traces"]
    assert [row["name"] for row in before] == names
    plot = tmp_path / "plot.png"
    assert run_cli("trace", "show", made, "--plot", plot).returncode == 2
    assert run_cli("trace", "show", made / names[0], "--plot", plot).returncode == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    converted = tmp_path / "mahimahi.down"
    done = run_cli("trace", "convert", made / names[0], converted, "--to", "mahimahi")
    assert done.returncode == 0, done.stderr
    after = json.loads(run_cli("trace", "show", converted, "--json").stdout)["traces"][0]
    assert after["mean_mbps"] == pytest.approx(before[0]["mean_mbps"], rel=0.01)
    unknown = run_cli("trace", "generate", "6g", "--out", tmp_path / "x")
    assert unknown.returncode == 2
    assert "fcc, hsdpa, lte" in unknown.stderr


def test_the_version_is_told() -> None:
    assert run_cli("--version").stdout.startswith("testbed ")


def test_usage_errors_exit_with_2() -> None:
    assert run_cli("run").returncode == 2
    assert run_cli("runn").returncode == 2
