"""A generative model of head motion in 360° video: fixations, gaze shifts, and shared attractors.

No recording is stored in it, but its constants were set by hand so that the error of predicting no
motion, the spread of pitch and the speeds of turning come out near those of the Jin2022 train split
(see the comparison in its test); roll sways less than there, and viewers differ less in how much
they move. Its form follows what is commonly described for viewers of 360° video: fixations of
skewed length, gaze shifts mostly along the horizon, in runs of one direction, and content that
viewers of one video share. It is a stand-in to run without data, not a model fitted to people.

- A scene has 2 to 4 attractors. Each drifts along the horizon at a constant speed (normal, 4°/s)
  and is worth looking at in episodes of 8 s on average, 5 s apart.
- A viewer fixates for a log-normal time (median 1.6 s, sigma 0.9, times a log-normal factor of
  the viewer's, sigma 0.8).
  The next target is an attractor that is worth looking at (55 %, the nearer the likelier), which is
  then followed, or else a shift of yaw by a gamma-distributed amplitude (mean 27°, shape 1.2) that
  keeps its direction in three of four cases, with a pitch around -2° (standard deviation 9°).
- The head follows its target like a critically damped spring (4 to 8 rad/s, one per viewer) and
  drifts around it (2.5° in yaw, 1.5° in pitch, correlation time 2 s).
- Roll is a slow sway (9°, 5 s) plus a lean into turns (0.04 s times the yaw speed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from player.head_motion import HeadMotion, HeadMotionError, head_motion, wrap_deg
from player.viewport_observation import MAX_MEDIA_TIME_S, SAMPLE_S

TICKS_PER_SAMPLE = 2  # of the simulation
TICK_S = SAMPLE_S / TICKS_PER_SAMPLE
DECIMALS = 6  # hides differences of the last digit between platforms' mathematics libraries

ATTRACTORS = (2, 4)
ATTRACTOR_SPEED_DEG_S = 4.0
ATTRACTOR_PITCH_DEG = (-2.0, 8.0)  # mean and standard deviation
WORTH_S = 8.0
DULL_S = 5.0

FIXATION_MEDIAN_S = 1.6
FIXATION_SIGMA = 0.9
VIEWER_PACE_SIGMA = 0.8  # of the logarithm of the viewer's factor
ATTRACTED_SHARE = 0.55
NEARNESS_DEG = 60.0  # an attractor that much further away is 1/e as likely
OFFSET_DEG = (10.0, 5.0)  # of a viewer from an attractor's yaw and pitch
SHIFT_MEAN_DEG = 27.0
SHIFT_SHAPE = 1.2
SAME_DIRECTION_SHARE = 0.75
FREE_PITCH_DEG = (-2.0, 9.0)
MAX_PITCH_DEG = 60.0
SPRING_RAD_S = (4.0, 8.0)
DRIFT_DEG = (2.5, 1.5)  # yaw, pitch
DRIFT_CORRELATION_S = 2.0
SWAY_DEG = 9.0
SWAY_CORRELATION_S = 5.0
LEAN_S = 0.04


@dataclass(frozen=True, eq=False)
class Attractor:
    """Something that viewers look at.

    Attributes:
        yaw_deg: where it is at time 0.
        pitch_deg: its elevation.
        speed_deg_s: drift of its yaw.
        is_worth: ``(seconds,)`` for each second of the video, whether it is worth looking at.
    """

    yaw_deg: float
    pitch_deg: float
    speed_deg_s: float
    is_worth: tuple[bool, ...]

    def yaw_at(self, time_s: float) -> float:
        """Its yaw, not wrapped."""
        return self.yaw_deg + self.speed_deg_s * time_s

    def attracts_at(self, time_s: float) -> bool:
        """Whether it is worth looking at."""
        return self.is_worth[min(int(time_s), len(self.is_worth) - 1)]


@dataclass(frozen=True, eq=False)
class Scene:
    """What the viewers of one video share."""

    attractors: tuple[Attractor, ...]


def generate_scene(duration_s: float, rng: np.random.Generator) -> Scene:
    """A scene of the model.

    Args:
        duration_s: length of the video.
        rng: source of randomness; equal states give equal scenes.
    """
    _check_duration("scene", duration_s)
    seconds = math.ceil(duration_s) + 1
    count = int(rng.integers(ATTRACTORS[0], ATTRACTORS[1] + 1))
    return Scene(
        tuple(
            Attractor(
                yaw_deg=float(rng.uniform(-180.0, 180.0)),
                pitch_deg=float(rng.normal(*ATTRACTOR_PITCH_DEG)),
                speed_deg_s=float(rng.normal(0.0, ATTRACTOR_SPEED_DEG_S)),
                is_worth=_episodes(rng, seconds),
            )
            for _ in range(count)
        )
    )


def generate_head_motion(
    name: str,
    duration_s: float,
    rng: np.random.Generator,
    scene: Scene | None = None,
    *,
    video: int | None = None,
    user: int | None = None,
) -> HeadMotion:
    """One viewer of the model.

    Args:
        name: name of the recording.
        duration_s: length; cut to whole samples of ``SAMPLE_S``, at least two of them.
        rng: source of randomness; equal states give equal recordings.
        scene: what viewers of this video share; one of the viewer's own by default.
        video: number of the video.
        user: number of the viewer.

    Raises:
        HeadMotionError: the duration holds no two samples, or is longer than any video.
    """
    _check_duration(name, duration_s)
    samples = int(duration_s / SAMPLE_S + 1e-9) + 1
    viewer = _Viewer(scene or generate_scene(duration_s, rng), rng)
    ticks = samples * TICKS_PER_SAMPLE
    drift_yaw, drift_pitch = (_sway(rng, ticks, sigma, DRIFT_CORRELATION_S) for sigma in DRIFT_DEG)
    roll = _sway(rng, ticks, SWAY_DEG, SWAY_CORRELATION_S)
    path = [
        viewer.pose_at(tick * TICK_S, *aside)
        for tick, aside in enumerate(zip(roll, drift_pitch, drift_yaw, strict=True))
    ]
    poses = np.array(path[::TICKS_PER_SAMPLE])
    poses[:, [0, 2]] = wrap_deg(poses[:, [0, 2]])
    times_s = np.round(np.arange(samples) * SAMPLE_S, DECIMALS)
    return head_motion(name, times_s, np.round(poses, DECIMALS), video=video, user=user)


class _Viewer:
    """Advances by one tick per call."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self._scene, self._rng = scene, rng
        self._pace = math.exp(rng.normal(0.0, VIEWER_PACE_SIGMA))
        self._spring = float(rng.uniform(*SPRING_RAD_S))
        self._direction = 1.0 if rng.random() < 0.5 else -1.0
        self._yaw = float(rng.uniform(-180.0, 180.0))
        self._pitch = self._target_pitch = float(rng.normal(*FREE_PITCH_DEG))
        self._target_yaw = self._yaw
        self._yaw_speed = self._pitch_speed = 0.0
        self._followed: Attractor | None = None
        self._offset_yaw = 0.0
        self._until_s = self._fixation_s()

    def pose_at(
        self, time_s: float, sway: float, drift_pitch: float, drift_yaw: float
    ) -> tuple[float, float, float]:
        """Roll, pitch, yaw (not wrapped) after the next tick, which ends at ``time_s``."""
        if time_s >= self._until_s:
            self._shift_gaze(time_s)
            self._until_s = time_s + self._fixation_s()
        if self._followed is not None:
            self._target_yaw = self._followed.yaw_at(time_s) + self._offset_yaw
        self._yaw, self._yaw_speed = self._pull(
            self._yaw, self._yaw_speed, self._target_yaw + drift_yaw
        )
        self._pitch, self._pitch_speed = self._pull(
            self._pitch, self._pitch_speed, self._target_pitch + drift_pitch
        )
        return sway + LEAN_S * self._yaw_speed, self._pitch, self._yaw

    def _pull(self, angle: float, speed: float, target: float) -> tuple[float, float]:
        """One tick of a critically damped spring, exact while the target stands still."""
        away = angle - target
        decay = math.exp(-self._spring * TICK_S)
        carried = speed + self._spring * away
        return (
            target + (away + carried * TICK_S) * decay,
            (speed - self._spring * carried * TICK_S) * decay,
        )

    def _shift_gaze(self, time_s: float) -> None:
        rng = self._rng
        worth = [one for one in self._scene.attractors if one.attracts_at(time_s)]
        if worth and rng.random() < ATTRACTED_SHARE:
            away = np.array([wrap_deg(one.yaw_at(time_s) - self._yaw) for one in worth])
            nearness = np.exp(-np.abs(away) / NEARNESS_DEG)
            chosen = int(rng.choice(len(worth), p=nearness / nearness.sum()))
            self._followed = worth[chosen]
            # Turns that the head has made stay in the target, so that it goes the short way.
            turns = self._yaw + float(away[chosen]) - self._followed.yaw_at(time_s)
            self._offset_yaw = turns + rng.normal(0.0, OFFSET_DEG[0])
            pitch = self._followed.pitch_deg + rng.normal(0.0, OFFSET_DEG[1])
        else:
            self._followed = None
            if rng.random() > SAME_DIRECTION_SHARE:
                self._direction = -self._direction
            amplitude = rng.gamma(SHIFT_SHAPE, SHIFT_MEAN_DEG / SHIFT_SHAPE)
            self._target_yaw = self._yaw + self._direction * amplitude
            pitch = rng.normal(*FREE_PITCH_DEG)
        self._target_pitch = float(np.clip(pitch, -MAX_PITCH_DEG, MAX_PITCH_DEG))

    def _fixation_s(self) -> float:
        return self._pace * FIXATION_MEDIAN_S * math.exp(self._rng.normal(0.0, FIXATION_SIGMA))


def _sway(rng: np.random.Generator, ticks: int, sigma: float, correlation_s: float) -> list[float]:
    """Stationary first-order autoregression with standard deviation ``sigma``."""
    correlation = math.exp(-TICK_S / correlation_s)
    value = rng.normal(0.0, sigma)
    values: list[float] = []
    for shock in rng.normal(0.0, sigma * math.sqrt(1 - correlation**2), size=ticks).tolist():
        values.append(value)
        value = correlation * value + shock
    return values


def _episodes(rng: np.random.Generator, seconds: int) -> tuple[bool, ...]:
    """On/off Markov chain in steady state, one state per second."""
    state = bool(rng.random() < WORTH_S / (WORTH_S + DULL_S))
    states: list[bool] = []
    for draw in rng.random(seconds).tolist():
        states.append(state)
        state = draw >= 1 / WORTH_S if state else draw < 1 / DULL_S
    return tuple(states)


def _check_duration(name: str, duration_s: float) -> None:
    if not SAMPLE_S <= duration_s <= MAX_MEDIA_TIME_S:  # false for NaN
        raise HeadMotionError(
            f"{name}: duration_s must be {SAMPLE_S:g} to {MAX_MEDIA_TIME_S:g}, not {duration_s}"
        )
