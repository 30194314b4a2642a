"""Experiment files: TOML in, one checked frozen dataclass out."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
import tomli_w

from controllers import registry
from player.machine import PlayerConfig
from player.qoe import PENSIEVE_QOE, QoeWeights
from player.trace import Trace
from player.video import PENSIEVE_CHUNK_S, PENSIEVE_LEVELS_KBPS, Video
from testbed.builtin import resolve_path, resolve_traces, resolve_video

Task = Literal["abr", "viewport", "scheduling"]
Driver = Literal["simulated", "emulated"]
#: Tasks that this version can run.
RUNNABLE_TASKS = ("abr",)
MAX_EXPERIMENT_BYTES = 2**20
#: Start index of a session when the experiment does not name one: the beginning of the trace.
FIRST_START_INDEX = 1
MAX_DECISION_TIMEOUT_S = 3600.0  # the longest deadline that the controller service takes


class ConfigError(ValueError):
    """The experiment file, or what it names, is wrong; the message says where."""


_FORBID_UNKNOWN = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """``[video]``: the size table and the ladder it belongs to."""

    __pydantic_config__ = _FORBID_UNKNOWN
    sizes: str = "builtin:envivio-like"
    levels_kbps: tuple[float, ...] = PENSIEVE_LEVELS_KBPS
    chunk_s: float = PENSIEVE_CHUNK_S


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """``[link]``: the bottleneck between server and client.

    Attributes:
        backend: emulated runs: how the link is made.
        model: simulated runs: ``pensieve`` (reference semantics) or ``tcp`` (like the emulation).
        delay_ms: one-way propagation delay (``tcp`` model and emulation).
        queue_packets: droptail queue in front of the bottleneck.
        loss: probability that a packet is lost at random.
        congestion: TCP congestion control of the hosts.
    """

    __pydantic_config__ = _FORBID_UNKNOWN
    backend: Literal["auto", "userspace", "kernel"] = "auto"
    model: Literal["pensieve", "tcp"] = "tcp"
    delay_ms: float = 0.0
    queue_packets: int = 100
    loss: float = 0.0
    congestion: str = "cubic"


@dataclass(frozen=True, kw_only=True)
class ControllerLinkConfig:
    """``[controller_link]``: the path between player and controller; one-way delay."""

    __pydantic_config__ = _FORBID_UNKNOWN
    delay_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PlayerSettings:
    """``[player]``.

    Attributes:
        buffer_cap_s: above this the player pauses.
        first_level: level of chunk 0 (not scored), or ``ask`` to let the controller choose it.
        decision_timeout_s: longest wait for a decision, emulated runs.
        fallback: controller that decides when the asked one does not answer in time; without one
            the session fails.
        chunk_timeout_s: longest wait for one chunk, emulated runs.
    """

    __pydantic_config__ = _FORBID_UNKNOWN
    buffer_cap_s: float = 60.0
    first_level: int | Literal["ask"] = 0
    decision_timeout_s: float = 5.0
    fallback: str | None = None
    chunk_timeout_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """``[simulation]``.

    Attributes:
        decision_s: thinking time charged per decision: seconds, ``measured`` for what it really
            took, or ``auto``: 0 with the ``pensieve`` model, as there, else ``measured``.
    """

    __pydantic_config__ = _FORBID_UNKNOWN
    decision_s: float | Literal["auto", "measured"] = "auto"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """``[network]``: the switch that joins the hosts."""

    __pydantic_config__ = _FORBID_UNKNOWN
    switch: Literal["linuxbridge", "ovs"] = "linuxbridge"


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """``[[arms]]``: one controller with its options under a label."""

    __pydantic_config__ = _FORBID_UNKNOWN
    controller: str
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the arm in results."""
        return self.name or self.controller


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: every arm on every trace."""

    __pydantic_config__ = _FORBID_UNKNOWN
    task: Task
    arms: tuple[ArmConfig, ...]
    driver: Driver = "emulated"
    seed: int = 0
    traces: str = "builtin:mixed"
    limit: int | None = None
    starts: str | int | dict[str, int] | None = None
    chunks: int = 48
    video: VideoConfig = VideoConfig()
    link: LinkConfig = LinkConfig()
    controller_link: ControllerLinkConfig = ControllerLinkConfig()
    player: PlayerSettings = PlayerSettings()
    network: NetworkConfig = NetworkConfig()
    simulation: SimulationConfig = SimulationConfig()
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


@dataclass(frozen=True, slots=True)
class Session:
    """One arm on one trace from one start.

    Attributes:
        number: position in the experiment's list of sessions.
        arm: the arm.
        trace: the trace.
        start_index: point of the trace to start at, in Pensieve's counting.
    """

    number: int
    arm: ArmConfig
    trace: Trace
    start_index: int

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
    _check_values(experiment, where)
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
    sessions = [
        Session(number, arm, trace, starts[trace.name])
        for number, (trace, arm) in enumerate(
            (trace, arm) for trace in traces for arm in experiment.arms
        )
    ]
    for session in sessions:
        session.trace.start_s(session.start_index)  # raises when off the trace
    return Plan(experiment, video, tuple(sessions))


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
        known = _keys_beside(item["loc"])
        return f"{where}: unknown key {location!r}; there are {', '.join(known)}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{where}: key {location!r} is missing"
    return f"{where}: {location}: {item['msg']} (found {item['input']!r})"


_TABLES: dict[str, type[Any]] = {
    "video": VideoConfig,
    "link": LinkConfig,
    "controller_link": ControllerLinkConfig,
    "player": PlayerSettings,
    "network": NetworkConfig,
    "simulation": SimulationConfig,
    "qoe": QoeWeights,
    "arms": ArmConfig,
}


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    cls = _TABLES.get(str(location[0]), Experiment) if len(location) > 1 else Experiment
    return [item.name for item in dataclasses.fields(cls)]


def _check_values(experiment: Experiment, where: str) -> None:
    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(f"{where}: {message}")

    link, player = experiment.link, experiment.player
    require(
        experiment.task in RUNNABLE_TASKS,
        f"task: {experiment.task!r} cannot be run yet; there is {', '.join(RUNNABLE_TASKS)}",
    )
    require(bool(experiment.arms), "arms: at least one is needed")
    labels = [arm.label for arm in experiment.arms]
    for label in labels:
        require(labels.count(label) == 1, f"arms: {label!r} occurs twice; give each a name")
    require(experiment.chunks >= 2, "chunks: at least 2 (chunk 0 is not scored)")
    require(experiment.seed >= 0, "seed: must not be negative")
    require(experiment.limit is None or experiment.limit >= 1, "limit: must be at least 1")
    require(0 <= link.delay_ms <= 10_000, "link.delay_ms: must be 0 to 10000")
    require(0 <= link.loss < 1, "link.loss: must be at least 0 and below 1")
    require(1 <= link.queue_packets <= 100_000, "link.queue_packets: must be 1 to 100000")
    require(
        0 <= experiment.controller_link.delay_ms <= 10_000,
        "controller_link.delay_ms: must be 0 to 10000",
    )
    require(player.buffer_cap_s > 0, "player.buffer_cap_s: must be positive")
    require(
        0 < player.decision_timeout_s <= MAX_DECISION_TIMEOUT_S,
        f"player.decision_timeout_s: must be above 0 and at most {MAX_DECISION_TIMEOUT_S:.0f}",
    )
    require(player.chunk_timeout_s > 0, "player.chunk_timeout_s: must be positive")
    thinking = experiment.simulation.decision_s
    require(isinstance(thinking, str) or thinking >= 0, "simulation.decision_s: must be >= 0")
    if player.fallback is not None:
        _check_fallback(experiment.task, player.fallback, where)
    if experiment.driver == "simulated":
        require(link.loss == 0, "link.loss: the simulated link models have no random loss")
    for arm in experiment.arms:
        require(
            experiment.driver == "simulated"
            or not registry.needs_future(experiment.task, arm.controller),
            f"arms: {arm.label!r} knows the future of the trace; use driver = 'simulated'",
        )


def _check_fallback(task: str, name: str, where: str) -> None:
    try:
        needs_future = registry.needs_future(task, name)
        registry.create(task, name)
    except (LookupError, ValueError) as error:
        raise ConfigError(f"{where}: player.fallback: {error}") from error
    if needs_future:
        raise ConfigError(f"{where}: player.fallback: {name!r} knows the future of the trace")


def _without_none(value: Any) -> Any:
    """TOML has no null: keys without a value are left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
