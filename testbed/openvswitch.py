"""Open vSwitch of one session's own: its daemons run inside the session's network namespace.

The daemons of the system see only the interfaces of the machine's own namespace, so a private
network needs private ones. They keep everything in a temporary folder, named by ``OVS_RUNDIR``
(``ovs-vswitchd(8)``), and die with the session. The kernel's datapath is used where there is one,
else the one in user space, which needs TAP interfaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from testbed.links.htb import ShapingError, run_tool
from testbed.namespaces import fork_into

Datapath = Literal["kernel", "user"]

SCHEMAS = (
    Path("/usr/share/openvswitch/vswitch.ovsschema"),
    Path("/usr/local/share/openvswitch/vswitch.ovsschema"),
)
PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-dpctl")
FOLDER_VARIABLES = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
START_TIMEOUT_S = 10.0
PROBE_DATAPATH = "ovsprobe"
QUIET = ("-vconsole:off", "-vsyslog:off")


class SwitchUnsupported(ValueError):
    """This machine cannot make such a switch; says what is missing and what to do instead."""


def check_installed() -> Path:
    """Looks for the programs and the database schema; returns the latter.

    Raises:
        SwitchUnsupported: something is missing.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    schema = next((path for path in SCHEMAS if path.exists()), None)
    if missing or schema is None:
        raise SwitchUnsupported(
            f"Open vSwitch is not installed ({', '.join(missing) or 'its schema'} missing): "
            "apt-get install openvswitch-switch, or use the switch linuxbridge"
        )
    return schema


@contextlib.contextmanager
def private_openvswitch() -> Iterator[Datapath]:
    """Runs Open vSwitch for this network namespace; ``ovs-vsctl`` of this process talks to it.

    Yields:
        The datapath that its bridges can use.

    Raises:
        SwitchUnsupported: it is not installed, does not start, or has no datapath here.
    """
    schema = check_installed()
    datapath = _datapath()
    with tempfile.TemporaryDirectory(prefix="ovs-") as folder, _environment(folder):
        database, remote = f"{folder}/conf.db", f"{folder}/db.sock"
        _run("ovsdb-tool", "create", database, str(schema))
        server = ("ovsdb-server", *QUIET, f"--remote=punix:{remote}", database)
        switch = ("ovs-vswitchd", *QUIET, f"unix:{remote}")
        with fork_into(None, os.execvp, server[0], server):
            _wait_for(Path(remote))
            with fork_into(None, os.execvp, switch[0], switch):
                _run("ovs-vsctl", "--timeout", f"{START_TIMEOUT_S:.0f}", "init")
                yield datapath


def _datapath() -> Datapath:
    try:
        run_tool("ovs-dpctl", "add-dp", PROBE_DATAPATH)
    except ShapingError as error:
        if os.access("/dev/net/tun", os.R_OK | os.W_OK):
            return "user"
        raise SwitchUnsupported(
            f"Open vSwitch has no datapath: neither the kernel's ({error}) nor, without "
            "/dev/net/tun, its own: sudo modprobe openvswitch, or sudo chmod 0666 /dev/net/tun, "
            "or use the switch linuxbridge"
        ) from error
    run_tool("ovs-dpctl", "del-dp", PROBE_DATAPATH)
    return "kernel"


def _run(*command: str) -> None:
    try:
        run_tool(*command)
    except ShapingError as error:
        raise SwitchUnsupported(f"Open vSwitch does not start: {error}") from error


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in FOLDER_VARIABLES}
    os.environ.update(dict.fromkeys(FOLDER_VARIABLES, folder))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline_s:
            raise SwitchUnsupported(f"ovsdb-server made no {path} within {START_TIMEOUT_S} s")
        time.sleep(0.01)
