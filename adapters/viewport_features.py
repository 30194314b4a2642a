"""What the learned viewport predictors are told, as arrays: turns and differences, no headings.

A viewer's yaw enters as differences only, so answers turn with the viewer, also across ±180°.
Roll and pitch enter as they are, too: heads return to level. Earlier viewers enter as where they
were against this viewer over the past, and where they went from where this viewer looks now.

Nothing else is needed to mirror left and right, which swaps the signs of roll and yaw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from player.angles import wrap_deg
from player.observation import ObservationError
from player.trace import FloatArray
from player.viewport_observation import HeadPose, ViewportObservation

#: Samples of history and steps ahead of all models, as published (NetLLM, SIGCOMM 2024).
HISTORY, HORIZON = 10, 20
AXES = 3  # roll, pitch, yaw
ROLL, PITCH, YAW = range(AXES)
#: Samples of the history at which earlier viewers are compared with this one; the last is now.
COMPARED = (0, 3, 6, 9)
#: Poses told of an earlier viewer.
TOLD = len(COMPARED) + HORIZON
MIRROR = (-1.0, 1.0, -1.0)
#: Turns are told as asinh(turn / this): proportional when small, logarithmic when large.
TURN_DEG = 3.0
LEVEL_DEG = 20.0
RECENT_TURNS = 3
OWN_FEATURES = 2 * (HISTORY - 1) * AXES + 4


class HorizonError(ObservationError):
    """More steps are asked for than the model foretells."""


class ImageFeaturesError(ObservationError):
    """Image features of another length than the model takes."""


@dataclass(frozen=True, slots=True, eq=False)
class ViewportInputs:
    """B questions.

    Attributes:
        turns: ``(B, 9, 3)`` from sample to sample, degrees.
        level: ``(B, 2)`` roll and pitch now, degrees.
        others: ``(B, U, 24, 3)`` of earlier viewers: against this one at the compared samples, then
            from where this one looks now to where they looked at the 20 times ahead; degrees.
        absent: ``(B, U)`` whether there is no such viewer; their poses are 0.
        image: ``(B, F)`` features of the current frame, if they are told.
    """

    turns: Tensor
    level: Tensor
    others: Tensor
    absent: Tensor
    image: Tensor | None = None

    def __len__(self) -> int:
        return len(self.turns)

    def mirrored(self, where: Tensor | None = None) -> ViewportInputs:
        """The same with left and right swapped, in all rows or where ``(B,)`` says so.

        An image cannot be swapped, and stays.
        """
        sign = self.turns.new_tensor(MIRROR).expand(len(self), AXES)
        if where is not None:
            sign = torch.where(where[:, None], sign, torch.ones_like(sign))  # (B, 3)
        return replace(
            self,
            turns=self.turns * sign[:, None],
            level=self.level * sign[:, :2],
            others=self.others * sign[:, None, None],
        )

    def turns_back(self) -> Tensor:
        """``(B,)`` whether the yaw went down, or stayed and the roll is negative.

        A question and its mirror image differ in it, unless the head is upright and at rest.
        """
        went = self.turns[..., YAW].sum(1)
        return torch.where(went == 0, self.level[:, ROLL], went) < 0

    def own(self) -> Tensor:
        """``(B, 58)`` features of this viewer alone."""
        turns = self.turns  # (B, 9, 3)
        back = -turns.flip(1).cumsum(1).flip(1)  # past poses against now, unwrapped
        speed = turns[..., YAW].abs()  # (B, 9)
        paces = torch.stack([speed.mean(1), speed[:, -RECENT_TURNS:].mean(1)], dim=1)
        return torch.cat(
            [
                torch.asinh(turns / TURN_DEG).flatten(1),
                torch.asinh(back / TURN_DEG).flatten(1),
                self.level / LEVEL_DEG,
                torch.log1p(paces),
            ],
            dim=1,
        )

    def to(self, device: torch.device) -> ViewportInputs:
        """The same on a device."""
        return ViewportInputs(
            self.turns.to(device),
            self.level.to(device),
            self.others.to(device),
            self.absent.to(device),
            None if self.image is None else self.image.to(device),
        )

    def rows(self, index: Tensor) -> ViewportInputs:
        """Some of the questions."""
        image = None if self.image is None else self.image[index]
        return ViewportInputs(
            self.turns[index], self.level[index], self.others[index], self.absent[index], image
        )


def inputs_of(observations: Sequence[ViewportObservation]) -> ViewportInputs:
    """Observations as inputs; those of one call all have image features, or none has.

    A history of fewer than 10 samples is told as that of a viewer who looked at its first pose
    before; of a longer one the last 10 samples count. Of a horizon below 20 steps, earlier viewers
    are told to stay where they were at its end.

    Raises:
        HorizonError: more than 20 steps are asked for.
    """
    most = max((len(one.earlier) for one in observations), default=0)
    count = len(observations)
    own = np.empty((count, HISTORY, AXES))
    others = np.zeros((count, most, TOLD, AXES))
    absent = np.ones((count, most), dtype=np.bool_)
    for row, one in enumerate(observations):
        if one.horizon > HORIZON:
            raise HorizonError(
                "horizon", f"{one.horizon} steps are asked for; the model foretells {HORIZON}"
            )
        known = len(one.history)
        past = np.maximum(np.arange(known - HISTORY, known), 0)
        own[row] = np.array(one.history, dtype=np.float64)[past]
        if one.earlier:
            poses = _poses(one.earlier)  # (U, known + horizon, 3)
            ahead = known + np.minimum(np.arange(HORIZON), one.horizon - 1)
            told = others_told(own[row], poses[:, past], poses[:, ahead])
            others[row, : len(told)], absent[row, : len(told)] = told, False
    images = [one.image_features for one in observations]
    image = torch.tensor(images, dtype=torch.float32) if images and images[0] else None
    return ViewportInputs(
        turns=as_tensor(wrap_deg(np.diff(own, axis=1))),
        level=as_tensor(own[:, -1, :YAW]),
        others=as_tensor(others),
        absent=torch.from_numpy(absent),
        image=image,
    )


def _poses(viewers: Sequence[Sequence[HeadPose]]) -> FloatArray:
    """``(U, n, 3)``; several times as fast as an array of the nested tuples."""
    angles = chain.from_iterable(chain.from_iterable(viewers))
    return np.fromiter(angles, np.float64).reshape(len(viewers), -1, AXES)


def others_told(own: FloatArray, past: FloatArray, ahead: FloatArray) -> FloatArray:
    """``(…, U, 24, 3)`` what is told of earlier viewers.

    Args:
        own: ``(…, 10, 3)`` past poses of this viewer.
        past: ``(…, U, 10, 3)`` of the others at the same times, or at the compared ones only.
        ahead: ``(…, U, 20, 3)`` of the others at the times ahead.
    """
    compared = list(COMPARED)
    if past.shape[-2] == HISTORY:
        past = past[..., compared, :]
    against = past - own[..., None, compared, :]
    onwards = ahead - own[..., None, -1:, :]
    return wrap_deg(np.concatenate([against, onwards], axis=-2))


def as_tensor(values: FloatArray) -> Tensor:
    """In float32."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
