"""Jobs of Alibaba's cluster trace of 2018: ``batch_task.csv``, whose task names hold the graph.

A row is ``task_name, instance_num, job_name, task_type, status, start_time, end_time, plan_cpu,
plan_mem`` (https://github.com/alibaba/clusterdata, cluster-trace-v2018/schema.txt). ``R4_2_3`` is
stage 4 and waits for stages 2 and 3; a name of another form, such as ``task_NjY2``, is a stage that
waits for none. A row is a stage here, an instance a task; how long an instance took stands in
another table of hundreds of gigabytes, so every task takes as long as its stage did.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster_sim.durations import ConstantDurations
from cluster_sim.jobs import Edge, Job, JobError, JobGraph, Stage

_LOGGER = logging.getLogger(__name__)
_COLUMNS = (
    *("task_name", "instance_num", "job_name", "task_type", "status"),
    *("start_time", "end_time", "plan_cpu", "plan_mem"),
)
_FINISHED = "Terminated"
_NAME = re.compile(r"[A-Za-z]+(?P<number>\d+)(?P<parents>(_\d+)*)(_Stg\d+)*")
_MS_PER_SECOND = 1000.0


class AlibabaFormatError(ValueError):
    """The file is not ``batch_task.csv``; the message names file, line and column."""


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    task_name: str
    tasks: int
    status: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class AlibabaLibrary:
    """The jobs of a trace, to be drawn from.

    Attributes:
        jobs: by arrival.
    """

    jobs: tuple[Job, ...]

    def pick(self, rng: np.random.Generator) -> JobGraph:
        """One of them, each equally likely."""
        return self.jobs[int(rng.integers(len(self.jobs)))].graph


def read_alibaba(path: Path, *, limit: int | None = None) -> tuple[Job, ...]:
    """Reads jobs, numbered by arrival from time 0 on.

    Jobs with a task that failed, is still running or has no times are left out, as are those whose
    names wait for stages that are not there; how many is logged.

    Args:
        path: ``batch_task.csv``.
        limit: stop after this many jobs of the file.

    Raises:
        AlibabaFormatError: a row that cannot be.
        OSError: the file cannot be read.
    """
    groups: dict[str, list[_Row]] = {}
    for name, row in _rows(path):
        if name not in groups and limit is not None and len(groups) == limit:
            break  # a job's rows stand together
        groups.setdefault(name, []).append(row)
    found: list[tuple[float, JobGraph]] = []
    dropped = 0
    for name, rows in groups.items():
        try:
            is_whole = all(row.status == _FINISHED and 0 < row.start_s <= row.end_s for row in rows)
            graph = _graph(name, rows) if is_whole else None
        except JobError as error:
            _LOGGER.debug("%s: %s", path, error)
            graph = None
        if graph is None:
            dropped += 1
        else:
            found.append((min(row.start_s for row in rows), graph))
    if dropped:
        _LOGGER.warning(
            "%s: left out %d of %d jobs, not finished or not whole", path, dropped, len(groups)
        )
    if not found:
        raise AlibabaFormatError(f"{path}: no job that is whole")
    found.sort(key=lambda one: one[0])
    first_s = found[0][0]
    return tuple(
        Job(number, (start_s - first_s) * _MS_PER_SECOND, graph)
        for number, (start_s, graph) in enumerate(found)
    )


def _rows(path: Path) -> Iterator[tuple[str, _Row]]:
    with path.open(newline="", encoding="utf-8") as file:
        for line, values in enumerate(csv.reader(file), start=1):
            if len(values) != len(_COLUMNS):
                raise AlibabaFormatError(
                    f"{path}:{line}: {len(values)} columns; it needs {len(_COLUMNS)}: "
                    + ", ".join(_COLUMNS)
                )
            row = dict(zip(_COLUMNS, values, strict=True))
            numbers = [
                _number(row, key, path, line) for key in ("instance_num", "start_time", "end_time")
            ]
            tasks, start_s, end_s = numbers
            yield (
                row["job_name"],
                _Row(line, row["task_name"], int(tasks), row["status"], start_s, end_s),
            )


def _number(row: dict[str, str], key: str, path: Path, line: int) -> float:
    try:
        return float(row[key] or 0)
    except ValueError as error:
        raise AlibabaFormatError(f"{path}:{line}: {key} {row[key]!r} is no number") from error


def _graph(name: str, rows: list[_Row]) -> JobGraph:
    named = [_NAME.fullmatch(row.task_name) for row in rows]
    places: dict[int, int] = {}
    for place, match in enumerate(named):
        if match is not None and places.setdefault(int(match["number"]), place) != place:
            raise JobError(f"job {name!r}: stage {match['number']} occurs twice")
    edges = []
    for place, match in enumerate(named):
        for parent in re.findall(r"\d+", match["parents"]) if match is not None else ():
            if int(parent) not in places:
                raise JobError(f"job {name!r}: stage {rows[place].task_name} waits for {parent}")
            edges.append(Edge(places[int(parent)], place))
    stages = tuple(
        Stage(row.tasks, ConstantDurations((row.end_s - row.start_s) * _MS_PER_SECOND))
        for row in rows
    )
    return JobGraph(name, stages, tuple(edges))
