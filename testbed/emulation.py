"""Emulated sessions of an experiment, seen from outside the sandbox that they run in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from player.trace import Trace
from testbed.emulated_tasks import EMULATED_TASKS
from testbed.experiment import experiment_document, parse_experiment
from testbed.experiment_base import ConfigError
from testbed.links.backends import Backend, LinkUnsupported
from testbed.links.htb import ShapingError
from testbed.sandbox import SandboxError, run_in_sandbox
from testbed.session_pool import one_thread_each
from testbed.session_records import Record, record_type
from testbed.sessions import Session, StreamPlan

ENTRY = "testbed.emulation_inside:run_sessions"


@dataclass(frozen=True)
class EmulatedSession:
    """A session that ended, with what its link and its server wrote down.

    Attributes:
        record: the session.
        link_seconds: rows of ``link.jsonl``; of players that share a bottleneck, with the first.
        requests: rows of ``requests.jsonl``: the video server's access log with CMCD; likewise.
    """

    record: Record
    link_seconds: tuple[Mapping[str, Any], ...]
    requests: tuple[Mapping[str, Any], ...]


#: Errors that cross the border of the sandbox by name and are raised again outside.
_RAISED_AGAIN: Mapping[str, type[Exception]] = {
    "LinkUnsupported": LinkUnsupported,
    "ShapingError": ShapingError,
    "CongestionUnsupported": ConfigError,
    "InvalidOptions": ConfigError,
    "SwitchUnsupported": ConfigError,
    "TcpSettingUnsupported": ConfigError,
    "CongestionUnavailable": ConfigError,
    "UnknownController": ConfigError,
}


def emulate(
    plan: StreamPlan,
    sessions: Sequence[Session],
    *,
    jobs: int,
    captures: Path | None = None,
    on_session: Callable[[EmulatedSession], None],
    on_chunk: Callable[[Session, int], None],
    on_backend: Callable[[Backend], None] = lambda backend: None,
) -> None:
    """Plays the sessions in real time, ``jobs`` of them at once, inside one sandbox.

    Args:
        plan: the experiment.
        sessions: which of its sessions to play.
        jobs: players at once.
        captures: existing folder for the packets, if the experiment asks for them.
        on_session: told of every session as it ends, well or not.
        on_chunk: told of every chunk that arrives.
        on_backend: told what makes the links, before the first session.

    Raises:
        ConfigError: a controller cannot be made.
        LinkUnsupported: the kernel cannot make the link.
        ShapingError: what makes the links died.
        ContentError: there is no content for the video's ladder and it cannot be made.
        SandboxError: no sandbox can be made, or it died.
    """
    task = plan.experiment.task
    EMULATED_TASKS[task].prepare(plan)
    records: pydantic.TypeAdapter[Record] = pydantic.TypeAdapter(record_type(task, "emulated"))
    by_number = {session.number: session for session in sessions}

    def receive(message: dict[str, Any]) -> None:
        if message["kind"] == "backend":
            on_backend(Backend(message["name"], message["why"]))
            return
        session = by_number[message["session"]]
        if message["kind"] == "chunk":
            on_chunk(session, message["index"])
        else:
            on_session(
                EmulatedSession(
                    records.validate_python(message["record"]),
                    tuple(message["link_seconds"]),
                    tuple(message["requests"]),
                )
            )

    # The processes share the cores: threads of numeric libraries would only wait for each other.
    with one_thread_each(), emulation_errors():
        job = encode_plan(plan, sessions, jobs=jobs, captures=captures)
        run_in_sandbox(ENTRY, job, on_message=receive)


@contextlib.contextmanager
def emulation_errors() -> Iterator[None]:
    """Raises what went wrong inside the sandbox as what it was there, where that is known."""
    try:
        yield
    except SandboxError as error:
        known = _RAISED_AGAIN.get(error.kind or "")
        if known is None:
            raise
        raise known(str(error).removeprefix(f"{error.kind}: ")) from error


def encode_plan(
    plan: StreamPlan, sessions: Sequence[Session], *, jobs: int, captures: Path | None = None
) -> dict[str, Any]:
    """The job for the inside of the sandbox, as JSON values."""
    task = EMULATED_TASKS[plan.experiment.task]
    arms = {arm.label: number for number, arm in enumerate(plan.experiment.arms)}
    return {
        "experiment": experiment_document(plan.experiment),
        "content": task.encode(plan, sessions),
        "traces": _encode_traces(session.trace for session in sessions),
        "up_traces": _encode_traces(session.up_trace for session in sessions),
        "sessions": [
            {
                "number": session.number,
                "arm": arms[session.arm.label],
                "trace": session.trace.name,
                "start_index": session.start_index,
                "client": session.client,
                "group": session.group,
                "up_trace": session.up_trace and session.up_trace.name,
                "more": task.encode_session(session),
            }
            for session in sessions
        ],
        "jobs": jobs,
        "captures": None if captures is None else str(captures.resolve()),
    }


def decode_plan(job: Mapping[str, Any]) -> StreamPlan:
    """Inverse of :func:`encode_plan`; the plan holds the sessions to play only."""
    experiment = parse_experiment(job["experiment"], where="sandbox")
    traces, up_traces = _decode_traces(job["traces"]), _decode_traces(job["up_traces"])
    sessions = [
        Session(
            number=row["number"],
            arm=experiment.arms[row["arm"]],
            trace=traces[row["trace"]],
            start_index=row["start_index"],
            client=row["client"],
            group=row["group"],
            up_trace=up_traces.get(row["up_trace"]),
        )
        for row in job["sessions"]
    ]
    more = [row["more"] for row in job["sessions"]]
    return EMULATED_TASKS[experiment.task].decode(
        experiment, list(zip(sessions, more, strict=True)), job["content"]
    )


def _encode_traces(traces: Iterable[Trace | None]) -> dict[str, Any]:
    by_name = {trace.name: trace for trace in traces if trace is not None}
    return {
        name: [trace.times_s.tolist(), trace.rates_mbps.tolist()] for name, trace in by_name.items()
    }


def _decode_traces(document: Mapping[str, Any]) -> dict[str, Trace]:
    return {
        name: Trace(name, np.array(times), np.array(rates))
        for name, (times, rates) in document.items()
    }
