"""When jobs arrive: Poisson, in bursts, or as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

#: Mean gap between jobs in Decima's simulator (Mao et al., SIGCOMM 2019).
MEAN_GAP_MS = 25_000.0


class ArrivalError(ValueError):
    """Gaps or times that cannot be."""


class Arrivals(Protocol):
    """A way for jobs to arrive; the first comes at time 0 unless times were recorded."""

    def times_ms(self, rng: np.random.Generator) -> Iterator[float]:
        """Yields arrival times, drawing each only when the one before it has been used."""
        ...


@dataclass(frozen=True, slots=True)
class PoissonArrivals:
    """Independent gaps.

    Attributes:
        mean_gap_ms: their mean.
    """

    mean_gap_ms: float = MEAN_GAP_MS

    def __post_init__(self) -> None:
        _check_gap(self.mean_gap_ms)

    def times_ms(self, rng: np.random.Generator) -> Iterator[float]:
        """See :class:`Arrivals`."""
        now_ms = 0.0
        while True:
            yield now_ms
            now_ms += float(rng.exponential(self.mean_gap_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstyArrivals:
    """Bursts of a geometric number of jobs, with short gaps inside and long ones between.

    Attributes:
        mean_gap_ms: mean over all gaps.
        mean_burst: mean number of jobs of a burst, 1 or more.
        inner_gap_ms: mean gap inside a burst.
    """

    mean_gap_ms: float = MEAN_GAP_MS
    mean_burst: float = 5.0
    inner_gap_ms: float = 1000.0

    def __post_init__(self) -> None:
        _check_gap(self.mean_gap_ms)
        if not (self.mean_burst >= 1 and 0 <= self.inner_gap_ms <= self.mean_gap_ms):
            raise ArrivalError("needs mean_burst >= 1 and 0 <= inner_gap_ms <= mean_gap_ms")

    def times_ms(self, rng: np.random.Generator) -> Iterator[float]:
        """See :class:`Arrivals`."""
        # A gap in mean_burst lies between bursts.
        outer_gap_ms = self.mean_gap_ms + (self.mean_burst - 1) * (
            self.mean_gap_ms - self.inner_gap_ms
        )
        now_ms = 0.0
        while True:
            yield now_ms
            is_last = rng.random() * self.mean_burst < 1
            now_ms += float(rng.exponential(outer_gap_ms if is_last else self.inner_gap_ms))


@dataclass(frozen=True, slots=True)
class RecordedArrivals:
    """Given times.

    Attributes:
        recorded_ms: the times, never falling.
    """

    recorded_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times_ms(self.recorded_ms)

    def times_ms(self, rng: np.random.Generator) -> Iterator[float]:
        """See :class:`Arrivals`."""
        del rng
        return iter(self.recorded_ms)


def check_times_ms(times_ms: Sequence[float]) -> None:
    """Raises :class:`ArrivalError` unless the times are 0 or more and never fall."""
    if any(not time_ms >= 0 for time_ms in times_ms[:1]):
        raise ArrivalError(f"the first job arrives at {times_ms[0]} ms")
    for place, (before, after) in enumerate(itertools.pairwise(times_ms), start=1):
        if not after >= before:
            raise ArrivalError(f"job {place} arrives at {after} ms, after {before} ms")


def _check_gap(mean_gap_ms: float) -> None:
    if not 0 <= mean_gap_ms < float("inf"):
        raise ArrivalError(f"a mean gap of {mean_gap_ms} ms; it must be 0 or more")
