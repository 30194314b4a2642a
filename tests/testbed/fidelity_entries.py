"""What the tests of the recorder and of the traffic run inside a sandbox."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from player.trace import Trace
from testbed.links.fidelity import Recorder, RecorderError
from testbed.links.htb import run_tool
from testbed.links.traffic import Route, echo, offered_bytes, tcp_load, udp_load
from testbed.namespaces import Child, fork_into, in_network_of, unshare_network
from testbed.sandbox import Send

PORT = 9000
HEADER_BYTES = 28  # IPv4 and UDP
NEAR, FAR = "10.7.0.1", "10.7.0.2"
MACS = {NEAR: "02:00:00:00:00:01", FAR: "02:00:00:00:00:02"}
TRACE = Trace("test", np.array([0.0, 1.0]), np.array([8.0, 8.0]))
ROOM = 50_000


def _live(ready: int) -> None:
    unshare_network()
    os.write(ready, b"x")
    time.sleep(1000)


@contextlib.contextmanager
def _pair() -> Iterator[Child]:
    """A cable between this network and another one, whose process is returned."""
    read, write = os.pipe()
    with fork_into(None, _live, write) as other:
        os.read(read, 1)
        peer = ("peer", "name", "far0", "netns", str(other.pid))
        run_tool("ip", "link", "add", "name", "near0", "type", "veth", *peer)
        for pid, name, address in ((os.getpid(), "near0", NEAR), (other.pid, "far0", FAR)):
            in_network_of(pid, _set_up, name, address)
        yield other


def _set_up(interface: str, address: str) -> None:
    options = ("addrgenmode", "none", "gso_max_segs", "1")  # IPv6 would say hello by itself
    run_tool("ip", "link", "set", "dev", interface, "address", MACS[address], *options)
    run_tool("ip", "address", "add", f"{address}/24", "dev", interface)
    run_tool("ip", "link", "set", "dev", interface, "up")
    (other,) = {NEAR, FAR} - {address}  # told, so that nobody asks for it with ARP
    run_tool("ip", "neigh", "replace", other, "lladdr", MACS[other], "dev", interface)


def _limit(interface: str, rate: str) -> None:
    shape = ("tbf", "rate", rate, "burst", "64kb", "limit", "1mb")
    run_tool("tc", "qdisc", "add", "dev", interface, "root", *shape)


def record(job: dict[str, Any], send: Send) -> None:
    """Sends datagrams of given sizes both ways; what was noted on one side."""
    before_s, after_s = [], []
    with (
        _pair() as other,
        in_network_of(other.pid, Recorder, "far0", packets=job["packets"]) as recorder,
        _bound(NEAR) as near,
        in_network_of(other.pid, _bound, FAR) as far,
    ):
        for size in job["sizes"]:
            before_s.append(time.monotonic())
            near.sendto(bytes(size - HEADER_BYTES), (FAR, PORT))
            far.recv(2000)
            after_s.append(time.monotonic())
            far.sendto(b"back", (NEAR, PORT))
        came = recorder.read()
    send(
        {
            "sizes": came.size_bytes.tolist(),
            "arrival_s": came.arrival_s.tolist(),
            "before_s": before_s,
            "after_s": after_s,
        }
    )


def _bound(address: str) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind((address, PORT))
    return end


def overflow(job: dict[str, Any], send: Send) -> None:
    with (
        _pair() as other,
        in_network_of(other.pid, Recorder, "far0", packets=1) as recorder,
        _bound(NEAR) as near,
        in_network_of(other.pid, _bound, FAR),
    ):
        for _ in range(3000):  # a ring has at least 2,048 frames
            near.sendto(b"x", (FAR, PORT))
        try:
            recorder.read()
        except RecorderError as error:
            send({"error": str(error)})


def refuse(job: dict[str, Any], send: Send) -> None:
    try:
        Recorder("lo", packets=job["packets"])
    except ValueError as error:
        send({"error": str(error)})


def load(job: dict[str, Any], send: Send) -> None:
    """A load over the cable: what was noted at both ends, and which processes are left."""
    seconds = job["seconds"]
    with (
        _pair() as other,
        in_network_of(other.pid, Recorder, "far0", packets=ROOM) as came,
        Recorder("near0", packets=ROOM) as back,
    ):
        _limit("near0", "100mbit")  # a fast machine would send more than there is room for
        processes = len(_processes())
        route = Route(os.getpid(), other.pid, FAR)
        at_s = time.monotonic() + 0.3
        with (
            udp_load(route, TRACE, at_s=at_s, seconds=seconds)
            if job["load"] == "udp"
            else tcp_load(route, at_s=at_s, seconds=seconds)
        ):
            time.sleep(0.3 + seconds + 0.3)
        arrivals, answers = came.read(), back.read()
        whole = arrivals.size_bytes > 100
        send(
            {
                "sizes": arrivals.size_bytes[whole].tolist(),
                "first_s": float(arrivals.arrival_s[whole][0]) - at_s,
                "last_s": float(arrivals.arrival_s[whole][-1]) - at_s,
                "planned_bytes": float(offered_bytes(TRACE, start_s=0.0, seconds=seconds)[-1]),
                "answers": len(answers.arrival_s),
                "left": len(_processes()) - processes,
            }
        )


def _processes() -> set[str]:
    return {name for name in os.listdir("/proc") if name.isdigit()}


def echoes(job: dict[str, Any], send: Send) -> None:
    with _pair() as other:
        route = Route(os.getpid(), other.pid, FAR)
        at_s = time.monotonic() + 0.1
        with echo(route, at_s=at_s, count=job["count"], every_s=job["every_s"]) as running:
            trips = running.read(10.0)
    send({"sent": trips.sent, "rtt_s": trips.rtt_s.tolist()})
