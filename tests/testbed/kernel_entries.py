"""What the tests of the kernel's link run inside a sandbox.

::

    server ── s0 ══ s1 ── client

Down, the bottleneck is the output of s1 to the client, up that of s1 to s0.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulation_entries import LOAD_BLOCK, PORT, _neighbour, missing_capability

from player.trace import Trace
from testbed.links.htb import HtbClass, ShapingError, qdisc_problem, run_tool
from testbed.links.kernel import KernelLink
from testbed.links.netem import Netem
from testbed.links.process import LinkPorts, Port
from testbed.links.spec import DirectionSpec, GilbertElliott, LinkChange, LinkSpec, QueueSpec
from testbed.namespaces import Child, bring_up, fork_into, in_network_of, socket_in
from testbed.sandbox import Send, run_in_sandbox

PROBES = {"netem": ("delay", "1ms")}  # options without which a queueing discipline is refused
SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
SETTLE_S = 0.1
SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>
RECEIVE_BUFFER_BYTES = 1 << 22
PATIENCE_S = 0.6


def collect(entry: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs an entry of this module in a sandbox; its messages."""
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"kernel_entries:{entry}", job, on_message=messages.append)
    return messages


@functools.cache
def qdisc_missing(kind: str) -> str | None:
    """Why this machine cannot have a queueing discipline."""
    if problem := missing_capability(network=True):
        return problem
    return collect("probe", {"kind": kind, "options": PROBES.get(kind, ())})[0]["problem"]


def require(*kinds: str) -> None:
    """Skips the test, naming the queueing discipline that this kernel lacks."""
    for kind in ("htb", *kinds):
        if problem := qdisc_missing(kind):
            pytest.skip(f"this kernel has no {kind} (module sch_{kind}): {problem}")


@dataclass(frozen=True)
class Network:
    server: Child
    client: Child

    @property
    def ports(self) -> LinkPorts:
        return LinkPorts(
            down=Port("s1-eth2"),
            down_receiver=Port("client-eth0", self.client.pid),
            down_senders=(Port("server-eth0", self.server.pid),),
            up=Port("s1-eth1"),
            up_receiver=Port("s0-eth2"),
            up_exits=(Port("s0-eth1"),),
        )


@contextlib.contextmanager
def dumbbell() -> Iterator[Network]:
    _disable_ipv6()
    with _neighbour() as server, _neighbour() as client:
        for switch in ("s0", "s1"):
            run_tool("ip", "link", "add", "name", switch, "type", "bridge")
            bring_up(switch)
        _veth("s0-eth1", "server-eth0", server)
        _veth("s1-eth2", "client-eth0", client)
        _veth("s0-eth2", "s1-eth1", None)
        for port in ("s0-eth1", "s0-eth2", "s1-eth1", "s1-eth2"):
            run_tool("ip", "link", "set", "dev", port, "master", port.split("-")[0])
            bring_up(port)
        in_network_of(server.pid, _join, "server-eth0", SERVER)
        in_network_of(client.pid, _join, "client-eth0", CLIENT)
        yield Network(server, client)


def _veth(near: str, far: str, host: Child | None) -> None:
    there = () if host is None else ("netns", str(host.pid))
    run_tool("ip", "link", "add", "name", near, "type", "veth", "peer", "name", far, *there)


def _join(interface: str, address: str) -> None:
    _disable_ipv6()
    run_tool("ip", "address", "add", f"{address}/24", "dev", interface)
    bring_up(interface)


def _disable_ipv6() -> None:
    for name in ("all", "default"):
        switch = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        if switch.exists():
            switch.write_text("1")


def link_of(job: dict[str, Any]) -> LinkSpec:
    return LinkSpec(
        down=_direction(job.get("down", {})),
        up=_direction(job.get("up", {})),
        changes=tuple(LinkChange(**change) for change in job.get("changes", ())),
    )


def _direction(asked: dict[str, Any]) -> DirectionSpec:
    asked = dict(asked)
    if "times_s" in asked:
        asked["trace"] = Trace(
            "test", np.array(asked.pop("times_s")), np.array(asked.pop("rates_mbps"))
        )
    if "queue" in asked:
        asked["queue"] = QueueSpec(**asked["queue"])
    if isinstance(asked.get("loss"), dict):
        asked["loss"] = GilbertElliott(**asked["loss"])
    return DirectionSpec(**asked)


# ---- entries ------------------------------------------------------------------------------------


def probe(job: dict[str, Any], send: Send) -> None:
    send({"problem": qdisc_problem(job["kind"], *job.get("options", ()))})


def saturate(job: dict[str, Any], send: Send) -> None:
    """Bulk transfers over TCP in the directions that are asked; live changes at their times."""
    with dumbbell() as network, contextlib.ExitStack() as running:
        link = KernelLink(link_of(job), ports=network.ports)
        running.callback(link.close)
        for direction in job["load"]:
            sender, receiver = network.server, network.client
            if direction == "up":
                sender, receiver = receiver, sender
            address = CLIENT if direction == "up" else SERVER
            listener = running.enter_context(socket_in(sender.pid, address, PORT))
            running.enter_context(fork_into(sender.pid, _source, listener))
            running.enter_context(fork_into(receiver.pid, _sink, address))
        if "flood" in job:
            running.enter_context(fork_into(network.server.pid, _flood, **job["flood"]))
        began_s = link.start()
        for change in job.get("live", ()):
            time.sleep(max(began_s + change["at_s"] - time.monotonic(), 0.0))
            link.change(LinkChange(**change))
        time.sleep(max(began_s + job["seconds"] - time.monotonic(), 0.0))
        link.check_alive()
        measured = link.stop()
    seconds = [asdict(second) for second in measured.seconds]
    send({"record": asdict(measured.record), "seconds": seconds})


def _source(listener: socket.socket) -> None:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    connection, _ = listener.accept()
    while True:
        connection.sendall(LOAD_BLOCK)


def _flood(every_s: float, tos: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        while True:
            end.sendto(bytes(1000), (CLIENT, PORT))
            time.sleep(every_s)


def _sink(address: str) -> None:
    with socket.create_connection((address, PORT)) as connection:
        while connection.recv(1 << 20):
            pass


def echo_times(job: dict[str, Any], send: Send) -> None:
    """Round-trip times of small datagrams, each sent when the one before it is back."""
    with dumbbell() as network, contextlib.ExitStack() as running:
        link = KernelLink(link_of(job), ports=network.ports)
        running.callback(link.close)
        far = running.enter_context(_datagrams(network.server, SERVER))
        running.enter_context(fork_into(network.server.pid, _echo, far))
        near = running.enter_context(_datagrams(network.client, CLIENT))
        near.settimeout(5.0)
        _round_trip(near, b"resolves the address")
        link.start()
        times_s = []
        for number in range(job["pings"]):
            if number == job.get("change_before"):
                link.change(LinkChange(**job["change"]))
            times_s.append(_round_trip(near, number.to_bytes(4)))
        link.stop()
    send({"times_s": times_s})


def _round_trip(near: socket.socket, data: bytes) -> float:
    began_s = time.monotonic()
    near.sendto(data, (SERVER, PORT))
    while near.recv(100) != data:
        pass
    return time.monotonic() - began_s


def _datagrams(host: Child, address: str) -> socket.socket:
    end = in_network_of(host.pid, socket.socket, type=socket.SOCK_DGRAM)
    with contextlib.suppress(PermissionError):  # in a user namespace; else room for all that waits
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    end.bind((address, PORT))
    return end


def _echo(far: socket.socket) -> None:
    while True:
        far.sendto(*far.recvfrom(100))


def arrivals(job: dict[str, Any], send: Send) -> None:
    """Numbers of the datagrams that came down, in the order of their arrival."""
    # On two processors the kernel may hand packets on side by side, whatever the link does.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with dumbbell() as network, contextlib.ExitStack() as running:
        link = KernelLink(link_of(job), ports=network.ports)
        running.callback(link.close)
        source = running.enter_context(_datagrams(network.server, SERVER))
        sink = running.enter_context(_datagrams(network.client, CLIENT))
        sink.setblocking(False)
        numbers: list[int] = []
        began_s = link.start()
        for number in range(job["datagrams"]):
            time.sleep(max(began_s + number * job["every_s"] - time.monotonic(), 0.0))
            if number == job.get("change_before"):
                link.change(LinkChange(**job["change"]))
            source.sendto(number.to_bytes(4), (CLIENT, PORT))
            _receive(sink, numbers)  # its buffer is small
        for _ in range(round(PATIENCE_S / SETTLE_S)):
            time.sleep(SETTLE_S)
            _receive(sink, numbers)
        measured = link.stop()
    seconds = [asdict(second) for second in measured.seconds]
    send({"numbers": numbers, "seconds": seconds})


def _receive(sink: socket.socket, numbers: list[int]) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            numbers.append(int.from_bytes(sink.recv(100)))


def set_up(job: dict[str, Any], send: Send) -> None:
    """What the kernel has for a link; or why it has not."""
    with dumbbell() as network:
        try:
            link = KernelLink(link_of(job), ports=network.ports)
        except ShapingError as error:
            send({"error": str(error)})
            return
        link.close()
        here = run_tool("tc", "-json", "qdisc", "show")
        there = in_network_of(network.server.pid, run_tool, "tc", "-json", "qdisc", "show")
    send({"here": here, "server": there})


def change_netem(job: dict[str, Any], send: Send) -> None:
    """Sets netem up as asked one after the other; each is read back."""
    run_tool("ip", "link", "add", "name", "a0", "type", "veth", "peer", "name", "b0")
    specs = [_direction(asked) for asked in job["specs"]]
    for number, spec in enumerate(specs):
        Netem(Port("a0"), spec).close()
        send({"set": number})
        run_tool("tc", "qdisc", "del", "dev", "a0", "root")
    changed = Netem(Port("a0"), DirectionSpec(delay_ms=100.0))
    for delay_ms, loss in ((5.0, None), (None, 0.5), (0.0, 0.0)):
        changed.change(delay_ms=delay_ms, loss=loss)
    run_tool("tc", "qdisc", "change", "dev", "a0", "root", "netem", "delay", "7ms")
    try:
        changed.verify()
    except ShapingError as error:
        send({"error": str(error)})


def change_rates(job: dict[str, Any], send: Send) -> None:
    """Sets rates on a shaped interface, counts two raw packets, then takes the class away."""
    run_tool("ip", "link", "add", "name", "a0", "type", "veth", "peer", "name", "b0")
    bring_up("a0")
    bring_up("b0")
    read_back, counted = [], []
    with HtbClass("a0", queue=QueueSpec(packets=10), bytes_per_s=1000) as shaped:
        for rate in job["rates"]:
            shaped.change(rate, is_busy=rate % 3 == 0)
            shaped.verify()
            read_back.append(shaped.read().bytes_per_s)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("a0", 0))
            for size in (100, 1500):
                before = shaped.read().sent_bytes
                wire.send(_frame(size))
                counted.append(shaped.read().sent_bytes - before)
        run_tool("tc", "qdisc", "del", "dev", "a0", "root")
        try:
            shaped.change(1000, is_busy=False)
        except ShapingError as error:
            send({"read_back": read_back, "counted_bytes": counted, "error": str(error)})


def fill_queue(job: dict[str, Any], send: Send) -> None:
    """Sends raw packets of one size into a bottleneck that stands still; what its queue kept."""
    _disable_ipv6()
    run_tool("ip", "link", "add", "name", "a0", "type", "veth", "peer", "name", "b0")
    bring_up("a0")
    bring_up("b0")
    with (
        HtbClass("a0", queue=QueueSpec(**job["queue"]), bytes_per_s=25) as shaped,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
    ):
        wire.bind(("a0", 0))
        for _ in range(job["packets"]):
            with contextlib.suppress(OSError):  # ENOBUFS: the queue is full
                wire.send(_frame(job["size_bytes"]))
        send({"state": asdict(shaped.read()), "counts": asdict(shaped.read_counts())})


def _frame(size_bytes: int) -> bytes:
    return b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(size_bytes)
