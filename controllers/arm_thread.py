"""One thread per arm that makes its decisions, so that a slow arm never holds up another.

What waits when the thread becomes free is answered in one call by controllers that offer
``decide_many``; nobody ever waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controllers.registry import Controller
from player.observation import ObservationError

MAX_BATCH = 64
CLOSE_S = 2.0  # a controller that hangs is left behind: the thread is a daemon

_log = logging.getLogger(__name__)


class ControllerFailed(RuntimeError):
    """The controller raised, or answered a batch with another number of decisions: its bug."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision and the seconds that the call took which made it."""

    decision: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class _Job:
    observation: Any
    future: asyncio.Future[Answer]
    loop: asyncio.AbstractEventLoop


class ArmThread:
    """Answers the questions to one controller, in the order in which they came."""

    def __init__(self, name: str, controller: Controller) -> None:
        self._name = name
        self._controller = controller
        self._is_batching = hasattr(controller, "decide_many")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"arm {name}", daemon=True)

    @property
    def backlog(self) -> int:
        """Questions that the thread has not taken up yet, given up ones included."""
        return self._jobs.qsize()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    async def close(self) -> None:
        """Ends the thread, unless the controller hangs."""
        self._jobs.put(None)
        until = time.monotonic() + CLOSE_S
        while self._thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.005)
        if self._thread.is_alive():
            _log.warning("controller %s is still busy after %s s, left behind", self._name, CLOSE_S)

    async def decide(self, observation: Any) -> Answer:
        """Waits for the decision; cancelling gives the question up.

        Raises:
            ObservationError: this controller cannot answer such an observation.
            ControllerFailed: the controller is broken.
        """
        loop = asyncio.get_running_loop()
        job = _Job(observation, loop.create_future(), loop)
        self._jobs.put(job)
        return await job.future

    def _work(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs, is_last = self._take_waiting(first) if self._is_batching else ([first], False)
            wanted = [job for job in jobs if not job.future.cancelled()]
            try:
                if wanted:
                    self._answer(wanted)
            except RuntimeError:  # the event loop is closed: nobody waits any more
                return
            if is_last:
                return

    def _take_waiting(self, first: _Job) -> tuple[list[_Job], bool]:
        jobs = [first]
        while len(jobs) < MAX_BATCH:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _answer(self, jobs: Sequence[_Job]) -> None:
        began = time.perf_counter()
        try:
            decisions = self._decide([job.observation for job in jobs])
        except Exception as error:
            if len(jobs) > 1:  # find the culprit, so that the others get their answers
                for job in jobs:
                    self._answer([job])
                return
            failed: Exception = error
            if not isinstance(error, ObservationError):
                _log.exception("controller %s failed on %r", self._name, jobs[0].observation)
                failed = ControllerFailed(f"{self._name}: {type(error).__name__}: {error}")
            jobs[0].loop.call_soon_threadsafe(_fail, jobs[0].future, failed)
            return
        seconds = time.perf_counter() - began
        for job, decision in zip(jobs, decisions, strict=True):
            job.loop.call_soon_threadsafe(_resolve, job.future, Answer(decision, seconds))

    def _decide(self, observations: list[Any]) -> Sequence[Any]:
        if not self._is_batching:
            return [self._controller.decide(observations[0])]
        decisions: Sequence[Any] = self._controller.decide_many(observations)  # type: ignore[attr-defined]
        if len(decisions) != len(observations):
            raise ControllerFailed(f"{len(decisions)} decisions for {len(observations)} questions")
        return decisions


def _resolve(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def _fail(future: asyncio.Future[Answer], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
