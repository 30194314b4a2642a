"""Simulated driver of the player: interprets its commands against a link model, at full speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from player.link_models import LinkModel
from player.machine import (
    Ask,
    ChunkArrived,
    Decided,
    Event,
    Fetch,
    Player,
    Started,
    Stop,
    TimerFired,
    WaitUntil,
)
from player.observation import AbrObservation

Decide = Callable[[AbrObservation], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTime:
    """How long a decision takes on the playback clock.

    Attributes:
        compute_s: fixed thinking time, or None for the time measured while it was made.
        network_s: time on the wire, question and answer together.
    """

    compute_s: float | None = 0.0
    network_s: float = 0.0


def play_simulated(
    player: Player,
    link: LinkModel,
    decide: Decide,
    *,
    start_s: float = 0.0,
    decision_time: DecisionTime | None = None,
) -> float:
    """Plays a session to its end; the records are in ``player.chunks``.

    Args:
        player: a new player.
        link: model of the link.
        decide: the controller.
        start_s: position in the trace where the session starts.
        decision_time: cost of a decision; free by default, as in Pensieve's simulator.

    Returns:
        Length of the session on the playback clock, seconds.
    """
    cost = decision_time or DecisionTime()
    now = 0.0
    position_s = start_s
    last_byte_s = float("-inf")
    event: Event = Started()
    while True:
        match player.handle(event, now=now):
            case Ask(observation):
                asked = time.perf_counter()
                event = Decided(decide(observation))
                measured_s = time.perf_counter() - asked
                compute_s = measured_s if cost.compute_s is None else cost.compute_s
                now += compute_s + cost.network_s
                position_s += compute_s + cost.network_s
            case Fetch(size_bytes=size_bytes):
                outcome = link.download(size_bytes, position_s, idle_s=now - last_byte_s)
                now += float(outcome.download_s)
                position_s += float(outcome.moved_s)
                last_byte_s = now
                event = ChunkArrived()
            case WaitUntil(at_s):
                position_s += at_s - now
                now, event = at_s, TimerFired()
            case Stop():
                return now
