"""The learned viewport controllers, with the checkpoints that are shipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controllers.registry import InvalidOptions, create
from player.angles import wrap_deg
from player.head_motion import HeadMotion, read_recordings
from player.head_motion_model import generate_head_motion, generate_scene
from player.head_motion_windows import observation_at, windows
from player.observation import ObservationError
from player.viewport_error import absolute_error_deg, predicted_deg
from player.viewport_observation import ViewportObservation, check_viewports

LEARNED = ("gru", "netllm")


@pytest.fixture(scope="module", params=LEARNED)
def controller(request: pytest.FixtureRequest) -> Any:
    return create("viewport", request.param)


@pytest.fixture(scope="module")
def netllm() -> Any:
    return create("viewport", "netllm")


@pytest.fixture(scope="module")
def motions() -> list[HeadMotion]:
    scene = generate_scene(40.0, np.random.default_rng(7))
    return [
        generate_head_motion(f"user{user}", 40.0, np.random.default_rng((7, user)), scene)
        for user in range(12)
    ]


def asked_of(motions: list[HeadMotion], user: int, viewers: int) -> list[ViewportObservation]:
    others = [motion for motion in motions if motion is not motions[user]][:viewers]
    return [
        observation_at(motions[user], int(index), earlier=others)
        for index in windows(motions[user], step=9).index
    ]


def test_answers_are_valid_and_the_same_again(controller: Any, motions: list[HeadMotion]) -> None:
    for viewers in (0, 3, 11):
        for one in asked_of(motions, 0, viewers):
            answer = controller.decide(one)
            assert check_viewports(answer, horizon=20) == answer
            assert controller.decide(one) == answer
            assert all(one.yaw_spread_deg > 0 for one in answer)


def test_a_batch_decides_as_each_alone(controller: Any, motions: list[HeadMotion]) -> None:
    """Sessions with and without earlier viewers share a batch."""
    mixed = [one for viewers in (0, 2, 11) for one in asked_of(motions, viewers, viewers)]
    together = controller.decide_many(mixed)
    for one, answer in zip(mixed, together, strict=True):
        apart = predicted_deg(answer) - predicted_deg(controller.decide(one))
        np.testing.assert_allclose(wrap_deg(apart), 0, atol=1e-4)


def test_interleaved_sessions_leave_each_other_alone(
    controller: Any, motions: list[HeadMotion]
) -> None:
    here, there = asked_of(motions, 0, 4), asked_of(motions, 1, 0)
    alone = [controller.decide(one) for one in here]
    mixed = []
    for one, other in zip(here, there, strict=True):
        mixed.append(controller.decide(one))
        controller.decide(other)
    assert mixed == alone


def test_headings_do_not_matter(controller: Any, motions: list[HeadMotion]) -> None:
    for one in asked_of(motions, 2, 5)[:3]:
        straight = predicted_deg(controller.decide(one))
        for by_deg in (77.0, 180.0, -179.5):
            turned = dataclasses.replace(
                one,
                history=tuple(
                    pose._replace(yaw_deg=wrap_deg(pose.yaw_deg + by_deg)) for pose in one.history
                ),
                earlier=tuple(
                    tuple(pose._replace(yaw_deg=wrap_deg(pose.yaw_deg + by_deg)) for pose in other)
                    for other in one.earlier
                ),
            )
            answer = predicted_deg(controller.decide(turned))
            np.testing.assert_allclose(wrap_deg(answer - straight - [0, 0, by_deg]), 0, atol=2e-3)


def test_both_ways_to_run_the_language_model_agree(netllm: Any, motions: list[HeadMotion]) -> None:
    full = create("viewport", "netllm", {"inference": "full"})
    assert (netllm.policy.inference, full.policy.inference) == ("lean", "full")  # type: ignore[attr-defined]
    asked = asked_of(motions, 0, 0) + asked_of(motions, 0, 6)
    for one, other in zip(netllm.decide_many(asked), full.decide_many(asked), strict=True):  # type: ignore[attr-defined]
        np.testing.assert_allclose(
            wrap_deg(predicted_deg(one) - predicted_deg(other)), 0, atol=1e-3
        )


def test_the_language_model_adds_something(netllm: Any, motions: list[HeadMotion]) -> None:
    assert netllm.policy.addition.head.weight.abs().max() > 0


def test_caution_widens_the_spreads_and_moves_nothing(
    netllm: Any, motions: list[HeadMotion]
) -> None:
    one = observation_at(motions[0], 60)
    bold = create("viewport", "netllm", {"caution": 1.0})
    for wide, narrow in zip(netllm.decide(one), bold.decide(one), strict=True):
        assert wide.pose == narrow.pose
        assert wide.yaw_spread_deg == pytest.approx(netllm.caution * narrow.yaw_spread_deg)
        assert wide.pitch_spread_deg == pytest.approx(netllm.caution * narrow.pitch_spread_deg)


def test_other_horizons(controller: Any, motions: list[HeadMotion]) -> None:
    one = observation_at(motions[0], 60)
    short = dataclasses.replace(one, horizon=5)
    assert controller.decide(short) == controller.decide(one)[:5]
    with pytest.raises(ObservationError, match="21 steps are asked for; the model foretells 20"):
        controller.decide(dataclasses.replace(one, horizon=21))


def test_image_features_are_not_taken_by_what_never_saw_any(
    netllm: Any, motions: list[HeadMotion]
) -> None:
    one = observation_at(motions[0], 60)
    assert netllm.decide(dataclasses.replace(one, image_features=(1.0,))) == netllm.decide(one)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("netllm", {"checkpoint": "builtin:abr-minilm"}, "task 'abr', asked for 'viewport'"),
        ("netllm", {"checkpoint": "builtin:viewport-gru"}, "'gru', asked for 'crowd'"),
        ("gru", {"checkpoint": "builtin:viewport-minilm"}, "'crowd', asked for 'gru'"),
        ("gru", {"checkpoint": "builtin:nothing"}, "unknown checkpoint"),
        ("netllm", {"checkpoint": "nowhere"}, "no such folder"),
        ("netllm", {"threads": -1}, "threads"),
        ("netllm", {"caution": 0.0}, "caution"),
        ("netllm", {"caution": float("nan")}, "caution"),
        ("gru", {"threads": -1}, "threads"),
        ("netllm", {"inference": "guess"}, "inference"),
        ("netllm", {"backbone": "minilm:random-1"}, "fingerprint"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidOptions, match=match):
        create("viewport", name, options)


def recordings(data_dir: Path) -> Iterator[tuple[HeadMotion, list[HeadMotion]]]:
    """Two valid viewers of each of two valid videos, with twelve train viewers beside."""
    folder = data_dir / "viewports" / "jin2022"
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}")
    train = (50, 54, 6, 34, 66, 63, 52, 39, 62, 46, 75, 28)
    for video in (3, 20):
        found = read_recordings(folder, videos=[video], users=[*train, 9, 25])
        for one in found:
            if one.user in (9, 25):
                yield one, [other for other in found if other.user in train]


def test_recordings_never_seen_are_foretold_better_than_by_no_motion(
    controller: Any, data_dir: Path
) -> None:
    static = create("viewport", "static")
    errors: dict[str, list[float]] = {"own": [], "told": [], "static": []}
    for motion, others in recordings(data_dir):
        cut = windows(motion)
        for index, future in zip(cut.index, cut.future, strict=True):
            alone = observation_at(motion, int(index))
            told = observation_at(motion, int(index), earlier=others)
            for name, by, one in (
                ("own", controller, alone),
                ("told", controller, told),
                ("static", static, alone),
            ):
                predicted = predicted_deg(by.decide(one))
                errors[name].append(float(absolute_error_deg(predicted, future).mean()))
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    assert means["own"] < means["static"]
    assert means["told"] < means["static"]
