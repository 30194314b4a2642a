"""What was run, as far as a result folder tells: the facts at the head of a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.experiment_sections import LinkConfig

Facts = tuple[tuple[str, str], ...]


def known(facts: Iterable[tuple[str, str]]) -> Facts:
    """Those that say something."""
    return tuple((key, value) for key, value in facts if value)


def network_facts(experiment: Mapping[str, Any], driver: str, backends: Iterable[str]) -> Facts:
    """About the link and who shared it."""
    link = experiment.get("link", {})
    is_emulated = driver == "emulated"
    has_delay = "delay_ms" in link and (is_emulated or link.get("model") == "tcp")
    has_queue = "queue_packets" in link and is_emulated
    return (
        ("link", ", ".join(dict.fromkeys(backends))),
        ("one-way delay", f"{link['delay_ms']:g} ms" if has_delay else ""),
        ("queue", f"{link['queue_packets']} packets" if has_queue else ""),
        ("link, besides", _besides(link)),
        ("players per bottleneck", _sharing(experiment)),
        ("background traffic", ", ".join(one["kind"] for one in experiment.get("background", []))),
        ("congestion control", str(link.get("congestion", "")) if is_emulated else ""),
    )


def machine_facts(experiment: Mapping[str, Any], environment: Mapping[str, Any]) -> Facts:
    """About the seed, the software, the machine and the day."""
    commit = str(environment.get("commit") or "")[:10]
    version = " ".join(filter(None, [str(environment.get("version", "")), commit]))
    system = " ".join(
        str(environment[key]) for key in ("kernel", "machine") if environment.get(key)
    )
    return (
        ("seed", str(experiment.get("seed", ""))),
        ("version", version),
        ("kernel", system),
        ("CPUs", str(environment.get("cpus") or "")),
        ("date", str(environment.get("date") or "").replace("T", " ")),
    )


def documents(experiment: Mapping[str, Any], environment: Mapping[str, Any]) -> Facts:
    """Experiment and environment in full, for those who want to repeat the run."""
    found = []
    if experiment:
        found.append(("experiment", json.dumps(experiment, indent=2, default=str)))
    if environment:
        found.append(("environment", json.dumps(environment, indent=2)))
    return tuple(found)


def _besides(link: Mapping[str, Any]) -> str:
    """Keys of the link that do not have their default and no line of their own."""
    usual = LinkConfig()
    told = ("backend", "model", "delay_ms", "queue_packets", "congestion")
    found = [
        f"{item.name} {_short(link[item.name])}"
        for item in dataclasses.fields(usual)
        if item.name not in told
        and item.name in link
        and link[item.name] not in (getattr(usual, item.name), [])
    ]
    return ", ".join(found)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "yes"
    return str(len(value)) if isinstance(value, list) else str(value)


def _sharing(experiment: Mapping[str, Any]) -> str:
    network = experiment.get("network", {})
    clients, by = network.get("clients", 1), network.get("shared_by", "arm")
    if by == "all":
        return f"{clients} of every arm"
    return str(clients) if clients > 1 else ""
