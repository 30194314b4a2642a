"""The link that the kernel makes."""

from __future__ import annotations

from player.trace import BITS_PER_MEGABIT
from testbed.links.htb import BITS_PER_BYTE, HtbClass, ReceiveCounter, clip_rate
from testbed.links.process import LinkProcess
from testbed.links.replay import Replay, replay_process
from testbed.links.spec import LinkSpec
from testbed.namespaces import in_network_of


class Replayer(LinkProcess):
    """Handle on the process that changes the rate of a link of the kernel."""

    backend = "kernel"

    def __init__(self, link: LinkSpec, *, interface: str, client_pid: int, client_interface: str):
        """Shapes the bottleneck and starts the process in this network namespace.

        Until the replay starts, the link has the mean rate of its trace.

        Args:
            link: what to replay.
            interface: the bottleneck, in this namespace.
            client_pid: a process in the client's namespace.
            client_interface: where the client receives.

        Raises:
            ShapingError: the bottleneck could not be set up.
        """
        assert link.down.trace is not None
        received = in_network_of(client_pid, ReceiveCounter, client_interface)
        rate = link.down.trace.mean_mbps * BITS_PER_MEGABIT / BITS_PER_BYTE
        packets = link.down.queue.packets
        shaped = HtbClass(interface, queue_packets=packets, bytes_per_s=clip_rate(rate))
        with shaped, received:
            replay = Replay(link.down.trace, link.down.start_s, shaped, received)
            super().__init__(replay_process, replay)
