"""Links of Pensieve's kind side by side: downloads over any of them at once, as arrays.

:meth:`LinkTable.download` gives, to the last bit, what :meth:`PensieveLink.download` gives for each
download alone: the same operations on floats in the same order. Only the search in a trace is
another, because numpy searches one sorted array and here every download has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from player.link_models import BITS_PER_BYTE, PensieveLink
from player.trace import BITS_PER_MEGABIT, FloatArray

IntArray = NDArray[np.int64]

#: Cells of the search grid per value: more cost memory, fewer leave more values to compare.
CELLS_PER_VALUE = 2


class LinkTable:
    """Links, found by their number from 0."""

    def __init__(self, links: Sequence[PensieveLink]) -> None:
        """Lays out the traces one behind the other.

        Raises:
            ValueError: there is no link.
        """
        if not links:
            raise ValueError("a table of links needs at least one link")
        traces = [link.trace for link in links]
        self._payload_fraction = np.array([link.payload_fraction for link in links])
        self._rtt_s = np.array([link.rtt_s for link in links])
        self._duration_s = np.array([trace.duration_s for trace in traces])
        self._points = np.array([len(trace.times_s) for trace in traces])
        self._first = np.cumsum(self._points) - self._points
        self._times_s = np.concatenate([trace.times_s for trace in traces])
        # The last edge of a trace begins no step: its entry only keeps the arrays aligned.
        self._bits_per_s = np.concatenate(
            [np.append(trace.steps_mbps * BITS_PER_MEGABIT, 0.0) for trace in traces]
        )
        self._edges_s = _SortedRows([trace.edges_s for trace in traces])
        self._bits = _SortedRows([trace.bits_until(trace.edges_s) for trace in traces])
        self._pass_bits = self._bits.values[self._first + self._points - 1]

    def __len__(self) -> int:
        return len(self._points)

    def draw(self, sessions: int, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Draws for each session a link, and a point of its trace to start at, as Pensieve does.

        Returns:
            ``(B,)`` numbers of links and ``(B,)`` positions in their traces, seconds.
        """
        link = rng.integers(len(self), size=sessions)
        point = rng.integers(1, self._points[link])
        return link, self._times_s[self._first[link] + point - 1]

    def download(
        self, link: IntArray, size_bytes: IntArray, position_s: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Downloads ``size_bytes`` over each ``link`` from ``position_s`` on, ``(B,)`` each.

        Returns:
            ``(B,)`` seconds from request to last byte, and ``(B,)`` seconds by which the
            positions move on meanwhile.
        """
        wire_bits = size_bytes * BITS_PER_BYTE / self._payload_fraction[link]
        moved_s = self._transfer_s(link, wire_bits, position_s)
        return moved_s + self._rtt_s[link], moved_s

    def capacity_mbps(
        self, link: IntArray, position_s: FloatArray, ahead_s: FloatArray
    ) -> FloatArray:
        """Mean capacity of each ``link`` from a position on, which no controller may know.

        Args:
            link: ``(B,)``.
            position_s: ``(B,)`` positions in the traces.
            ahead_s: ``(H,)`` spans, above 0 seconds.

        Returns:
            ``(B, H)`` Mbit/s over each span; the traces start over at their ends.
        """
        links = np.repeat(link, len(ahead_s))
        start_s = np.repeat(position_s, len(ahead_s))
        spans_s = np.tile(ahead_s, len(link))
        bits = self._bits_until(links, start_s + spans_s) - self._bits_until(links, start_s)
        return np.asarray((bits / spans_s / BITS_PER_MEGABIT).reshape(len(link), -1))

    def _bits_until(self, link: IntArray, at_s: FloatArray) -> FloatArray:
        """As :meth:`Trace.bits_until`, but for rounding."""
        passes, within_s = _divmod(at_s, self._duration_s[link])
        step = self._edges_s.count(link, within_s, np.less_equal) - 1
        sent = (within_s - self._edges_s.values[step]) * self._bits_per_s[step]
        return np.asarray(passes * self._pass_bits[link] + self._bits.values[step] + sent)

    def _transfer_s(self, link: IntArray, bits: FloatArray, start_s: FloatArray) -> FloatArray:
        """As :meth:`Trace.transfer_s`."""
        duration_s = self._duration_s[link]
        _, start_s = _divmod(start_s, duration_s)
        step = self._edges_s.count(link, start_s, np.less_equal) - 1
        sent_bits = (
            self._bits.values[step]
            + (start_s - self._edges_s.values[step]) * self._bits_per_s[step]
        )
        passes, rest = _divmod(sent_bits + bits, self._pass_bits[link])
        # Nothing comes before the very start of a pass.
        step = np.maximum(self._bits.count(link, rest, np.less) - 1, self._first[link])
        missing = rest - self._bits.values[step]
        within = np.divide(
            missing, self._bits_per_s[step], out=np.zeros_like(missing), where=missing > 0
        )
        end_s = passes * duration_s + (self._edges_s.values[step] + within)
        return np.asarray(np.maximum(end_s - start_s, 0.0))


def _divmod(value: FloatArray, divisor: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``np.divmod`` of numbers from 0 on, most of which are below the divisor."""
    passes, rest = np.zeros_like(value), value.copy()
    over = np.flatnonzero(value >= divisor)
    passes[over], rest[over] = np.divmod(value[over], divisor[over])
    return passes, rest


class _SortedRows:
    """Sorted rows of different lengths, searched at many places at once.

    A grid of equal cells over each row says between which two values a place must lie. Only where
    these are not neighbours is there something to compare, by bisection. The cell of a number never
    falls when the number grows, rounded or not, so the grid is exact.
    """

    def __init__(self, rows: Sequence[FloatArray]) -> None:
        """Takes rows that begin with 0 and end above it."""
        self.values = np.concatenate(rows)
        counts = np.array([len(row) for row in rows])
        cells = counts * CELLS_PER_VALUE
        self._cells_per_unit = cells / np.array([row[-1] for row in rows])
        cells += 1  # of the last value
        self._first_cell = np.cumsum(cells) - cells
        cell = self._cell(np.repeat(np.arange(len(rows)), counts), self.values)
        self._values_before = np.searchsorted(cell, np.arange(cells.sum() + 1), side="left")

    def _cell(self, row: IntArray, value: FloatArray) -> IntArray:
        cell = (value * self._cells_per_unit[row]).astype(np.int64)
        return np.asarray(self._first_cell[row] + cell)

    def count(
        self,
        row: IntArray,
        place: FloatArray,
        is_before: Callable[[FloatArray, FloatArray], NDArray[np.bool_]],
    ) -> IntArray:
        """``(B,)`` number of values, those of earlier rows included, before a place in its row.

        Args:
            row: ``(B,)`` which row.
            place: ``(B,)`` numbers from 0 to the last value of the row.
            is_before: ``np.less``, or ``np.less_equal`` if values at the place count as well.
        """
        cell = self._cell(row, place)
        least, most = self._values_before[cell], self._values_before[cell + 1]
        unsure = np.flatnonzero(least < most)
        while len(unsure):
            low, high = least[unsure], most[unsure]
            middle = (low + high) // 2
            before = is_before(self.values[middle], place[unsure])
            least[unsure] = low = np.where(before, middle + 1, low)
            most[unsure] = high = np.where(before, high, middle)
            unsure = unsure[low < high]
        return least
