"""dash.js follows a live event behind a real link, and its record says how far behind it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import emulation_entries
import pytest

from player.browser_parts import BrowserMissing, find_browser
from testbed.abr_experiment import abr_plan
from testbed.emulation import encode_plan
from testbed.experiment import parse_experiment, plan_experiment
from testbed.sandbox import run_in_sandbox

TARGET_S = 5.0
SLACK_S = 3.0  # of a busy machine


@pytest.mark.emulation
def test_a_live_session_behind_a_link(tmp_path: Path) -> None:
    try:
        find_browser()
    except BrowserMissing as missing:
        pytest.skip(str(missing))
    emulation_entries.require(network=True)
    (tmp_path / "steady").write_text("0 8\n100 8\n")
    document = {
        "task": "abr",
        "traces": str(tmp_path / "steady"),
        "chunks": 3,
        "player": {"kind": "dashjs", "live": {"target_latency_s": TARGET_S, "catch_up": 0.05}},
        "arms": [{"controller": "rate"}],
    }
    experiment = parse_experiment(document, where="test")
    plan = abr_plan(plan_experiment(experiment, data_dir=None, base=Path()), "such plans")
    messages: list[dict[str, Any]] = []
    run_in_sandbox(
        "testbed.emulation_inside:run_sessions",
        encode_plan(plan, plan.sessions, jobs=1),
        on_message=messages.append,
    )
    (ended,) = [message for message in messages if message["kind"] == "session"]
    record, requests = ended["record"], ended["requests"]
    assert (record["status"], record["error"], record["player"]) == ("ok", None, "dashjs")
    media = [request for request in requests if request["path"].endswith(".m4s")]
    assert [request["path"].split("/", 3)[3] for request in media] == [
        f"video/chunk-{chunk['level']}-{chunk['index'] + 1}.m4s" for chunk in record["chunks"]
    ]
    assert {request["status"] for request in media} == {200}
    assert record["latency_s"] == pytest.approx(TARGET_S, abs=SLACK_S)
    assert record["latency_s"] == pytest.approx(
        sum(chunk["latency_s"] for chunk in record["chunks"]) / 3
    )
