"""Table of the report that sets the players of a run side by side: same controller, same traces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from player.records import SessionRecord
from testbed.report_elements import PERCENT, Table, interval_cell
from testbed.results import Results, mean_bitrate_kbps, stall_s
from testbed.statistics import mean, paired_delta_ci
from testbed.svg import fixed


class PlayerPair(NamedTuple):
    """Two arms that differ in their player alone."""

    controller: str
    headless: str
    dashjs: str


def player_pairs(run: Results) -> tuple[PlayerPair, ...]:
    """The arms of a run with the same controller and options, one played by each player."""
    players = {row.arm: row.player for row in run.sessions}
    found: dict[str, dict[str, str]] = {}
    for label, controller, options in _arms(run):
        if label in players:
            named = found.setdefault(f"{controller} {options}", {"controller": controller})
            named.setdefault(players[label], label)
    return tuple(
        PlayerPair(**named) for named in found.values() if {"headless", "dashjs"} <= named.keys()
    )


def _arms(run: Results) -> Iterator[tuple[str, str, str]]:
    """Label, controller and options of each arm."""
    controllers = {row.arm: row.controller for row in run.sessions}
    listed = run.experiment.get("arms", [])
    told = [arm for arm in listed if isinstance(arm, dict)] if isinstance(listed, list) else []
    for label, controller in controllers.items():
        options = [
            arm.get("options", {})
            for arm in told
            if arm.get("controller") == controller
            and label in (arm.get("name"), controller, f"{controller}-{arm.get('player')}")
        ]
        yield label, controller, json.dumps(options[0] if options else {}, sort_keys=True)


def browser_use(rows: Sequence[SessionRecord]) -> str:
    """What the browsers of some sessions used, for a line of facts; empty where none played."""
    used = [(row.browser, row.wall_s) for row in rows if row.browser is not None and row.wall_s]
    if not used:
        return ""
    cores = mean([browser.cpu_s / wall_s for browser, wall_s in used])
    peak_mib = max(browser.peak_mib for browser, _ in used)
    return f"{fixed(cores, 2)} cores, at most {fixed(peak_mib, 0)} MiB"


def player_table(run: Results) -> Table:
    """A row per pair; none where one player played all."""
    return Table(
        "dash.js beside the headless player",
        (
            *("controller", "traces", "QoE headless", "dash.js", "difference", "95 % interval"),
            *("difference %", "kbit/s headless", "dash.js", "stalled s headless", "dash.js"),
            "machine too busy s",
        ),
        tuple(_row(run, pair) for pair in player_pairs(run)),
        "Same controller and traces, means over the traces that both ended well on; stalls per "
        "session. Too busy: pictures stood still though there was video to play; not in the QoE, "
        "but a run with much of it measured the machine.",
    )


def _row(run: Results, pair: PlayerPair) -> tuple[str, ...]:
    qoe = [run.qoe_of_arm(label) for label in (pair.headless, pair.dashjs)]
    common = [trace for trace in qoe[0] if trace in qoe[1]]
    headless, dashjs = ([one[trace] for trace in common] for one in qoe)
    delta = paired_delta_ci(dashjs, headless)
    rows = [
        [row for row in run.of_arm(label) if row.trace in common and len(row.chunks) > 1]
        for label in (pair.headless, pair.dashjs)
    ]
    base, other = mean(headless), mean(dashjs)
    relative = None if not base or other is None else (other - base) / abs(base) * PERCENT
    return (
        *(pair.controller, str(len(common)), fixed(base, 3), fixed(other, 3)),
        *(fixed(delta.mean, 3, sign=True), interval_cell(delta.ci95)),
        fixed(relative, 1, sign=True),
        *(fixed(mean([mean_bitrate_kbps(row) for row in some]), 0) for some in rows),
        *(fixed(mean([stall_s(row) for row in some]), 2) for some in rows),
        fixed(mean([row.starved_s for row in rows[1]]), 2),
    )
