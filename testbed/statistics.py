"""Means with confidence intervals: the bootstrap over traces, paired where two arms are compared.

Traces differ far more than arms do, so arms are compared trace by trace: the unit that is drawn
again is the difference on one trace. The interval is the percentile interval with the levels
expanded for small samples (Hesterberg, "What Teachers Should Know About the Bootstrap", The
American Statistician 2015, section 5.2): plain percentile intervals of a mean are too narrow by the
factor that separates the normal from Student's t, and cover 88 % instead of 95 % with 8 traces.
Unlike BCa it is defined for every sample, also when all values are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from player.trace import FloatArray

RESAMPLES = 10_000
#: Fixed, so that a report that is built again says the same.
SEED = 20_240_804
CONFIDENCE = 0.95
_BLOCK = 2_000_000  # numbers drawn at a time; bounds memory, not the result


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and what is known about it.

    Attributes:
        n: number of values.
        mean: None without values.
        ci95: 95 % confidence interval; None for fewer than two values.
    """

    n: int
    mean: float | None
    ci95: tuple[float, float] | None

    def as_json(self) -> dict[str, object]:
        """As written in ``summary.json``."""
        return {"mean": self.mean, "ci95": None if self.ci95 is None else list(self.ci95)}


def mean_ci(
    values: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Mean of independent values, one per trace, with its interval.

    Args:
        values: one per trace, or whatever else is drawn again.
        weights: how much each counts, such as the samples that it is a mean of: the mean is that
            of all samples, and a value that is drawn again brings its weight. Equal by default.
        resamples: how often a sample is drawn again.
        seed: for that.

    Raises:
        ValueError: a value is not a finite number, or a weight is not positive.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("a value is not a finite number")
    share = None if weights is None else np.asarray(weights, dtype=np.float64)
    if share is not None and not (share.shape == sample.shape and (share > 0).all()):
        raise ValueError("every value needs a positive weight")
    if len(sample) == 0:
        return Estimate(0, None, None)
    mean = float(sample.mean() if share is None else (sample * share).sum() / share.sum())
    if len(sample) == 1:
        return Estimate(1, mean, None)
    means = _resampled_means(sample, share, resamples, np.random.default_rng(seed))
    tail = _expanded_tail(len(sample))
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(len(sample), mean, (float(low), float(high)))


def paired_delta_ci(
    a: Sequence[float],
    b: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Mean of ``a - b`` where entry i of both belongs to the same trace; see :func:`mean_ci`.

    Raises:
        ValueError: the lengths differ, or a value is not a finite number.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, not {len(a)} and {len(b)}")
    deltas = [one - other for one, other in zip(a, b, strict=True)]
    return mean_ci(deltas, weights=weights, resamples=resamples, seed=seed)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile with linear interpolation; None without values."""
    return float(np.percentile(values, percent)) if len(values) else None


def mean(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return sum(values) / len(values) if values else None


def jains_index(throughputs: Sequence[float]) -> float:
    """Fairness of shares of one resource: from 1/n, one has all, to 1, all have the same.

    ``(Σx)² / (n Σx²)``, from Jain, Chiu and Hawe, "A Quantitative Measure of Fairness and
    Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984. The unit
    does not matter; where nobody has anything, all have the same.

    Raises:
        ValueError: there are no shares, or one is negative or not a finite number.
    """
    shares = np.asarray(throughputs, dtype=np.float64)
    if len(shares) == 0:
        raise ValueError("fairness needs at least one share")
    if not (np.isfinite(shares) & (shares >= 0)).all():
        raise ValueError("a share is negative or not a finite number")
    if (largest := float(shares.max())) == 0.0:
        return 1.0
    shares = shares / largest  # or squares could overflow, or vanish
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def _resampled_means(
    sample: FloatArray, weights: FloatArray | None, resamples: int, rng: np.random.Generator
) -> FloatArray:
    rows = max(_BLOCK // len(sample), 1)
    means = []
    for done in range(0, resamples, rows):
        drawn = rng.integers(len(sample), size=(min(rows, resamples - done), len(sample)))
        if weights is None:
            means.append(sample[drawn].mean(1))
        else:
            means.append((sample * weights)[drawn].sum(1) / weights[drawn].sum(1))
    return np.concatenate(means)


def _expanded_tail(n: int) -> float:
    """Probability below the interval, so that its width matches Student's t."""
    t = -float(special.stdtrit(n - 1, (1 - CONFIDENCE) / 2))
    return float(special.ndtr(-math.sqrt(n / (n - 1)) * t))
