"""TPC-H queries as Spark ran them for Decima (Mao et al., SIGCOMM 2019): graphs and durations.

A folder holds one folder per input size (``2g`` … ``100g``) with a file ``queryQQ.json`` per query.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster_sim.durations import DurationError, WaveDurations
from cluster_sim.jobs import JobError, JobGraph, Stage
from cluster_sim.shuffles import with_shuffle_bytes

QUERIES = 22
#: In the order in which the reference draws from them.
INPUT_SIZES = ("2g", "5g", "10g", "20g", "50g", "80g", "100g")
BYTES_PER_GIGABYTE = 10**9
_STAGE_KEYS = {"fresh_durations", "first_wave", "rest_wave"}


class TpchFormatError(ValueError):
    """A file is no query; the message names file, stage and key."""


class TpchLibrary:
    """The queries of a folder, each read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        """Names the folder.

        Raises:
            TpchFormatError: there are no queries.
        """
        self._folder = folder
        self._graphs: dict[tuple[int, str], JobGraph] = {}
        missing = [size for size in INPUT_SIZES if not (folder / size).is_dir()]
        if missing:
            raise TpchFormatError(f"{folder}: no folder {', '.join(missing)}")

    def graph(self, query: int, input_size: str) -> JobGraph:
        """The job of a query at an input size; see :func:`read_query`."""
        key = query, input_size
        if key not in self._graphs:
            self._graphs[key] = read_query(self._folder / input_size / f"query{query:02d}.json")
        return self._graphs[key]

    def pick(self, rng: np.random.Generator) -> JobGraph:
        """A query and an input size, each equally likely, drawn as the reference draws them."""
        query = 1 + int(rng.integers(QUERIES))
        return self.graph(query, INPUT_SIZES[int(rng.integers(len(INPUT_SIZES)))])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a file something is wrong."""

    path: Path
    what: str

    def error(self, message: str) -> TpchFormatError:
        return TpchFormatError(f"{self.path}: {self.what}: {message}")


def read_query(path: Path) -> JobGraph:
    """Reads one query.

    A stage has as many tasks as were measured at the smallest number of executors.

    Raises:
        TpchFormatError: the file is no query, or one that cannot be.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TpchFormatError(f"{path}:{error.lineno}: {error.msg}") from error
    whole = _Place(path, "query")
    if not isinstance(document, dict):
        raise whole.error("must be an object")
    for key in ("query", "input_size", "edges", "stages"):
        if key not in document:
            raise whole.error(f"no key {key!r}")
    stages = tuple(
        _stage(row, _Place(path, f"stage {index}")) for index, row in enumerate(document["stages"])
    )
    pairs = [_pair(row, whole) for row in document["edges"]]
    size = str(document["input_size"])
    if not re.fullmatch(r"\d+g", size):
        raise whole.error(f"input_size {size!r} is no number of gigabytes such as '50g'")
    input_bytes = int(size.removesuffix("g")) * BYTES_PER_GIGABYTE
    try:
        return JobGraph(
            f"tpch-{size}-query{int(document['query']):02d}",
            stages,
            with_shuffle_bytes(stages, pairs, input_bytes),
        )
    except JobError as error:
        raise TpchFormatError(f"{path}: {error}") from error


def _pair(row: Any, place: _Place) -> tuple[int, int]:
    is_pair = isinstance(row, list) and len(row) == len(("parent", "child"))
    if not (is_pair and all(type(end) is int for end in row)):
        raise place.error(f"edges: {row!r} is no pair [parent, child]")
    return row[0], row[1]


def _stage(row: Any, place: _Place) -> Stage:
    if not (isinstance(row, dict) and set(row) >= _STAGE_KEYS):
        raise place.error(f"needs the keys {', '.join(sorted(_STAGE_KEYS))}")
    fresh, first, rest = (
        _measured(row[key], place, key) for key in ("fresh_durations", "first_wave", "rest_wave")
    )
    if not first:
        raise place.error("first_wave: no numbers of executors")
    least = min(first)
    try:
        durations = WaveDurations(fresh, first, rest)
    except DurationError as error:
        raise place.error(str(error)) from error
    return Stage(len(first[least]) + len(rest.get(least, ())), durations)


def _measured(rows: Any, place: _Place, key: str) -> dict[int, tuple[float, ...]]:
    measured: dict[int, tuple[float, ...]] = {}
    try:
        for level, values in rows.items():
            measured[int(level)] = tuple(map(float, values))
    except (AttributeError, TypeError, ValueError) as error:
        raise place.error(f"{key}: {error}") from error
    return measured
