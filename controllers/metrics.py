"""Counters of the controller service in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

Arm = tuple[str, str]  # task, arm


@dataclass(slots=True)
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0


@dataclass(slots=True)
class Metrics:
    """Everything that ``/metrics`` tells.

    Attributes:
        in_flight: questions that wait for an answer.
    """

    in_flight: int = 0
    _requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _seconds: dict[Arm, _Histogram] = field(default_factory=dict)

    def count(self, arm: Arm, outcome: str) -> None:
        """Counts one answered question."""
        self._requests[(*arm, outcome)] += 1

    def observe(self, arm: Arm, seconds: float) -> None:
        """Notes how long one decision took."""
        histogram = self._seconds.setdefault(arm, _Histogram())
        histogram.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        histogram.total_s += seconds

    def text(self) -> str:
        """The exposition."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# HELP testbed_requests_total Questions by arm and outcome."
        yield "# TYPE testbed_requests_total counter"
        for (task, arm, outcome), number in sorted(self._requests.items()):
            labels = f'{_labels(task, arm)},outcome="{outcome}"'
            yield f"testbed_requests_total{{{labels}}} {number}"
        yield "# HELP testbed_in_flight Questions that wait for an answer."
        yield "# TYPE testbed_in_flight gauge"
        yield f"testbed_in_flight {self.in_flight}"
        yield "# HELP testbed_decision_seconds Time that decisions took, waiting excluded."
        yield "# TYPE testbed_decision_seconds histogram"
        for (task, arm), histogram in sorted(self._seconds.items()):
            labels = _labels(task, arm)
            bounds = [*map(str, BUCKETS_S), "+Inf"]
            sums = itertools.accumulate(histogram.counts)
            for bound, number in zip(bounds, sums, strict=True):
                yield f'testbed_decision_seconds_bucket{{{labels},le="{bound}"}} {number}'
            yield f"testbed_decision_seconds_sum{{{labels}}} {histogram.total_s!r}"
            yield f"testbed_decision_seconds_count{{{labels}}} {sum(histogram.counts)}"


def _labels(task: str, arm: str) -> str:
    return f'task="{_escape(task)}",arm="{_escape(arm)}"'


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
