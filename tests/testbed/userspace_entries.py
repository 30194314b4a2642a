"""What the tests of the user-space link run inside a sandbox."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from emulation_entries import PORT, build
from mininet.link import Link
from mininet.log import lg
from mininet.net import Mininet
from mininet.nodelib import LinuxBridge

from player.trace import Trace
from testbed.emulated_session import LINK_CHECK_S
from testbed.host_tcp import HostTcp
from testbed.links.engine import engine_process
from testbed.links.htb import ShapingError
from testbed.links.mininet_link import TraceLink
from testbed.links.spec import (
    DirectionSpec,
    GilbertElliott,
    LinkChange,
    LinkSpec,
    QueueSpec,
    constant_trace,
)
from testbed.links.tap import tap_problem
from testbed.links.traffic import Route, tcp_load
from testbed.namespaces import bring_up, fork_into, in_network_of, socket_in
from testbed.sandbox import Send
from testbed.topology import SessionNetwork

MAKERS = ("link_engine", "replay_process")
PATIENCE_S = 10.0


def echo_times(job: dict[str, Any], send: Send) -> None:
    """Round-trip times of single bytes over both paths, seconds."""
    with build(job) as network:
        network.start_replay()
        for name in ("server", "controller"):
            host = getattr(network, name)
            with (
                socket_in(host.pid, host.address, PORT) as listener,
                fork_into(host.pid, _echo, listener),
                in_network_of(
                    network.client.pid, socket.create_connection, (host.address, PORT)
                ) as end,
            ):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                times_s = []
                for _ in range(job["pings"]):
                    began = time.monotonic()
                    end.send(b"x")
                    end.recv(1)
                    times_s.append(time.monotonic() - began)
                send({"path": name, "times_s": times_s})
        network.stop_replay()


def _echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while block := connection.recv(100):
        connection.send(block)


def lost_datagrams(job: dict[str, Any], send: Send) -> None:
    """Numbers of the datagrams that did not arrive."""
    with build(job) as network:
        source = in_network_of(network.server.pid, socket.socket, type=socket.SOCK_DGRAM)
        sink = in_network_of(network.client.pid, socket.socket, type=socket.SOCK_DGRAM)
        with source, sink:
            sink.bind((network.client.address, PORT))
            sink.setblocking(False)
            network.start_replay()
            missing = set(range(job["datagrams"]))
            for number in range(job["datagrams"]):
                source.sendto(number.to_bytes(4), (network.client.address, PORT))
                if number % 10 == 0:
                    time.sleep(0.002)
                    _strike_out(missing, sink)
            time.sleep(0.3)
            _strike_out(missing, sink)
        send(
            {"lost": sorted(missing), "drops": sum(s.drops for s in network.stop_replay().seconds)}
        )


def _strike_out(missing: set[int], sink: socket.socket) -> None:
    while True:
        try:
            missing.discard(int.from_bytes(sink.recv(100)))
        except BlockingIOError:
            return


def lose_engine(job: dict[str, Any], send: Send) -> None:
    """What makes the link gets a signal in mid-session; how the session learns of it, and when."""
    with build(job) as network:
        network.start_replay()
        (engine,) = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and (entry / "comm").read_text().strip() in MAKERS
        ]
        began = time.monotonic()
        os.kill(engine, signal.Signals(job["signal"]))
        try:
            while time.monotonic() < began + PATIENCE_S:
                time.sleep(LINK_CHECK_S)
                network.check_alive()
        except ShapingError as error:
            send({"error": str(error), "after_s": time.monotonic() - began})


def probe_tap(job: dict[str, Any], send: Send) -> None:
    send({"problem": tap_problem()})


def mininet_star(job: dict[str, Any], send: Send) -> None:
    """Hosts around a switch, all links of ours, and a server at the switch by an ordinary link."""
    lg.setLogLevel("error")
    bring_up("lo")
    spec = LinkSpec(
        down=DirectionSpec(trace=constant_trace(10.0), delay_ms=job["delay_ms"]),
        up=DirectionSpec(delay_ms=job["delay_ms"]),
    )
    with engine_process() as engine:
        link = functools.partial(TraceLink, engine=engine, spec=spec)
        net = _Net(controller=None, switch=LinuxBridge, link=link, autoStaticArp=True)
        switch = net.addSwitch("s1")
        hosts = [net.addHost(f"h{number}") for number in range(job["hosts"])]
        links = [net.addLink(switch, host) for host in hosts]
        server = net.addHost("server")
        net.addLink(switch, server, cls=Link)
        net.build()
        net.start()
        for started in links:
            started.running.start()
        rtt_s = [_round_trip_s(host.pid, server.pid, server.IP()) for host in hosts]
        seconds = [second for started in links for second in started.running.stop().seconds]
        net.stop()
    send(
        {
            "rtt_s": rtt_s,
            "delivered": sum(second.delivered_bits for second in seconds),
            "left": [name for _, name in socket.if_nameindex()],
        }
    )


class _Net(Mininet):
    inited = True


def _round_trip_s(client_pid: int, server_pid: int, address: str) -> float:
    """The quickest of a few handshakes."""
    with socket_in(server_pid, address, PORT):
        times_s = []
        for _ in range(5):
            began = time.monotonic()
            in_network_of(client_pid, socket.create_connection, (address, PORT)).close()
            times_s.append(time.monotonic() - began)
        return min(times_s)


def spec_of(job: dict[str, Any]) -> LinkSpec:
    """A link from JSON: ``down`` and ``up`` as a ``DirectionSpec``, or ``rate_mbps`` in them."""

    def direction(
        *,
        rate_mbps: float | None = None,
        times_s: list[float] | None = None,
        rates_mbps: list[float] | None = None,
        queue: dict[str, Any] | None = None,
        bursts: dict[str, float] | None = None,
        **options: Any,
    ) -> DirectionSpec:
        if rate_mbps is not None:
            options["trace"] = constant_trace(rate_mbps)
        elif times_s is not None:
            options["trace"] = Trace("test", np.array(times_s), np.array(rates_mbps))
        if bursts is not None:
            options["loss"] = GilbertElliott(**bursts)
        return DirectionSpec(**options, queue=QueueSpec(**(queue or {})))

    return LinkSpec(
        down=direction(**job["down"]),
        up=direction(**job.get("up", {})),
        backend="userspace",
        changes=tuple(LinkChange(**change) for change in job.get("changes", [])),
    )


def datagrams(job: dict[str, Any], send: Send) -> None:
    """Numbered datagrams towards the client: which arrived, in which order, and when."""
    with SessionNetwork(spec_of(job)) as network:
        source = in_network_of(network.server.pid, socket.socket, type=socket.SOCK_DGRAM)
        sink = in_network_of(network.client.pid, socket.socket, type=socket.SOCK_DGRAM)
        with source, sink:
            sink.bind((network.client.address, PORT))
            sink.setblocking(False)
            began_s = network.start_replay()
            arrived: list[tuple[int, float]] = []
            payload = bytes(job.get("padding", 0))
            for number in range(job["count"]):
                source.sendto(number.to_bytes(4) + payload, (network.client.address, PORT))
                if number % job.get("burst", 10) == 0:
                    time.sleep(job.get("pause_s", 0.002))
                    _note(arrived, sink, began_s)
            time.sleep(job.get("tail_s", 0.3))
            _note(arrived, sink, began_s)
        measurement = network.stop_replay()
    seconds = [dataclasses.asdict(second) for second in measurement.seconds]
    send({"arrived": arrived, "seconds": seconds})


def _note(arrived: list[tuple[int, float]], sink: socket.socket, began_s: float) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            arrived.append((int.from_bytes(sink.recv(2000)[:4]), time.monotonic() - began_s))


def transfers(job: dict[str, Any], send: Send) -> None:
    """TCP both ways at once for some seconds; what the link measured."""
    hosts = {name: HostTcp(**settings) for name, settings in job.get("hosts", {}).items()}
    with SessionNetwork(spec_of(job), hosts=hosts) as network, contextlib.ExitStack() as stack:
        at_s = time.monotonic() + 0.3
        near, far = network.server, network.client
        for source, sink in ((near, far), (far, near))[: job.get("ways", 2)]:
            route = Route(source.pid, sink.pid, sink.address)
            stack.enter_context(tcp_load(route, at_s=at_s, seconds=job["seconds"]))
        time.sleep(0.3)
        network.start_replay()
        time.sleep(job["seconds"])
        measurement = network.stop_replay()
    send(
        {
            "record": dataclasses.asdict(measurement.record),
            "seconds": [dataclasses.asdict(second) for second in measurement.seconds],
        }
    )
