"""What a tree of real processes uses, and which process has an argument."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

from player.process_tree import TreeMeter, find_process, tree

MEMORY_MIB = 64
PATIENCE_S = 30.0
#: Says when it stands, and goes on with each line it is sent: a child that works and ends.
PROGRAM = f"""
import subprocess, sys
held = bytearray(b"x" * ({MEMORY_MIB} << 20))
print("up", flush=True)
for line in sys.stdin:
    command = "import sys, time\\nwhile time.process_time() < 0.5: pass\\nprint(1)\\ninput()"
    child = subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    print("child", flush=True)
    sys.stdin.readline()
    child.communicate(b"\\n")
    print("over", flush=True)
"""


@contextlib.contextmanager
def program(argument: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert told(process) == "up"
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str], line: str | None = None) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if line is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_children_count_and_keep_counting_when_they_have_ended() -> None:
    with program("tree") as process:
        meter = TreeMeter(process.pid)
        meter.sample()
        alone = meter.record
        assert (alone.processes, alone.cpu_s < 0.3) == (1, True)
        assert MEMORY_MIB < alone.peak_mib < MEMORY_MIB + 100
        assert told(process, "begin") == "child"
        (_, child) = tree(process.pid)
        until = time.monotonic() + PATIENCE_S
        while meter.record.cpu_s < 0.3 and time.monotonic() < until:
            meter.sample()
        busy = meter.record
        assert (busy.processes, busy.cpu_s >= 0.3) == (2, True)
        assert busy.peak_mib > alone.peak_mib
        assert told(process, "end") == "over"
        assert child not in tree(process.pid)
        meter.sample()
        assert meter.record.cpu_s >= busy.cpu_s


def test_what_was_used_before_does_not_count() -> None:
    with program("before") as process:
        used_s = tree(process.pid)[0].cpu_s
        meter = TreeMeter(process.pid)
        meter.sample()
        assert meter.record.cpu_s <= max(used_s, 0.05)


def test_a_process_is_found_by_an_argument() -> None:
    with program("--such-an-argument=7") as process:
        assert find_process("--such-an-argument=7") == process.pid
        assert find_process("--such-an-argument") is None
    assert find_process("--such-an-argument=7") is None
    assert tree(process.pid) == []
