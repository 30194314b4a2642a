"""The simulated cluster in C: several times faster than the machine in Python, with equal results.

``_cluster.c`` is built when the package is installed, if there is a C compiler. It knows neither
losses nor second attempts nor slow tasks; those are for the machine in Python.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import itertools
from array import array
from collections.abc import Sequence
from pathlib import Path

from cluster_sim.durations import DrawnDurations
from cluster_sim.jobs import Job, StageDurations
from cluster_sim.machine import ClusterStateError, InvalidAssignment
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.views import StageFigures, ViewBuilder

ABI_VERSION = 1  # of _cluster.c
_FINISHED, _ASKS, _STUCK, _INVALID = 0, 1, -1, -2
_NONE = -1


class ClusterNotBuilt(RuntimeError):
    """The compiled cluster was asked for, and there is none."""


class _Setup(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("jobs", "stages", "executors")),
        ("moving_delay_ms", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("arrived_ms", "first_stage", "tasks")),
        *((name, ctypes.c_void_p) for name in ("first_child", "children", "keys", "table")),
        *((name, ctypes.c_void_p) for name in ("first_choice", "choices_ms")),
        *((name, ctypes.c_void_p) for name in ("remaining", "running", "coming")),
        *((name, ctypes.c_void_p) for name in ("schedulable", "done", "supply", "finished_ms")),
        *((name, ctypes.c_void_p) for name in ("changed_stages", "changed_jobs")),
    ]


class _State(ctypes.Structure):
    _fields_ = [
        ("now_ms", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("events", "arrived", "finished", "committable")),
        *((name, ctypes.c_int64) for name in ("source_job", "changed_stages", "changed_jobs")),
    ]


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads the library.

    Raises:
        ClusterNotBuilt: there is none, or one that does not fit.
    """
    paths = (
        Path(__file__).with_name(f"_cluster{suffix}")
        for suffix in importlib.machinery.EXTENSION_SUFFIXES
    )
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        raise ClusterNotBuilt("the compiled cluster is not built; remedy: ./setup.sh")
    try:
        library = ctypes.CDLL(str(path))
        found = library.cluster_abi()
    except (OSError, AttributeError) as error:
        raise ClusterNotBuilt(f"{path.name}: {error}; remedy: ./setup.sh") from error
    if found != ABI_VERSION:
        raise ClusterNotBuilt(f"{path.name} has version {found}, not {ABI_VERSION}")
    library.cluster_new.restype = ctypes.c_void_p
    library.cluster_new.argtypes = [ctypes.POINTER(_Setup)]
    library.cluster_free.argtypes = [ctypes.c_void_p]
    library.cluster_state.restype = ctypes.POINTER(_State)
    library.cluster_state.argtypes = [ctypes.c_void_p]
    library.cluster_begin.argtypes = [ctypes.c_void_p]
    library.cluster_advance.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_double,
    ]
    return library


def is_built() -> bool:
    """Whether there is a library to load."""
    try:
        load_library()
    except ClusterNotBuilt:
        return False
    return True


class CompiledCluster:
    """One run: :meth:`begin`, then :meth:`advance` with a decision for every view."""

    def __init__(
        self,
        jobs: Sequence[Job],
        durations: DrawnDurations,
        *,
        executors: int,
        moving_delay_ms: float,
    ) -> None:
        """Lays out the workload for C.

        Raises:
            ClusterNotBuilt: there is no library.
        """
        self._library = load_library()
        self._jobs = jobs
        self._executors = executors
        self._known = 0
        first = list(itertools.accumulate((len(job.graph.stages) for job in jobs), initial=0))
        self._first_stage = first
        stages = first[-1]
        self._numbers = {
            name: array("i", bytes(4 * size))
            for name, size in (
                *((one, stages) for one in ("remaining", "running", "coming", "schedulable")),
                *(("done", stages), ("changed_stages", stages)),
                *(("supply", len(jobs)), ("changed_jobs", len(jobs))),
            )
        }
        self.finished_ms = array("d", bytes(8 * len(jobs)))
        self._kept = _workload_arrays(jobs, first, durations)
        setup = _Setup(len(jobs), stages, executors, moving_delay_ms)
        for name, values in (*self._kept.items(), *self._numbers.items()):
            setattr(setup, name, values.buffer_info()[0])
        setup.finished_ms = self.finished_ms.buffer_info()[0]
        numbers = self._numbers
        self._views = ViewBuilder(
            StageFigures(
                *(numbers[one] for one in ("remaining", "running", "coming", "schedulable", "done"))
            ),
            numbers["supply"],
        )
        self._handle = self._library.cluster_new(ctypes.byref(setup))
        if not self._handle:
            raise MemoryError("no memory for a cluster")
        self._state = self._library.cluster_state(self._handle).contents

    def close(self) -> None:
        """Frees what C holds."""
        self._library.cluster_free(self._handle)
        self._handle = None

    @property
    def events(self) -> int:
        """Events so far."""
        return int(self._state.events)

    def begin(self) -> ClusterView | None:
        """Runs to the first question; None: all jobs are finished."""
        return self._view(self._library.cluster_begin(self._handle))

    def advance(self, decision: Assignment, decision_ms: float) -> ClusterView | None:
        """Takes a decision and runs to the next question; None: all jobs are finished.

        Raises:
            InvalidAssignment: the stage may not be chosen.
            ClusterStateError: jobs are left, and nothing is to happen any more.
        """
        job, stage, executors = decision.job, decision.stage, decision.executors
        if job is None and stage is None:
            job = stage = executors = _NONE
        elif type(job) is not int or type(stage) is not int or type(executors) is not int:
            raise InvalidAssignment(f"{decision} needs whole numbers")
        elif job < 0 or stage < 0:
            raise InvalidAssignment(f"{decision} names no stage")
        result = self._library.cluster_advance(self._handle, job, stage, executors, decision_ms)
        if result == _INVALID:
            raise InvalidAssignment(f"{decision} may not be chosen now")
        return self._view(result)

    def _view(self, result: int) -> ClusterView | None:
        if result == _FINISHED:
            return None
        state = self._state
        if result == _STUCK:
            raise ClusterStateError(
                f"{len(self._jobs) - state.finished} jobs wait for executors, and nothing is to "
                "happen any more"
            )
        for job in range(self._known, state.arrived):
            self._views.add_job(self._jobs[job], self._first_stage[job])
        self._known = state.arrived
        source_job = state.source_job
        return self._views.build(
            now_ms=state.now_ms,
            executors=self._executors,
            committable=state.committable,
            source_job=None if source_job == _NONE else source_job,
            changed_stages=self._numbers["changed_stages"][: state.changed_stages],
            changed_jobs=self._numbers["changed_jobs"][: state.changed_jobs],
        )


def _workload_arrays(
    jobs: Sequence[Job], first: list[int], durations: DrawnDurations
) -> dict[str, array[int] | array[float]]:
    """The arrays that C reads, by the names that they have there."""
    stages = [stage for job in jobs for stage in job.graph.stages]
    children = [
        [start + child for child in row]
        for start, job in zip(first, jobs, strict=False)
        for row in job.graph.children
    ]
    tables: dict[int, int] = {}  # by identity
    distinct: list[StageDurations] = []
    table = array("i")
    for stage in stages:
        if id(stage.durations) not in tables:
            tables[id(stage.durations)] = len(distinct)
            distinct.append(stage.durations)
        table.append(tables[id(stage.durations)])
    counts, choices_ms = array("q"), array("d")
    for one in distinct:
        counts.extend(one.packed.counts)
        choices_ms.extend(one.packed.choices_ms)
    return {
        "arrived_ms": array("d", [job.arrived_ms for job in jobs]),
        "first_stage": array("i", first),
        "tasks": array("i", [stage.tasks for stage in stages]),
        "first_child": array("i", itertools.accumulate(map(len, children), initial=0)),
        "children": array("i", itertools.chain.from_iterable(children)),
        "keys": array("Q", durations.keys()),
        "table": table,
        "first_choice": array("q", itertools.accumulate(counts, initial=0)),
        "choices_ms": choices_ms,
    }
