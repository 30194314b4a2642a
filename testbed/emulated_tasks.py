"""The tasks that can be emulated, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from testbed.abr_emulation import AbrEmulation
from testbed.emulated_task import EmulatedTask
from testbed.viewport_emulation import ViewportEmulation

EMULATED_TASKS: Mapping[str, EmulatedTask] = MappingProxyType(
    {"abr": AbrEmulation(), "viewport": ViewportEmulation()}
)
