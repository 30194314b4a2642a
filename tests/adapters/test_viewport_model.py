"""Learned viewport predictors: what they are told, symmetries, batches, the language model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from adapters.backbones import BackboneError, load_backbone
from adapters.viewport_features import (
    HISTORY,
    HORIZON,
    TOLD,
    HorizonError,
    ImageFeaturesError,
    inputs_of,
)
from adapters.viewport_model import Crowd, CrowdNetwork, ViewportModelConfig, answer_loss
from adapters.viewport_policy import ViewportPolicy
from player.angles import wrap_deg
from player.head_motion import HeadMotion
from player.head_motion_model import generate_head_motion, generate_scene
from player.head_motion_windows import observation_at
from player.viewport_observation import (
    HeadPose,
    Viewport,
    ViewportObservation,
    check_viewports,
)

SMALL = ViewportModelConfig(
    members=2,
    hidden_size=16,
    layers=2,
    heads=2,
    viewer_size=8,
    feature_size=8,
    nearest=3,
    lora_rank=2,
    lora_alpha=4.0,
)
GRU = dataclasses.replace(SMALL, network="gru", members=1)
FRAME = dataclasses.replace(SMALL, image_size=5)


@pytest.fixture(scope="module")
def motions() -> list[HeadMotion]:
    scene = generate_scene(30.0, np.random.default_rng(3))
    return [
        generate_head_motion(f"user{user}", 30.0, np.random.default_rng((3, user)), scene)
        for user in range(6)
    ]


@pytest.fixture(scope="module")
def asked(motions: list[HeadMotion]) -> list[ViewportObservation]:
    """Without earlier viewers, and with one, two, and five."""
    return [
        observation_at(motions[0], index, earlier=motions[1 : 1 + viewers])
        for index, viewers in ((20, 0), (40, 1), (60, 5), (70, 2), (80, 0), (90, 5))
    ]


def drawn(config: ViewportModelConfig, backbone: str | None = None) -> ViewportPolicy:
    """A predictor with random weights, none of which is left at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        policy = ViewportPolicy(config, None if backbone is None else load_backbone(backbone))
        for parameter in policy.parameters():
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return policy


@pytest.fixture(scope="module", params=["networks", "gru", "language model"])
def policy(request: pytest.FixtureRequest, tiny_backbone: str) -> ViewportPolicy:
    config = GRU if request.param == "gru" else SMALL
    backbone = tiny_backbone if request.param == "language model" else None
    return drawn(config, backbone).freeze("auto")


def angles(viewports: tuple[Viewport, ...]) -> np.ndarray:
    return np.array([(one.roll_deg, one.pitch_deg, one.yaw_deg) for one in viewports])


def turned(observation: ViewportObservation, by_deg: float) -> ViewportObservation:
    def turn(poses: tuple[HeadPose, ...]) -> tuple[HeadPose, ...]:
        return tuple(one._replace(yaw_deg=wrap_deg(one.yaw_deg + by_deg)) for one in poses)

    return dataclasses.replace(
        observation,
        history=turn(observation.history),
        earlier=tuple(map(turn, observation.earlier)),
    )


def mirrored(observation: ViewportObservation) -> ViewportObservation:
    def mirror(poses: tuple[HeadPose, ...]) -> tuple[HeadPose, ...]:
        return tuple(HeadPose(-one.roll_deg, one.pitch_deg, -one.yaw_deg) for one in poses)

    return dataclasses.replace(
        observation,
        history=mirror(observation.history),
        earlier=tuple(map(mirror, observation.earlier)),
    )


def test_what_is_told_of_earlier_viewers(asked: list[ViewportObservation]) -> None:
    inputs = inputs_of(asked)
    assert inputs.others.shape == (6, 5, TOLD, 3)
    assert inputs.absent.sum(1).tolist() == [5, 4, 0, 3, 5, 0]
    one = asked[2]
    now, theirs = np.array(one.history[-1]), np.array(one.earlier[1])
    told = inputs.others[2, 1].numpy()
    np.testing.assert_allclose(told[3], wrap_deg(theirs[HISTORY - 1] - now), atol=1e-4)
    np.testing.assert_allclose(told[-1], wrap_deg(theirs[-1] - now), atol=1e-4)
    assert not inputs.others[1, 1:].any()


def test_a_new_predictor_says_no_motion(
    asked: list[ViewportObservation], tiny_backbone: str
) -> None:
    policies = (ViewportPolicy(GRU), ViewportPolicy(SMALL, load_backbone(tiny_backbone)))
    for policy in policies:
        moved, spreads = policy.freeze().foretell(inputs_of(asked))
        assert not moved.any()
        assert (spreads > 0).all()


def test_a_language_model_begins_by_adding_nothing(
    asked: list[ViewportObservation], tiny_backbone: str
) -> None:
    alone = drawn(SMALL).freeze()
    both = ViewportPolicy(SMALL, load_backbone(tiny_backbone))
    both.networks.load_state_dict(alone.networks.state_dict())
    inputs = inputs_of(asked)
    for one, other in zip(alone.foretell(inputs), both.freeze().foretell(inputs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert not np.allclose(drawn(SMALL, tiny_backbone).freeze().foretell(inputs)[0], one)


def test_a_batch_answers_as_each_alone(
    policy: ViewportPolicy, asked: list[ViewportObservation]
) -> None:
    together = policy.decide_many(asked)
    for one, answer in zip(asked, together, strict=True):
        alone = policy.decide(one)
        assert check_viewports(answer, horizon=HORIZON) == answer
        assert policy.decide(one) == alone
        np.testing.assert_allclose(angles(answer), angles(alone), atol=1e-4)
    reverse = policy.decide_many(asked[::-1])[::-1]
    for answer, other in zip(together, reverse, strict=True):
        np.testing.assert_allclose(angles(answer), angles(other), atol=1e-4)


@pytest.mark.parametrize("by_deg", [90.0, 179.0, -133.7, 360.0])
def test_who_is_turned_gets_the_answer_turned(
    policy: ViewportPolicy, asked: list[ViewportObservation], by_deg: float
) -> None:
    for one in asked:
        straight, other = angles(policy.decide(one)), angles(policy.decide(turned(one, by_deg)))
        apart = wrap_deg(other - straight - [0.0, 0.0, by_deg])
        np.testing.assert_allclose(apart, 0, atol=2e-3)


def test_a_mirror_image_gets_the_answer_mirrored(
    policy: ViewportPolicy, asked: list[ViewportObservation]
) -> None:
    for one in asked:
        straight, other = angles(policy.decide(one)), angles(policy.decide(mirrored(one)))
        np.testing.assert_allclose(wrap_deg(straight * [-1, 1, -1] - other), 0, atol=1e-4)


def test_histories_of_other_lengths(policy: ViewportPolicy, motions: list[HeadMotion]) -> None:
    whole = observation_at(motions[0], 60, earlier=motions[1:3])
    long = observation_at(motions[0], 60, history=30, earlier=motions[1:3])
    np.testing.assert_allclose(angles(policy.decide(whole)), angles(policy.decide(long)), atol=1e-3)
    for known in (1, 4):
        short = observation_at(motions[0], 60, history=known, earlier=motions[1:3])
        first = short.history[0]
        padded = dataclasses.replace(
            short,
            history=(first,) * (HISTORY - known) + short.history,
            earlier=tuple((one[0],) * (HISTORY - known) + one for one in short.earlier),
        )
        assert policy.decide(short) == policy.decide(padded)


def test_horizons(policy: ViewportPolicy, motions: list[HeadMotion]) -> None:
    alone = observation_at(motions[0], 60)
    cut = policy.decide(dataclasses.replace(alone, horizon=7))
    assert cut == policy.decide(alone)[:7]
    social = observation_at(motions[0], 60, horizon=7, earlier=motions[1:])
    assert len(policy.decide(social)) == 7
    with pytest.raises(HorizonError, match="21 steps are asked for; the model foretells 20"):
        policy.decide(observation_at(motions[0], 60, horizon=21))


def test_who_is_not_there_changes_nothing(
    policy: ViewportPolicy, asked: list[ViewportObservation]
) -> None:
    """Viewers in another order, and beside rows that have more of them."""
    crowded = asked[2]
    shuffled = dataclasses.replace(crowded, earlier=crowded.earlier[::-1])
    np.testing.assert_allclose(
        angles(policy.decide(crowded)), angles(policy.decide(shuffled)), atol=1e-4
    )


def test_our_own_pass_answers_as_the_library_does(
    asked: list[ViewportObservation], tiny_backbone: str
) -> None:
    lean = drawn(SMALL, tiny_backbone).freeze("auto")
    full = drawn(SMALL, tiny_backbone).freeze("full")
    assert (lean.inference, full.inference) == ("lean", "full")
    for one, other in zip(lean.decide_many(asked), full.decide_many(asked), strict=True):
        np.testing.assert_allclose(angles(one), angles(other), atol=1e-3)


def test_image_features_are_a_token(asked: list[ViewportObservation], tiny_backbone: str) -> None:
    policy = drawn(FRAME, tiny_backbone).freeze("auto")
    one = asked[2]
    seen = [
        dataclasses.replace(one, image_features=features)
        for features in ((1.0, 2.0, 3.0, 4.0, 5.0), (5.0, 4.0, 3.0, 2.0, 1.0))
    ]
    answers = [angles(policy.decide(each)) for each in (one, *seen)]
    assert np.abs(answers[1] - answers[2]).max() > 1e-4
    together = policy.decide_many([seen[0], one, seen[1]])
    for answer, alone in zip(together, (answers[1], answers[0], answers[2]), strict=True):
        np.testing.assert_allclose(angles(answer), alone, atol=1e-4)
    with pytest.raises(ImageFeaturesError, match="takes 5 values, here are 2"):
        policy.decide(dataclasses.replace(one, image_features=(1.0, 2.0)))
    blind = drawn(SMALL, tiny_backbone).freeze("auto")  # was made without, so takes none
    assert blind.decide(seen[0]) == blind.decide(one)
    with pytest.raises(ValueError, match="needs a language model"):
        ViewportPolicy(FRAME)


def test_nobody_is_the_limit_of_viewers_far_away(asked: list[ViewportObservation]) -> None:
    """The share of the attention that falls on viewers goes to zero with their distance."""
    network = drawn(SMALL).networks[0]
    assert isinstance(network, CrowdNetwork)
    inputs = inputs_of(asked[2:3])
    own = inputs.own()
    crowd = Crowd.of(inputs)
    far = dataclasses.replace(crowd, distance=crowd.distance + 1e5)
    gone = dataclasses.replace(crowd, absent=torch.ones_like(crowd.absent))
    with torch.no_grad():
        pooled, _ = network._pool(own, far)
        nothing, summary = network._pool(own, gone)
    assert torch.allclose(pooled, torch.zeros_like(pooled), atol=1e-6)
    assert not nothing.any()
    assert torch.allclose(summary, torch.zeros_like(summary), atol=1e-6)


def test_loss_is_the_error_either_way_round() -> None:
    answers = torch.zeros(2, 3, HORIZON, 3, 2)
    answers[..., 0] = 17.5  # 175 degrees
    loss = answer_loss(answers, torch.full((3, HORIZON, 3), -175.0), 0.0)
    assert float(loss) == pytest.approx(10.0, abs=1e-3)


def test_what_cannot_be_is_refused(tiny_backbone: str) -> None:
    for wrong in ({"members": 0}, {"dropout": 1.0}, {"image_size": -1}, {"nearest": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(SMALL, **wrong)
    with pytest.raises(BackboneError, match="positions"):
        ViewportPolicy(dataclasses.replace(SMALL, nearest=500), load_backbone(tiny_backbone))
