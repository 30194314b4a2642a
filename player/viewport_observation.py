"""What a viewport controller is told, and what it answers: where the viewer will look."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from player.angles import wrap_deg
from player.observation import ObservationError

#: Recordings and predictions are sampled at this interval (5 Hz), as in NetLLM (SIGCOMM 2024).
SAMPLE_S = 0.2
#: Bounds of what is possible, far beyond any session.
MAX_HISTORY = 100
MAX_HORIZON = 100
MAX_EARLIER_VIEWERS = 100
MAX_MEDIA_TIME_S = 1e6
ROLL_RANGE_DEG = YAW_RANGE_DEG = (-180.0, 180.0)
PITCH_RANGE_DEG = (-90.0, 90.0)
MAX_SPREAD_DEG = 360.0
#: Extrapolations leave the range of a pose, but never go further than this.
MAX_PREDICTED_DEG = 1e5

_LEAST_POSE, _MOST_POSE = zip(ROLL_RANGE_DEG, PITCH_RANGE_DEG, YAW_RANGE_DEG, strict=True)
_FORBID_UNKNOWN_KEYS = {"extra": "forbid"}  # read by pydantic at the edges


class HeadPose(NamedTuple):
    """Where a head points; in JSON an array ``[roll_deg, pitch_deg, yaw_deg]``.

    Attributes:
        roll_deg: tilt towards a shoulder, -180 to 180.
        pitch_deg: elevation above the horizon, -90 to 90.
        yaw_deg: heading, -180 to 180.
    """

    roll_deg: float
    pitch_deg: float
    yaw_deg: float


@dataclass(frozen=True, slots=True)
class Viewport:
    """A predicted pose and how far off it may be.

    The angles may lie beyond the range of a pose, where an extrapolation takes them; the published
    error counts them as they are.

    Attributes:
        roll_deg: see :class:`HeadPose`.
        pitch_deg: likewise.
        yaw_deg: likewise.
        roll_spread_deg: expected absolute error (the scale of a Laplace distribution); None: the
            controller does not say.
        pitch_spread_deg: likewise.
        yaw_spread_deg: likewise.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    roll_deg: float
    pitch_deg: float
    yaw_deg: float
    roll_spread_deg: float | None = None
    pitch_spread_deg: float | None = None
    yaw_spread_deg: float | None = None

    @property
    def pose(self) -> HeadPose:
        """The pose without its spread: roll and yaw wrapped, pitch at most at a pole."""
        low, high = PITCH_RANGE_DEG
        pitch_deg = min(max(self.pitch_deg, low), high)
        return HeadPose(wrap_deg(self.roll_deg), pitch_deg, wrap_deg(self.yaw_deg))


@dataclass(frozen=True, slots=True)
class ViewportObservation:
    """State of a viewer; the decision is a tuple of ``horizon`` viewports.

    Attributes:
        history: the viewer's own poses, oldest first, ``SAMPLE_S`` apart; the last one is now.
        horizon: how many poses to predict; the first lies ``SAMPLE_S`` ahead.
        media_time_s: position in the video now.
        earlier: what others who watched this video before saw at the same positions: per viewer
            ``len(history) + horizon`` poses, from the time of the first one of ``history`` on.
        image_features: features of the current frame, if there are any.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    history: tuple[HeadPose, ...]
    horizon: int
    media_time_s: float
    earlier: tuple[tuple[HeadPose, ...], ...] = ()
    image_features: tuple[float, ...] = ()


class InvalidViewports(ValueError):
    """The controller answered too few or too many poses, or one that is none."""


def check_viewport_observation(observation: ViewportObservation) -> None:
    """Raises :class:`ObservationError` for values that cannot occur in a session."""
    _require(
        1 <= len(observation.history) <= MAX_HISTORY, "history", f"must hold 1 to {MAX_HISTORY}"
    )
    _require(1 <= observation.horizon <= MAX_HORIZON, "horizon", f"must be 1 to {MAX_HORIZON}")
    _require(
        0 <= observation.media_time_s <= MAX_MEDIA_TIME_S,
        "media_time_s",
        f"must be 0 to {MAX_MEDIA_TIME_S:g}",
    )
    _require(
        len(observation.earlier) <= MAX_EARLIER_VIEWERS,
        "earlier",
        f"must hold at most {MAX_EARLIER_VIEWERS} viewers",
    )
    _check_poses(observation.history, "history")
    steps = len(observation.history) + observation.horizon
    for viewer in observation.earlier:
        _require(len(viewer) == steps, "earlier", f"needs {steps} poses per viewer")
    _check_poses(tuple(itertools.chain.from_iterable(observation.earlier)), "earlier")
    for value in observation.image_features:
        _require(math.isfinite(value), "image_features", "must be finite")


def check_viewports(viewports: object, *, horizon: int) -> tuple[Viewport, ...]:
    """The controller's answer, if it is one.

    Raises:
        InvalidViewports: not ``horizon`` viewports, or an angle or spread that is none.
    """
    if not isinstance(viewports, (tuple, list)) or not all(
        isinstance(one, Viewport) for one in viewports
    ):
        raise InvalidViewports(f"expected {horizon} viewports, not {viewports!r:.100}")
    if len(viewports) != horizon:
        raise InvalidViewports(f"expected {horizon} viewports, not {len(viewports)}")
    for step, one in enumerate(viewports):
        angles = (one.roll_deg, one.pitch_deg, one.yaw_deg)
        if not all(abs(angle) <= MAX_PREDICTED_DEG for angle in angles):  # false for NaN
            raise InvalidViewports(f"step {step}: {angles} is no pose in degrees")
        for spread in (one.roll_spread_deg, one.pitch_spread_deg, one.yaw_spread_deg):
            if spread is not None and not 0 <= spread <= MAX_SPREAD_DEG:  # false for NaN
                raise InvalidViewports(f"step {step}: {spread} is no spread in degrees")
    return tuple(viewports)


def _check_poses(poses: Sequence[HeadPose], field: str) -> None:
    angles = np.fromiter(itertools.chain.from_iterable(poses), np.float64).reshape(-1, 3)
    is_inside = (angles >= _LEAST_POSE) & (angles <= _MOST_POSE)  # false for NaN
    _require(bool(is_inside.all()), field, "roll and yaw must be -180 to 180, pitch -90 to 90")


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise ObservationError(field, message)
