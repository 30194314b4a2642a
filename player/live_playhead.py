"""How a player follows a live event: faster than it was filmed while it is too far behind.

In closed form between two moments: playing at rate r for t seconds takes r·t out of the buffer and
adds (1 - r)·t to the latency; standing still adds t. dash.js changes the rate gradually instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from player.live import Live

#: A latency that deviates by no more than this is left as it is.
TOLERANCE_S = 0.05


@dataclass(frozen=True, slots=True)
class Played:
    """What some time of playing comes to.

    Attributes:
        buffer_s: what is left in the buffer.
        stall_s: how much of the time nothing was shown.
    """

    buffer_s: float
    stall_s: float


class LivePlayhead:
    """Where in the event a player is; ``latency_s`` is how far behind it."""

    def __init__(self, live: Live) -> None:
        self.latency_s = live.target_latency_s
        self._live = live
        self._is_correcting = False

    @property
    def rate(self) -> float:
        """At which it plays, 1 as it was filmed."""
        if not self._is_correcting:
            return 1.0
        is_behind = self.latency_s > self._live.target_latency_s
        return 1.0 + self._live.catch_up if is_behind else 1.0 - self._live.catch_up

    def play(self, buffer_s: float, seconds: float) -> Played:
        """Plays for some time what is in the buffer, and stands still when that is empty."""
        left_s = seconds
        while left_s > 0 and buffer_s > 0:
            off_s = abs(self.latency_s - self._live.target_latency_s)
            self._is_correcting |= off_s > TOLERANCE_S
            rate = self.rate
            runs_dry_s = buffer_s / rate
            arrives_s = off_s / abs(rate - 1.0) if rate != 1.0 else float("inf")
            span_s = min(left_s, runs_dry_s, arrives_s)
            buffer_s = 0.0 if span_s == runs_dry_s else buffer_s - rate * span_s
            left_s -= span_s
            if span_s == arrives_s:
                self.latency_s = self._live.target_latency_s
                self._is_correcting = False
            else:
                self.latency_s += (1.0 - rate) * span_s
        self.latency_s += left_s
        return Played(buffer_s, left_s)
