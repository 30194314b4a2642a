"""The process that has links of a live cluster follow their traces, made by the kernel.

One process replays all of them at once, and starts anew with every session; the classes of HTB stay
what they are, and are back at the mean rate when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from player.trace import Trace
from testbed.links.heartbeat import Heartbeat
from testbed.links.htb import HtbClass, ReceiveCounter
from testbed.links.process import LinkProcess
from testbed.links.replay import LinkReplay, Replay, replay_process


@dataclass(frozen=True, slots=True)
class TracedOutput:
    """One direction of a link.

    Attributes:
        trace: what it follows, in real time.
        shaped: the bottleneck.
        received: counts what comes out; read by nobody else.
    """

    trace: Trace
    shaped: HtbClass
    received: ReceiveCounter


class FabricReplay(LinkProcess):
    """Handle on the process; one at a time."""

    backend = "kernel"

    def __init__(self, outputs: Sequence[TracedOutput]) -> None:
        """Starts the process, which changes nothing before :meth:`start`."""
        self._outputs = outputs
        self._means = [one.shaped.bytes_per_s for one in outputs]
        replays = [Replay(one.trace, 0.0, one.shaped, one.received) for one in outputs]
        heart = Heartbeat("the process that replays the traces of the cluster's links")
        super().__init__(replay_process, LinkReplay(replays, (), heart), heart)

    def end(self) -> None:
        """Ends the process; all rates are what they were before.

        Raises:
            ShapingError: a rate was not taken, or the process died.
        """
        try:
            if self._has_begun:
                self.stop()
        finally:
            self.close()
        for output, mean in zip(self._outputs, self._means, strict=True):
            output.shaped.change(mean, is_busy=False)
