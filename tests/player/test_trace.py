"""The step function of bandwidth: closed forms, inverses, and Pensieve's start points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.link_models import PensieveLink, TcpLink
from player.trace import Trace, TraceError


def steps() -> Trace:
    """1 Mbit/s for 2 s, none for 1 s, 3 Mbit/s for 1 s: 5 Mbit per pass of 4 s."""
    return Trace("steps", np.array([0.0, 2.0, 3.0, 4.0]), np.array([9.0, 1.0, 0.0, 3.0]))


@pytest.mark.parametrize(
    ("times", "rates", "message"),
    [
        ([0.0], [1.0], "two points"),
        ([0.0, 1.0], [1.0], "two points"),
        ([0.0, 0.0], [1.0, 1.0], "increase"),
        ([-1.0, 1.0], [1.0, 1.0], "increase"),
        ([0.0, 1.0], [1.0, -1.0], "negative"),
        ([0.0, 1.0], [1.0, float("nan")], "finite"),
        ([0.0, 1.0], [5.0, 0.0], "no capacity"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    times: list[float], rates: list[float], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        Trace("bad", np.array(times), np.array(rates))


def test_totals_and_means() -> None:
    trace = steps()
    assert trace.duration_s == 4.0
    assert trace.mean_mbps == pytest.approx(1.25)
    assert trace.bits_until(np.array([0.0, 1.0, 2.5, 4.0, 9.0])) == pytest.approx(
        [0.0, 1e6, 2e6, 5e6, 11e6]
    )


def test_rates_hold_from_one_edge_to_the_next() -> None:
    trace = steps()
    assert [trace.rate_mbps(at) for at in (0.0, 1.999, 2.0, 3.0, 3.999, 4.0)] == [
        1.0,
        1.0,
        0.0,
        3.0,
        3.0,
        1.0,
    ]


def test_start_points_are_those_of_the_reference() -> None:
    trace = Trace("late", np.array([0.5, 2.0, 3.0]), np.array([1.0, 1.0, 1.0]))
    assert trace.start_s(1) == 0.5
    assert trace.start_s(2) == 2.0
    for index in (0, 3, -1):
        with pytest.raises(TraceError, match="between 1 and 2"):
            trace.start_s(index)


def test_a_transfer_waits_out_an_outage() -> None:
    trace = steps()
    assert float(trace.transfer_s(3.5e6, 0.0)) == pytest.approx(3.5)
    assert float(trace.transfer_s(1.0, 2.0)) == pytest.approx(1.0, abs=1e-6)
    assert float(trace.transfer_s(0.0, 2.0)) == 0.0


traces = st.lists(
    st.tuples(st.floats(0.01, 30.0), st.one_of(st.just(0.0), st.floats(0.01, 100.0))),
    min_size=1,
    max_size=20,
).filter(lambda points: any(rate > 0 for _, rate in points))


@given(points=traces, start_s=st.floats(0.0, 1e4), bits=st.floats(1.0, 1e9))
def test_a_transfer_moves_exactly_its_bits(
    points: list[tuple[float, float]], start_s: float, bits: float
) -> None:
    widths, rates = zip(*points, strict=True)
    trace = Trace("any", np.concatenate(([0.0], np.cumsum(widths))), np.array((0.0, *rates)))
    transfer_s = float(trace.transfer_s(bits, start_s))
    moved = float(trace.bits_until(start_s + transfer_s) - trace.bits_until(start_s))
    scale = max(bits, float(trace.bits_until(start_s)), 1.0)
    # An end within a rounding error of an outage may lie on either side of it.
    tolerance = 1e-6 * scale + 100e6 * 1e-9 * (start_s + transfer_s)
    assert moved == pytest.approx(bits, abs=tolerance)


def test_arrays_equal_single_calls() -> None:
    trace = steps()
    bits, start_s = np.array([1e5, 4e6, 7.7e6]), np.array([0.3, 2.2, 11.0])
    together = trace.transfer_s(bits, start_s)
    alone = [float(trace.transfer_s(*pair)) for pair in zip(bits, start_s, strict=True)]
    assert together == pytest.approx(alone)


def test_the_pensieve_link_stands_still_for_its_round_trip() -> None:
    outcome = PensieveLink(steps()).download(95_000 / 8, 0.0)
    assert float(outcome.moved_s) == pytest.approx(0.1)
    assert float(outcome.download_s) == pytest.approx(0.18)


def test_the_tcp_link_without_delay_is_size_with_headers_over_rate() -> None:
    trace = Trace("flat", np.array([0.0, 10.0]), np.array([0.0, 2.0]))
    payload = 1_000_000
    outcome = TcpLink(trace).download(payload, 0.0, idle_s=10.0)
    packets = (payload + TcpLink.RESPONSE_HEADER_BYTES) / 1448
    assert float(outcome.download_s) == pytest.approx(packets * 1500 * 8 / 2e6)


def test_slow_start_costs_round_trips_after_silence_only() -> None:
    trace = Trace("flat", np.array([0.0, 10.0]), np.array([0.0, 50.0]))
    link = TcpLink(trace, delay_s=0.05)
    warm = link.download(200_000, 0.0, idle_s=0.0)
    cold = link.download(200_000, 0.0, idle_s=5.0)
    busy_s = (200_000 + link.RESPONSE_HEADER_BYTES) / 1448 * 1500 * 8 / 50e6
    assert float(warm.download_s) == pytest.approx(0.1 + busy_s)
    # 10, 20, 40 segments take 2.4, 4.8 and 9.6 ms of each 100 ms; the fourth round has the rest.
    gaps_s = 3 * 0.1 - (10 + 20 + 40) * 1500 * 8 / 50e6
    assert float(cold.download_s) == pytest.approx(0.1 + busy_s + gaps_s)
