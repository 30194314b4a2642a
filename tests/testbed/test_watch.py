"""``testbed watch``: the page behind a link, and paced where no sandbox can be made."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import emulation_entries
import numpy as np
import pytest
from typer.testing import CliRunner

from player.browser_parts import LIBRARY
from player.trace import Trace
from testbed import cli_watch, watch
from testbed.abr_experiment import AbrPlan, abr_plan
from testbed.cli import app
from testbed.experiment import parse_experiment, plan_experiment
from testbed.links.spec import constant_trace
from testbed.pacing import LATE_S, TracePace
from testbed.sandbox import SandboxProbe
from testbed.sessions import Session
from testbed.watch import Watched
from testbed.watch_paced import PacedPartDied

MBPS = 2.0
BYTES_PER_S = MBPS * 1e6 / 8
NO_SANDBOX = SandboxProbe(None, "none of that here")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def pace_of(trace: Trace, start_s: float = 0.0) -> tuple[TracePace, Clock]:
    clock = Clock()
    return TracePace(trace, start_s, clock=clock), clock


# ---- the pace -----------------------------------------------------------------------------------


def test_nothing_waits_before_the_session_begins() -> None:
    pace, clock = pace_of(constant_trace(MBPS))
    assert pace.wait_s(10**9) == 0.0
    assert pace.start() == 0.0
    clock.now_s += 3.0
    assert pace.start() == pytest.approx(3.0)  # a page that is loaded again begins nothing


def test_bytes_wait_for_those_before_them() -> None:
    pace, clock = pace_of(constant_trace(MBPS))
    pace.start()
    with pace.transfer():
        assert pace.wait_s(250_000) == pytest.approx(1.0)
        with pace.transfer():
            assert pace.wait_s(250_000) == pytest.approx(2.0)
        clock.now_s += 1.5
        assert pace.wait_s(125_000) == pytest.approx(1.0)


def test_what_was_not_used_is_lost() -> None:
    pace, clock = pace_of(constant_trace(MBPS))
    pace.start()
    clock.now_s += 60.0
    with pace.transfer():
        assert pace.wait_s(250_000) == pytest.approx(1.0)
    clock.now_s += 60.0
    with pace.transfer():
        assert pace.wait_s(250_000) == pytest.approx(1.0)


def test_a_transfer_makes_up_for_timers_that_were_late_but_not_for_more() -> None:
    pace, clock = pace_of(constant_trace(MBPS))
    pace.start()
    with pace.transfer():
        clock.now_s += pace.wait_s(250_000) + 0.25
        assert pace.wait_s(250_000) == pytest.approx(0.75)
        clock.now_s += 60.0
        assert pace.wait_s(250_000) == pytest.approx(1.0 - LATE_S)


def test_the_rate_is_the_traces_from_where_the_session_begins() -> None:
    trace = Trace("steps", np.array([0.0, 2.0, 4.0, 6.0]), np.array([1.0, 1.0, 0.0, 4.0]))
    pace, clock = pace_of(trace, start_s=1.0)
    pace.start()
    with pace.transfer():
        assert pace.wait_s(125_000) == pytest.approx(1.0)  # 1 Mbit/s
        assert pace.wait_s(125_000) == pytest.approx(3.25)  # nothing for 2 s, then 4 Mbit/s
    clock.now_s += 5.0
    with pace.transfer():
        assert pace.wait_s(125_000) == pytest.approx(1.0)  # the trace begins again


# ---- the page -----------------------------------------------------------------------------------


class Seen(Exception):
    """The test has seen enough of the page."""


def plan_of(folder: Path, **player: Any) -> AbrPlan:
    if not LIBRARY.is_file():
        pytest.skip("no dash.js; run make setup-browser")
    trace = folder / "steady"
    trace.write_text(f"0 {MBPS}\n100 {MBPS}\n")
    document = {
        "task": "abr",
        "traces": str(trace),
        "chunks": 4,
        "player": player,
        "arms": [{"controller": "fixed", "options": {"level": 3}}],
    }
    experiment = parse_experiment(document, where="test")
    return abr_plan(plan_experiment(experiment, data_dir=None, base=Path()), "pages")


@pytest.fixture
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "probe_sandbox", lambda: NO_SANDBOX)


def ask(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, method="GET" if body is None else "POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def look_at(plan: AbrPlan, watched: Watched) -> dict[str, Any]:
    """Does what the page does; returns its settings."""
    settings: dict[str, Any] = json.loads(ask(f"{watched.url}/config.json"))
    assert b"<MPD" in ask(f"{watched.url}/{settings['manifest_url']}")
    assert json.loads(ask(f"{watched.url}/begin", b""))["link_s"] < 1.0
    bodies: list[int] = []

    def fetch(chunk: int) -> None:
        bodies.append(len(ask(f"{watched.url}/media/video/chunk-0-{chunk + 1}.m4s")))

    fetches = [threading.Thread(target=fetch, args=(chunk,)) for chunk in (0, 1)]
    began_s = time.monotonic()
    for one in fetches:
        one.start()
    for one in fetches:
        one.join()
    sizes = plan.video.sizes_bytes
    total_bytes = sizes[0][0] + sizes[1][0]
    assert sum(bodies) == total_bytes
    assert time.monotonic() - began_s >= total_bytes / BYTES_PER_S
    question = {
        "levels_kbps": list(plan.video.levels_kbps),
        "chunk_s": plan.video.chunk_s,
        "chunk_index": 0,
        "chunks_left": 4,
        "buffer_s": 0.0,
        "upcoming_sizes_bytes": [list(chunk) for chunk in sizes],
        "history": [],
    }
    answer = ask(f"{watched.url}/decide/fixed", json.dumps(question).encode())
    assert json.loads(answer)["decision"] == 3
    return settings


@pytest.mark.usefixtures("no_sandbox")
def test_media_keep_to_the_rate_together_and_controllers_answer(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    def look(watched: Watched) -> None:
        assert (watched.no_link, watched.session) == ("none of that here", plan.sessions[0])
        assert "Paced, not emulated" in look_at(plan, watched)["remark"]
        raise Seen

    with pytest.raises(Seen):
        watch.watch(plan, trace=None, port=0, on_ready=look)


@pytest.mark.emulation
def test_behind_a_link_nothing_is_remarked(tmp_path: Path) -> None:
    emulation_entries.require(network=True)
    plan = plan_of(tmp_path)

    def look(watched: Watched) -> None:
        assert watched.no_link is None
        assert look_at(plan, watched)["remark"] == ""
        raise Seen

    with pytest.raises(Seen):
        watch.watch(plan, trace=None, port=0, on_ready=look)


@pytest.mark.usefixtures("no_sandbox")
def test_a_live_event_begins_when_the_page_is_loaded(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, live={"target_latency_s": 8.0})

    def look(watched: Watched) -> None:
        settings = json.loads(ask(f"{watched.url}/config.json"))
        assert settings["live"]["start_s"] == pytest.approx(time.time() - 3.0, abs=10.0)
        manifest = ask(f"{watched.url}/{settings['manifest_url']}").decode()
        assert 'type="dynamic"' in manifest
        raise Seen

    with pytest.raises(Seen):
        watch.watch(plan, trace=None, port=0, on_ready=look)


@pytest.mark.usefixtures("no_sandbox")
def test_a_part_that_dies_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr("testbed.watch_paced.run_paced_gateway", die)
    with pytest.raises(PacedPartDied, match="the process of the page ended"):
        watch.watch(plan_of(tmp_path), trace=None, port=0, on_ready=lambda watched: None)


def test_the_command_says_that_there_is_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(
        plan: AbrPlan, *, trace: str | None, port: int, on_ready: Any, why: str | None
    ) -> None:
        session: Session = plan.sessions[0]
        on_ready(Watched("http://127.0.0.1:1", session, why))

    experiment = tmp_path / "some.toml"
    experiment.write_text('task = "abr"\nlimit = 1\n[[arms]]\ncontroller = "bba"\n')
    told = {}
    for why in (None, "none of that here"):
        monkeypatch.setattr(
            cli_watch, "watch", lambda *given, why=why, **keys: show(*given, **keys, why=why)
        )
        result = CliRunner().invoke(app, ["watch", str(experiment)])
        assert result.exit_code == 0, result.output
        told[why] = result.output
    assert "The link replays" in told[None]
    assert "Paced" not in told[None]
    assert "Paced, not emulated" in told["none of that here"]
    assert "The link replays" not in told["none of that here"]
