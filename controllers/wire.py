"""Observations and decisions as JSON: the same frozen dataclasses as inside, checked by pydantic.

Types are strict (``"3"`` and ``3.0`` are no integers) and unknown keys forbidden; the meaning of a
well-formed observation is checked by the task itself.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic
import pydantic_core

from cluster_sim.observation import Assignment, ClusterView, check_cluster_view
from controllers.registry import TASKS, UnknownController
from player.observation import AbrObservation, ObservationError, check_observation
from player.viewport_observation import (
    Viewport,
    ViewportObservation,
    check_viewport_observation,
)

DEADLINE_HEADER = "X-Deadline-Ms"
KEEP_ALIVE_S = 3600.0  # a player's stall must not cost it a new connection
MILLISECONDS_PER_SECOND = 1000.0


class MalformedObservation(ValueError):
    """Not JSON, or JSON of another shape; ``field`` names the culprit ("" for the whole)."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ImpossibleObservation(MalformedObservation):
    """Well-formed, but no session could have made it."""


@dataclass(frozen=True)
class TaskWire:
    """How one task's questions and answers travel.

    Attributes:
        observation: adapter of the observation's dataclass.
        decision: adapter of the decision.
        check: raises ObservationError for impossible values.
    """

    observation: pydantic.TypeAdapter[Any]
    decision: pydantic.TypeAdapter[Any]
    check: Callable[[Any], None]

    def read_observation(self, body: bytes) -> Any:
        """The observation in ``body``.

        Raises:
            MalformedObservation: not JSON, a missing or unknown key, a wrong type.
            ImpossibleObservation: a value that cannot occur.
        """
        try:
            observation = self.observation.validate_json(body, strict=True)
        except pydantic.ValidationError as error:
            raise _explain(error) from None
        try:
            self.check(observation)
        except ObservationError as error:
            raise ImpossibleObservation(error.field, str(error)) from None
        return observation

    def write_observation(self, observation: Any) -> bytes:
        """JSON for ``observation``."""
        return self.observation.dump_json(observation)

    def read_decision(self, value: Any) -> Any:
        """The decision in a parsed answer; what is no decision is left for the player to refuse."""
        try:
            # By way of JSON, where strict means the same as for observations: an array is a tuple.
            return self.decision.validate_json(pydantic_core.to_json(value), strict=True)
        except ValueError:  # of pydantic, whatever it could not read or write
            return value

    def write_decision(self, decision: Any, decision_ms: float) -> bytes:
        """JSON of the answer.

        Raises:
            pydantic_core.PydanticSerializationError: the decision is nothing that JSON can carry.
        """
        answer = {"decision": decision, "decision_ms": decision_ms}
        return pydantic_core.to_json(answer, fallback=_plain_number)


@functools.cache
def task_wire(task: str) -> TaskWire:
    """The wire format of a task.

    Raises:
        UnknownController: no such task, or one that has no service.
    """
    if task == "abr":
        return TaskWire(
            pydantic.TypeAdapter(AbrObservation), pydantic.TypeAdapter(int), check_observation
        )
    if task == "viewport":
        return TaskWire(
            pydantic.TypeAdapter(ViewportObservation),
            pydantic.TypeAdapter(tuple[Viewport, ...]),
            check_viewport_observation,
        )
    if task == "scheduling":
        return TaskWire(
            pydantic.TypeAdapter(ClusterView), pydantic.TypeAdapter(Assignment), check_cluster_view
        )
    raise UnknownController(f"no wire format for task {task!r}; tasks are {', '.join(TASKS)}")


def _explain(error: pydantic.ValidationError) -> MalformedObservation:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    message = f"{field}: {first['msg']}" if field else first["msg"]
    value = first.get("input")
    if isinstance(value, float) and not math.isfinite(value):
        return ImpossibleObservation(field, message)
    return MalformedObservation(field, message)


def _plain_number(value: Any) -> int | float:
    """Numbers of numpy and the like."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no part of a decision")
