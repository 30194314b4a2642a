from __future__ import annotations

import numpy as np
import pytest

from player.head_motion import HeadMotion, HeadMotionError, wrap_deg
from player.head_motion_model import generate_head_motion, generate_scene
from player.head_motion_windows import windows
from player.viewport_error import absolute_error_deg


def viewers(video: int, count: int, *, is_shared: bool = True) -> list[HeadMotion]:
    scene = generate_scene(60.0, np.random.default_rng(video)) if is_shared else None
    return [
        generate_head_motion("x", 60.0, np.random.default_rng((video, user)), scene)
        for user in range(count)
    ]


def test_equal_seeds_give_equal_recordings() -> None:
    one, again = viewers(1, 2), viewers(1, 2)
    assert one[0].poses_deg.tolist() == again[0].poses_deg.tolist()
    assert one[0].poses_deg.tolist() != one[1].poses_deg.tolist()
    assert one[0].times_s == pytest.approx(np.arange(301) * 0.2)
    assert (one[0].gaps, one[0].backward_steps, one[0].duplicates) == (0, 0, 0)


def test_it_moves_like_recorded_viewers() -> None:
    """The bounds hold measured values of a public set of recordings (Jin2022 train)."""
    motions = [motion for video in range(5) for motion in viewers(video, 8)]
    found = [windows(motion) for motion in motions]
    error = np.concatenate([absolute_error_deg(one.history[:, -1:], one.future) for one in found])
    poses = np.concatenate([motion.poses_deg for motion in motions])
    assert 9 < error.mean() < 14  # measured 11.2
    assert 1.5 < error[:, 0].mean() < 2.6  # 1.95
    assert 13 < error[:, -1].mean() < 20  # 15.9
    assert 7 < poses[:, 1].std() < 12  # 9.4
    speed = np.concatenate(
        [np.abs(wrap_deg(np.diff(motion.poses_deg[:, 2]))) / 0.2 for motion in motions]
    )
    slow, fast = np.percentile(speed, [50, 90])
    assert 2.5 < slow < 7  # 4.3: mostly fixating
    assert 30 < fast < 70  # 50.6


def test_viewers_of_one_video_share_what_they_look_at() -> None:
    def distance(motions: list[HeadMotion]) -> float:
        yaw = np.array([motion.poses_deg[:, 2] for motion in motions])
        apart = np.abs(wrap_deg(yaw[:, None] - yaw[None]))
        return float(apart[np.triu_indices(len(yaw), 1)].mean())

    together = np.mean([distance(viewers(video, 6)) for video in range(5)])
    alone = np.mean([distance(viewers(video, 6, is_shared=False)) for video in range(5)])
    assert together < 0.95 * alone


def test_durations_that_are_none_are_refused() -> None:
    rng = np.random.default_rng(1)
    assert len(generate_head_motion("x", 0.2, rng)) == 2
    for duration_s in (0.1, float("nan"), 1e9):
        with pytest.raises(HeadMotionError, match="duration_s"):
            generate_head_motion("x", duration_s, rng)
