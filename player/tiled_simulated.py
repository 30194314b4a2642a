"""Simulated driver of the tiled player: its commands against a model of the link, at full speed."""

from __future__ import annotations

import math
import time

from player.machine import Started, Stop, TimerFired, WaitUntil
from player.simulated import DecisionTime
from player.tiled_events import (
    AskViewports,
    DecideViewports,
    FetchTile,
    TileArrived,
    TiledEvent,
    ViewportsDecided,
)
from player.tiled_link import SharedLink, SharedLinkModel
from player.tiled_machine import TiledPlayer


class TiledDeadlock(RuntimeError):
    """The player waits for nothing: a bug."""


def play_tiled_simulated(
    player: TiledPlayer,
    link: SharedLinkModel,
    decide: DecideViewports,
    *,
    start_s: float = 0.0,
    decision_time: DecisionTime | None = None,
) -> float:
    """Plays a session to its end; all that is known of it is in ``player``.

    Args:
        player: a new player.
        link: model of the link.
        decide: the controller.
        start_s: position in the trace where the session starts.
        decision_time: cost of a decision; free by default.

    Returns:
        Length of the session on the playback clock, seconds.

    Raises:
        InvalidViewports: the controller's answer is none.
    """
    cost = decision_time or DecisionTime()
    shared = SharedLink(link, player.connections, start_s=start_s)
    now, answered_s = 0.0, math.inf
    answer: ViewportsDecided | None = None
    event: TiledEvent = Started()
    while True:
        timer_s = math.inf
        for command in player.handle(event, now=now):
            match command:
                case AskViewports(observation):
                    asked = time.perf_counter()
                    answer = ViewportsDecided(decide(observation))
                    measured_s = time.perf_counter() - asked
                    compute_s = measured_s if cost.compute_s is None else cost.compute_s
                    answered_s = now + compute_s + cost.network_s
                case FetchTile(connection=connection, size_bytes=size_bytes):
                    shared.begin(connection, size_bytes)
                case WaitUntil(at_s):
                    timer_s = at_s
                case Stop():
                    return now
        limit_s = min(answered_s, timer_s)
        finished = shared.run(limit_s)
        if finished is not None:
            now = finished.at_s
            event = TileArrived(finished.connection, finished.first_byte_s)
        elif math.isinf(limit_s):
            raise TiledDeadlock(f"the player waits for nothing at {now} s, {player.state.name}")
        elif answer is not None and answered_s <= timer_s:
            now, event = answered_s, answer
            answer, answered_s = None, math.inf
        else:
            now, event = timer_s, TimerFired()
