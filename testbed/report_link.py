"""The report's section on the links: did they do what they were asked?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from player.records import SessionRecord
from player.viewport_records import ViewportSessionRecord
from testbed import plots
from testbed.plots import Series
from testbed.report_elements import PERCENT, Figure, LinkSection, scaled
from testbed.result_rows import LinkSecond, median_and_max
from testbed.session_records import place_of
from testbed.statistics import mean_ci
from testbed.svg import fixed

Streamed = SessionRecord | ViewportSessionRecord
#: The bar that a link has to pass: a wire error of 1 % in bins of 1 s.
LINK_BAR_PERCENT = 1.0


def link_section(
    sessions: Sequence[Streamed],
    arms: Sequence[str],
    link_seconds: Mapping[tuple[str, str], Sequence[LinkSecond]],
    colours: Mapping[str, int],
) -> LinkSection:
    """The section on the links that these sessions were played over."""
    links = {place_of(row)[:2]: row.link for row in sessions}.values()
    error = median_and_max([link.wire_nmae_1s for link in links])
    if error["median"] is not None:
        said = (
            f"Wire error (NMAE in bins of 1 s) per session: median "
            f"{fixed(scaled(error['median'], PERCENT), 2)} %, worst "
            f"{fixed(scaled(error['max'], PERCENT), 2)} %."
        )
    elif link_seconds:
        said = (
            "The queue was seen empty in every second, so less than the trace allowed may be for "
            "want of packets: the wire error cannot be told."
        )
    else:
        said = ""
    seconds = [one for some in link_seconds.values() for one in some]
    return LinkSection(said, _figures(sessions, arms, seconds, colours))


def _figures(
    sessions: Sequence[Streamed],
    arms: Sequence[str],
    seconds: Sequence[LinkSecond],
    colours: Mapping[str, int],
) -> tuple[Figure, ...]:
    errors = []
    for arm in arms:
        rows = {place_of(row)[:2]: row for row in sessions if row.arm == arm}.values()
        measured = [
            (row.link.wire_nmae_1s * PERCENT, place_of(row).unit)
            for row in rows
            if row.link.wire_nmae_1s is not None
        ]
        errors.append(
            Series(
                arm,
                colours[arm],
                [error for error, _ in measured],
                titles=[f"{unit}\n{fixed(error, 3)} %" for error, unit in measured],
            )
        )
    full = [one for one in seconds if one.saturated and one.direction == "down"]
    if not full and not any(one.values for one in errors):
        return ()
    return (
        Figure(
            "Wire error per session",
            plots.strips(
                errors,
                [mean_ci(one.values) for one in errors],
                "NMAE in bins of 1 s, %",
                mark=LINK_BAR_PERCENT,
            ),
            f"Dashed: {LINK_BAR_PERCENT:g} %. Only seconds in which the link was saturated count.",
        ),
        Figure(
            "Asked and delivered",
            plots.density(
                [second.asked_mbps for second in full],
                [second.delivered_mbps for second in full],
                "asked, Mbit/s",
                "delivered, Mbit/s",
            ),
            "Saturated seconds of all sessions; darker where there are more.",
        ),
    )
