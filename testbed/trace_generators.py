"""Seeded generators of bandwidth traces that behave like three measured families.

Nothing is copied from a measurement; each family is a small stochastic model whose mean,
coefficient of variation and autocorrelation over neighbouring steps lie where those of public
traces lie:

- ``fcc``: fixed broadband, as in the FCC's Measuring Broadband America data that Pensieve (Mao et
  al., SIGCOMM 2017) cut into 5 s steps.
- ``hsdpa``: 3G in buses, trams, trains and ferries, as logged by Riiser et al. (MMSys 2013).
- ``lte``: LTE while driving, as recorded for Sprout (Winstein et al., NSDI 2013) and shipped with
  Mahimahi, scaled down so that it stresses a ladder of 300 to 4,300 kbit/s.

All build on the same two processes: first-order autoregression of the logarithm of the rate
(fading multiplies, and a rate is never negative), and episodes of an on/off Markov chain (dips,
fades, outages). Rates are rounded to 1 bit/s, which hides differences of the last digit between
platforms' mathematics libraries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from player.trace import FloatArray, Trace

#: 48 chunks of 4 s take 192 s when nothing stalls; the rest is room to stall in.
DEFAULT_DURATION_S = 320.0
RATE_DECIMALS = 6  # of a Mbit/s: 1 bit/s

Generator = Callable[[str, np.random.Generator, float], Trace]


def generate_fcc(
    name: str, rng: np.random.Generator, duration_s: float = DEFAULT_DURATION_S
) -> Trace:
    """Broadband: steps of 5 s around a base, with occasional lasting dips.

    The base is log-normal with median 1.2 Mbit/s and sigma 0.85, within 0.3 to 4 Mbit/s. Around
    it, the noise has sigma 0.05 to 0.3 in the logarithm, drawn per trace, and correlation 0.3
    from step to step. Every third line is a bad one: it dips to 10 to 60 % of its
    base for 40 s at a time, 80 s apart on average.
    """
    step_s = 5.0
    steps = _step_count(duration_s, step_s)
    base_mbps = _bounded_lognormal(rng, median=1.2, sigma=0.85, low=0.3, high=4.0)
    sigma = rng.uniform(0.05, 0.3)
    is_bad_line = rng.random() < 1 / 3
    depth = rng.uniform(0.1, 0.6)
    dips = _episodes(rng, steps, step_s, gap_s=80.0, length_s=40.0)
    rates = base_mbps * np.exp(_autoregressive(rng, steps, correlation=0.3, sigma=sigma))
    if is_bad_line:
        rates = np.where(dips, rates * depth, rates)
    return _trace(name, rates, step_s)


def generate_hsdpa(
    name: str, rng: np.random.Generator, duration_s: float = DEFAULT_DURATION_S
) -> Trace:
    """3G on the move: steps of 1 s, coverage that comes and goes, short outages.

    The base is log-normal with median 1.5 Mbit/s and sigma 0.5, within 0.4 to 3.5 Mbit/s. The
    logarithm of the rate is the sum of a slow part (time constant 30 s, sigma 0.6: where the
    vehicle is) and a fast part (2 s, sigma 0.25: who shares the cell), saturating softly at 1.8
    times the base as a cell does. Fades to a quarter take 6 s, 60 s apart; outages take 2 s, 150 s
    apart, each on average.
    """
    step_s = 1.0
    steps = _step_count(duration_s, step_s)
    base_mbps = _bounded_lognormal(rng, median=1.5, sigma=0.5, low=0.4, high=3.5)
    slow = _autoregressive(rng, steps, correlation=math.exp(-step_s / 30.0), sigma=0.6)
    fast = _autoregressive(rng, steps, correlation=math.exp(-step_s / 2.0), sigma=0.25)
    cell_mbps = 1.8 * base_mbps
    rates = cell_mbps * -np.expm1(-base_mbps * np.exp(slow + fast) / cell_mbps)
    rates = np.where(_episodes(rng, steps, step_s, gap_s=60.0, length_s=6.0), rates / 4, rates)
    rates = np.where(_episodes(rng, steps, step_s, gap_s=150.0, length_s=2.0), 0.0, rates)
    return _trace(name, rates, step_s)


def generate_lte(
    name: str, rng: np.random.Generator, duration_s: float = DEFAULT_DURATION_S
) -> Trace:
    """LTE while driving: steps of 100 ms, fast fading, and handovers during which nothing moves.

    The base is log-normal with median 2.2 Mbit/s and sigma 0.45, within 0.8 to 6 Mbit/s: half of
    what was measured. The logarithm of the rate is the sum of a slow part (time constant
    15 s, sigma 0.6: shadowing) and a fast part (0.3 s, sigma 0.35: fading and the scheduler).
    Handovers take 0.8 s, 20 s apart on average.
    """
    step_s = 0.1
    steps = _step_count(duration_s, step_s)
    base_mbps = _bounded_lognormal(rng, median=2.2, sigma=0.45, low=0.8, high=6.0)
    slow = _autoregressive(rng, steps, correlation=math.exp(-step_s / 15.0), sigma=0.6)
    fast = _autoregressive(rng, steps, correlation=math.exp(-step_s / 0.3), sigma=0.35)
    rates = base_mbps * np.exp(slow + fast)
    rates = np.where(_episodes(rng, steps, step_s, gap_s=20.0, length_s=0.8), 0.0, rates)
    return _trace(name, rates, step_s)


GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {"fcc": generate_fcc, "hsdpa": generate_hsdpa, "lte": generate_lte}
)


class UnknownTraceFamily(LookupError):
    """No generator of that name; the message lists those that exist."""


def generate_trace(
    family: str, name: str, rng: np.random.Generator, duration_s: float = DEFAULT_DURATION_S
) -> Trace:
    """A trace of the named family.

    Args:
        family: a key of ``GENERATORS``.
        name: name of the trace.
        rng: source of randomness; equal states give equal traces.
        duration_s: length; cut to whole steps of the family, at least one.

    Raises:
        UnknownTraceFamily: no such family.
        ValueError: the duration is not positive and finite.
    """
    if family not in GENERATORS:
        raise UnknownTraceFamily(
            f"unknown trace family {family!r}; there are {', '.join(GENERATORS)}"
        )
    return GENERATORS[family](name, rng, duration_s)


def _step_count(duration_s: float, step_s: float) -> int:
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s must be positive, not {duration_s}")
    return max(int(duration_s / step_s + 1e-9), 1)


def _bounded_lognormal(
    rng: np.random.Generator, *, median: float, sigma: float, low: float, high: float
) -> float:
    """Log-normal, drawn again until it lies within the bounds."""
    while True:
        value = median * math.exp(rng.normal(0.0, sigma))
        if low <= value <= high:
            return value


def _autoregressive(
    rng: np.random.Generator, steps: int, *, correlation: float, sigma: float
) -> FloatArray:
    """Stationary first-order autoregression with mean 0 and standard deviation ``sigma``."""
    shocks = rng.normal(0.0, sigma * math.sqrt(1 - correlation**2), size=steps)
    values = np.empty(steps)
    value = rng.normal(0.0, sigma)
    for index, shock in enumerate(shocks.tolist()):
        value = correlation * value + shock
        values[index] = value
    return values


def _episodes(
    rng: np.random.Generator, steps: int, step_s: float, *, gap_s: float, length_s: float
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """On/off Markov chain in steady state: which steps lie in an episode.

    A gap lasts ``gap_s`` on average, an episode ``length_s``, both at least one step.
    """
    begin, end = min(step_s / gap_s, 1.0), min(step_s / length_s, 1.0)
    draws = rng.random(steps).tolist()
    inside = np.empty(steps, dtype=np.bool_)
    is_inside = bool(rng.random() < begin / (begin + end))
    for index, draw in enumerate(draws):
        is_inside = draw >= end if is_inside else draw < begin
        inside[index] = is_inside
    return inside


def _trace(name: str, rates_mbps: FloatArray, step_s: float) -> Trace:
    rates = np.round(rates_mbps, RATE_DECIMALS)
    if not rates.any():  # an outage that covers a trace of a few steps
        rates[-1] = 10.0**-RATE_DECIMALS
    # Multiples of the step, and not a running sum, so that times stay exact to the last digit.
    times_s = np.round(np.arange(len(rates) + 1) * step_s, RATE_DECIMALS)
    return Trace(name, times_s, np.concatenate((rates[:1], rates)))
