"""Paces bytes after a trace without any link: what ``testbed watch`` falls back to.

A token bucket that the trace fills: bytes go when a link of that rate would have sent the last of
them, one after the other whoever wants them. What is offered while nobody sends is lost. There is
no queue, no delay and no loss, and the sender's TCP sees none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from player.trace import Trace

BITS_PER_BYTE = 8
#: How much a transfer may make up for that could not go on time because a timer was late.
LATE_S = 0.5


class TracePace:
    """The rate of a trace, shared by all that send; unlimited until it is started."""

    def __init__(self, trace: Trace, start_s: float, *, clock: Callable[[], float]) -> None:
        """Args are the trace and where in it the session begins.

        Args:
            trace: says how fast.
            start_s: position in the trace at :meth:`start`.
            clock: seconds, from any origin.
        """
        self._trace = trace
        self._start_s = start_s
        self._clock = clock
        self._began_s: float | None = None
        self._used_bits = float(trace.bits_until(start_s))  # of what the trace offers from 0 on
        self._transfers = 0  # under way

    def start(self) -> float:
        """Begins with the first call; returns for how many seconds it has run."""
        if self._began_s is None:
            self._began_s = self._clock()
        return self._clock() - self._began_s

    @contextlib.contextmanager
    def transfer(self) -> Iterator[None]:
        """Something is being sent meanwhile."""
        if self._transfers == 0:
            self._lose_until(self._now_s())
        self._transfers += 1
        try:
            yield
        finally:
            self._transfers -= 1

    def wait_s(self, size_bytes: int) -> float:
        """How long to wait until so many bytes may go; they count as sent from then on."""
        if self._began_s is None:
            return 0.0
        now_s = self._now_s()
        self._lose_until(now_s - LATE_S)
        self._used_bits += size_bytes * BITS_PER_BYTE
        return max(float(self._trace.time_of_bits(self._used_bits)) - now_s, 0.0)

    async def pass_on(self, size_bytes: int) -> None:
        """Returns when so many bytes may go."""
        await asyncio.sleep(self.wait_s(size_bytes))

    def _now_s(self) -> float:
        """Position in the trace."""
        return self._start_s + (0.0 if self._began_s is None else self._clock() - self._began_s)

    def _lose_until(self, at_s: float) -> None:
        """What was offered before a position in the trace cannot be used any more."""
        self._used_bits = max(self._used_bits, float(self._trace.bits_until(at_s)))
