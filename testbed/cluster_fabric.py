"""The network of a live cluster, built with Mininet inside a private network namespace.

::

             spine0           spine1                  a star is one leaf without spines
              ║  ╚═══════╗ ╔═════╝ ║
              ║  ╔═══════╚═╝═════╗ ║
             leaf0             leaf1
            ║     ║              ║     ║
          host0  host1         host2  host3           ═ ║ shaped, both ways
            │      │             │      │
            └──────┴──── c1 ─────┴──────┴── master    apart: orders never queue behind bytes
                          └── controller

Leaves and spines route: there are loops, which bridges may not have, and what goes to a host takes
the spine that :class:`cluster_sim.fabric.Fabric` says. Hosts see one network; their leaf answers
for the others (proxy ARP). With the kernel's back-end each output is an HTB class; with the
user-space link each link is a pair of TAP interfaces. What follows a trace has its mean rate until
the replay starts, with every session anew.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from mininet.nodelib import LinuxBridge

from cluster_sim.fabric import BYTES_PER_MS_PER_MBPS, Fabric, FabricLink
from testbed.fabric_replay import FabricReplay, TracedOutput
from testbed.host_tcp import PREFIX, HostTcp
from testbed.links.backends import Backend, LinkUnsupported, choose_backend
from testbed.links.engine import EngineHandle, engine_process
from testbed.links.htb import (
    HtbClass,
    ReceiveCounter,
    clip_rate,
    disable_offloads,
    run_tool,
)
from testbed.links.mininet_link import TapLink
from testbed.links.netem import at_port
from testbed.links.process import Port, RunningLink
from testbed.links.spec import DirectionSpec, LinkSpec, QueueSpec, constant_trace
from testbed.links.userspace import UserspaceLink
from testbed.namespaces import in_network_of, socket_in
from testbed.topology import (
    NetworkHost,
    PrivateMininet,
    TopologyError,
    check_programs,
    disable_ipv6,
    silence_mininet,
    stop_mininet,
)

MAX_HOSTS = 250
CONTROL_SWITCH = "c1"
HOST_NETWORK = "10.1.0"
CONTROL_NETWORK = "10.2.0"
MASTER_ADDRESS = f"{CONTROL_NETWORK}.254"
CONTROLLER_ADDRESS = f"{CONTROL_NETWORK}.253"
LEAF_NETWORK = "10.3.0"
SPINE_NETWORK = "10.4.0"
WHOLE = 32  # prefix of a single address
CONNECT_TIMEOUT_S = 10.0
#: Capacity that a silent link saves up: as much as the kernel's timer may be late by. Reads are
#: short, and many begin on a silent link.
IDLE_CREDIT_S = 0.0003
MS_PER_S = 1000.0
#: Deep enough for the windows of all that send to one host at once: then TCP loses nothing, and its
#: flows share a link about as the fluid model has it.
QUEUE_PACKETS = 1000
#: Connections between executors are kept, and their windows with them, as data centres have it.
TCP_SETTINGS: Mapping[str, int | str] = MappingProxyType({"slow_start_after_idle": 0})


@dataclass(frozen=True, slots=True)
class _Cable:
    """A link that is to be shaped: its ends, both nodes of Mininet, and its capacity each way."""

    near: str
    far: str
    capacity: FabricLink
    link: Any


class FabricNetwork:
    """Hosts, fabric and master in this network namespace.

    Call :func:`testbed.namespaces.unshare_network` first; there is one network per namespace.

    Attributes:
        hosts: by number; ``interfaces`` begins with that to the fabric.
        master: what drives the cluster; its address is on the control network.
        controller: what the master asks; likewise.
        backend: what shapes the links.
        began_s: ``time.monotonic()`` when the links last began to replay their traces.
    """

    hosts: tuple[NetworkHost, ...]
    master: NetworkHost
    controller: NetworkHost
    backend: str
    began_s: float

    def __init__(
        self,
        fabric: Fabric,
        *,
        backend: str = "auto",
        queue: QueueSpec | None = None,
        tcp: HostTcp | None = None,
        engine: EngineHandle | None = None,
    ) -> None:
        """Notes what is asked; nothing is built before the context is entered.

        Args:
            fabric: the links, as fast as they are to be in real time; a delay needs the user-space
                link.
            backend: ``auto``, ``kernel`` or ``userspace``.
            queue: before each output.
            tcp: of the hosts.
            engine: carries the packets of user-space links; None: one of its own.
        """
        self._fabric = fabric
        self._backend = backend
        self._queue = queue or QueueSpec(packets=QUEUE_PACKETS)
        self._tcp = tcp or HostTcp(settings=TCP_SETTINGS)
        self._engine = engine
        self._cleanup = contextlib.ExitStack()
        self._running: list[RunningLink] = []
        self._replaying: list[RunningLink] = []  # those of them that follow traces
        self._outputs: list[TracedOutput] = []  # of the kernel, likewise
        self._classes: list[HtbClass] = []
        self._counters: dict[str, ReceiveCounter] = {}

    def check(self) -> Backend:
        """Checks that this machine can make such links; needs a sandbox, but builds nothing.

        Raises:
            LinkUnsupported: it cannot.
            TopologyError: there are too many hosts.
            CongestionUnsupported, TcpSettingUnsupported: the kernel does not have what is asked.
        """
        check_programs()
        if self._fabric.hosts > MAX_HOSTS:
            raise TopologyError(f"{self._fabric.hosts} hosts; {MAX_HOSTS} are the most")
        self._tcp.check("executors")
        if self._fabric.delay_ms and self._backend == "kernel":
            raise LinkUnsupported("delay_ms of a fabric needs the link back-end userspace")
        asked = "userspace" if self._fabric.delay_ms else self._backend
        return choose_backend(self._spec(self._fabric.links[0]).replace(backend=asked))

    def __enter__(self) -> FabricNetwork:
        """Builds the network and tries it out.

        The thread that does this must live as long as the network: its processes end with it.

        Raises:
            LinkUnsupported, TopologyError, ShapingError: see :meth:`check`, or it does not work.
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

    def check_alive(self) -> None:
        """Looks after the links; to be called about twice a second.

        Raises:
            ShapingError: what makes them died or stands still.
        """
        for link in self._running:
            link.check_alive()

    @contextlib.contextmanager
    def ready_to_replay(self) -> Iterator[None]:
        """Inside of the context, :meth:`start_replay` may be called.

        Raises:
            ShapingError: a link did not do what was asked.
        """
        if not self._outputs:
            yield
            return
        replay = FabricReplay(self._outputs)
        self._running.append(replay)
        self._replaying.append(replay)
        try:
            yield
        finally:
            self._running.remove(replay)
            self._replaying.remove(replay)
            replay.end()

    def start_replay(self) -> None:
        """All links that follow a trace begin with it, now.

        Raises:
            ShapingError: what makes them died.
        """
        began_s = [link.start() for link in self._replaying]
        self.began_s = min(began_s, default=time.monotonic())

    def received_bytes(self) -> tuple[int, ...]:
        """Bytes that the interface of each host has received from the fabric, at layer 3."""
        moved = self.moved_bytes()
        leaf_of = self._fabric.leaf_of
        return tuple(moved[f"leaf{leaf_of(one)}>host{one}"] for one in range(len(self.hosts)))

    def moved_bytes(self) -> dict[str, int]:
        """Bytes that came out of each direction of each link so far, at layer 3."""
        return {name: counter.read()[1] for name, counter in self._counters.items()}

    def verify(self) -> None:
        """Reads the rates back that the kernel has.

        Raises:
            ShapingError: one is not what it was set to.
        """
        for shaped in self._classes:
            shaped.verify()

    # ---- building ------------------------------------------------------------------------------

    def _spec(self, capacity: FabricLink) -> LinkSpec:
        trace = capacity.trace or constant_trace(capacity.rate_mbps)
        way = DirectionSpec(trace=trace, delay_ms=self._fabric.delay_ms, queue=self._queue)
        return LinkSpec(down=way, up=way, backend=self._backend)

    def _build(self) -> None:
        silence_mininet()
        net = PrivateMininet(controller=None)
        self._cleanup.callback(stop_mininet, net)
        cables = self._add_nodes(net)
        net.build()
        net.start()
        self.hosts = tuple(
            _network_host(net[f"host{one}"], _address(HOST_NETWORK, one))
            for one in range(self._fabric.hosts)
        )
        self.master = _network_host(net["master"], MASTER_ADDRESS)
        self.controller = _network_host(net["controller"], CONTROLLER_ADDRESS)
        for host in self.hosts:
            in_network_of(host.pid, _set_up_host, host, self._tcp)
        self._set_up_routers(net)
        if self.backend == "userspace":
            engine = self._engine or self._cleanup.enter_context(engine_process())
            for cable in cables:
                running = UserspaceLink(
                    self._spec(cable.capacity), engine=engine, media=cable.link.taps
                )
                self._cleanup.callback(running.close)
                self._running.append(running)
                if cable.capacity.trace is None:
                    running.start()
                else:
                    self._replaying.append(running)
        else:
            for cable in cables:
                self._shape(cable)
        for cable in cables:
            self._count(cable)
        self._try_out()

    def _add_nodes(self, net: Any) -> list[_Cable]:
        fabric = self._fabric
        control = net.addSwitch(CONTROL_SWITCH, cls=LinuxBridge)
        master = net.addHost("master", ip=f"{MASTER_ADDRESS}/{PREFIX}")
        net.addLink(master, control)
        net.addLink(net.addHost("controller", ip=f"{CONTROLLER_ADDRESS}/{PREFIX}"), control)
        nodes = {
            name: net.addHost(name, ip=None)
            for count, kind in ((fabric.leaves, "leaf"), (fabric.spines, "spine"))
            for name in (f"{kind}{one}" for one in range(count))
        }
        for one in range(fabric.hosts):
            nodes[f"host{one}"] = net.addHost(
                f"host{one}", ip=f"{_address(HOST_NETWORK, one)}/{PREFIX}"
            )
        kind = TapLink if self.backend == "userspace" else None
        cables = []
        for link in fabric.links:
            near, far = link.name.split(">")
            if near.startswith("host") or far.startswith("spine"):  # each pair once
                made = net.addLink(nodes[near], nodes[far], cls=kind)
                cables.append(_Cable(near, far, link, made))
        for one in range(fabric.hosts):
            at = {"ip": f"{_address(CONTROL_NETWORK, one)}/{PREFIX}"}
            net.addLink(control, nodes[f"host{one}"], params2=at)
        return cables

    def _shape(self, cable: _Cable) -> None:
        bytes_per_s = clip_rate(cable.capacity.rate_mbps * BYTES_PER_MS_PER_MBPS * MS_PER_S)
        ends = [Port(end.name, end.node.pid) for end in (cable.link.intf1, cable.link.intf2)]
        for port, receiver in (ends, ends[::-1]):
            shaped = self._cleanup.enter_context(
                at_port(
                    port,
                    HtbClass,
                    port.interface,
                    queue=self._queue,
                    bytes_per_s=bytes_per_s,
                    idle_credit_s=IDLE_CREDIT_S,
                )
            )
            self._classes.append(shaped)
            if (trace := cable.capacity.trace) is not None:
                received = at_port(receiver, ReceiveCounter, receiver.interface)
                self._cleanup.enter_context(received)
                self._outputs.append(TracedOutput(trace, shaped, received))

    def _count(self, cable: _Cable) -> None:
        ends = cable.link.intf1, cable.link.intf2
        ways = (cable.far, cable.near), (cable.near, cable.far)
        for receiver, (sender, node) in zip(ends, ways, strict=True):
            counter = in_network_of(receiver.node.pid, ReceiveCounter, receiver.name)
            self._counters[f"{sender}>{node}"] = self._cleanup.enter_context(counter)

    def _set_up_routers(self, net: Any) -> None:
        """Addresses and routes of leaves and spines."""
        fabric = self._fabric
        ports = {  # name of the output of a node that leads to another one
            (near.node.name, far.node.name): near.name
            for link in net.links
            for near, far in ((link.intf1, link.intf2), (link.intf2, link.intf1))
        }
        for leaf in range(fabric.leaves):
            name = f"leaf{leaf}"
            routes: list[tuple[str, ...]] = []
            for spine in range(fabric.spines):
                out = ports[name, f"spine{spine}"]
                routes.append((f"{_address(SPINE_NETWORK, spine)}", "dev", out))
            for host in range(fabric.hosts):
                address = _address(HOST_NETWORK, host)
                if fabric.leaf_of(host) == leaf:
                    routes.append((address, "dev", ports[name, f"host{host}"]))
                else:
                    spine = fabric.spine_to(host)
                    out = ports[name, f"spine{spine}"]
                    via = _address(SPINE_NETWORK, spine)
                    routes.append((address, "via", via, "dev", out, "onlink"))
            own = _address(LEAF_NETWORK, leaf)
            in_network_of(net[name].pid, _set_up_router, own, sorted(net[name].nameToIntf), routes)
        for spine in range(fabric.spines):
            name = f"spine{spine}"
            routes = []
            for leaf in range(fabric.leaves):
                out = ports[name, f"leaf{leaf}"]
                routes.append((_address(LEAF_NETWORK, leaf), "dev", out))
            for host in range(fabric.hosts):
                leaf = fabric.leaf_of(host)
                out, via = ports[name, f"leaf{leaf}"], _address(LEAF_NETWORK, leaf)
                address = _address(HOST_NETWORK, host)
                routes.append((address, "via", via, "dev", out, "onlink"))
            own = _address(SPINE_NETWORK, spine)
            in_network_of(net[name].pid, _set_up_router, own, sorted(net[name].nameToIntf), routes)

    def _try_out(self) -> None:
        """Connects each host to the next one and to one far away; raises TopologyError."""
        count = len(self.hosts)
        for number, host in enumerate(self.hosts):
            for other in {(number + 1) % count, (number + count // 2) % count} - {number}:
                _connect(host, self.hosts[other])


# ---- inside a node's network --------------------------------------------------------------------


def _set_up_host(host: NetworkHost, tcp: HostTcp) -> None:
    media = host.interfaces[0]
    disable_ipv6("all", "default")
    for interface in host.interfaces:
        disable_offloads(interface)
    tcp.apply("executors", media, host.address)


def _set_up_router(own: str, interfaces: Sequence[str], routes: Sequence[Sequence[str]]) -> None:
    disable_ipv6("all", "default")
    settings = Path("/proc/sys/net/ipv4")
    (settings / "ip_forward").write_text("1")
    run_tool("ip", "address", "add", f"{own}/{WHOLE}", "dev", "lo")
    run_tool("ip", "link", "set", "dev", "lo", "up")
    (settings / "conf/all/rp_filter").write_text("0")  # ways back differ
    for interface in interfaces:
        disable_offloads(interface)
        run_tool("ip", "link", "set", "dev", interface, "up")
        (settings / "conf" / interface / "rp_filter").write_text("0")
        (settings / "conf" / interface / "proxy_arp").write_text("1")
        (settings / "neigh" / interface / "proxy_delay").write_text("0")
    for route in routes:
        run_tool("ip", "route", "add", *route)


# ---- pieces -------------------------------------------------------------------------------------


def _address(network: str, number: int) -> str:
    return f"{network}.{number + 1}"


def _network_host(node: Any, address: str) -> NetworkHost:
    return NetworkHost(node.pid, address, tuple(sorted(node.nameToIntf)))


def _connect(near: NetworkHost, far: NetworkHost) -> None:
    with contextlib.ExitStack() as ends:
        listener = ends.enter_context(socket_in(far.pid, far.address, 0))
        listener.settimeout(CONNECT_TIMEOUT_S)
        way = (listener.getsockname(), CONNECT_TIMEOUT_S)
        try:
            ends.enter_context(in_network_of(near.pid, socket.create_connection, *way))
            ends.enter_context(listener.accept()[0])
        except OSError as error:
            raise TopologyError(
                f"{near.address} got no connection to {far.address}: {error}"
            ) from error
