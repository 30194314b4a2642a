"""The inside of ``testbed.link_bench``: every link in a network of its own, all at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from player.trace import BITS_PER_MEGABIT
from testbed.emulated_session import session_network
from testbed.emulation import decode_plan
from testbed.link_bench import LinkBench
from testbed.links.compiled import LOOP_VARIABLE
from testbed.links.engine import EngineHandle, engine_process
from testbed.links.fidelity import BITS_PER_BYTE, WARM_UP_S, Arrivals, Recorder, room_for, wire_nmae
from testbed.links.measurement import LinkMeasurement
from testbed.links.traffic import RoundTrips, Route, echo, tcp_load, udp_load
from testbed.namespaces import fork_into, in_network_of, sleep_until, unshare_network
from testbed.sandbox import Send
from testbed.sessions import Session, StreamPlan
from testbed.topology import SessionNetwork

CLIENT_INTERFACE = "client-eth0"
PROCESSES = ("link_engine", "replay_process")  # that make links
LEAD_S = 1.0  # from all links being up to the first packet
TAIL_S = 0.5  # for the packets that the last borders move to
ECHO_EVERY_S = 0.01
ANSWER_TIMEOUT_S = 60.0
MS_PER_S = 1000.0


class BenchError(RuntimeError):
    """A link could not be measured."""


def bench_links(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox."""
    plan = decode_plan(job)
    seconds, traffic = float(job["seconds"]), str(job["traffic"])
    if job["python_loop"]:
        os.environ[LOOP_VARIABLE] = "python"
    backend = session_network(plan.experiment, plan.sessions[0]).check()
    with engine_process() as engine, contextlib.ExitStack() as stack:
        ends = [
            stack.enter_context(_measuring(plan, session, engine, seconds, traffic, send))
            for session in plan.sessions
        ]
        at_s = time.monotonic() + LEAD_S
        for end in ends:
            end.sendall(json.dumps(at_s).encode())
        sleep_until(at_s)
        cpu_s = _cpu_s()
        sleep_until(at_s + seconds)
        cpu = (_cpu_s() - cpu_s) / seconds
        for end in ends:
            if answer := end.recv(1 << 16):
                raise BenchError(answer.decode())
    send({"kind": "backend", "name": backend.name, "why": backend.why, "cpu": cpu})


@contextlib.contextmanager
def _measuring(
    plan: StreamPlan,
    session: Session,
    engine: EngineHandle,
    seconds: float,
    traffic: str,
    send: Send,
) -> Iterator[socket.socket]:
    """A process with a network of its own; it is up when this returns, and waits for the time.

    Yields:
        Where it takes the time to start, and says what went wrong before it closes its end.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(ANSWER_TIMEOUT_S + seconds)

    def measure() -> None:
        ours.close()
        try:
            unshare_network()
            with session_network(plan.experiment, session, engine=engine) as network:
                theirs.sendall(b"up")
                at_s = json.loads(theirs.recv(100))
                bench = _measure(plan, session, network, at_s, seconds, traffic)
        except Exception as error:  # told to the parent, whatever it is
            theirs.sendall(f"{session.trace.name}: {type(error).__name__}: {error}".encode())
        else:
            message = {"kind": "link", "session": session.number}
            send(message | {"bench": dataclasses.asdict(bench)})

    with ours, fork_into(None, measure) as child:
        theirs.close()
        if (answer := ours.recv(1 << 16)) != b"up":
            raise BenchError(answer.decode() or f"process {child.pid} died")
        yield ours


def _measure(
    plan: StreamPlan,
    session: Session,
    network: SessionNetwork,
    at_s: float,
    seconds: float,
    traffic: str,
) -> LinkBench:
    path = Route(network.server.pid, network.client.pid, network.client.address)
    trace = session.trace
    if traffic == "echo":
        count = int(seconds / ECHO_EVERY_S)
        with echo(path, at_s=at_s, count=count, every_s=ECHO_EVERY_S) as echoes:
            sleep_until(at_s)
            network.start_replay()
            answers = echoes.read(seconds + ANSWER_TIMEOUT_S)
            return _with_log(_echo_bench(plan, trace.name, answers), network.stop_replay())
    load = (
        udp_load(path, trace, at_s=at_s, seconds=seconds)
        if traffic == "udp"
        else tcp_load(path, at_s=at_s, seconds=seconds, congestion=traffic)
    )
    packets = room_for(trace, seconds + LEAD_S)
    recorder = in_network_of(network.client.pid, Recorder, CLIENT_INTERFACE, packets=packets)
    with recorder, load:
        sleep_until(at_s)
        began_s = network.start_replay()
        sleep_until(at_s + seconds + TAIL_S)
        measurement = network.stop_replay()
        arrivals = recorder.read()
    ended_s = at_s + seconds
    second, tenth = (
        wire_nmae(
            arrivals,
            trace,
            began_s=began_s,
            ended_s=ended_s,
            start_s=session.start_s,
            bin_s=bin_s,
        )
        for bin_s in (1.0, 0.1)
    )
    bench = LinkBench(
        trace=trace.name,
        delivered_mbps=_rate_mbps(arrivals, began_s + WARM_UP_S, ended_s),
        nmae_1s=second.nmae,
        nmae_100ms=tenth.nmae,
        total_error=second.total_error,
    )
    return _with_log(bench, measurement)


def _rate_mbps(arrivals: Arrivals, from_s: float, to_s: float) -> float:
    counted = (arrivals.arrival_s >= from_s) & (arrivals.arrival_s < to_s)
    bits = float(arrivals.size_bytes[counted].sum()) * BITS_PER_BYTE
    return bits / (to_s - from_s) / BITS_PER_MEGABIT


def _echo_bench(plan: StreamPlan, name: str, answers: RoundTrips) -> LinkBench:
    asked_ms = 2 * plan.experiment.link.delay_ms
    return LinkBench(
        trace=name,
        rtt_error_p50_ms=answers.quantile_s(0.5) * MS_PER_S - asked_ms,
        rtt_error_p99_ms=answers.quantile_s(0.99) * MS_PER_S - asked_ms,
        echoes_lost=answers.sent - len(answers.rtt_s),
    )


def _with_log(bench: LinkBench, measurement: LinkMeasurement) -> LinkBench:
    """Adds what the link itself wrote down."""
    down = [second for second in measurement.seconds if second.direction == "down"]
    return dataclasses.replace(
        bench,
        queue_drops=sum(second.drops for second in down),
        losses=sum(second.losses for second in down),
        aqm_drops=sum(second.aqm_drops for second in down),
        marks=sum(second.marks for second in down),
        queue_packets=max((second.backlog_packets for second in down), default=0),
        delay_p50_ms=measurement.record.delay_p50_ms,
        delay_p99_ms=measurement.record.delay_p99_ms,
        late_ms=max((second.late_s for second in down), default=0.0) * MS_PER_S,
    )


def _cpu_s() -> float:
    """User and system time so far of all processes in the sandbox that make links."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = (entry / "stat").read_text()
                name, _, rest = text.partition("(")[2].rpartition(") ")
                if name in PROCESSES:
                    fields = rest.split()
                    ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
