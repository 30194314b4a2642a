"""Viewport controllers: closed forms, and the published errors on recorded head motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from controllers import registry
from controllers.damping import Damping
from player.head_motion import HeadMotion, head_motion, read_recordings
from player.head_motion_windows import observation_at, windows
from player.viewport_error import absolute_error_deg, predicted_deg
from player.viewport_observation import HeadPose, ViewportObservation

#: Published splits: videos, users.
JIN2022_VALID = (
    [3, 7, 12, 10, 20, 27],
    [9, 25, 73, 29, 31, 70, 58, 11, 14, 38, 16, 76, 77, 74, 24, 5, 17, 20, 51, 68, 36],
)
WU2017_VALID = ([8, 2], [40, 20, 14, 1, 31, 12, 33, 27, 10])
WU2017_TRAIN_USERS = {
    *(23, 3, 19, 24, 18, 28, 9, 26, 6, 15, 21, 25, 32, 38, 45),
    *(34, 48, 44, 29, 43, 4, 36, 39, 8, 17, 42, 30, 11, 22, 37),
}


def yaws(*yaw_deg: float) -> tuple[HeadPose, ...]:
    return tuple(HeadPose(0.0, 0.0, float(yaw)) for yaw in yaw_deg)


def decide(
    name: str, observation: ViewportObservation, options: dict[str, object] | None = None
) -> np.ndarray:
    answer = registry.create("viewport", name, options).decide(observation)
    return predicted_deg(answer)


def test_static_stays() -> None:
    history = (HeadPose(1.0, 2.0, 3.0), HeadPose(4.0, 5.0, 6.0))
    assert decide("static", ViewportObservation(history, 3, 0.0)).tolist() == [[4, 5, 6]] * 3


def test_velocity_goes_on() -> None:
    seen = ViewportObservation(yaws(0, 1, 8, 9), 3, 0.0)
    assert decide("velocity", seen)[:, 2] == pytest.approx([12, 15, 18])


def test_linear_is_least_squares() -> None:
    yaw = [3.0, -2.0, 8.0, 1.0, 7.0]
    slope, level = np.polyfit(np.arange(5), yaw, 1)
    answer = decide("linear", ViewportObservation(yaws(*yaw), 4, 0.0))
    assert answer[:, 2] == pytest.approx(level + slope * np.arange(5, 9))


@pytest.mark.parametrize("name", ["linear", "velocity"])
def test_published_baselines_stumble_where_angles_wrap(name: str) -> None:
    seen = ViewportObservation(yaws(170, 175, -180, -175), 1, 0.0)
    assert abs(decide(name, seen)[0, 2] - 190) > 100
    assert decide(name, seen, {"unwrap": True})[0, 2] == pytest.approx(190)


def test_damped_motion_dies_out() -> None:
    seen = ViewportObservation(yaws(150, 160, 170), 20, 0.0)
    yaw = decide("damped", seen)[:, 2]
    assert yaw[0] == pytest.approx(175)  # half a step
    assert yaw[1] == pytest.approx(177.5)
    assert abs(yaw[-1]) == pytest.approx(180, abs=0.01)
    still = decide("damped", seen, {"half_life_s": 0})
    assert still[:, 2] == pytest.approx(170)


def test_damped_levels_roll_and_pitch() -> None:
    seen = ViewportObservation((HeadPose(26.0, -4.0, 90.0),) * 10, 20, 0.0)
    answer = decide("damped", seen)
    assert answer[-1, 0] == pytest.approx(6 + 20 * np.exp(-4 / 8))
    assert answer[-1, 1:] == pytest.approx([-4, 90])


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("damped", "half_life_s", -1),
        ("damped", "level_s", 0),
        ("damped", "rest_deg", -1),
        ("crossuser", "agreement_deg", 0),
        ("crossuser", "fade_s", -2),
        ("crossuser", "own_weight", float("nan")),
    ],
)
def test_options_out_of_range_are_named(name: str, option: str, value: float) -> None:
    with pytest.raises(registry.InvalidOptions, match=option):
        registry.create("viewport", name, {option: value})


def test_damping_of_many_is_that_of_each() -> None:
    histories = np.random.default_rng(1).uniform(-90, 90, size=(4, 10, 3))
    ahead = np.arange(1, 6) * 0.2
    many = Damping().offsets_deg(histories, ahead)
    for one, history in zip(many, histories, strict=True):
        assert one.tolist() == Damping().offsets_deg(history, ahead).tolist()


def crowd(*paths: Sequence[float]) -> tuple[tuple[HeadPose, ...], ...]:
    return tuple(yaws(*path) for path in paths)


def test_crossuser_is_damped_without_earlier_viewers() -> None:
    seen = ViewportObservation(yaws(*range(10)), 20, 0.0)
    crossuser, damped = (registry.create("viewport", name) for name in ("crossuser", "damped"))
    assert crossuser.decide(seen) == damped.decide(seen)


def test_crossuser_goes_where_everyone_went() -> None:
    there = [40.0] * 10 + [60.0] * 20  # all turn at that point of the video
    spread = [[yaw + aside for yaw in there] for aside in (-4, -2, 0, 2, 4)]
    seen = ViewportObservation(yaws(*[41.0] * 10), 20, 0.0, crowd(*spread))
    assert decide("crossuser", seen)[-1, 2] == pytest.approx(60, abs=5)
    across = [[(yaw + 130 + 180) % 360 - 180 for yaw in path] for path in spread]
    seen = ViewportObservation(yaws(*[171.0] * 10), 20, 0.0, crowd(*across))
    assert abs(decide("crossuser", seen)[-1, 2] + 170) < 5  # over the seam likewise


def test_crossuser_stays_where_viewers_go_separate_ways() -> None:
    rng = np.random.default_rng(3)
    starts, ends = rng.uniform(-180, 180, size=(2, 30))
    paths = [[start] * 10 + [end] * 20 for start, end in zip(starts, ends, strict=True)]
    seen = ViewportObservation(yaws(*[0.0] * 10), 20, 0.0, crowd(*paths))
    assert np.abs(decide("crossuser", seen)[:, 2]).max() < 10


def test_crossuser_is_not_moved_by_one_who_looks_elsewhere() -> None:
    paths = [[0.0] * 30] * 8 + [[10.0] * 10 + [120.0] * 20]
    seen = ViewportObservation(yaws(*[0.0] * 10), 20, 0.0, crowd(*paths))
    assert np.abs(decide("crossuser", seen)[:, 2]).max() < 1


def test_the_oracle_knows_the_recording() -> None:
    yaw = np.cumsum(np.random.default_rng(1).normal(0, 5, 100)) % 360 - 180
    poses = np.stack([np.zeros(100), np.zeros(100), yaw], axis=1)
    motion = head_motion("x", np.arange(100) * 0.2, poses)
    oracle = registry.create("viewport", "oracle")
    seen = observation_at(motion, 40)
    with pytest.raises(LookupError, match="for_session"):
        oracle.decide(seen)
    bound = oracle.for_session(motion)  # type: ignore[attr-defined]
    answer = bound.decide(seen)
    assert absolute_error_deg(predicted_deg(answer), poses[40:60]).max() < 1e-6
    assert {one.yaw_spread_deg for one in answer} == {0.0}
    assert registry.needs_future("viewport", "oracle")
    with pytest.raises(registry.InvalidOptions, match="no option 'motion'"):
        registry.create("viewport", "oracle", {"motion": None})


def mae_deg(name: str, motions: Sequence[HeadMotion]) -> float:
    controller = registry.create("viewport", name)
    errors = []
    for motion in motions:
        found = windows(motion)
        for index, future in zip(found.index.tolist(), found.future, strict=True):
            predicted = predicted_deg(controller.decide(observation_at(motion, index)))
            errors.append(absolute_error_deg(predicted, future))
    return float(np.mean(errors))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "split", "samples", "published"),
    [
        ("jin2022", JIN2022_VALID, 1754, {"linear": 17.137, "velocity": 15.389, "static": 8.446}),
        ("wu2017", WU2017_VALID, 999, {"linear": 23.957, "velocity": 21.744, "static": 13.506}),
    ],
)
def test_published_errors_are_met(
    data_dir: Path,
    folder: str,
    split: tuple[list[int], list[int]],
    samples: int,
    published: dict[str, float],
) -> None:
    motions = read_recordings(data_dir / "viewports" / folder, *split)
    assert sum(len(windows(motion).index) for motion in motions) == samples
    found = {name: mae_deg(name, motions) for name in published}
    assert found == pytest.approx(published, abs=0.01)
    assert mae_deg("damped", motions) < found["static"]


def test_earlier_viewers_help_on_recorded_motion(data_dir: Path) -> None:
    recordings = read_recordings(data_dir / "viewports" / "wu2017", WU2017_VALID[0])
    static, crossuser = (registry.create("viewport", name) for name in ("static", "crossuser"))
    errors = []
    for motion in (one for one in recordings if one.user in WU2017_VALID[1]):
        earlier = [
            one
            for one in recordings
            if one.video == motion.video and one.user in WU2017_TRAIN_USERS
        ]
        found = windows(motion, step=60)
        for index, future in zip(found.index, found.future, strict=True):
            seen = observation_at(motion, int(index), earlier=earlier)
            errors.append(
                [
                    absolute_error_deg(predicted_deg(one.decide(seen)), future).mean()
                    for one in (static, crossuser)
                ]
            )
    still, crowd_error = np.mean(errors, axis=0)
    assert crowd_error < 0.95 * still


@pytest.mark.parametrize("name", registry.names("viewport"))
def test_who_does_not_use_earlier_viewers_answers_the_same_without_them(name: str) -> None:
    uses = registry.uses_earlier_viewers("viewport", name)
    assert uses == (name in ("crossuser", "netllm"))
    if uses or registry.needs_future("viewport", name):
        return
    pose = HeadPose(0.0, 5.0, 20.0)
    alone = ViewportObservation((pose,) * 10, 20, 10.0)
    told = dataclasses.replace(alone, earlier=((HeadPose(0.0, 30.0, 90.0),) * 30,))
    controller = registry.create("viewport", name)
    assert controller.decide(alone) == controller.decide(told)
