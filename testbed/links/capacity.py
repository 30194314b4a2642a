"""When a bottleneck has sent a packet: the integral of its trace, inverted.

With C the integral of the trace, a packet of L bytes that the bottleneck begins to send at t is out
at ``C⁻¹(C(t) + 8 L)``. Nothing drifts, and an outage is just a long step. The arithmetic is spelled
out operation by operation because ``_carrier.c`` repeats it to the last bit.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

BITS_PER_BYTE = 8
OPPORTUNITY_BYTES = 1504  # of Mahimahi: a packet of 1,500 bytes and the header of its TUN device
TUN_HEADER_BYTES = 4


class Capacity(Protocol):
    """What sends packets, one after the other; times are those of one clock, in seconds."""

    def finish(self, size_bytes: int, begins_s: float) -> float:
        """When a packet is out that begins to be sent at ``begins_s``; times must not decrease."""
        ...

    def bits_until(self, at_s: float) -> float:
        """Bits that can be sent until ``at_s``, from some fixed moment on."""
        ...

    def resume(self, bits: float, begins_s: float) -> float:
        """When ``bits`` are out that are left of a packet as the capacity takes over."""
        ...


class ConstantRate:
    """The same rate all the time; 0 is an outage."""

    def __init__(self, bits_per_s: float) -> None:
        self._bits_per_s = bits_per_s

    def finish(self, size_bytes: int, begins_s: float) -> float:
        """See :class:`Capacity`."""
        return self.resume(float(size_bytes * BITS_PER_BYTE), begins_s)

    def bits_until(self, at_s: float) -> float:
        """See :class:`Capacity`."""
        return at_s * self._bits_per_s

    def resume(self, bits: float, begins_s: float) -> float:
        """See :class:`Capacity`."""
        return begins_s + bits / self._bits_per_s if self._bits_per_s > 0.0 else math.inf


class TraceRate:
    """A rate that is constant between the edges of a trace, which repeats."""

    def __init__(
        self,
        edges_s: Sequence[float],
        cumulative_bits: Sequence[float],
        speeds: Sequence[float],
        *,
        origin_s: float,
    ) -> None:
        """Takes the trace as it is.

        Args:
            edges_s: ``(n + 1,)`` borders of its steps, from 0 on.
            cumulative_bits: ``(n + 1,)`` bits that can be sent until each.
            speeds: ``(n,)`` bits per second of each step.
            origin_s: when the first edge is, on the clock.
        """
        self._edges_s = edges_s
        self._cumulative_bits = cumulative_bits
        self._speeds = speeds
        self._origin_s = origin_s
        self._duration_s = edges_s[-1]
        self._total_bits = cumulative_bits[-1]

    def finish(self, size_bytes: int, begins_s: float) -> float:
        """See :class:`Capacity`."""
        return self.resume(float(size_bytes * BITS_PER_BYTE), begins_s)

    def resume(self, bits: float, begins_s: float) -> float:
        """See :class:`Capacity`."""
        edges, cumulative, speeds = self._edges_s, self._cumulative_bits, self._speeds
        within = (begins_s - self._origin_s) % self._duration_s
        step = min(bisect_right(edges, within), len(speeds)) - 1
        have = cumulative[step] + (within - edges[step]) * speeds[step] + bits
        passes, rest = divmod(have, self._total_bits)
        if rest == 0.0 and passes > 0.0:  # with the last bit of a pass, not behind its outages
            passes, rest = passes - 1.0, self._total_bits
        left = max(bisect_left(cumulative, rest), 1) - 1
        missing = rest - cumulative[left]
        ends = edges[left] + (missing / speeds[left] if missing > 0.0 else 0.0)
        took = passes * self._duration_s + ends - within
        return begins_s + (took if took > 0.0 else 0.0)

    def bits_until(self, at_s: float) -> float:
        """See :class:`Capacity`."""
        passes, within = divmod(at_s - self._origin_s, self._duration_s)
        step = min(bisect_right(self._edges_s, within), len(self._speeds)) - 1
        have = self._cumulative_bits[step] + (within - self._edges_s[step]) * self._speeds[step]
        return passes * self._total_bits + have


class Opportunities:
    """Delivery opportunities as in Mahimahi (Netravali et al., USENIX ATC 2015).

    At each, what waits may take ``OPPORTUNITY_BYTES``; what is left of it when nothing waits is
    lost.
    """

    def __init__(self, times_s: Sequence[float], duration_s: float, *, origin_s: float) -> None:
        """Takes the opportunities of one pass.

        Args:
            times_s: ``(n,)`` when they are, not decreasing, each above 0 and up to ``duration_s``.
            duration_s: after which they repeat.
            origin_s: when a pass begins, on the clock.
        """
        self._times_s = times_s
        self._duration_s = duration_s
        self._origin_s = origin_s
        self._pass = 0.0
        self._next = 0
        self._left_bytes = float(OPPORTUNITY_BYTES)

    def finish(self, size_bytes: int, begins_s: float) -> float:
        """See :class:`Capacity`."""
        return self._take(float(size_bytes + TUN_HEADER_BYTES), begins_s)

    def resume(self, bits: float, begins_s: float) -> float:
        """See :class:`Capacity`."""
        return self._take(math.ceil(bits / BITS_PER_BYTE), begins_s)

    def bits_until(self, at_s: float) -> float:
        """See :class:`Capacity`; counts whole opportunities."""
        passes, within = divmod(at_s - self._origin_s, self._duration_s)
        count = passes * len(self._times_s) + bisect_right(self._times_s, within)
        return count * float(OPPORTUNITY_BYTES * BITS_PER_BYTE)

    def _at_s(self) -> float:
        return self._origin_s + (self._pass * self._duration_s + self._times_s[self._next])

    def _take(self, size: float, begins_s: float) -> float:
        if self._at_s() < begins_s:
            self._seek(begins_s)
        while size > self._left_bytes:
            size -= self._left_bytes
            self._step()
        self._left_bytes -= size
        return self._at_s()

    def _seek(self, begins_s: float) -> None:
        self._pass, within = divmod(begins_s - self._origin_s, self._duration_s)
        self._next = bisect_left(self._times_s, within)
        self._left_bytes = float(OPPORTUNITY_BYTES)
        if self._next == len(self._times_s):
            self._next, self._pass = 0, self._pass + 1.0
        if self._at_s() < begins_s:  # rounding
            self._step()

    def _step(self) -> None:
        self._next += 1
        if self._next == len(self._times_s):
            self._next, self._pass = 0, self._pass + 1.0
        self._left_bytes = float(OPPORTUNITY_BYTES)
