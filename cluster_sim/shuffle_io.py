"""Bytes between the agents of a live cluster, and how long the network takes with them.

A request is a line ``{"get": [[job, parent, child, holding, bytes], …]}``; the answer is a line
``{"bytes": total, "asked_s": …, "sent_s": …}`` and that many bytes, or ``{"error": …}``.

What counts is the time on the network: of the request, from when it is sent until the kernel of
the other side has it; of the bytes, from when they are given to the kernel there until the kernel
here has the last one. Linux says when that was (``SO_TIMESTAMPNS``, socket(7)). So a process that
waits for a core, as all do when many agents share a few, does not look like a slow network. Both
sides read one clock: they are on one machine. Connections are kept, so that their windows stay
open, and making them does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence

from cluster_sim.wire import MAX_LINE_BYTES, WireError, decode, encode

log = logging.getLogger(__name__)

SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>; its message has the same number
TIMESPEC = struct.Struct("@ll")
NS_PER_S = 1e9
ANCILLARY_BYTES = socket.CMSG_SPACE(TIMESPEC.size)
BLOCK_BYTES = 1 << 18
_BLOCK = memoryview(bytes(BLOCK_BYTES))

Rows = Sequence[Sequence[int]]


class SourceGone(ConnectionError):
    """The other side does not give what it was asked for."""


def _prepare(end: socket.socket) -> None:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def _receive(end: socket.socket) -> tuple[bytes, float]:
    """What has come, empty at the end of the stream, and when the last of it did; epoch."""
    data, ancillary, _, _ = end.recvmsg(BLOCK_BYTES, ANCILLARY_BYTES)
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(value)
            return data, seconds + nanoseconds / NS_PER_S
    return data, time.time()


class Source:
    """A connection to another agent, kept for the next question; one question at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Begins to connect."""
        self._loop = asyncio.get_running_loop()
        self._end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._on_done: Callable[[float | None], None] | None = None
        self._wanted = 0
        self._head: bytes | None = b""  # of the answer, as far as it is there; None: behind it
        self._asked_s = self._way_s = self._sent_s = 0.0
        self._question = b""
        self.got_bytes = 0
        self.is_open = True
        _prepare(self._end)
        code = self._end.connect_ex(address)
        self._problem = "" if code in (0, errno.EINPROGRESS) else os.strerror(code)
        self._is_connected = False
        self._loop.add_writer(self._end, self._connect)

    def ask(self, rows: Rows, on_done: Callable[[float | None], None]) -> None:
        """Asks for bytes.

        Args:
            rows: outputs and how much of each.
            on_done: is told the seconds that the network took, or None if they do not come; then
                the connection is closed.
        """
        self._on_done = on_done
        self._wanted, self.got_bytes = sum(row[-1] for row in rows), 0
        self._head = b""
        self._question = encode({"get": rows})
        if self._is_connected:
            self._send()

    def close(self) -> None:
        """Ends the connection; what is asked for does not come, and nobody is told."""
        self._on_done = None
        if self.is_open:
            self.is_open = False
            self._loop.remove_writer(self._end)
            self._loop.remove_reader(self._end)
            self._end.close()

    def fail(self) -> None:
        """Ends the connection; what is asked for does not come."""
        on_done = self._on_done
        self.close()
        if on_done is not None:
            on_done(None)

    def _connect(self) -> None:
        self._loop.remove_writer(self._end)
        if self._problem or self._end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.fail()
            return
        self._is_connected = True
        self._loop.add_reader(self._end, self._read)
        if self._question:
            self._send()

    def _send(self) -> None:
        """Questions are small, and the connection is idle: the kernel takes one as a whole."""
        question, self._question = self._question, b""
        self._asked_s = time.time()
        try:
            is_sent = self._end.send(question) == len(question)
        except OSError:
            is_sent = False
        if not is_sent:
            self.fail()

    def _read(self) -> None:
        try:
            data, came_s = _receive(self._end)
            if not data or self._on_done is None:
                raise SourceGone("the other side has nothing more to say")
            self._take(data)
        except BlockingIOError:
            return
        except (OSError, LookupError, TypeError, ValueError):
            self.fail()
            return
        if self._head is None and self.got_bytes == self._wanted:
            # Clocks of two processes agree, but both stamps of a way may be of the same moment.
            took_s = max(self._way_s, 0.0) + max(came_s - self._sent_s, 0.0)
            on_done, self._on_done = self._on_done, None
            on_done(took_s)

    def _take(self, data: bytes) -> None:
        size = len(data)
        if self._head is not None:
            head, newline, _ = (self._head + data).partition(b"\n")
            if not newline:
                self._head = head
                if len(head) > MAX_LINE_BYTES:
                    raise WireError("an answer without an end")
                return
            size -= len(head) + 1 - len(self._head)
            answer = decode(head)
            if answer.get("bytes") != self._wanted:
                raise SourceGone(str(answer))
            self._way_s = float(answer["asked_s"]) - self._asked_s
            self._sent_s = float(answer["sent_s"])
            self._head = None
        self.got_bytes += size
        if self.got_bytes > self._wanted:
            raise WireError(f"{self.got_bytes} bytes; {self._wanted} were asked for")


class ByteServer:
    """Serves bytes to other agents."""

    def __init__(self, listener: socket.socket, refuse: Callable[[Rows], str | None]) -> None:
        """Begins to serve.

        Args:
            listener: where others come to; closed at the end.
            refuse: says why these bytes cannot be served; None: they can.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._refuse = refuse
        self._guests: set[_Guest] = set()
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Ends all connections."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for guest in list(self._guests):
            guest.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            end, _ = self._listener.accept()
            _prepare(end)
            self._guests.add(_Guest(end, self._refuse, self._guests.discard))


class _Guest:
    """Another agent that asks for bytes."""

    def __init__(
        self,
        end: socket.socket,
        refuse: Callable[[Rows], str | None],
        on_end: Callable[[_Guest], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._end, self._refuse, self._on_end = end, refuse, on_end
        self._unread = b""
        self._head = b""
        self._left = 0
        self._loop.add_reader(end, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._end)
        self._loop.remove_writer(self._end)
        self._end.close()
        self._on_end(self)

    def _read(self) -> None:
        try:
            data, came_s = _receive(self._end)
            if not data:
                raise SourceGone("it has gone")
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._answer(line, came_s)
            if len(self._unread) > MAX_LINE_BYTES:
                raise WireError("a question without an end")
        except BlockingIOError:
            return
        except (OSError, LookupError, TypeError, ValueError):  # it is gone, or is no agent
            self.close()

    def _answer(self, line: bytes, came_s: float) -> None:
        if self._head or self._left:
            raise WireError("a question before the last answer is there")
        rows = decode(line).get("get")
        if not isinstance(rows, list):
            raise WireError("no question")
        if (problem := self._refuse(rows)) is not None:
            self._head = encode({"error": problem})
        else:
            self._left = sum(row[-1] for row in rows)
            stamps = {"bytes": self._left, "asked_s": came_s, "sent_s": time.time()}
            self._head = json.dumps(stamps).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        try:
            while self._head or self._left:
                block = min(self._left, BLOCK_BYTES)
                head = len(self._head)
                sent = self._end.sendmsg((self._head, _BLOCK[:block]))
                self._head = self._head[sent:]
                self._left -= max(sent - head, 0)
        except BlockingIOError:
            self._loop.add_writer(self._end, self._send)
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._end)
