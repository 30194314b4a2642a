"""The loop that carries frames between TAP interfaces, through any number of pipes."""

from __future__ import annotations

import contextlib
import functools
import heapq
import os
import select
import time
from typing import Protocol

from testbed.links.measurement import NEVER_S
from testbed.links.pipe import FRAME_BYTES, Pipe, PipeRow, PipeSettings, TraceArrays

BATCH_FRAMES = 64  # read from one interface before it is the others' turn


class Carrier(Protocol):
    """What carries frames; pipes go by the numbers that :meth:`add` gives them.

    Attributes:
        name: ``compiled`` or ``python``.
    """

    name: str

    def add(self, source: int, sink: int, settings: PipeSettings, arrays: TraceArrays) -> int:
        """Begins to carry what can be read from one descriptor to another one.

        Returns:
            The number of the pipe; one that was removed may give its number to a new one.
        """
        ...

    def start(self, pipe: int, now_s: float) -> None:
        """See :meth:`Pipe.start`."""
        ...

    def change(
        self,
        pipe: int,
        now_s: float,
        *,
        bits_per_s: float | None = None,
        delay_s: float | None = None,
        loss: float | None = None,
    ) -> None:
        """See :meth:`Pipe.change`."""
        ...

    def finish(self, pipe: int, now_s: float) -> int:
        """Ends the last bin and carries no more through this pipe.

        Returns:
            How many packets came out from the beginning on.
        """
        ...

    def remove(self, pipe: int) -> None:
        """Forgets a pipe with all that is in it; its descriptors are the caller's."""
        ...

    def watch(self, descriptor: int) -> None:
        """Has :meth:`run` return when this can be read."""
        ...

    def unwatch(self, descriptor: int) -> None:
        """The opposite of :meth:`watch`."""
        ...

    def run(self, until_s: float) -> list[int]:
        """Carries frames until a time, or a bin is over, a pipe broke or a watched one is readable.

        Returns:
            The watched descriptors that can be read.
        """
        ...

    def take_rows(self) -> list[tuple[int, PipeRow]]:
        """The bins that are over, each with the number of its pipe, once."""
        ...

    def take_broken(self) -> list[tuple[int, str]]:
        """Pipes whose interfaces failed since the last call, and how; they carry no more."""
        ...


class PythonCarrier:
    """A carrier without anything compiled."""

    name = "python"

    def __init__(self) -> None:
        self._pipes: dict[int, tuple[Pipe, int]] = {}  # with its source
        self._by_source: dict[int, int] = {}
        self._next_s: dict[int, float] = {}
        self._calendar: list[tuple[float, int]] = []  # a heap; entries that _next_s denies are old
        self._broken: list[tuple[int, str]] = []
        self._epoll = select.epoll()
        self._last = -1

    def add(self, source: int, sink: int, settings: PipeSettings, arrays: TraceArrays) -> int:
        """See :class:`Carrier`."""
        pipe = Pipe(settings, arrays, functools.partial(os.write, sink))
        self._epoll.register(source, select.EPOLLIN)
        self._last += 1
        self._pipes[self._last] = pipe, source
        self._by_source[source] = self._last
        return self._last

    def start(self, pipe: int, now_s: float) -> None:
        """See :class:`Carrier`."""
        self._advance(pipe, now_s)
        self._pipes[pipe][0].start(now_s)
        self._advance(pipe, now_s)

    def change(
        self,
        pipe: int,
        now_s: float,
        *,
        bits_per_s: float | None = None,
        delay_s: float | None = None,
        loss: float | None = None,
    ) -> None:
        """See :class:`Carrier`."""
        self._advance(pipe, now_s)
        self._pipes[pipe][0].change(now_s, bits_per_s=bits_per_s, delay_s=delay_s, loss=loss)
        self._advance(pipe, now_s)

    def finish(self, pipe: int, now_s: float) -> int:
        """See :class:`Carrier`."""
        self._advance(pipe, now_s)
        self._pipes[pipe][0].finish(now_s)
        self._silence(pipe)
        return self._pipes[pipe][0].delivered

    def remove(self, pipe: int) -> None:
        """See :class:`Carrier`."""
        self._silence(pipe)
        self._broken = [(number, why) for number, why in self._broken if number != pipe]
        del self._pipes[pipe]

    def watch(self, descriptor: int) -> None:
        """See :class:`Carrier`."""
        self._epoll.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """See :class:`Carrier`."""
        self._epoll.unregister(descriptor)

    def run(self, until_s: float) -> list[int]:
        """See :class:`Carrier`."""
        calendar = self._calendar
        while True:
            now_s = time.monotonic()
            while calendar and calendar[0][0] <= now_s:
                due_s, pipe = heapq.heappop(calendar)
                if self._next_s.get(pipe) == due_s:
                    self._advance(pipe, now_s)
            has_rows = any(pipe.rows for pipe, _ in self._pipes.values())
            if now_s >= until_s or self._broken or has_rows:
                return []
            next_s = min(calendar[0][0], until_s) if calendar else until_s
            # epoll's own time-out has a resolution of a millisecond.
            select.select([self._epoll], [], [], max(next_s - time.monotonic(), 0.0))
            watched = []
            for descriptor, _ in self._epoll.poll(0):
                number = self._by_source.get(descriptor)
                if number is None:
                    watched.append(descriptor)
                else:
                    self._take(number, descriptor)
            if watched:
                return watched

    def take_rows(self) -> list[tuple[int, PipeRow]]:
        """See :class:`Carrier`."""
        taken = []
        for number, (pipe, _) in self._pipes.items():
            taken += [(number, row) for row in pipe.rows]
            pipe.rows.clear()
        return taken

    def take_broken(self) -> list[tuple[int, str]]:
        """See :class:`Carrier`."""
        broken, self._broken = self._broken, []
        return broken

    def _take(self, number: int, source: int) -> None:
        admit = self._pipes[number][0].admit
        try:
            for _ in range(BATCH_FRAMES):
                frame = os.read(source, FRAME_BYTES + 1)  # one more shows which were longer
                if not frame:
                    raise ConnectionResetError("the interface is gone")
                admit(frame, time.monotonic())
        except BlockingIOError:
            pass
        except OSError as error:
            self._break(number, f"cannot read: {error}")
            return
        self._advance(number, time.monotonic())

    def _advance(self, number: int, now_s: float) -> None:
        pipe, source = self._pipes[number]
        if self._by_source.get(source) != number:  # it broke
            return
        try:
            next_s = pipe.advance(now_s)
        except OSError as error:
            self._break(number, f"cannot deliver: {error}")
            return
        if next_s < NEVER_S and self._next_s.get(number) != next_s:
            heapq.heappush(self._calendar, (next_s, number))
        self._next_s[number] = next_s

    def _break(self, number: int, why: str) -> None:
        self._silence(number)
        self._broken.append((number, why))

    def _silence(self, number: int) -> None:
        source = self._pipes[number][1]
        self._next_s.pop(number, None)
        if self._by_source.get(source) == number:  # the descriptor may be another's by now
            del self._by_source[source]
            with contextlib.suppress(OSError):
                self._epoll.unregister(source)
