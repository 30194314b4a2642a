from __future__ import annotations

import numpy as np
import pytest

from player.head_motion import HeadMotion, head_motion
from player.head_motion_windows import observation_at, windows
from player.viewport_observation import check_viewport_observation


def motion_of(samples: int, yaw_deg: float = 0.0, start_s: float = 0.0) -> HeadMotion:
    """Roll counts the samples."""
    poses = np.zeros((samples, 3))
    poses[:, 0] = np.arange(samples) / 10
    poses[:, 2] = yaw_deg
    return head_motion("test", start_s + np.arange(samples) * 0.2, poses)


def test_windows_lie_where_they_are_published() -> None:
    found = windows(motion_of(300))
    assert found.index.tolist() == list(range(30, 240, 15))
    assert found.history.shape == (14, 10, 3)
    assert found.future.shape == (14, 20, 3)
    assert found.history[0, :, 0] == pytest.approx(np.arange(20, 30) / 10)
    assert found.future[0, :, 0] == pytest.approx(np.arange(30, 50) / 10)


def test_margins_and_steps() -> None:
    assert len(windows(motion_of(90)).index) == 0
    assert windows(motion_of(91)).index.tolist() == [30]
    assert windows(motion_of(95), history=3, horizon=5, step=2).index.tolist() == [30, 32, 34]
    for wrong in ({"history": 31}, {"horizon": 61}, {"step": 0}, {"history": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            windows(motion_of(100), **wrong)


def test_an_observation_ends_before_its_future() -> None:
    motion = motion_of(100)
    seen = observation_at(motion, 30)
    check_viewport_observation(seen)
    assert [pose.roll_deg for pose in seen.history] == pytest.approx(np.arange(20, 30) / 10)
    assert seen.media_time_s == pytest.approx(29 * 0.2)
    assert (seen.horizon, seen.earlier) == (20, ())
    with pytest.raises(ValueError, match="no 10 samples before row 9"):
        observation_at(motion, 9)


def test_earlier_viewers_line_up_by_time() -> None:
    motion = motion_of(100, start_s=1.0)
    other = motion_of(300, yaw_deg=50)  # its sample 5 is the first one's sample 0
    late, short = motion_of(300, start_s=7.0), motion_of(40)
    seen = observation_at(motion, 30, 10, 20, (motion, other, late, short))
    check_viewport_observation(seen)
    assert len(seen.earlier) == 1  # neither the viewer nor who did not watch this part
    assert [pose.roll_deg for pose in seen.earlier[0]] == pytest.approx(np.arange(25, 55) / 10)
    assert {pose.yaw_deg for pose in seen.earlier[0]} == {50}


def test_the_future_does_not_show_in_the_question() -> None:
    motion = motion_of(100)
    times = motion.times_s.copy()
    times[30:] += 0.07
    other = motion_of(300, yaw_deg=50)
    held_up = HeadMotion("x", times, motion.poses_deg)
    assert observation_at(motion, 30, earlier=[other]) == observation_at(
        held_up, 30, earlier=[other]
    )
