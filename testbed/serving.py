"""``testbed serve``: the controller service alone, for players of other people."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

from controllers import registry
from controllers.service import serve


class UsageError(ValueError):
    """An argument on the command line that cannot be understood."""


def serve_arms(
    task: str, arms: Sequence[str], *, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    """Serves controllers until SIGINT or SIGTERM.

    Args:
        task: task of all arms.
        arms: ``NAME`` or ``NAME=key=value,key=value`` each, values as in TOML or plain words.
        host: address to bind.
        port: port to bind; 0 takes a free one.
        on_ready: is told the base URL.

    Raises:
        UsageError: an arm that cannot be read, or named twice.
        UnknownController, InvalidOptions: a controller that cannot be made.
        ServerAddressError: the address cannot be bound.
    """
    controllers: dict[tuple[str, str], registry.Controller] = {}
    for text in arms:
        name, options = parse_arm(text)
        if (task, name) in controllers:
            raise UsageError(f"--arm {name!r} is given twice")
        controllers[task, name] = registry.create(task, name, options)
    asyncio.run(
        serve(
            controllers,
            address=(host, port),
            ready=lambda service: on_ready(", ".join(service.urls)),
        )
    )


def parse_arm(text: str) -> tuple[str, dict[str, Any]]:
    """Splits ``NAME=key=value,…`` into name and options.

    Raises:
        UsageError: a part without ``key=value``.
    """
    name, _, rest = text.partition("=")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise UsageError(f"--arm {text!r}: expected NAME=key=value,key=value")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return name, options
