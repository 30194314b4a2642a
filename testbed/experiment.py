"""Experiment files: TOML in, one checked frozen dataclass of the task that they name out."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pydantic
import tomli_w

from testbed.abr_experiment import AbrExperiment, plan_abr
from testbed.experiment_base import ConfigError, Experiment
from testbed.experiment_checks import keys_beside
from testbed.scheduling_experiment import SchedulingExperiment
from testbed.scheduling_plans import plan_scheduling
from testbed.sessions import Plan
from testbed.viewport_experiment import ViewportExperiment
from testbed.viewport_plans import plan_viewport

__all__ = [
    "ConfigError",
    "Experiment",
    "dump_experiment",
    "experiment_document",
    "parse_experiment",
    "plan_experiment",
    "read_experiment",
]

MAX_EXPERIMENT_BYTES = 2**20
#: What the keys of an experiment mean, by its task.
EXPERIMENTS: Mapping[str, type[Experiment]] = MappingProxyType(
    {"abr": AbrExperiment, "viewport": ViewportExperiment, "scheduling": SchedulingExperiment}
)
#: Loads what an experiment names, by its task.
PLANNERS: Mapping[str, Callable[[Any, Path | None, Path], Plan]] = MappingProxyType(
    {"abr": plan_abr, "viewport": plan_viewport, "scheduling": plan_scheduling}
)
#: How an experiment is written down, whatever its task.
_KEY_ORDER = (
    *("task", "arms", "driver", "seed"),
    *("viewports", "videos", "users", "recordings", "traces", "limit", "starts", "chunks"),
    *("jobs", "num_jobs", "executors", "arrivals", "arrival_mean_s", "seeds", "episode"),
    *("time_scale", "compute", "compare", "record_tasks", "bursts", "cluster", "fabric"),
    "scheduler",
    *("predict", "tiles", "video", "link", "controller_link", "player", "network", "hosts"),
    *("capture", "background", "simulation", "qoe"),
)

_ADAPTERS = {task: pydantic.TypeAdapter(kind) for task, kind in EXPERIMENTS.items()}


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
    """Checks a document against the dataclass of its task.

    Raises:
        ConfigError: an unknown key or a wrong value; ``where`` begins the message.
    """
    if "task" not in document:
        raise ConfigError(f"{where}: key 'task' is missing; there are {', '.join(EXPERIMENTS)}")
    task = document["task"]
    if not isinstance(task, str) or task not in EXPERIMENTS:
        raise ConfigError(
            f"{where}: task: {task!r} cannot be run; there are {', '.join(EXPERIMENTS)}"
        )
    kind = EXPERIMENTS[task]
    for key in kind.foreign_keys:
        if key in document:
            raise ConfigError(_unknown_key(where, kind, (key,)))
    try:
        experiment = _ADAPTERS[task].validate_python(document)
    except pydantic.ValidationError as error:
        lines = [_explain(where, kind, item) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    try:
        experiment.check()
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return experiment


def experiment_document(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON and TOML values; :func:`parse_experiment` reads it back."""
    dumped = _ADAPTERS[experiment.task].dump_python(experiment, mode="json")
    document: dict[str, Any] = _without_none(dumped)
    own = document.keys() - set(experiment.foreign_keys)
    return {key: document[key] for key in sorted(own, key=_KEY_ORDER.index)}


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as TOML, every key written out."""
    return tomli_w.dumps(experiment_document(experiment))


def plan_experiment(experiment: Experiment, *, data_dir: Path | None, base: Path) -> Plan:
    """Loads what the experiment names and lists its sessions.

    Args:
        experiment: the checked experiment.
        data_dir: what ``data:`` stands for.
        base: folder that relative paths start from.

    Raises:
        ConfigError, TraceFormatError, VideoFormatError, HeadMotionError, DataNotFound,
        UnknownController, InvalidOptions: what is wrong, and where.
    """
    return PLANNERS[experiment.task](experiment, data_dir, base)


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


def _explain(where: str, kind: type[Experiment], item: Any) -> str:
    """One line for one pydantic error: where, key, what is wrong, what there is instead."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown_key(where, kind, item["loc"])
    if item["type"] in ("missing", "missing_argument"):
        return f"{where}: key {location!r} is missing"
    problem = item["msg"].removeprefix("Value error, ")
    return f"{where}: {location}: {problem} (found {item['input']!r})"


def _unknown_key(where: str, kind: type[Experiment], location: Sequence[int | str]) -> str:
    known = [key for key in keys_beside(kind, location) if key not in kind.foreign_keys]
    told = ".".join(map(str, location))
    return f"{where}: unknown key {told!r}; there are {', '.join(known)}"


def _without_none(value: Any) -> Any:
    """TOML has no null: keys without a value are left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
