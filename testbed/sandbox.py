"""Private namespaces for a whole run: nothing inside can collide with, or outlive, the outside.

``unshare(1)`` (util-linux) makes user (not needed by root), network, mount and pid namespaces;
process 1 inside is this module. When it ends, however that comes about, the kernel kills every
process in there and with them goes every namespace, interface, mount and temporary file. Two
independent things make it end with the outside: the parent-death signal, and a pipe whose end of
file process 1 waits for. See ``pid_namespaces(7)`` and ``user_namespaces(7)``.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import importlib
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from testbed.namespaces import (
    MS_NODEV,
    MS_NOSUID,
    bring_up,
    fork_into,
    mount,
    mount_sysfs,
    set_parent_death_signal,
)

log = logging.getLogger(__name__)

Mode = Literal["root", "user"]
Send = Callable[[dict[str, Any]], None]
Entry = Callable[[dict[str, Any], Send], None]

NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
AS_USER = ("--user", "--map-root-user")
PRIVATE_TEMP = "/dev/shm"  # noqa: S108 (a file system of its own inside the sandbox)
STDERR_LINES = 30
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on the PATH of ordinary users
READ_BYTES = 1 << 20
GRACE_S = 5.0  # for the kernel to tear the namespaces down
PROBE_TIMEOUT_S = 10.0
SWITCHES = {
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "AppArmor restricts user namespaces: run as root, or "
        "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
    ),
    "/proc/sys/kernel/unprivileged_userns_clone": (
        "0",
        "the kernel forbids user namespaces: run as root, or "
        "`sudo sysctl kernel.unprivileged_userns_clone=1`",
    ),
    "/proc/sys/user/max_user_namespaces": (
        "0",
        "no user namespaces are allowed: run as root, or "
        "`sudo sysctl user.max_user_namespaces=15000`",
    ),
}


class SandboxError(RuntimeError):
    """The sandbox could not be made, or what ran inside failed.

    Attributes:
        kind: name of the exception's class that was raised inside; None when it just died.
    """

    def __init__(self, message: str, *, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class SandboxProbe:
    """Outcome of trying to make a sandbox: how it can be made, or why it cannot."""

    mode: Mode | None
    reason: str


def tool_path() -> str:
    """The PATH, with the folders in which system tools lie."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(dict.fromkeys((*folders, *SYSTEM_FOLDERS)))


def probe_sandbox() -> SandboxProbe:
    """Makes an empty sandbox, as root without and otherwise with a user namespace."""
    if shutil.which("unshare") is None:
        return SandboxProbe(None, "the program unshare is missing: install util-linux")
    ways: tuple[Mode, ...] = ("root", "user") if os.geteuid() == 0 else ("user",)
    reason = ""
    for mode in ways:
        command = [*_unshare(mode), "true"]
        try:
            outcome = subprocess.run(
                command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
            continue
        if outcome.returncode == 0:
            return SandboxProbe(mode, "as root" if mode == "root" else "in a user namespace")
        reason = outcome.stderr.strip() or f"{command[0]} exited with {outcome.returncode}"
    return SandboxProbe(None, f"{reason}; {_remedy()}")


def _remedy() -> str:
    for path, (forbidding, remedy) in SWITCHES.items():
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == forbidding:
                return remedy
    return "run as root, or where user namespaces are allowed (in a container: --privileged)"


def sandbox_mode() -> Mode | None:
    """How sandboxes are made here, found by making one; None when it cannot be done."""
    return probe_sandbox().mode


def _unshare(mode: Mode) -> list[str]:
    return ["unshare", *(AS_USER if mode == "user" else ()), *NAMESPACES]


def run_in_sandbox(entry: str, job: dict[str, Any], *, on_message: Send) -> None:
    """Runs ``entry(job, send)`` inside private namespaces and waits for its end.

    Args:
        entry: ``package.module:function``, imported inside.
        job: handed over as JSON.
        on_message: called here with every value given to ``send`` inside, in order.

    Raises:
        SandboxError: no sandbox can be made here, the inside died, or ``entry`` raised.
    """
    probe = probe_sandbox()
    if probe.mode is None:
        raise SandboxError(f"cannot make a sandbox: {probe.reason}")
    with _inside(probe.mode) as inside:
        inside.hand_over({"entry": entry, "path": sys.path, "job": job})
        outcome = inside.receive(on_message)
        returncode = inside.finish()
    if outcome is None:
        raise SandboxError(
            f"{entry} died inside the sandbox with {_describe(returncode)}{inside.last_words()}"
        )
    if outcome:
        log.debug("inside the sandbox: %s", outcome["traceback"])
        raise SandboxError(f"{outcome['type']}: {outcome['message']}", kind=outcome["type"])


def _describe(returncode: int) -> str:
    code = -returncode if returncode < 0 else returncode - 128  # 128 + n: as a shell says it
    if code > 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(code).name}"
    return f"exit code {returncode}"


class _Inside:
    """The outside's hold on a sandbox."""

    def __init__(
        self, process: subprocess.Popen[bytes], job: IO[bytes], messages: IO[bytes]
    ) -> None:
        assert process.stderr is not None  # opened as a pipe
        self._process = process
        self._job = job
        self._messages = messages
        self._stderr: IO[bytes] = process.stderr
        self._last_lines: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)

    def hand_over(self, envelope: dict[str, Any]) -> None:
        """Writes the job; the pipe stays open as the lifeline."""
        try:
            self._job.write(json.dumps(envelope).encode() + b"\n")
            self._job.flush()
        except BrokenPipeError:
            log.debug("the sandbox died before it read its job")

    def receive(self, on_message: Send) -> dict[str, str] | None:
        """Passes messages on until the end of file.

        Returns:
            The description of the exception, empty if there was none; None if the inside died.
        """
        outcome: dict[str, str] | None = None
        pending: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self._messages, selectors.EVENT_READ, self._messages)
            selector.register(self._stderr, selectors.EVENT_READ, self._stderr)
            while selector.get_map():
                for key, _ in selector.select():
                    block = os.read(key.fd, READ_BYTES)
                    if not block:
                        selector.unregister(key.fileobj)
                    elif key.data is self._stderr:
                        self._note(block)
                    else:
                        for parsed in filter(None, map(_parse, _lines(block, pending))):
                            if "message" in parsed:
                                on_message(parsed["message"])
                            else:
                                outcome = parsed["outcome"]
        return outcome

    def _note(self, block: bytes) -> None:
        for line in block.decode(errors="replace").splitlines():
            log.debug("inside: %s", line)
            self._last_lines.append(line)

    def last_words(self) -> str:
        """The last lines on stderr, for a message."""
        return "".join(f"\n  {line}" for line in self._last_lines)

    def finish(self) -> int:
        """Cuts the lifeline and waits until nothing is left inside; the exit code."""
        with contextlib.suppress(BrokenPipeError):
            self._job.close()
        try:
            return self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its parent-death signal ends process 1
            return self._process.wait()


@contextlib.contextmanager
def _inside(mode: Mode) -> Iterator[_Inside]:
    job_read, job_write = os.pipe()
    messages_read, messages_write = os.pipe()
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    parent_pid = os.getpid()
    with os.fdopen(job_write, "wb") as job, os.fdopen(messages_read, "rb") as messages:
        try:
            process = subprocess.Popen(
                [
                    *_unshare(mode),
                    *(sys.executable, "-P", "-m", "testbed.sandbox"),
                    *(str(job_read), str(messages_write)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(job_read, messages_write),
                env={**os.environ, "PYTHONPATH": path, "PATH": tool_path()},
                start_new_session=True,  # an interrupt from the terminal reaches the outside only
                preexec_fn=lambda: set_parent_death_signal(parent_pid),
            )
        finally:
            os.close(job_read)
            os.close(messages_write)
        inside = _Inside(process, job, messages)
        try:
            yield inside
        finally:
            inside.finish()
            if process.stderr is not None:
                process.stderr.close()


def _lines(block: bytes, pending: list[bytes]) -> Iterator[bytes]:
    """Completes lines; ``pending`` keeps the parts of an unfinished one, of any length."""
    *complete, rest = block.split(b"\n")
    for part in complete:
        yield b"".join((*pending, part))
        pending.clear()
    if rest:
        pending.append(rest)


def _parse(line: bytes) -> dict[str, Any] | None:
    """One message; None for what a process left that was killed while it sent one."""
    if not line:
        return None
    try:
        parsed: dict[str, Any] = json.loads(line)
    except ValueError:
        log.warning("a message from the sandbox was cut off: %r", line[:100])
        return None
    return parsed


# ---- inside -------------------------------------------------------------------------------------


def main(job_fd: int, messages_fd: int) -> int:
    """Process 1 of the sandbox: sets it up, runs the entry in a child, reaps, watches the lifeline.

    Returns:
        The exit code of the entry's process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(job_fd, False)
    os.set_inheritable(messages_fd, False)
    with os.fdopen(job_fd, "rb") as job:
        line = job.readline()
        if not line.endswith(b"\n"):
            return 1  # the outside is gone
        try:
            _furnish()
        except OSError as error:
            _Messages(messages_fd).end(error)
            return 1
        child = fork_into(None, _work, line, job_fd, messages_fd)
        os.close(messages_fd)
        return _watch(child.pid, job_fd)


def _furnish() -> None:
    """Gives the sandbox its loop-back interface, temporary files and view of its interfaces."""
    bring_up("lo")
    mount("tmpfs", PRIVATE_TEMP, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    os.environ["TMPDIR"] = PRIVATE_TEMP
    tempfile.tempdir = None
    if not mount_sysfs():
        log.debug("/sys shows the interfaces of the outside")


def _watch(child_pid: int, lifeline_fd: int) -> int:
    """Reaps whatever ends; returns when the child has ended or the outside is gone."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    with selectors.DefaultSelector() as selector:
        selector.register(lifeline_fd, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child_pid:
                    code = os.waitstatus_to_exitcode(ended[1])
                    return code if code >= 0 else 128 - code
            for key, _ in selector.select():
                if key.fd == lifeline_fd:
                    return 1
                os.read(wake_read, READ_BYTES)


class _Messages:
    """The way out: whole lines, from any thread or forked process of the sandbox."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._thread_lock = threading.Lock()
        # Record locks belong to a process and need a file; this one has no name.
        self._lock_file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message out."""
        self._write({"message": message})

    def end(self, error: BaseException | None = None) -> None:
        """Says how the entry ended."""
        outcome: dict[str, str] = {}
        if error is not None:
            outcome = {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": "".join(traceback.format_exception(error)),
            }
        self._write({"outcome": outcome})

    def _write(self, value: dict[str, Any]) -> None:
        # The line break in front ends whatever a killed process has left unfinished.
        rest = memoryview(b"\n" + json.dumps(value).encode() + b"\n")
        with self._thread_lock:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX)
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            finally:
                fcntl.lockf(self._lock_file, fcntl.LOCK_UN)


def _work(line: bytes, lifeline_fd: int, messages_fd: int) -> None:
    os.close(lifeline_fd)
    messages = _Messages(messages_fd)
    try:
        envelope = json.loads(line)
        sys.path.extend(part for part in envelope["path"] if part not in sys.path)
        _resolve(envelope["entry"])(envelope["job"], messages.send)
    except BaseException as error:
        messages.end(error)
        raise
    messages.end()


def _resolve(entry: str) -> Entry:
    module, _, function = entry.partition(":")
    if not function:
        raise ValueError(f"entry {entry!r} is not of the form package.module:function")
    resolved: Entry = getattr(importlib.import_module(module), function)
    return resolved


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
