"""What the tests of background traffic run inside a sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic
from emulation_entries import _neighbour

from testbed.background import BackgroundTraffic
from testbed.background_flows import Background, Place
from testbed.links.htb import disable_offloads, run_tool
from testbed.namespaces import fork_into, in_network_of, sleep_until
from testbed.sandbox import Send

TRAFFIC = pydantic.TypeAdapter(tuple[BackgroundTraffic, ...])
PROCESS = "run_background"
NEAR, FAR = "10.7.0.1", "10.7.0.2"
QUEUE_PACKETS = 50


@contextlib.contextmanager
def bottleneck(rate_mbps: float) -> Iterator[tuple[Place, Place]]:
    """Two hosts, the far one behind a link that is slow towards the near one."""
    with _neighbour() as other:
        run_tool(
            *("ip", "link", "add", "near0", "type", "veth"),
            *("peer", "name", "far0", "netns", str(other.pid)),
        )
        _configure("near0", NEAR)
        in_network_of(other.pid, _configure, "far0", FAR, rate_mbps)
        try:
            yield (os.getpid(), NEAR), (other.pid, FAR)
        finally:
            run_tool("ip", "link", "del", "dev", "near0")


def _configure(interface: str, address: str, rate_mbps: float | None = None) -> None:
    disable_offloads(interface)
    run_tool("ip", "address", "add", f"{address}/24", "dev", interface)
    run_tool("ip", "link", "set", "dev", interface, "up")
    if rate_mbps is not None:
        at = ("dev", interface, "parent")
        run_tool(
            *("tc", "qdisc", "add", "dev", interface, "root", "handle", "1:"), "htb", "default", "1"
        )
        run_tool(
            *("tc", "class", "add", *at, "1:", "classid", "1:1"), "htb", "rate", f"{rate_mbps}mbit"
        )
        run_tool("tc", "qdisc", "add", *at, "1:1", "pfifo", "limit", str(QUEUE_PACKETS))


def over_a_link(job: dict[str, Any], send: Send) -> None:
    """Runs the job's traffic over a bottleneck, with an outage of it where the job asks for one."""
    traffic = TRAFFIC.validate_python(job["traffic"])
    with bottleneck(job["rate_mbps"]) as (near, far):
        with Background(traffic, seed=1, near=near, far=far) as flows:
            began_s = time.monotonic()
            flows.start(began_s)
            if "outage" in job:
                down_s, up_s = job["outage"]
                sleep_until(began_s + down_s)
                run_tool("ip", "link", "set", "dev", "near0", "down")
                sleep_until(began_s + up_s)
                run_tool("ip", "link", "set", "dev", "near0", "up")
            sleep_until(began_s + job["seconds"])
            records = flows.stop()
            assert flows.stop() == records
        assert not _processes()
    for record in records:
        send(asdict(record))


def unreachable(job: dict[str, Any], send: Send) -> None:
    """The two sides have nothing to do with each other: every connection is refused."""
    traffic = TRAFFIC.validate_python(job["traffic"])
    address = "127.0.0.1"
    with (
        _neighbour() as other,
        Background(traffic, seed=1, near=(os.getpid(), address), far=(other.pid, address)) as flows,
    ):
        flows.start(time.monotonic())
        time.sleep(job["seconds"])
        for record in flows.stop():
            send(asdict(record))


def ends(job: dict[str, Any], send: Send) -> None:
    """Who is left after a normal end, a stop without a start, and the death of the owner."""
    traffic = TRAFFIC.validate_python(job["traffic"])
    here = (os.getpid(), "127.0.0.1")
    with Background(traffic, seed=1, near=here, far=here) as flows:
        flows.start(time.monotonic())
        _wait_for(1)
        send({"processes": len(_processes())})
    send({"processes": len(_processes())})
    with Background(traffic, seed=1, near=here, far=here) as flows:
        (record,) = flows.stop()
        send({"processes": len(_processes()), "started": record.started})

    def own() -> None:
        with Background(traffic, seed=1, near=here, far=here) as flows:
            flows.start(time.monotonic())
            time.sleep(1000)

    with fork_into(None, own) as owner:
        _wait_for(1)
        os.kill(owner.pid, signal.SIGKILL)
    _wait_for(0)
    send({"processes": len(_processes())})
    with Background(traffic, seed=1, near=here, far=here) as flows:
        flows.start(time.monotonic())
        _wait_for(1)
        os.kill(_processes()[0], signal.SIGKILL)
        try:
            flows.stop()
        except RuntimeError as error:
            send({"type": type(error).__name__, "error": str(error)})


def _wait_for(count: int) -> None:
    deadline = time.monotonic() + 5.0
    while len(_processes()) != count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _processes() -> list[int]:
    """The processes of background traffic; a dead one that nobody has reaped yet does not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, state = (entry / "stat").read_text().split(" (", 1)[1].rsplit(") ", 1)
            except OSError:
                continue
            if name == PROCESS and state[0] != "Z":
                found.append(int(entry.name))
    return found
