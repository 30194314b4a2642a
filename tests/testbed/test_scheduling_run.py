"""Task scheduling from the command line: files, figures, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scheduling_entries import TOML, write_experiment
from viewport_entries import rows_of, run_cli

FIELDS = {
    *("arm", "controller", "seed", "status", "error", "jct_s", "makespan_s", "decisions"),
    *("events", "wall_s", "jobs"),
}
WALL_CLOCK = ("wall_s", "decisions_ms")


def test_a_run_leaves_its_files_the_same_over_any_number_of_processes(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    for jobs in (1, 2):
        done = run_cli("run", path, "--out", tmp_path / str(jobs), "--jobs", jobs)
        assert done.returncode == 0, done.stderr
        assert "JCT s" in done.stdout
        assert "fair − fifo_capped" in done.stdout
    rows, others = (rows_of(tmp_path / str(jobs) / "sessions.jsonl") for jobs in (1, 2))
    for row, other in zip(rows, others, strict=True):
        assert row.keys() >= FIELDS
        assert set(row["jct_s"]) == {"mean", "p50", "p95", "p99"}
        assert row["jobs"][0].keys() >= {"id", "arrived_s", "finished_s", "jct_s"}
        assert {key: row[key] for key in row if key not in WALL_CLOCK} == {
            key: other[key] for key in other if key not in WALL_CLOCK
        }
    assert [(row["seed"], row["arm"]) for row in rows] == [
        *((1, "fair"), (1, "fifo_capped"), (2, "fair"), (2, "fifo_capped")),
    ]
    out = tmp_path / "1"
    assert {one.name for one in out.iterdir()} == {
        *("experiment.toml", "environment.json", "sessions.jsonl", "summary.json", "report.html"),
    }
    summary = json.loads((out / "summary.json").read_text())
    fair = summary["arms"][0]
    means = [row["jct_s"]["mean"] for row in rows if row["arm"] == "fair"]
    assert fair["jct_s"]["mean"] == pytest.approx(sum(means) / 2)
    assert set(fair["jct_s"]) >= {"mean", "ci95", "p95"}
    assert (fair["sessions"], fair["failed"], fair["fallbacks"]) == (2, 0, 0)
    assert summary["pairs"][0]["n"] == 2


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path, out = write_experiment(tmp_path), tmp_path / "out"
    assert run_cli("run", path, "--out", out).returncode == 0
    lines = (out / "sessions.jsonl").read_text().splitlines(keepends=True)
    (out / "sessions.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    done = run_cli("run", path, "--out", out, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert (out / "sessions.jsonl").read_text().startswith("".join(lines[:2]))
    assert [arm["sessions"] for arm in json.loads(done.stdout)["arms"]] == [2, 2]


def test_a_recorded_episode_is_repeated_exactly(tmp_path: Path, reference_dir: Path) -> None:
    file = reference_dir / "cjs_fifo_5jobs.json"
    recorded = json.loads(file.read_text(encoding="utf-8"))
    text = TOML.replace('"fair"', '"fifo"')
    path = write_experiment(tmp_path, text)
    done = run_cli(
        *("run", path, "--out", tmp_path / "out", "--json"),
        *("--set", f"episode={json.dumps(str(file))}"),
    )
    assert done.returncode == 1, done.stderr  # "fifo" is not what was recorded
    failed, repeated = rows_of(tmp_path / "out" / "sessions.jsonl")
    assert failed["error"].startswith("DurationError: draw ")
    assert [job["jct_s"] * 1000 for job in repeated["jobs"]] == pytest.approx(
        recorded["jct_ms"], abs=1e-6
    )
    assert repeated["decisions"] == len(recorded["decisions"]) == 58
    assert repeated["executors"] == recorded["num_executors"]
    # The reference has the job of time 0 in place before it counts.
    assert repeated["events"] == len(recorded["events"]) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "fabric.fan_in=-1"), "fabric.fan_in: must not be negative"),
        (("--set", "jobs=data:tpch"), "needs the data folder"),
        (("--set", "arms.0.options={share=0.5}"), "no option 'share'"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_is_wrong(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_cli("run", write_experiment(tmp_path), "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_published_completion_times_from_the_command_line(
    tmp_path: Path, data_dir: Path
) -> None:
    if not (data_dir / "tpch").is_dir():
        pytest.skip("no TPC-H jobs in the research data")
    text = """
task = "scheduling"
driver = "simulated"
jobs = "data:tpch"
num_jobs = 200
executors = 50
arrival_mean_s = 25.0
seeds = [1]
record_tasks = "none"
[[arms]]
controller = "fair"
[[arms]]
controller = "fifo_capped"
"""
    path = write_experiment(tmp_path, text)
    done = run_cli("run", path, "--out", tmp_path / "out", "--json", data=data_dir)
    assert done.returncode == 0, done.stderr
    fair, fifo = json.loads(done.stdout)["arms"]
    # The jobs are those of the reference, the durations drawn anew.
    assert fair["jct_s"]["mean"] == pytest.approx(42.8, rel=0.06)
    assert fifo["jct_s"]["mean"] == pytest.approx(53.0, rel=0.06)
    assert (fair["jobs"], fair["utilisation"]) == (200, None)
