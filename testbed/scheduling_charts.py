"""Drawings of scheduling sessions: executors over time, and the graph of one job."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from testbed.plots import COLOURS
from testbed.scheduling_records import FinishedJob, SchedulingSessionRecord, StageRun
from testbed.svg import Scale, Svg, number, path_of_steps, significant, tick_label
from testbed.timelines import AXIS, GAP, LEFT, RIGHT, WIDTH, panel, time_axis

#: Height of the executors together, and of one at most and at least.
_EXECUTORS, _MOST_ROW, _LEAST_ROW = 240.0, 12.0, 1.5
_ACTIVE = 46.0  # height of the panel that counts jobs
_HAIR = 0.3  # pixels: what is narrower is not drawn apart
_MOST_OF = 0.5
_NODE_WIDTH, _NODE_HEIGHT = 104.0, 40.0
_COLUMN_GAP, _ROW_GAP = 44.0, 10.0


@dataclass(frozen=True, slots=True)
class ExecutorAxes:
    """What the drawings of one seed share, so that they can be compared.

    Attributes:
        end_s: right end of the time axis.
        most_jobs: upper end of the axis that counts jobs.
    """

    end_s: float
    most_jobs: int

    @classmethod
    def of(cls, rows: Sequence[SchedulingSessionRecord]) -> ExecutorAxes:
        """Axes that suffice for all of them."""
        counts = [count for row in rows for _, count in active_jobs(row.jobs)]
        return cls(
            max((row.makespan_s or 0.0 for row in rows), default=0.0) or 1.0,
            max(counts, default=0) or 1,
        )


def active_jobs(jobs: Sequence[FinishedJob]) -> list[tuple[float, int]]:
    """Times at which the number of jobs in the system changes, with the number from then on."""
    steps: dict[float, int] = {}
    for job in jobs:
        steps[job.arrived_s] = steps.get(job.arrived_s, 0) + 1
        steps[job.finished_s] = steps.get(job.finished_s, 0) - 1
    found, count = [], 0
    for at_s in sorted(steps):
        count += steps[at_s]
        found.append((at_s, count))
    return found


def executor_chart(row: SchedulingSessionRecord, axes: ExecutorAxes) -> Markup | None:
    """A line per executor, coloured by the job that it works for; None: that was not recorded."""
    if row.tasks is None:
        return None
    pitch = min(max(_EXECUTORS / row.executors, _LEAST_ROW), _MOST_ROW)
    height = _ACTIVE + GAP + pitch * row.executors + AXIS
    svg = Svg(WIDTH, height, f"Executors under {row.arm}, seed {row.seed}", "timeline executors")
    x = Scale(0.0, axes.end_s, LEFT, WIDTH - RIGHT)
    bottom = height - AXIS
    time_axis(svg, x, bottom)
    y = Scale(0.0, float(axes.most_jobs), _ACTIVE, 4.0)
    panel(svg, y, "jobs", 0.0, float(axes.most_jobs), str(axes.most_jobs))
    changes = active_jobs(row.jobs)
    if changes:
        edges = [x(at_s) for at_s, _ in changes]
        svg.path(path_of_steps(edges, [y(count) for _, count in changes[:-1]]), "active")
    top = _ACTIVE + GAP
    svg.text(LEFT - 6, top + 10, f"{row.executors}", "tick", "end")
    svg.text(LEFT - 6, top + 24, "executors", "tick", "end")
    for colour, path in enumerate(_paths(row, x, top, pitch)):
        if path:
            with svg.group(f"c{colour}"):
                svg.path(path, "bar")
    if reading := _reading(row, x, top, pitch):
        svg.path(reading, "reading")
    return svg.render()


def _paths(row: SchedulingSessionRecord, x: Scale, top: float, pitch: float) -> list[str]:
    """One path per colour: small files, however many stints there are."""
    assert row.tasks is not None
    bars = [_Bars(top, pitch) for _ in range(COLOURS)]
    for one in row.tasks.stints:
        bars[one.job % COLOURS].add(one.executor, x(one.from_s), x(one.until_s))
    return [one.path() for one in bars]


def _reading(row: SchedulingSessionRecord, x: Scale, top: float, pitch: float) -> str:
    """Where executors read over a network for most of a pixel's time."""
    assert row.tasks is not None
    read: dict[tuple[int, int], float] = {}  # pixels, by executor and column
    for one in row.tasks.runs:
        from_x = x(one.start_s)
        until_x = x(one.end_s if one.compute_s is None else one.compute_s)
        for column in range(math.floor(from_x), math.ceil(until_x)):
            share = min(until_x, column + 1) - max(from_x, column)
            read[one.executor, column] = read.get((one.executor, column), 0.0) + share
    bars = _Bars(top, pitch)
    for (executor, column), share in sorted(read.items()):
        if share > _MOST_OF:
            bars.add(executor, column, column + 1)
    return bars.path()


class _Bars:
    """Bars of one kind, those of an executor in a line; close ones become one."""

    def __init__(self, top: float, pitch: float) -> None:
        self._top, self._pitch = top, pitch
        self._places: dict[int, list[tuple[float, float]]] = {}

    def add(self, executor: int, from_x: float, until_x: float) -> None:
        """Adds one; those of an executor come in order."""
        known = self._places.setdefault(executor, [])
        if known and from_x - known[-1][1] < _HAIR:
            known[-1] = (known[-1][0], max(until_x, known[-1][1]))
        else:
            known.append((from_x, until_x))

    def path(self) -> str:
        """All of them."""
        height = _short(max(self._pitch - 0.6, self._pitch * 0.7))
        return "".join(
            f"M{number(from_x)} {number(self._top + executor * self._pitch)}"
            f"h{_short(max(until_x - from_x, _HAIR))}v{height}"
            f"h-{_short(max(until_x - from_x, _HAIR))}z"
            for executor, places in self._places.items()
            for from_x, until_x in places
        )


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def job_chart(stages: Sequence[StageRun], label: str) -> Markup | None:
    """The graph of a job, from left to right; the darker, the more executor time a stage took."""
    if not stages:
        return None
    columns = _columns(stages)
    rows = max(len(column) for column in columns)
    width = len(columns) * (_NODE_WIDTH + _COLUMN_GAP) - _COLUMN_GAP + 2
    height = rows * (_NODE_HEIGHT + _ROW_GAP) - _ROW_GAP + 2
    svg = Svg(max(width, WIDTH), height, label, "timeline graph")
    places: dict[int, tuple[float, float]] = {}
    for at, column in enumerate(columns):
        spare = (rows - len(column)) * (_NODE_HEIGHT + _ROW_GAP) / 2
        for index, one in enumerate(column):
            at_x = 1 + at * (_NODE_WIDTH + _COLUMN_GAP)
            places[one.stage] = (at_x, 1 + spare + index * (_NODE_HEIGHT + _ROW_GAP))
    for one in stages:
        for parent in one.parents:
            svg.path(_edge(places[parent], places[one.stage]), "edge")
    most_s = max(one.busy_s for one in stages) or 1.0
    for one in stages:
        _draw_stage(svg, one, places[one.stage], one.busy_s / most_s)
    return svg.render()


def _columns(stages: Sequence[StageRun]) -> list[list[StageRun]]:
    """Stages by the length of the longest way to them; parents need not come first."""
    parents = {one.stage: one.parents for one in stages}
    depth: dict[int, int] = {}
    while len(depth) < len(parents):
        ready = [
            stage
            for stage in parents
            if stage not in depth and all(parent in depth for parent in parents[stage])
        ]
        if not ready:
            break  # a loop, or a parent that is not there: no run has written that
        for stage in ready:
            depth[stage] = max((depth[parent] + 1 for parent in parents[stage]), default=0)
    columns: list[list[StageRun]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for one in stages:
        columns[depth.get(one.stage, 0)].append(one)
    return columns


def _edge(parent: tuple[float, float], child: tuple[float, float]) -> str:
    from_x, from_y = parent[0] + _NODE_WIDTH, parent[1] + _NODE_HEIGHT / 2
    to_x, to_y = child[0], child[1] + _NODE_HEIGHT / 2
    bend = max((to_x - from_x) / 2, _COLUMN_GAP / 2)
    points = [(from_x, from_y), (from_x + bend, from_y), (to_x - bend, to_y), (to_x, to_y)]
    told = [f"{number(x)} {number(y)}" for x, y in points]
    return f"M{told[0]}C{told[1]} {told[2]} {told[3]}"


def _draw_stage(svg: Svg, one: StageRun, place: tuple[float, float], share: float) -> None:
    at_x, at_y = place
    title = (
        f"stage {one.stage}: {one.tasks} tasks, {significant(one.busy_s)} s of executor time, "
        f"from {significant(one.began_s)} to {significant(one.finished_s)} s"
    )
    shade = min(math.floor(share * 5), 4)
    svg.rect(at_x, at_y, _NODE_WIDTH, _NODE_HEIGHT, "node", title)
    svg.rect(at_x, at_y, _NODE_WIDTH, _NODE_HEIGHT, f"shade s{shade}", title)
    svg.text(at_x + 7, at_y + 16, f"{one.stage}: {one.tasks} ×", "num")
    took = f"{tick_label(round(one.began_s, 1))} – {tick_label(round(one.finished_s, 1))} s"
    svg.text(at_x + 7, at_y + 32, took, "tick")
