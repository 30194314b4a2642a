"""The numbers of all stages and jobs, and which stages may be scheduled, kept as they change.

Stages are numbered through the cluster in the order in which their jobs arrive.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster_sim.jobs import Job
from cluster_sim.views import StageFigures

NOWHERE = -1


class Stages:
    """Flat lists, one entry per stage or per job.

    Attributes:
        figures: what views are made of.
        tasks: tasks of a stage.
        remaining: those not begun.
        unfinished: those not finished.
        open_parents: parents of a stage that are not finished.
        job_of: job of a stage.
        first_stage: number of a job's first stage.
        supply: executors at a job, coming or promised, less those promised away.
        local: executors that have arrived at a job.
        unsaturated: stages of a job that still have demand.
        active_jobs: jobs not finished, by arrival.
    """

    def __init__(self, executors: int) -> None:
        self._executors = executors
        self.remaining: list[int] = []
        self._running: list[int] = []
        self._coming: list[int] = []
        self._schedulable: list[int] = []
        self._done: list[int] = []
        self.figures = StageFigures(
            self.remaining, self._running, self._coming, self._schedulable, self._done
        )
        self.tasks: list[int] = []
        self.unfinished: list[int] = []
        self.open_parents: list[int] = []
        self._unsaturated_parents: list[int] = []
        self._is_saturated: list[bool] = []
        self._is_chosen: list[bool] = []
        self._children: list[tuple[int, ...]] = []
        self.job_of: list[int] = []
        # Tasks are begun in order, except where inputs have homes; what was begun in vain and
        # second attempts come first.
        self._next_task: list[int] = []
        self._returned: dict[int, list[int]] = {}
        self._attempts: dict[tuple[int, int], int] = {}
        self._homes: dict[int, dict[int, int | None]] = {}
        # Per job.
        self.first_stage: list[int] = []
        self._stages_left: list[int] = []
        self.supply: list[int] = []
        self.local: list[int] = []
        self.unsaturated: list[int] = []
        self._choices: dict[int, int] = {}  # jobs with stages that may be scheduled: how many
        self.active_jobs: dict[int, None] = {}
        self._changed_stages: set[int] = set()
        self._changed_jobs: set[int] = set()

    def add_job(self, job: Job) -> int:
        """Adds a job's stages; returns the number of the first."""
        first, graph = len(self.remaining), job.graph
        self.first_stage.append(first)
        self._stages_left.append(len(graph.stages))
        self.supply.append(0)
        self.local.append(0)
        self.unsaturated.append(len(graph.stages))
        self.active_jobs[job.job] = None
        for index, stage in enumerate(graph.stages):
            parents = len(graph.parents[index])
            self.tasks.append(stage.tasks)
            self.remaining.append(stage.tasks)
            self.unfinished.append(stage.tasks)
            for row in (self._running, self._coming, self._schedulable, self._done):
                row.append(0)
            self.open_parents.append(parents)
            self._unsaturated_parents.append(parents)
            self._is_saturated.append(False)
            self._is_chosen.append(False)
            self._children.append(tuple(first + child for child in graph.children[index]))
            self.job_of.append(job.job)
            self._next_task.append(0)
            if stage.homes:
                self._homes[first + index] = dict(enumerate(stage.homes))
        for number in range(first, len(self.remaining)):
            self._refresh(number)
        self._changed_jobs.add(job.job)
        return first

    def number_of(self, job: int, index: int) -> int | None:
        """The number of a stage; None if no unfinished job has it."""
        if job not in self.active_jobs or index < 0:
            return None
        number = self.first_stage[job] + index
        is_there = number < len(self.job_of) and self.job_of[number] == job
        return number if is_there else None

    def index_of(self, stage: int) -> int:
        """The index of a stage in its job."""
        return stage - self.first_stage[self.job_of[stage]]

    def demand(self, stage: int) -> int:
        """Executors that a stage could still be given."""
        return self.remaining[stage] - self._coming[stage]

    def is_finished(self, job: int) -> bool:
        """Whether a job is finished."""
        return self._stages_left[job] == 0

    def is_done(self, stage: int) -> bool:
        """Whether a stage is finished."""
        return self._done[stage] != 0

    # ---- which stages may be scheduled ---------------------------------------------------------

    def can_schedule(self, source_job: int | None, executors: int) -> bool:
        """Whether any stage may be chosen for executors of a job, or of none.

        A job that has all executors of the cluster gets no more from elsewhere.
        """
        return any(job == source_job or self.supply[job] < executors for job in self._choices)

    def may_choose(self, stage: int, source_job: int | None, executors: int) -> bool:
        """Whether this stage may be chosen; see :meth:`can_schedule`."""
        job = self.job_of[stage]
        return bool(self._schedulable[stage]) and (
            job == source_job or self.supply[job] < executors
        )

    def schedulable_stages(self, source_job: int | None, executors: int) -> Iterator[int]:
        """Those that may be chosen, by arrival of the job and index."""
        for job in self.active_jobs:
            yield from self._choices_of(job, source_job, executors)

    def other_work(self, job: int | None, executors: int) -> int | None:
        """What an executor of this job, or of none, may work for whose stage needs it no longer.

        Its own job before others, these by arrival; of a job's stages those that may start before
        those that may not, then the one with most demand, then the first.
        """
        for one in self.active_jobs if job is None else (job, *self.active_jobs):
            choices = self._choices_of(one, job, executors)
            best = max(
                choices,
                key=lambda stage: (not self.open_parents[stage], self.demand(stage)),
                default=None,
            )
            if best is not None:
                return best
        return None

    def _choices_of(self, job: int, source_job: int | None, executors: int) -> Iterator[int]:
        if job in self._choices and (job == source_job or self.supply[job] < executors):
            first = self.first_stage[job]
            stage = first
            while stage < len(self.job_of) and self.job_of[stage] == job:
                if self._schedulable[stage]:
                    yield stage
                stage += 1

    def choose(self, stage: int) -> None:
        """Takes a stage out until the round of decisions is over."""
        self._is_chosen[stage] = True
        self._refresh(stage)

    def unchoose(self, stage: int) -> None:
        """The round is over."""
        self._is_chosen[stage] = False
        self._refresh(stage)

    # ---- what happens to them ------------------------------------------------------------------

    def come(self, stage: int, executors: int) -> None:
        """More executors are promised to a stage or on their way; below zero: fewer."""
        self._coming[stage] += executors
        self._refresh(stage)

    def add_supply(self, job: int, executors: int) -> None:
        """More executors for a job; below zero: fewer."""
        self.supply[job] += executors
        self._changed_jobs.add(job)

    def begin_task(self, stage: int, executor: int) -> tuple[int, int, bool]:
        """An executor begins a task; returns its index, attempt and whether its input is there."""
        is_local = True
        returned = self._returned.get(stage)
        if returned:
            task = returned.pop(0)
            attempt = self._attempts[stage, task] = self._attempts.get((stage, task), 0) + 1
        elif stage in self._homes:
            task, is_local = self._nearest_task(stage, executor)
            attempt = 0
        else:
            task = self._next_task[stage]
            self._next_task[stage] = task + 1
            attempt = 0
        self.remaining[stage] -= 1
        self._running[stage] += 1
        if self.remaining[stage] == self._coming[stage]:  # saturated by this task
            self._refresh(stage)
        else:
            self._changed_stages.add(stage)
        return task, attempt, is_local

    def _nearest_task(self, stage: int, executor: int) -> tuple[int, bool]:
        homes = self._homes[stage]
        for wanted in (executor, None):
            for task, home in homes.items():
                if home == wanted:
                    del homes[task]
                    return task, True
        task = next(iter(homes))
        del homes[task]
        return task, False

    def finish_task(self, stage: int) -> bool:
        """A task is finished; returns whether that was the stage's last."""
        self._running[stage] -= 1
        self.unfinished[stage] -= 1
        self._changed_stages.add(stage)
        return self.unfinished[stage] == 0

    def stop_task(self, stage: int) -> None:
        """An attempt ends without a result."""
        self._running[stage] -= 1
        self._changed_stages.add(stage)

    def return_task(self, stage: int, task: int) -> None:
        """A task is to be begun once more."""
        self._returned.setdefault(stage, []).append(task)
        self.remaining[stage] += 1
        self._refresh(stage)

    def drop_returned(self, stage: int, task: int) -> None:
        """A task that waited to be begun once more need not be."""
        if task in self._returned.get(stage, ()):
            self._returned[stage].remove(task)
            self.remaining[stage] -= 1
            self._refresh(stage)

    def finish_stage(self, stage: int) -> bool:
        """A stage is finished; returns whether another may start now that could not before."""
        self._done[stage] = 1
        has_unlocked = False
        for child in self._children[stage]:
            self.open_parents[child] -= 1
            has_unlocked |= self.open_parents[child] == 0
        job = self.job_of[stage]
        self._stages_left[job] -= 1
        if self._stages_left[job] == 0:
            del self.active_jobs[job]
        return has_unlocked

    def take_changes(self) -> tuple[set[int], set[int]]:
        """Stages and jobs that have changed since the last call."""
        stages, jobs = self._changed_stages, self._changed_jobs
        self._changed_stages, self._changed_jobs = set(), set()
        return stages, jobs

    def _refresh(self, stage: int) -> None:
        self._changed_stages.add(stage)
        is_saturated = self.remaining[stage] <= self._coming[stage]
        job = self.job_of[stage]
        if is_saturated != self._is_saturated[stage]:
            self._is_saturated[stage] = is_saturated
            step = -1 if is_saturated else 1
            self.unsaturated[job] += step
            for child in self._children[stage]:
                self._unsaturated_parents[child] += step
                self._refresh(child)
        is_schedulable = not (
            is_saturated or self._unsaturated_parents[stage] or self._is_chosen[stage]
        )
        if is_schedulable != self._schedulable[stage]:
            self._schedulable[stage] = int(is_schedulable)
            left = self._choices.get(job, 0) + (1 if is_schedulable else -1)
            if left:
                self._choices[job] = left
            else:
                del self._choices[job]
