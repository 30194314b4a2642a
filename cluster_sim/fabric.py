"""The network between executors as a fluid: flows share links max–min fairly.

Progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2): the rates of all flows grow
alike until a link is full; its flows keep what they have, the others grow on. TCP comes near to
that where round trips are alike; slow start and losses are left aside.

A star joins all hosts at one switch. A leaf–spine fabric has hosts at leaves and each leaf at every
spine; what goes to a host of another leaf passes the spine of that host's number, as static routes
have it, so that one flow takes one path.

With a delay, bytes are behind by a round trip: that of the question and of their own way.

The links of hosts may follow bandwidth traces: at each border of a step all is shared anew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster_sim.link_traces import MS_PER_S, TraceSteps, scaled_trace
from player.trace import BITS_PER_MEGABIT, Trace

BYTES_PER_MS_PER_MBPS = 125.0
#: What TCP with timestamps leaves of a packet of 1,500 bytes.
TCP_PAYLOAD_SHARE = 1448 / 1500
#: Where a step without capacity begins, less than this of a transfer is rounding.
_NOTHING_BYTES = 1e-6
#: Ways that a message names.
_MOST_NAMED = 4
#: When all flows stand still for so long, and for two passes of each trace, they are taken never to
#: go on: links of one way may have their outages in turn.
_LONGEST_STALL_MS = 24 * 3600 * MS_PER_S


class FabricError(ValueError):
    """A fabric that cannot be; the message names what is wrong."""


@dataclass(frozen=True, slots=True)
class FabricLink:
    """One direction of a link.

    Attributes:
        name: ``from>to``, as in ``host3>leaf0``.
        rate_mbps: its capacity; the mean of its trace if it has one.
        trace: what its capacity follows, over and over; None: it is constant.
    """

    name: str
    rate_mbps: float
    trace: Trace | None = None

    def bits_between(self, from_s: float, to_s: float) -> float:
        """What it can carry between two moments, seconds since its trace began."""
        if self.trace is None:
            return self.rate_mbps * BITS_PER_MEGABIT * (to_s - from_s)
        return float(self.trace.bits_until(to_s) - self.trace.bits_until(from_s))


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """What joins the hosts.

    Attributes:
        hosts: how many, numbered from 0; executor i is at host i.
        host_mbps: capacity of the link of a host, each way; nothing with traces.
        leaves: switches that hosts are at, in blocks as equal as can be.
        spines: switches that join the leaves; 0 for a star, which has one leaf.
        spine_mbps: capacity of the link of a leaf and a spine, each way; 0 for a star.
        payload_share: what of a capacity is left for bytes of shuffles.
        delay_ms: one-way delay of each link.
        traces: what the links of hosts follow, both ways, from time 0 on: host i has trace i,
            modulo their number. Without any they have ``host_mbps``.
        links: all directions of all links.
    """

    hosts: int
    host_mbps: float
    leaves: int = 1
    spines: int = 0
    spine_mbps: float = 0.0
    payload_share: float = 1.0
    delay_ms: float = 0.0
    traces: tuple[Trace, ...] = ()
    links: tuple[FabricLink, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.leaves <= self.hosts:
            raise FabricError(f"{self.hosts} hosts at {self.leaves} leaves; each needs 1 or more")
        if self.spines < 0 or (self.leaves > 1 and self.spines == 0):
            raise FabricError(f"{self.leaves} leaves and {self.spines} spines; they need a spine")
        rates_mbps = {"host_mbps": self.host_mbps}
        if self.spines:
            rates_mbps["spine_mbps"] = self.spine_mbps
        if not 0 < self.payload_share <= 1:
            raise FabricError(f"payload_share {self.payload_share}; it must be above 0, at most 1")
        if not (math.isfinite(self.delay_ms) and self.delay_ms >= 0):
            raise FabricError(f"delay_ms = {self.delay_ms}; it must not be negative")
        for name, rate_mbps in rates_mbps.items():
            if not (math.isfinite(rate_mbps) and rate_mbps > 0):
                raise FabricError(f"{name} = {rate_mbps}; it must be above 0")
        hosts = [(f"host{one}", f"leaf{self.leaf_of(one)}") for one in range(self.hosts)]
        spines = [
            (f"leaf{leaf}", f"spine{spine}")
            for leaf in range(self.leaves)
            for spine in range(self.spines)
        ]
        traces = [self.traces[one % len(self.traces)] for one in range(self.hosts) if self.traces]
        links = [
            FabricLink(f"{first}>{second}", rate_mbps)
            for pairs, rate_mbps in ((hosts, self.host_mbps), (spines, self.spine_mbps))
            for ends in (pairs, [(far, near) for near, far in pairs])
            for first, second in ends
        ]
        for place, trace in enumerate(traces * 2):  # what goes up comes first, then what comes down
            links[place] = FabricLink(links[place].name, trace.mean_mbps, trace)
        object.__setattr__(self, "links", tuple(links))

    @classmethod
    def star(cls, hosts: int, host_mbps: float) -> Fabric:
        """All hosts at one switch that is never the bottleneck."""
        return cls(hosts=hosts, host_mbps=host_mbps)

    @classmethod
    def leaf_spine(
        cls, hosts: int, host_mbps: float, *, leaves: int, spines: int, oversubscription: float
    ) -> Fabric:
        """Hosts at leaves.

        Args:
            hosts: how many.
            host_mbps: capacity of the link of a host, each way.
            leaves: how many.
            spines: how many.
            oversubscription: what the hosts of the fullest leaf can send, as a multiple of what
                its links to the spines carry.
        """
        if not (oversubscription > 0 and leaves > 0 and spines > 0):
            raise FabricError(
                f"leaves {leaves}, spines {spines}, oversubscription {oversubscription}; all must "
                "be above 0"
            )
        spine_mbps = math.ceil(hosts / leaves) * host_mbps / (spines * oversubscription)
        return cls(
            hosts=hosts, host_mbps=host_mbps, leaves=leaves, spines=spines, spine_mbps=spine_mbps
        )

    def compressed(self, time_scale: float) -> Fabric:
        """The fabric that moves as many bytes in a time that is shorter by ``time_scale``.

        Raises:
            FabricError: ``time_scale`` is not above 0.
        """
        if not (math.isfinite(time_scale) and time_scale > 0):
            raise FabricError(f"time_scale {time_scale}; it must be above 0")
        return dataclasses.replace(
            self,
            host_mbps=self.host_mbps / time_scale,
            spine_mbps=self.spine_mbps / time_scale,
            delay_ms=self.delay_ms * time_scale,
            traces=tuple(
                scaled_trace(trace, time=time_scale, rate=1 / time_scale) for trace in self.traces
            ),
        )

    def with_headers(self) -> Fabric:
        """The fabric as TCP sees it, for times to compare with those of real transfers."""
        return dataclasses.replace(self, payload_share=TCP_PAYLOAD_SHARE)

    def leaf_of(self, host: int) -> int:
        """The leaf that a host is at."""
        return host * self.leaves // self.hosts

    def spine_to(self, host: int) -> int:
        """The spine on the way to a host from another leaf."""
        return host % self.spines

    def round_trip_ms(self, source: int, target: int) -> float:
        """How long a question and the beginning of its answer take where nothing else is sent."""
        return 2 * self.delay_ms * len(self.path(source, target))

    def path(self, source: int, target: int) -> tuple[int, ...]:
        """Places in ``links`` on the way between two hosts; empty from a host to itself.

        Raises:
            FabricError: there is no such host.
        """
        for host in (source, target):
            if not 0 <= host < self.hosts:
                raise FabricError(f"no host {host}; hosts are 0 to {self.hosts - 1}")
        if source == target:
            return ()
        near, far = self.leaf_of(source), self.leaf_of(target)
        down = self.hosts + target
        if near == far:
            return (source, down)
        spine = self.spine_to(target)
        first = 2 * self.hosts
        up = first + near * self.spines + spine
        across = first + (self.leaves + far) * self.spines + spine
        return (source, up, across, down)


def fair_shares(paths: Sequence[Sequence[int]], capacities: Sequence[float]) -> list[float]:
    """Max–min fair rates of flows.

    Args:
        paths: per flow the links that it passes; infinite rate for one that passes none.
        capacities: of the links.

    Returns:
        A rate per flow, in the unit of the capacities.
    """
    rates = [math.inf] * len(paths)
    flows_at: dict[int, list[int]] = {}
    for flow, path in enumerate(paths):
        for link in path:
            if link in flows_at:
                flows_at[link].append(flow)
            else:
                flows_at[link] = [flow]
    left = {link: capacities[link] for link in flows_at}
    growing = {link: len(flows) for link, flows in flows_at.items()}
    while growing:
        rate, full = min((left[link] / count, link) for link, count in growing.items())
        rate = max(rate, 0.0)
        for flow in flows_at[full]:
            if rates[flow] == math.inf:
                rates[flow] = rate
                for link in paths[flow]:
                    left[link] -= rate
                    growing[link] -= 1
        growing = {link: count for link, count in growing.items() if count}
    return rates


@dataclass(slots=True)
class _Flow:
    reader: int
    path: tuple[int, ...]
    left_bytes: float
    rate: float = 0.0  # bytes per ms
    finish_ms: float = math.inf


class FabricFlows:
    """What readers fetch over a fabric; a reader is done when all its flows are.

    Time is an argument, and never runs backwards. Call :meth:`finish_next` for all that happens by
    a moment before anything is begun or stopped at it.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self._bytes_per_ms = BYTES_PER_MS_PER_MBPS * fabric.payload_share  # at 1 Mbit/s
        self._capacities = [link.rate_mbps * self._bytes_per_ms for link in fabric.links]
        steps = [TraceSteps(trace) for trace in fabric.traces]
        self._steps = {  # by place of the link
            place: steps[place % fabric.hosts % len(steps)]
            for place, link in enumerate(fabric.links)
            if link.trace is not None
        }
        self._longest_stall_ms = max(_LONGEST_STALL_MS, *(2 * one.duration_ms for one in steps), 0)
        self._stalled_ms = math.inf  # since when nothing moves
        self._flows: list[_Flow] = []
        self._open: dict[int, int] = {}  # by reader: flows that are not done
        self._now_ms = 0.0
        self._next_ms = math.inf
        self._is_stale = False
        self.moved_bytes = [0.0] * len(fabric.links)

    @property
    def next_ms(self) -> float:
        """When the next flow is done or a capacity changes, if nothing else begins.

        Infinity without flows.

        Raises:
            FabricError: no flow has moved for a day or more, and none is taken to do so ever.
        """
        if self._is_stale:
            self._share()
        return self._next_ms

    def begin(self, reader: int, sizes: dict[int, int], *, now_ms: float) -> bool:
        """A reader, which fetches nothing yet, fetches from others.

        Args:
            reader: the number of its host.
            sizes: bytes by host; those from itself take no time.
            now_ms: the time.

        Returns:
            Whether there is anything to wait for.
        """
        assert reader not in self._open
        self._move_to(now_ms)
        flows = [
            _Flow(reader, self.fabric.path(source, reader), float(size))
            for source, size in sizes.items()
            if size > 0 and source != reader
        ]
        if not flows:
            return False
        self._flows += flows
        self._open[reader] = len(flows)
        self._is_stale = True
        return True

    def stop(self, reader: int, *, now_ms: float) -> None:
        """A reader, if it fetches anything, goes without."""
        if self._open.pop(reader, None) is not None:
            self._move_to(now_ms)
            self._flows = [flow for flow in self._flows if flow.reader != reader]
            self._is_stale = True

    def finish_next(self) -> list[int]:
        """Goes on to ``next_ms``; returns the readers that are done then, if any are."""
        at_ms = self.next_ms
        self._move_to(at_ms)
        done = [flow.reader for flow in self._flows if flow.finish_ms <= at_ms]
        self._flows = [flow for flow in self._flows if flow.finish_ms > at_ms]
        self._is_stale = True
        for reader in done:
            self._open[reader] -= 1
        readers = [reader for reader in dict.fromkeys(done) if not self._open[reader]]
        for reader in readers:
            del self._open[reader]
        return readers

    def _move_to(self, now_ms: float) -> None:
        if self._is_stale:
            self._share()
        passed_ms = now_ms - self._now_ms
        if passed_ms < 0:
            raise ValueError(f"time ran backwards: {now_ms} after {self._now_ms} ms")
        if passed_ms == 0:
            return
        self._now_ms = now_ms
        for flow in self._flows:
            moved = min(flow.rate * passed_ms, flow.left_bytes)
            flow.left_bytes -= moved
            for link in flow.path:
                self.moved_bytes[link] += moved

    def _share(self) -> None:
        self._is_stale = False
        changes_ms = self._follow_traces()
        rates = fair_shares([flow.path for flow in self._flows], self._capacities)
        for flow, rate in zip(self._flows, rates, strict=True):
            if rate != flow.rate:  # otherwise it is done when it was to be
                flow.rate = rate
                if rate:
                    flow.finish_ms = self._now_ms + flow.left_bytes / rate
                else:
                    flow.finish_ms = self._now_ms if flow.left_bytes < _NOTHING_BYTES else math.inf
        finish_ms = min((flow.finish_ms for flow in self._flows), default=math.inf)
        self._next_ms = min(finish_ms, changes_ms)
        is_stalled = bool(self._flows) and finish_ms == math.inf
        self._stalled_ms = min(self._stalled_ms, self._now_ms) if is_stalled else math.inf
        if self._now_ms - self._stalled_ms > self._longest_stall_ms:
            raise FabricError(
                f"no bytes have moved since {self._stalled_ms / MS_PER_S:g} s: the traces of "
                f"{', '.join(self._ways())} never let any through at the same time"
            )

    def _follow_traces(self) -> float:
        """Takes the capacities of now for the links in use; returns until when they hold."""
        if not self._steps:
            return math.inf
        until_ms = math.inf
        for link in {link for flow in self._flows for link in flow.path}:
            if (steps := self._steps.get(link)) is not None:
                steps.move_to(self._now_ms)
                self._capacities[link] = steps.rate_mbps * self._bytes_per_ms
                until_ms = min(until_ms, steps.until_ms)
        return until_ms

    def _ways(self) -> list[str]:
        """What flows go over, in words."""
        links = self.fabric.links
        ways = {f"{links[flow.path[0]].name} … {links[flow.path[-1]].name}" for flow in self._flows}
        return sorted(ways)[:_MOST_NAMED]
