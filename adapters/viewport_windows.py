"""Windows of recorded head motion to learn from, with earlier viewers of the same video beside.

Recordings lie in tables, one row each, and a window is a row and an index: what is told of it is
gathered when it is needed. Other viewers are looked up at even times, 0.1 s apart, and interpolated
between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.viewport_features import (
    AXES,
    COMPARED,
    HISTORY,
    HORIZON,
    YAW,
    ViewportInputs,
    as_tensor,
    others_told,
)
from player.angles import unwrap, wrap_deg
from player.head_motion import HeadMotion, HeadMotionError
from player.head_motion_windows import windows
from player.trace import FloatArray
from player.viewport_observation import SAMPLE_S

GRID_S = 0.1
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Recordings to learn from and to measure on; earlier viewers are the ones to learn from.

    Attributes:
        training: no recording of a held-out video or by a held-out viewer.
        held_out: held-out videos as held-out viewers watched them.
        beside: held-out videos as the viewers that are learned from watched them.
    """

    training: tuple[HeadMotion, ...]
    held_out: tuple[HeadMotion, ...]
    beside: tuple[HeadMotion, ...]


def split_recordings(
    recordings: Sequence[HeadMotion], share: float, rng: np.random.Generator
) -> Split:
    """Holds out a share of the videos and a share of the viewers.

    Raises:
        HeadMotionError: too few of either, or a recording without the number of its video or user.
    """
    for one in recordings:
        if one.video is None or one.user is None:
            raise HeadMotionError(f"{one.name}: needs a number of its video and of its viewer")
    if share == 0:
        return Split(tuple(recordings), (), ())
    videos = _held(sorted({one.video for one in recordings if one.video is not None}), share, rng)
    users = _held(sorted({one.user for one in recordings if one.user is not None}), share, rng)
    kinds = [(one, one.video in videos, one.user in users) for one in recordings]
    split = Split(
        tuple(one for one, video, user in kinds if not video and not user),
        tuple(one for one, video, user in kinds if video and user),
        tuple(one for one, video, user in kinds if video and not user),
    )
    if not split.training or not split.held_out:
        raise HeadMotionError(
            f"with {len(videos)} videos and {len(users)} viewers held out there are "
            f"{len(split.training)} recordings to learn from, {len(split.held_out)} to measure on"
        )
    return split


def _held(numbers: Sequence[int], share: float, rng: np.random.Generator) -> frozenset[int]:
    if len(numbers) < 2:
        raise HeadMotionError("holding out needs at least two videos and two viewers")
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    return frozenset(int(one) for one in rng.permutation(np.array(numbers))[:count])


class RecordingTable:
    """R recordings as arrays, to gather windows from."""

    def __init__(self, recordings: Sequence[HeadMotion]) -> None:
        if not recordings:
            raise HeadMotionError("no recordings")
        rows = len(recordings)
        self.recordings = tuple(recordings)
        self._length = np.array([len(one) for one in recordings])
        self._start_s = np.array([one.start_s for one in recordings])
        self._end_s = np.array([one.end_s for one in recordings])
        self._poses = np.zeros((rows, self._length.max(), AXES), dtype=np.float32)
        self._times_s = np.zeros((rows, self._length.max()))
        ticks = GRID_S * np.arange(math.ceil(self._end_s.max() / GRID_S) + 2, dtype=np.float64)
        self._grid = np.zeros((rows, len(ticks), AXES), dtype=np.float32)  # unwrapped
        for row, one in enumerate(recordings):
            self._poses[row, : len(one)] = one.poses_deg
            self._times_s[row, : len(one)] = one.times_s
            self._grid[row] = unwrap(one.at(ticks))
        videos = [one.video for one in recordings]
        together = [[r for r in range(rows) if videos[r] == video] for video in videos]
        self._beside = np.full((rows, max(map(len, together))), -1)
        for row, others in enumerate(together):
            self._beside[row, : len(others)] = others

    @property
    def most_viewers(self) -> int:
        """Most others that a viewer may have beside them."""
        return self._beside.shape[1] - 1

    def all_windows(self, rows: Sequence[int]) -> IntArray:
        """``(n, 2)`` row and index of every window of these recordings."""
        found = [
            np.stack([np.full(len(index), row), index], axis=1)
            for row in rows
            if len(index := np.arange(HISTORY, self._length[row] - HORIZON + 1))
        ]
        return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)

    def published_windows(self, rows: Sequence[int]) -> IntArray:
        """``(n, 2)`` row and index of the published windows of these recordings."""
        parts = [(row, windows(self.recordings[row]).index) for row in rows]
        return np.concatenate(
            [np.stack([np.full(len(index), row), index], axis=1) for row, index in parts]
        )

    def gather(
        self, chosen: IntArray, viewers: int, rng: np.random.Generator | None = None
    ) -> tuple[ViewportInputs, FloatArray]:
        """Windows as inputs, and what came.

        Args:
            chosen: ``(B, 2)`` row and index of each.
            viewers: at most so many others of the same video.
            rng: draws who; None: the first ones.

        Returns:
            The inputs, and ``(B, 20, 3)`` displacements from the last pose, degrees.
        """
        row, index = chosen.T
        at = (row[:, None], index[:, None] + np.arange(-HISTORY, HORIZON))
        poses = self._poses[at].astype(np.float64)  # (B, 30, 3)
        own = poses[:, :HISTORY]
        others, absent = self._others(row, index, own, viewers, rng)
        inputs = ViewportInputs(
            turns=as_tensor(wrap_deg(np.diff(own, axis=1))),
            level=as_tensor(own[:, -1, :YAW]),
            others=as_tensor(others),
            absent=_bools(absent),
        )
        return inputs, wrap_deg(poses[:, HISTORY:] - own[:, -1:])

    def _others(
        self,
        row: IntArray,
        index: IntArray,
        own: FloatArray,
        viewers: int,
        rng: np.random.Generator | None,
    ) -> tuple[FloatArray, BoolArray]:
        """``(B, U, 24, 3)`` what is told of others, and ``(B, U)`` who is not there."""
        past_s = self._times_s[row[:, None], index[:, None] + np.arange(-HISTORY, 0)]  # (B, 10)
        ahead_s = past_s[:, -1:] + SAMPLE_S * np.arange(1, HORIZON + 1)
        asked_s = np.concatenate([past_s[:, list(COMPARED)], ahead_s], axis=1)  # (B, 24)
        beside = self._beside[row]  # (B, V)
        absent = (beside < 0) | (beside == row[:, None])
        absent |= self._start_s[beside] > asked_s[:, :1] + SAMPLE_S
        absent |= self._end_s[beside] < asked_s[:, -1:] - SAMPLE_S
        order = absent.astype(np.float64)
        if rng is not None:
            order += rng.random(beside.shape) / 2
        picked = np.argsort(order, axis=1, kind="stable")[:, : min(viewers, self.most_viewers)]
        beside = np.take_along_axis(beside, picked, axis=1)  # (B, U)
        absent = np.take_along_axis(absent, picked, axis=1)
        place = asked_s / GRID_S
        below = np.clip(place.astype(np.int64), 0, self._grid.shape[1] - 2)[:, None]  # (B, 1, 24)
        part = (place[:, None] - below)[..., None]
        low, high = self._grid[beside[..., None], below], self._grid[beside[..., None], below + 1]
        poses = low + part * (high - low)  # (B, U, 24, 3)
        compared = len(COMPARED)
        told = others_told(own, poses[:, :, :compared], poses[:, :, compared:])
        return np.where(absent[..., None, None], 0.0, told), absent


def _bools(values: BoolArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
