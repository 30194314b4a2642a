"""Giving up a request: the rule, the machine, and how much it changes in simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from player.abandonment import PROGRESS_S, Abandonment, UnderWay
from player.link_models import LinkModel, PensieveLink, TcpLink
from player.link_table import LinkTable
from player.machine import (
    Ask,
    ChunkArrived,
    Decided,
    Fetch,
    GoOn,
    Player,
    PlayerConfig,
    Progress,
    Started,
)
from player.qoe import session_qoe
from player.simulated import parts_of, play_simulated
from player.trace import Trace
from player.vectorised import Sessions
from player.video import Video

#: At 1 MB/s: 4 s, 2 s, 1 s, 0.5 s.
SIZES_BYTES = (500_000, 1_000_000, 2_000_000, 4_000_000)
LADDER_KBPS = (1000.0, 2000.0, 4000.0, 8000.0)
RULE = Abandonment()


def video(chunks: int = 4) -> Video:
    return Video("flat", LADDER_KBPS, 4.0, (SIZES_BYTES,) * chunks)


def request(**changes: float) -> UnderWay:
    """At 400 kB/s (3.2 Mbit/s) the whole takes 10 s, of which 8.5 s are left."""
    settings = {
        "chunk": 1,
        "level": 3,
        "received_bytes": 600_000,
        "measured_bytes": 400_000,
        "measured_s": 1.0,
        "buffer_s": 4.0,
    } | changes
    return UnderWay(**settings)  # type: ignore[arg-type]


# ---- the rule -----------------------------------------------------------------------------------


def test_a_request_that_takes_too_long_gives_way_to_what_fits() -> None:
    assert RULE.level_instead(request(), video()) == 1  # 2 Mbit/s fit 0.9 x 3.2, 4 Mbit/s do not


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"level": 0, "received_bytes": 0}, "there is no lower one"),
        ({"measured_s": 0.5, "measured_bytes": 200_000}, "within the grace time"),
        ({"measured_bytes": 600_000}, "the whole in 6.7 s, which is less than 7.2 s"),
        ({"buffer_s": 8.5}, "the buffer lasts until it is in"),
        ({"received_bytes": 3_000_000}, "no more is left than the lower level has"),
    ],
)
def test_other_requests_go_on(changes: dict[str, float], why: str) -> None:
    assert RULE.level_instead(request(**changes), video()) is None, why


def test_nothing_fits_a_rate_below_the_ladder() -> None:
    slow = request(measured_bytes=10_000)
    assert RULE.level_instead(slow, video()) == 0
    assert RULE.level_instead(request(measured_bytes=0), video()) == 0  # nothing came any more


# ---- the machine --------------------------------------------------------------------------------


def downloading(level: int = 3, *, fallback: bool = False) -> Player:
    """At time 10 with 4 s in the buffer, chunk 1 is asked for."""
    player = Player(video(), PlayerConfig(abandonment=RULE))
    player.handle(Started(), now=9.0)
    assert isinstance(player.handle(ChunkArrived(), now=10.0), Ask)
    fetch = player.handle(Decided(level, fallback=fallback), now=10.0)
    assert fetch == Fetch(1, level, SIZES_BYTES[level], is_watched=level > 0)
    return player


def test_a_session_by_hand() -> None:
    player = downloading(fallback=True)
    assert player.handle(Progress(200_000), now=10.1) == GoOn()  # the first bytes
    assert player.handle(Progress(360_000), now=10.5) == GoOn()
    assert player.handle(Progress(480_000), now=10.8) == Fetch(1, 1, 1_000_000)
    assert player.handle(Progress(100_000), now=20.0) == GoOn()  # once is enough
    player.handle(ChunkArrived(), now=15.0 + 5.8)
    chunk = player.chunks[1]
    assert (chunk.level, chunk.abandoned_level, chunk.abandoned_bytes) == (1, 3, 480_000)
    assert chunk.size_bytes == 1_000_000
    assert chunk.requested_s == pytest.approx(1.8)
    assert chunk.download_s == pytest.approx(10.0)
    assert chunk.rebuffer_s == pytest.approx(10.8 - 4.0)  # all that was lost is a stall
    assert chunk.fallback
    assert chunk.decision_s == 0.0
    fetch = player.handle(Decided(3), now=21.0)
    assert fetch == Fetch(2, 3, SIZES_BYTES[3], is_watched=True)  # the next may be given up again
    player.handle(ChunkArrived(), now=22.0)
    assert (player.chunks[2].abandoned_level, player.chunks[2].abandoned_bytes) == (None, 0)


def test_what_the_controller_sees_is_the_request_that_was_finished() -> None:
    player = downloading()
    for now, received in ((10.1, 200_000), (10.9, 500_000)):
        player.handle(Progress(received), now=now)
    ask = player.handle(ChunkArrived(), now=12.9)
    assert isinstance(ask, Ask)
    past = ask.observation.history[-1]
    assert (past.level, past.size_bytes) == (1, 1_000_000)
    assert past.throughput_kbps == pytest.approx(4000.0)


def test_nothing_is_watched_that_cannot_be_given_up() -> None:
    downloading(level=0)
    never = Player(video())
    never.handle(Started(), now=0.0)
    assert never.handle(Progress(1), now=5.0) == GoOn()
    never.handle(ChunkArrived(), now=6.0)
    assert never.handle(Decided(3), now=6.0) == Fetch(1, 3, SIZES_BYTES[3])


def test_sessions_in_arrays_refuse_it() -> None:
    table = LinkTable([PensieveLink(Trace("t", np.array([0.0, 9.0]), np.array([1.0, 1.0])))])
    with pytest.raises(ValueError, match="abandonment: only sessions one by one"):
        Sessions(video(), table, [0], [0.0], config=PlayerConfig(abandonment=RULE))


# ---- simulated ----------------------------------------------------------------------------------

LINKS = (PensieveLink, TcpLink, lambda trace: TcpLink(trace, delay_s=0.1))
COLLAPSE = Trace("t", np.array([0.0, 10.0, 60.0]), np.array([40.0, 40.0, 2.0]))


@pytest.mark.parametrize("link_of", LINKS)
def test_parts_are_what_the_model_says(link_of: type[PensieveLink]) -> None:
    link: LinkModel = link_of(COLLAPSE)
    parts = list(parts_of(link, 4_000_000, 9.5, 3.0))
    assert len(parts) > 20
    for part in parts:
        needs_s = float(link.download(float(part.received_bytes), 9.5, 3.0).download_s)
        more_s = float(link.download(float(part.received_bytes + 1), 9.5, 3.0).download_s)
        assert needs_s <= part.after_s < more_s
    assert parts[0].received_bytes >= 1
    for earlier, later in itertools.pairwise(parts):
        assert later.after_s - earlier.after_s >= PROGRESS_S - 1e-9
        assert later.received_bytes > earlier.received_bytes


def test_nothing_is_told_while_nothing_comes() -> None:
    outage = Trace("t", np.array([0.0, 1.0, 5.0, 60.0]), np.array([8.0, 8.0, 0.0, 8.0]))
    parts = list(parts_of(TcpLink(outage), 2_000_000, 0.0, 0.0))
    gaps = [later.after_s - earlier.after_s for earlier, later in itertools.pairwise(parts)]
    assert max(gaps) == pytest.approx(4.0, abs=PROGRESS_S)


def play(link: LinkModel, abandonment: Abandonment | None) -> Player:
    player = Player(video(12), PlayerConfig(abandonment=abandonment, buffer_cap_s=8.0))
    play_simulated(player, link, lambda _: 3)
    return player


@pytest.mark.parametrize("link_of", LINKS)
def test_on_a_link_that_collapses_it_stalls_less(link_of: type[PensieveLink]) -> None:
    link: LinkModel = link_of(COLLAPSE)
    stubborn, yielding = play(link, None), play(link, RULE)
    given_up = [chunk for chunk in yielding.chunks if chunk.abandoned_level is not None]
    assert given_up
    for chunk in given_up:
        assert chunk.abandoned_level == 3 > chunk.level
        assert chunk.abandoned_bytes > 0
    stalls = [
        sum(chunk.rebuffer_s for chunk in player.chunks[1:]) for player in (stubborn, yielding)
    ]
    assert stalls[1] < stalls[0]
    qoe = [session_qoe([chunk.qoe for chunk in player.chunks]) for player in (stubborn, yielding)]
    assert qoe[0] is not None
    assert qoe[1] is not None
    assert qoe[1] > qoe[0]
    assert all(chunk.abandoned_level is None for chunk in stubborn.chunks)


@pytest.mark.parametrize("link_of", LINKS)
def test_time_goes_on_over_a_request_that_was_given_up(link_of: type[PensieveLink]) -> None:
    """The bytes that crossed the link by the end are those that it could carry, none for free."""
    link: LinkModel = link_of(COLLAPSE)
    player = Player(video(2), PlayerConfig(abandonment=RULE))
    wall_s = play_simulated(player, link, lambda _: 3, start_s=10.0)
    chunk = player.chunks[1]
    assert chunk.abandoned_level == 3
    carried_bytes = sum(one.size_bytes + one.abandoned_bytes for one in player.chunks)
    fastest_s = float(link.download(float(carried_bytes), 10.0).download_s)
    assert fastest_s < wall_s < fastest_s + 1.5  # some round trips and slow start
    connect_s = float(link.connect().download_s)
    alone_s = float(link.download(float(chunk.size_bytes), 20.0, float("inf")).download_s)
    assert chunk.download_s == pytest.approx(alone_s + connect_s, abs=1e-6)


def test_where_nothing_is_given_up_sessions_are_the_same() -> None:
    link = TcpLink(Trace("t", np.array([0.0, 10.0]), np.array([40.0, 40.0])), delay_s=0.02)
    watched, unwatched = play(link, RULE), play(link, None)
    for one, other in zip(watched.chunks, unwatched.chunks, strict=True):
        assert one.level == other.level
        assert one.download_s == pytest.approx(other.download_s)
        assert one.buffer_s == pytest.approx(other.buffer_s)
