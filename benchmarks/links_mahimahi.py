"""Mahimahi's links, measured just as ours are: with the same traces, traffic and recorder.

Mahimahi (Netravali et al., USENIX ATC 2015) is a set of shells: what runs inside ``mm-link`` sees
the world through a link that follows a trace of delivery opportunities, and ``mm-delay`` outside of
it adds one-way delay. Its down-link leads towards the inner shell, where the recorder listens.

``mm-link`` is set-uid root and refuses to run for root itself, and it needs IP forwarding and
iptables. So each link gets a private network namespace, made as root, in which an ordinary user
starts the shells. That takes root; nothing of the machine's own network is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pwd
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from player.trace import Trace
from testbed.links.fidelity import Recorder, room_for, wire_nmae
from testbed.links.htb import run_tool
from testbed.links.traffic import Route, echo, tcp_load, udp_load
from testbed.namespaces import (
    fork_into,
    in_network_of,
    sleep_until,
    unshare_network,
)
from testbed.sandbox import Send, probe_sandbox, run_in_sandbox, tool_path
from testbed.traces import write_mahimahi

Traffic = Literal["cubic", "bbr", "reno", "udp", "echo"]

PROGRAMS = ("mm-link", "mm-delay", "iptables", "ip")
USER = "nobody"
QUEUE_PACKETS = 100
UPLINK_PERIOD_MS = 1  # one packet per millisecond, 12 Mbit/s: enough for acknowledgements
INNER_INTERFACE = "ingress"  # Mahimahi's name for it
LEAD_IN_S = 1.0  # from the last link being up to the first packet
TAIL_S = 0.5  # for the packets that the last borders move to
ECHO_EVERY_S = 0.05
START_TIMEOUT_S = 10.0
MS_PER_S = 1000
SIOCGIFADDR = 0x8915
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class MahimahiUnavailable(RuntimeError):
    """Mahimahi cannot be measured here; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MahimahiLink:
    """What one link of Mahimahi did.

    Attributes:
        trace: name of the trace.
        nmae_1s: wire NMAE in bins of 1 s, moved borders; None for an echo, as the six below.
        nmae_100ms: in bins of 100 ms.
        nmae_1s_split: as ``nmae_1s``, borders that split packets.
        nmae_100ms_split: as ``nmae_100ms``, likewise.
        nmae_1s_fixed: as ``nmae_1s``, fixed borders.
        nmae_100ms_fixed: as ``nmae_100ms``, likewise.
        total_error: share of what was asked that came too much.
        rtt_p50_s: round-trip time, delay included, that half stayed below; None for a load.
        rtt_p99_s: likewise, 99 %.
        echoes_lost: packets of an echo that did not come back.
        link_cpu: share of a core that the processes of ``mm-link`` took.
        delay_cpu: share of a core that those of ``mm-delay`` took.
    """

    trace: str
    nmae_1s: float | None = None
    nmae_100ms: float | None = None
    nmae_1s_split: float | None = None
    nmae_100ms_split: float | None = None
    nmae_1s_fixed: float | None = None
    nmae_100ms_fixed: float | None = None
    total_error: float | None = None
    rtt_p50_s: float | None = None
    rtt_p99_s: float | None = None
    echoes_lost: int = 0
    link_cpu: float
    delay_cpu: float


def mahimahi_problem(user: str = USER) -> str | None:
    """Why Mahimahi cannot be measured here; None if nothing is seen to be missing."""
    for program in PROGRAMS:
        if shutil.which(program, path=tool_path()) is None:
            return f"no {program} on the PATH"
    for program in ("mm-link", "mm-delay"):
        if not os.stat(shutil.which(program, path=tool_path()) or "").st_mode & 0o4000:
            return f"{program} is not set-uid root"
    if probe_sandbox().mode != "root":
        return "it takes root to give mm-link a network of its own"
    try:
        if pwd.getpwnam(user).pw_uid == 0:
            return f"mm-link refuses to run for root, which {user} is"
    except KeyError:
        return f"there is no user {user}"
    return None


def measure_mahimahi(
    traces: Sequence[Trace],
    seconds: float,
    traffic: Traffic,
    delay_ms: int = 20,
    *,
    user: str = USER,
) -> list[MahimahiLink]:
    """Runs one link per trace, all at once, and measures each.

    Args:
        traces: what the links replay, as Mahimahi's files say it.
        seconds: how long the traffic lasts.
        traffic: a congestion control for a TCP connection, ``udp``, or ``echo`` without any load.
        delay_ms: one-way delay, by ``mm-delay``; 0 leaves that out.
        user: an ordinary user to run the shells.

    Raises:
        MahimahiUnavailable: it cannot be run here.
        SandboxError: a link did not come up.
    """
    if problem := mahimahi_problem(user):
        raise MahimahiUnavailable(problem)
    job = {
        "traces": [[t.name, t.times_s.tolist(), t.rates_mbps.tolist()] for t in traces],
        "seconds": seconds,
        "traffic": traffic,
        "delay_ms": delay_ms,
        "user": user,
    }
    results: list[MahimahiLink] = []
    module = Path(__file__).stem
    if (folder := str(Path(__file__).parent)) not in sys.path:
        sys.path.append(folder)
    run_in_sandbox(
        f"{module}:measure_inside", job, on_message=lambda m: results.append(MahimahiLink(**m))
    )
    return results


# ---- inside the sandbox -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shells:
    """Shells that are up.

    Attributes:
        trace: what the down-link replays.
        outer_pid: a process outside of them.
        inner_pid: one inside.
        inner_address: address there.
        began_s: when the down-link's replay began, ``time.monotonic()``.
        pids: of their processes, by program.
    """

    trace: Trace
    outer_pid: int
    inner_pid: int
    inner_address: str
    began_s: float
    pids: dict[str, list[int]]

    def cpu_s(self, program: str) -> float:
        """Time that the processes of a program took so far."""
        return sum(map(_cpu_s, self.pids[program]))


def measure_inside(job: dict[str, Any], send: Send) -> None:
    """Entry in the sandbox; sends one message per trace."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        shells = [
            stack.enter_context(_shells(_trace(*row), folder / str(n), job))
            for n, row in enumerate(job["traces"])
        ]
        measure = _measure_echo if job["traffic"] == "echo" else _measure_load
        for result in measure(shells, job):
            send(asdict(result))


def _trace(name: str, times_s: list[float], rates_mbps: list[float]) -> Trace:
    return Trace(name, np.array(times_s), np.array(rates_mbps))


def _measure_load(shells: list[_Shells], job: dict[str, Any]) -> Iterator[MahimahiLink]:
    seconds: float = job["seconds"]
    at_s = time.monotonic() + LEAD_IN_S
    with contextlib.ExitStack() as stack:
        recorders = []
        for one in shells:
            room = room_for(one.trace, seconds + LEAD_IN_S + TAIL_S)
            recorder = in_network_of(one.inner_pid, Recorder, INNER_INTERFACE, packets=room)
            recorders.append(stack.enter_context(recorder))
            route = Route(one.outer_pid, one.inner_pid, one.inner_address)
            stack.enter_context(
                udp_load(route, one.trace, at_s=at_s, seconds=seconds, start_s=at_s - one.began_s)
                if job["traffic"] == "udp"
                else tcp_load(route, at_s=at_s, seconds=seconds, congestion=job["traffic"])
            )
        sleep_until(at_s)
        shares = _cpu_shares(shells, until_s=at_s + seconds)
        time.sleep(TAIL_S)
        arrivals = [recorder.read() for recorder in recorders]
    for one, came, (link_cpu, delay_cpu) in zip(shells, arrivals, shares, strict=True):
        nmae = functools.partial(
            wire_nmae,
            came,
            one.trace,
            began_s=at_s,
            ended_s=at_s + seconds,
            start_s=at_s - one.began_s,
        )
        quoted = nmae(bin_s=1.0)
        yield MahimahiLink(
            trace=one.trace.name,
            nmae_1s=quoted.nmae,
            nmae_100ms=nmae(bin_s=0.1).nmae,
            nmae_1s_split=nmae(bin_s=1.0, borders="split").nmae,
            nmae_100ms_split=nmae(bin_s=0.1, borders="split").nmae,
            nmae_1s_fixed=nmae(bin_s=1.0, borders="fixed").nmae,
            nmae_100ms_fixed=nmae(bin_s=0.1, borders="fixed").nmae,
            total_error=quoted.total_error,
            link_cpu=link_cpu,
            delay_cpu=delay_cpu,
        )


def _measure_echo(shells: list[_Shells], job: dict[str, Any]) -> Iterator[MahimahiLink]:
    seconds: float = job["seconds"]
    at_s = time.monotonic() + LEAD_IN_S
    count = max(int(seconds / ECHO_EVERY_S), 1)
    with contextlib.ExitStack() as stack:
        echoes = []
        for one in shells:
            route = Route(one.outer_pid, one.inner_pid, one.inner_address)
            echoes.append(
                stack.enter_context(echo(route, at_s=at_s, count=count, every_s=ECHO_EVERY_S))
            )
        sleep_until(at_s)
        shares = _cpu_shares(shells, until_s=at_s + seconds)
        trips = [one.read(START_TIMEOUT_S) for one in echoes]
    for one, trip, (link_cpu, delay_cpu) in zip(shells, trips, shares, strict=True):
        yield MahimahiLink(
            trace=one.trace.name,
            rtt_p50_s=trip.quantile_s(0.5),
            rtt_p99_s=trip.quantile_s(0.99),
            echoes_lost=trip.sent - len(trip.rtt_s),
            link_cpu=link_cpu,
            delay_cpu=delay_cpu,
        )


def _cpu_shares(shells: list[_Shells], *, until_s: float) -> list[tuple[float, float]]:
    """Waits; the shares of a core that the two programs of each link took meanwhile."""

    def read() -> list[tuple[float, float]]:
        return [(one.cpu_s("mm-link"), one.cpu_s("mm-delay")) for one in shells]

    began_s, before = time.monotonic(), read()
    sleep_until(until_s)
    took_s, after = time.monotonic() - began_s, read()
    return [
        ((link_1 - link_0) / took_s, (delay_1 - delay_0) / took_s)
        for (link_0, delay_0), (link_1, delay_1) in zip(before, after, strict=True)
    ]


@contextlib.contextmanager
def _shells(trace: Trace, folder: Path, job: dict[str, Any]) -> Iterator[_Shells]:
    """``mm-delay`` with ``mm-link`` in it, in a network of their own."""
    folder.mkdir()
    down, up, log = folder / "down", folder / "up", folder / "log"
    write_mahimahi(trace, down)
    up.write_text(f"{UPLINK_PERIOD_MS}\n")
    os.mkfifo(log)
    log.chmod(0o666)
    # The shells in between say their process id and wait for a line.
    say = 'echo $$; read -r line; exec "$@"'
    link = [
        *("mm-link", str(up), str(down), f"--downlink-log={log}"),
        *("--downlink-queue=droptail", f"--downlink-queue-args=packets={QUEUE_PACKETS}"),
        *("--", "sh", "-c", say, "sh", "sleep", "infinity"),
    ]
    delay_ms: int = job["delay_ms"]
    outer = ["mm-delay", str(delay_ms), "sh", "-c", say, "sh"] if delay_ms else []
    read, write = os.pipe()
    with (
        open(read, "rb", buffering=0) as ready,
        fork_into(None, _world, write) as world,
        contextlib.ExitStack() as stack,
    ):
        os.close(write)
        _read_line(ready, "a network")
        log_file = stack.enter_context(open(os.open(log, os.O_RDONLY | os.O_NONBLOCK), "rb", 0))
        process = in_network_of(world.pid, _start, [*outer, *link], job["user"])
        stack.callback(_end, process)
        assert process.stdin is not None  # opened as pipes
        assert process.stdout is not None
        chain = []
        if delay_ms:
            chain.append(int(_read_line(process.stdout, "mm-delay")))
            in_network_of(chain[0], FORWARD.write_text, "1")
            process.stdin.write(b"go\n")
        chain.append(int(_read_line(process.stdout, "mm-link")))
        process.stdin.write(b"go\n")
        address = in_network_of(chain[-1], _address_of, INNER_INTERFACE)
        if delay_ms:
            gateway = in_network_of(chain[0], _address_of, INNER_INTERFACE)
            in_network_of(world.pid, run_tool, "ip", "route", "add", address, "via", gateway)
        began_s = _replay_began_s(log_file)
        log_file.close()  # from here on mm-link writes nothing
        pids = _by_program(process.pid)
        yield _Shells(trace, world.pid, chain[-1], address, began_s, pids)


def _world(ready: int) -> None:
    """The network around the shells."""
    unshare_network()
    FORWARD.write_text("1")
    os.write(ready, b"ready\n")
    time.sleep(float(1 << 20))


def _start(command: list[str], user: str) -> subprocess.Popen[bytes]:
    entry = pwd.getpwnam(user)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        cwd="/",
        # SIGPIPE stays ignored: mm-link is to go on when nobody reads its log any more.
        restore_signals=False,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the outermost shell; each ends what it started and takes its rules out of iptables."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read_line(file: IO[bytes], who: str) -> str:
    """One line; bounded in time.

    Raises:
        RuntimeError: it does not come.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        line = bytearray()
        ends_s = time.monotonic() + START_TIMEOUT_S
        while not line.endswith(b"\n"):
            if not selector.select(max(ends_s - time.monotonic(), 0.0)):
                raise RuntimeError(f"{who} did not come up in {START_TIMEOUT_S} s")
            block = os.read(file.fileno(), 1)
            if not block:
                raise RuntimeError(f"{who} ended")
            line += block
    return line.decode(errors="replace").strip()


def _replay_began_s(log: IO[bytes]) -> float:
    """When the replay began, as the head of the down-link's log says; the rest is not read.

    Raises:
        RuntimeError: this Mahimahi does not say it.
    """
    head = dict[str, str]()
    while "# base timestamp" not in head:
        name, separator, value = _read_line(log, "the log of mm-link").partition(": ")
        if not separator and not name.startswith("#"):
            raise RuntimeError("the log of this mm-link does not say when it began")
        head[name] = value
    real_ms = int(head["# init timestamp"]) + int(head["# base timestamp"])
    return time.monotonic() - (time.time() - real_ms / MS_PER_S)


def _address_of(interface: str) -> str:
    request = struct.pack("256s", interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return socket.inet_ntoa(fcntl.ioctl(control, SIOCGIFADDR, request)[20:24])


def _by_program(root_pid: int) -> dict[str, list[int]]:
    """Process ids below one, by program."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(") ")
                names[int(entry.name)] = name
                children.setdefault(int(rest.split()[1]), []).append(int(entry.name))
    found: dict[str, list[int]] = {"mm-link": [], "mm-delay": []}
    pending = [root_pid]
    while pending:
        pid = pending.pop()
        pending += children.get(pid, [])
        found.setdefault(names.get(pid, ""), []).append(pid)
    return found


def _cpu_s(pid: int) -> float:
    """User and system time of a process so far.

    Raises:
        RuntimeError: it has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise RuntimeError("a shell of Mahimahi ended while it was measured") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
