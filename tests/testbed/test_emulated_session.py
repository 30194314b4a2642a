"""What a session's network is asked to be; that it is, is tested with real packets elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from player.trace import Trace
from player.video import generate_video
from testbed.abr_experiment import AbrPlan, abr_experiment
from testbed.emulated_session import _shortest_s, death_notices, link_spec, session_network
from testbed.emulation import decode_plan, encode_plan
from testbed.experiment import ConfigError, parse_experiment
from testbed.links.spec import GilbertElliott, LinkChange, constant_trace
from testbed.sessions import Session, list_sessions

ARMS = [{"controller": "bba"}, {"controller": "rate"}]
DOWN = Trace("t", np.array([0.0, 5.0, 10.0]), np.array([2.0, 2.0, 4.0]))
UP = Trace("t", np.array([0.0, 20.0]), np.array([1.0, 1.0]))


def plan_of(up_trace: Trace | None = None, **keys: Any) -> AbrPlan:
    document = {"task": "abr", "arms": ARMS} | keys
    experiment = abr_experiment(parse_experiment(document, where="test"), "plans")
    video = generate_video("v", chunks=4, rng=np.random.default_rng(1))
    return AbrPlan(experiment, list_sessions(experiment, [(DOWN, 2, up_trace)]), video)


def test_all_keys_of_a_direction_arrive_in_the_link() -> None:
    plan = plan_of(
        constant_trace(1.0),
        link={
            "delay_ms": 20.0,
            "jitter_ms": 3.0,
            "jitter": "normal",
            "reorder": True,
            "gilbert_elliott": {"to_bad": 0.01, "to_good": 0.3},
            "duplicate": 0.1,
            "queue": "codel",
            "queue_packets": 50,
            "queue_bytes": 70_000,
            "ecn": True,
            "target_ms": 4.0,
            "interval_ms": 80.0,
            "replay": "opportunities",
            "at_end": "stop",
            "up": {"rate_mbps": 1.0, "loss": 0.02},
        },
    )
    link = link_spec(plan.experiment, plan.sessions[0])
    down, queue = link.down, link.down.queue
    assert (down.start_s, down.delay_ms, down.jitter_ms, down.jitter) == (5.0, 20.0, 3.0, "normal")
    assert (down.reorder, down.duplicate, down.replay, down.at_end) == (
        *(True, 0.1),
        *("opportunities", "stop"),
    )
    assert down.loss == GilbertElliott(to_bad=0.01, to_good=0.3)
    assert (queue.kind, queue.packets, queue.size_bytes, queue.ecn) == ("codel", 50, 70_000, True)
    assert (queue.target_ms, queue.interval_ms) == (4.0, 80.0)
    assert (link.up.delay_ms, link.up.loss, link.up.jitter_ms) == (20.0, 0.02, 0.0)
    assert link.up.trace is plan.sessions[0].up_trace


def test_chances_are_those_of_the_seed_and_the_trace_and_not_of_the_arm() -> None:
    plan = plan_of(link={"loss": 0.1})
    one, other = (link_spec(plan.experiment, session) for session in plan.sessions)
    assert one == other
    assert one.down.seed != one.up.seed
    again = plan_of(link={"loss": 0.1}, seed=7)
    assert link_spec(again.experiment, again.sessions[0]).down.seed != one.down.seed


def test_a_new_rate_is_one_for_the_ways_that_have_a_bottleneck() -> None:
    changes = [{"at_s": 9.0, "loss": 0.1}, {"at_s": 3.0, "rate_mbps": 2.0, "delay_ms": 5.0}]
    plan = plan_of(link={"changes": changes})
    assert link_spec(plan.experiment, plan.sessions[0]).changes == (
        LinkChange(at_s=3.0, direction="down", rate_mbps=2.0, delay_ms=5.0),
        LinkChange(at_s=3.0, direction="up", delay_ms=5.0),
        LinkChange(at_s=9.0, loss=0.1),
    )
    both = plan_of(UP, link={"changes": changes, "up": {"rate_mbps": 1.0}})
    assert link_spec(both.experiment, both.sessions[0]).changes[0].direction is None


@pytest.mark.parametrize(
    ("link", "ends_s"),
    [
        ({}, float("inf")),
        ({"at_end": "hold"}, float("inf")),
        ({"at_end": "stop"}, 5.0),
        ({"at_end": "stop", "changes": [{"at_s": 4.0, "rate_mbps": 1.0}]}, float("inf")),
        ({"at_end": "stop", "changes": [{"at_s": 6.0, "rate_mbps": 1.0}]}, 5.0),
    ],
)
def test_a_link_that_stops_does_so_at_the_end_of_its_trace(
    link: dict[str, Any], ends_s: float
) -> None:
    plan = plan_of(link=link)
    assert _shortest_s(plan.experiment, plan.sessions[0]) == ends_s


def test_a_queue_that_marks_needs_hosts_that_understand_it() -> None:
    plan = plan_of(link={"queue": "codel", "ecn": True}, hosts={"server": {"tcp": {"ecn": 2}}})
    tcp = session_network(plan.experiment, plan.sessions[0])._tcp
    assert tcp["client"].settings == {"ecn": 1}
    assert tcp["server"].settings == {"ecn": 2}


def test_hosts_have_their_own_congestion_control_or_that_of_the_link() -> None:
    plan = plan_of(link={"congestion": "reno"}, hosts={"background": {"congestion": "cubic"}})
    tcp = session_network(plan.experiment, plan.sessions[0])._tcp
    assert {name: host.congestion for name, host in tcp.items()} == {
        "server": "reno",
        "client": "reno",
        "controller": "reno",
        "background": "cubic",
    }


def test_a_plan_survives_the_way_into_the_sandbox() -> None:
    plan = plan_of(UP, network={"clients": 2, "shared_by": "all"}, link={"up": {"traces": "x"}})
    again = decode_plan(encode_plan(plan, plan.sessions, jobs=1))

    def told(session: Session) -> tuple[Any, ...]:
        up = session.up_trace
        return (
            *(session.number, session.arm, session.group, session.client, session.start_index),
            *(session.trace.name, up and up.mean_mbps),
        )

    assert list(map(told, again.sessions)) == list(map(told, plan.sessions))
    assert again.experiment == plan.experiment


def test_a_process_that_died_leaves_a_failed_record_for_each_of_its_players() -> None:
    plan = plan_of(network={"clients": 2, "shared_by": "all"})
    notices = death_notices(plan, plan.sessions, -9)
    assert [notice["session"] for notice in notices] == [0, 1, 2, 3]
    for notice in notices:
        assert notice["record"]["status"] == "failed"
        assert "signal 9" in notice["record"]["error"]


def test_a_trace_of_the_way_up_is_asked_for_once() -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        plan_of(link={"up": {"traces": "x", "rate_mbps": 1.0}})
