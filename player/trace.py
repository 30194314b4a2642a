"""Bandwidth over time, as a step function that repeats.

The convention is that of Pensieve's cooked traces (Mao et al., SIGCOMM 2017): of the points
``(t[i], rate[i])``, the rate ``rate[i]`` holds over ``(t[i-1], t[i]]``, and behind the last point
the trace starts over at time 0. The first point therefore gives no capacity of its own.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BITS_PER_MEGABIT = 1e6


class TraceError(ValueError):
    """A trace that cannot be replayed: times do not increase, a negative rate, no capacity."""


@dataclass(frozen=True)
class Trace:
    """A named bandwidth trace.

    Attributes:
        name: file name or generator label.
        times_s: ``(n,)`` points in time, seconds, strictly increasing from at least 0; n >= 2.
        rates_mbps: ``(n,)`` Mbit/s; entry i holds over ``(times_s[i-1], times_s[i]]``.
    """

    name: str
    times_s: FloatArray
    rates_mbps: FloatArray

    def __post_init__(self) -> None:
        times, rates = self.times_s, self.rates_mbps
        if times.ndim != 1 or times.shape != rates.shape or len(times) < 2:
            raise TraceError(f"{self.name}: needs at least two points with a time and a rate each")
        if not (np.isfinite(times).all() and np.isfinite(rates).all()):
            raise TraceError(f"{self.name}: a time or a rate is not a finite number")
        if times[0] < 0 or (np.diff(times) <= 0).any():
            raise TraceError(f"{self.name}: times must increase strictly and start at 0 or later")
        if (rates < 0).any():
            raise TraceError(f"{self.name}: a rate is negative")
        if self._cumulative_bits[-1] <= 0:
            raise TraceError(f"{self.name}: the trace has no capacity at all")

    @property
    def duration_s(self) -> float:
        """Length of one pass, seconds."""
        return float(self.times_s[-1])

    @property
    def mean_mbps(self) -> float:
        """Mean capacity over one pass, Mbit/s."""
        return float(self._cumulative_bits[-1] / self.duration_s / BITS_PER_MEGABIT)

    @cached_property
    def edges_s(self) -> FloatArray:
        """``(n,)`` borders of the steps over one pass, from 0 to ``duration_s``."""
        return np.concatenate(([0.0], self.times_s[1:]))

    @property
    def steps_mbps(self) -> FloatArray:
        """``(n-1,)`` rate of each step between two ``edges_s``, Mbit/s."""
        return self.rates_mbps[1:]

    @cached_property
    def _cumulative_bits(self) -> FloatArray:
        """``(n,)`` bits that can be sent from time 0 up to each edge."""
        steps = np.diff(self.edges_s) * self.steps_mbps * BITS_PER_MEGABIT
        return np.concatenate(([0.0], np.cumsum(steps)))

    def start_s(self, index: int) -> float:
        """Position in the trace, seconds, where Pensieve's simulator starts at point ``index``.

        Raises:
            TraceError: the index is not between 1 and the number of points - 1.
        """
        if not 1 <= index < len(self.times_s):
            raise TraceError(
                f"{self.name}: start index {index} is not between 1 and {len(self.times_s) - 1}"
            )
        return float(self.times_s[index - 1])

    def rate_mbps(self, at_s: float) -> float:
        """Rate in Mbit/s just after ``at_s`` (any time, the trace repeats)."""
        position = at_s % self.duration_s
        step = int(np.searchsorted(self.edges_s, position, side="right")) - 1
        return float(self.steps_mbps[min(step, len(self.steps_mbps) - 1)])

    def bits_until(self, at_s: FloatArray | float) -> FloatArray:
        """Bits that can be sent from time 0 until ``at_s`` seconds, passes added up."""
        passes, position = np.divmod(np.asarray(at_s, dtype=np.float64), self.duration_s)
        within = np.interp(position, self.edges_s, self._cumulative_bits)
        return np.asarray(passes * self._cumulative_bits[-1] + within)

    def time_of_bits(self, bits: FloatArray | float) -> FloatArray:
        """Inverse of :meth:`bits_until`: first time in seconds by which ``bits`` could be sent."""
        total = self._cumulative_bits[-1]
        passes, rest = np.divmod(np.asarray(bits, dtype=np.float64), total)
        # The left neighbour has fewer bits than asked, so the step between them is never flat.
        right = np.clip(np.searchsorted(self._cumulative_bits, rest, side="left"), 1, None)
        left = right - 1
        slope = self.steps_mbps[left] * BITS_PER_MEGABIT
        missing = rest - self._cumulative_bits[left]
        within = self.edges_s[left] + np.divide(
            missing, slope, out=np.zeros_like(missing), where=missing > 0
        )
        return np.asarray(passes * self.duration_s + within)

    @overload
    def transfer_s(self, bits: float, start_s: float) -> float: ...

    @overload
    def transfer_s(
        self, bits: FloatArray | float, start_s: FloatArray | float
    ) -> FloatArray | float: ...

    def transfer_s(
        self, bits: FloatArray | float, start_s: FloatArray | float
    ) -> FloatArray | float:
        """Seconds to send ``bits`` from ``start_s`` on, arrays element by element."""
        if isinstance(bits, float) and isinstance(start_s, float):
            return self._transfer_s(bits, start_s)
        start = np.asarray(start_s, dtype=np.float64)
        start_in_pass = start % self.duration_s  # keeps precision after many passes
        end = self.time_of_bits(self.bits_until(start_in_pass) + bits)
        return np.asarray(np.maximum(end - start_in_pass, 0.0))

    @cached_property
    def _lists(self) -> tuple[list[float], list[float], list[float]]:
        """Edges, bits until each edge, and bits/s of each step, for arithmetic without arrays."""
        speeds = self.steps_mbps * BITS_PER_MEGABIT
        return self.edges_s.tolist(), self._cumulative_bits.tolist(), speeds.tolist()

    def _transfer_s(self, bits: float, start_s: float) -> float:
        """:meth:`transfer_s` for one transfer: the same sums, many times faster than arrays."""
        edges, cumulative, speeds = self._lists
        start_s %= edges[-1]
        step = min(bisect.bisect_right(edges, start_s), len(speeds)) - 1
        passes, rest = divmod(
            cumulative[step] + (start_s - edges[step]) * speeds[step] + bits, cumulative[-1]
        )
        right = max(bisect.bisect_left(cumulative, rest), 1)
        missing = rest - cumulative[right - 1]
        within = edges[right - 1] + (missing / speeds[right - 1] if missing > 0 else 0.0)
        return max(passes * edges[-1] + within - start_s, 0.0)
