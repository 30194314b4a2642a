"""Capacities of links that follow a bandwidth trace, in the milliseconds of the cluster."""

from __future__ import annotations

from player.trace import Trace

MS_PER_S = 1000.0
#: Borders of steps are rounded to the nanosecond: those of traces that change at the same time then
#: are the same moment.
_DIGITS = 6


def scaled_trace(trace: Trace, *, time: float = 1.0, rate: float = 1.0) -> Trace:
    """A trace with times and rates multiplied."""
    return Trace(trace.name, trace.times_s * time, trace.rates_mbps * rate)


class TraceSteps:
    """The step that a trace is at; it begins at 0 and starts over at its end.

    Attributes:
        duration_ms: length of one pass.
    """

    def __init__(self, trace: Trace) -> None:
        self._ends_ms: list[float] = (trace.edges_s[1:] * MS_PER_S).tolist()
        self._rates_mbps: list[float] = trace.steps_mbps.tolist()
        self.duration_ms = self._ends_ms[-1]
        self._pass = self._step = 0

    @property
    def rate_mbps(self) -> float:
        """Rate of the step."""
        return self._rates_mbps[self._step]

    @property
    def until_ms(self) -> float:
        """When the step ends."""
        end_ms: float = self._pass * self.duration_ms + self._ends_ms[self._step]
        return round(end_ms, _DIGITS)

    def move_to(self, now_ms: float) -> None:
        """Goes on to the step that holds from a moment on; time never runs backwards."""
        passes = int(now_ms // self.duration_ms) - 1  # one less: it may be rounded up
        if passes > self._pass:
            self._pass, self._step = passes, 0
        while self.until_ms <= now_ms:
            self._step += 1
            if self._step == len(self._ends_ms):
                self._pass, self._step = self._pass + 1, 0
