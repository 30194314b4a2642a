"""The user-space link: one process carries the packets of all links of a session.

Each link is a pair of TAP interfaces, one in the network of either end. The process (the engine)
reads a frame from one, asks ``testbed.links.packet_queue`` when it is to leave, and writes it into
the other at that time. It needs no queueing discipline of the kernel.

The engine counts what it hands over to the client; at the end the kernel's counter of that
interface must say the same, and no packet may have been dropped before it was read. The engine also
leaves a sign of life in shared memory, so that one that stands still is noticed at once.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from testbed.links.htb import ETHERNET_HEADER_BYTES, ReceiveCounter, ShapingError
from testbed.links.measurement import NEVER_S
from testbed.links.packet_queue import DeliveryBins, PacketQueue
from testbed.links.process import LinkProcess
from testbed.links.replay import REAL_TIME_PRIORITY
from testbed.links.spec import LinkSpec
from testbed.namespaces import in_network_of, set_timer_slack_ns

BATCH_PACKETS = 64
FRAME_BYTES = 2048
GROUP_ADDRESS = 0x01  # in the first byte of a frame
BEAT_S = 0.25
MISSED_CHECKS = 3  # that many in a row without a sign of life
MILLISECONDS_PER_S = 1000.0
CONTROL_BYTES = 1 << 16
BEAT = struct.Struct("=d")


@dataclass(frozen=True, slots=True)
class TapPair:
    """The two ends of a link: descriptors of TAP interfaces."""

    near: int
    far: int

    def close(self) -> None:
        """Closes both; the interfaces vanish unless another process holds them."""
        os.close(self.near)
        os.close(self.far)


class Pipe:
    """One direction: frames out of one TAP, at their time into another."""

    def __init__(self, source: int, sink: int, queue: PacketQueue) -> None:
        self.source = source
        self.queue = queue
        self.bins: DeliveryBins | None = None
        self.delivered = 0
        self._sink = sink
        self._waiting: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """Reads a batch of frames and schedules them."""
        source, admit, waiting = self.source, self.queue.admit, self._waiting
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH_PACKETS):
                frame = os.read(source, FRAME_BYTES)
                # What the switch itself says now and then, to all, would shift the numbers.
                can_be_lost = not frame[0] & GROUP_ADDRESS
                due_s = admit(len(frame) - ETHERNET_HEADER_BYTES, time.monotonic(), can_be_lost)
                if due_s is not None:
                    waiting.append((due_s, frame))

    def deliver(self) -> float:
        """Writes what is due; returns when the next frame is.

        Raises:
            ShapingError: the interface did not take a frame.
        """
        waiting, bins = self._waiting, self.bins
        while waiting:
            due_s, frame = waiting[0]
            now_s = time.monotonic()
            if due_s > now_s:
                return due_s
            waiting.popleft()
            try:
                os.write(self._sink, frame)
            except OSError as error:
                raise ShapingError(f"the user-space link cannot deliver: {error}") from error
            self.delivered += 1
            if bins is not None:
                bins.deliver(len(frame) - ETHERNET_HEADER_BYTES, due_s, now_s)
        return NEVER_S


class Engine:
    """Carries packets until it is told to stop."""

    def __init__(self, pipes: Sequence[Pipe], measured: Pipe, beat: mmap.mmap) -> None:
        """Notes what to carry.

        Args:
            pipes: all directions of all links.
            measured: the one that follows the trace; one of them.
            beat: shared memory for the signs of life.
        """
        self._pipes = pipes
        self._measured = measured
        self._beat = beat

    def run(self, control: socket.socket) -> dict[str, Any]:
        """Starts the trace at the first message on ``control``, ends at the second.

        Returns:
            The measured seconds, and how many packets were delivered in all.
        """
        pipes, measured = self._pipes, self._measured
        by_source = {pipe.source: pipe for pipe in pipes}
        watched = [control.fileno(), *by_source]
        while True:
            next_s = min([pipe.deliver() for pipe in pipes])
            now_s = time.monotonic()
            BEAT.pack_into(self._beat, 0, now_s)
            next_s = min(next_s, now_s + BEAT_S)
            if measured.bins is not None:
                measured.bins.pass_time(now_s)
                next_s = min(next_s, measured.bins.check_s())
            readable = select.select(watched, [], [], max(next_s - time.monotonic(), 0.0))[0]
            for descriptor in readable:
                if descriptor in by_source:
                    by_source[descriptor].take()
                elif not control.recv(CONTROL_BYTES):
                    raise SystemExit
                elif measured.bins is None:
                    _say(control, {"began_s": self._start()})
                else:
                    seconds = measured.bins.finish(time.monotonic())
                    return {
                        "seconds": [asdict(second) for second in seconds],
                        "delivered": measured.delivered,
                    }

    def _start(self) -> float:
        now_s = time.monotonic()
        for pipe in self._pipes:
            pipe.queue.start(now_s)
        self._measured.bins = DeliveryBins(self._measured.queue, now_s)
        return now_s


class UserspaceLink(LinkProcess):
    """Handle on the engine of one session."""

    backend = "userspace"

    def __init__(
        self,
        link: LinkSpec,
        *,
        media: TapPair,
        control: TapPair | None,
        controller_delay_ms: float,
        interface: str,
        client_pid: int,
        client_interface: str,
    ) -> None:
        """Starts the engine and closes this process's ends of the TAPs: they live and die with it.

        Args:
            link: the bottleneck.
            media: its ends: the switch's, the client's.
            control: ends of the link to the controller; None if something else makes it.
            controller_delay_ms: one-way delay of that link.
            interface: the bottleneck, in this namespace.
            client_pid: a process in the client's namespace.
            client_interface: where the client receives.
        """
        pipes = _pipes(link, media, control, controller_delay_ms / MILLISECONDS_PER_S)
        self._bottleneck = interface
        self._client = (client_pid, client_interface)
        self._beat = mmap.mmap(-1, mmap.PAGESIZE)
        self._last_beat = b""
        self._missed = 0
        super().__init__(engine_process, Engine(pipes, pipes[0], self._beat))
        for pair in filter(None, (media, control)):
            pair.close()

    def check_alive(self) -> None:
        """See :meth:`LinkProcess.check_alive`; also notices an engine that stands still.

        Raises:
            ShapingError: no sign of life in three calls in a row, which must be more than 0.25 s
                apart.
        """
        super().check_alive()
        beat = self._beat[: BEAT.size]
        self._missed = self._missed + 1 if beat == self._last_beat else 0
        self._last_beat = beat
        if self._missed >= MISSED_CHECKS:
            raise ShapingError("the engine of the user-space link stands still")

    def _check_answer(self, answer: dict[str, Any]) -> None:
        pid, interface = self._client
        counter = in_network_of(pid, ReceiveCounter, interface)
        with counter:
            received, _ = counter.read()
            unread = counter.read_unsent()
        near = ReceiveCounter(self._bottleneck)
        with near:
            unread += near.read_unsent()
        if received != answer["delivered"]:  # the interface is as old as the engine
            raise ShapingError(
                f"the user-space link delivered {answer['delivered']} packets, "
                f"the client's interface received {received}"
            )
        if unread:
            raise ShapingError(f"the user-space link was too slow to read {unread} packets")

    def close(self) -> None:
        """Ends the engine, whatever it does; its interfaces vanish."""
        super().close()
        self._beat.close()


def _pipes(
    link: LinkSpec, media: TapPair, control: TapPair | None, control_delay_s: float
) -> list[Pipe]:
    down, delay_s = link.down, link.down.delay_ms / MILLISECONDS_PER_S
    assert isinstance(down.loss, float)
    bottleneck = PacketQueue(
        down.trace,
        start_s=down.start_s,
        delay_s=delay_s,
        loss=down.loss,
        limit_packets=down.queue.packets,
        seed=down.seed,
    )
    pipes = [
        Pipe(media.near, media.far, bottleneck),
        Pipe(media.far, media.near, PacketQueue(delay_s=delay_s)),
    ]
    if control is not None:
        for source, sink in ((control.near, control.far), (control.far, control.near)):
            pipes.append(Pipe(source, sink, PacketQueue(delay_s=control_delay_s)))
    return pipes


def _say(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def engine_process(engine: Engine, control: socket.socket, parents_end: socket.socket) -> None:
    """Body of the process."""
    parents_end.close()  # or the end of the session could not be seen
    gc.disable()
    gc.freeze()
    set_timer_slack_ns(1)
    with contextlib.suppress(PermissionError):  # only root outside of user namespaces
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))
    try:
        _say(control, engine.run(control))
    except (OSError, RuntimeError) as error:
        _say(control, {"error": str(error)})
    else:
        control.recv(CONTROL_BYTES)  # with this process its interfaces vanish: wait to be ended
