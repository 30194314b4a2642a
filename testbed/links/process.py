"""A running link, and the process that keeps it running."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from testbed.links.heartbeat import Heartbeat
from testbed.links.htb import ShapingError
from testbed.links.measurement import LinkMeasurement, LinkSecond, measure
from testbed.links.spec import LinkChange
from testbed.namespaces import Child, fork_into

ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Port:
    """A network interface.

    Attributes:
        interface: its name.
        pid: a process in its network namespace; None: the namespace of the caller.
    """

    interface: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class LinkPorts:
    """Where a link sits in the network of its session.

    Attributes:
        down: output of the bottleneck towards the clients.
        down_receiver: where what comes down is counted.
        down_senders: outputs of the hosts that send down; what they send comes to ``down``.
        up: output of the bottleneck towards the servers.
        up_receiver: where what goes up is counted.
        up_exits: outputs behind ``up`` that lead to these hosts.
    """

    down: Port
    down_receiver: Port
    down_senders: tuple[Port, ...]
    up: Port
    up_receiver: Port
    up_exits: tuple[Port, ...]


class RunningLink(Protocol):
    """Handle on the link of one session.

    Attributes:
        backend: what makes the link; for the record.
    """

    backend: str

    def start(self) -> float:
        """Starts the replay; returns its ``time.monotonic()``."""
        ...

    def change(self, change: LinkChange) -> None:
        """Changes the running link now, whatever the change's ``at_s`` says; keeps its queue."""
        ...

    def check_alive(self) -> None:
        """Looks after the link while nothing is asked of it.

        Raises:
            ShapingError: what makes it died or stands still.
        """
        ...

    def stop(self) -> LinkMeasurement:
        """Stops the replay and returns what was measured.

        Raises:
            ShapingError: the link did not do what was asked.
        """
        ...

    def close(self) -> None:
        """Ends the link, whatever it does."""
        ...


class LinkProcess:
    """Handle on a process that replays a trace and measures.

    Attributes:
        backend: what makes the link; for the record.
    """

    backend: str

    def __init__(
        self,
        body: Callable[[Any, socket.socket, socket.socket], None],
        job: Any,
        heart: Heartbeat,
    ) -> None:
        """Starts the process in this network namespace.

        Args:
            body: takes the job, its end of a socket and this end, which it closes.
            job: handed over.
            heart: beats from the start of the replay on.
        """
        self._heart = heart
        self._has_begun = False
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self._child: Child = fork_into(None, body, job, theirs, self._control)

    def start(self) -> float:
        """Starts the replay; returns its ``time.monotonic()``."""
        self._send({"start": True})
        began: float = self._receive()["began_s"]
        self._has_begun = True
        return began

    def check_alive(self) -> None:
        """Looks after the process while nothing is asked of it.

        Raises:
            ShapingError: it died or stands still.
        """
        if not self._child.is_running:
            self._receive()  # its last words, if it had any
            raise ShapingError("the process that replays the trace ended")
        if self._has_begun:
            self._heart.check()

    def change(self, change: LinkChange) -> None:
        """See :class:`RunningLink`."""
        self._send({"change": dataclasses.asdict(change)})

    def stop(self) -> LinkMeasurement:
        """Stops the replay and returns what was measured.

        Raises:
            ShapingError: a rate was not taken, or the process died.
        """
        self._send({"stop": True})
        answer = self._receive()
        self._check_answer(answer)
        seconds = tuple(LinkSecond(**second) for second in answer["seconds"])
        return LinkMeasurement(measure(seconds, backend=self.backend), seconds)

    def _check_answer(self, answer: dict[str, Any]) -> None:
        """Compares what the process measured with what else is known; raises ShapingError."""

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> dict[str, Any]:
        received = bytearray()
        while not received.endswith(b"\n"):
            try:
                block = self._control.recv(1 << 16)
            except TimeoutError as error:
                raise ShapingError("the process that replays the trace hangs") from error
            except ConnectionResetError:
                block = b""
            if not block:
                raise ShapingError("the process that replays the trace died")
            received += block
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            raise ShapingError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._control.close()
        self._child.kill()
        self._heart.close()
