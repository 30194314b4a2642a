"""The sessions that an experiment comes to: who plays, on which trace, from where."""

from __future__ import annotations

import abc
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from player.trace import Trace
from testbed.builtin import BUILTIN_PREFIX, resolve_path, resolve_traces
from testbed.experiment_base import ConfigError, Experiment
from testbed.experiment_sections import ArmConfig
from testbed.links.spec import constant_trace

MAX_LISTED = 10  # names in a message
#: Start index of a session when the experiment does not name one: the beginning of the trace.
FIRST_START_INDEX = 1


class PlannedSession(Protocol):
    """What sessions of all tasks have; the attributes are those of :class:`Session`."""

    @property
    def number(self) -> int:
        """Position in the experiment's list of sessions."""
        ...

    @property
    def arm(self) -> ArmConfig:
        """The arm."""
        ...

    @property
    def client(self) -> int:
        """Which of those that share what they are played on, from 0."""
        ...

    @property
    def group(self) -> str:
        """Name of those that share it."""
        ...

    @property
    def unit(self) -> str:
        """What it is played on, equal for all arms: a trace, say."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """One player: one arm on one trace from one start.

    Attributes:
        number: position in the experiment's list of sessions.
        arm: the arm.
        trace: the trace.
        start_index: point of the trace to start at, in Pensieve's counting.
        client: which of the players behind the bottleneck, from 0.
        group: name of those that share it: the arm's label, or all of them joined by ``+``.
        up_trace: capacity of the way towards the server; None: it has no bottleneck.
    """

    number: int
    arm: ArmConfig
    trace: Trace
    start_index: int
    client: int = 0
    group: str = ""
    up_trace: Trace | None = None

    @property
    def start_s(self) -> float:
        """Position in the trace at the start."""
        return self.trace.start_s(self.start_index)

    @property
    def unit(self) -> str:
        """What it is played on, equal for all arms."""
        return self.trace.name


class Start(NamedTuple):
    """Where a session begins.

    Attributes:
        trace: of the way down.
        start_index: point of it, in Pensieve's counting.
        up_trace: of the way up; None: it has no bottleneck.
    """

    trace: Trace
    start_index: int
    up_trace: Trace | None


class Player(NamedTuple):
    """One of those that play at a start: name of those that share it, number in it, arm."""

    group: str
    client: int
    arm: ArmConfig


@dataclass(frozen=True)
class Plan:
    """An experiment with everything it names loaded and checked; a task adds what it needs."""

    experiment: Experiment
    sessions: tuple[PlannedSession, ...]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The traces, each once, in order; none where nothing is streamed."""
        return ()


@dataclass(frozen=True)
class StreamPlan(Plan, abc.ABC):
    """A plan whose sessions stream over a link."""

    sessions: tuple[Session, ...]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The traces, each once, in order."""
        return tuple({session.trace.name: session.trace for session in self.sessions}.values())

    @abc.abstractmethod
    def chunks_of(self, session: Session) -> int:
        """How many chunks the session has."""


AnySession = TypeVar("AnySession", bound=Session)


def group_sessions(sessions: Iterable[AnySession]) -> tuple[tuple[AnySession, ...], ...]:
    """The sessions, those that share a bottleneck together, in the order of the first of each."""
    groups: dict[tuple[str, str, int], list[AnySession]] = {}
    for session in sessions:
        key = (session.group or session.arm.label, session.unit, session.start_index)
        groups.setdefault(key, []).append(session)
    return tuple(map(tuple, groups.values()))


def list_players(experiment: Experiment) -> tuple[Player, ...]:
    """Those that play at every start, bottleneck by bottleneck."""
    return tuple(
        Player(group, client, arm)
        for group, arms in experiment.groups.items()
        for client, arm in enumerate(arm for arm in arms for _ in range(experiment.network.clients))
    )


def list_sessions(
    experiment: Experiment, starts: Iterable[tuple[Trace, int, Trace | None]]
) -> tuple[Session, ...]:
    """A session per start and player.

    Args:
        experiment: says which arms there are and who shares a bottleneck.
        starts: trace, start index and trace of the way up, in the order in which they are played.
    """
    players = [
        (start, player) for start in map(Start._make, starts) for player in list_players(experiment)
    ]
    return tuple(
        Session(
            *(number, player.arm, start.trace, start.start_index),
            *(player.client, player.group, start.up_trace),
        )
        for number, (start, player) in enumerate(players)
    )


def resolve_starts(experiment: Experiment, data_dir: Path | None, base: Path) -> tuple[Start, ...]:
    """The traces that an experiment names, each with its start and its way up.

    Raises:
        ConfigError, TraceError, TraceFormatError, DataNotFound: what is wrong, and where.
    """
    traces = resolve_traces(experiment.traces, data_dir, base, limit=experiment.limit)
    starts = _read_starts(experiment.starts, traces, data_dir, base)
    up_traces = _read_up_traces(experiment, traces, data_dir, base)
    for trace in traces:
        trace.start_s(starts[trace.name])  # raises when off the trace
    return tuple(Start(trace, starts[trace.name], up_traces.get(trace.name)) for trace in traces)


def _read_up_traces(
    experiment: Experiment, traces: Sequence[Trace], data_dir: Path | None, base: Path
) -> dict[str, Trace]:
    """The way up's trace for each of the way down; empty where that has no bottleneck."""
    up = experiment.link.up
    if up is None or not experiment.link.has_up_bottleneck:
        return {}
    if up.traces is None:
        assert up.rate_mbps is not None  # one of the two is there
        constant = constant_trace(up.rate_mbps)
        return {trace.name: constant for trace in traces}
    found = resolve_traces(up.traces, data_dir, base)
    is_file = (
        not up.traces.startswith(BUILTIN_PREFIX)
        and resolve_path(up.traces, data_dir, base).is_file()
    )
    if is_file:
        return {trace.name: found[0] for trace in traces}
    by_name = {trace.name: trace for trace in found}
    for trace in traces:
        if trace.name not in by_name:
            raise ConfigError(
                f"link.up.traces: {up.traces} has no {trace.name!r}, the name of a trace of the "
                f"way down; there are {', '.join(sorted(by_name)[:MAX_LISTED])}"
            )
    return {trace.name: by_name[trace.name] for trace in traces}


def _read_starts(
    starts: str | int | dict[str, int] | None,
    traces: Sequence[Trace],
    data_dir: Path | None,
    base: Path,
) -> dict[str, int]:
    if starts is None or isinstance(starts, int):
        index = FIRST_START_INDEX if starts is None else starts
        return {trace.name: index for trace in traces}
    where = "starts"
    table: Any = starts
    if isinstance(starts, str):
        path = resolve_path(starts, data_dir, base)
        where = str(path)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"starts: {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"starts: {path}: not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected {{trace file name: start index}}")
    for name, index in table.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise ConfigError(f"{where}: {name!r}: expected a whole number, found {index!r}")
    for trace in traces:
        if trace.name not in table:
            raise ConfigError(f"{where}: has no start for trace {trace.name!r}")
    return {trace.name: table[trace.name] for trace in traces}
