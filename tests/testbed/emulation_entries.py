"""What the emulation tests run inside a sandbox, and what they need for it."""

from __future__ import annotations

import contextlib
import functools
import os
import posix
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from player.trace import Trace
from testbed.links.htb import qdisc_problem, run_tool
from testbed.links.spec import DirectionSpec, LinkSpec, QueueSpec
from testbed.namespaces import Child, fork_into, in_network_of, socket_in, unshare_network
from testbed.sandbox import Send, probe_sandbox, run_in_sandbox, tool_path

HERE = str(Path(__file__).parent)
PORT = 8000
LOAD_BLOCK = b"x" * 65536


@functools.cache
def missing_capability(*, network: bool) -> str | None:
    """What this machine lacks for a sandbox, or for a whole session network."""
    probe = probe_sandbox()
    if probe.mode is None:
        return f"no sandbox: {probe.reason}"
    if not network:
        return None
    for program in ("mnexec", "brctl", "ifconfig", "ip", "tc"):
        if shutil.which(program, path=tool_path()) is None:
            return f"no {program}"
    problems = collect("probe_htb", {})
    return problems[0]["problem"]


def require(*, network: bool = False) -> None:
    """Skips the test, naming what is missing."""
    if problem := missing_capability(network=network):
        pytest.skip(problem)


def collect(entry: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs an entry of this module in a sandbox; its messages."""
    messages: list[dict[str, Any]] = []
    run_in_sandbox(f"emulation_entries:{entry}", job, on_message=messages.append)
    return messages


@functools.cache
def has_netem() -> bool:
    """Whether this kernel can delay packets."""
    return collect("probe_netem", {})[0]["problem"] is None


def probe_netem(job: dict[str, Any], send: Send) -> None:
    send({"problem": qdisc_problem("netem", "delay", "1ms")})


def probe_htb(job: dict[str, Any], send: Send) -> None:
    send({"problem": qdisc_problem("htb")})


# ---- sandbox ------------------------------------------------------------------------------------


def describe(job: dict[str, Any], send: Send) -> None:
    with tempfile.NamedTemporaryFile() as file:
        temp = file.name
    send(
        {
            "job": job,
            "interfaces": sorted(name for _, name in socket.if_nameindex()),
            "temp": temp,
            "processes": [name for name in os.listdir("/proc") if name.isdigit()],
            "user": os.geteuid(),
        }
    )


def send_long(job: dict[str, Any], send: Send) -> None:
    send({"text": "x" * job["length"]})
    for number in range(3):
        send({"number": number})


def send_together(job: dict[str, Any], send: Send) -> None:
    def many(child: int) -> None:
        for number in range(job["messages"]):
            send({"child": child, "number": number, "padding": "x" * 20_000})

    children = [fork_into(None, many, child) for child in range(job["children"])]
    for child in children:
        child.wait()


def send_torn(job: dict[str, Any], send: Send) -> None:
    """A process is killed while the pipe is full and its message half way through."""
    with fork_into(None, _send_and_hang, send) as child:
        time.sleep(0.3)
    assert child.wait() != 0
    send({"after": True})


def _send_and_hang(send: Send) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", _write_half)
        send({"torn": "x" * 1000})


def _write_half(descriptor: int, data: memoryview) -> int:
    posix.write(descriptor, data[:500])
    time.sleep(1000)
    return 0


def fail(job: dict[str, Any], send: Send) -> None:
    send({"before": True})
    raise LookupError(f"nothing called {job['name']}")


def die(job: dict[str, Any], send: Send) -> None:
    print("last words", file=sys.stderr, flush=True)
    os._exit(job["status"])


def leave_orphans(job: dict[str, Any], send: Send) -> None:
    for _ in range(3):
        subprocess.run(["sh", "-c", "sleep 0.1 & setsid sleep 1000 &"], check=True)
    time.sleep(0.3)
    states = [_state(name) for name in os.listdir("/proc") if name.isdigit()]
    send({"zombies": states.count("Z")})


def _state(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def wait_long(job: dict[str, Any], send: Send) -> None:
    send({"waiting": True})
    time.sleep(1000)


# ---- namespaces ---------------------------------------------------------------------------------


def visit_and_raise(job: dict[str, Any], send: Send) -> None:
    try:
        in_network_of(os.getpid(), {}.__getitem__, "nothing")
    except KeyError as error:
        send({"raised": type(error).__name__})


def two_networks(job: dict[str, Any], send: Send) -> None:
    """This process has one network, a child another."""
    run_tool("ip", "link", "add", "name", "mine0", "type", "bridge")
    with _neighbour() as other, socket_in(other.pid, "127.0.0.1", PORT) as listener:
        with fork_into(other.pid, _say, "127.0.0.1", "hello"), listener.accept()[0] as connection:
            heard = connection.recv(100).decode()
        with socket.create_server(("127.0.0.1", PORT)):
            own_port_is_free = True
        send(
            {
                "other_interfaces": in_network_of(other.pid, _interfaces),
                "own_interfaces": sorted(_interfaces()),
                "sysfs": os.listdir("/sys/class/net"),
                "heard": heard,
                "own_port_is_free": own_port_is_free,
            }
        )


def foreign_address(job: dict[str, Any], send: Send) -> None:
    run_tool("ip", "link", "add", "name", "mine0", "type", "bridge")
    run_tool("ip", "address", "add", "10.9.9.9/24", "dev", "mine0")
    with _neighbour() as other:
        try:
            socket_in(other.pid, "10.9.9.9", PORT)
        except OSError as error:
            send({"error": type(error).__name__})


@contextlib.contextmanager
def _neighbour() -> Iterator[Child]:
    """A process in a network of its own."""
    read, write = os.pipe()

    def live() -> None:
        unshare_network()
        os.write(write, b"x")
        time.sleep(1000)

    with fork_into(None, live) as child:
        os.read(read, 1)
        yield child


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


# ---- network ------------------------------------------------------------------------------------


def build(job: dict[str, Any]) -> Any:
    from testbed.host_tcp import HostTcp
    from testbed.topology import SessionNetwork

    trace = Trace("test", np.array(job["times_s"]), np.array(job["rates_mbps"]))
    hosts = {name: HostTcp(**host) for name, host in job.get("hosts", {}).items()}
    link = link_of(trace, **job.get("link", {}))
    return SessionNetwork(link, hosts=hosts, **job.get("network", {}))


def link_of(
    trace: Trace,
    *,
    backend: str = "auto",
    delay_ms: float = 0.0,
    queue_packets: int = 100,
    **down: Any,
) -> LinkSpec:
    """A link with the same delay both ways."""
    queue = QueueSpec(packets=queue_packets)
    return LinkSpec(
        down=DirectionSpec(trace=trace, delay_ms=delay_ms, queue=queue, **down),
        up=DirectionSpec(delay_ms=delay_ms),
        backend=backend,
    )


def source(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    while True:
        connection.sendall(LOAD_BLOCK)


def sink(address: str) -> None:
    with socket.create_connection((address, PORT)) as connection:
        while connection.recv(1 << 20):
            pass


def replay(job: dict[str, Any], send: Send) -> None:
    """A bulk download over a replayed trace."""
    with build(job) as network:
        listener = socket_in(network.server.pid, network.server.address, PORT)
        with (
            fork_into(network.server.pid, source, listener),
            fork_into(network.client.pid, sink, network.server.address),
        ):
            network.start_replay()
            time.sleep(job["seconds"])
            measurement = network.stop_replay()
    send(
        {"record": asdict(measurement.record), "seconds": [asdict(s) for s in measurement.seconds]}
    )


def session(job: dict[str, Any], send: Send) -> None:
    unshare_network()
    replay(job, send)


def side_by_side(job: dict[str, Any], send: Send) -> None:
    children = [fork_into(None, session, job, send) for _ in range(job["networks"])]
    for child in children:
        if child.wait():
            raise RuntimeError("a session failed")


def inspect(job: dict[str, Any], send: Send) -> None:
    """What a network looks like while it is up, and what is left of it afterwards."""
    unshare_network()
    before = _processes()
    with build(job) as network:
        reached = {}
        for name in ("server", "controller"):
            host = getattr(network, name)
            with (
                socket_in(host.pid, host.address, PORT) as listener,
                fork_into(network.client.pid, _say, host.address, name),
                listener.accept()[0] as connection,
            ):
                reached[name] = connection.recv(100).decode()
        send(
            {
                "reached": reached,
                "backend": network.backend,
                "addresses": [
                    network.server.address,
                    network.client.address,
                    network.controller.address,
                ],
            }
        )
        began = time.monotonic()
    send(
        {
            "stopped_s": time.monotonic() - began,
            "processes": len(_processes() - before),
            "interfaces": sorted(name for _, name in socket.if_nameindex()),
        }
    )


def share(job: dict[str, Any], send: Send) -> None:
    """Everybody downloads at once over one bottleneck; who got how much, and how hosts are set."""
    with build(job) as network, contextlib.ExitStack() as stack:
        pairs = [(client, network.server) for client in network.clients]
        pairs += [network.background] if network.background else []
        received = {}
        for number, (near, far) in enumerate(pairs):
            listener = stack.enter_context(socket_in(far.pid, far.address, PORT + number))
            stack.enter_context(fork_into(far.pid, source, listener))
            end = stack.enter_context(
                in_network_of(near.pid, socket.create_connection, listener.getsockname())
            )
            received[end] = 0
        network.start_replay()
        until_s = time.monotonic() + job["seconds"]
        while (left_s := until_s - time.monotonic()) > 0:
            for end in select.select(list(received), [], [], left_s)[0]:
                received[end] += len(end.recv(1 << 20))
        record = asdict(network.stop_replay().record)
        setting = Path("/proc/sys/net/ipv4/tcp_rmem").read_text
        send(
            {
                "received_bytes": list(received.values()),
                "record": record,
                "rmem": {
                    name: in_network_of(getattr(network, name).pid, setting).split()
                    for name in ("server", "client")
                },
                "controllers_reached": [
                    _reaches(client, network.controller) for client in network.clients
                ],
            }
        )


def _reaches(near: Any, far: Any) -> bool:
    with socket_in(far.pid, far.address, PORT) as listener:
        in_network_of(near.pid, socket.create_connection, listener.getsockname(), 5).close()
    return True


def _processes() -> set[str]:
    return {name for name in os.listdir("/proc") if name.isdigit()}


def _say(address: str, text: str) -> None:
    with socket.create_connection((address, PORT)) as connection:
        connection.sendall(text.encode())


def lose_class(job: dict[str, Any], send: Send) -> None:
    """Somebody takes the shaping away during a session."""
    with build(job) as network:
        network.start_replay()
        run_tool("tc", "qdisc", "del", "dev", "s1-eth2", "root")
        time.sleep(0.2)
        network.stop_replay()


def support(job: dict[str, Any], send: Send) -> None:
    """Tries to build networks; for each why this machine cannot, and what interfaces that left."""
    for one in job["jobs"]:
        try:
            with build(one):
                send({"error": None})
        except (ValueError, RuntimeError) as error:
            names = [name for _, name in socket.if_nameindex()]
            send({"type": type(error).__name__, "error": str(error), "interfaces": names})


def round_trips(job: dict[str, Any], send: Send) -> None:
    """Round-trip times over the media path and over the control path, seconds."""
    with build(job) as network:
        times_s = {}
        for name in ("server", "controller"):
            host = getattr(network, name)
            with socket_in(host.pid, host.address, PORT) as listener:
                began = time.monotonic()
                in_network_of(
                    network.client.pid, socket.create_connection, listener.getsockname(), 10
                ).close()
                times_s[name] = time.monotonic() - began
        send(times_s)


def build_twice(job: dict[str, Any], send: Send) -> None:
    for number in range(2):
        with build(job):
            send({"built": number})


def fail_half_way(job: dict[str, Any], send: Send) -> None:
    from testbed import topology

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("in the middle")

    topology.KernelLink = refuse  # type: ignore
    try:
        with build(job):
            pass
    except RuntimeError as error:
        names = [name for _, name in socket.if_nameindex()]
        send({"error": str(error), "interfaces": names})


def kill_shell(job: dict[str, Any], send: Send) -> None:
    """A host's shell is killed from outside while the network is up."""
    with build(job) as network:
        for host in (network.server, network.client):
            os.kill(host.pid, signal.SIGKILL)
    time.sleep(0.5)  # for the kernel to take their namespaces down
    send({"interfaces": [name for _, name in socket.if_nameindex()]})
