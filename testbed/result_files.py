"""Writes the files of a result folder as a run goes on; reading them is ``results``' business.

Every session is appended as one line the moment it ends, so that a run that is killed keeps what
it has, and ``--resume`` goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import testbed
from player.trace import Trace
from testbed.experiment import ConfigError, Experiment, dump_experiment
from testbed.result_rows import (
    ENVIRONMENT,
    EXPERIMENT,
    LINK,
    SESSIONS,
    TRACES,
    ResultsError,
    read_records,
    replace_file,
)
from testbed.session_records import Record, place_of, place_of_row, record_type

REQUESTS = "requests.jsonl"
CAPTURES = "captures"
#: Packages whose versions can change a result.
PACKAGES = ("aiohttp", "mininet", "numpy", "peft", "torch", "tornado", "transformers")


class ResultFiles:
    """An open result folder."""

    def __init__(self, folder: Path, experiment: Experiment, *, is_new: bool = False) -> None:
        self.folder = folder
        self._players = 1 if experiment.driver == "offline" else experiment.players
        self._records = record_type(experiment.task, experiment.driver)
        self._is_new = is_new

    @classmethod
    def create(cls, folder: Path, experiment: Experiment, *, resume: bool) -> ResultFiles:
        """Makes the folder, or opens it to go on.

        Raises:
            ConfigError: the folder has results and ``resume`` is not set, or they are those of
                another experiment.
        """
        described = dump_experiment(experiment)
        is_new = not folder.exists()
        if not is_new and not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder")
        path = folder / EXPERIMENT
        if (folder / SESSIONS).exists():
            if not resume:
                raise ConfigError(
                    f"{folder} already holds results; go on with --resume or choose another --out"
                )
            if not path.exists() or path.read_text(encoding="utf-8") != described:
                raise ConfigError(
                    f"{path} is not the experiment given now; --resume needs the same one"
                )
            _drop_torn_line(folder / SESSIONS)
            finished = cls(folder, experiment).finished()
            _keep_rows_of(finished, folder / SESSIONS)
            _keep_rows_of(finished, folder / LINK)
            _keep_rows_of(finished, folder / REQUESTS)
        elif not path.exists() and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no results; choose another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, described)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot write: {error.strerror}") from error
        return cls(folder, experiment, is_new=is_new)

    def discard_if_empty(self) -> None:
        """Removes the folder if this run made it and no session was kept in it."""
        if self._is_new and not (self.folder / SESSIONS).exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> frozenset[tuple[str, str]]:
        """Group and unit of the bottlenecks of which every player is here with status ok."""
        if not (self.folder / SESSIONS).exists():
            return frozenset()
        rows = read_records(self.folder, self._records)
        places = [place_of(row) for row in rows if row.status == "ok"]
        players = Counter((place.group, place.unit) for place in places)
        return frozenset(key for key, count in players.items() if count == self._players)

    def captures(self) -> Path:
        """The folder for captured packets; made if there is none."""
        folder = self.folder / CAPTURES
        folder.mkdir(exist_ok=True)
        return folder

    def write_environment(self, details: Mapping[str, Any]) -> None:
        """Writes ``environment.json``: what this machine is, and what the run used of it."""
        document = {
            "version": testbed.__version__,
            "commit": _commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "packages": _versions(),
            **details,
        }
        replace_file(self.folder / ENVIRONMENT, json.dumps(document, indent=2) + "\n")

    def write_traces(self, traces: Sequence[Trace]) -> None:
        """Writes the traces as replayed, so that a report needs no other file."""
        document = {
            trace.name: {
                "times_s": trace.times_s.tolist(),
                "rates_mbps": trace.rates_mbps.tolist(),
            }
            for trace in traces
        }
        replace_file(self.folder / TRACES, json.dumps(document) + "\n")

    def add_session(self, record: Record) -> None:
        """Appends a session."""
        self._append(SESSIONS, [dataclasses.asdict(record)])

    def add_link_seconds(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends what a link was asked for and delivered, second by second."""
        self._append(LINK, rows)

    def add_requests(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends the video server's access log of a session."""
        self._append(REQUESTS, rows)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line that a kill left unfinished."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def _keep_rows_of(finished: frozenset[tuple[str, str]], path: Path) -> None:
    """Drops rows of what will be played again: all that shared a bottleneck."""
    if not path.exists():
        return
    _drop_torn_line(path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)

    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            place = place_of_row(json.loads(line))
            if (place.group, place.unit) in finished:
                kept.append(line)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path}:{number}: malformed line: {error}") from error
    replace_file(path, "".join(kept))


def _commit() -> str | None:
    """Commit of the source tree that runs; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(testbed.__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
