"""Predictions against recordings: the figures, and what becomes of answers that are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from viewport_entries import TOML, write_experiment

from player.viewport_observation import Viewport, ViewportObservation
from testbed.experiment import plan_experiment, read_experiment
from testbed.viewport_plans import PredictionPlan
from testbed.viewport_prediction import PredictionPlayer

AHEAD = 20
NOT_A_NUMBER = float("nan")


@dataclass
class Scripted:
    """Answers the last pose moved by ``yaw_deg``, for ``steps`` steps."""

    yaw_deg: float = 0.0
    steps: int = AHEAD
    batches: list[int] = dataclasses.field(default_factory=list)

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        last = observation.history[-1]
        one = Viewport(last.roll_deg, last.pitch_deg, last.yaw_deg + self.yaw_deg)
        return (one,) * self.steps


class Batching(Scripted):
    def decide_many(
        self, observations: Sequence[ViewportObservation]
    ) -> list[tuple[Viewport, ...]]:
        self.batches.append(len(observations))
        return [self.decide(one) for one in observations]


def plan_of(folder: Path, *changes: tuple[str, str]) -> PredictionPlan:
    text = TOML
    for old, new in changes:
        text = text.replace(old, new, 1)
    experiment = read_experiment(write_experiment(folder, text))
    plan = plan_experiment(experiment, data_dir=None, base=folder)
    assert isinstance(plan, PredictionPlan)
    return plan


def played(plan: PredictionPlan, controller: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The record of the first session if the arm's controller were this one."""
    player = PredictionPlayer(plan)
    monkeypatch.setattr(player._controllers, "of", lambda arm: controller)
    return player.play(plan.sessions[0])


def test_a_steady_turn_is_off_by_what_it_turns(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    player = PredictionPlayer(plan)
    static, linear = map(player.play, plan.sessions[:2])
    # 180 samples: windows at 30, 45, … below 120; the viewer turns by 3° per second.
    assert static.samples == 6
    assert static.yaw_mae_deg == pytest.approx([0.6 * step for step in range(1, AHEAD + 1)])
    assert static.pitch_mae_deg == pytest.approx([0.0] * AHEAD)
    assert static.great_circle_deg[0] == pytest.approx(0.6, rel=0.02)
    assert max(linear.yaw_mae_deg) < 0.01
    assert len(static.decisions_ms) == 6
    assert (static.status, static.error, static.fallbacks) == ("ok", None, 0)


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (Scripted(steps=19), "expected 20 viewports, not 19"),
        (Scripted(yaw_deg=NOT_A_NUMBER), "is no pose"),
    ],
)
def test_what_is_no_answer_fails_or_is_left_to_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controller: Scripted, message: str
) -> None:
    failed = played(plan_of(tmp_path), controller, monkeypatch)
    assert failed.status == "failed"
    assert message in failed.error
    assert (failed.samples, failed.yaw_mae_deg) == (0, ())
    named = plan_of(tmp_path, ("[[arms]]", '[player]\nfallback = "static"\n[[arms]]'))
    saved = played(named, controller, monkeypatch)
    assert (saved.status, saved.fallbacks, saved.samples) == ("ok", 6, 6)
    static = PredictionPlayer(named).play(named.sessions[0])
    assert saved.yaw_mae_deg == static.yaw_mae_deg


def test_batches_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = played(plan_of(tmp_path), Batching(yaw_deg=1.0), monkeypatch)
    controller = Batching(yaw_deg=1.0)
    batched = plan_of(tmp_path, ("[[arms]]", "[predict]\nbatch = 4\n[[arms]]"))
    together = played(batched, controller, monkeypatch)
    assert controller.batches == [4, 2]
    assert together.yaw_mae_deg == one_by_one.yaw_mae_deg
    assert len(set(together.decisions_ms)) == 2  # each waits as long as its batch


def test_a_recording_that_is_too_short_has_no_windows(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    session = plan.sessions[0]
    motion = dataclasses.replace(
        session.motion,
        times_s=session.motion.times_s[:80],
        poses_deg=session.motion.poses_deg[:80],
    )
    record = PredictionPlayer(plan).play(dataclasses.replace(session, motion=motion))
    assert (record.status, record.samples, record.yaw_mae_deg) == ("ok", 0, ())
