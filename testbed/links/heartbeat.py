"""A sign of life in shared memory, from a process to those who depend on it."""

from __future__ import annotations

import mmap
import struct
import time

from testbed.links.htb import ShapingError

BEAT_S = 0.25  # the process is to wake up this often at least
STALLED_S = 1.2  # since the last sign of life that was seen
BEAT = struct.Struct("=d")


class Heartbeat:
    """Made before the process is forked; each side has its own view of the same memory."""

    def __init__(self, who: str) -> None:
        """Makes it.

        Args:
            who: the process, as the message of an error begins.
        """
        self._who = who
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._last = b""
        self._seen_s = 0.0

    def beat(self, now_s: float) -> None:
        """Gives a sign of life; called by the process."""
        BEAT.pack_into(self._memory, 0, now_s)

    def check(self) -> None:
        """Looks for one; called by the others, about twice a second.

        Raises:
            ShapingError: there has not been a new one for ``STALLED_S``.
        """
        now_s, beat = time.monotonic(), self._memory[: BEAT.size]
        if beat != self._last:
            self._last, self._seen_s = beat, now_s
        elif now_s - self._seen_s >= STALLED_S:
            raise ShapingError(f"{self._who} stands still")

    def close(self) -> None:
        """Gives this side's view back."""
        self._memory.close()
