"""What a manifest says of a live event, beside what it says of every video.

ISO/IEC 23009-1: ``type="dynamic"`` with a time at which the event began (annex A.3.2 has how a
client finds out from it what is available). Everything is known beforehand, so one manifest is
good for the whole event and is never loaded again. The server's clock goes with it (``UTCTiming``),
and the latency to keep in both ways that DASH has: ``suggestedPresentationDelay`` and, of the
DASH-IF's low-latency modes, ``ServiceDescription``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

CLOCK_SCHEME = "urn:mpeg:dash:utc:direct:2014"
MS_PER_S = 1000
_DAY_S = 86_400.0
_LAST_S = datetime.max.replace(tzinfo=UTC).timestamp() - _DAY_S
_NO_TIME = re.compile(r"PT0(\.0+)?S")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvent:
    """A video as an event; times are Unix seconds.

    Attributes:
        start_s: when it began.
        now_s: the server's clock.
        delay_s: latency to keep; None tells players nothing.

    Raises:
        ValueError: a time that no calendar has, or no latency.
    """

    start_s: float
    now_s: float
    delay_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < _LAST_S:
            raise ValueError(f"no event begins at {self.start_s}")
        if self.delay_s is not None and not 0 < self.delay_s < _DAY_S:
            raise ValueError(f"delay_s must be above 0 and below a day, is {self.delay_s}")


class ManifestParts(NamedTuple):
    """Text that differs between kinds of manifests.

    Attributes:
        kind: attributes of ``MPD``.
        head: elements in front of ``Period``.
        period: attributes of that.
        tail: elements behind it.
    """

    kind: str
    head: str = ""
    period: str = ""
    tail: str = ""


def manifest_parts(duration_s: float, event: LiveEvent | None) -> ManifestParts:
    """The parts for a video that long, static without an event."""
    length = _duration(duration_s)
    if event is None:
        return ManifestParts(f'type="static"\n     mediaPresentationDuration="{length}"')
    start, delay, head = _time(event.start_s), "", ""
    if event.delay_s is not None:
        delay = f' suggestedPresentationDelay="{_duration(event.delay_s)}"'
        target = f'<Latency target="{round(event.delay_s * MS_PER_S)}"/>'
        head = f'  <ServiceDescription id="0">{target}</ServiceDescription>\n'
    return ManifestParts(
        kind=(
            f'type="dynamic"\n     availabilityStartTime="{start}" publishTime="{start}"\n'
            f'     minimumUpdatePeriod="{length}" timeShiftBufferDepth="{length}"\n    {delay}'
        ),
        head=head,
        period=f' duration="{length}"',
        tail=f'  <UTCTiming schemeIdUri="{CLOCK_SCHEME}" value="{_time(event.now_s)}"/>\n',
    )


def read_start_s(availability_start: str | None, period_start: str | None) -> float:
    """When the event of a dynamic manifest began, Unix seconds.

    Args:
        availability_start: ``MPD@availabilityStartTime``; without a time zone it is UTC.
        period_start: ``Period@start`` of its one period.

    Raises:
        ValueError: it does not say, or the period does not begin with the event.
    """
    if _NO_TIME.fullmatch((period_start or "PT0S").strip()) is None:
        raise ValueError(f"Period@start must be PT0S, is {period_start!r:.40}")
    text = (availability_start or "").strip()
    if "T" not in text:
        raise ValueError(f"MPD@availabilityStartTime must be a date and time, not {text[:40]!r}")
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except ValueError as error:
        raise ValueError(f"MPD@availabilityStartTime: {error}") from error


def _time(unix_s: float) -> str:
    found = datetime.fromtimestamp(unix_s, UTC).replace(tzinfo=None)
    return f"{found.isoformat(timespec='microseconds')}Z"


def _duration(seconds: float) -> str:
    return f"PT{seconds:.6f}S"
