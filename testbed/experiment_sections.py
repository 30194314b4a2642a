"""The sections of an experiment file, each a frozen dataclass whose attributes are its keys.

``testbed.experiment`` puts them together and checks what concerns several of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pydantic

from player.browser_rules import DASHJS_CONTROLLERS
from player.live import Live
from player.trace import Trace
from player.video import PENSIEVE_CHUNK_S, PENSIEVE_LEVELS_KBPS
from testbed.links.spec import (
    AtEnd,
    DirectionSpec,
    GilbertElliott,
    JitterKind,
    LinkChange,
    QueueKind,
    QueueSpec,
    Replay,
)

#: What plays: the player of this project, or dash.js in Chromium.
PlayerKind = Literal["headless", "dashjs"]
FORBID_UNKNOWN = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """``[video]``: the size table and the ladder it belongs to."""

    __pydantic_config__ = FORBID_UNKNOWN
    sizes: str = "builtin:envivio-like"
    levels_kbps: tuple[float, ...] = PENSIEVE_LEVELS_KBPS
    chunk_s: float = PENSIEVE_CHUNK_S


@dataclass(frozen=True, kw_only=True)
class DirectionConfig:
    """What ``[link]`` says of the way towards the client, and ``[link.up]`` of the other.

    Attributes:
        jitter_ms: how much the delay of a packet deviates at most, or its standard deviation.
        jitter: distribution of the deviation.
        reorder: whether a packet may overtake another one by its jitter.
        loss: probability that a packet is lost at random.
        gilbert_elliott: in the place of ``loss``: losses in bursts.
        duplicate: probability that a packet comes twice.
        queue: the queue in front of the bottleneck.
        queue_packets: its size.
        queue_bytes: its size in bytes, too.
        ecn: whether ``codel`` and ``pie`` mark packets instead of dropping them.
        target_ms: delay that ``codel`` and ``pie`` aim for.
        interval_ms: ``codel``: its interval; ``pie``: time between two updates.
        replay: whether the rate follows the trace, or chances to deliver as in Mahimahi.
        at_end: what comes behind the trace's end.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    jitter_ms: float = 0.0
    jitter: JitterKind = "uniform"
    reorder: bool = False
    loss: float = 0.0
    gilbert_elliott: GilbertElliott | None = None
    duplicate: float = 0.0
    queue: QueueKind = "droptail"
    queue_packets: int = 100
    queue_bytes: int | None = None
    ecn: bool = False
    target_ms: float | None = None
    interval_ms: float | None = None
    replay: Replay = "rate"
    at_end: AtEnd = "loop"

    def direction(
        self, *, trace: Trace | None, start_s: float, delay_ms: float, seed: str
    ) -> DirectionSpec:
        """One direction of a link with these keys.

        Raises:
            ValueError: a value is out of its bounds; begins with the key.
        """
        if self.gilbert_elliott is not None and self.loss:
            raise ValueError("gilbert_elliott stands in the place of loss; give one of the two")
        return DirectionSpec(
            trace=trace,
            start_s=start_s,
            replay=self.replay,
            at_end=self.at_end,
            delay_ms=delay_ms,
            jitter_ms=self.jitter_ms,
            jitter=self.jitter,
            reorder=self.reorder,
            loss=self.loss if self.gilbert_elliott is None else self.gilbert_elliott,
            duplicate=self.duplicate,
            queue=QueueSpec(
                kind=self.queue,
                packets=self.queue_packets,
                size_bytes=self.queue_bytes,
                ecn=self.ecn,
                target_ms=self.target_ms,
                interval_ms=self.interval_ms,
            ),
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class UpConfig(DirectionConfig):
    """``[link.up]``: the way towards the server.

    Attributes:
        traces: capacity: a folder whose files have the names of those of the way down, or a file.
        rate_mbps: constant capacity instead.
        delay_ms: one-way delay; that of ``[link]`` by default.
    """

    traces: str | None = None
    rate_mbps: float | None = None
    delay_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class LinkConfig(DirectionConfig):
    """``[link]``: the bottleneck between server and client.

    Attributes:
        backend: emulated runs: how the link is made.
        model: simulated runs: ``pensieve`` (reference semantics) or ``tcp`` (like the emulation).
        delay_ms: one-way propagation delay, both ways (``tcp`` model and emulation).
        congestion: TCP congestion control of the hosts.
        up: the way towards the server; None: it has ``delay_ms`` and nothing else.
        changes: what changes while a session runs.
    """

    backend: Literal["auto", "userspace", "kernel"] = "auto"
    model: Literal["pensieve", "tcp"] = "tcp"
    delay_ms: float = 0.0
    congestion: str = "cubic"
    up: UpConfig | None = None
    changes: tuple[LinkChange, ...] = ()

    @property
    def has_up_bottleneck(self) -> bool:
        """Whether the way towards the server has a capacity."""
        up = self.up
        return up is not None and not (up.traces is None and up.rate_mbps is None)

    def up_direction(self, *, trace: Trace | None, start_s: float, seed: str) -> DirectionSpec:
        """The way towards the server; see :meth:`DirectionConfig.direction`."""
        if self.up is None:
            return DirectionSpec(delay_ms=self.delay_ms, seed=seed)
        delay_ms = self.delay_ms if self.up.delay_ms is None else self.up.delay_ms
        return self.up.direction(trace=trace, start_s=start_s, delay_ms=delay_ms, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ControllerLinkConfig:
    """``[controller_link]``: the path between player and controller; one-way delay."""

    __pydantic_config__ = FORBID_UNKNOWN
    delay_ms: float = 0.0


class DecisionSettings(Protocol):
    """What the tables ``[player]`` of all tasks say about decisions."""

    @property
    def decision_timeout_s(self) -> float:
        """Longest wait for a decision, emulated runs."""
        ...

    @property
    def fallback(self) -> str | None:
        """Controller that decides in the place of one that does not answer."""
        ...

    @property
    def chunk_timeout_s(self) -> float:
        """Longest wait for one download, emulated runs."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlayerSettings:
    """``[player]``.

    Attributes:
        kind: what plays, where an arm does not say otherwise; ``dashjs``: emulated runs.
        buffer_cap_s: above this the player pauses.
        first_level: level of chunk 0 (not scored), or ``ask`` to let the controller choose it.
        decision_timeout_s: longest wait for a decision, emulated runs.
        fallback: controller that decides when the asked one does not answer in time; without one
            the session fails.
        chunk_timeout_s: longest wait for one chunk, emulated runs.
        live: the video is a live event, and how it is followed; None: it is all there.
        abandon: whether a chunk that takes too long is given up for one of a lower level.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    kind: PlayerKind = "headless"
    buffer_cap_s: float = 60.0
    first_level: int | Literal["ask"] = 0
    decision_timeout_s: float = 5.0
    fallback: str | None = None
    chunk_timeout_s: float = 300.0
    live: Live | None = None
    abandon: bool = False


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """``[simulation]``.

    Attributes:
        decision_s: thinking time charged per decision: seconds, ``measured`` for what it really
            took, or ``auto``: 0 with the ``pensieve`` model, as there, else ``measured``.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    decision_s: float | Literal["auto", "measured"] = "auto"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """``[network]``: the hosts of a session and what joins them.

    Attributes:
        switch: kind of the switches.
        clients: players behind one bottleneck.
        shared_by: ``arm``: they all use the session's arm; ``all``: every arm has ``clients``
            players, all of them behind the same bottleneck.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    switch: Literal["linuxbridge", "ovs"] = "linuxbridge"
    clients: int = 1
    shared_by: Literal["arm", "all"] = "arm"


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """``[hosts.NAME]``: TCP of one host.

    Attributes:
        congestion: congestion control; that of ``[link]`` by default.
        tcp: values for ``/proc/sys/net/ipv4/tcp_*``, by the names behind ``tcp_``.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    congestion: str | None = None
    tcp: dict[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """``[hosts]``: ``client`` means all players, ``background`` both ends of that traffic."""

    __pydantic_config__ = FORBID_UNKNOWN
    server: HostConfig = HostConfig()
    client: HostConfig = HostConfig()
    controller: HostConfig = HostConfig()
    background: HostConfig = HostConfig()


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """``[capture]``: whether the packets of every player are kept, and looked through."""

    __pydantic_config__ = FORBID_UNKNOWN
    enabled: bool = False


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """``[[arms]]``: one controller with its options under a label.

    Attributes:
        controller: its name.
        name: the label.
        options: of the controller.
        player: task ``abr``: what plays, in the place of ``player.kind``.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    controller: str
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    player: PlayerKind | None = None

    @property
    def label(self) -> str:
        """Name of the arm in results."""
        is_theirs = self.controller in DASHJS_CONTROLLERS  # nothing else plays it
        if self.name is None and self.player is not None and not is_theirs:
            return f"{self.controller}-{self.player}"
        return self.name or self.controller
