"""RobustMPC of Yin et al., SIGCOMM 2015: MPC on a lower bound of the throughput.

The bound is the harmonic mean over (1 + the largest relative error of the last five predictions).
All plans are searched, and the errors are those of this session alone: public reimplementations
that move by one level at most or keep errors across sessions are clearly weaker.
"""

from __future__ import annotations

from dataclasses import dataclass

from controllers.abr.mpc import Mpc
from controllers.registry import register
from controllers.throughput import harmonic_mean_kbps, worst_recent_error
from player.observation import AbrObservation


@register("abr", "robustmpc")
@dataclass(frozen=True, slots=True, kw_only=True)
class RobustMpc(Mpc):
    """:class:`Mpc`, options and all, at a pessimistic throughput."""

    def predicted_kbps(self, observation: AbrObservation) -> float | None:
        """Lower bound of the throughput, kbit/s; None before any measurement."""
        predicted = harmonic_mean_kbps(observation.history)
        if predicted is None:
            return None
        return predicted / (1 + worst_recent_error(observation.history))
