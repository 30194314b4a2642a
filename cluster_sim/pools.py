"""Where executors stand and what is promised: pools of the cluster, of each job, of each stage."""

from __future__ import annotations

from collections.abc import Sequence

from cluster_sim.stages import NOWHERE

#: Key of the pool of executors that are at no job, and of promises to leave executors idle.
COMMON = -1


class Pool:
    """Executors at one place, in the order in which they came, and where they are promised to.

    Attributes:
        key: number of the stage; COMMON; below it the pool of a job (see ``Executors``).
        members: the executors.
        promises: per stage number, or COMMON, how many; oldest first.
        promised: all of them together.
    """

    __slots__ = ("key", "members", "promised", "promises")

    def __init__(self, key: int) -> None:
        self.key = key
        self.members: dict[int, None] = {}
        self.promises: dict[int, int] = {}
        self.promised = 0

    @property
    def committable(self) -> int:
        """Members that are not promised; below zero right after a loss."""
        return len(self.members) - self.promised

    def promise(self, stage: int, executors: int) -> None:
        """Promises members to a stage, or to COMMON."""
        self.promises[stage] = self.promises.get(stage, 0) + executors
        self.promised += executors

    def take_promise(self) -> int:
        """Takes one executor off the oldest promise; returns its stage, or COMMON."""
        stage = next(iter(self.promises))
        self._take(stage)
        return stage

    def withdraw(self) -> int:
        """Takes one executor off the youngest promise; returns its stage, or COMMON."""
        stage = next(reversed(self.promises))
        self._take(stage)
        return stage

    def _take(self, stage: int) -> None:
        self.promised -= 1
        if self.promises[stage] == 1:
            del self.promises[stage]
        else:
            self.promises[stage] -= 1


class Executors:
    """All executors, each in one pool, on its way, or lost.

    Attributes:
        common: the pool of those at no job.
        running: per executor the number of the stage whose task it runs, or NOWHERE.
        last_stage: per executor the stage of its last task, NOWHERE once it has been idle.
        task: per executor the index of its last task.
    """

    def __init__(self, executors: int) -> None:
        self.common = Pool(COMMON)
        self.running = [NOWHERE] * executors
        self.last_stage = [NOWHERE] * executors
        self.task = [0] * executors
        self._pools: dict[int, Pool] = {COMMON: self.common}
        self._at: list[Pool | None] = [self.common] * executors
        self._moving_to = [NOWHERE] * executors
        self.common.members = dict.fromkeys(range(executors))

    def pool_of_stage(self, stage: int) -> Pool:
        """The pool of those who came for a stage."""
        return self._pool(stage)

    def pool_of_job(self, job: int) -> Pool:
        """The pool of those left idle at a job."""
        return self._pool(COMMON - 1 - job)

    def pool_at(self, executor: int) -> Pool:
        """The pool in which an executor stands."""
        pool = self._at[executor]
        assert pool is not None
        return pool

    def job_of_pool(self, pool: Pool, job_of: Sequence[int]) -> int | None:
        """The job that a pool belongs to; ``job_of`` tells the jobs of the stages."""
        if pool.key >= 0:
            return job_of[pool.key]
        return None if pool.key == COMMON else COMMON - 1 - pool.key

    def job_at(self, executor: int, job_of: Sequence[int]) -> int | None:
        """The job at which an executor stands."""
        return self.job_of_pool(self.pool_at(executor), job_of)

    def is_idle(self, executor: int) -> bool:
        """Whether it runs nothing and is not on its way."""
        return self.running[executor] == NOWHERE and self._moving_to[executor] == NOWHERE

    def is_lost(self, executor: int) -> bool:
        """Whether it is in no pool and not on its way."""
        return self._at[executor] is None and self._moving_to[executor] == NOWHERE

    def put(self, executor: int, key: int) -> None:
        """Puts an executor into the pool of a stage, or COMMON."""
        here = self._at[executor]
        if here is not None:
            if here.key == key:
                return
            del here.members[executor]
        pool = self._pool(key)
        pool.members[executor] = None
        self._at[executor] = pool

    def put_to_job(self, executor: int, job: int) -> None:
        """Puts an executor into the pool of those left idle at a job."""
        self.put(executor, COMMON - 1 - job)

    def begin_move(self, executor: int, stage: int) -> None:
        """Takes an executor out of its pool and notes where it goes."""
        del self.pool_at(executor).members[executor]
        self._at[executor] = None
        self._moving_to[executor] = stage
        self.last_stage[executor] = NOWHERE

    def end_move(self, executor: int) -> int:
        """Returns the stage that an executor was on its way to, NOWHERE if it was not."""
        stage = self._moving_to[executor]
        self._moving_to[executor] = NOWHERE
        return stage

    def lose(self, executor: int) -> None:
        """Takes an executor out of the cluster."""
        here = self._at[executor]
        if here is not None:
            del here.members[executor]
        self._at[executor] = None
        self.running[executor] = self.last_stage[executor] = NOWHERE

    def _pool(self, key: int) -> Pool:
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(key)
        return pool
