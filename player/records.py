"""What is written down about a session: the rows of ``sessions.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed"]
#: Told to end; ended by itself at its largest size; cut off.
CaptureEnding = Literal["complete", "full", "torn"]


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """One chunk of one session; times are seconds since the session began.

    Attributes:
        index: chunk number, from 0.
        level: chosen rung of the ladder.
        bitrate_kbps: nominal rate of that rung.
        size_bytes: payload size.
        requested_s: when the request was sent.
        download_s: from request to last byte.
        throughput_kbps: size over ``download_s``.
        buffer_s: buffer once the chunk was in and any wait behind it was over.
        rebuffer_s: stall since the previous chunk's arrival; chunk 0: the start-up time.
        decision_s: from question to answer.
        fallback: whether the fallback decided because the controller did not answer.
        qoe: QoE-lin of this chunk (see ``player.qoe``).
        wait_s: pause behind this chunk because the buffer was above its cap, or because the next
            one of a live event was not available.
        latency_s: how far behind the live event the player was at its arrival; None on demand.
        abandoned_level: at which it was asked for first, before that request was given up; the
            times are those of the request that was finished. None: nothing was given up.
        abandoned_bytes: how much of it was in by then.
    """

    index: int
    level: int
    bitrate_kbps: float
    size_bytes: int
    requested_s: float
    download_s: float
    throughput_kbps: float
    buffer_s: float
    rebuffer_s: float
    decision_s: float
    fallback: bool
    qoe: float
    wait_s: float = 0.0
    latency_s: float | None = None
    abandoned_level: int | None = None
    abandoned_bytes: int = 0


def mean_latency_s(chunks: Sequence[ChunkRecord]) -> float | None:
    """Mean over the chunks of the latency at their arrival; None on demand, and of no chunks."""
    known = [chunk.latency_s for chunk in chunks if chunk.latency_s is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRecord:
    """How faithfully the link followed its trace during one session.

    Attributes:
        backend: ``kernel`` or ``userspace``, or ``model:NAME`` for a simulated link.
        wire_nmae_1s: sum of |delivered - asked| over the sum of asked L3 bytes in bins of 1 s,
            over the bins in which the link was saturated; None when there was none.
        total_error: (delivered - asked) / asked over the same bins.
        saturated_s: seconds that these bins cover.
        up_wire_nmae_1s: ``wire_nmae_1s`` of the way up; None if it has no bottleneck.
        queue_drops: packets towards the client that found the queue full.
        losses: likewise, that the loss process took.
        aqm_drops: likewise, that the active queue management dropped.
        marks: likewise, that it marked instead.
        duplicates: likewise, that came twice.
        delay_p50_ms: one-way delay towards the client, queueing included: in every second the one
            that half of the packets stayed below, of these the median.
        delay_p99_ms: likewise, the one that 99 % stayed below; of these the one that is not
            exceeded in 99 % of the seconds.
    """

    backend: str
    wire_nmae_1s: float | None = None
    total_error: float | None = None
    saturated_s: float = 0.0
    up_wire_nmae_1s: float | None = None
    queue_drops: int = 0
    losses: int = 0
    aqm_drops: int = 0
    marks: int = 0
    duplicates: int = 0
    delay_p50_ms: float | None = None
    delay_p99_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRecord:
    """One TCP connection as its packets passed the client; *down* is towards the client.

    Attributes:
        client: ``address:port``.
        server: ``address:port``.
        is_controller: whether the server is a controller.
        started_s: time of its first packet since that of the first connection.
        duration_s: from its first to its last packet.
        packets_down: all packets, also those without payload.
        packets_up: likewise.
        l3_bytes_down: IP packets with their headers.
        l3_bytes_up: likewise.
        payload_bytes_down: different bytes of the stream; what came twice counts once.
        payload_bytes_up: likewise.
        throughput_kbps: ``payload_bytes_down`` from the first to the last packet that carried some,
            pauses included; None for fewer than two such packets.
        handshake_rtt_ms: from SYN to SYN/ACK; None if it was not seen, or not unambiguous.
        rtt_samples: round-trip times measured with TCP timestamps.
        rtt_min_ms: the shortest of them, None without any.
        rtt_p50_ms: their median.
        rtt_p99_ms: their 99th percentile.
        retransmissions_down: packets that were sent again, as far as the client can know.
        retransmissions_up: likewise.
        out_of_order_down: packets that were overtaken.
        missing_bytes_down: bytes that later ones followed, and that were never seen.
    """

    client: str
    server: str
    is_controller: bool
    started_s: float
    duration_s: float
    packets_down: int
    packets_up: int
    l3_bytes_down: int
    l3_bytes_up: int
    payload_bytes_down: int
    payload_bytes_up: int
    throughput_kbps: float | None
    handshake_rtt_ms: float | None
    rtt_samples: int
    rtt_min_ms: float | None
    rtt_p50_ms: float | None
    rtt_p99_ms: float | None
    retransmissions_down: int
    retransmissions_up: int
    out_of_order_down: int
    missing_bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRecord:
    """What the packets say that were captured at the client during one session.

    Attributes:
        ending: how the capture ended.
        packets: packets in it.
        dropped_packets: packets that are not in it because they were not read in time; None if it
            was cut off before it could say.
        other_packets: packets in it that belong to none of the connections: not TCP over IPv4, or
            the last ones of a connection that was over when the capture began.
        connections: in the order in which they began.
        exchanges_ms: per answered question to a controller, in order: from the packet with its
            first byte to the packet with the last byte of the answer.
        unanswered: questions whose answer is not in the capture, or not all of it.
    """

    ending: CaptureEnding
    packets: int
    dropped_packets: int | None
    other_packets: int
    connections: tuple[ConnectionRecord, ...]
    exchanges_ms: tuple[float, ...]
    unanswered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundRecord:
    """What became of one entry of background traffic during one session.

    Attributes:
        kind: of the traffic.
        direction: which way the data went.
        started: transfers that began.
        finished: transfers that came to their size or to their end of sending, all received.
        errors: connections that failed, or were not made because too many were open.
        received_bytes: payload that arrived.
        throughput_mbps: mean of it from the entry's ``start_s`` to its ``stop_s``, or to the end.
        flows_mbps: the same for each flow; sums up to ``throughput_mbps``.
        completion_p50_s: from the start of a web transfer to its last byte, median of the finished.
        completion_p95_s: its 95th percentile.
    """

    kind: str
    direction: str
    started: int
    finished: int
    errors: int
    received_bytes: int
    throughput_mbps: float
    flows_mbps: tuple[float, ...]
    completion_p50_s: float | None
    completion_p95_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """What a program's processes used of the machine.

    Attributes:
        cpu_s: CPU time of all together.
        peak_mib: their memory at the moment when it was largest.
        processes: most of them at once.
    """

    cpu_s: float
    peak_mib: float
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One player: one arm on one trace; a failed one keeps the chunks it finished.

    Attributes:
        arm: label of the arm.
        controller: its controller.
        trace: name of the trace.
        seed: of the experiment.
        driver: ``emulated`` or ``simulated``.
        status: how it ended.
        error: why it failed.
        qoe_per_chunk: mean over the scored chunks.
        startup_s: wait for the first chunk.
        wall_s: how long it took.
        start_index: point of the trace where it began.
        link: the bottleneck, for all that shared it.
        chunks: in order.
        client: which of the players behind the bottleneck, from 0.
        group: name of those that shared it; None: in files of versions that had one player each.
        background: the other traffic on the bottleneck, one per entry of the experiment.
        capture: what the player's packets say, if they were captured.
        player: what played: ``headless``, or ``dashjs`` in a browser.
        starved_s: the picture stood still though there was video to play, because the machine was
            too busy to decode it; in no chunk's ``rebuffer_s``.
        browser: what Chromium used from the session's begin to its last chunk; None without one.
        latency_s: mean over the chunks of ``ChunkRecord.latency_s``; None on demand.
    """

    arm: str
    controller: str
    trace: str
    seed: int
    driver: str
    status: Status
    error: str | None
    qoe_per_chunk: float | None
    startup_s: float | None
    wall_s: float
    start_index: int
    link: LinkRecord
    chunks: tuple[ChunkRecord, ...]
    client: int = 0
    group: str | None = None
    background: tuple[BackgroundRecord, ...] = ()
    capture: CaptureRecord | None = None
    player: str = "headless"
    starved_s: float = 0.0
    browser: ProcessRecord | None = None
    latency_s: float | None = None

    @property
    def bottleneck(self) -> tuple[str, str]:
        """Group and trace: what all players behind one bottleneck have in common."""
        return self.group or self.arm, self.trace
