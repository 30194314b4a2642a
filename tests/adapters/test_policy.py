from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch

from adapters.backbones import load_backbone
from adapters.policy import AbrModelConfig, AbrPolicy, LadderError
from adapters.pools import Pool
from adapters.tokens import LAYOUTS
from player.observation import AbrObservation

#: Logits of one observation may differ by float noise between batch shapes, not more.
NOISE = 1e-5


def make_policy(
    backbone: str, seed: int = 0, layout: Literal["netllm", "forecast"] = "netllm"
) -> AbrPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AbrModelConfig(
            levels_kbps=(300, 750, 1200, 1850, 2850, 4300),
            layout=layout,
            block=3,
            feature_size=8,
            lora_rank=2,
        )
        policy = AbrPolicy(config, load_backbone(backbone))
        for key, weight in policy.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
        for weight in policy.head.parameters():
            torch.nn.init.normal_(weight, std=1.0)
    return policy


@pytest.fixture(scope="module", params=LAYOUTS)
def policy(tiny_backbone: str, request: pytest.FixtureRequest) -> AbrPolicy:
    return make_policy(tiny_backbone, layout=request.param).freeze()


@pytest.fixture(scope="module")
def observations(small_pool: Pool) -> list[AbrObservation]:
    return [
        episode.observation(index)
        for episode in small_pool.episodes[:3]
        for index in range(1, episode.chunks)
    ]


def test_equal_observations_get_equal_answers(
    policy: AbrPolicy, observations: list[AbrObservation]
) -> None:
    once, again = policy.answers(observations), policy.answers(observations)
    assert torch.equal(once, again)
    assert len({policy.decide(one) for one in observations}) > 1  # the test is not vacuous


def test_a_batch_answers_as_each_alone(
    policy: AbrPolicy, observations: list[AbrObservation]
) -> None:
    batch = policy.answers(observations)
    alone = torch.cat([policy.answers([one]) for one in observations])
    torch.testing.assert_close(batch, alone, atol=NOISE, rtol=0)
    assert policy.decide_many(observations) == [policy.decide(one) for one in observations]


def test_interleaved_sessions_answer_as_separate_instances(
    tiny_backbone: str, policy: AbrPolicy, small_pool: Pool
) -> None:
    one, two = small_pool.episodes[0], small_pool.episodes[3]
    mixed = [
        (policy.decide(one.observation(index)), policy.decide(two.observation(index)))
        for index in range(1, one.chunks)
    ]
    layout = policy.config.layout
    fresh = make_policy(tiny_backbone, layout=layout).freeze()
    other = make_policy(tiny_backbone, layout=layout).freeze()
    assert [a for a, _ in mixed] == [fresh.decide(one.observation(i)) for i in range(1, one.chunks)]
    assert [b for _, b in mixed] == [other.decide(two.observation(i)) for i in range(1, two.chunks)]


def test_a_prefix_cache_could_not_change_an_answer(policy: AbrPolicy, small_pool: Pool) -> None:
    """Within a block the window only grows, and what was computed for its prefix stays true.

    The logits of step t, computed when t was decided, are found again at t's place in the window
    of a later step of the same block: so keys and values of past tokens may be kept.
    """
    from adapters.features import stack, window_features
    from adapters.tokens import window_start

    block, layout = policy.config.block, policy.config.tokens
    episode = small_pool.episodes[0]
    compared = 0
    for later in range(block + 1, episode.chunks):
        start = window_start(later, block)
        window = stack([window_features(episode.observation(later), block)])
        steps = policy.tensors(window)
        with torch.no_grad():
            tokens = policy.encoder(steps)
            allowed = policy.get_buffer("allowed")
            hidden = policy.backbone(tokens, allowed[: tokens.shape[1], : tokens.shape[1]])
        for earlier in range(later):
            if window_start(earlier, block) != start or earlier < start:
                continue
            # The prefix that a cache would have kept after the decision before: every token but
            # the sizes of past steps, which nobody looks at.
            count = (earlier - start + 1) * layout.step_tokens
            with torch.no_grad():
                prefix = policy.backbone(tokens[:, :count], allowed[:count, :count])
            kept = [index for index in range(count) if index % layout.step_tokens != layout.read]
            torch.testing.assert_close(
                prefix[:, kept], hidden[:, kept][:, : len(kept)], atol=NOISE, rtol=0
            )
            compared += 1
    assert compared > 10


def test_the_sizes_of_past_steps_cannot_matter(policy: AbrPolicy, small_pool: Pool) -> None:
    """Training sees the sizes that past decisions saw; inference does not know them any more."""
    from adapters.features import stack, step_features, window_features
    from adapters.tokens import window_start

    episode = small_pool.episodes[1]
    index = 11
    observation = episode.observation(index)
    start = window_start(index, policy.config.block)
    seen = stack([step_features(episode.observation(step)) for step in range(start, index + 1)])
    window = window_features(observation, policy.config.block)
    with_sizes = dataclasses.replace(window, sizes=seen.sizes)
    logits = [policy(policy.tensors(stack([features])))[0, -1] for features in (window, with_sizes)]
    torch.testing.assert_close(logits[0], logits[1], atol=NOISE, rtol=0)


def test_chunk_zero_takes_the_lowest_level(policy: AbrPolicy, small_pool: Pool) -> None:
    first, later = small_pool.episodes[0].observation(0), small_pool.episodes[0].observation(9)
    assert policy.decide(first) == 0
    assert policy.decide_many([first, later]) == [0, policy.decide(later)]
    assert policy.decide_many([]) == []


def test_no_dropout_in_evaluation_and_none_in_the_frozen_model(tiny_backbone: str) -> None:
    policy = make_policy(tiny_backbone).train()
    dropping = [
        name
        for name, module in policy.backbone.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.training and module.p > 0
    ]
    assert dropping
    assert all("lora_" in name for name in dropping)
    policy.eval()
    assert not any(module.training for module in policy.modules())


def test_another_ladder_names_the_size_of_the_checkpoint(
    tiny_backbone: str, observations: list[AbrObservation]
) -> None:
    policy = make_policy(tiny_backbone).freeze()
    one = observations[0]
    short = dataclasses.replace(
        one,
        levels_kbps=one.levels_kbps[:4],
        upcoming_sizes_bytes=tuple(row[:4] for row in one.upcoming_sizes_bytes),
    )
    with pytest.raises(LadderError, match=r"4 levels, but the checkpoint was trained for .* of 6"):
        policy.decide(short)


def shorter(one: AbrObservation, levels: int) -> AbrObservation:
    return dataclasses.replace(
        one,
        levels_kbps=one.levels_kbps[:levels],
        upcoming_sizes_bytes=tuple(row[:levels] for row in one.upcoming_sizes_bytes),
        history=tuple(
            dataclasses.replace(past, level=min(past.level, levels - 1)) for past in one.history
        ),
    )


@pytest.mark.parametrize("inference", ["full", "lean"])
def test_the_forecast_layout_takes_any_ladder(
    tiny_backbone: str, observations: list[AbrObservation], inference: Literal["full", "lean"]
) -> None:
    policy = make_policy(tiny_backbone, layout="forecast").freeze(inference)
    asked = [shorter(one, levels) for one in observations[:6] for levels in (6, 2, 1, 4)]
    answers = policy.decide_many(asked)
    assert answers == [policy.decide(one) for one in asked]
    assert all(level < one.levels for level, one in zip(answers, asked, strict=True))


def test_freezing_keeps_the_answers(tiny_backbone: str, observations: list[AbrObservation]) -> None:
    policy = make_policy(tiny_backbone).eval()
    before = policy.answers(observations)
    torch.testing.assert_close(policy.freeze().answers(observations), before, atol=1e-4, rtol=1e-4)
