"""CPU time and memory of a process and of all below it, out of ``/proc`` (``proc(5)``).

Memory is the sum of proportional set sizes, in which pages that several processes share count once
in all. A process whose ``smaps_rollup`` may not be read counts with its resident set instead, which
has shared pages in full.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from player.records import ProcessRecord

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024
KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True)
class Process:
    """One process.

    Attributes:
        pid: its number.
        parent: number of the one that it belongs to.
        cpu_s: CPU time so far.
        started: ticks since boot; with the number it tells processes apart for good.
    """

    pid: int
    parent: int
    cpu_s: float
    started: int


class TreeMeter:
    """Adds up what a tree of processes uses, from sample to sample.

    What a process used after the last sample in which it was there is not in the sum.
    """

    def __init__(self, root_pid: int) -> None:
        """Begins; ``root_pid`` and all below it count, from now on."""
        self._root_pid = root_pid
        self._before_s = {_identity(one): one.cpu_s for one in tree(root_pid)}
        self._cpu_s = dict(self._before_s)
        self._peak_kib = 0.0
        self._most = 0

    def sample(self) -> None:
        """Looks at all processes of the tree."""
        there = tree(self._root_pid)
        self._cpu_s |= {_identity(one): one.cpu_s for one in there}
        self._peak_kib = max(self._peak_kib, sum(_memory_kib(one.pid) for one in there))
        self._most = max(self._most, len(there))

    @property
    def record(self) -> ProcessRecord:
        """What was used, up to the last sample."""
        return ProcessRecord(
            cpu_s=sum(self._cpu_s.values()) - sum(self._before_s.values()),
            peak_mib=self._peak_kib / KIB_PER_MIB,
            processes=self._most,
        )


def tree(root_pid: int) -> list[Process]:
    """A process and all below it; nothing once it has ended."""
    processes = [process for pid in _pids() if (process := _process(pid)) is not None]
    found: list[Process] = []
    grown = [process for process in processes if process.pid == root_pid]
    while grown:
        found += grown
        above = {process.pid for process in grown}
        grown = [process for process in processes if process.parent in above]
    return found


def find_process(argument: str) -> int | None:
    """Number of the oldest process with an argument; None without one."""
    wanted = argument.encode()
    found = []
    for pid in _pids():
        try:
            arguments = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if wanted in arguments and (process := _process(pid)) is not None:
            found.append(process)
    return min(found, key=lambda process: process.started).pid if found else None


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir(PROC) if name.isdigit())


def _process(pid: int) -> Process | None:
    try:
        # Behind the name, which may hold anything.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return None
    parent, user, system, started = (int(fields[at]) for at in (1, 11, 12, 19))
    return Process(pid, parent, (user + system) / TICKS_PER_S, started)


def _identity(process: Process) -> tuple[int, int]:
    return process.pid, process.started


def _memory_kib(pid: int) -> float:
    folder = PROC / str(pid)
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return float(line.split()[1])
    except OSError:
        pass
    try:
        return int((folder / "statm").read_text().split()[1]) * PAGE_KIB
    except OSError:  # it has ended
        return 0.0
