"""The report of a training: from its card alone, with whatever metrics that has."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from testbed.results import ResultsError
from testbed.training_report import render_training_report, write_training_report

CARD: dict[str, Any] = {
    "task": "abr",
    "command": "testbed train abr --pool <p>",
    "backbone": "minilm",
    "training": {"epochs": 5, "patience": 2},
    "best_epoch": 2,
    "epochs": [
        {"epoch": 1, "train_loss": 2.0, "valid_loss": 1.5, "wall_s": 70.0},
        {"epoch": 2, "train_loss": 1.0, "valid_loss": 1.1, "wall_s": 80.0},
        {"epoch": 3, "train_loss": 0.5, "valid_loss": 1.2, "wall_s": 90.0},
        {"epoch": 4, "train_loss": 0.4, "valid_loss": 1.3, "wall_s": 60.0},
    ],
}


def test_what_is_shipped_can_be_drawn(tmp_path: Path) -> None:
    shipped = files("adapters") / "shipped" / "abr-minilm-levels" / "card.json"
    (tmp_path / "card.json").write_text(shipped.read_text(encoding="utf-8"))
    page = write_training_report(tmp_path).read_text()
    assert page.count("<svg") >= 3
    assert "chosen" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_it_says_what_was_chosen_and_why_it_ended() -> None:
    page = render_training_report(CARD)
    assert "Epoch 2 of 4 was chosen." in page
    assert "Loss 1.1000 on the held-out traces" in page
    assert "Training stopped after 2 epochs without progress." in page
    assert "5 min" in page
    assert "--pool &lt;p&gt;" in page


def test_other_metrics_get_figures_of_their_own() -> None:
    epochs = [{**row, "agreement_share": row["epoch"] / 10} for row in CARD["epochs"]]
    page = render_training_report({**CARD, "epochs": epochs})
    assert "<h3>agreement share</h3>" in page
    assert page.count("<svg") == render_training_report(CARD).count("<svg") + 1


def test_a_training_that_diverged_is_told() -> None:
    diverged = [{"epoch": 5, "learning_rate": 0.1, "what": "the loss is nan"}]
    page = render_training_report({**CARD, "diverged": diverged})
    assert "The loss is nan." in page
    assert "without progress" not in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "not valid JSON"),
        ("[]", "not a training's card"),
        (json.dumps({"task": "abr", "best_epoch": 1}), "epochs"),
        (json.dumps({**CARD, "best_epoch": 7}), "best_epoch 7"),
    ],
)
def test_what_is_no_card_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        write_training_report(tmp_path)
