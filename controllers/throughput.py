"""Throughput predictors that rate- and model-based controllers share."""

from __future__ import annotations

from collections.abc import Sequence

from player.observation import PastChunk

#: Past chunks in the harmonic mean, as in MPC (Yin et al., SIGCOMM 2015).
WINDOW = 5


def harmonic_mean_kbps(history: Sequence[PastChunk], window: int = WINDOW) -> float | None:
    """Harmonic mean of the throughput of the last ``window`` chunks, kbit/s; None without any."""
    recent = history[-window:]
    if not recent:
        return None
    return len(recent) / sum(1.0 / past.throughput_kbps for past in recent)


def worst_recent_error(history: Sequence[PastChunk], window: int = WINDOW) -> float:
    """Largest relative error that :func:`harmonic_mean_kbps` made on the last ``window`` chunks.

    The error of a prediction is |predicted - actual| / actual; 0 while there was no prediction.
    """
    worst = 0.0
    for index in range(max(1, len(history) - window), len(history)):
        predicted = harmonic_mean_kbps(history[:index], window)
        assert predicted is not None  # index >= 1
        actual = history[index].throughput_kbps
        worst = max(worst, abs(predicted - actual) / actual)
    return worst
