"""What a link is asked to do, in one direction and in both.

A packet meets, in this order: the loss process, duplication, one-way delay with its jitter, the
queue, and the bottleneck that follows the trace. So a lost packet takes no capacity, and what
leaves at a moment has used the trace of that moment.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from player.trace import Trace

AtEnd = Literal["loop", "hold", "stop"]
Replay = Literal["rate", "opportunities"]
QueueKind = Literal["droptail", "codel", "pie"]
JitterKind = Literal["uniform", "normal"]
Direction = Literal["down", "up"]
DIRECTIONS: tuple[Direction, ...] = ("down", "up")
FOREVER_S = 1e9  # longer than any run; traces that must not start over are stretched to this
MAX_DELAY_MS = 10_000.0
MAX_QUEUE_PACKETS = 100_000
MIN_PIE_INTERVAL_MS = 1.0  # the updates of a long pause are made up for when it ends


def _require(condition: bool, name: str, value: object, what: str) -> None:
    if not condition:
        raise ValueError(f"{name} {value} is not {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GilbertElliott:
    """A loss process with two states (Gilbert 1960, Elliott 1963), stepped once per packet.

    Attributes:
        to_bad: probability to go from the good state to the bad one, per packet.
        to_good: probability to go back; the mean burst is ``1 / to_good`` packets.
        loss_bad: share of packets that are lost in the bad state.
        loss_good: share of packets that are lost in the good state.
    """

    to_bad: float
    to_good: float
    loss_bad: float = 1.0
    loss_good: float = 0.0

    def __post_init__(self) -> None:
        for name in ("to_bad", "to_good", "loss_bad", "loss_good"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "from 0 to 1")
        _require(self.to_good > 0.0, "to_good", self.to_good, "above 0")

    @property
    def mean_loss(self) -> float:
        """Share of packets that are lost in the long run."""
        bad = self.to_bad / (self.to_bad + self.to_good)
        return bad * self.loss_bad + (1.0 - bad) * self.loss_good


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """The queue before a bottleneck.

    Attributes:
        kind: ``droptail``, ``codel`` (RFC 8289) or ``pie`` (RFC 8033).
        packets: packets that fit in, the one being sent included.
        size_bytes: layer-3 bytes that fit in, likewise; None: packets alone count.
        ecn: whether the active queue management marks packets of ECN-capable flows instead of
            dropping them (RFC 3168).
        target_ms: delay that it aims for.
        interval_ms: CoDel's interval; PIE's time between two updates of its probability.
    """

    kind: QueueKind = "droptail"
    packets: int = 100
    size_bytes: int | None = None
    ecn: bool = False
    target_ms: float | None = None
    interval_ms: float | None = None

    def __post_init__(self) -> None:
        _require(
            1 <= self.packets <= MAX_QUEUE_PACKETS,
            *("queue_packets", self.packets, f"from 1 to {MAX_QUEUE_PACKETS}"),
        )
        if self.size_bytes is not None:
            _require(self.size_bytes >= 1500, "queue_bytes", self.size_bytes, "at least 1500")
        if self.kind == "droptail":
            _require(not self.ecn, "ecn", self.ecn, "false with the queue droptail")
        for name in ("target_ms", "interval_ms"):
            value = getattr(self, name)
            if value is not None:
                _require(0.0 < value <= MAX_DELAY_MS, name, value, "above 0")
                _require(self.kind != "droptail", name, value, "absent with the queue droptail")
        if self.kind == "pie" and self.interval_ms is not None:
            _require(
                self.interval_ms >= MIN_PIE_INTERVAL_MS,
                *("interval_ms", self.interval_ms, f"at least {MIN_PIE_INTERVAL_MS} with pie"),
            )


@dataclass(frozen=True, kw_only=True)
class DirectionSpec:
    """One direction of a link; as it is by default, packets pass at once.

    Attributes:
        trace: capacity at layer 3; None: no bottleneck, and no queue.
        start_s: position in the trace where the replay starts.
        replay: ``rate``: piecewise constant; ``opportunities``: as Mahimahi does, whole chances to
            deliver 1,504 bytes at whole milliseconds.
        at_end: behind the last point the trace starts over, or holds its last rate, or stops.
        delay_ms: one-way delay.
        jitter_ms: how much the delay of a packet deviates at most (``uniform``), or its standard
            deviation (``normal``); no packet is early by more than ``delay_ms``.
        jitter: distribution of the deviation.
        reorder: whether a packet may overtake another one by its jitter.
        loss: share of packets that are lost at random, or a process with bursts.
        duplicate: share of packets that come twice.
        queue: before the bottleneck.
        seed: says which packets are lost, delayed and doubled, by their number since the start.
    """

    trace: Trace | None = None
    start_s: float = 0.0
    replay: Replay = "rate"
    at_end: AtEnd = "loop"
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    jitter: JitterKind = "uniform"
    reorder: bool = False
    loss: float | GilbertElliott = 0.0
    duplicate: float = 0.0
    queue: QueueSpec = QueueSpec()
    seed: str = ""

    def __post_init__(self) -> None:
        _require(0.0 <= self.start_s < FOREVER_S, "start_s", self.start_s, "from 0 on")
        for name in ("delay_ms", "jitter_ms"):
            value = getattr(self, name)
            _require(0.0 <= value <= MAX_DELAY_MS, name, value, f"from 0 to {MAX_DELAY_MS:.0f}")
        if not isinstance(self.loss, GilbertElliott):
            _require(0.0 <= self.loss < 1.0, "loss", self.loss, "at least 0 and below 1")
        _require(0.0 <= self.duplicate <= 1.0, "duplicate", self.duplicate, "from 0 to 1")
        if self.replay == "opportunities":
            _require(
                self.at_end != "hold", "at_end", self.at_end, "loop or stop, with opportunities"
            )

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn."""
        return bool(self.loss or self.jitter_ms or self.duplicate or self.queue.kind == "pie")

    @property
    def mean_mbps(self) -> float | None:
        """Mean rate of the trace."""
        return None if self.trace is None else self.trace.mean_mbps

    @property
    def capacity(self) -> Trace | None:
        """The trace as a link replays it, with what comes behind its end."""
        if self.trace is None or self.at_end == "loop" or self.trace.duration_s >= FOREVER_S:
            return self.trace
        last = float(self.trace.rates_mbps[-1]) if self.at_end == "hold" else 0.0
        return Trace(
            self.trace.name,
            np.append(self.trace.times_s, FOREVER_S),
            np.append(self.trace.rates_mbps, last),
        )

    @property
    def ends_s(self) -> float | None:
        """Seconds after the start at which the link stops for good; None: never."""
        if self.trace is None or self.at_end != "stop":
            return None
        return max(self.trace.duration_s - self.start_s, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChange:
    """A change of a running link; what is None stays as it is.

    Attributes:
        at_s: when, seconds since the start.
        direction: which way; None: both.
        rate_mbps: constant rate from then on, in the place of the trace.
        delay_ms: one-way delay of packets that come from then on.
        loss: share of packets that are lost from then on.
    """

    at_s: float
    direction: Direction | None = None
    rate_mbps: float | None = None
    delay_ms: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        _require(0.0 <= self.at_s < FOREVER_S, "at_s", self.at_s, "from 0 on")
        if self.rate_mbps is not None:
            _require(0.0 <= self.rate_mbps < 1e6, "rate_mbps", self.rate_mbps, "from 0 on")
        if self.delay_ms is not None:
            _require(
                0.0 <= self.delay_ms <= MAX_DELAY_MS,
                *("delay_ms", self.delay_ms, f"from 0 to {MAX_DELAY_MS:.0f}"),
            )
        if self.loss is not None:
            _require(0.0 <= self.loss < 1.0, "loss", self.loss, "at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """The link that a session asks for.

    Attributes:
        down: towards the client.
        up: towards the server.
        backend: ``auto``, ``kernel`` or ``userspace``.
        changes: what changes while it runs, in the order of time.
    """

    down: DirectionSpec
    up: DirectionSpec = DirectionSpec()
    backend: str = "auto"
    changes: tuple[LinkChange, ...] = ()

    def __post_init__(self) -> None:
        times_s = [change.at_s for change in self.changes]
        _require(times_s == sorted(times_s), "changes at_s", times_s, "in the order of time")

    @property
    def directions(self) -> tuple[tuple[Direction, DirectionSpec], ...]:
        """Both directions by name."""
        return (("down", self.down), ("up", self.up))

    def replace(self, **changes: object) -> LinkSpec:
        """A copy with some attributes replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def constant_trace(rate_mbps: float, name: str = "constant") -> Trace:
    """A trace that has the same rate for ever; 0 is an outage."""
    # A trace must have some capacity; an outage has it where nobody gets to.
    rates_mbps = np.array([rate_mbps, rate_mbps, max(rate_mbps, 1.0)])
    return Trace(name, np.array([0.0, FOREVER_S, 2 * FOREVER_S]), rates_mbps)
