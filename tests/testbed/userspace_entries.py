"""What the tests of the user-space link run inside a sandbox."""

from __future__ import annotations

import functools
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from emulation_entries import PORT, build
from mininet.link import Link
from mininet.log import lg
from mininet.net import Mininet
from mininet.nodelib import LinuxBridge

from testbed.emulated_session import _messages
from testbed.links.engine import engine_process
from testbed.links.htb import ShapingError
from testbed.links.mininet_link import TraceLink
from testbed.links.spec import DirectionSpec, LinkSpec, constant_trace
from testbed.links.tap import tap_problem
from testbed.namespaces import bring_up, fork_into, in_network_of, socket_in
from testbed.sandbox import Send

ENGINE = "link_engine"


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
    """The engine gets a signal in mid-session; how the session learns of it, and when."""
    with build(job) as network:
        network.start_replay()
        ours, theirs = socket.socketpair()
        (engine,) = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == ENGINE
        ]
        began = time.monotonic()
        with ours, theirs:
            try:
                for _ in _messages(_signalling(ours, engine, job["signal"]), network):
                    pass
            except ShapingError as error:
                send({"error": str(error), "after_s": time.monotonic() - began})


def _signalling(end: socket.socket, pid: int, number: int) -> socket.socket:
    os.kill(pid, signal.Signals(number))
    return end


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
