"""What the tests of packet captures run inside a sandbox."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

from emulation_entries import PORT, build

from testbed.capture import WHOLE_PACKET_BYTES, Capture, CaptureError, CapturePoint
from testbed.namespaces import fork_into, in_network_of, socket_in
from testbed.sandbox import Send

CLIENT_POINTS = (
    CapturePoint("client-eth0"),
    CapturePoint("client-eth1", snap_bytes=WHOLE_PACKET_BYTES),
)
TCP_INFO_BYTES = 104
TOTAL_RETRANSMISSIONS = struct.Struct("=100xI")


def download_and_ask(job: dict[str, Any], send: Send) -> None:
    """A download over the bottleneck, then questions on one connection, all captured."""
    with (
        build(job) as network,
        Capture(pid=network.client.pid, points=CLIENT_POINTS, path=Path(job["path"])),
    ):
        network.start_replay()
        with (
            socket_in(network.server.pid, network.server.address, PORT) as listener,
            in_network_of(
                network.client.pid, socket.create_connection, listener.getsockname()
            ) as near,
            listener.accept()[0] as far,
            fork_into(None, _receive, near, job["bytes"]),
        ):
            far.sendall(bytes(job["bytes"]))
            far.recv(1)  # all has arrived
            info = far.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        send({"retransmissions": TOTAL_RETRANSMISSIONS.unpack(info)[0]})
        host = network.controller
        with (
            socket_in(host.pid, host.address, PORT) as listener,
            fork_into(host.pid, _answer, listener, job["think_s"]),
            in_network_of(
                network.client.pid, socket.create_connection, (host.address, PORT)
            ) as end,
        ):
            send({"took_s": [_ask(end) for _ in range(job["questions"])]})


def _receive(connection: socket.socket, count: int) -> None:
    while count:
        count -= len(connection.recv(1 << 16))
    connection.sendall(b"x")


def _answer(listener: socket.socket, think_s: float) -> None:
    connection, _ = listener.accept()
    while connection.recv(1 << 16):
        time.sleep(think_s)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        connection.sendall(b"{}")


def _ask(end: socket.socket) -> float:
    began = time.monotonic()
    end.sendall(b"POST /v1/abr/bba/decide HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    answer = b""
    while not answer.endswith(b"{}"):
        answer += end.recv(1 << 16)
    return time.monotonic() - began


def datagrams(job: dict[str, Any], send: Send) -> None:
    """Datagrams to oneself; each passes the interface twice."""
    capture = Capture(
        pid=os.getpid(),
        points=[CapturePoint("lo", job["snap_bytes"])],
        path=Path(job["path"]),
        max_bytes=job["max_bytes"],
    )
    with capture:
        if job["is_stopped"]:
            os.kill(capture.process_id, signal.SIGSTOP)
        with socket.socket(type=socket.SOCK_DGRAM) as source:
            for number in range(job["count"]):
                source.sendto(number.to_bytes(4) * 100, ("127.0.0.1", PORT))
        if job["is_stopped"]:
            os.kill(capture.process_id, signal.SIGCONT)
    send({"bytes": Path(job["path"]).stat().st_size})


def killed(job: dict[str, Any], send: Send) -> None:
    """The capture's process is killed in the middle."""
    try:
        with Capture(
            pid=os.getpid(), points=[CapturePoint("lo")], path=Path(job["path"])
        ) as capture:
            with socket.create_server(("127.0.0.1", PORT)):
                socket.create_connection(("127.0.0.1", PORT)).close()
            time.sleep(1)
            os.kill(capture.process_id, signal.SIGKILL)
    except CaptureError as error:
        send({"error": str(error)})


def nowhere(job: dict[str, Any], send: Send) -> None:
    """An interface that does not exist."""
    try:
        with Capture(pid=os.getpid(), points=[CapturePoint("eth9")], path=Path(job["path"])):
            pass
    except CaptureError as error:
        send({"error": str(error)})
