"""Second attempts for slow tasks, as Spark decides on them (TaskSetManager, spark.speculation.*).

Spark looks every 100 ms; here a timer fires when the next task becomes slow.
"""

from __future__ import annotations

import bisect
import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """When a task is slow.

    Attributes:
        quantile: share of the stage's tasks that must have finished first.
        multiplier: a task is slow beyond this multiple of their median duration.
    """

    quantile: float = 0.75
    multiplier: float = 1.5

    def __post_init__(self) -> None:
        if not (0 < self.quantile <= 1 and self.multiplier >= 1):
            raise ValueError("needs 0 < quantile <= 1 and multiplier >= 1")


@dataclass(slots=True)
class _Attempt:
    stage: int
    task: int
    began_ms: float
    is_second: bool


class Speculation:
    """Keeps the attempts that run, and how long those of each stage took."""

    def __init__(self, config: SpeculationConfig) -> None:
        self._config = config
        self._attempts: dict[int, _Attempt] = {}  # by executor, in the order they began
        self._took_ms: dict[int, list[float]] = {}  # by stage, sorted
        self._doubled: set[tuple[int, int]] = set()  # tasks with a second attempt, begun or not
        self._timers: dict[int, float] = {}  # by stage

    def begin(self, executor: int, stage: int, task: int, now_ms: float) -> None:
        """An attempt begins."""
        is_second = any((one.stage, one.task) == (stage, task) for one in self._attempts.values())
        self._attempts[executor] = _Attempt(stage, task, now_ms, is_second)

    def finish(self, executor: int, now_ms: float) -> int | None:
        """An attempt finishes; returns the executor of the other attempt, if one runs."""
        ended = self._attempts.pop(executor)
        bisect.insort(self._took_ms.setdefault(ended.stage, []), now_ms - ended.began_ms)
        self._doubled.discard((ended.stage, ended.task))
        return self._twin(ended)

    def stop(self, executor: int) -> bool:
        """An attempt ends without a result; returns whether its task must be begun anew.

        It need not where another attempt runs or waits for an executor.
        """
        ended = self._attempts.pop(executor)
        was_doubled = (ended.stage, ended.task) in self._doubled
        self._doubled.discard((ended.stage, ended.task))
        return not was_doubled

    def slow_tasks(
        self, stage: int, *, tasks: int, finished: int, now_ms: float
    ) -> tuple[list[int], float | None]:
        """Tasks that are to get a second attempt now, and when to look again, if at all."""
        if self._timers.get(stage, math.inf) <= now_ms:
            del self._timers[stage]
        if finished >= tasks or finished < max(1, math.floor(self._config.quantile * tasks)):
            return [], None
        limit_ms = self._config.multiplier * statistics.median(self._took_ms[stage])
        slow: list[int] = []
        next_ms = math.inf
        for one in self._attempts.values():
            if one.stage != stage or one.is_second or (stage, one.task) in self._doubled:
                continue
            slow_from_ms = one.began_ms + limit_ms
            if slow_from_ms <= now_ms:
                slow.append(one.task)
            else:
                next_ms = min(next_ms, slow_from_ms)
        self._doubled.update((stage, task) for task in slow)
        if next_ms >= self._timers.get(stage, math.inf):
            return slow, None
        self._timers[stage] = next_ms
        return slow, next_ms

    def _twin(self, ended: _Attempt) -> int | None:
        for executor, one in self._attempts.items():
            if (one.stage, one.task) == (ended.stage, ended.task):
                return executor
        return None
