"""``testbed train pensieve`` and ``genet``: from traces to a checkpoint that plays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controllers.registry import create
from testbed.cli_training import train_app
from testbed.experiment import ConfigError

SMALL = ("--chunks-budget", "200", "--sessions", "8", "--validate", "builtin:fcc")


def train(*arguments: object) -> str:
    done = CliRunner().invoke(train_app, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_best_of_several_seeds_plays(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="needs the extra 'rl': stable-baselines3")
    out = tmp_path / "pensieve"
    printed = train(
        *("pensieve", "--out", out, *SMALL, "--chunks", 6, "--seed", 4, "--seed", 5),
        *("--traces", "builtin:fcc-train", "--traces", "builtin:lte-train"),
    )
    card = json.loads((out / "card.json").read_text())
    assert [one["seed"] for one in card["seeds"]] == [4, 5]
    best = max(card["seeds"], key=lambda one: one["best"]["playable_qoe"])
    assert card["seed"] == best["seed"]
    assert {"commit", "version", "date", "machine"} <= set(card)
    assert card["traces"] == ["builtin:fcc-train", "builtin:lte-train"]
    assert f"seed {best['seed']}" in next(line for line in printed.splitlines() if "*" in line)
    controller = create("abr", "pensieve", {"checkpoint": str(out)})
    assert controller.policy.config.method == "pensieve"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="not empty"):
        train("pensieve", "--out", out)


def test_genet_trains_on_generated_traces_alone(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="needs the extra 'rl': stable-baselines3")
    train("genet", "--out", tmp_path / "genet", *SMALL, "--chunks", 3)
    card = json.loads((tmp_path / "genet" / "card.json").read_text())
    assert (card["method"], card["traces"]) == ("genet", [])
    assert len(card["seeds"][0]["promotions"]) == 9
    assert create("abr", "genet", {"checkpoint": str(tmp_path / "genet")})


def test_without_the_extra_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("adapters.pensieve_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"extra 'rl' \(pip install 'netllm-testbed\[rl\]'\)"):
        train("pensieve", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--traces", "builtin:nothing"), "no built-in traces 'nothing'"),
        (("--video", "builtin:nothing"), "no built-in video 'nothing'"),
        (("--chunks", "49"), "builtin:envivio-like-train has only 48"),
        (("--validate", "data:nowhere"), "data:nowhere"),
    ],
)
def test_wrong_input_is_told(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    pytest.importorskip("stable_baselines3", reason="needs the extra 'rl': stable-baselines3")
    with pytest.raises((ConfigError, LookupError), match=says):
        train("pensieve", "--out", tmp_path / "out", *arguments)
