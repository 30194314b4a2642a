"""The clock of a live cluster: it follows real time, but stands still while the driver is behind.

Emulators that share a machine call this virtual time (Gupta et al., To infinity and beyond, NSDI
2006; Yan and Jin, VT-Mininet, SOSR 2015). Here it is for the driver's own work: a decision that
takes long, or more tasks ending at once than the machine has cores to attend to, would otherwise
look like a slow cluster. What stands still is what waits for this clock: the ends of tasks,
arrivals, moves. Bytes that are under way go on, and are timed where they go.
"""

from __future__ import annotations

MS_PER_SECOND = 1000.0
#: Real time that the driver may be behind without the clock being held: agents make up for it.
SLACK_S = 0.001


class LiveClock:
    """Turns real time, an argument, into the cluster's and back.

    Attributes:
        held_s: real time that the clock has stood still for.
        is_running: whether it has been started.
    """

    def __init__(self, time_scale: float, slack_s: float = SLACK_S) -> None:
        """Makes a clock that shows 0 until it is started.

        Args:
            time_scale: seconds that pass per second of the cluster.
            slack_s: see ``SLACK_S``.
        """
        self.held_s = 0.0
        self.is_running = False
        self._s_per_ms = time_scale / MS_PER_SECOND
        self._slack_s = slack_s
        self._began_s = 0.0

    def start(self, now_s: float) -> None:
        """It is 0 ms now."""
        self._began_s = now_s
        self.is_running = True

    def at_ms(self, now_s: float) -> float:
        """The cluster's time."""
        return (now_s - self._began_s) / self._s_per_ms

    def real_s(self, at_ms: float) -> float:
        """When it is that time, unless the clock is held before."""
        return self._began_s + at_ms * self._s_per_ms

    def to_real_s(self, length_ms: float) -> float:
        """A length of time."""
        return length_ms * self._s_per_ms

    def to_ms(self, length_s: float) -> float:
        """A length of real time."""
        return length_s / self._s_per_ms

    def hold(self, at_ms: float, now_s: float) -> None:
        """What was due at ``at_ms`` is attended to only now."""
        late_s = now_s - self.real_s(at_ms) - self._slack_s
        if late_s > 0:
            self._began_s += late_s
            self.held_s += late_s
