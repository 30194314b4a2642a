"""Other people's traffic over the bottleneck of a session: what is asked, and when it comes.

Three kinds, each the usual model of its field:

- ``bulk``: long-lived TCP flows that always have something to send, as in studies of fairness
  between congestion controls.
- ``onoff``: a source that sends, falls silent, and sends again (Willinger et al., ToN 1997, explain
  the traffic of a network as a sum of such sources).
- ``web``: transfers that arrive as a Poisson process, as sessions that users start do (Paxson and
  Floyd, "Wide-Area Traffic: The Failure of Poisson Modeling", ToN 1995), with sizes whose tail is
  that of a Pareto distribution with an index little above 1 (Crovella and Bestavros,
  "Self-Similarity in World Wide Web Traffic", ToN 1997). The sizes are bounded, as those of
  Harchol-Balter, Crovella and Murta ("On Choosing a Task Assignment Policy for a Distributed Server
  System", 1998): an unbounded sample mean would not settle within any run.

The schedule is pure: a kind of traffic and a seed give the same transfers on every machine.
:mod:`testbed.background_flows` carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic

from testbed.links.spec import Direction

MAX_FLOWS = 64
MAX_RATE_MBPS = 10_000.0
MIN_PERIOD_S = 0.01
MAX_PERIOD_S = 86_400.0  # a day
MAX_ARRIVALS_PER_S = 1000.0
MIN_MEAN_BYTES, MAX_MEAN_BYTES = 100.0, 1e9
#: Tail index of the sizes of web transfers.
PARETO_INDEX = 1.2
#: Largest size by smallest: with a mean of 100 kB, 22 kB to 22 MB.
PARETO_RANGE = 1000.0
#: A mean of so many smallest sizes (the closed form for a bounded Pareto distribution).
PARETO_MEAN: float = (
    PARETO_INDEX
    / (PARETO_INDEX - 1)
    * (1 - PARETO_RANGE ** (1 - PARETO_INDEX))
    / (1 - PARETO_RANGE**-PARETO_INDEX)
)


@dataclass(frozen=True, kw_only=True)
class _Traffic:
    """What all kinds have in common.

    Attributes:
        direction: ``down``: from the server's side to the client's; ``up``: the other way.
        start_s: when it begins, since the start of the session.
        stop_s: after this nothing new is sent; None: until the session ends.
        congestion: TCP congestion control of the sender; None: that of its host.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    direction: Direction = "down"
    start_s: float = 0.0
    stop_s: float | None = None
    congestion: str | None = None

    def __post_init__(self) -> None:
        _check("start_s", self.start_s, 0.0, MAX_PERIOD_S)
        if self.stop_s is not None and not self.start_s < self.stop_s <= MAX_PERIOD_S:
            raise ValueError(
                f"stop_s {self.stop_s} is not above start_s {self.start_s} "
                f"and at most {MAX_PERIOD_S:.0f}"
            )

    @property
    def end_s(self) -> float:
        """``stop_s`` as a number; infinite without."""
        return math.inf if self.stop_s is None else self.stop_s


@dataclass(frozen=True, kw_only=True)
class BulkTraffic(_Traffic):
    """``kind = "bulk"``: TCP connections that send as fast as they can, without end.

    Attributes:
        flows: how many.
    """

    kind: Literal["bulk"] = "bulk"
    flows: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("flows", self.flows, 1, MAX_FLOWS)


@dataclass(frozen=True, kw_only=True)
class OnOffTraffic(_Traffic):
    """``kind = "onoff"``: sends for a while, is silent for a while; a connection for each "on".

    Attributes:
        on_s: length of a sending period, or its mean.
        off_s: length of a silent period, or its mean.
        periods: ``exponential`` lengths (independent), or ``fixed`` ones.
        rate_mbps: payload sent per second while on; None: as fast as it can. What a slow link
            holds up is sent as soon as it can be.
    """

    kind: Literal["onoff"] = "onoff"
    on_s: float
    off_s: float
    periods: Literal["exponential", "fixed"] = "exponential"
    rate_mbps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("on_s", self.on_s, MIN_PERIOD_S, MAX_PERIOD_S)
        _check("off_s", self.off_s, MIN_PERIOD_S, MAX_PERIOD_S)
        if self.rate_mbps is not None:
            _check("rate_mbps", self.rate_mbps, 0.001, MAX_RATE_MBPS)


@dataclass(frozen=True, kw_only=True)
class WebTraffic(_Traffic):
    """``kind = "web"``: Poisson arrivals of transfers with a heavy-tailed size.

    Attributes:
        arrivals_per_s: mean number of transfers that start in a second.
        mean_bytes: mean size of a transfer.
    """

    kind: Literal["web"] = "web"
    arrivals_per_s: float
    mean_bytes: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("arrivals_per_s", self.arrivals_per_s, 0.001, MAX_ARRIVALS_PER_S)
        _check("mean_bytes", self.mean_bytes, MIN_MEAN_BYTES, MAX_MEAN_BYTES)


#: One ``[[background]]`` table.
BackgroundTraffic = Annotated[
    BulkTraffic | OnOffTraffic | WebTraffic, pydantic.Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One TCP connection of background traffic.

    Attributes:
        start_s: when it begins, since the start of the session.
        direction: which way the data goes.
        size_bytes: how much is sent; None: without end.
        until_s: when sending ends; None: at ``size_bytes``, or with the session.
        rate_mbps: payload per second; None: as fast as it can.
        flow: which of the flows of its entry this is.
    """

    start_s: float
    direction: Direction
    size_bytes: int | None = None
    until_s: float | None = None
    rate_mbps: float | None = None
    flow: int = 0


def transfers(traffic: BackgroundTraffic, seed: int | Sequence[int]) -> Iterator[Transfer]:
    """The transfers that a kind of traffic consists of, in the order of their start.

    Args:
        traffic: what is asked.
        seed: equal seeds give equal transfers.

    Returns:
        An iterator that never ends for ``onoff`` and ``web`` without ``stop_s``.
    """
    rng = np.random.default_rng(seed)
    match traffic:
        case BulkTraffic():
            return _bulk(traffic)
        case OnOffTraffic():
            return _onoff(traffic, rng)
        case WebTraffic():
            return _web(traffic, rng)


def flow_count(traffic: BackgroundTraffic) -> int:
    """How many flows are told apart: those of ``bulk``, one for the other kinds."""
    return traffic.flows if isinstance(traffic, BulkTraffic) else 1


def _bulk(traffic: BulkTraffic) -> Iterator[Transfer]:
    for flow in range(traffic.flows):
        yield Transfer(
            start_s=traffic.start_s,
            direction=traffic.direction,
            until_s=traffic.stop_s,
            flow=flow,
        )


def _onoff(traffic: OnOffTraffic, rng: np.random.Generator) -> Iterator[Transfer]:
    def period(mean_s: float) -> float:
        return mean_s if traffic.periods == "fixed" else float(rng.exponential(mean_s))

    now_s = traffic.start_s
    while now_s < traffic.end_s:
        end_s = now_s + period(traffic.on_s)
        yield Transfer(
            start_s=now_s,
            direction=traffic.direction,
            until_s=min(end_s, traffic.end_s),
            rate_mbps=traffic.rate_mbps,
        )
        now_s = end_s + period(traffic.off_s)


def _web(traffic: WebTraffic, rng: np.random.Generator) -> Iterator[Transfer]:
    def gap() -> float:
        return float(rng.exponential(1 / traffic.arrivals_per_s))

    now_s = traffic.start_s + gap()
    while now_s < traffic.end_s:
        size_bytes = round(traffic.mean_bytes * _pareto(rng.random()))
        yield Transfer(start_s=now_s, direction=traffic.direction, size_bytes=size_bytes)
        now_s += gap()


def _pareto(uniform: float) -> float:
    """The quantile of the bounded Pareto distribution with mean 1."""
    kept: float = 1 - uniform * (1 - PARETO_RANGE**-PARETO_INDEX)
    return math.pow(kept, -1 / PARETO_INDEX) / PARETO_MEAN


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is not from {low:g} to {high:g}")
