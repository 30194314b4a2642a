"""Registry of controllers: one file, one class, one registration per algorithm.

The name of a controller is the name of its module in ``controllers/TASK/``. A module is imported
only when its controller is asked for, so that asking for ``bba`` never loads torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import pydantic

TASKS = ("abr", "viewport", "scheduling")


class UnknownController(LookupError):
    """No controller of that name for that task; the message lists those that exist."""


class InvalidOptions(ValueError):
    """An option that the controller does not have, or a value it cannot take."""


class Controller(Protocol):
    """A function of its observation. Controllers are frozen dataclasses; fields are options.

    Class attributes that a controller may set:

    - ``needs_future``: it knows what is to come (an oracle). Its class offers ``for_session``,
      which returns a copy bound to one session: for ``abr``, in simulated runs only,
      ``for_session(video, link, start_s, player)``; for ``viewport`` ``for_session(motion)``.
    - ``uses_earlier_viewers``: for ``viewport``; False: it never looks at an observation's
      ``earlier``, which is then left out, as that is most of a question. True where not set.
    - ``decide_many``: answers several observations in one call, for batching in the service.
    """

    def decide(self, observation: Any) -> Any:
        """Returns the decision; equal observations get equal decisions."""
        ...


ControllerClass = TypeVar("ControllerClass", bound=type[Any])

_classes: dict[tuple[str, str], type[Any]] = {}


def register(task: str, name: str) -> Callable[[ControllerClass], ControllerClass]:
    """Class decorator that makes a controller known; ``name`` must equal the module's name."""

    def add(cls: ControllerClass) -> ControllerClass:
        if cls.__module__.rsplit(".", 1)[-1] != name:
            raise UnknownController(f"{cls.__module__} must not register the name {name!r}")
        _classes[task, name] = cls
        return cls

    return add


def names(task: str) -> tuple[str, ...]:
    """Names of all controllers for a task, sorted; imports none of them.

    Raises:
        UnknownController: no such task.
    """
    if task not in TASKS:
        raise UnknownController(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    try:
        package = importlib.import_module(f"controllers.{task}")
    except ModuleNotFoundError:
        return ()
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def controller_class(task: str, name: str) -> type[Any]:
    """The class registered under ``name``; imports its module.

    Raises:
        UnknownController: there is none; the message lists those that exist.
    """
    if (task, name) not in _classes:
        if name not in names(task):
            raise UnknownController(
                f"unknown {task} controller {name!r}; there are {', '.join(names(task)) or 'none'}"
            )
        importlib.import_module(f"controllers.{task}.{name}")
    return _classes[task, name]


def create(task: str, name: str, options: Mapping[str, Any] | None = None) -> Controller:
    """Makes a controller with the given options, checked against its fields.

    Raises:
        UnknownController: no such task or controller.
        InvalidOptions: an unknown option or a wrong value; the message lists the options.
    """
    cls = controller_class(task, name)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    given = dict(options or {})
    for key in given:
        if key not in known:
            raise InvalidOptions(
                f"controller {name!r} has no option {key!r}; it has {', '.join(known) or 'none'}"
            )
    try:
        controller: Controller = pydantic.TypeAdapter(cls).validate_python(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = "".join(f", option {part}" for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidOptions(f"controller {name!r}{where}: {message}") from error
    return controller


def needs_future(task: str, name: str) -> bool:
    """Whether the controller must know what is to come."""
    return bool(getattr(controller_class(task, name), "needs_future", False))


def uses_earlier_viewers(task: str, controller: str | Controller) -> bool:
    """Whether a controller, or the one of that name, looks at what earlier viewers did."""
    one = controller_class(task, controller) if isinstance(controller, str) else controller
    return bool(getattr(one, "uses_earlier_viewers", task == "viewport"))
