"""Recorded runs of the public reference simulator: jobs, and durations in the order of drawing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_sim.durations import ConstantDurations, RecordedDraw
from cluster_sim.jobs import Edge, Job, JobError, JobGraph, Stage, Wave

_WAVES = {"idle": Wave.FRESH, "new_stage": Wave.FIRST, "same_stage": Wave.REST}


class EpisodeFormatError(ValueError):
    """The file is no recorded run; the message names file, key and what is wrong."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A recorded run.

    Attributes:
        jobs: its jobs.
        draws: durations, in the order of drawing.
        executors: of the cluster.
        moving_delay_ms: how long an executor takes to another job.
    """

    jobs: tuple[Job, ...]
    draws: tuple[RecordedDraw, ...]
    executors: int
    moving_delay_ms: float


def read_episode(path: Path) -> Episode:
    """Reads a recorded run.

    Raises:
        EpisodeFormatError: the file is none.
        JobError: one of its jobs cannot be.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        draws = tuple(_draw(row) for row in document["durations"])
        return Episode(
            jobs=tuple(_job(row, draws) for row in document["jobs"]),
            draws=draws,
            executors=int(document["num_executors"]),
            moving_delay_ms=float(document["moving_delay_ms"]),
        )
    except KeyError as error:
        raise EpisodeFormatError(f"{path}: no key {error}") from error
    except JobError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise EpisodeFormatError(f"{path}: {error}") from error


def _draw(row: list[Any]) -> RecordedDraw:
    job, stage, _executor, local_executors, kind, took_ms = row
    return RecordedDraw(job, stage, None, local_executors, _WAVES[kind], float(took_ms))


def _job(row: dict[str, Any], draws: tuple[RecordedDraw, ...]) -> Job:
    took_ms: dict[int, list[float]] = {}
    for draw in draws:
        if draw.job == row["id"]:
            took_ms.setdefault(draw.stage, []).append(draw.took_ms)
    stages = tuple(
        Stage(int(tasks), ConstantDurations(sum(took_ms[index]) / len(took_ms[index])))
        for index, tasks in enumerate(row["tasks_per_stage"])
    )
    edges = tuple(Edge(int(parent), int(child)) for parent, child in row["edges"])
    name = f"tpch-{row['input_size']}-query{row['query']:02d}"
    return Job(int(row["id"]), float(row["arrived_ms"]), JobGraph(name, stages, edges))
