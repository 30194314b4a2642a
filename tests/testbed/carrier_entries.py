"""What the tests of the carriers run inside a sandbox."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Any

from testbed.links.carrier import Carrier, PythonCarrier
from testbed.links.compiled import CompiledCarrier
from testbed.links.htb import run_tool
from testbed.links.pipe import PipeSettings, TraceArrays
from testbed.links.tap import open_tap, tap_problem
from testbed.namespaces import bring_up
from testbed.sandbox import Send

EXPERIMENT = 0x88B5  # EtherType for local experiments: nothing else here sends such frames
HEADER = b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02" + struct.pack("!H", EXPERIMENT)
FRAMES = 100
DELAY_S = 0.01
SILENCE_S = 0.3


def probe_tap(job: dict[str, Any], send: Send) -> None:
    send({"problem": tap_problem()})


def lose_interface(job: dict[str, Any], send: Send) -> None:
    """Two pipes between TAP interfaces; then one of these is deleted."""
    carrier: Carrier = PythonCarrier() if job["loop"] == "python" else CompiledCarrier()
    taps = {name: open_tap(name) for name in ("tapa", "tapb", "tapc", "tapd")}
    ends = {name: _packet_socket(name) for name in taps}
    delayed = PipeSettings(delay_s=DELAY_S)
    pipes = [
        carrier.add(taps[source], taps[sink], delayed, TraceArrays())
        for source, sink in (("tapa", "tapb"), ("tapc", "tapd"))
    ]
    for pipe in pipes:
        carrier.start(pipe, time.monotonic())
    send({"pipes": pipes})
    send({"first": _carried(carrier, ends["tapa"], ends["tapb"])})
    run_tool("ip", "link", "delete", "dev", "tapa")
    carrier.run(time.monotonic() + SILENCE_S)
    send({"broken": carrier.take_broken()})
    send({"second": _carried(carrier, ends["tapc"], ends["tapd"])})
    send({"broken": carrier.take_broken()})
    for pipe in pipes:
        carrier.finish(pipe, time.monotonic())
        carrier.remove(pipe)
    for descriptor in taps.values():
        os.close(descriptor)
    for end in ends.values():
        end.close()


def _packet_socket(interface: str) -> socket.socket:
    bring_up(interface)
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EXPERIMENT))
    end.bind((interface, EXPERIMENT))
    return end


def _carried(carrier: Carrier, near: socket.socket, far: socket.socket) -> list[int]:
    """Numbers of the frames that came, in this order."""
    for number in range(FRAMES):
        near.send(HEADER + struct.pack("!I", number) + bytes(100))
    until_s = time.monotonic() + SILENCE_S
    while time.monotonic() < until_s:
        carrier.run(until_s)
        carrier.take_rows()
    came = []
    while select.select([far], [], [], 0)[0]:
        came.append(struct.unpack_from("!I", far.recv(2048), len(HEADER))[0])
    return came
