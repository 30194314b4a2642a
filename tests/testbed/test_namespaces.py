from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import emulation_entries as entries
import pytest

from testbed.namespaces import NamespaceError, enter_network, fork_into, in_network_of


def test_the_exit_status_of_a_child_is_what_its_function_did() -> None:
    def fail() -> None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the child is about to end)
        raise ValueError

    for function, status in (
        (lambda: None, 0),
        (lambda: sys.exit(3), 3),
        (lambda: sys.exit("reason"), 1),
        (fail, 1),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), -signal.SIGTERM),
    ):
        with fork_into(None, function) as child:
            assert child.wait(10) == status
            assert child.wait(10) == status
            assert not child.is_running


def test_a_child_gets_its_arguments_and_shares_memory_of_the_parent() -> None:
    secret = object()

    def check(first: object, *, second: int) -> None:
        assert first is secret
        assert second == 2

    with fork_into(None, check, secret, second=2) as child:
        assert child.wait(10) == 0


def test_leaving_the_context_kills_and_reaps() -> None:
    with fork_into(None, time.sleep, 1000) as child:
        assert child.is_running
        with pytest.raises(TimeoutError, match="still runs"):
            child.wait(0.01)
    assert child.wait() == -signal.SIGKILL
    assert not Path(f"/proc/{child.pid}").exists()
    child.kill()  # a second time does nothing


def test_a_child_dies_with_its_parent() -> None:
    read, write = os.pipe()

    def parent() -> None:
        child = fork_into(None, time.sleep, 1000)
        os.write(write, f"{child.pid}\n".encode())
        time.sleep(1000)

    with fork_into(None, parent):
        pid = int(os.read(read, 100))
        assert Path(f"/proc/{pid}").exists()
    os.close(read)
    os.close(write)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # an orphan that nobody reaps in a container is dead all the same


def test_a_process_that_does_not_exist_has_no_namespace() -> None:
    nobody = 2**22 + 1  # above the largest process number there can be
    with pytest.raises(NamespaceError, match=str(nobody)):
        enter_network(nobody)
    with pytest.raises(NamespaceError, match=str(nobody)):
        fork_into(nobody, time.sleep, 0)
    with pytest.raises(NamespaceError, match=str(nobody)):
        in_network_of(nobody, os.getpid)


@pytest.mark.emulation
def test_what_a_visit_raises_is_raised_here() -> None:
    entries.require()
    assert entries.collect("visit_and_raise", {}) == [{"raised": "KeyError"}]


@pytest.mark.emulation
def test_networks_are_apart_and_sockets_stay_where_they_were_made() -> None:
    entries.require()
    (seen,) = entries.collect("two_networks", {})
    assert seen["other_interfaces"] == ["lo"]
    assert seen["sysfs"] in (["lo"], ["mine0", "lo"], ["lo", "mine0"])  # where /sys may be mounted
    assert seen["own_interfaces"] == ["lo", "mine0"]
    assert seen["heard"] == "hello"
    assert seen["own_port_is_free"]


@pytest.mark.emulation
def test_an_address_that_the_other_network_does_not_have_is_refused() -> None:
    entries.require()
    (seen,) = entries.collect("foreign_address", {})
    assert seen["error"] == "OSError"
