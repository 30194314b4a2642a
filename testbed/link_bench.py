"""How faithful the links are on this machine: real packets, counted by the kernel at the receiver.

Each link is that of an emulated session, with its server, its client and its switch. The traffic
keeps the queue filled, or is an echo that measures the delay, and ``testbed.links.fidelity`` judges
from the packets that arrive what the link did.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pydantic

from player.trace import Trace
from testbed.abr_experiment import AbrPlan, abr_experiment
from testbed.builtin import builtin_video
from testbed.emulation import emulation_errors, encode_plan
from testbed.experiment import parse_experiment
from testbed.experiment_base import ConfigError
from testbed.links.backends import Backend
from testbed.links.fidelity import BITS_PER_BYTE, MAX_PACKETS, PACKET_BYTES
from testbed.sandbox import run_in_sandbox
from testbed.sessions import Session

ENTRY = "testbed.link_bench_inside:bench_links"
Traffic = Literal["udp", "cubic", "reno", "bbr", "echo"]
TRAFFIC: tuple[str, ...] = get_args(Traffic)
MAX_LINKS = 100
MAX_SECONDS = 3600.0
MIN_SECONDS = 4.0  # the first two do not count


@dataclass(frozen=True, kw_only=True)
class LinkBench:
    """What one link did; shares of what the trace asked for, None where it cannot be said.

    Attributes:
        trace: name of its trace.
        delivered_mbps: mean layer-3 rate at the receiver, behind the warm-up.
        nmae_1s: wire NMAE in bins of 1 s; see ``testbed.links.fidelity``.
        nmae_100ms: in bins of 100 ms.
        total_error: how much came too much, over all.
        rtt_error_p50_ms: echo: median of the round-trip time, less twice the delay.
        rtt_error_p99_ms: echo: 99 % of the round-trip times, likewise.
        echoes_lost: echo: packets that did not come back.
        queue_drops: packets that found the queue full.
        losses: packets that the loss process took.
        aqm_drops: packets that the active queue management dropped.
        marks: packets that it marked.
        queue_packets: longest queue that was seen.
        delay_p50_ms: median of the one-way delay towards the client, queueing included.
        delay_p99_ms: 99 % of it.
        late_ms: longest delay with which a packet was delivered, or the kernel took a change.
    """

    trace: str
    delivered_mbps: float | None = None
    nmae_1s: float | None = None
    nmae_100ms: float | None = None
    total_error: float | None = None
    rtt_error_p50_ms: float | None = None
    rtt_error_p99_ms: float | None = None
    echoes_lost: int = 0
    queue_drops: int = 0
    losses: int = 0
    aqm_drops: int = 0
    marks: int = 0
    queue_packets: int = 0
    delay_p50_ms: float | None = None
    delay_p99_ms: float | None = None
    late_ms: float = 0.0


@dataclass(frozen=True)
class Bench:
    """All links of one measurement, which ran at the same time.

    Attributes:
        backend: what made them, and why.
        traffic: what crossed them.
        seconds: how long.
        links: one by one.
        cpu: cores that the processes which make the links used.
        load: the machine's load average before, over a minute.
    """

    backend: Backend
    traffic: str
    seconds: float
    links: tuple[LinkBench, ...]
    cpu: float
    load: float

    def median(self, name: str) -> float | None:
        """Median over the links of one of their figures."""
        values = [getattr(link, name) for link in self.links]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    def as_json(self) -> dict[str, Any]:
        """The document that ``testbed link bench --json`` prints."""
        return dataclasses.asdict(self)


_LINK = pydantic.TypeAdapter(LinkBench)


def bench_links(
    traces: Sequence[Trace],
    *,
    seconds: float,
    traffic: str,
    link: Mapping[str, Any],
    python_loop: bool = False,
) -> Bench:
    """Measures links that replay the given traces at the same time.

    Args:
        traces: one per link.
        seconds: how long, 4 s at least.
        traffic: ``udp``, a congestion control (one TCP connection), or ``echo``.
        link: the table ``[link]`` of an experiment.
        python_loop: have the user-space link do without what is compiled.

    Raises:
        ConfigError: an argument is out of bounds.
        LinkUnsupported: this machine cannot make such links.
        SandboxError: no sandbox can be made, or it died.
        ShapingError: a link did not do what was asked.
    """
    if traffic not in TRAFFIC:
        raise ConfigError(f"traffic: {traffic!r} is not one of {', '.join(TRAFFIC)}")
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ConfigError(f"seconds: {seconds} is not from {MIN_SECONDS} to {MAX_SECONDS}")
    if not 1 <= len(traces) <= MAX_LINKS:
        raise ConfigError(f"{len(traces)} traces; from 1 to {MAX_LINKS} links can be measured")
    for trace in traces:
        _check_room(trace, seconds)
    plan = _plan(traces, traffic, link)
    job = encode_plan(plan, plan.sessions, jobs=len(traces))
    job |= {"seconds": seconds, "traffic": traffic, "python_loop": python_loop}
    load = os.getloadavg()[0]
    found: dict[int, LinkBench] = {}
    told: dict[str, Any] = {}

    def receive(message: dict[str, Any]) -> None:
        if message["kind"] == "link":
            found[message["session"]] = _LINK.validate_python(message["bench"])
        else:
            told.update(message)

    with emulation_errors():
        run_in_sandbox(ENTRY, job, on_message=receive)
    return Bench(
        backend=Backend(told["name"], told["why"]),
        traffic=traffic,
        seconds=seconds,
        links=tuple(found[number] for number in sorted(found)),
        cpu=told["cpu"],
        load=load,
    )


def _check_room(trace: Trace, seconds: float) -> None:
    """Every packet that arrives is noted, in memory of the kernel; there is an end to that.

    Raises:
        ConfigError: there would be too many of them.
    """
    bits = np.diff(trace.bits_until(np.array([0.0, seconds])))[0]
    if (packets := bits / BITS_PER_BYTE / PACKET_BYTES) > MAX_PACKETS:
        raise ConfigError(
            f"seconds: {trace.name} lets {packets:.0f} packets pass in {seconds:g} s, "
            f"more than the {MAX_PACKETS} that can be noted"
        )


def _plan(traces: Sequence[Trace], traffic: str, link: Mapping[str, Any]) -> AbrPlan:
    """An experiment with these links; nothing is played in it."""
    congestion = {} if traffic in ("udp", "echo") else {"congestion": traffic}
    arms = [{"controller": "fixed"}]
    document = {"task": "abr", "arms": arms, "link": {**congestion, **link}}
    experiment = abr_experiment(parse_experiment(document, where="link"), "links")
    named = [
        dataclasses.replace(trace, name=f"{trace.name}#{number}")  # one may be asked for repeatedly
        for number, trace in enumerate(traces)
    ]
    arm = experiment.arms[0]
    sessions = tuple(Session(number, arm, trace, 1) for number, trace in enumerate(named))
    return AbrPlan(experiment, sessions, builtin_video("envivio-like"))
