"""Task ``viewport``, driver ``offline``: predictions against recordings, nothing streamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from controllers import registry
from player.head_motion import HeadMotion
from player.head_motion_windows import observation_at, windows
from player.trace import FloatArray
from player.viewport_error import absolute_error_deg, great_circle_deg, predicted_deg
from player.viewport_observation import (
    InvalidViewports,
    Viewport,
    ViewportObservation,
    check_viewports,
)
from player.viewport_records import PredictionRecord
from testbed.session_pool import ArmControllers
from testbed.viewport_plans import PredictionPlan, PredictionSession

MS_PER_S = 1000.0


class _Questions(NamedTuple):
    """What is asked about one recording.

    Attributes:
        motion: the recording.
        actual: what was to be predicted ``(n, horizon, 3)``.
        observations: what the controller is told, n of them.
    """

    motion: HeadMotion
    actual: FloatArray
    observations: tuple[ViewportObservation, ...]


class PredictionPlayer:
    """Evaluates arms on recordings; makes each arm's controller once."""

    def __init__(self, plan: PredictionPlan) -> None:
        self._plan = plan
        self._controllers = ArmControllers(plan.experiment.task)
        name = plan.experiment.player.fallback
        self._asked: _Questions | None = None  # of the last recording: the next arm's is the same
        self._fallback = None if name is None else registry.create(plan.experiment.task, name)

    def prepare(self, sessions: Sequence[PredictionSession]) -> None:
        """Makes the controllers of these sessions."""
        for session in sessions:
            self._controllers.of(session.arm)

    def play(self, session: PredictionSession) -> PredictionRecord:
        """Evaluates one arm on one recording. A controller that fails makes that fail."""
        answers = _Answers(self._fallback)
        actual = np.empty((0, 0, 3))
        error: str | None = None
        try:
            _, actual, observations = self._questions(session.motion)
            controller = self._controllers.of(session.arm)
            if registry.needs_future(self._plan.experiment.task, session.arm.controller):
                controller = controller.for_session(session.motion)  # type: ignore[attr-defined]
            answers.ask(controller, observations, self._plan.experiment.predict.batch)
        except Exception as caught:  # whatever a controller raises belongs into its record
            error = f"{type(caught).__name__}: {caught}"
        return self._record(session, answers, actual, error)

    def _questions(self, motion: HeadMotion) -> _Questions:
        if self._asked is None or self._asked.motion is not motion:
            predict = self._plan.experiment.predict
            found = windows(motion, predict.history, predict.horizon, predict.step)
            earlier = self._plan.earlier.get(motion.name, ())
            self._asked = _Questions(
                motion,
                found.future,
                tuple(
                    observation_at(motion, index, predict.history, predict.horizon, earlier)
                    for index in found.index.tolist()
                ),
            )
        return self._asked

    def _record(
        self,
        session: PredictionSession,
        answers: _Answers,
        actual: FloatArray,
        error: str | None,
    ) -> PredictionRecord:
        is_usable = error is None and len(actual) > 0
        errors, angles = np.empty((0, 3)), np.empty(0)
        if is_usable:
            predicted = np.stack([predicted_deg(answer) for answer in answers.given])
            errors = absolute_error_deg(predicted, actual).mean(0)  # (horizon, 3)
            angles = great_circle_deg(predicted, actual).mean(0)  # (horizon,)
        roll, pitch, yaw = (tuple(axis.tolist()) for axis in errors.T)
        return PredictionRecord(
            arm=session.arm.label,
            controller=session.arm.controller,
            recording=session.motion.name,
            seed=self._plan.experiment.seed,
            driver="offline",
            status="ok" if error is None else "failed",
            error=error,
            samples=len(actual) if is_usable else 0,
            roll_mae_deg=roll,
            pitch_mae_deg=pitch,
            yaw_mae_deg=yaw,
            great_circle_deg=tuple(angles.tolist()),
            decisions_ms=tuple(answers.decisions_ms),
            fallbacks=answers.fallbacks,
        )


class _Answers:
    """The answers of one controller about one recording, and how long they took."""

    def __init__(self, fallback: registry.Controller | None) -> None:
        self.given: list[tuple[Viewport, ...]] = []
        self.decisions_ms: list[float] = []
        self.fallbacks = 0
        self._fallback = fallback

    def ask(
        self,
        controller: registry.Controller,
        observations: Sequence[ViewportObservation],
        batch: int,
    ) -> None:
        """Asks about all observations, several at once if the controller can and ``batch`` says so.

        Raises:
            InvalidViewports: what is no answer, without a fallback.
        """
        decide_many = getattr(controller, "decide_many", None)
        if batch == 1 or decide_many is None:
            for one in observations:
                self._ask_some((one,), lambda some: [controller.decide(some[0])])
            return
        for first in range(0, len(observations), batch):
            self._ask_some(observations[first : first + batch], decide_many)

    def _ask_some(
        self,
        observations: Sequence[ViewportObservation],
        decide: Callable[[Sequence[ViewportObservation]], Any],
    ) -> None:
        asked_s = time.perf_counter()
        answers = list(decide(observations))
        took_ms = (time.perf_counter() - asked_s) * MS_PER_S
        if len(answers) != len(observations):
            raise InvalidViewports(f"{len(answers)} answers to {len(observations)} questions")
        for observation, answer in zip(observations, answers, strict=True):
            self.decisions_ms.append(took_ms)
            self.given.append(self._checked(observation, answer))

    def _checked(self, observation: ViewportObservation, answer: object) -> tuple[Viewport, ...]:
        try:
            return check_viewports(answer, horizon=observation.horizon)
        except InvalidViewports:
            if self._fallback is None:
                raise
        self.fallbacks += 1
        return check_viewports(self._fallback.decide(observation), horizon=observation.horizon)
