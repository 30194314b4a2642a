"""Parts of a session in a real browser that die or hang in the middle of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import emulation_entries
import pytest

from player.browser_parts import BrowserMissing, find_browser
from player.process_tree import Process, tree
from player.records import SessionRecord
from testbed.abr_experiment import AbrPlan, abr_plan
from testbed.emulation import emulate
from testbed.experiment import parse_experiment, plan_experiment

pytestmark = pytest.mark.emulation

CHUNKS = 8
STRUCK_AT = 3
PATIENCE_S = 10.0


@pytest.fixture
def plan(tmp_path: Path) -> AbrPlan:
    """One session of the lowest level, of about a second per chunk."""
    try:
        find_browser()
    except BrowserMissing as missing:
        pytest.skip(str(missing))
    emulation_entries.require(network=True)
    trace = tmp_path / "slow"
    trace.write_text("0 1\n100 1\n")
    document = {
        "task": "abr",
        "driver": "emulated",
        "traces": str(trace),
        "chunks": CHUNKS,
        "player": {"fallback": "fixed", "decision_timeout_s": 2.0},
        "arms": [{"controller": "fixed", "player": "dashjs"}],
    }
    experiment = parse_experiment(document, where="test")
    return abr_plan(plan_experiment(experiment, data_dir=None, base=Path()), "such plans")


def play(plan: AbrPlan, strike: Callable[[], None]) -> SessionRecord:
    """The record of a session in the middle of which something happens."""
    ended: list[SessionRecord] = []
    emulate(
        plan,
        plan.sessions,
        jobs=1,
        on_session=lambda session: ended.append(session.record),  # type: ignore[arg-type]
        on_chunk=lambda _, index: strike() if index == STRUCK_AT else None,
    )
    (record,) = ended
    return record


def named(name: str) -> list[Process]:
    """Processes below this one with a name, the oldest first."""
    found = [one for one in tree(os.getpid()) if name_of(one) == name[:15]]
    return sorted(found, key=lambda process: process.started)


def name_of(process: Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    except OSError:  # it has ended
        return ""


def wait_for_the_end_of(processes: Sequence[Process]) -> None:
    until = time.monotonic() + PATIENCE_S
    while left := [one.pid for one in processes if Path(f"/proc/{one.pid}").exists()]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_chromium_killed_in_mid_session_fails_the_session_and_leaves_nothing(plan: AbrPlan) -> None:
    seen: list[Process] = []

    def strike() -> None:
        seen.extend(tree(named("chromium")[0].pid))
        os.kill(seen[0].pid, signal.SIGKILL)

    before = {one.pid for one in tree(os.getpid())}
    record = play(plan, strike)
    assert (record.status, record.error) == ("failed", "BrowserFailed: Chromium died")
    assert STRUCK_AT < len(record.chunks) < CHUNKS
    assert len(seen) > 1
    wait_for_the_end_of(seen)
    wait_for_the_end_of([one for one in tree(os.getpid()) if one.pid not in before])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_controller_that_dies_or_hangs_is_replaced_by_the_fallback(
    plan: AbrPlan, number: signal.Signals
) -> None:
    def strike() -> None:
        for process in named("serve_controllers"):
            os.kill(process.pid, number)

    record = play(plan, strike)
    assert (record.status, record.error) == ("ok", None)
    decided = [chunk.fallback for chunk in record.chunks]
    assert len(decided) == CHUNKS
    assert not any(decided[:STRUCK_AT])
    assert all(decided[STRUCK_AT + 2 :])  # the two before may have been decided when it struck
    assert record.browser is not None
    assert record.browser.cpu_s > 0
    assert record.browser.processes > 1
