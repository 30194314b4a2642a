"""What must hold of an experiment beyond the type of each key; messages begin with the key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from controllers import registry
from testbed.experiment_sections import DecisionSettings, DirectionConfig, LinkConfig
from testbed.links.spec import MAX_DELAY_MS, DirectionSpec, constant_trace

if TYPE_CHECKING:
    from testbed.experiment_base import Experiment

MAX_DECISION_TIMEOUT_S = 3600.0  # the longest deadline that the controller service takes
#: Behind one bottleneck; each is a host of its own, and the engine takes a session's TAPs at once.
MAX_PLAYERS = 100
MIN_RATE_MBPS, MAX_RATE_MBPS = 0.001, 100_000.0  # of a constant way up
#: Keys of ``[link]`` that simulated runs pass over, so that the same file can be run both ways.
_UNUSED_BY_MODELS = ("queue_packets",)
#: Keys of ``[link.up]`` that mean nothing where the way up has no capacity.
_OF_A_BOTTLENECK = (
    *("queue", "queue_packets", "queue_bytes", "ecn", "target_ms", "interval_ms"),
    *("replay", "at_end"),
)


def check_shared_keys(experiment: Experiment) -> None:
    """Checks the keys that all tasks have.

    Raises:
        ValueError: what is wrong; begins with the key.
    """
    _check_arms(experiment)
    _check_link(experiment.link)
    _check_decisions(experiment.task, experiment.decision_table, experiment.decision_settings)
    _check_network(experiment)
    require(experiment.seed >= 0, "seed: must not be negative")
    require(experiment.limit is None or experiment.limit >= 1, "limit: must be at least 1")
    thinking = experiment.simulation.decision_s
    require(isinstance(thinking, str) or thinking >= 0, "simulation.decision_s: must be >= 0")
    if experiment.driver == "simulated":
        _check_simulated(experiment)


def require(holds: bool, message: str) -> None:
    """Raises ValueError with the message unless ``holds``."""
    if not holds:
        raise ValueError(message)


def keys_beside(root: type[Any], location: Sequence[int | str]) -> list[str]:
    """Keys of the table in which the last part of a location lies.

    Args:
        root: dataclass of the whole file.
        location: as in pydantic's errors: keys, positions in lists, and values of ``kind``.
    """
    tables = [root]
    for part in location[:-1]:
        if isinstance(part, str):
            below = [
                table
                for parent in tables
                for table in _tables_in(typing.get_type_hints(parent).get(part))
            ]
            tables = below or [table for table in tables if getattr(table, "kind", part) == part]
    return list(dict.fromkeys(item.name for table in tables for item in dataclasses.fields(table)))


def _tables_in(annotation: object) -> Iterator[type[Any]]:
    """The dataclasses in an annotation such as ``tuple[X, ...]`` or ``X | None``."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _tables_in(part)


def _check_arms(experiment: Experiment) -> None:
    arms = experiment.arms
    require(bool(arms), "arms: at least one is needed")
    labels = [arm.label for arm in arms]
    for label in labels:
        require(labels.count(label) == 1, f"arms: {label!r} occurs twice; give each a name")
    for arm in arms:
        has_players = arm.player is None or experiment.task == "abr"
        require(has_players, f"arms: {arm.label!r}: player: only task 'abr' has several")


def _check_link(link: LinkConfig) -> None:
    trace = constant_trace(1.0)  # stands for any
    _with_key(
        "link", lambda: link.direction(trace=trace, start_s=0.0, delay_ms=link.delay_ms, seed="")
    )
    up, up_trace = link.up, trace if link.has_up_bottleneck else None
    if up is not None:
        _with_key("link.up", lambda: link.up_direction(trace=up_trace, start_s=0.0, seed=""))
        require(
            up.traces is None or up.rate_mbps is None,
            "link.up.rate_mbps: stands in the place of link.up.traces; give one of the two",
        )
        require(
            up.rate_mbps is None or MIN_RATE_MBPS <= up.rate_mbps <= MAX_RATE_MBPS,
            f"link.up.rate_mbps: must be {MIN_RATE_MBPS:g} to {MAX_RATE_MBPS:g}",
        )
        require(
            up.rate_mbps is None or up.replay == "rate",
            "link.up.replay: opportunities are those of link.up.traces, not of a constant rate",
        )
    if up is not None and up_trace is None:
        for name in _OF_A_BOTTLENECK:
            require(
                name not in _changed_keys(up),
                f"link.up.{name}: there is no bottleneck without link.up.traces or "
                "link.up.rate_mbps",
            )
    for number, change in enumerate(link.changes):
        where = f"link.changes.{number}"
        require(
            not (change.rate_mbps is None and change.delay_ms is None and change.loss is None),
            f"{where}: changes nothing; there are rate_mbps, delay_ms, loss",
        )
        require(
            change.rate_mbps is None or change.direction != "up" or link.has_up_bottleneck,
            f"{where}.rate_mbps: the way up has no rate without link.up.traces or "
            "link.up.rate_mbps",
        )


def _with_key(key: str, make: Callable[[], DirectionSpec]) -> DirectionSpec:
    """What ``make`` returns; its errors begin with the key.

    Raises:
        ValueError: as raised by ``make``.
    """
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from error


def _check_decisions(task: str, table: str, settings: DecisionSettings) -> None:
    require(
        0 < settings.decision_timeout_s <= MAX_DECISION_TIMEOUT_S,
        f"{table}.decision_timeout_s: must be above 0 and at most {MAX_DECISION_TIMEOUT_S:.0f}",
    )
    if settings.fallback is None:
        return
    try:
        needs_future = registry.needs_future(task, settings.fallback)
        require(not needs_future, f"{settings.fallback!r} knows the future")
        registry.create(task, settings.fallback)
    except (LookupError, ValueError) as error:
        raise ValueError(f"{table}.fallback: {error}") from error


def _check_network(experiment: Experiment) -> None:
    network = experiment.network
    require(
        0 <= experiment.controller_link.delay_ms <= MAX_DELAY_MS,
        f"controller_link.delay_ms: must be 0 to {MAX_DELAY_MS:.0f}",
    )
    require(network.clients >= 1, "network.clients: must be at least 1")
    require(
        experiment.players <= MAX_PLAYERS,
        f"network.clients: {experiment.players} players behind one bottleneck, "
        f"at most {MAX_PLAYERS}",
    )


def _changed_keys(table: DirectionConfig) -> list[str]:
    """Keys that do not have their default."""
    return [
        item.name
        for item in dataclasses.fields(table)
        if item.default is not dataclasses.MISSING and getattr(table, item.name) != item.default
    ]


def _check_simulated(experiment: Experiment) -> None:
    """The link models have a rate and a delay and nothing else.

    Models of the rest would be others than what is emulated, so nothing pretends to be them.
    """
    own = {item.name for item in dataclasses.fields(DirectionConfig)} | {"up", "changes"}
    for name in _changed_keys(experiment.link):
        require(
            name not in own or name in _UNUSED_BY_MODELS,
            f"link.{name}: the simulated link models do not have it; use driver = 'emulated'",
        )
    for key, asked in (
        ("network.clients", experiment.network.clients > 1),
        ("network.shared_by", experiment.network.shared_by != "arm"),
        ("background", bool(experiment.background)),
        ("capture.enabled", experiment.capture.enabled),
    ):
        require(
            not asked, f"{key}: a simulated session has one player alone; use driver = 'emulated'"
        )
