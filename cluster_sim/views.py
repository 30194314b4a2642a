"""Builds what a controller sees, anew only where something changed since the last decision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster_sim.jobs import Job
from cluster_sim.observation import ClusterView, JobView, StageView

MS_PER_SECOND = 1000.0


@dataclass(slots=True)
class StageFigures:
    """The numbers of all stages, each sequence indexed by the number of the stage in the cluster.

    Attributes:
        remaining: tasks not begun.
        running: tasks running.
        coming: executors promised or on their way.
        schedulable: whether it may be chosen, its job's share of the cluster left aside.
        done: whether all its tasks are finished.
    """

    remaining: Sequence[int]
    running: Sequence[int]
    coming: Sequence[int]
    schedulable: Sequence[int]
    done: Sequence[int]


class _Shown:
    """A job as it was last shown."""

    __slots__ = ("expected_s", "first", "is_barred", "job", "parents", "stages", "view")

    def __init__(self, job: Job, first: int) -> None:
        self.job = job
        self.first = first
        self.parents = list(job.graph.parents)
        self.expected_s = [stage.durations.mean_ms / MS_PER_SECOND for stage in job.graph.stages]
        self.stages: dict[int, StageView] = {}  # by index, in order
        self.is_barred = False
        self.view: JobView | None = None


class ViewBuilder:
    """Keeps the views of stages and jobs that have not changed."""

    def __init__(self, figures: StageFigures, supply: Sequence[int]) -> None:
        """Makes a builder without jobs.

        Args:
            figures: the live numbers of the stages.
            supply: the live number of executors per job.
        """
        self._figures = figures
        self._supply = supply
        self._shown: dict[int, _Shown] = {}
        self._owner: list[_Shown] = []  # per stage number
        self._full: set[int] = set()  # jobs that had all executors when last shown

    def add_job(self, job: Job, first_stage: int) -> None:
        """Makes a job known, whose stages have the numbers from ``first_stage`` on."""
        shown = _Shown(job, first_stage)
        self._shown[job.job] = shown
        self._owner.extend([shown] * len(job.graph.stages))
        for index in range(len(job.graph.stages)):
            self._show(shown, index)

    def build(
        self,
        *,
        now_ms: float,
        executors: int,
        committable: int,
        source_job: int | None,
        changed_stages: Iterable[int],
        changed_jobs: Iterable[int],
    ) -> ClusterView:
        """Returns the view; what has not changed since the last call is the same object."""
        done, owner, shown_jobs = self._figures.done, self._owner, self._shown
        touched: set[int] = set(changed_jobs)
        for number in changed_stages:
            shown = owner[number]
            touched.add(shown.job.job)
            if done[number]:
                self._drop(shown, number - shown.first)
            else:
                self._show(shown, number - shown.first)
        for job in touched | self._full if self._full else touched:
            known = shown_jobs.get(job)
            if known is not None:
                self._refresh(known, executors, source_job)
        views = tuple([shown.view for shown in shown_jobs.values()])
        return ClusterView(now_ms / MS_PER_SECOND, executors, committable, source_job, views)  # type: ignore[arg-type]

    def _show(self, shown: _Shown, index: int) -> None:
        figures, number = self._figures, shown.first + index
        remaining = figures.remaining[number]
        shown.stages[index] = StageView(
            index,
            remaining,
            figures.running[number],
            shown.expected_s[index],
            remaining - figures.coming[number],
            figures.schedulable[number] != 0 and not shown.is_barred,
            shown.parents[index],
        )

    def _drop(self, shown: _Shown, index: int) -> None:
        if shown.stages.pop(index, None) is None:
            return
        for child in shown.job.graph.children[index]:
            shown.parents[child] = tuple(one for one in shown.parents[child] if one != index)
            if child in shown.stages:
                self._show(shown, child)
        if not shown.stages:
            del self._shown[shown.job.job]

    def _refresh(self, shown: _Shown, executors: int, source_job: int | None) -> None:
        job = shown.job
        supply = self._supply[job.job]
        is_full = supply >= executors
        is_barred = is_full and job.job != source_job
        if is_full:
            self._full.add(job.job)
        else:
            self._full.discard(job.job)
        if is_barred != shown.is_barred:
            shown.is_barred = is_barred
            for index in shown.stages:
                self._show(shown, index)
        shown.view = JobView(
            job.job, job.arrived_ms / MS_PER_SECOND, supply, tuple(shown.stages.values())
        )
