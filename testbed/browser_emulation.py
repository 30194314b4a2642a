"""Emulated sessions of task ``abr`` that dash.js plays, in the client host of the session."""

from __future__ import annotations

import dataclasses
import itertools
import math

from player.browser import play_in_browser
from player.browser_page import FALLBACK_PATH, Asked, PageArm, PageSettings
from player.browser_parts import find_browser
from player.browser_rules import active_rules
from player.trace import Trace
from testbed.abr_experiment import AbrPlan
from testbed.emulated_task import Seat
from testbed.sessions import Session

BITS_PER_MEGABIT = 1e6
MAX_SHOWN_S = 1800  # of a trace; what is longer is shown again from its start


async def play_with_dashjs(plan: AbrPlan, session: Session, seat: Seat) -> float:
    """Plays a session in Chromium; returns its length, seconds.

    Raises:
        BrowserMissing, BrowserFailed, PageError: what ended it.
    """
    experiment, arm = plan.experiment, session.arm
    asked = Asked(
        url=seat.controller_url,
        timeout_s=seat.decision_timeout_s,
        fallback_url=None if seat.fallback is None else FALLBACK_PATH,
    )
    settings = PageSettings(
        title=f"{arm.label} on {session.unit}",
        manifest_url=seat.manifest_url,
        session_id=seat.session_id,
        video=plan.video,
        arms=(
            PageArm(
                name=arm.label,
                rules=active_rules(arm.controller),
                asked=asked if experiment.is_remote(arm) else None,
            ),
        ),
        player=experiment.player_config,
        chunk_timeout_s=seat.limits.chunk_s,
        link_mbps=seconds_mbps(session.trace, session.start_s),
        live_start_s=seat.live_start_s,
    )
    played = await play_in_browser(
        find_browser(),
        settings,
        fallback=seat.fallback,
        limits=seat.limits,
        before_start=seat.before_start,
        on_chunk=seat.on_chunk,
    )
    seat.on_figures(
        {
            "startup_s": played.startup_s,
            "starved_s": played.starved_s,
            "browser": played.usage and dataclasses.asdict(played.usage),
        }
    )
    return played.wall_s


def seconds_mbps(trace: Trace, start_s: float) -> list[float]:
    """Mean rate in each second from a point of the trace on, once around."""
    seconds = min(math.ceil(trace.duration_s), MAX_SHOWN_S)
    bits = [float(trace.bits_until(start_s + second)) for second in range(seconds + 1)]
    return [
        round((after - before) / BITS_PER_MEGABIT, 3) for before, after in itertools.pairwise(bits)
    ]
