"""Head motion: reading with exact errors, wrap-around, interpolation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player import head_motion as module
from player.head_motion import (
    HeadMotion,
    HeadMotionError,
    head_motion,
    read_head_motion,
    read_recordings,
    unwrap,
    wrap_deg,
)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str) -> Path:
        path = tmp_path / "user07.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return make


def motion_of(yaw_deg: list[float], times_s: list[float] | None = None) -> HeadMotion:
    times = np.arange(len(yaw_deg)) * 0.2 if times_s is None else np.array(times_s)
    poses = np.zeros((len(yaw_deg), 3))
    poses[:, 2] = yaw_deg
    return head_motion("test", times, poses)


def test_a_file_is_read_as_it_is(write: Write) -> None:
    motion = read_head_motion(write("0.0,1,2,3\n0.2,-4.5,5,-180\n\n0.4,7,-90,179.999771\n"))
    assert motion.name == "user07.csv"
    assert (motion.video, motion.user) == (None, 7)
    assert motion.times_s.tolist() == [0.0, 0.2, 0.4]
    assert motion.poses_deg.tolist() == [[1, 2, 3], [-4.5, 5, -180], [7, -90, 179.999771]]
    assert (motion.gaps, motion.backward_steps, motion.duplicates) == (0, 0, 0)
    assert (len(motion), motion.start_s, motion.end_s, motion.duration_s) == (3, 0.0, 0.4, 0.4)


def test_half_a_turn_has_one_name(write: Write) -> None:
    motion = read_head_motion(write("0,180,0,180\n0.2,0,0,-180\n"))
    assert motion.poses_deg[:, 2].tolist() == [-180, -180]
    assert motion.poses_deg[0, 0] == -180


def test_what_is_out_of_order_is_left_out_and_counted(write: Write) -> None:
    rows = [(0.0, 1), (0.2, 2), (0.1, 3), (0.2, 4), (0.15, 5), (0.4, 6), (1.0, 7), (1.3, 8)]
    motion = read_head_motion(write("".join(f"{time},0,0,{yaw}\n" for time, yaw in rows)))
    assert motion.poses_deg[:, 2].tolist() == [1, 2, 6, 7, 8]
    assert (motion.backward_steps, motion.duplicates) == (2, 1)
    assert motion.gaps == 1  # of 0.6 s; the median interval is 0.25 s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1,2,3\n0.2,1,2\n", r"user07\.csv:2: expected 4 columns .*yaw_deg, found 3"),
        ("0,1,2,3,4\n", r"user07\.csv:1: expected 4 columns .*, found 5"),
        ("time,roll,pitch,yaw\n", r"user07\.csv:1: time_s 'time' is not a finite number"),
        ("0,1,2,3\n\n0.2,1,nan,3\n", r"user07\.csv:3: pitch_deg 'nan' is not a finite"),
        ("0,inf,2,3\n", r"user07\.csv:1: roll_deg 'inf' is not a finite number"),
        ("0,1,91,3\n", r"user07\.csv:1: pitch_deg 91 is not within -90 to 90"),
        ("0,1,2,3\n1,1,2,-180.5\n", r"user07\.csv:2: yaw_deg -180.5 is not within -180 to 180"),
        ("-1,1,2,3\n", r"user07\.csv:1: time_s -1 is not within 0 to 1e\+06"),
        ("2e6,1,2,3\n", r"user07\.csv:1: time_s 2e\+06 is not within"),
        ("0,1,2,3\n0,é,2,3\n", r"user07\.csv:2: not a line of numbers"),
        ("", r"user07\.csv: no samples; expected lines time_s,roll_deg"),
        ("0,1,2,3\n", r"user07\.csv: .*needs at least two samples"),
        ("1,1,2,3\n0,1,2,3\n", r"user07\.csv: .*needs at least two samples"),
    ],
)
def test_what_is_no_recording_is_named(write: Write, text: str, message: str) -> None:
    with pytest.raises(HeadMotionError, match=message):
        read_head_motion(write(text))


def test_missing_and_oversized_files_are_named(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HeadMotionError, match=r"none\.csv: No such file"):
        read_head_motion(tmp_path / "none.csv")
    with pytest.raises(HeadMotionError, match="directory"):
        read_head_motion(tmp_path)
    path = write("0,1,2,3\n0.2,1,2,3\n")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(HeadMotionError, match=r"user07\.csv: larger than 10 bytes"):
        read_head_motion(path)


def test_samples_that_are_none_are_refused() -> None:
    poses = np.zeros((2, 3))
    with pytest.raises(HeadMotionError, match="increase"):
        HeadMotion("x", np.array([1.0, 1.0]), poses)
    with pytest.raises(HeadMotionError, match="finite"):
        HeadMotion("x", np.array([0.0, np.nan]), poses)
    with pytest.raises(HeadMotionError, match="±180"):
        HeadMotion("x", np.array([0.0, 1.0]), poses + 100)
    with pytest.raises(HeadMotionError, match="two samples"):
        HeadMotion("x", np.array([0.0, 1.0]), np.zeros((2, 2)))
    with pytest.raises(HeadMotionError, match="x: no samples"):
        head_motion("x", [], np.zeros((0, 3)))


def test_folders_are_read_sorted_and_filtered(tmp_path: Path) -> None:
    for video, user in ((10, 3), (2, 11), (2, 3)):
        folder = tmp_path / f"video{video:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"user{user:02d}.csv").write_text("0,0,0,0\n0.2,0,0,0\n")
    (tmp_path / "README.md").write_text("about")
    found = read_recordings(tmp_path)
    assert [motion.name for motion in found] == [
        "video02/user03",
        "video02/user11",
        "video10/user03",
    ]
    assert [(motion.video, motion.user) for motion in found] == [(2, 3), (2, 11), (10, 3)]
    assert [motion.name for motion in read_recordings(tmp_path, [10])] == ["video10/user03"]
    assert len(read_recordings(tmp_path, users=[3])) == 2
    with pytest.raises(HeadMotionError, match="no video 7; there are 2, 10"):
        read_recordings(tmp_path, [2, 7])
    with pytest.raises(HeadMotionError, match="no user 4; there are 3, 11"):
        read_recordings(tmp_path, users=[4])
    with pytest.raises(HeadMotionError, match="none of these users"):
        read_recordings(tmp_path, [10], [11])
    with pytest.raises(HeadMotionError, match="no recordings"):
        read_recordings(tmp_path / "video02")
    with pytest.raises(HeadMotionError, match="no such folder"):
        read_recordings(tmp_path / "none")


def test_between_samples_a_head_turns_the_shorter_way() -> None:
    motion = motion_of([170, -170, -150])
    assert motion.at(np.array([0.1, 0.05, 0.3]))[:, 2] == pytest.approx([-180, 175, -160])
    assert motion.at(np.array([-5.0, 9.0]))[:, 2] == pytest.approx([170, -150])


def test_samples_are_met_exactly() -> None:
    rng = np.random.default_rng(1)
    poses = rng.uniform((-180, -90, -180), (180, 90, 180), size=(50, 3))
    motion = HeadMotion("x", np.cumsum(rng.uniform(0.1, 0.4, 50)), poses)
    assert motion.at(motion.times_s) == pytest.approx(poses, abs=1e-9)


def test_resampling_mends_the_intervals() -> None:
    motion = motion_of([0, 30, 40], [1.0, 1.3, 1.4]).resampled()
    assert motion.times_s == pytest.approx([1.0, 1.2, 1.4])
    assert motion.poses_deg[:, 2] == pytest.approx([0, 20, 40])
    with pytest.raises(HeadMotionError, match="two samples"):
        motion.resampled(1.0)
    later = motion.shifted(-1.0)
    assert later.times_s == pytest.approx([0.0, 0.2, 0.4])
    assert later.covers(0.0, 0.5)
    assert not later.covers(0.0, 0.7)


@given(st.floats(-1e4, 1e4))
def test_wrapping_keeps_the_direction(angle: float) -> None:
    wrapped = wrap_deg(angle)
    assert -180 <= wrapped <= 180
    turns = (angle - wrapped) / 360
    assert turns == pytest.approx(round(turns), abs=1e-9)
    assert np.isclose(wrap_deg(np.array([angle]))[0], wrapped)


@given(st.lists(st.floats(-180, 179.9), min_size=1, max_size=30))
def test_unwrapping_is_undone_by_wrapping(angles: list[float]) -> None:
    path = unwrap(np.array(angles))
    assert np.abs(np.diff(path)).max(initial=0) <= 180 + 1e-9
    assert np.abs(wrap_deg(path - np.array(angles))) == pytest.approx(0, abs=1e-9)
