"""Sessions that need no real time, played one after another or over several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

from controllers import registry
from testbed.experiment_sections import ArmConfig
from testbed.namespaces import set_parent_death_signal
from testbed.session_records import Record
from testbed.sessions import Plan, PlannedSession

#: Read by numeric libraries when they load: the processes share the cores already.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class SessionPlayer(Protocol):
    """Plays sessions of one plan."""

    def prepare(self, sessions: Sequence[Any]) -> None:
        """Makes the controllers of these sessions."""
        ...

    def play(self, session: Any) -> Record:
        """Plays one session. A controller that fails makes the session fail, not the run."""
        ...


class ArmControllers:
    """The controllers of a task's arms, each made once."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._made: dict[str, registry.Controller] = {}

    def of(self, arm: ArmConfig) -> registry.Controller:
        """The controller of an arm.

        Raises:
            UnknownController, InvalidOptions: it cannot be made.
        """
        if arm.label not in self._made:
            self._made[arm.label] = registry.create(self._task, arm.controller, arm.options)
        return self._made[arm.label]


def play_sessions(
    make: Callable[[Any], SessionPlayer],
    plan: Plan,
    sessions: Sequence[PlannedSession],
    *,
    jobs: int,
) -> Iterator[Record]:
    """Plays sessions; yields records in their order, whatever ``jobs`` is.

    Args:
        make: makes what plays sessions of the plan, in each process.
        plan: the experiment.
        sessions: which of its sessions.
        jobs: processes.

    Raises:
        UnknownController, InvalidOptions: before the first session.
    """
    player = make(plan)
    player.prepare(sessions)  # whatever is wrong with an arm is found before any session
    if jobs == 1:
        yield from map(player.play, sessions)
        return
    with ProcessPoolExecutor(
        min(jobs, len(sessions)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(make, plan, os.getpid()),
    ) as pool:
        with one_thread_each():
            played = pool.map(_play_in_worker, sessions)
        yield from played


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that start meanwhile find one thread per process in their environment.

    They must find it when they start: numeric libraries read it when they load, which is before any
    initializer runs. What the environment says already counts; afterwards it is as it was.
    """
    added = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


#: The player of a pool's worker process; empty everywhere else.
_worker: list[SessionPlayer] = []


def _start_worker(make: Callable[[Any], SessionPlayer], plan: Plan, parent_pid: int) -> None:
    set_parent_death_signal(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    _worker.append(make(plan))


def _play_in_worker(session: PlannedSession) -> Record:
    return _worker[0].play(session)
