"""Lines of JSON between the parts of a live cluster: one object per line, of limited length."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

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


class Guests:
    """The connections that a server has; with them its tasks, which end when they are closed."""

    def __init__(self) -> None:
        self._writers: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    def take_in(self, writer: asyncio.StreamWriter) -> None:
        """Notes the connection that the current task serves; small messages go out at once."""
        task = asyncio.current_task()
        assert task is not None
        self._writers[task] = writer
        task.add_done_callback(self._writers.pop)
        with contextlib.suppress(OSError):  # closed already
            # asyncio does so itself where the listening socket names its protocol.
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def see_off(self) -> None:
        """Closes all connections and waits for their tasks."""
        tasks = list(self._writers)
        for writer in self._writers.values():
            writer.transport.abort()
        if tasks:
            await asyncio.wait(tasks)


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end of the stream, even where that cuts one off.

    Args:
        reader: made with ``limit=MAX_LINE_BYTES``.

    Raises:
        WireError: the line is too long, or no message.
    """
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError as error:
        raise WireError(f"a line of more than {MAX_LINE_BYTES} bytes") from error
    except ConnectionError:
        return None
    return decode(line)
