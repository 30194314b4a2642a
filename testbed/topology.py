"""The network of one session, built with Mininet inside a private network namespace.

::

    server ── s1 ══ client ── s2 ── controller

``══`` is the bottleneck that replays the trace, at the output of s1 towards the client. The way to
the controller is apart from it, so that questions never queue behind video. Several players, and
background traffic, share the bottleneck behind a switch of their own:

::

    server ─────┬─ s1 ══ s3 ─┬─ client0 ─┬─ s2 ── controller
    bgserver ───┘            ├─ client1 ─┘
                             └─ bgclient

Mininet's own classes do the building (Lantz et al., HotNets 2010); its limits for the whole machine
are left alone. With the user-space link, ``══`` is a pair of TAP interfaces, and so is every link
from s2 to a client if it has a delay.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mininet.log import lg
from mininet.net import Mininet
from mininet.node import OVSBridge
from mininet.nodelib import LinuxBridge

from testbed.host_tcp import PREFIX, HostTcp, congestion_of
from testbed.links.backends import Backend, choose_backend
from testbed.links.engine import EngineHandle, engine_process
from testbed.links.htb import ShapingError, disable_checksum_offload, disable_offloads, run_tool
from testbed.links.kernel import KernelLink
from testbed.links.measurement import LinkMeasurement
from testbed.links.mininet_link import TapLink
from testbed.links.netem import netem_options
from testbed.links.process import LinkPorts, Port, RunningLink
from testbed.links.spec import DirectionSpec, LinkSpec
from testbed.links.userspace import UserspaceLink
from testbed.namespaces import in_network_of, socket_in
from testbed.openvswitch import SwitchUnsupported, check_installed, private_openvswitch

log = logging.getLogger(__name__)

SWITCHES = ("linuxbridge", "ovs")
HOSTS = ("server", "client", "controller", "background")
SERVER_ADDRESS = "10.0.0.1"
BACKGROUND_SERVER_ADDRESS = "10.0.0.253"
BACKGROUND_CLIENT_ADDRESS = "10.0.0.254"
CLIENT_NETWORK = "10.0.0."  # clients follow the server
CONTROLLER_ADDRESS = "10.0.1.1"
CONTROL_NETWORK = "10.0.1."
FIRST_CLIENT = 2
MAX_CLIENTS = 250
BOTTLENECK = "s1-eth2"  # the port of s1 that leads to the clients
BEHIND_BOTTLENECK = "s3-eth1"  # with several clients: its other end
CONNECT_TIMEOUT_S = 10.0  # and two round trips
MS_PER_S = 1000.0
PROGRAMS = {
    "mnexec": "mininet",
    "brctl": "bridge-utils",
    "ifconfig": "net-tools",
    "ip": "iproute2",
    "tc": "iproute2",
}


class TopologyError(RuntimeError):
    """The session's network could not be built as asked."""


@dataclass(frozen=True, slots=True)
class NetworkHost:
    """A host of the session's network.

    Attributes:
        pid: a process inside its network namespace.
        address: IP address as the others see it.
        interfaces: their names, that of the way to the bottleneck first.
    """

    pid: int
    address: str
    interfaces: tuple[str, ...] = ()


class PrivateMininet(Mininet):  # type: ignore[misc] # Mininet has no types
    """Mininet without its checks and limits: root is given, and the machine is not ours."""

    inited = True


class SessionNetwork:
    """Server, players, controller and the links between them, in this network namespace.

    Call :func:`testbed.namespaces.unshare_network` first; there is one network per namespace.

    Attributes:
        server: serves the media.
        clients: play.
        controller: decides.
        background: both ends of the background traffic: client and server; None without.
        backend: what makes the bottleneck.
    """

    server: NetworkHost
    clients: tuple[NetworkHost, ...]
    controller: NetworkHost
    background: tuple[NetworkHost, NetworkHost] | None
    backend: str

    def __init__(
        self,
        link: LinkSpec,
        *,
        clients: int = 1,
        has_background: bool = False,
        controller_delay_ms: float = 0.0,
        switch: str = "linuxbridge",
        congestion: str = "cubic",
        hosts: Mapping[str, HostTcp] | None = None,
        engine: EngineHandle | None = None,
    ) -> None:
        """Notes what is asked; nothing is built before the context is entered.

        Args:
            link: the bottleneck.
            clients: players behind it.
            has_background: whether there are two hosts for background traffic.
            controller_delay_ms: one-way delay between each client and the controller.
            switch: ``linuxbridge`` or ``ovs``.
            congestion: TCP congestion control of hosts that are not in ``hosts``.
            hosts: TCP of some hosts, by the names in ``HOSTS``.
            engine: carries the packets of user-space links; None: one of its own.
        """
        self._link = link
        self._client_count = clients
        self._has_background = has_background
        self._controller_delay_ms = controller_delay_ms
        self._switch = switch
        self._tcp = dict.fromkeys(HOSTS, HostTcp(congestion=congestion)) | dict(hosts or {})
        self._engine = engine
        self._needs_checksums = False  # a switch in user space drops packets without
        self._cleanup = contextlib.ExitStack()
        self._running: RunningLink | None = None

    @property
    def client(self) -> NetworkHost:
        """The first player, or the only one."""
        return self.clients[0]

    def check(self) -> Backend:
        """Checks that this machine can make such a network; needs a sandbox, but builds nothing.

        Returns:
            What will make the bottleneck, and why.

        Raises:
            LinkUnsupported: this machine cannot make the link.
            SwitchUnsupported: this machine cannot make the switch.
            CongestionUnsupported, TcpSettingUnsupported: the kernel does not have what is asked.
            TopologyError: a program is missing, or there are too many clients.
        """
        check_programs()
        if not 1 <= self._client_count <= MAX_CLIENTS:
            raise TopologyError(f"{self._client_count} clients are not from 1 to {MAX_CLIENTS}")
        if self._switch not in SWITCHES:
            raise SwitchUnsupported(
                f"there is no switch {self._switch!r}; there are {', '.join(SWITCHES)}"
            )
        if self._switch == "ovs":
            check_installed()
        for name, tcp in self._tcp.items():
            tcp.check(name)
        return choose_backend(self._link, controller_delay_ms=self._controller_delay_ms)

    def __enter__(self) -> SessionNetwork:
        """Builds the network and tries it out.

        The thread that does this must live as long as the network: its processes end with it.

        Raises:
            LinkUnsupported, SwitchUnsupported, CongestionUnsupported, TcpSettingUnsupported: see
                :meth:`check`.
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
        return self._running_link().start()

    def stop_replay(self) -> LinkMeasurement:
        """Stops the trace and returns what the link did.

        Raises:
            ShapingError: the link did not follow the trace.
        """
        return self._running_link().stop()

    def check_alive(self) -> None:
        """Looks after the bottleneck; to be called about twice a second during a session.

        Raises:
            ShapingError: what makes it died or stands still.
        """
        self._running_link().check_alive()

    def _running_link(self) -> RunningLink:
        if self._running is None:
            raise RuntimeError("the network is not up: use it as a context manager")
        return self._running

    def _build(self) -> None:
        silence_mininet()
        disable_ipv6("all", "default")  # or its neighbour discovery would be in the counts
        kind = self._switch_kind()
        net = PrivateMininet(controller=None, autoStaticArp=True)
        self._cleanup.callback(stop_mininet, net)
        built = _BuiltNetwork.build(
            net,
            kind,
            clients=self._client_count,
            has_background=self._has_background,
            media_link=TapLink if self.backend == "userspace" else None,
            control_link=TapLink if self._has_control_taps else None,
        )
        net.build()
        net.start()
        self.server = built.host("server", SERVER_ADDRESS)
        self.clients = tuple(
            built.host(name, _client_address(number)) for number, name in enumerate(built.clients)
        )
        self.controller = built.host("controller", CONTROLLER_ADDRESS)
        self.background = None
        if self._has_background:
            self.background = (
                built.host("bgclient", BACKGROUND_CLIENT_ADDRESS),
                built.host("bgserver", BACKGROUND_SERVER_ADDRESS),
            )
        self._configure_hosts()
        for interface in built.media_ports():
            disable_offloads(interface)
        ports = self._ports()
        if self.backend == "userspace":
            self._run(
                UserspaceLink(
                    self._link,
                    engine=self._engine or self._cleanup.enter_context(engine_process()),
                    media=built.bottleneck.taps,
                    controls=[link.taps for link in built.controls if self._has_control_taps],
                    controller_delay_ms=self._controller_delay_ms,
                    ports=ports,
                )
            )
        self._verify()
        if self.backend == "kernel":  # a trace may begin with an outage
            self._run(KernelLink(self._link, ports=ports))

    @property
    def _has_control_taps(self) -> bool:
        return self.backend == "userspace" and self._controller_delay_ms > 0

    def _run(self, link: UserspaceLink | KernelLink) -> None:
        self._running = link
        self._cleanup.callback(link.close)

    def _switch_kind(self) -> dict[str, Any]:
        """How Mininet makes a switch of the kind that is asked."""
        if self._switch == "linuxbridge":
            return {"cls": LinuxBridge}
        datapath = self._cleanup.enter_context(private_openvswitch())
        self._needs_checksums = datapath == "user"
        return {"cls": OVSBridge, "datapath": datapath}

    def _ports(self) -> LinkPorts:
        """Where the bottleneck is."""
        senders, exits = [self.server], ["s1-eth1"]
        if self.background is not None:
            senders.append(self.background[1])
            exits.append("s1-eth3")
        if len(self.clients) == 1 and self.background is None:
            far = Port(self.client.interfaces[0], self.client.pid)
        else:
            far = Port(BEHIND_BOTTLENECK)
        return LinkPorts(
            down=Port(BOTTLENECK),
            down_receiver=far,
            down_senders=tuple(Port(host.interfaces[0], host.pid) for host in senders),
            up=far,
            up_receiver=Port(BOTTLENECK),
            up_exits=tuple(map(Port, exits)),
        )

    def _configure_hosts(self) -> None:
        """TCP of every host, and the delay of the way to the controller if netem makes it."""
        netem: tuple[str, ...] = ()
        if self.backend == "kernel":
            netem = netem_options(DirectionSpec(delay_ms=self._controller_delay_ms))
        for host in (self.server, *(self.background or ())):
            kind = "server" if host is self.server else "background"
            self._configure(kind, host, host.interfaces[0], host.address)
        for number, host in enumerate(self.clients):
            media, control = host.interfaces
            self._configure("client", host, media, host.address)
            self._configure("client", host, control, _control_address(number), netem)
        self._configure(
            "controller", self.controller, self.controller.interfaces[0], CONTROLLER_ADDRESS, netem
        )

    def _configure(
        self,
        kind: str,
        host: NetworkHost,
        interface: str,
        address: str,
        netem: tuple[str, ...] = (),
    ) -> None:
        tcp = self._tcp[kind]
        in_network_of(host.pid, _configure_interface, kind, interface, address, tcp, netem)
        if self._needs_checksums:
            in_network_of(host.pid, disable_checksum_offload, interface)

    def _verify(self) -> None:
        """Connects from every client to its hosts; raises TopologyError where that fails."""
        for client in self.clients:
            self._verify_way(client, "client", self.server, "server")
            self._verify_way(client, "client", self.controller, "controller")
        if self.background is not None:
            near, far = self.background
            self._verify_way(near, "background", far, "background")

    def _verify_way(
        self, client: NetworkHost, client_kind: str, host: NetworkHost, host_kind: str
    ) -> None:
        with contextlib.ExitStack() as ends:
            listener = ends.enter_context(socket_in(host.pid, host.address, 0))
            delays_ms = (spec.delay_ms + spec.jitter_ms for _, spec in self._link.directions)
            round_trip_s = (sum(delays_ms) + 2 * self._controller_delay_ms) / MS_PER_S
            timeout_s = CONNECT_TIMEOUT_S + 2 * round_trip_s
            listener.settimeout(timeout_s)  # the engine may die in between
            way = (listener.getsockname(), timeout_s)
            try:
                near = in_network_of(client.pid, socket.create_connection, *way)
                ends.enter_context(near)
                far = ends.enter_context(listener.accept()[0])
            except TimeoutError as error:
                raise TopologyError(
                    f"{client.address} got no connection to {host.address} within {timeout_s:g} s"
                ) from error
            for end, kind in ((near, client_kind), (far, host_kind)):
                asked, found = self._tcp[kind].congestion, congestion_of(end)
                if found != asked:
                    raise TopologyError(
                        f"asked for congestion control {asked} at the {kind}, "
                        f"a connection between it and {host.address} uses {found}"
                    )


@dataclass(frozen=True)
class _BuiltNetwork:
    """What Mininet was told to make."""

    net: Any
    clients: tuple[str, ...]
    bottleneck: Any
    controls: tuple[Any, ...]

    @classmethod
    def build(
        cls,
        net: Any,
        switch: Mapping[str, Any],
        *,
        clients: int,
        has_background: bool,
        media_link: type[TapLink] | None,
        control_link: type[TapLink] | None,
    ) -> _BuiltNetwork:
        """Adds hosts, switches and links; s1 leads to the server, the clients, and the others."""
        is_shared = clients > 1 or has_background
        names = tuple(f"client{number}" for number in range(clients)) if is_shared else ("client",)
        server = net.addHost("server", ip=f"{SERVER_ADDRESS}/{PREFIX}")
        players = [
            net.addHost(name, ip=f"{_client_address(number)}/{PREFIX}")
            for number, name in enumerate(names)
        ]
        controller = net.addHost("controller", ip=f"{CONTROLLER_ADDRESS}/{PREFIX}")
        media, control = net.addSwitch("s1", **switch), net.addSwitch("s2", **switch)
        shared = net.addSwitch("s3", **switch) if is_shared else None
        net.addLink(server, media)
        bottleneck = net.addLink(media, shared or players[0], cls=media_link)
        if has_background:
            far = net.addHost("bgserver", ip=f"{BACKGROUND_SERVER_ADDRESS}/{PREFIX}")
            near = net.addHost("bgclient", ip=f"{BACKGROUND_CLIENT_ADDRESS}/{PREFIX}")
            net.addLink(far, media)
            net.addLink(near, shared)
        net.addLink(controller, control)
        controls = []
        for number, player in enumerate(players):
            if shared is not None:
                net.addLink(player, shared)
            at = {"ip": f"{_control_address(number)}/{PREFIX}"}
            controls.append(net.addLink(control, player, cls=control_link, params2=at))
        return cls(net, names, bottleneck, tuple(controls))

    def host(self, name: str, address: str) -> NetworkHost:
        """A host that is up."""
        node = self.net[name]
        return NetworkHost(node.pid, address, tuple(sorted(node.nameToIntf)))

    def media_ports(self) -> list[str]:
        """Interfaces of this namespace that media passes."""
        names = {name for switch in self.net.switches for name in switch.nameToIntf}
        return sorted(name for name in names if name.startswith(("s1-", "s3-")))


def _client_address(number: int) -> str:
    return f"{CLIENT_NETWORK}{FIRST_CLIENT + number}"


def _control_address(number: int) -> str:
    return f"{CONTROL_NETWORK}{FIRST_CLIENT + number}"


def check_programs() -> None:
    """Looks for the programs that Mininet calls; raises TopologyError."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        raise TopologyError(f"Mininet needs more programs: apt-get install {' '.join(missing)}")


def disable_ipv6(*interfaces: str) -> None:
    """Keeps interfaces, ``all`` or ``default`` of this network namespace from speaking it."""
    for interface in interfaces:
        with contextlib.suppress(FileNotFoundError):  # this kernel does not have it
            Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")


def _configure_interface(
    kind: str, interface: str, address: str, tcp: HostTcp, netem: Sequence[str]
) -> None:
    """Sets one interface up from inside its host."""
    disable_offloads(interface)
    disable_ipv6(interface)
    tcp.apply(kind, interface, address)
    if netem:
        run_tool("tc", "qdisc", "add", "dev", interface, "root", "netem", *netem)


def silence_mininet() -> None:
    """Has Mininet's logger, which prints on stderr, report to ``logging`` instead."""
    lg.handlers[:] = [_Forward()]


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if text := record.getMessage().strip():
            log.log(max(record.levelno, logging.DEBUG), "mininet: %s", text)


def stop_mininet(net: Any) -> None:
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
