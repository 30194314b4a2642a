"""``testbed collect`` of schedulers, ``testbed train scheduling`` and ``testbed train decima``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.scheduling_pools import read_scheduling_pool
from testbed.cli import WRONG_INPUT, app
from testbed.experiment import ConfigError, plan_experiment, read_experiment
from testbed.scheduling_rollouts import PlannedTrials, jct_ratio, scheduling_plan

EXPERIMENT = """
task = "scheduling"
driver = "simulated"
jobs = "builtin:tpch-like"
num_jobs = 6
executors = 12
arrival_mean_s = 10.0
seeds = [4000, 4001]
record_tasks = "none"
[[arms]]
controller = "fair"
[[arms]]
controller = "decima"
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.output


def test_a_decima_is_trained_and_teaches(experiment: Path, tmp_path: Path) -> None:
    taught, pool = tmp_path / "decima", tmp_path / "pool"
    options = ("--steps", 1, "--linear-steps", 1, "--pairs", 2)
    run("train", "decima", "--workloads", experiment, "--out", taught, *options)
    card = json.loads((taught / "card.json").read_text())
    assert [row["step"] for row in card["curve"]] == [1, 2]
    assert card["experiments"][0]["seeds"] == [4000, 4001]
    again = tmp_path / "again"
    options = ("--steps", 0, "--start-from", taught)
    run("train", "decima", "--workloads", experiment, "--out", again, *options)
    assert (again / "decima.safetensors").read_bytes() == (
        taught / "decima.safetensors"
    ).read_bytes()
    said = run(
        *("collect", experiment, "--out", pool, "--keep", 0.5),
        *("--expert", f"decima=checkpoint={taught}"),
    )
    kept = read_scheduling_pool(pool)
    assert f"4 sessions, {kept.decisions.height} decisions" in said
    assert [(one.arm, one.seed) for one in kept.episodes] == [
        ("fair", 4000),
        ("decima", 4000),
        ("fair", 4001),
        ("decima", 4001),
    ]
    share = kept.decisions.height / sum(one.decisions for one in kept.episodes)
    assert 0.35 < share < 0.65


def test_a_language_model_is_trained(experiment: Path, tmp_path: Path) -> None:
    pool, out = tmp_path / "pool", tmp_path / "out"
    run("collect", experiment, "--out", pool, "--keep", 0.3)
    said = run(
        *("train", "scheduling", "--pool", pool, "--out", out),
        *("--epochs", 1, "--validate", experiment, "--device", "cpu"),
    )
    assert "of fair's *" in " ".join(said.split())
    assert (out / "report.html").is_file()
    card = json.loads((out / "card.json").read_text())
    assert card["chosen_by"] == "valid_jct_ratio"
    plan = plan_experiment(
        read_experiment(
            experiment,
            overrides=[
                f'arms=[{{controller="netllm", options={{checkpoint="{out}", device="cpu"}}}}]'
            ],
        ),
        data_dir=None,
        base=tmp_path,
    )
    assert plan.sessions[0].arm.controller == "netllm"


def test_trials_are_the_same_in_several_processes(experiment: Path, tmp_path: Path) -> None:
    from adapters.decima import load_decima
    from adapters.decima_training import Trial

    plan = scheduling_plan(
        plan_experiment(read_experiment(experiment), data_dir=None, base=tmp_path), "it"
    )
    policy = load_decima("builtin:scheduling-decima")
    trials = [Trial(policy, 0), Trial(policy, 1)]
    with PlannedTrials([plan]) as alone, PlannedTrials([plan], processes=2) as spread:
        ratios = alone(trials)
        assert spread(trials) == ratios
    assert jct_ratio(plan)(policy.decide) == pytest.approx(sum(ratios) / 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--starts", 2), "are not for task 'scheduling'"),
        (("--keep", 0), "--keep must be above 0"),
        (("--expert", "fair"), "'fair' rates no stages"),
        (("--expert", "nobody"), "unknown scheduling controller"),
    ],
)
def test_wrong_options_are_told(
    experiment: Path, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    with pytest.raises(WRONG_INPUT, match=says):
        run("collect", experiment, "--out", tmp_path / "pool", *arguments)


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('task = "abr"\ndriver = "simulated"\n[[arms]]\ncontroller = "bba"\n')
    with pytest.raises(ConfigError, match="--keep is for task 'scheduling'"):
        run("collect", other, "--out", tmp_path / "pool", "--keep", 0.5)
    plan = plan_experiment(read_experiment(other), data_dir=None, base=tmp_path)
    with pytest.raises(ConfigError, match="must be of 'scheduling'"):
        scheduling_plan(plan, "it")
