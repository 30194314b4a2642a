"""The link that the kernel makes: HTB where it follows a trace, netem where it does more.

What comes down is delayed and lost where its senders put it out, before the bottleneck; what goes
up behind its bottleneck, so there a packet that gets lost has taken capacity. Neither is in the
bottleneck's own queue.

Changes of the rate that are known beforehand are part of the schedule, so that the bottleneck is
ready for them (``testbed.links.htb``); others come as a surprise to the packet that is on its way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from player.trace import BITS_PER_MEGABIT, Trace
from testbed.links.heartbeat import Heartbeat
from testbed.links.htb import (
    BITS_PER_BYTE,
    MAX_BYTES_PER_S,
    HtbClass,
    ReceiveCounter,
    ShapingError,
    clip_rate,
    disable_offloads,
    steps_between,
)
from testbed.links.netem import Netem, at_port
from testbed.links.process import LinkPorts, LinkProcess, Port
from testbed.links.replay import LinkReplay, Replay, replay_process
from testbed.links.spec import FOREVER_S, Direction, DirectionSpec, LinkChange, LinkSpec

UNLIMITED_MBPS = MAX_BYTES_PER_S * BITS_PER_BYTE / BITS_PER_MEGABIT  # the most that HTB can have
MOST_STEPS = 1_000_000


class KernelLink(LinkProcess):
    """Handle on the process that changes the rates of a link of the kernel."""

    backend = "kernel"

    def __init__(self, link: LinkSpec, *, ports: LinkPorts) -> None:
        """Shapes the link and starts the process, in this network namespace.

        Until the replay starts, a direction has the mean rate of its trace.

        Args:
            link: what to replay.
            ports: where.

        Raises:
            ShapingError: the kernel refused something, or took something else than asked.
        """
        places = (
            _Place("down", link.down, ports.down, ports.down_receiver, ports.down_senders),
            _Place("up", link.up, ports.up, ports.up_receiver, ports.up_exits),
        )
        changes = [dataclasses.replace(change, rate_mbps=None) for change in link.changes]
        with contextlib.ExitStack() as only_for_the_process:
            replays = [_replay(place, link.changes, only_for_the_process) for place in places]
            heart = Heartbeat("the process that replays the trace")
            super().__init__(replay_process, LinkReplay(replays, changes, heart), heart)


@dataclasses.dataclass(frozen=True)
class _Place:
    """One direction of a link, and where it is."""

    direction: Direction
    spec: DirectionSpec
    bottleneck: Port
    receiver: Port
    impaired: tuple[Port, ...]


def _replay(place: _Place, changes: Sequence[LinkChange], sockets: contextlib.ExitStack) -> Replay:
    spec = place.spec
    trace, start_s = planned_capacity(spec, rate_steps(changes, place.direction))
    for port in {place.bottleneck, place.receiver, *place.impaired}:
        at_port(port, disable_offloads, port.interface)
    netems = [Netem(port, spec) for port in place.impaired]
    for netem in netems:
        sockets.callback(netem.close)
    mean_mbps = UNLIMITED_MBPS if spec.trace is None else spec.trace.mean_mbps
    shape = functools.partial(_shape, place, mean_mbps)
    shaped = None if trace is None else sockets.enter_context(shape())
    received = at_port(place.receiver, ReceiveCounter, place.receiver.interface)
    return Replay(
        trace,
        start_s,
        shaped,
        sockets.enter_context(received),
        direction=place.direction,
        delay_ms=spec.delay_ms,
        netems=netems,
        shape=shape,
    )


def _shape(place: _Place, rate_mbps: float) -> HtbClass:
    rate = clip_rate(rate_mbps * BITS_PER_MEGABIT / BITS_PER_BYTE)
    port = place.bottleneck
    return at_port(port, HtbClass, port.interface, queue=place.spec.queue, bytes_per_s=rate)


def rate_steps(changes: Sequence[LinkChange], direction: Direction) -> list[tuple[float, float]]:
    """When which rate begins, seconds since the start and Mbit/s, in the order of time."""
    steps = {
        change.at_s: change.rate_mbps
        for change in changes
        if change.rate_mbps is not None and change.direction in (None, direction)
    }
    return sorted(steps.items())


def planned_capacity(
    spec: DirectionSpec, steps: Sequence[tuple[float, float]]
) -> tuple[Trace | None, float]:
    """What a direction replays, and from which position, with the changes that are planned.

    Args:
        spec: the direction.
        steps: when which rate begins in the place of the trace.

    Raises:
        ShapingError: the trace has more steps until the first change than can be planned.
    """
    capacity = spec.capacity
    if not steps:
        return capacity, spec.start_s
    until_s = steps[0][0]
    begins_s, rates_mbps = np.zeros(1), np.array([UNLIMITED_MBPS])
    if capacity is not None:
        if (until_s / capacity.duration_s + 1) * len(capacity.times_s) > MOST_STEPS:
            raise ShapingError(
                f"the change at {until_s} s comes behind more than {MOST_STEPS:,} steps of the "
                f"trace {capacity.name}: make it earlier, or the link back-end userspace"
            )
        inner_s = steps_between(capacity, spec.start_s, spec.start_s + until_s)
        begins_s = np.union1d(inner_s - spec.start_s, 0.0)
        ends_s = np.append(begins_s[1:], until_s)
        middles_s = spec.start_s + (begins_s + ends_s) / 2
        rates_mbps = np.array([capacity.rate_mbps(at_s) for at_s in middles_s.tolist()])
    before = begins_s < until_s
    begins_s = np.concatenate((begins_s[before], [at_s for at_s, _ in steps]))
    rates_mbps = np.concatenate((rates_mbps[before], [rate_mbps for _, rate_mbps in steps]))
    # A trace must have some capacity; an outage for ever has it where nobody gets to.
    return (
        Trace(
            "with changes" if capacity is None else f"{capacity.name} with changes",
            np.concatenate((begins_s, [FOREVER_S, 2 * FOREVER_S])),
            np.concatenate(([0.0], rates_mbps, [max(float(rates_mbps[-1]), 1.0)])),
        ),
        0.0,
    )
