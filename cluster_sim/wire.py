"""Lines of JSON between the parts of a live cluster: one object per line, of limited length."""

from __future__ import annotations

import asyncio
import json
import logging
import selectors
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1 << 16

Message = dict[str, Any]


class WireError(ConnectionError):
    """What came is no message: the other side is broken, or is not what it should be."""


def encode(message: Message) -> bytes:
    """One line.

    Raises:
        WireError: it is longer than the other side takes.
    """
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise WireError(f"a message of {len(line)} bytes; {MAX_LINE_BYTES} is the most")
    return line


def decode(line: bytes) -> Message:
    """The message of a line.

    Raises:
        WireError: it is none.
    """
    try:
        message = json.loads(line)
    except ValueError as error:
        raise WireError(f"no JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise WireError(f"no JSON object: {line[:80]!r}")
    return message


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are not rounded up to whole milliseconds, as those of epoll are.

    A millisecond is 50 of the cluster's at a time scale of 0.02.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class Talk(asyncio.Protocol):
    """A connection over which messages come and go; small ones go out at once."""

    def __init__(
        self,
        on_message: Callable[[Talk, Message], None],
        on_end: Callable[[Talk], None] = lambda talk: None,
    ) -> None:
        """Notes who is told; what ``on_message`` raises ends the connection.

        Args:
            on_message: takes each message that comes.
            on_end: hears, once, that there are no more.
        """
        self._on_message, self._on_end = on_message, on_end
        self._transport: asyncio.Transport | None = None
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # asyncio does so itself only where the listening socket names its protocol.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        try:
            for line in lines:
                if self.is_closing:
                    return
                self._on_message(self, decode(line))
            if len(self._unread) > MAX_LINE_BYTES:
                raise WireError(f"a line of more than {MAX_LINE_BYTES} bytes")
        except (OSError, LookupError, TypeError, ValueError) as error:
            log.warning("%r", error)
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._on_end(self)

    @property
    def is_closing(self) -> bool:
        """Whether nothing more can be said."""
        return self._transport is None or self._transport.is_closing()

    def say(self, message: Message) -> None:
        """Sends a message; into the void if the connection has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def abort(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.abort()
