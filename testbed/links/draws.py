"""Random draws that depend on nothing but a seed and a number.

The draw with number n of a stream is SplitMix64's n-th output (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014), so that what happens to packet n is known without
what happened to the packets before it, in Python and in C alike.
"""

from __future__ import annotations

import hashlib
import statistics

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_TO_UNIT = 2.0**-53
NORMAL_STEPS = 4096


def stream_key(seed: str, stream: str) -> int:
    """The 64-bit key of a named stream of draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{stream}".encode()).digest()[:8], "little")


def draw(key: int, number: int) -> float:
    """Draw ``number`` of a stream, uniform in [0, 1)."""
    z = (key + (number + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return float((z ^ (z >> 31)) >> 11) * _TO_UNIT


def normal_quantiles() -> list[float]:
    """``(NORMAL_STEPS,)`` quantiles of the standard normal distribution, in the middle of each."""
    normal = statistics.NormalDist()
    return [normal.inv_cdf((step + 0.5) / NORMAL_STEPS) for step in range(NORMAL_STEPS)]
