"""TCP of a session's hosts: congestion control and the kernel's settings, per network namespace.

Sources: ``tcp(7)``, ``Documentation/networking/ip-sysctl.rst`` of the kernel. Only settings that a
network namespace has of its own can be set; what is shared with the whole machine is left alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from testbed.links.htb import run_tool

PREFIX = 24
SETTINGS = Path("/proc/sys/net/ipv4")
TCP = "tcp_"
#: Set by ``congestion``, or said by the kernel.
NOT_SETTINGS = (
    "allowed_congestion_control",
    "available_congestion_control",
    "available_ulp",
    "congestion_control",
)
#: Sessions do not learn from each other.
DEFAULTS: Mapping[str, int | str] = {"no_metrics_save": 1}


class CongestionUnsupported(ValueError):
    """The kernel does not have such a congestion control; says which it has."""


class TcpSettingUnsupported(ValueError):
    """The kernel does not have such a setting, or not such a value."""


@dataclass(frozen=True, kw_only=True)
class HostTcp:
    """TCP of one host.

    Attributes:
        congestion: congestion control.
        settings: values by the names behind ``tcp_``.
    """

    congestion: str = "cubic"
    settings: Mapping[str, int | str] = field(default_factory=dict)

    def check(self, host: str) -> None:
        """Tries all of it in this network namespace, which keeps what it had.

        Args:
            host: its name in the experiment, for messages.

        Raises:
            CongestionUnsupported, TcpSettingUnsupported: name what there is instead.
        """
        available = _read("available_congestion_control").split()
        if self.congestion not in available:
            raise CongestionUnsupported(
                f"congestion control {self.congestion!r} is not one of "
                f"{', '.join(sorted(available))}; "
                f"more can be had with: sudo modprobe tcp_{self.congestion}"
            )
        known = known_settings()
        for name, value in self.settings.items():
            if name not in known:
                raise TcpSettingUnsupported(
                    f"hosts.{host}.tcp.{name}: a network of its own has no such setting; "
                    f"there are {', '.join(known)}"
                )
            before = _read(name)
            try:
                _set(name, value, f"hosts.{host}.tcp.{name}")
            finally:
                _write(name, before)

    def apply(self, host: str, interface: str, address: str) -> None:
        """Sets up the network namespace of this thread.

        Args:
            host: as for :meth:`check`.
            interface: one of its interfaces; to be called for each.
            address: the address there.

        Raises:
            TcpSettingUnsupported: a value was not taken.
        """
        for name, value in {**DEFAULTS, **self.settings}.items():
            _set(name, value, f"hosts.{host}.tcp.{name}")
        try:
            _write("congestion_control", self.congestion)
        except PermissionError:
            # Only root of the whole machine may choose one that is not in its
            # tcp_allowed_congestion_control; a route may name any.
            network = address.rsplit(".", 1)[0] + f".0/{PREFIX}"
            route = ("dev", interface, "proto", "kernel", "scope", "link", "src", address)
            run_tool("ip", "route", "change", network, *route, "congctl", self.congestion)


def known_settings() -> tuple[str, ...]:
    """Names, behind ``tcp_``, of what this network namespace can set; complete in one that is new.

    The first namespace of a machine also shows what all of them share.
    """
    found = (path.name.removeprefix(TCP) for path in SETTINGS.glob(f"{TCP}*"))
    return tuple(
        sorted(name for name in found if name not in NOT_SETTINGS and _is_writable(_path(name)))
    )


def congestion_of(end: socket.socket) -> str:
    """The congestion control that a connection uses."""
    name = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.split(b"\0")[0].decode()


def _set(name: str, value: int | str, key: str) -> None:
    """Writes a value and reads it back.

    Raises:
        TcpSettingUnsupported: the kernel refuses it or has another one afterwards.
    """
    try:
        _write(name, str(value))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise TcpSettingUnsupported(
            f"{key}: the kernel refuses {value!r} ({why}); it has {_read(name)!r}"
        ) from error
    found = _read(name)
    if found.split() != str(value).split():
        raise TcpSettingUnsupported(f"{key}: asked for {value!r}, the kernel has {found!r}")


def _path(name: str) -> Path:
    return SETTINGS / f"{TCP}{name}"


def _is_writable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o200) and os.access(path, os.R_OK)


def _read(name: str) -> str:
    return " ".join(_path(name).read_text(encoding="ascii").split())


def _write(name: str, value: str) -> None:
    _path(name).write_text(value, encoding="ascii")
