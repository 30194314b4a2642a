from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import emulation_entries as entries
import pytest

from testbed import sandbox
from testbed.sandbox import SandboxError, probe_sandbox, run_in_sandbox, sandbox_mode

pytestmark = pytest.mark.emulation

MARK = "SANDBOX_TEST_MARK"
GONE_WITHIN_S = 10.0
MININET_NAMES = ("s1", "s2", "server", "client", "controller", "doctor")
VICTIM = """
import signal

import emulation_entries

from testbed.sandbox import run_in_sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)  # even where it came in ignored
job = {"times_s": [0, 1, 2], "rates_mbps": [1, 1, 2], "seconds": 1000}
print("started", flush=True)
run_in_sandbox("emulation_entries:session", job, on_message=print)
"""


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    entries.require()


def test_inside_is_private() -> None:
    (seen,) = entries.collect("describe", {"number": 1, "text": "ü"})
    assert seen["job"] == {"number": 1, "text": "ü"}
    assert seen["interfaces"] == ["lo"]
    assert seen["user"] == 0
    assert len(seen["processes"]) <= 3
    assert seen["temp"].startswith("/dev/shm/")
    assert not Path(seen["temp"]).exists()


def test_messages_have_no_size_limit_and_keep_their_order() -> None:
    first, *rest = entries.collect("send_long", {"length": 3_000_000})
    assert len(first["text"]) == 3_000_000
    assert rest == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_messages_of_forked_processes_do_not_mix() -> None:
    messages = entries.collect("send_together", {"children": 4, "messages": 25})
    for child in range(4):
        assert [m["number"] for m in messages if m["child"] == child] == list(range(25))


def test_a_message_that_was_cut_off_does_not_take_the_next_one_with_it() -> None:
    assert entries.collect("send_torn", {}) == [{"after": True}]


def test_an_exception_inside_arrives_with_type_and_message() -> None:
    with pytest.raises(SandboxError, match="LookupError: nothing called x") as caught:
        entries.collect("fail", {"name": "x"})
    assert caught.value.kind == "LookupError"


def test_a_death_inside_says_exit_code_and_last_words() -> None:
    with pytest.raises(SandboxError, match=r"exit code 7\n.*last words"):
        entries.collect("die", {"status": 7})


@pytest.mark.parametrize("entry", ["no_such_module:main", "emulation_entries:none", "nothing"])
def test_an_entry_that_is_not_there_is_named(entry: str) -> None:
    with pytest.raises(SandboxError, match=entry.partition(":")[0] or entry):
        run_in_sandbox(entry, {}, on_message=print)


def test_process_1_reaps_orphans() -> None:
    assert entries.collect("leave_orphans", {}) == [{"zombies": 0}]


def test_an_exception_in_on_message_ends_the_inside() -> None:
    def refuse(message: dict[str, Any]) -> None:
        raise ZeroDivisionError

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        run_in_sandbox("emulation_entries:wait_long", {}, on_message=refuse)
    assert time.monotonic() - began < 60


def test_the_mode_matches_the_user() -> None:
    assert sandbox_mode() == probe_sandbox().mode
    if os.geteuid() != 0:
        assert sandbox_mode() == "user"


def test_without_unshare_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert sandbox_mode() is None
    with pytest.raises(SandboxError, match="install util-linux"):
        run_in_sandbox("emulation_entries:describe", {}, on_message=print)


def test_a_refusing_kernel_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "NAMESPACES", ("--mount", "--root=/no/such/folder"))
    probe = probe_sandbox()
    assert probe.mode is None
    assert "/no/such/folder" in probe.reason
    assert "run as root" in probe.reason


def marked_processes(mark: str) -> list[str]:
    """Processes whose environment carries the mark; zombies have none."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (
                folder / "environ"
            ).read_bytes().split(b"\0"):
                found.append(folder.name)
        except OSError:
            continue
    return found


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith(MININET_NAMES)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("latest_s", [0.4, 2.5])
def test_a_killed_run_leaves_nothing(
    number: signal.Signals, latest_s: float, tmp_path: Path
) -> None:
    entries.require(network=True)
    mark = f"{os.getpid()}-{number.name}-{latest_s}"
    mounts = Path("/proc/self/mounts").read_text()
    environment = {
        **os.environ,
        MARK: mark,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join((entries.HERE, *filter(None, sys.path))),
    }
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"started\n"
        time.sleep(random.uniform(0.0, latest_s))
        assert victim.poll() is None
        victim.send_signal(number)
        assert victim.wait(timeout=GONE_WITHIN_S) != 0
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert interfaces() == []
    assert Path("/proc/self/mounts").read_text() == mounts
    assert list(tmp_path.iterdir()) == []
