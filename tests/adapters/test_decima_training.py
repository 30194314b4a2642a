"""The evolution strategy: it finds what it is asked for, repeats, and plays the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from adapters.decima import DecimaConfig, DecimaPolicy
from adapters.decima_training import (
    DecimaTraining,
    SimulatedTrials,
    TrainingStep,
    Trial,
    as_card,
    first_weights,
    train_decima,
)
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.observation import Assignment, ClusterView, JobView, StageView
from controllers.registry import create

SMALL = DecimaTraining(
    linear_steps=1, steps=1, pairs=2, workloads=3, num_jobs=4, executors=10, arrival_mean_s=5.0
)


def policy_vector(policy: DecimaPolicy) -> np.ndarray:
    return np.concatenate([one.ravel() for one in policy.network.weights.values()])


def test_two_steps_in_the_simulator() -> None:
    told: list[TrainingStep] = []
    trials = SimulatedTrials(GeneratedLibrary(), create("scheduling", "fair").decide, SMALL)
    trained = train_decima(trials, SMALL, on_step=told.append)
    assert tuple(told) == trained.curve
    assert [one.step for one in told] == [1, 2]
    assert all(0 < one.ratio <= SMALL.worst_ratio for one in told)
    assert as_card(trained)["curve"][1]["ratio"] == told[1].ratio
    weights = trained.policy.network.weights
    first = first_weights(DecimaConfig(), np.random.default_rng(SMALL.seed))
    assert all((weights[name] != first[name]).any() for name in weights)


def test_the_same_seed_trains_the_same_policy() -> None:
    vectors = []
    for seed in (0, 0, 1):
        training = DecimaTraining(steps=2, linear_steps=1, pairs=2, seed=seed)
        trained = train_decima(lambda trials: [float(len(trials))] * len(trials), training)
        vectors.append(policy_vector(trained.policy))
    assert vectors[0].tolist() == vectors[1].tolist()
    assert vectors[0].tolist() != vectors[2].tolist()


def test_pairs_are_opposite_and_share_their_workload() -> None:
    played: list[list[Trial]] = []

    def play(trials: Sequence[Trial]) -> list[float]:
        played.append(list(trials))
        return [1.0] * len(trials)

    training = DecimaTraining(linear_steps=1, steps=1, pairs=4, workloads=4, first_workload=50)
    train_decima(play, training)
    assert [len(step) for step in played] == [8, 8]
    start = first_weights(DecimaConfig(), np.random.default_rng(0))
    middle = np.concatenate([one.ravel() for one in start.values()])
    linear = len(start["score"]) + len(start["limit"])
    for step in played:
        assert {one.workload for one in step} == {50, 51, 52, 53}
        for plus, minus in zip(step[::2], step[1::2], strict=True):
            assert plus.workload == minus.workload
    for plus, minus in zip(played[0][::2], played[0][1::2], strict=True):
        moved = policy_vector(plus.policy) - middle
        np.testing.assert_allclose(moved, middle - policy_vector(minus.policy), atol=1e-6)
        assert moved[:linear].all()
        assert not moved[linear:].any()  # the linear weights come first


def test_it_goes_where_results_are_better() -> None:
    """Trials that want two weights elsewhere: the linear one, then one of the network's too."""

    def play(trials: Sequence[Trial]) -> list[float]:
        return [
            abs(float(one.policy.network.weights["limit"][1]) + 1.2)
            + abs(float(one.policy.network.weights["job.bias"][0]) - 0.2)
            for one in trials
        ]

    training = DecimaTraining(linear_steps=60, steps=60, workloads=12, worst_ratio=10.0)
    trained = train_decima(play, training)
    assert trained.curve[0].ratio == pytest.approx(0.4, abs=0.02)
    assert trained.curve[-1].ratio < 0.15
    again = train_decima(play, DecimaTraining(linear_steps=0, steps=1), start=trained.policy)
    assert again.curve[0].ratio < 0.15


def test_the_first_weights_are_the_rule_by_hand() -> None:
    """Source job first, then the least work, each with about its share."""
    policy = train_decima(lambda _: [], DecimaTraining(linear_steps=0, steps=0)).policy
    large = JobView(0, 0.0, 0, (StageView(0, 100, 0, 1.0, 100, True, ()),))
    small = JobView(1, 0.0, 0, (StageView(0, 10, 0, 1.0, 10, True, ()),))
    view = ClusterView(1.0, 50, 50, None, (large, small))
    assert policy.decide(view) == Assignment(1, 0, 50)
    assert policy.decide(ClusterView(1.0, 50, 5, 0, (large, small))).job == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pairs": 1}, "2 <= pairs"),
        ({"pairs": 9, "workloads": 8}, "pairs is 9, workloads 8"),
        ({"steps": -1}, "must not be negative"),
        ({"num_jobs": 0}, "1 or more"),
        ({"worst_ratio": 0.0}, "worst_ratio must be above 0"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DecimaTraining(**options)
