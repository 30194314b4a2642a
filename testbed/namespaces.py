"""Network namespaces for processes and sockets of this program, without any outside tool.

Linux only: ``namespaces(7)``, ``network_namespaces(7)``, ``prctl(2)``. Python has ``os.setns`` from
3.12 on; here the C library is called, with its error number checked.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>, <linux/sockios.h>, <linux/if.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_TIMERSLACK = 29
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1
IFREQ_FLAGS = struct.Struct("16sH14x")


class NamespaceError(OSError):
    """The kernel refused to make, enter or set up a namespace."""


def _call(what: str, name: str, *args: object) -> None:
    """Calls a C function that answers 0 or -1 with errno.

    Raises:
        NamespaceError: it answered -1; carries errno and ``what``.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*args) != 0:
        number = ctypes.get_errno()
        raise NamespaceError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mounts a file system in this mount namespace.

    Raises:
        NamespaceError: the kernel refused.
    """
    _call(
        f"mounting {kind} on {target}",
        "mount",
        source.encode(),
        target.encode(),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )


def mount_sysfs() -> bool:
    """Mounts a sysfs that shows this network namespace on /sys; returns whether that was allowed.

    Containers often forbid it. Nothing here depends on it: it makes ``/sys/class/net`` match.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    for extra in (0, MS_RDONLY):
        try:
            mount("sysfs", "/sys", "sysfs", flags | extra)
        except NamespaceError as error:
            log.debug("%s", error)
        else:
            return True
    return False


def set_parent_death_signal(parent_pid: int) -> None:
    """Has this process killed when its parent dies; ends it at once if that has happened already.

    The parent is, strictly, the thread that forked this process.
    """
    _call("prctl", "prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def set_process_name(name: str) -> None:
    """Sets what ``ps`` and ``/proc/PID/comm`` call this process: the first 15 bytes."""
    _call("prctl", "prctl", PR_SET_NAME, name.encode(), 0, 0, 0)


def set_timer_slack_ns(slack_ns: int) -> None:
    """Sets by how much the kernel may delay this thread's timers (50 µs by default)."""
    _call("prctl", "prctl", PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0)


def enter_network(pid: int) -> None:
    """Moves the calling thread into the network namespace of process ``pid``.

    Raises:
        NamespaceError: there is no such process, or it may not be entered.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(error.errno, f"network namespace of process {pid}: {error}") from error
    try:
        _call(f"entering the network namespace of process {pid}", "setns", descriptor, CLONE_NEWNET)
    finally:
        os.close(descriptor)


def bring_up(interface: str) -> None:
    """Sets an interface of this network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, SIOCGIFFLAGS, IFREQ_FLAGS.pack(interface.encode(), 0))
        flags = IFREQ_FLAGS.unpack(request)[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, IFREQ_FLAGS.pack(interface.encode(), flags | IFF_UP))


def unshare_network() -> None:
    """Moves this process into a fresh network namespace with ``lo`` up.

    It gets its own mounts too, so that ``/sys/class/net`` can match. Only the calling thread and
    what it starts afterwards move: call it before there are other threads.

    Raises:
        NamespaceError: the kernel refused (outside of a sandbox that takes root).
    """
    _call("making a network namespace", "unshare", CLONE_NEWNET | CLONE_NEWNS)
    bring_up("lo")
    mount_sysfs()


def in_network_of(pid: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function inside the network namespace of ``pid``, in a short-lived thread.

    A socket stays in the namespace where it was made, so what the function returns can be used
    from here. Whatever the function raises is raised here.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def visit() -> None:
        try:
            enter_network(pid)
            results.append(function(*args, **kwargs))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=visit, name=f"in-network-of-{pid}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def socket_in(pid: int, address: str, port: int, *, backlog: int = 128) -> socket.socket:
    """A listening TCP socket inside the network namespace of process ``pid``.

    Args:
        pid: any process in that namespace.
        address: IPv4 or IPv6 address to bind.
        port: port to bind, 0 for any free one.
        backlog: connections that may wait to be accepted.

    Returns:
        The socket; this process can accept on it while it stays in its own namespace.

    Raises:
        NamespaceError: the namespace cannot be entered.
        OSError: the address or port cannot be bound.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen() -> socket.socket:
        return socket.create_server((address, port), family=family, backlog=backlog)

    return in_network_of(pid, listen)


class Child:
    """A forked process; as a context manager it is killed and reaped at the end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process ends, for ``select`` and ``poll``."""
        return self._pidfd

    def wait(self, timeout_s: float | None = None) -> int:
        """Waits for the end of the process.

        Returns:
            Its exit status, or minus the signal that killed it.

        Raises:
            TimeoutError: it still runs after ``timeout_s``.
        """
        if self._returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(None if timeout_s is None else max(timeout_s, 0.0) * 1000):
                raise TimeoutError(f"process {self.pid} still runs after {timeout_s} s")
            self._reap()
        assert self._returncode is not None  # set by _reap
        return self._returncode

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self._returncode = os.waitstatus_to_exitcode(status)
        os.close(self._pidfd)

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        try:
            self.wait(timeout_s=0.0)
        except TimeoutError:
            return True
        return False

    def kill(self) -> None:
        """Kills the process, if it still runs, and reaps it."""
        if self._returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._reap()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def fork_into(
    pid: int | None, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
) -> Child:
    """Forks a process that runs one function inside the network namespace of ``pid``.

    There is no exec, so whatever is imported or loaded here is shared. The child is killed when
    the thread that called this ends, and never returns into the caller's code. It is listed under
    the function's name.

    Args:
        pid: any process in that namespace; None stays in this one.
        function: what to run; the exit status is 0 when it returns, 1 when it raises (the
            traceback goes to stderr), or what it gave to ``sys.exit``.
        *args: handed to the function.
        **kwargs: handed to the function.

    Raises:
        NamespaceError: there is no such process.
    """
    parent_pid = os.getpid()
    if pid is not None and not os.path.exists(f"/proc/{pid}/ns/net"):
        raise NamespaceError(3, f"network namespace of process {pid}: no such process")
    sys.stdout.flush()
    sys.stderr.flush()
    child_pid = os.fork()
    if child_pid:
        return Child(child_pid)
    status = 1
    try:
        set_parent_death_signal(parent_pid)
        set_process_name(getattr(function, "__name__", "testbed").strip("_"))
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if pid is not None:
            enter_network(pid)
        function(*args, **kwargs)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)  # whatever happens, the child does not return into the caller's code


def sleep_until(at_s: float) -> None:
    """Sleeps until ``time.monotonic()`` shows ``at_s``."""
    time.sleep(max(at_s - time.monotonic(), 0.0))
