"""``testbed train viewport``: from head motion to a checkpoint that foretells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from testbed.cli import app
from testbed.cli_training import TrainingInputError
from testbed.experiment import ConfigError

RECORDINGS = ["--recordings", "builtin:explorers-train", "--videos", "11,12,13"]
QUICK = ["--epochs", "2", "--steps", "2", "--batch-size", "8", "--threads", "1"]
EXPERIMENT = """
task = "viewport"
driver = "offline"
viewports = "builtin:explorers"
videos = [1]
users = [1, 2]
[[arms]]
controller = "netllm"
"""


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=16,
        n_positions=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2Model(config).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., str]:
    def train(out: str, *more: str) -> str:
        arguments = ["train", "viewport", *RECORDINGS, "--users", "21,22,23,24", *QUICK]
        done = CliRunner().invoke(
            app, [*arguments, "--out", str(tmp_path / out), *more], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done.output

    return train


def test_head_motion_becomes_a_checkpoint_that_foretells(
    train: Callable[..., str], backbone: Path, tmp_path: Path
) -> None:
    networks = ["--members", "1", "--hidden-size", "8"]
    told = train("small", "--backbone", "none", *networks)
    assert "held out" in told
    train("out", "--backbone", str(backbone), "--start-from", str(tmp_path / "small"))
    out, experiment = tmp_path / "out", tmp_path / "experiment.toml"
    card = json.loads((out / "card.json").read_text())
    assert card["source"] == "builtin:explorers-train"
    assert sorted(card["videos_learned"] + card["held_out_videos"]) == [11, 12, 13]
    assert card["start_from"] == [str(tmp_path / "small")]
    assert [row["epoch"] for row in card["epochs"]] == [1, 2]
    assert "<svg" in (out / "report.html").read_text()
    assert not (out / "training-state").exists()
    experiment.write_text(EXPERIMENT)
    options = f'arms.0.options={{checkpoint="{out}"}}'
    played = ["run", str(experiment), "--set", options, "--json", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, played)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["arms"][0]["failed"] == 0


def test_the_baseline_is_trained_alike(train: Callable[..., str], tmp_path: Path) -> None:
    told = train("gru", "--backbone", "gru", "--hidden-size", "8", "--hold-out", "0")
    assert "held out" not in told
    card = json.loads((tmp_path / "gru" / "card.json").read_text())
    assert (card["backbone"], card["chosen_by"]) == ("none", "the last epoch")
    assert card["best_epoch"] == 2


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--videos", "1;2"], "numbers such as"),
        (["--videos", "99"], "no video 99"),
        (["--backbone", "nothing/there/is"], "unknown backbone"),
        (["--start-from", "nowhere"], "no such folder"),
        (["--start-from", "x", "--members", "2"], "says what the networks are"),
        (["--hold-out", "0.7"], "hold_out"),
    ],
)
def test_what_cannot_be_trained_is_refused(more: list[str], match: str, tmp_path: Path) -> None:
    arguments = ["train", "viewport", *RECORDINGS, "--users", "21,22,23", *QUICK]
    with pytest.raises((ConfigError, TrainingInputError), match=match):
        CliRunner().invoke(
            app, [*arguments, "--out", str(tmp_path / "out"), *more], catch_exceptions=False
        )
    assert not (tmp_path / "out").exists()
