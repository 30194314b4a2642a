"""The viewer: what a controller may know of a recording, and how far off it was."""

from __future__ import annotations

import numpy as np
import pytest

from player.head_motion import HeadMotion
from player.viewer import Viewer
from player.viewport_observation import SAMPLE_S, Viewport, check_viewport_observation


def turning(deg_per_s: float, *, start_s: float = 0.0, seconds: float = 10.0) -> HeadMotion:
    times_s = np.arange(0.0, seconds + 0.01, SAMPLE_S)
    poses = np.zeros((len(times_s), 3))
    poses[:, 2] = (deg_per_s * times_s + 180) % 360 - 180
    return HeadMotion("video01/user01", start_s + times_s, poses)


def test_the_history_grows_and_ends_now() -> None:
    viewer = Viewer(turning(10.0, start_s=120.0), history=3, horizon=4)
    for media_s, yaws in ((0.0, [0]), (0.2, [0, 2]), (0.5, [1, 3, 5]), (2.0, [16, 18, 20])):
        observation = viewer.observe(media_s)
        check_viewport_observation(observation)
        assert [pose.yaw_deg for pose in observation.history] == pytest.approx(yaws)
        assert observation.media_time_s == pytest.approx(120.0 + media_s)
        assert observation.horizon == 4
    assert viewer.poses(np.array([3.0]))[0] == pytest.approx([0.0, 0.0, 30.0])


def test_others_are_told_for_the_past_and_for_what_comes() -> None:
    viewer = Viewer(turning(10.0, start_s=5.0), [turning(20.0, start_s=4.0)], history=2, horizon=3)
    observation = viewer.observe(1.0)
    check_viewport_observation(observation)
    (other,) = observation.earlier
    assert [pose.yaw_deg for pose in other] == pytest.approx([36, 40, 44, 48, 52])


def test_errors_count_as_far_as_the_recording_goes() -> None:
    viewer = Viewer(turning(10.0, seconds=2.0), history=2, horizon=5)
    still = [Viewport(0.0, 0.0, 0.0)] * 5
    assert viewer.errors.mae_deg is None
    assert viewer.errors.mae_by_step_deg == (None,) * 5
    viewer.score(still, 0.0)
    assert viewer.errors.mae_by_step_deg == pytest.approx([2 / 3, 4 / 3, 2, 8 / 3, 10 / 3])
    viewer.score([Viewport(0.0, 0.0, 18.0)] * 5, 1.6)  # two steps are left, 18 and 20
    assert viewer.errors.mae_by_step_deg == pytest.approx([1 / 3, 1, 2, 8 / 3, 10 / 3])
    assert viewer.errors.mae_deg == pytest.approx((30 + 2) / 21)


def test_errors_go_the_shorter_way_round() -> None:
    times_s = np.array([0.0, 1.0])
    poses = np.array([[0.0, 0.0, -179.0]] * 2)
    viewer = Viewer(HeadMotion("m", times_s, poses), history=1, horizon=1)
    viewer.score([Viewport(0.0, 0.0, 179.0)], 0.0)
    assert viewer.errors.mae_deg == pytest.approx(2 / 3)
