"""Training of schedulers with a language model: it learns what an expert does, and goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.checkpoint_files import CheckpointError
from adapters.decima import DecimaConfig, DecimaNetwork, DecimaPolicy
from adapters.decima_training import first_weights
from adapters.scheduling_checkpoints import load_scheduling
from adapters.scheduling_pools import (
    EpisodeColumns,
    LabelledDecision,
    PlayedEpisode,
    SchedulingPool,
    join_scheduling_pools,
    pool_of_episodes,
)
from adapters.scheduling_training import (
    SchedulingBatch,
    SchedulingLearner,
    SchedulingTraining,
    imitation_loss,
    new_policy,
    train_scheduling,
)
from adapters.training_loop import TrainingDiverged, TrainingError
from cluster_sim.arrivals import PoissonArrivals
from cluster_sim.durations import DrawnDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import Assignment, ClusterView
from cluster_sim.simulated import SimulationConfig, run_simulated
from cluster_sim.workload import make_workload

QUICK = SchedulingTraining(epochs=2, batch_size=8, learning_rate=3e-3, warmup_steps=2, device="cpu")


def make_expert() -> DecimaPolicy:
    """Prefers jobs with much work, and gives each half of what the rule by hand does."""
    weights = first_weights(DecimaConfig(), np.random.default_rng(0))
    weights["score"][:2] = (0.0, 1.0)
    weights["limit"][0] = -0.7
    return DecimaPolicy(DecimaConfig(), DecimaNetwork(weights))


def make_pool(seed: int) -> SchedulingPool:
    expert, columns, decisions = make_expert(), EpisodeColumns(), 0

    def decide(view: ClusterView) -> Assignment:
        nonlocal decisions
        rated = expert.rate(view)
        taken = rated.decide(view, 0.2)
        columns.add(decisions, LabelledDecision(view, taken, rated.scores, rated.log_limits))
        decisions += 1
        return taken

    rng = np.random.default_rng(seed)
    jobs = make_workload(GeneratedLibrary(), PoissonArrivals(4000.0), num_jobs=10, rng=rng)
    config = SimulationConfig(cluster=ClusterConfig(executors=12))
    run = run_simulated(jobs, config, DrawnDurations(jobs, seed=seed), decide)
    played = PlayedEpisode(
        arm="expert",
        controller="decima",
        expert="expert",
        seed=seed,
        executors=12,
        jobs=10,
        decisions=decisions,
        mean_jct_s=run.mean_jct_s,
    )
    return pool_of_episodes([(played, columns)], made_by=[f"seed {seed}"])


@pytest.fixture(scope="module")
def pool() -> SchedulingPool:
    return join_scheduling_pools([make_pool(seed) for seed in (1, 2, 3)])


def test_it_learns_from_an_expert(tiny_backbone: str, pool: SchedulingPool, tmp_path: Path) -> None:
    before = SchedulingLearner(new_policy(tiny_backbone), pool, QUICK)
    before.module.eval()
    first = before.measure(0).metrics
    report = train_scheduling(
        pool, tmp_path, backbone=tiny_backbone, config=dataclasses.replace(QUICK, epochs=4)
    )
    last = report.epochs[report.best_epoch - 1]
    assert first["valid_loss"] is not None
    assert first["valid_accuracy"] is not None
    assert last["valid_loss"] < 0.6 * first["valid_loss"]
    assert last["valid_accuracy"] >= first["valid_accuracy"]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["held_out_sessions"] == 1
    assert card["sessions"] == 3
    assert card["base"] == "builtin:scheduling-decima"
    assert card["chosen_by"] == "valid_loss"
    assert card["graph_network_alone"]["valid_loss"] == pytest.approx(first["valid_loss"])
    assert card["pools"] == ["seed 1", "seed 2", "seed 3"]


def test_checkpoints_answer_as_what_was_trained(
    tiny_backbone: str, pool: SchedulingPool, tmp_path: Path
) -> None:
    asked: list[Any] = []
    views = [one.view for _, one in itertools.islice(pool.labelled(), 60)]

    def evaluate(decide: Any) -> float:
        asked.append([decide(view) for view in views])
        return 1.0 - 0.1 * len(asked) if len(asked) < 2 else 2.0

    report = train_scheduling(
        pool, tmp_path / "one", backbone=tiny_backbone, config=QUICK, evaluate=evaluate
    )
    assert report.best_epoch == 1
    assert [row["valid_jct_ratio"] for row in report.epochs] == [0.9, 2.0]
    policy = load_scheduling(str(tmp_path / "one"))
    found = [policy.decide(view) for view in views]
    # Checkpoints are kept in half precision.
    same = np.mean([one == other for one, other in zip(found, asked[0], strict=True)])
    assert same > 0.95
    on = train_scheduling(
        pool,
        tmp_path / "two",
        start_from=str(tmp_path / "one"),
        config=dataclasses.replace(QUICK, epochs=1),
    )
    assert on.epochs[0]["valid_loss"] < report.epochs[0]["valid_loss"]


def test_a_killed_training_goes_on(
    tiny_backbone: str, pool: SchedulingPool, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(at: Any) -> None:
        if at.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train_scheduling(
            pool, tmp_path / "killed", backbone=tiny_backbone, config=QUICK, on_progress=kill
        )
    reports = [
        train_scheduling(
            pool, tmp_path / name, backbone=tiny_backbone, config=QUICK, resume=name == "killed"
        )
        for name in ("killed", "whole")
    ]
    losses = [[row["valid_loss"] for row in report.epochs] for report in reports]
    assert losses[0] == losses[1]


def test_the_loss_is_least_where_the_expert_is(tiny_backbone: str, pool: SchedulingPool) -> None:
    learner = SchedulingLearner(new_policy(tiny_backbone), pool, QUICK)
    batch: SchedulingBatch = learner.batches(1, np.random.default_rng(0))[0]
    exact = imitation_loss(batch.scores + 3.0, batch.log_limits, batch, 0.5)
    assert float(exact) == pytest.approx(0.0, abs=1e-5)
    # Limits beyond the whole cluster are alike; padding and stages without room say nothing.
    beyond = torch.where(batch.log_limits == 0, batch.log_limits + 1.0, batch.log_limits)
    noise = torch.where(batch.is_open, batch.scores, torch.randn_like(batch.scores))
    assert float(imitation_loss(noise, beyond, batch, 0.5)) == pytest.approx(0.0, abs=1e-5)
    assert float(imitation_loss(batch.inputs.scores, batch.log_limits, batch, 0.5)) > 0.01
    assert float(imitation_loss(batch.scores, batch.log_limits - 0.3, batch, 0.5)) > 0.01


def test_what_cannot_be_learned_is_told(
    tiny_backbone: str, pool: SchedulingPool, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        train_scheduling(pool, tmp_path, backbone=tiny_backbone, base="/no/where")
    with pytest.raises(TrainingDiverged):
        train_scheduling(
            pool,
            tmp_path / "far",
            backbone=tiny_backbone,
            config=dataclasses.replace(QUICK, learning_rate=1e30, gradient_limit=1e30),
        )
    for options, says in (
        ({"hold_out": 0.9}, "hold_out must be 0 to 0.5"),
        ({"steps": -1}, "steps must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ):
        with pytest.raises(TrainingError, match=says):
            SchedulingTraining(**options)  # type: ignore[arg-type]
