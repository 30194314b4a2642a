"""The network of a cluster in the report: what it carried, and how simulation compares with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from testbed.report_elements import PERCENT, Table
from testbed.result_rows import LINK, read_rows
from testbed.scheduling_charts import ExecutorAxes
from testbed.scheduling_records import (
    NetworkRecord,
    SchedulingSessionRecord,
    SimulatedTwin,
    Spread,
)
from testbed.statistics import mean
from testbed.svg import Scale, Svg, fixed, number, path_of_steps, significant
from testbed.timelines import AXIS, GAP, LEFT, RIGHT, WIDTH, panel, time_axis

MEGABYTE = 1e6
SHADES = 5
#: Height of the strips together, and of one at most and at least.
_STRIPS, _MOST_ROW, _LEAST_ROW = 260.0, 9.0, 1.2
_MEAN = 46.0  # height of the panel of the mean
_GROUPS = {
    "host": "host up",
    "leaf>host": "host down",
    "leaf>spine": "leaf up",
    "spine": "leaf down",
}


@dataclass(frozen=True, slots=True)
class LinkSample:
    """A line of ``link.jsonl``: what one direction of one link carried in a while.

    Attributes:
        arm: label of the arm.
        seed: of the session.
        link: ``from>to``.
        begin_s: in the time of the cluster.
        end_s: likewise.
        asked_bits: what it could have carried.
        delivered_bits: what it carried, layer 3.
    """

    arm: str
    seed: int
    link: str
    begin_s: float
    end_s: float
    asked_bits: float
    delivered_bits: float

    @property
    def share(self) -> float:
        """What of it was used."""
        return min(self.delivered_bits / self.asked_bits, 1.0) if self.asked_bits else 0.0


#: The samples of each link, by arm and seed.
Samples = Mapping[tuple[str, int], Mapping[str, Sequence[LinkSample]]]


def read_link_samples(folder: Path) -> Samples:
    """Samples of all sessions; of what was repeated only the last run.

    Raises:
        ResultsError: a malformed line. A missing file means that there was no network.
    """
    path = folder / LINK
    found: dict[tuple[str, int], dict[str, list[LinkSample]]] = {}
    for row in read_rows(path, LinkSample) if path.is_file() else ():
        samples = found.setdefault((row.arm, row.seed), {}).setdefault(row.link, [])
        if samples and row.begin_s < samples[-1].begin_s:
            samples.clear()  # time ran back: the session was run again
        samples.append(row)
    return found


def link_chart(
    row: SchedulingSessionRecord,
    links: Mapping[str, Sequence[LinkSample]],
    axes: ExecutorAxes,
) -> Markup | None:
    """A strip per direction of a link, the darker the fuller; above it the mean over all."""
    if not links:
        return None
    groups = _grouped(links)
    strips = sum(len(group) for _, group in groups)
    pitch = min(max(_STRIPS / strips, _LEAST_ROW), _MOST_ROW)
    height = _MEAN + GAP + pitch * strips + 4 * (len(groups) - 1) + AXIS
    svg = Svg(WIDTH, height, f"Links under {row.arm}, seed {row.seed}", "timeline links")
    x = Scale(0.0, axes.end_s, LEFT, WIDTH - RIGHT)
    time_axis(svg, x, height - AXIS)
    y = Scale(0.0, 1.0, _MEAN, 4.0)
    panel(svg, y, "mean use", 0.0, 1.0, "100 %")
    spans = next(iter(links.values()))
    shares = [mean([one.share for one in at]) or 0.0 for at in zip(*links.values(), strict=False)]
    if shares:
        edges = [x(spans[0].begin_s), *(x(one.end_s) for one in spans[: len(shares)])]
        svg.path(path_of_steps(edges, [y(share) for share in shares]), "active")
    top = _MEAN + GAP
    for label, group in groups:
        svg.text(LEFT - 6, top + 10, label, "tick", "end")
        paths = [""] * SHADES
        for samples in group:
            for one in samples:
                _add_bar(paths, one, x, top, pitch)
            top += pitch
        for shade, path in enumerate(paths):
            if path:
                svg.path(path, f"shade s{shade}")
        top += 4
    return svg.render()


def _add_bar(paths: list[str], one: LinkSample, x: Scale, top: float, pitch: float) -> None:
    if one.delivered_bits <= 0:
        return
    shade = min(int(one.share * SHADES), SHADES - 1)
    from_x, until_x = x(one.begin_s), x(one.end_s)
    width, height = number(max(until_x - from_x, 0.3)), number(max(pitch - 0.5, pitch * 0.7))
    paths[shade] += f"M{number(from_x)} {number(top)}h{width}v{height}h-{width}z"


def _grouped(
    links: Mapping[str, Sequence[LinkSample]],
) -> list[tuple[str, list[Sequence[LinkSample]]]]:
    """Links by what they join."""
    groups: dict[str, list[Sequence[LinkSample]]] = {label: [] for label in _GROUPS.values()}
    for name, samples in links.items():
        near, _, far = name.partition(">")
        kinds = near.rstrip("0123456789"), far.rstrip("0123456789")
        label = _GROUPS.get(">".join(kinds)) or _GROUPS.get(kinds[0]) or ""
        groups.setdefault(label, []).append(samples)
    return [(label, group) for label, group in groups.items() if group]


def network_tables(arms: Sequence[str], rows: Sequence[SchedulingSessionRecord]) -> list[Table]:
    """Tables of runs with a network; none without."""
    told = {arm: [row for row in rows if row.arm == arm and row.status == "ok"] for arm in arms}
    tables = []
    if any(row.network for row in rows):
        tables.append(
            Table(
                "What was shuffled",
                (
                    *("arm", "read MB", "from others MB", "on the wire MB", "in vain MB"),
                    *("reading s", "lost", "run again", "late ms p50", "p99", "held %", "load"),
                ),
                tuple((arm, *_shuffled(found)) for arm, found in told.items() if found),
                "Per session. Bytes are those that really moved; on the wire with headers, "
                "requests and acknowledgements. Reading is the time of all tasks together. Late is "
                "by how much real time tasks began too late, held is the share of the run in which "
                "the cluster's clock stood still because its driver was behind, and load what "
                "the machine had to do before.",
            )
        )
    if any(row.network and row.network.simulated for row in rows):
        tables.append(
            Table(
                "Live against simulation with the fluid model of the same network",
                (
                    *("arm", "seeds", "live mean JCT s", "simulated", "ratio", "least", "most"),
                    *("makespan ratio", "reading ratio"),
                ),
                tuple((arm, *_compared(found)) for arm, found in told.items() if found),
                "The same jobs, durations and controllers. Ratios are means over seeds.",
            )
        )
    return tables


def _shuffled(rows: Sequence[SchedulingSessionRecord]) -> tuple[str, ...]:
    networks = [row.network for row in rows if row.network is not None]
    walls = {id(row.network): row.wall_s for row in rows}
    read = [one.local_bytes + one.remote_bytes for one in networks]
    wire = [one.wire_bytes / MEGABYTE for one in networks if one.wire_bytes is not None]
    late = [one.late_ms for one in networks if one.late_ms is not None]
    held = [one.held_s / walls[id(one)] * PERCENT for one in networks if walls[id(one)]]
    return (
        fixed(mean([size / MEGABYTE for size in read]), 1),
        fixed(mean([one.remote_bytes / MEGABYTE for one in networks]), 1),
        fixed(mean(wire), 1),
        fixed(mean([one.wasted_bytes / MEGABYTE for one in networks]), 2),
        fixed(mean([one.fetch_s for one in networks]), 0),
        significant(mean([len(one.lost) for one in networks])),
        significant(mean([one.reruns for one in networks])),
        fixed(mean([one[0] for one in late]), 1),
        fixed(mean([one[1] for one in late]), 1),
        fixed(mean(held), 1) if late else fixed(None, 1),
        fixed(mean([one.load for one in networks if one.load is not None]), 1),
    )


def _compared(rows: Sequence[SchedulingSessionRecord]) -> tuple[str, ...]:
    pairs = [pair for row in rows if (pair := _twins(row)) is not None]
    ratios = [live.mean / twin.jct_s for live, _, _, twin in pairs]
    return (
        str(len(pairs)),
        fixed(mean([live.mean for live, _, _, _ in pairs]), 1),
        fixed(mean([twin.jct_s for _, _, _, twin in pairs]), 1),
        *(fixed(one, 3) for one in (mean(ratios), *_extremes(ratios))),
        fixed(mean([last / twin.makespan_s for _, last, _, twin in pairs]), 3),
        fixed(mean([net.fetch_s / twin.fetch_s for _, _, net, twin in pairs if twin.fetch_s]), 3),
    )


def _extremes(values: Sequence[float]) -> tuple[float | None, float | None]:
    return min(values, default=None), max(values, default=None)


def _twins(
    row: SchedulingSessionRecord,
) -> tuple[Spread, float, NetworkRecord, SimulatedTwin] | None:
    """JCT, makespan and network of a session, and the same session in simulation."""
    network = row.network
    if network is None or network.simulated is None or row.jct_s is None or row.makespan_s is None:
        return None
    return row.jct_s, row.makespan_s, network, network.simulated
