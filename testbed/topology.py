"""The network of one session, built with Mininet inside a private network namespace.

::

    server ── s1 ══ client ── s2 ── controller

``══`` is the bottleneck that replays the trace, at the output of s1 towards the client. The way to
the controller is apart from it, so that questions never queue behind video. Mininet's own classes
do the building (Lantz et al., HotNets 2010); its limits for the whole machine are left alone. With
the user-space link, ``══`` is a pair of TAP interfaces, and so is s2 ── client if it has a delay.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mininet.link import Link
from mininet.log import lg
from mininet.net import Mininet
from mininet.node import OVSBridge
from mininet.nodelib import LinuxBridge

from testbed.links.backends import Backend, choose_backend, netem_options
from testbed.links.engine import EngineHandle, engine_process
from testbed.links.htb import ShapingError, disable_checksum_offload, disable_offloads, run_tool
from testbed.links.kernel import Replayer
from testbed.links.measurement import LinkMeasurement
from testbed.links.process import LinkPorts, Port, RunningLink
from testbed.links.spec import LinkSpec
from testbed.links.tap import open_tap
from testbed.links.userspace import TapPair, UserspaceLink
from testbed.namespaces import in_network_of, socket_in
from testbed.openvswitch import SwitchUnsupported, check_installed, private_openvswitch

log = logging.getLogger(__name__)

SWITCHES = ("linuxbridge", "ovs")
SERVER_ADDRESS = "10.0.0.1"
CLIENT_ADDRESS = "10.0.0.2"
CONTROLLER_ADDRESS = "10.0.1.1"
CLIENT_CONTROL_ADDRESS = "10.0.1.2"
PREFIX = 24
BOTTLENECK = "s1-eth2"  # the port of s1 that leads to the client
CONNECT_TIMEOUT_S = 10.0
PROGRAMS = {
    "mnexec": "mininet",
    "brctl": "bridge-utils",
    "ifconfig": "net-tools",
    "ip": "iproute2",
    "tc": "iproute2",
}


class TopologyError(RuntimeError):
    """The session's network could not be built as asked."""


class CongestionUnsupported(ValueError):
    """The kernel does not have such a congestion control; says which it has."""


@dataclass(frozen=True, slots=True)
class NetworkHost:
    """A host of the session's network.

    Attributes:
        pid: a process inside its network namespace.
        address: IP address as the client sees it.
    """

    pid: int
    address: str


class _PrivateMininet(Mininet):  # type: ignore[misc] # Mininet has no types
    """Mininet without its checks and limits: root is given, and the machine is not ours."""

    inited = True


class _TapLink(Link):  # type: ignore[misc] # Mininet has no types
    """A link of two TAP interfaces, each made in the network of its node."""

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
        near = in_network_of(node1.pid, open_tap, name1, mac1)
        try:
            self.taps = TapPair(near, in_network_of(node2.pid, open_tap, name2, mac2))
        except BaseException:
            os.close(near)
            raise


class SessionNetwork:
    """Server, client, controller and the links between them, in this network namespace.

    Call :func:`testbed.namespaces.unshare_network` first; there is one network per namespace.

    Attributes:
        server: serves the media.
        client: plays.
        controller: decides.
        backend: what makes the bottleneck.
    """

    server: NetworkHost
    client: NetworkHost
    controller: NetworkHost
    backend: str

    def __init__(
        self,
        link: LinkSpec,
        *,
        controller_delay_ms: float = 0.0,
        switch: str = "linuxbridge",
        congestion: str = "cubic",
        engine: EngineHandle | None = None,
    ) -> None:
        """Notes what is asked; nothing is built before the context is entered.

        Args:
            link: the bottleneck.
            controller_delay_ms: one-way delay between client and controller.
            switch: ``linuxbridge`` or ``ovs``.
            congestion: TCP congestion control on all hosts.
            engine: carries the packets of user-space links; None: one of its own.
        """
        self._link = link
        self._controller_delay_ms = controller_delay_ms
        self._switch = switch
        self._congestion = congestion
        self._engine = engine
        self._needs_checksums = False  # a switch in user space drops packets without
        self._cleanup = contextlib.ExitStack()
        self._replayer: RunningLink | None = None

    def check(self) -> Backend:
        """Checks that this machine can make such a network; needs a sandbox, but builds nothing.

        Returns:
            What will make the bottleneck, and why.

        Raises:
            LinkUnsupported: this machine cannot make the link.
            SwitchUnsupported: this machine cannot make the switch.
            CongestionUnsupported: the kernel does not have the congestion control.
            TopologyError: a program is missing.
        """
        _check_programs()
        if self._switch not in SWITCHES:
            raise SwitchUnsupported(
                f"there is no switch {self._switch!r}; there are {', '.join(SWITCHES)}"
            )
        if self._switch == "ovs":
            check_installed()
        _check_congestion(self._congestion)
        return choose_backend(self._link, controller_delay_ms=self._controller_delay_ms)

    def __enter__(self) -> SessionNetwork:
        """Builds the network and tries it out.

        The thread that does this must live as long as the network: its processes end with it.

        Raises:
            LinkUnsupported, SwitchUnsupported, CongestionUnsupported: see :meth:`check`.
            TopologyError: the network does not work as asked.
            ShapingError: the kernel did not take the shaping.
        """
        self.backend = self.check().name
        try:
            self._build()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def start_replay(self) -> float:
        """Starts the trace; returns its ``time.monotonic()``."""
        return self._running_replayer().start()

    def stop_replay(self) -> LinkMeasurement:
        """Stops the trace and returns what the link did.

        Raises:
            ShapingError: the link did not follow the trace.
        """
        return self._running_replayer().stop()

    def check_alive(self) -> None:
        """Looks after the bottleneck; to be called about twice a second during a session.

        Raises:
            ShapingError: what makes it died or stands still.
        """
        self._running_replayer().check_alive()

    def _running_replayer(self) -> RunningLink:
        if self._replayer is None:
            raise RuntimeError("the network is not up: use it as a context manager")
        return self._replayer

    def _build(self) -> None:
        silence_mininet()
        _disable_ipv6("all")  # or its neighbour discovery would be in the counts
        _disable_ipv6("default")
        kind = self._switch_kind()
        is_userspace = self.backend == "userspace"
        media_kind = _TapLink if is_userspace else None
        control_kind = _TapLink if is_userspace and self._controller_delay_ms else None
        net = _PrivateMininet(controller=None, autoStaticArp=True)
        self._cleanup.callback(_stop, net)
        server = net.addHost("server", ip=f"{SERVER_ADDRESS}/{PREFIX}")
        client = net.addHost("client", ip=f"{CLIENT_ADDRESS}/{PREFIX}")
        controller = net.addHost("controller", ip=f"{CONTROLLER_ADDRESS}/{PREFIX}")
        media, control = net.addSwitch("s1", **kind), net.addSwitch("s2", **kind)
        net.addLink(server, media)
        media_link = net.addLink(media, client, cls=media_kind)
        net.addLink(controller, control)
        control_link = net.addLink(
            control,
            client,
            cls=control_kind,
            params2={"ip": f"{CLIENT_CONTROL_ADDRESS}/{PREFIX}"},
        )
        net.build()
        net.start()
        self.server = NetworkHost(server.pid, SERVER_ADDRESS)
        self.client = NetworkHost(client.pid, CLIENT_ADDRESS)
        self.controller = NetworkHost(controller.pid, CONTROLLER_ADDRESS)
        self._configure_hosts()
        for interface in ("s1-eth1", BOTTLENECK):
            disable_offloads(interface)
        if is_userspace:
            engine = self._engine or self._cleanup.enter_context(engine_process())
            self._replayer = UserspaceLink(
                self._link,
                engine=engine,
                media=media_link.taps,
                controls=[control_link.taps] if control_kind else [],
                controller_delay_ms=self._controller_delay_ms,
                ports=LinkPorts(
                    down=Port(BOTTLENECK),
                    down_receiver=Port("client-eth0", client.pid),
                    down_senders=(Port("server-eth0", server.pid),),
                    up=Port("client-eth0", client.pid),
                    up_receiver=Port(BOTTLENECK),
                    up_exits=(Port("s1-eth1"),),
                ),
            )
            self._cleanup.callback(self._replayer.close)
        self._verify()
        if self._replayer is None:
            self._replayer = Replayer(
                self._link,
                interface=BOTTLENECK,
                client_pid=client.pid,
                client_interface="client-eth0",
            )
            self._cleanup.callback(self._replayer.close)

    def _switch_kind(self) -> dict[str, Any]:
        """How Mininet makes a switch of the kind that is asked."""
        if self._switch == "linuxbridge":
            return {"cls": LinuxBridge}
        datapath = self._cleanup.enter_context(private_openvswitch())
        self._needs_checksums = datapath == "user"
        return {"cls": OVSBridge, "datapath": datapath}

    def _configure_hosts(self) -> None:
        delay_ms = loss = control_ms = 0.0  # what netem has to do
        if self.backend == "kernel":
            assert isinstance(self._link.down.loss, float)
            delay_ms, loss = self._link.down.delay_ms, self._link.down.loss
            control_ms = self._controller_delay_ms
        down = netem_options(delay_ms, loss)
        up = netem_options(delay_ms)
        control = netem_options(control_ms)
        for host, interface, address, netem in (
            (self.server, "server-eth0", SERVER_ADDRESS, down),
            (self.client, "client-eth0", CLIENT_ADDRESS, up),
            (self.client, "client-eth1", CLIENT_CONTROL_ADDRESS, control),
            (self.controller, "controller-eth0", CONTROLLER_ADDRESS, control),
        ):
            in_network_of(
                host.pid, _configure_interface, interface, address, self._congestion, netem
            )
            if self._needs_checksums:
                in_network_of(host.pid, disable_checksum_offload, interface)

    def _verify(self) -> None:
        """Connects from the client to both hosts and looks at the congestion control in use.

        Raises:
            TopologyError: a host cannot be reached or uses another congestion control.
        """
        for host in (self.server, self.controller):
            with (
                socket_in(host.pid, host.address, 0) as listener,
                in_network_of(
                    self.client.pid,
                    socket.create_connection,
                    listener.getsockname(),
                    timeout=CONNECT_TIMEOUT_S,
                ) as near,
                listener.accept()[0] as far,
            ):
                for end in (near, far):
                    found = _congestion_of(end)
                    if found != self._congestion:
                        raise TopologyError(
                            f"asked for congestion control {self._congestion}, "
                            f"a connection to {host.address} uses {found}"
                        )


def _check_programs() -> None:
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        raise TopologyError(f"Mininet needs more programs: apt-get install {' '.join(missing)}")


def _check_congestion(congestion: str) -> None:
    available = _sysctl("tcp_available_congestion_control").read_text().split()
    if congestion not in available:
        raise CongestionUnsupported(
            f"congestion control {congestion!r} is not one of {', '.join(sorted(available))}; "
            f"more can be had with: sudo modprobe tcp_{congestion}"
        )


def _sysctl(name: str) -> Path:
    return Path("/proc/sys/net/ipv4") / name


def _disable_ipv6(interface: str) -> None:
    switch = Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
    if switch.exists():
        switch.write_text("1")


def _configure_interface(
    interface: str, address: str, congestion: str, netem: tuple[str, ...]
) -> None:
    """Sets one interface up from inside its host."""
    disable_offloads(interface)
    _disable_ipv6(interface)
    _sysctl("tcp_no_metrics_save").write_text("1")  # sessions do not learn from each other
    try:
        _sysctl("tcp_congestion_control").write_text(congestion)
    except PermissionError:
        # Only root of the whole machine may choose one that is not in its
        # tcp_allowed_congestion_control; a route may name any.
        network = address.rsplit(".", 1)[0] + f".0/{PREFIX}"
        route = ("dev", interface, "proto", "kernel", "scope", "link", "src", address)
        run_tool("ip", "route", "change", network, *route, "congctl", congestion)
    if netem:
        run_tool("tc", "qdisc", "add", "dev", interface, "root", "netem", *netem)


def _congestion_of(end: socket.socket) -> str:
    name = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.split(b"\0")[0].decode()


def silence_mininet() -> None:
    """Has Mininet's logger, which prints on stderr, report to ``logging`` instead."""
    lg.handlers[:] = [_Forward()]


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip()
        if text:
            log.log(max(record.levelno, logging.DEBUG), "mininet: %s", text)


def _stop(net: Any) -> None:
    """Stops Mininet's hosts and switches; works even where a host's shell has died."""
    for node in (*net.hosts, *net.switches):
        if node.shell is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.cleanup()
    for _, interface in socket.if_nameindex():
        if interface.startswith(tuple(switch.name for switch in net.switches)):
            with contextlib.suppress(ShapingError):  # a veth pair goes with either of its ends
                run_tool("ip", "link", "del", "dev", interface)
