"""The link that downloads share: closed forms, and one download as over the plain TCP model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from player.link_models import TcpLink
from player.tiled_link import Finished, SharedLink, SharedLinkModel
from player.trace import Trace

STEPS = Trace("steps", np.arange(0.0, 21.0), np.random.default_rng(3).lognormal(0.5, 0.8, 21))


def flat(rate_mbps: float) -> Trace:
    return Trace("flat", np.array([0.0, 100.0]), np.array([rate_mbps, rate_mbps]))


def plain(trace: Trace, rtt_s: float = 0.0) -> SharedLinkModel:
    return SharedLinkModel(trace=trace, rtt_s=rtt_s)


def drain(link: SharedLink) -> list[Finished]:
    found = []
    while (finished := link.run(math.inf)) is not None:
        found.append(finished)
    return found


def test_one_download_takes_a_round_trip_and_size_over_rate() -> None:
    link = SharedLink(plain(flat(8.0), rtt_s=0.1), 1)
    link.begin(0, 500_000)
    assert drain(link) == [Finished(0, pytest.approx(0.1), pytest.approx(0.6))]


def test_downloads_share_equally_and_together_lose_nothing() -> None:
    link = SharedLink(plain(flat(8.0)), 3)
    for connection, size_bytes in enumerate((100_000, 200_000, 300_000)):
        link.begin(connection, size_bytes)
    assert [one.at_s for one in drain(link)] == pytest.approx([0.3, 0.5, 0.6])


def test_while_one_waits_for_its_round_trip_the_others_have_the_link() -> None:
    link = SharedLink(plain(flat(8.0), rtt_s=0.1), 2)
    link.begin(0, 200_000)  # 0.1 to 0.3 if alone
    assert link.run(0.1) is None
    link.begin(1, 100_000)  # sends from 0.2 on, when the other has 0.1 s left to send
    assert [(one.connection, one.at_s) for one in drain(link)] == [
        (0, pytest.approx(0.4)),
        (1, pytest.approx(0.4)),
    ]


@pytest.mark.parametrize("size_bytes", [1_000, 14_000, 60_000, 400_000, 3_000_000])
@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
def test_alone_it_is_the_tcp_model(size_bytes: int, delay_s: float) -> None:
    link = SharedLink(SharedLinkModel.tcp(STEPS, delay_s), 1, start_s=3.3)
    link.begin(0, size_bytes)
    (finished,) = drain(link)
    expected = TcpLink(STEPS, delay_s).download(size_bytes, 3.3, idle_s=math.inf)
    assert finished.at_s == pytest.approx(float(expected.download_s))


def test_a_warm_connection_keeps_its_window_until_it_has_been_silent() -> None:
    model = SharedLinkModel.tcp(flat(1000.0), 0.05)
    link = SharedLink(model, 1)
    times_s = []
    clock_s = 0.0
    for pause_s in (0.0, 0.1, 1.0):
        link.run(clock_s + pause_s)
        link.begin(0, 100_000)
        finished = link.run(math.inf)
        assert finished is not None
        times_s.append(finished.at_s - clock_s - pause_s)
        clock_s = finished.at_s
    assert times_s[0] == pytest.approx(times_s[2])  # cold: windows of 15, 30, 60 kB
    assert times_s[0] > 0.3
    assert times_s[1] < 0.21  # 60 kB, then the rest


def test_pensieve_constants() -> None:
    link = SharedLink(SharedLinkModel.pensieve(flat(8.0)), 1)
    link.begin(0, 950_000)
    assert drain(link)[0].at_s == pytest.approx(1.08)


def test_nothing_to_do_takes_no_time_or_all_of_it() -> None:
    link = SharedLink(plain(flat(1.0)), 1)
    assert link.run(5.0) is None
    assert link.run(math.inf) is None
    link.begin(0, 125_000)
    assert drain(link)[0].at_s == pytest.approx(6.0)


@settings(max_examples=50, deadline=None)
@given(
    requests=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 500_000)), max_size=8),
    delay_s=st.sampled_from([0.0, 0.03]),
)
def test_no_more_than_the_trace_allows_and_all_of_it_without_round_trips(
    requests: list[tuple[float, int]], delay_s: float
) -> None:
    model = SharedLinkModel.tcp(STEPS, delay_s)
    link = SharedLink(model, len(requests))
    clock_s = busy_from_s = 0.0
    finished: list[Finished] = []
    for connection, (pause_s, size_bytes) in enumerate(requests):
        clock_s += pause_s
        while (one := link.run(clock_s)) is not None:
            finished.append(one)
        link.begin(connection, size_bytes)
        busy_from_s = busy_from_s if connection else clock_s
    finished += drain(link)
    assert sorted(one.connection for one in finished) == list(range(len(requests)))
    assert [one.at_s for one in finished] == sorted(one.at_s for one in finished)
    if requests:
        bits = sum(size + model.header_bytes for _, size in requests) * model.wire_ratio * 8
        end_s = finished[-1].at_s
        assert STEPS.bits_until(end_s) - STEPS.bits_until(busy_from_s) >= bits - 1
