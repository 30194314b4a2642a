"""Recorded head motion: where a viewer of a 360° video looked over time.

The file format is that of the 5 Hz recordings that NetLLM (SIGCOMM 2024) uses: no header, one line
``time_s,roll_deg,pitch_deg,yaw_deg`` per sample, roll and yaw within ±180, pitch within ±90, in a
folder ``videoVV/userUU.csv``. Times are positions in the video, so that recordings of one video
line up; they need not begin at 0.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from player.angles import unwrap, wrap_deg
from player.trace import FloatArray
from player.viewport_observation import (
    MAX_MEDIA_TIME_S,
    PITCH_RANGE_DEG,
    ROLL_RANGE_DEG,
    SAMPLE_S,
    YAW_RANGE_DEG,
)

__all__ = [
    "HeadMotion",
    "HeadMotionError",
    "read_head_motion",
    "read_recordings",
    "unwrap",
    "wrap_deg",
]

COLUMNS = ("time_s", "roll_deg", "pitch_deg", "yaw_deg")
MAX_FILE_BYTES = 16 * 2**20  # about a day at 5 Hz
#: Two samples further apart than this many sample intervals have a gap between them.
GAP_INTERVALS = 1.5
PITCH = 1  # column of the poses

_RANGES = (ROLL_RANGE_DEG, PITCH_RANGE_DEG, YAW_RANGE_DEG)
_VIDEO_FOLDER = re.compile(r"video(\d+)")
_USER_FILE = re.compile(r"user(\d+)\.csv")


class HeadMotionError(ValueError):
    """A recording that cannot be used; for a file the message names file and line."""


@dataclass(frozen=True, eq=False)
class HeadMotion:
    """One viewer's recording of one video.

    Attributes:
        name: ``videoVV/userUU``, or what the file is called.
        times_s: ``(N,)`` positions in the video, strictly increasing from at least 0; N >= 2.
        poses_deg: ``(N, 3)`` roll, pitch, yaw; roll and yaw within [-180, 180).
        gaps: pauses of more than 1.5 sample intervals in the recording.
        backward_steps: samples left out because time had run backwards before them.
        duplicates: samples left out because their time had occurred already.
        video: number of the video, if it has one.
        user: number of the viewer, likewise.
    """

    name: str
    times_s: FloatArray
    poses_deg: FloatArray
    gaps: int = 0
    backward_steps: int = 0
    duplicates: int = 0
    video: int | None = None
    user: int | None = None

    def __post_init__(self) -> None:
        times, poses = self.times_s, self.poses_deg
        if times.ndim != 1 or poses.shape != (len(times), len(_RANGES)) or len(times) < 2:
            raise HeadMotionError(
                f"{self.name}: needs at least two samples with a time and three angles each"
            )
        if not (np.isfinite(times).all() and np.isfinite(poses).all()):
            raise HeadMotionError(f"{self.name}: a time or an angle is not a finite number")
        if times[0] < 0 or times[-1] > MAX_MEDIA_TIME_S or (np.diff(times) <= 0).any():
            raise HeadMotionError(
                f"{self.name}: times must increase strictly, within 0 to {MAX_MEDIA_TIME_S:g} s"
            )
        low, high = np.transpose(_RANGES)
        if (poses < low).any() or (poses > high).any():
            raise HeadMotionError(f"{self.name}: roll and yaw must be ±180, pitch ±90")

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def start_s(self) -> float:
        """Position in the video of the first sample."""
        return float(self.times_s[0])

    @property
    def end_s(self) -> float:
        """Position in the video of the last sample."""
        return float(self.times_s[-1])

    @property
    def duration_s(self) -> float:
        """From the first sample to the last, seconds."""
        return self.end_s - self.start_s

    @cached_property
    def _unwrapped_deg(self) -> FloatArray:
        """``(3, N)``; pitch never wraps."""
        columns = unwrap(self.poses_deg).T
        columns[PITCH] = self.poses_deg[:, PITCH]
        return np.ascontiguousarray(columns)

    def at(self, times_s: FloatArray) -> FloatArray:
        """Poses at positions in the video.

        Between samples the pose turns evenly, the shorter way round; before the first and after
        the last it stays.

        Args:
            times_s: ``(n,)`` positions, in any order.

        Returns:
            ``(n, 3)`` roll, pitch, yaw.
        """
        columns = [np.interp(times_s, self.times_s, axis) for axis in self._unwrapped_deg]
        return _wrapped(np.stack(columns, axis=-1))

    def covers(self, start_s: float, end_s: float, tolerance_s: float = SAMPLE_S) -> bool:
        """Whether the recording spans these positions, up to the tolerance at either end."""
        return self.start_s <= start_s + tolerance_s and end_s <= self.end_s + tolerance_s

    def resampled(self, sample_s: float = SAMPLE_S) -> HeadMotion:
        """The same motion at even times from ``start_s`` on.

        Raises:
            HeadMotionError: the recording is shorter than one such interval.
        """
        steps = math.floor(self.duration_s / sample_s + 1e-9)
        times_s = self.start_s + np.arange(steps + 1, dtype=np.float64) * sample_s
        return dataclasses.replace(self, times_s=times_s, poses_deg=self.at(times_s))

    def shifted(self, by_s: float) -> HeadMotion:
        """The same motion ``by_s`` later in the video."""
        return dataclasses.replace(self, times_s=self.times_s + by_s)


def head_motion(
    name: str,
    times_s: Iterable[float],
    poses_deg: FloatArray,
    *,
    video: int | None = None,
    user: int | None = None,
) -> HeadMotion:
    """A recording of samples as they came: what is out of order is left out and counted.

    Args:
        name: name of the recording.
        times_s: ``(N,)`` positions in the video.
        poses_deg: ``(N, 3)`` roll, pitch, yaw within ±180, ±90, ±180.
        video: number of the video.
        user: number of the viewer.

    Raises:
        HeadMotionError: fewer than two samples are left, or an angle or time that is none.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if len(times) == 0:
        raise HeadMotionError(f"{name}: no samples")
    latest_before = np.concatenate(([-np.inf], np.maximum.accumulate(times)[:-1]))
    kept = times > latest_before
    steps_s = np.diff(times[kept])
    gaps = int((steps_s > GAP_INTERVALS * np.median(steps_s)).sum()) if len(steps_s) else 0
    return HeadMotion(
        name,
        times[kept],
        _wrapped(poses_deg[kept]),
        gaps=gaps,
        backward_steps=int((times < latest_before).sum()),
        duplicates=int((times == latest_before).sum()),
        video=video,
        user=user,
    )


def read_head_motion(path: Path, name: str | None = None) -> HeadMotion:
    """Reads one recording.

    Samples whose time is not later than all before them are left out and counted, as are gaps.

    Args:
        path: the file.
        name: name of the recording; the file's own by default.

    Raises:
        HeadMotionError: missing, too large, too short, or a line that is no sample; names file
            and line.
    """
    rows = _read_rows(path)
    if not rows:
        raise HeadMotionError(f"{path}: no samples; expected lines {','.join(COLUMNS)}")
    table = np.array(rows, dtype=np.float64)
    video = _VIDEO_FOLDER.fullmatch(path.parent.name)
    user = _USER_FILE.fullmatch(path.name)
    try:
        return head_motion(
            name or path.name,
            table[:, 0],
            table[:, 1:],
            video=int(video[1]) if video else None,
            user=int(user[1]) if user else None,
        )
    except HeadMotionError as error:
        raise HeadMotionError(f"{path}: {error}") from error


def read_recordings(
    folder: Path,
    videos: Collection[int] | None = None,
    users: Collection[int] | None = None,
) -> tuple[HeadMotion, ...]:
    """Reads the recordings ``videoVV/userUU.csv`` below a folder, sorted by video and user.

    Args:
        folder: the folder.
        videos: only these; all by default.
        users: only these; all by default. Not every user need have watched every video.

    Raises:
        HeadMotionError: no such folder, video or user, no recording at all, or a malformed one.
    """
    if not folder.is_dir():
        raise HeadMotionError(f"{folder}: no such folder of recordings")
    files = sorted(
        (int(video[1]), int(user[1]), path)
        for place in folder.iterdir()
        if (video := _VIDEO_FOLDER.fullmatch(place.name)) and place.is_dir()
        for path in place.iterdir()
        if (user := _USER_FILE.fullmatch(path.name))
    )
    if not files:
        raise HeadMotionError(f"{folder}: no recordings videoVV/userUU.csv in this folder")
    check_known(str(folder), "video", videos, {video for video, _, _ in files})
    check_known(str(folder), "user", users, {user for _, user, _ in files})
    chosen = [
        read_head_motion(path, f"{path.parent.name}/{path.stem}")
        for video, user, path in files
        if (videos is None or video in videos) and (users is None or user in users)
    ]
    if not chosen:
        raise HeadMotionError(f"{folder}: none of these users watched any of these videos")
    return tuple(chosen)


def check_known(
    where: str, kind: str, asked: Collection[int] | None, known: Collection[int]
) -> None:
    """Raises HeadMotionError for a number that does not occur; the message lists those that do."""
    for number in asked or ():
        if number not in known:
            there = ", ".join(map(str, sorted(known)))
            raise HeadMotionError(f"{where}: no {kind} {number}; there are {there}")


def _read_rows(path: Path) -> list[list[float]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise HeadMotionError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise HeadMotionError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise HeadMotionError(f"{path}:{line}: not a line of numbers") from error
    return [
        _parse_row(f"{path}:{number}", line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]


def _parse_row(where: str, line: str) -> list[float]:
    fields = line.split(",")
    if len(fields) != len(COLUMNS):
        raise HeadMotionError(
            f"{where}: expected {len(COLUMNS)} columns {','.join(COLUMNS)}, found {len(fields)}"
        )
    values = [_parse_number(where, name, text) for name, text in zip(COLUMNS, fields, strict=True)]
    if not 0 <= values[0] <= MAX_MEDIA_TIME_S:
        raise HeadMotionError(
            f"{where}: time_s {values[0]:g} is not within 0 to {MAX_MEDIA_TIME_S:g}"
        )
    for name, value, (low, high) in zip(COLUMNS[1:], values[1:], _RANGES, strict=True):
        if not low <= value <= high:
            raise HeadMotionError(f"{where}: {name} {value:g} is not within {low:g} to {high:g}")
    return values


def _parse_number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HeadMotionError(f"{where}: {name} {text.strip()[:40]!r} is not a finite number")
    return value


def _wrapped(poses_deg: FloatArray) -> FloatArray:
    """Roll and yaw wrapped; what is within the range already stays as it is to the last digit."""
    inside = (poses_deg >= -180.0) & (poses_deg < 180.0)
    inside[..., PITCH] = True
    return np.where(inside, poses_deg, wrap_deg(poses_deg))
