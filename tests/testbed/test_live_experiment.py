"""Live streaming and requests given up in experiments: keys, simulated sessions, summaries."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from adapters.hindsight import Hindsight
from player.abandonment import Abandonment
from player.live import Live
from testbed.abr_experiment import AbrPlan, abr_plan
from testbed.experiment import (
    ConfigError,
    experiment_document,
    parse_experiment,
    plan_experiment,
)
from testbed.labelling import Labeller, Labels
from testbed.results import Results, summarize
from testbed.simulation import AbrSessionPlayer


def plan_of(*arms: dict[str, Any], **keys: Any) -> AbrPlan:
    document = {
        "task": "abr",
        "driver": "simulated",
        "traces": "builtin:mixed",
        "limit": 2,
        "chunks": 12,
        "arms": list(arms) or [{"controller": "fixed", "options": {"level": 4}}],
    }
    experiment = parse_experiment(document | keys, where="test")
    return abr_plan(plan_experiment(experiment, data_dir=None, base=Path()), "such plans")


def results_of(plan: AbrPlan) -> Results:
    player = AbrSessionPlayer(plan)
    return Results(
        folder=Path(),
        task="abr",
        driver="simulated",
        arms=tuple(arm.label for arm in plan.experiment.arms),
        sessions=tuple(player.play(session) for session in plan.sessions),
        link_seconds={},
        traces={},
        experiment=experiment_document(plan.experiment),
        environment={},
    )


# ---- keys ---------------------------------------------------------------------------------------


def test_the_keys_arrive_in_the_player() -> None:
    live = {"target_latency_s": 10.0, "catch_up": 0.1}
    plan = plan_of(player={"live": live, "abandon": True})
    config = plan.experiment.player_config
    assert config.live == Live(target_latency_s=10.0, catch_up=0.1)
    assert config.abandonment == Abandonment()
    document = experiment_document(plan.experiment)
    assert document["player"]["live"] == live
    assert parse_experiment(document, where="again") == plan.experiment


def test_without_the_keys_nothing_is_live_or_given_up() -> None:
    plan = plan_of()
    assert plan.experiment.player_config.live is None
    assert plan.experiment.player_config.abandonment is None
    assert "live" not in experiment_document(plan.experiment)["player"]


def test_an_empty_table_has_the_defaults() -> None:
    assert plan_of(player={"live": {}}).experiment.player_config.live == Live()


@pytest.mark.parametrize(
    ("player", "message"),
    [
        ({"live": {"latency": 3}}, "unknown key 'player.live.latency'; .* target_latency_s, catch"),
        ({"live": {"target_latency_s": 0}}, "player.live: target_latency_s must be above 0"),
        ({"live": {"catch_up": 0.6}}, "player.live: catch_up must be 0 to 0.5"),
        ({"live": {"target_latency_s": 3.9}}, "player.live.target_latency_s: .* video.chunk_s, 4"),
        ({"live": True}, r"player\.live"),
        ({"abandon": "often"}, r"player\.abandon"),
    ],
)
def test_wrong_keys(player: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(player=player)


@pytest.mark.parametrize("player", [{"live": {}}, {"abandon": True}])
def test_who_plans_for_the_known_future_is_refused(player: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'oracle' of arms plans for sessions without it"):
        plan_of({"controller": "oracle"}, player=player)
    plan = plan_of(player=player)
    for labels in (Labels(hindsight=Hindsight()), Labels(expert="oracle")):
        with pytest.raises(ConfigError, match=r"player\.live, player\.abandon"):
            Labeller(plan, labels)
    Labeller(plan, Labels(expert="bba"))


def test_requests_of_dashjs_are_not_given_up() -> None:
    arm = {"controller": "bba", "player": "dashjs"}
    document = {"task": "abr", "arms": [arm], "player": {"abandon": True}}
    with pytest.raises(ConfigError, match=r"player\.abandon: .* dash\.js plays 'bba-dashjs'"):
        parse_experiment(document, where="test")


def test_other_tasks_have_no_events() -> None:
    document = {"task": "viewport", "arms": [{"controller": "static"}], "player": {"live": {}}}
    with pytest.raises(ConfigError, match=r"unknown key 'player\.live'"):
        parse_experiment(document, where="test")


# ---- sessions -----------------------------------------------------------------------------------


def test_simulated_sessions_follow_an_event() -> None:
    results = results_of(plan_of(player={"live": {"target_latency_s": 8.0}}))
    for row in results.sessions:
        assert row.status == "ok"
        latencies = [chunk.latency_s for chunk in row.chunks if chunk.latency_s is not None]
        assert len(latencies) == 12
        assert row.latency_s == pytest.approx(sum(latencies) / 12)
        assert min(latencies) >= 8.0 - 1e-9
        # The last of 12 chunks is available 48 s after the begin of the event.
        assert row.wall_s >= 48.0 - 8.0


def test_simulated_sessions_give_up_requests_and_say_so() -> None:
    plan = plan_of(player={"abandon": True}, traces="builtin:hsdpa")
    results = results_of(plan)
    given_up = [
        chunk
        for row in results.sessions
        for chunk in row.chunks
        if chunk.abandoned_level is not None
    ]
    assert given_up
    (arm,) = summarize(results)["arms"]
    assert arm["abandoned"] == {
        "chunks": len(given_up),
        "bytes": sum(chunk.abandoned_bytes for chunk in given_up),
    }
    never = results_of(plan_of(traces="builtin:hsdpa"))
    assert "abandoned" not in summarize(never)["arms"][0]
    assert dataclasses.asdict(never.sessions[0].chunks[3])["abandoned_bytes"] == 0
