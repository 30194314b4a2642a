"""Live streaming: chunks become available on time, and a player stays some seconds behind.

Time is counted from the start of the event. A chunk is available when its last picture has been
filmed (ISO/IEC 23009-1, section 5.3.9.5.3, without an availability time offset). The address of a
manifest says when its event began, as with DASH-IF's live simulator, so that the server keeps no
state: ``BASE/live/start_UNIX_SECONDS/VIDEO/manifest.mpd``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

_START = re.compile(r"start_([0-9]{1,12}(?:\.[0-9]{1,6})?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """How a session follows an event; it joins when the event is as old as the target latency.

    Attributes:
        target_latency_s: how far behind the event the player wants to show it.
        catch_up: how much faster than it was filmed it may play to get there.

    Raises:
        ValueError: a value is out of its bounds.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # as a table of a file

    target_latency_s: float = 8.0
    catch_up: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.target_latency_s <= 3600:
            raise ValueError(
                f"target_latency_s must be above 0 and at most 3600, is {self.target_latency_s}"
            )
        if not 0 <= self.catch_up <= 0.5:
            raise ValueError(f"catch_up must be 0 to 0.5, is {self.catch_up}")


def available_s(chunk: int, chunk_s: float) -> float:
    """When chunk number ``chunk`` (from 0) is available, seconds since the event began."""
    return (chunk + 1) * chunk_s


def live_folder(start_s: float) -> str:
    """Path in front of the video's name for an event that begins then (Unix seconds)."""
    return f"/live/start_{start_s:.3f}"


def parse_start(folder: str) -> float | None:
    """Unix seconds out of the last part of :func:`live_folder`; None for anything else."""
    found = _START.fullmatch(folder)
    return None if found is None else float(found.group(1))


def live_url(manifest_url: str, start_s: float, delay_s: float) -> str:
    """Address of an event made of the video at ``manifest_url``.

    Args:
        manifest_url: ``BASE/VIDEO/manifest.mpd``.
        start_s: when it begins (Unix seconds).
        delay_s: the latency that its manifest tells players to keep.
    """
    base, video, file = manifest_url.rsplit("/", 2)
    return f"{base}{live_folder(start_s)}/{video}/{file}?delay_s={delay_s:g}"
