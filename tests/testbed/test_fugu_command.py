"""``testbed train fugu``: from traces to a checkpoint that plays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.builtin import DataNotFound
from testbed.cli import app
from testbed.experiment import ConfigError

EXPERIMENT = """
task = "abr"
driver = "simulated"
traces = "builtin:mixed"
limit = 2
chunks = 6
[[arms]]
controller = "fugu"
"""


def test_traces_become_a_checkpoint_that_plays(tmp_path: Path) -> None:
    run, out, experiment = CliRunner(), tmp_path / "fugu", tmp_path / "experiment.toml"
    train = ["train", "fugu", "--traces", "builtin:fcc", "--traces", "builtin:lte"]
    train += ["--validate", "builtin:hsdpa", "--steps", "4", "--sessions", "8", "--seed", "3"]
    done = run.invoke(app, [*train, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "builtin:hsdpa" in done.output
    card = json.loads((out / "card.json").read_text())
    assert card["training"]["seed"] == 3
    assert card["traces"] == {"builtin:fcc": 20, "builtin:lte": 20}
    assert card["validation"][0]["sessions"] == 80
    assert {"commit", "version", "date", "machine"} <= set(card)
    experiment.write_text(EXPERIMENT)
    options = f'arms.0.options={{checkpoint="{out}"}}'
    played = ["run", str(experiment), "--set", options, "--out", str(tmp_path / "run"), "--json"]
    done = run.invoke(app, played, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["arms"][0]["failed"] == 0
    with pytest.raises(ConfigError, match="not empty"):
        run.invoke(app, [*train, "--out", str(out)], catch_exceptions=False)


def test_wrong_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="no built-in traces 'nothing'"):
        CliRunner().invoke(
            app,
            ["train", "fugu", "--traces", "builtin:nothing", "--out", str(tmp_path / "x")],
            catch_exceptions=False,
        )
    assert not (tmp_path / "x").exists()


def test_a_training_that_diverges_says_so_and_writes_nothing(tmp_path: Path) -> None:
    train = ["train", "fugu", "--traces", "builtin:fcc", "--steps", "5", "--sessions", "4"]
    train += ["--learning-rate", "1e30", "--out", str(tmp_path / "fugu")]
    done = CliRunner().invoke(app, train, catch_exceptions=False)
    assert done.exit_code == 1
    assert "the training diverged" in done.output
    assert not (tmp_path / "fugu").exists()
