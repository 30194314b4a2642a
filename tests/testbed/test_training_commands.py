"""``testbed collect``, ``pool`` and ``train``: from an experiment to a checkpoint that plays."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import transformers

from adapters.training_loop import TrainingDiverged
from testbed.cli_training import tell_divergence

EXPERIMENT = """
task = "abr"
driver = "simulated"
seed = 4
traces = "builtin:mixed"
limit = 3
chunks = 10
[link]
model = "pensieve"
[[arms]]
controller = "bba"
[[arms]]
controller = "rate"
"""


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def test_an_experiment_becomes_a_pool_and_a_checkpoint(experiment: Path, tmp_path: Path) -> None:
    pool, checkpoint, backbone = (tmp_path / name for name in ("pool", "checkpoint", "backbone"))
    done = run_cli(
        *("collect", experiment, "--starts", 2, "--expert", "robustmpc", "--hindsight"),
        *("--out", pool),
    )
    assert done.returncode == 0, done.stderr
    described = json.loads(run_cli("pool", "describe", pool, "--json").stdout)
    assert described["episodes"] == 3 * 2 * 2
    assert described["has_expert"]
    assert described["has_values"]
    assert set(described["qoe_per_chunk"]) == {"bba", "rate"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(
            transformers.GPT2Config(vocab_size=16, n_positions=256, n_embd=16, n_layer=1, n_head=2)
        ).save_pretrained(backbone)
    train = ("train", "abr", "--pool", pool, "--backbone", backbone, "--out", checkpoint)
    done = run_cli(*train, "--epochs", 1, "--validate", experiment)
    assert done.returncode == 0, done.stderr
    card = json.loads((checkpoint / "card.json").read_text())
    assert card["command"].startswith("testbed train abr --pool")
    assert card["epochs"][0]["valid_qoe"] is not None
    assert "Epoch 1 of 1 was chosen" in (checkpoint / "report.html").read_text()
    again = run_cli(*train)
    assert again.returncode == 2
    assert "not empty" in again.stderr
    done = run_cli(
        *("run", experiment, "--out", tmp_path / "out", "--json"),
        *("--set", f'arms.1={{controller="netllm", options={{checkpoint="{checkpoint}"}}}}'),
    )
    assert done.returncode == 0, done.stderr
    assert [arm["arm"] for arm in json.loads(done.stdout)["arms"]] == ["bba", "netllm"]


def test_a_training_that_diverged_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = files("adapters") / "shipped" / "abr-minilm" / "card.json"
    (tmp_path / "card.json").write_text(shipped.read_text(encoding="utf-8"))
    error = TrainingDiverged("the loss is nan", epoch=7, kept_epochs=6, learning_rate=1e-3)
    tell_divergence(error, tmp_path)
    told = capsys.readouterr().err.replace("\n", " ")
    for part in ("loss is nan in epoch 7", "report.html", "behind epoch 6", "-rate 0.0003"):
        assert part in told


def test_the_oracle_may_be_the_expert(experiment: Path, tmp_path: Path) -> None:
    done = run_cli("collect", experiment, "--expert", "oracle", "--out", tmp_path / "pool")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "abr", "--pool", "nowhere", "--out", "x"), "nowhere"),
        (("pool", "describe", "nowhere"), "nowhere"),
        (("collect", "{experiment}", "--out", "{folder}"), "exists"),
        (("collect", "{experiment}", "--expert", "nobody", "--out", "{folder}/p"), "nobody"),
        (
            (
                *("collect", "{experiment}", "--hindsight", "--driver", "emulated"),
                *("--out", "{folder}/p"),
            ),
            "simulated",
        ),
    ],
)
def test_wrong_input_is_told(
    experiment: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    names = {"experiment": experiment, "folder": tmp_path}
    done = run_cli(*(argument.format(**names) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
