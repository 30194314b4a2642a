"""Emulated sessions of task ``scheduling``, seen from outside the sandbox that they run in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic

from testbed.emulation import EmulatedSession, emulation_errors
from testbed.experiment import experiment_document
from testbed.links.backends import Backend
from testbed.sandbox import run_in_sandbox
from testbed.scheduling_plans import SchedulingPlan, SchedulingSession
from testbed.scheduling_records import SchedulingSessionRecord
from testbed.session_pool import one_thread_each

ENTRY = "testbed.scheduling_emulation_inside:run_sessions"

_RECORD = pydantic.TypeAdapter(SchedulingSessionRecord)


def emulate_cluster(
    plan: SchedulingPlan,
    sessions: Sequence[SchedulingSession],
    *,
    on_session: Callable[[EmulatedSession], None],
    on_progress: Callable[[SchedulingSession, float], None],
    on_backend: Callable[[Backend], None],
) -> None:
    """Runs the sessions one after another, on one network inside one sandbox.

    Args:
        plan: the experiment.
        sessions: which of its sessions to run.
        on_session: told of every session as it ends, well or not.
        on_progress: told which share of its tasks are finished.
        on_backend: told what makes the links, before the first session.

    Raises:
        ConfigError: a controller cannot be made.
        LinkUnsupported: the kernel cannot make the links.
        ShapingError: what makes the links died.
        SandboxError: no sandbox can be made, or it died.
    """
    by_number = {session.number: session for session in sessions}

    def receive(message: Mapping[str, Any]) -> None:
        match message["kind"]:
            case "backend":
                on_backend(Backend(message["name"], message["why"]))
            case "progress":
                on_progress(by_number[message["session"]], message["share"])
            case "session":
                record = _RECORD.validate_python(message["record"])
                on_session(EmulatedSession(record, tuple(message["link_seconds"]), ()))

    job = {
        "experiment": experiment_document(plan.experiment),
        "data_dir": None if plan.data_dir is None else str(plan.data_dir.resolve()),
        "base": str(plan.base.resolve()),
        "sessions": list(by_number),
    }
    with one_thread_each(), emulation_errors():
        run_in_sandbox(ENTRY, job, on_message=receive)
