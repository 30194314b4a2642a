"""Mininet links that go through the engine of the user-space link (Mininet: Lantz et al., 2010).

In a sandbox, or as root in a network namespace of one's own::

    with engine_process() as engine:
        link = functools.partial(TraceLink, engine=engine, spec=LinkSpec(down=DirectionSpec(…)))
        net = Mininet(topo, link=link, controller=None, switch=LinuxBridge)
        net.start()
        for link in net.links:
            link.running.start()
"""

from __future__ import annotations

import os
from typing import Any

from mininet.link import Link

from testbed.links.engine import EngineHandle
from testbed.links.process import LinkPorts, Port
from testbed.links.spec import LinkSpec
from testbed.links.tap import open_tap
from testbed.links.userspace import TapPair, UserspaceLink
from testbed.namespaces import in_network_of


class TapLink(Link):  # type: ignore[misc] # Mininet has no types
    """A link of two TAP interfaces, each made in the network of its node.

    Attributes:
        taps: their other ends; somebody must carry the frames.
    """

    taps: TapPair

    def makeIntfPair(  # noqa: N802 (Mininet's name)
        self,
        name1: str,
        name2: str,
        mac1: str,
        mac2: str,
        node1: Any,
        node2: Any,
        deleteIntfs: bool = True,  # noqa: N803
    ) -> None:
        """Called by Mininet in the place of making a veth pair."""
        near = in_network_of(node1.pid, open_tap, name1, mac1)
        try:
            self.taps = TapPair(near, in_network_of(node2.pid, open_tap, name2, mac2))
        except BaseException:
            os.close(near)
            raise


class TraceLink(TapLink):
    """A link that does what a ``LinkSpec`` says; down is from the first node to the second one.

    Attributes:
        running: starts, changes, measures and stops it.
    """

    def __init__(
        self, node1: Any, node2: Any, *, engine: EngineHandle, spec: LinkSpec, **options: Any
    ) -> None:
        """Makes the interfaces and hands them over to the engine.

        Args:
            node1: sends down.
            node2: receives what comes down.
            engine: carries the packets.
            spec: what happens to them.
            **options: as for ``mininet.link.Link``.
        """
        super().__init__(node1, node2, **options)
        near, far = (
            Port(interface.name, interface.node.pid) for interface in (self.intf1, self.intf2)
        )
        self.running = UserspaceLink(
            spec,
            engine=engine,
            media=self.taps,
            ports=LinkPorts(
                down=near,
                down_receiver=far,
                down_senders=(),
                up=far,
                up_receiver=near,
                up_exits=(),
            ),
        )

    def stop(self) -> None:
        """Called by Mininet at the end: the interfaces vanish with the engine's ends of them."""
        self.running.close()
        super().stop()
