"""One contract for every registered viewport controller: valid, deterministic, without memory."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import aiohttp
import numpy as np
import pytest

from controllers import registry
from controllers.service import ControllerService
from controllers.wire import task_wire
from player.head_motion import HeadMotion
from player.head_motion_model import generate_head_motion, generate_scene
from player.head_motion_windows import observation_at, windows
from player.viewport_observation import (
    MAX_HORIZON,
    HeadPose,
    InvalidViewports,
    ViewportObservation,
    check_viewport_observation,
    check_viewports,
)

TASK = "viewport"
ONLINE = [name for name in registry.names(TASK) if not registry.needs_future(TASK, name)]


@pytest.fixture(scope="module", params=ONLINE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def controller(name: str) -> registry.Controller:
    return registry.create(TASK, name)


@pytest.fixture(scope="module")
def motions() -> list[HeadMotion]:
    scene = generate_scene(40.0, np.random.default_rng(7))
    return [
        generate_head_motion(f"user{user}", 40.0, np.random.default_rng((7, user)), scene)
        for user in range(5)
    ]


def observations(motions: list[HeadMotion], user: int) -> list[ViewportObservation]:
    motion = motions[user]
    earlier = motions[3:] if user else motions[1:]
    return [
        observation_at(motion, int(index), earlier=earlier)
        for index in windows(motion, step=20).index
    ]


def extremes(controller: registry.Controller) -> list[ViewportObservation]:
    """The corners of what can be asked, up to the steps that a learned controller foretells."""
    level, pole, back = HeadPose(0, 0, 0), HeadPose(0, 90, 0), HeadPose(180, -90, -180)
    spinning = tuple(HeadPose(0.0, 0.0, (170.0 * step) % 360 - 180) for step in range(10))
    flipping = tuple(pole if step % 2 else back for step in range(100))
    every = [
        ViewportObservation((level,), 1, 0.0),
        ViewportObservation((level,), 1, 0.0, ((level, pole),)),
        ViewportObservation((level, back), 100, 1e6, ((back,) * 102,) * 3),
        ViewportObservation((level,) * 3, 7, 2.0, ((level,) * 10,) * 4),
        ViewportObservation(spinning, 20, 5.0, (spinning * 3, (pole,) * 30)),
        ViewportObservation(flipping, 100, 9.0),
        ViewportObservation(flipping, 20, 9.0),
        ViewportObservation((back,) * 10, 20, 9.0, (((level,) * 30),) * 100),
    ]
    longest = getattr(controller, "max_horizon", MAX_HORIZON)
    return [one for one in every if one.horizon <= longest]


def test_answers_are_viewports_with_spreads_and_repeat(
    controller: registry.Controller, motions: list[HeadMotion]
) -> None:
    for observation in observations(motions, 0) + extremes(controller):
        check_viewport_observation(observation)
        answer = controller.decide(observation)
        assert check_viewports(answer, horizon=observation.horizon) == answer
        assert controller.decide(observation) == answer
        for axis in ("roll_spread_deg", "pitch_spread_deg", "yaw_spread_deg"):
            spreads = [getattr(one, axis) for one in answer]
            assert None not in spreads
            assert spreads == sorted(spreads)


def test_interleaved_sessions_answer_as_separate_instances_do(
    name: str, controller: registry.Controller, motions: list[HeadMotion]
) -> None:
    here, there = observations(motions, 0), observations(motions, 1)
    mixed = [
        (controller.decide(one), controller.decide(two))
        for one, two in zip(here, there, strict=True)
    ]
    alone, apart = registry.create(TASK, name), registry.create(TASK, name)
    assert [one for one, _ in mixed] == [alone.decide(observation) for observation in here]
    assert [two for _, two in mixed] == [apart.decide(observation) for observation in there]


def test_answers_survive_the_wire(
    controller: registry.Controller, motions: list[HeadMotion]
) -> None:
    wire = task_wire(TASK)
    for observation in [*observations(motions, 0)[:2], *extremes(controller)]:
        assert wire.read_observation(wire.write_observation(observation)) == observation
        answer = controller.decide(observation)
        document = wire.write_decision(answer, 1.0)
        read = json.loads(document)["decision"]
        assert wire.read_decision(read) == answer


def test_the_service_answers(
    name: str, controller: registry.Controller, motions: list[HeadMotion]
) -> None:
    wire = task_wire(TASK)
    observation = observations(motions, 0)[0]
    impossible = wire.write_observation(observation).replace(b'"horizon":20', b'"horizon":0')

    async def run() -> None:
        async with (
            ControllerService({(TASK, name): controller}) as service,
            aiohttp.ClientSession(await service.add_address("127.0.0.1", 0)) as http,
        ):
            path = f"/v1/{TASK}/{name}/decide"
            async with http.post(path, data=wire.write_observation(observation)) as response:
                answer = wire.read_decision((await response.json())["decision"])
            assert answer == controller.decide(observation)
            async with http.post(path, data=impossible) as response:
                assert response.status == 422
                assert (await response.json())["error"]["field"] == "horizon"
            async with http.get("/v1") as response:
                (arm,) = (await response.json())["arms"]
                assert "history" in arm["observation"]["properties"]

    asyncio.run(run())


def test_what_is_no_decision_is_left_for_the_player_to_refuse() -> None:
    wire = task_wire(TASK)
    one = {"roll_deg": 1.0, "pitch_deg": 2.0, "yaw_deg": 3.0}
    assert len(wire.read_decision([one, one])) == 2
    with pytest.raises(InvalidViewports, match="step 0"):
        check_viewports(wire.read_decision([one | {"roll_deg": float("nan")}]), horizon=1)
    for wrong in (
        [one | {"roll_deg": "1"}],
        [one | {"speed": 1.0}],
        [{"roll_deg": 1.0}],
        one,
        3,
        None,
        "\ud800",
    ):
        assert wire.read_decision(wrong) is wrong


def test_asking_for_rules_never_loads_torch() -> None:
    code = (
        "import sys; from controllers import registry; "
        "[registry.create('viewport', name) for name in ('static', 'crossuser')]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
