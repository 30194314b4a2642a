"""Training Pensieve's policy: the environment, the curriculum, and a tiny training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="needs the extra 'rl': stable-baselines3")

from stable_baselines3.common.vec_env import VecEnv

from adapters.pensieve import (
    PENSIEVE_FORMAT,
    PensieveActor,
    PensieveConfig,
    PensievePolicy,
    state_size,
    states_of,
)
from adapters.pensieve_curriculum import (
    MEANS_MBPS,
    PROMOTED_SHARE,
    TRACES_EACH,
    VARIATIONS,
    Curriculum,
    environments,
    shaped,
)
from adapters.pensieve_env import (
    AHEAD_S,
    FIRST_SPREAD,
    MAX_STALL_S,
    MIN_SPREAD,
    RewardScale,
    SessionsEnv,
    Source,
    TraceDraw,
    TrainingDataError,
    clipped,
)
from adapters.pensieve_training import PensieveTraining, Validation, train_pensieve
from controllers.registry import create
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.simulated import play_simulated
from player.trace import Trace
from player.video import generate_video

VIDEO = generate_video("one", chunks=9, rng=np.random.default_rng(1))
OTHER = generate_video("two", chunks=9, rng=np.random.default_rng(2))
B = 6
STATE = state_size(6)


@pytest.fixture
def draw(small_traces: dict[str, Trace]) -> TraceDraw:
    first, *rest = small_traces.values()
    return TraceDraw([Source("first", (first,)), Source("rest", tuple(rest))])


def make_env(draw: TraceDraw, seed: int = 0) -> SessionsEnv:
    return SessionsEnv([VIDEO, OTHER], draw, sessions=B, seed=seed)


def constant(mbps: float, name: str = "constant") -> Trace:
    return Trace(name, np.arange(400.0), np.full(400, mbps))


def test_the_environment_equals_the_player_machine(draw: TraceDraw) -> None:
    """Two batches of sessions, on two videos: states, rewards and ends."""
    env, rng = make_env(draw), np.random.default_rng(9)
    seen = env.reset()
    for video in (VIDEO, OTHER):
        link, spread = env._link.copy(), env._spread.copy()
        start_s = env._start_s.copy()
        levels = rng.integers(video.levels, size=(B, env.decisions))
        shown: list[list[AbrObservation]] = [[] for _ in range(B)]
        players = []
        for session in range(B):

            def decide(
                observation: AbrObservation,
                asked: list[AbrObservation] = shown[session],
                session: int = session,
                levels: np.ndarray = levels,
            ) -> int:
                asked.append(observation)
                return int(levels[session, observation.chunk_index - 1])

            player = Player(video)
            trace = draw.traces[link[session]]
            play_simulated(player, PensieveLink(trace), decide, start_s=start_s[session])
            players.append(player)
        for step in range(env.decisions):
            assert np.array_equal(seen[:, :STATE], states_of([asked[step] for asked in shown]))
            seen, reward, is_done, _ = env.step(levels[:, step])
            qoe = np.array([player.chunks[step + 1].qoe for player in players])
            assert np.array_equal(reward, (clipped(qoe) / spread).astype(np.float32))
            assert is_done.tolist() == [step == env.decisions - 1] * B


def test_the_critic_is_told_the_capacity_to_come() -> None:
    """On links that step between two rates, beside the integral of the trace, ends included."""
    traces = [
        Trace("steps", np.arange(0.0, 401.0, 10.0), np.tile([1.0, 3.0], 21)[:41]),
        Trace("short", np.array([0.0, 7.0, 31.5]), np.array([1.0, 2.0, 5.0])),
    ]
    draw = TraceDraw([Source("both", tuple(traces))])
    link, position_s = np.array([0, 0, 1, 1, 1]), np.array([0.0, 397.5, 0.5, 31.0, 40.0])
    told = draw.table.capacity_mbps(link, position_s, AHEAD_S)
    for row, index, at_s in zip(told, link, position_s, strict=True):
        bits = traces[index].bits_until(at_s + AHEAD_S) - traces[index].bits_until(at_s)
        np.testing.assert_allclose(row, bits / AHEAD_S / 1e6, rtol=1e-9)
    seen = SessionsEnv([VIDEO], draw, sessions=2, seed=0).reset()
    assert seen.shape == (2, STATE + len(AHEAD_S))


def test_spaces_and_protocol(draw: TraceDraw) -> None:
    env = make_env(draw)
    assert isinstance(env, VecEnv)
    assert env.num_envs == B
    assert env.action_space.n == 6
    states = env.reset()
    assert states.dtype == np.float32
    infos: list[dict[str, object]] = []
    for _ in range(env.decisions):
        assert all(env.observation_space.contains(state) for state in states)
        states, reward, is_done, infos = env.step(np.full(B, 5))
        assert (reward.dtype, reward.shape) == (np.float32, (B,))
    assert is_done.all()
    assert "terminal_observation" in infos[0]
    assert env.get_attr("render_mode") == [None] * B
    assert env.env_is_wrapped(object) == [False] * B
    with pytest.raises(AttributeError, match="no method 'jump'"):
        env.env_method("jump")


def test_seeds_repeat(draw: TraceDraw) -> None:
    def play(env: SessionsEnv) -> list[np.ndarray]:
        return [env.reset(), *(env.step(np.full(B, 1))[0] for _ in range(20))]

    one, same, other = (play(make_env(draw, seed)) for seed in (3, 3, 4))
    assert all(map(np.array_equal, one, same))
    assert not all(map(np.array_equal, one, other))
    env = make_env(draw, 4)
    env.seed(3)
    assert all(map(np.array_equal, one, play(env)))


def test_shares_say_what_is_drawn(draw: TraceDraw) -> None:
    link, start_s = draw.draw(4000, np.random.default_rng(0))
    assert np.mean(link == 0) == pytest.approx(0.5, abs=0.05)
    assert set(link) == {0, 1, 2, 3}
    assert (start_s < 60).all()
    draw.share([1, 0])
    assert set(draw.draw(50, np.random.default_rng(0))[0]) == {0}
    with pytest.raises(TrainingDataError, match="at least one trace"):
        TraceDraw([])


def test_videos_must_be_alike(draw: TraceDraw) -> None:
    longer = generate_video("longer", chunks=10, rng=np.random.default_rng(1))
    with pytest.raises(TrainingDataError, match=r"longer: 10 chunks .* one has 9"):
        SessionsEnv([VIDEO, longer], draw, sessions=B, seed=0)
    with pytest.raises(TrainingDataError, match="two chunks"):
        SessionsEnv([VIDEO.first(1)], draw, sessions=B, seed=0)


def test_rewards_are_scaled_per_trace() -> None:
    scale, link = RewardScale(3), np.array([0, 0, 1])
    assert scale.spread(link).tolist() == [FIRST_SPREAD] * 3
    rewards = np.array([[10.0, -10.0, 0.1], [30.0, -30.0, 0.1]])
    scale.update(link, rewards)
    spread = scale.spread(np.arange(3))
    assert spread == pytest.approx([np.std(rewards[:, :2]), MIN_SPREAD, FIRST_SPREAD])
    scale.update(np.array([0]), np.zeros((2, 1)))
    assert MIN_SPREAD < scale.spread(np.array([0]))[0] < spread[0]
    assert clipped(np.array([-1e4, 2.0])).tolist() == [-4.3 * MAX_STALL_S, 2.0]


def test_shaped_traces_have_the_mean_and_the_variation() -> None:
    trace = Trace("t", np.array([0.0, 1.0, 3.0]), np.array([9.0, 1.0, 4.0]))
    flat = shaped(trace, mean_mbps=2.0, variation=0.5)
    assert flat.mean_mbps == pytest.approx(2.0)
    assert flat.rates_mbps[2] / flat.rates_mbps[1] == pytest.approx(2.0)


def test_environments_are_a_grid() -> None:
    made = environments(
        lambda family, name, rng: constant(float(rng.uniform(1, 2)), name),
        ("here", "there"),
        np.random.default_rng(0),
    )
    assert len(made) == 2 * len(MEANS_MBPS) * len(VARIATIONS)
    assert {len(source.traces) for source in made} == {TRACES_EACH}
    assert made[0].traces[0].mean_mbps == pytest.approx(MEANS_MBPS[0])


def make_policy(level: int | None = None) -> PensievePolicy:
    """A policy without training, or one that always names a level."""
    config = PensieveConfig(
        format=PENSIEVE_FORMAT, task="abr", method="genet", levels_kbps=VIDEO.levels_kbps
    )
    actor = PensieveActor(6)
    if level is not None:
        torch.nn.init.zeros_(actor.head.weight)
        actor.head.bias.data = torch.eye(6)[level]
    return PensievePolicy(config, actor)


def test_the_curriculum_promotes_the_largest_gap() -> None:
    """A policy that always takes the top level is furthest behind where the link is slowest."""
    recorded = [Source("recorded", (constant(1.0),))]
    generated = [Source(str(mbps), (constant(mbps), constant(mbps))) for mbps in (6.0, 0.6, 3.0)]
    rule = create("abr", "robustmpc", {"horizon": 2}).decide
    curriculum = Curriculum(recorded, generated, rule, VIDEO, np.random.default_rng(0))
    assert curriculum.draw.shares == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    top = make_policy(level=5)
    gaps = curriculum.gaps(top)
    assert gaps.argmax() == 1
    promotion = curriculum.promote(top)
    assert promotion.environment == "0.6"
    assert promotion.gap == pytest.approx(gaps[1])
    rest = (1 - PROMOTED_SHARE) / 6
    assert curriculum.draw.shares == pytest.approx([1 / 2, rest, rest + 0.15, rest])
    # Behind at 6 Mbit/s is who stays at the bottom.
    assert curriculum.promote(make_policy(level=0)).environment == "6.0"
    assert [one.environment for one in curriculum.promotions] == ["0.6", "6.0"]


def test_hopeless_traces_do_not_choose() -> None:
    slow, fast = constant(0.1, "slow"), constant(3.0, "fast")
    policy = make_policy(level=0)
    playable, every = Validation([slow, fast], VIDEO)(policy)
    assert playable == pytest.approx(0.3)
    assert every < 0
    assert Validation([slow], VIDEO)(policy)[0] < 0


TINY = PensieveTraining(seed=1, chunks=3_000, sessions=16, minibatches=2, validations=3)


def test_a_tiny_training_learns_and_repeats() -> None:
    traces = tuple(constant(mbps) for mbps in (1.0, 2.0, 4.0))
    validation = Validation(traces, VIDEO)

    def train(config: PensieveTraining) -> object:
        return train_pensieve(
            [VIDEO], TraceDraw([Source("constant", traces)]), validation, config=config
        )

    trained, again = train(TINY), train(TINY)
    before = validation(make_policy(level=5))[0]
    assert trained.best.playable_qoe > before  # type: ignore[attr-defined]
    assert [one.chunks for one in trained.curve] == [1024, 2048, 3072]  # type: ignore[attr-defined]
    assert trained.curve == again.curve  # type: ignore[attr-defined]
    state, same = (
        one.policy.actor.state_dict()  # type: ignore[attr-defined]
        for one in (trained, again)
    )
    assert all(torch.equal(state[key], same[key]) for key in state)
    assert trained.policy.config.method == "pensieve"  # type: ignore[attr-defined]


def test_a_training_with_a_curriculum() -> None:
    generated = [Source(str(mbps), (constant(mbps),)) for mbps in (0.8, 2.0)]
    rule = create("abr", "robustmpc", {"horizon": 2}).decide
    curriculum = Curriculum([], generated, rule, VIDEO, np.random.default_rng(0))
    validation = Validation([constant(1.0)], VIDEO)
    told: list[object] = []
    trained = train_pensieve(
        [VIDEO, OTHER], curriculum, validation, config=TINY, on_validated=told.append
    )
    assert len(trained.promotions) == 9
    assert told == list(trained.curve)
    assert trained.policy.config.method == "genet"
    for earlier, later in itertools.pairwise(trained.curve):
        assert earlier.chunks < later.chunks


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ValueError, match="sessions must be at least 1, is 0"):
        PensieveTraining(sessions=0)
