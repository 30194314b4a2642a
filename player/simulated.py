"""Simulated driver of the player: interprets its commands against a link model, at full speed."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from player.abandonment import PROGRESS_S
from player.link_models import LinkModel
from player.machine import (
    Ask,
    ChunkArrived,
    Decided,
    Event,
    Fetch,
    Player,
    Progress,
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
    now, position_s = 0.0, start_s
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
            case Fetch() as wanted:
                begin = Moment(now, position_s)
                now, position_s = _download(player, link, wanted, begin, now - last_byte_s)
                last_byte_s = now
                event = ChunkArrived()
            case WaitUntil(at_s):
                position_s += at_s - now
                now, event = at_s, TimerFired()
            case Stop():
                return now


class Moment(NamedTuple):
    """A time, and the position in the trace then."""

    now_s: float
    position_s: float


class Part(NamedTuple):
    """How much of a download is in some time after the request."""

    after_s: float
    received_bytes: int


def parts_of(link: LinkModel, size_bytes: int, position_s: float, idle_s: float) -> Iterator[Part]:
    """What is in of a download every ``PROGRESS_S`` from its first byte on, where that is more.

    The model is asked how long part of the bytes take, and that is searched for the part.
    """

    def after_s(received_bytes: int) -> float:
        return float(link.download(float(received_bytes), position_s, idle_s).download_s)

    at_s, ends_s = after_s(1), after_s(size_bytes)
    sizes_bytes = range(1, size_bytes + 1)
    told_bytes = 0
    while at_s < ends_s:
        received_bytes = bisect.bisect_right(sizes_bytes, at_s, lo=told_bytes, key=after_s)
        if received_bytes > told_bytes:
            yield Part(at_s, received_bytes)
        told_bytes = received_bytes
        at_s += PROGRESS_S


def give_up(link: LinkModel, part: Part, begin: Moment, idle_s: float) -> Moment:
    """When the next request can be sent if one is given up, whose connection is closed with it."""
    in_by_then = link.download(float(part.received_bytes), begin.position_s, idle_s)
    moved_s = float(in_by_then.moved_s) + part.after_s - float(in_by_then.download_s)
    connect = link.connect()
    return Moment(
        begin.now_s + part.after_s + float(connect.download_s),
        begin.position_s + moved_s + float(connect.moved_s),
    )


def _download(
    player: Player, link: LinkModel, wanted: Fetch, begin: Moment, idle_s: float
) -> Moment:
    """When the chunk is in; a request that the player gives up is followed by what it wants."""
    if wanted.is_watched:
        for part in parts_of(link, wanted.size_bytes, begin.position_s, idle_s):
            now = begin.now_s + part.after_s
            answer = player.handle(Progress(part.received_bytes), now=now)
            if isinstance(answer, Fetch):
                again = give_up(link, part, begin, idle_s)
                return _download(player, link, answer, again, float("inf"))
    outcome = link.download(wanted.size_bytes, begin.position_s, idle_s)
    return Moment(
        begin.now_s + float(outcome.download_s), begin.position_s + float(outcome.moved_s)
    )
