"""What experiments of all tasks have in common: their keys, who plays, and who shares a link."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import ClassVar

from controllers import registry
from testbed.background import BackgroundTraffic
from testbed.experiment_checks import check_shared_keys
from testbed.experiment_sections import (
    FORBID_UNKNOWN,
    ArmConfig,
    CaptureConfig,
    ControllerLinkConfig,
    DecisionSettings,
    HostsConfig,
    LinkConfig,
    NetworkConfig,
    SimulationConfig,
)


class ConfigError(ValueError):
    """The experiment file, or what it names, is wrong; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Experiment(abc.ABC):
    """One experiment: every arm on everything that the experiment names.

    A task has a subclass with the keys of its own; its name is the only value of ``task``.

    Attributes:
        task: what is controlled.
        arms: the controllers that are compared.
        driver: how sessions are played; the subclass says which there are.
        seed: of whatever is drawn.
        traces: bandwidth of the link.
        limit: only the first traces.
        starts: points of the traces at which sessions begin.

    Class attributes that a subclass may set:

    - ``decision_table``: key of the table that ``decision_settings`` is;
    - ``foreign_keys``: keys of this class that mean nothing for the task: refused, not written.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    decision_table: ClassVar[str] = "player"
    foreign_keys: ClassVar[tuple[str, ...]] = ()
    task: str
    arms: tuple[ArmConfig, ...]
    driver: str = "emulated"
    seed: int = 0
    traces: str = "builtin:mixed"
    limit: int | None = None
    starts: str | int | dict[str, int] | None = None
    link: LinkConfig = field(default_factory=LinkConfig)
    controller_link: ControllerLinkConfig = field(default_factory=ControllerLinkConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    background: tuple[BackgroundTraffic, ...] = ()
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    @property
    @abc.abstractmethod
    def decision_settings(self) -> DecisionSettings:
        """How long a decision may take, and who decides instead."""

    def check(self) -> None:
        """Checks what the types of the keys do not say; subclasses check theirs, too.

        Raises:
            ValueError: what is wrong; begins with the key.
        """
        check_shared_keys(self)

    def check_controllers(self) -> None:
        """Looks up the controllers of all arms.

        Raises:
            UnknownController: there is none of that name.
        """
        for arm in self.arms:
            if self.is_remote(arm):
                registry.controller_class(self.task, arm.controller)

    def is_remote(self, arm: ArmConfig) -> bool:
        """Whether a controller of the registry decides; False: the player does by itself."""
        return True

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
