"""Pools from experiments and from results: parallel as serial, live as simulated."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from adapters.checkpoints import load_checkpoint
from adapters.hindsight import Hindsight
from adapters.pool_files import read_pool, write_pool
from adapters.pool_summary import describe_pool
from adapters.pools import Pool, PoolError, join_pools
from adapters.training import TrainingConfig, train_abr
from player.records import SessionRecord
from testbed import cli_pools
from testbed.collecting import collect_pool, draw_starts, import_pool
from testbed.experiment import ConfigError, plan_experiment, read_experiment
from testbed.labelling import Labels
from testbed.results import ResultsError
from testbed.sandbox import sandbox_mode
from testbed.sessions import Plan

EXPERIMENT = """
task = "abr"
driver = "simulated"
seed = 4
traces = "builtin:mixed"
limit = 2
chunks = 9
[link]
model = "pensieve"
[[arms]]
controller = "bba"
[[arms]]
name = "mpc-5"
controller = "robustmpc"
"""
#: Two lines, so that one can be held out when a model is trained.
LIVE = """
task = "abr"
driver = "emulated"
traces = "traces"
chunks = 4
[[arms]]
controller = "robustmpc"
"""
LABELS = Labels(expert="robustmpc", hindsight=Hindsight(horizon=2))


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def plan_of(path: Path) -> Plan:
    return plan_experiment(read_experiment(path), data_dir=None, base=path.parent)


def ignore(record: SessionRecord) -> None:
    pass


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def assert_equal(first: Pool, second: Pool, *, labels: bool = True) -> None:
    assert len(first.episodes) == len(second.episodes)
    for a, b in zip(first.episodes, second.episodes, strict=True):
        for field in dataclasses.fields(a):
            if field.name in ("expert", "values") and not labels:
                continue
            one, other = getattr(a, field.name), getattr(b, field.name)
            if isinstance(one, np.ndarray):
                assert np.array_equal(one, other, equal_nan=True), field.name
            else:
                assert one == other, field.name


def test_several_processes_collect_what_one_does(experiment: Path) -> None:
    plan = draw_starts(plan_of(experiment), 2)
    told: list[SessionRecord] = []
    one = collect_pool(plan, labels=LABELS, jobs=1, made_by=(), on_session=ignore)
    two = collect_pool(plan, labels=LABELS, jobs=2, made_by=(), on_session=told.append)
    assert_equal(one, two)
    assert one.has_expert
    assert one.has_values
    assert len(told) == len(plan.sessions)
    assert {episode.arm for episode in one.episodes} == {"bba", "mpc-5"}


def test_arms_that_play_the_same_are_kept_once(experiment: Path) -> None:
    experiment.write_text(EXPERIMENT + '[[arms]]\nname = "again"\ncontroller = "bba"\n')
    pool = collect_pool(plan_of(experiment), made_by=(), on_session=ignore)
    assert pool.duplicates_dropped == 2
    assert len(pool.episodes) == 4


def test_a_run_is_imported_as_it_would_have_been_collected(
    experiment: Path, tmp_path: Path
) -> None:
    done = run_cli("run", experiment, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    imported = import_pool(tmp_path / "run", data_dir=None, labels=LABELS)
    plan = plan_of(experiment)
    assert_equal(imported, collect_pool(plan, labels=LABELS, made_by=(), on_session=ignore))
    with pytest.raises(PoolError, match=r"size_bytes.*'envivio-like-train'"):
        import_pool(tmp_path / "run", data_dir=None, video="builtin:envivio-like-train")
    with pytest.raises(ConfigError, match=r"video\.sizes.*nowhere.*--video"):
        import_pool(tmp_path / "run", data_dir=None, video="nowhere")


def test_what_is_no_run_is_not_imported(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"sessions\.jsonl: missing"):
        import_pool(tmp_path, data_dir=None)
    done = run_cli("run", experiment, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "run" / "experiment.toml").write_text(EXPERIMENT.replace("mpc-5", "other"))
    with pytest.raises(ConfigError, match=r"experiment\.toml: has no arm 'mpc-5'"):
        import_pool(tmp_path / "run", data_dir=None)
    (tmp_path / "run" / "experiment.toml").unlink()
    with pytest.raises(ConfigError, match=r"experiment\.toml: No such file"):
        import_pool(tmp_path / "run", data_dir=None)


def test_pools_are_merged_and_described(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = collect_pool(plan_of(experiment), made_by=("testbed collect …",), on_session=ignore)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        write_pool(pool, folder)
    cli_pools.merge(folders, tmp_path / "c")
    assert "4 of 8 dropped" in capsys.readouterr().out
    assert_equal(read_pool(tmp_path / "c"), pool)
    with pytest.raises(ConfigError, match="exists"):
        cli_pools.merge(folders, tmp_path / "c")
    cli_pools.describe(tmp_path / "c")
    shown = capsys.readouterr().out
    for part in (
        "4 sessions, 36 chunks on 2 traces",
        "mpc-5 (robustmpc)",
        "level 5",
        "left out: 4",
    ):
        assert part in shown


def test_a_torn_pool_is_one_line_and_exit_code_2(experiment: Path, tmp_path: Path) -> None:
    pool = collect_pool(plan_of(experiment), made_by=(), on_session=ignore)
    write_pool(pool, tmp_path / "torn")
    (tmp_path / "torn" / "chunks.parquet").write_bytes(b"PAR1")
    torn = run_cli("pool", "describe", tmp_path / "torn", "--json")
    assert (torn.returncode, torn.stdout, torn.stderr.count("\n")) == (2, "", 1)
    assert "chunks.parquet: its checksum" in torn.stderr


@pytest.mark.emulation
@pytest.mark.skipif(sandbox_mode() is None, reason="no private namespaces on this machine")
def test_what_was_streamed_can_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    for name in ("fast", "faster"):
        (tmp_path / "traces" / name).write_text("0 20\n300 20\n")
    (tmp_path / "live.toml").write_text(LIVE)
    done = run_cli(
        *("collect", tmp_path / "live.toml", "--expert", "robustmpc"),
        *("--out", tmp_path / "pool"),
    )
    assert done.returncode == 0, done.stderr
    summary = describe_pool(read_pool(tmp_path / "pool"))
    assert (summary.episodes, summary.chunks) == (2, 8)
    assert summary.has_expert
    # The controller decided over HTTP; asked again about what the pool says it saw, it agrees.
    assert summary.expert_agrees == 1.0
    done = run_cli("run", tmp_path / "live.toml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    imported = import_pool(tmp_path / "run", data_dir=None, labels=Labels(expert="robustmpc"))
    assert describe_pool(imported).expert_agrees == 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(
            transformers.GPT2Config(vocab_size=16, n_positions=256, n_embd=16, n_layer=1, n_head=2)
        ).save_pretrained(tmp_path / "backbone")
    report = train_abr(
        join_pools([read_pool(tmp_path / "pool"), imported]),
        str(tmp_path / "backbone"),
        tmp_path / "checkpoint",
        config=TrainingConfig(epochs=1, device="cpu"),
    )
    assert (report.train_episodes, report.valid_episodes) == (2, 2)
    assert load_checkpoint(str(tmp_path / "checkpoint")).config.levels == 6
