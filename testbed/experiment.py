"""Experiment files: TOML in, one checked frozen dataclass out."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
import tomli_w

from controllers import registry
from player.machine import PlayerConfig
from player.qoe import PENSIEVE_QOE, QoeWeights
from player.trace import Trace
from player.video import Video
from testbed.background import BackgroundTraffic
from testbed.builtin import BUILTIN_PREFIX, resolve_path, resolve_traces, resolve_video
from testbed.experiment_checks import check_values, keys_beside
from testbed.experiment_sections import (
    FORBID_UNKNOWN,
    CaptureConfig,
    ControllerLinkConfig,
    HostsConfig,
    LinkConfig,
    NetworkConfig,
    PlayerSettings,
    SimulationConfig,
    VideoConfig,
)
from testbed.experiment_sections import (
    ArmConfig as ArmConfig,
)
from testbed.links.spec import constant_trace

Task = Literal["abr", "viewport", "scheduling"]
Driver = Literal["simulated", "emulated"]
MAX_EXPERIMENT_BYTES = 2**20
MAX_LISTED = 10  # names in a message
#: Start index of a session when the experiment does not name one: the beginning of the trace.
FIRST_START_INDEX = 1


class ConfigError(ValueError):
    """The experiment file, or what it names, is wrong; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: every arm on every trace."""

    __pydantic_config__ = FORBID_UNKNOWN
    task: Task
    arms: tuple[ArmConfig, ...]
    driver: Driver = "emulated"
    seed: int = 0
    traces: str = "builtin:mixed"
    limit: int | None = None
    starts: str | int | dict[str, int] | None = None
    chunks: int = 48
    video: VideoConfig = field(default_factory=VideoConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    controller_link: ControllerLinkConfig = field(default_factory=ControllerLinkConfig)
    player: PlayerSettings = field(default_factory=PlayerSettings)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    background: tuple[BackgroundTraffic, ...] = ()
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    qoe: QoeWeights = PENSIEVE_QOE

    @property
    def player_config(self) -> PlayerConfig:
        """The settings of the player machine."""
        first = self.player.first_level
        return PlayerConfig(
            buffer_cap_s=self.player.buffer_cap_s,
            first_level=None if first == "ask" else first,
            qoe=self.qoe,
        )

    @property
    def groups(self) -> dict[str, tuple[ArmConfig, ...]]:
        """The arms that share a bottleneck, by the name of the group, on every trace."""
        if self.network.shared_by == "arm":
            return {arm.label: (arm,) for arm in self.arms}
        return {"+".join(arm.label for arm in self.arms): self.arms}

    @property
    def players(self) -> int:
        """How many players share a bottleneck."""
        return self.network.clients * (1 if self.network.shared_by == "arm" else len(self.arms))


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


@dataclass(frozen=True)
class Plan:
    """An experiment with everything it names loaded and checked."""

    experiment: Experiment
    video: Video
    sessions: tuple[Session, ...]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The traces, each once, in order."""
        return tuple({session.trace.name: session.trace for session in self.sessions}.values())


def group_sessions(sessions: Iterable[Session]) -> tuple[tuple[Session, ...], ...]:
    """The sessions, those that share a bottleneck together, in the order of the first of each."""
    groups: dict[tuple[str, str, int], list[Session]] = {}
    for session in sessions:
        key = (session.group or session.arm.label, session.trace.name, session.start_index)
        groups.setdefault(key, []).append(session)
    return tuple(map(tuple, groups.values()))


def list_sessions(
    experiment: Experiment, starts: Iterable[tuple[Trace, int, Trace | None]]
) -> tuple[Session, ...]:
    """All sessions of an experiment.

    Args:
        experiment: says which arms there are and who shares a bottleneck.
        starts: trace, start index and trace of the way up, in the order in which they are played.
    """
    players = [
        (trace, start_index, up_trace, group, client, arm)
        for trace, start_index, up_trace in starts
        for group, arms in experiment.groups.items()
        for client, arm in enumerate(arm for arm in arms for _ in range(experiment.network.clients))
    ]
    return tuple(
        Session(number, arm, trace, start_index, client, group, up_trace)
        for number, (trace, start_index, up_trace, group, client, arm) in enumerate(players)
    )


_ADAPTER = pydantic.TypeAdapter(Experiment)


def read_experiment(
    path: Path, *, overrides: Sequence[str] = (), driver: str | None = None
) -> Experiment:
    """Reads an experiment file.

    Args:
        path: the TOML file.
        overrides: ``key=value`` with dotted keys; the value is TOML, or else a string.
        driver: replaces the file's driver.

    Raises:
        ConfigError: unreadable file, bad TOML, unknown key, wrong value; names file and key.
    """
    try:
        if path.stat().st_size > MAX_EXPERIMENT_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_EXPERIMENT_BYTES} bytes")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _override(document, override)
    if driver is not None:
        document["driver"] = driver
    return parse_experiment(document, where=str(path))


def parse_experiment(document: Mapping[str, Any], *, where: str) -> Experiment:
    """Checks a document against the dataclasses.

    Raises:
        ConfigError: an unknown key or a wrong value; ``where`` begins the message.
    """
    try:
        experiment = _ADAPTER.validate_python(document)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_explain(where, item) for item in error.errors())) from error
    try:
        check_values(experiment)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return experiment


def experiment_document(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON and TOML values; :func:`parse_experiment` reads it back."""
    document: dict[str, Any] = _without_none(_ADAPTER.dump_python(experiment, mode="json"))
    return document


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as TOML, every key written out."""
    return tomli_w.dumps(experiment_document(experiment))


def plan_experiment(experiment: Experiment, *, data_dir: Path | None, base: Path) -> Plan:
    """Loads traces, video and start points, and lists the sessions, trace by trace.

    Args:
        experiment: the checked experiment.
        data_dir: what ``data:`` stands for.
        base: folder that relative paths start from.

    Raises:
        ConfigError, TraceFormatError, VideoFormatError, DataNotFound, UnknownController,
        InvalidOptions: what is wrong, and where.
    """
    for arm in experiment.arms:
        registry.controller_class(experiment.task, arm.controller)
    traces = resolve_traces(experiment.traces, data_dir, base, limit=experiment.limit)
    video = resolve_video(
        experiment.video.sizes,
        data_dir,
        base,
        levels_kbps=experiment.video.levels_kbps,
        chunk_s=experiment.video.chunk_s,
    ).first(experiment.chunks)
    first = experiment.player.first_level
    if isinstance(first, int) and not 0 <= first < video.levels:
        raise ConfigError(f"player.first_level: {first} is not one of 0 to {video.levels - 1}")
    starts = _read_starts(experiment.starts, traces, data_dir, base)
    up_traces = _read_up_traces(experiment, traces, data_dir, base)
    sessions = list_sessions(
        experiment, [(trace, starts[trace.name], up_traces.get(trace.name)) for trace in traces]
    )
    for session in sessions:
        session.trace.start_s(session.start_index)  # raises when off the trace
    return Plan(experiment, video, sessions)


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


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key=value, such as link.delay_ms=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    table: Any = document
    for parent in parents:
        table = _descend(table, parent, override)
    if isinstance(table, list):
        _descend(table, last, override)
        table[int(last)] = value
    elif isinstance(table, dict):
        table[last] = value
    else:
        raise ConfigError(f"--set {override!r}: {'.'.join(parents)} is a value, not a table")


def _descend(table: Any, key: str, override: str) -> Any:
    if isinstance(table, list):
        if not key.isdigit() or int(key) >= len(table):
            raise ConfigError(f"--set {override!r}: {key!r} is not one of 0 to {len(table) - 1}")
        return table[int(key)]
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override!r}: {key!r} lies below a value, not a table")
    return table.setdefault(key, {})


def _explain(where: str, item: Any) -> str:
    """One line for one pydantic error: where, key, what is wrong, what there is instead."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = keys_beside(Experiment, item["loc"])
        return f"{where}: unknown key {location!r}; there are {', '.join(known)}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{where}: key {location!r} is missing"
    problem = item["msg"].removeprefix("Value error, ")
    return f"{where}: {location}: {problem} (found {item['input']!r})"


def _without_none(value: Any) -> Any:
    """TOML has no null: keys without a value are left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
