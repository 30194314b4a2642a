"""``testbed train forecast``: from traces to a language model that plays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from testbed.cli import app
from testbed.experiment import ConfigError

EXPERIMENT = """
task = "abr"
driver = "simulated"
traces = "builtin:mixed"
limit = 2
chunks = 6
[[arms]]
controller = "netllm"
"""


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=2,
            vocab_size=16,
            n_positions=64,
            bos_token_id=None,
            eos_token_id=None,
        )
        transformers.GPT2Model(config).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def train(backbone: Path, tmp_path: Path) -> Callable[..., str]:
    def train(*more: str) -> str:
        arguments = ["train", "forecast", "--traces", "builtin:fcc", "--traces", "builtin:lte"]
        arguments += ["--backbone", str(backbone), "--epochs", "2", "--rounds", "1"]
        arguments += ["--sessions", "6", "--out", str(tmp_path / "out"), *more]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return train


def test_traces_become_a_checkpoint_that_plays(train: Callable[..., str], tmp_path: Path) -> None:
    told = train("--validate", "builtin:hsdpa")
    out, experiment = tmp_path / "out", tmp_path / "experiment.toml"
    assert "held out" in told
    card = json.loads((out / "card.json").read_text())
    assert card["training_traces"] == {"builtin:fcc": 20, "builtin:lte": 20}
    assert card["chosen_by"] == "valid_loss"
    assert [row["epoch"] for row in card["epochs"]] == [1, 2]
    assert "<svg" in (out / "report.html").read_text()
    assert not (out / "training-state").exists()
    experiment.write_text(EXPERIMENT)
    ladder = "video.levels_kbps=[200, 700, 2100]"
    options = f'arms.0.options={{checkpoint="{out}"}}'
    played = ["run", str(experiment), "--set", options, "--set", ladder, "--json"]
    done = CliRunner().invoke(app, [*played, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["arms"][0]["failed"] == 0


def test_what_is_trained_on_cannot_validate(train: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other traces"):
        train("--validate", "builtin:fcc")
    assert not (tmp_path / "out").exists()
