"""dash.js as a player of experiments: keys, a real session behind a link, the report's table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import emulation_entries
import pytest

from player import browser_parts
from player.browser_parts import BrowserMissing, find_browser
from player.records import ChunkRecord, LinkRecord, SessionRecord
from testbed.abr_experiment import AbrPlan, abr_plan
from testbed.browser_emulation import seconds_mbps
from testbed.browser_views import player_table
from testbed.doctor import _browser
from testbed.emulation import encode_plan
from testbed.experiment import ConfigError, parse_experiment, plan_experiment
from testbed.links.spec import constant_trace
from testbed.results import Results
from testbed.sandbox import run_in_sandbox
from testbed.watch import session_on
from testbed.watch_gateway import page_settings

PICTURES = Path(__file__).parent.parent.parent / "results" / "pictures"


def plan_of(*arms: dict[str, Any], traces: str = "builtin:mixed", **keys: Any) -> AbrPlan:
    document = {"task": "abr", "traces": traces, "limit": 1, "chunks": 4, "arms": list(arms)}
    experiment = parse_experiment(document | keys, where="test")
    return abr_plan(plan_experiment(experiment, data_dir=None, base=Path()), "such plans")


def require_browser() -> None:
    try:
        find_browser()
    except BrowserMissing as missing:
        pytest.skip(str(missing))


# ---- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "keys", "message"),
    [
        ({"controller": "dashjs-bola"}, {}, "set player = 'dashjs'"),
        (
            {"controller": "dashjs-bola", "options": {"a": 1}},
            {"player": {"kind": "dashjs"}},
            "no options",
        ),
        (
            {"controller": "bba", "player": "dashjs"},
            {"driver": "simulated"},
            "use driver = 'emulated'",
        ),
        ({"controller": "bba", "player": "shaka"}, {}, "'headless' or 'dashjs'"),
    ],
)
def test_wrong_keys(arm: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(arm, **keys)


def test_other_tasks_have_one_player() -> None:
    arm = {"controller": "static", "player": "dashjs"}
    with pytest.raises(ConfigError, match="only task 'abr' has several"):
        parse_experiment({"task": "viewport", "arms": [arm]}, where="test")


def test_a_missing_browser_is_told_when_the_experiment_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = browser_parts.PAGE_FOLDER / "vendor" / "nothing.js"
    monkeypatch.setattr(browser_parts, "LIBRARY", nowhere)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Chromium .*dash\.js .*make setup-browser"):
        plan_of({"controller": "bba", "player": "dashjs"})
    check = _browser()
    assert not check.ok
    assert "make setup-browser" in check.detail
    plan_of({"controller": "bba"})  # needs none


def test_arms_of_both_players_have_names_of_their_own() -> None:
    document = {
        "task": "abr",
        "arms": [
            {"controller": "bba"},
            {"controller": "bba", "player": "dashjs"},
            {"controller": "dashjs-l2a", "player": "dashjs"},
        ],
    }
    experiment = parse_experiment(document, where="test")
    assert [arm.label for arm in experiment.arms] == ["bba", "bba-dashjs", "dashjs-l2a"]
    assert [experiment.is_remote(arm) for arm in experiment.arms] == [True, True, False]


def test_the_rate_of_each_second() -> None:
    assert seconds_mbps(constant_trace(2.0), 0.0)[0] == pytest.approx(2.0)


def test_the_menu_of_a_watched_session() -> None:
    plan = plan_of({"controller": "bba"}, {"controller": "rate"}, player={"fallback": "bba"})
    settings = page_settings(plan, session_on(plan, None))
    assert [arm.name for arm in settings.arms][:3] == ["bba", "rate", "dashjs-dynamic"]
    asked = settings.arms[1].asked
    assert asked is not None
    assert (asked.url, asked.fallback_url) == ("decide/rate", "fallback")
    with pytest.raises(ConfigError, match="there is no trace 'x'; there are mixed-00-fcc"):
        session_on(plan, "x")


# ---- the report ---------------------------------------------------------------------------------


def session(arm: str, player: str, qoe: float, stall_s: float) -> SessionRecord:
    chunk = ChunkRecord(0, 0, 300.0, 10**5, 0.0, 1.0, 800.0, 4.0, 0.5, 0.0, False, 0.3)
    later = dataclasses.replace(chunk, index=1, rebuffer_s=stall_s)
    return SessionRecord(
        arm=arm,
        controller="bba",
        trace="t",
        seed=0,
        driver="emulated",
        status="ok",
        error=None,
        qoe_per_chunk=qoe,
        startup_s=0.5,
        wall_s=2.0,
        start_index=1,
        link=LinkRecord(backend="userspace"),
        chunks=(chunk, later),
        player=player,
        starved_s=0.25 if player == "dashjs" else 0.0,
    )


def test_players_of_the_same_controller_stand_side_by_side() -> None:
    arms = [{"controller": "bba"}, {"controller": "bba", "player": "dashjs"}]
    rows = (session("bba", "headless", 2.0, 0.0), session("bba-dashjs", "dashjs", 1.9, 0.5))
    run = Results(
        folder=Path(),
        task="abr",
        driver="emulated",
        arms=("bba", "bba-dashjs"),
        sessions=rows,
        link_seconds={},
        traces={},
        experiment={"arms": arms},
        environment={},
    )
    (row,) = player_table(run).rows
    assert row[:5] == ("bba", "1", "2.000", "1.900", "−0.100")
    assert row[6] == "−5.0"
    assert row[-3:] == ("0.00", "0.50", "0.25")
    alone = dataclasses.replace(run, arms=("bba",), sessions=rows[:1])
    assert player_table(alone).rows == ()


# ---- behind a link ------------------------------------------------------------------------------


@pytest.mark.emulation
def test_a_session_behind_a_link(tmp_path: Path) -> None:
    require_browser()
    emulation_entries.require(network=True)
    trace = tmp_path / "steady"
    trace.write_text("0 4\n100 4\n")
    plan = plan_of(
        {"controller": "bba", "player": "dashjs"}, traces=str(trace), link={"delay_ms": 10.0}
    )
    PICTURES.mkdir(parents=True, exist_ok=True)
    picture = PICTURES / "player.png"
    picture.unlink(missing_ok=True)
    job = {"plan": encode_plan(plan, plan.sessions, jobs=1), "picture": str(picture)}
    messages: list[dict[str, Any]] = []
    run_in_sandbox("browser_entries:run_with_picture", job, on_message=messages.append)
    (ended,) = [message for message in messages if message["kind"] == "session"]
    record, requests = ended["record"], ended["requests"]
    assert (record["status"], record["error"], record["player"]) == ("ok", None, "dashjs")
    paths = [request["path"] for request in requests]
    assert [path for path in paths if path.endswith(".m4s")] == [
        f"/video/chunk-{chunk['level']}-{chunk['index'] + 1}.m4s" for chunk in record["chunks"]
    ]
    assert {request["arm"] for request in requests} == {"bba-dashjs"}
    assert all(chunk["decision_s"] > 0 for chunk in record["chunks"][1:])
    assert not any("dash.all" in path for path in paths)  # the library did not cross the link
    assert picture.stat().st_size > 10_000
