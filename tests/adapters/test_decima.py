"""Decima's policy: features by hand, the network on small graphs, the guard, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.checkpoint_files import CheckpointError
from adapters.decima import (
    DecimaConfig,
    DecimaNetwork,
    DecimaPolicy,
    builtin_policies,
    load_decima,
    save_decima,
    weight_shapes,
)
from adapters.decima_features import FEATURES, STAGE_INPUTS, ClusterFigures, JobGraph
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, JobView, StageView

CONFIG = DecimaConfig()
#: A chain of two stages: the first runs, the second waits for it. Beside them a stage of its own.
CHAIN = (
    StageView(0, 4, 2, 3.0, 0, False, ()),
    StageView(1, 5, 0, 1.0, 5, True, (0,)),
    StageView(4, 10, 0, 2.0, 7, True, ()),
)
SMALL = (StageView(0, 2, 0, 0.5, 2, True, ()),)
VIEW = ClusterView(30.0, 10, 4, 2, (JobView(2, 10.0, 5, CHAIN), JobView(3, 20.0, 0, SMALL)))


def zeros() -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(CONFIG).items()}


def make_policy(seed: int | None = None, **weights: np.ndarray) -> DecimaPolicy:
    """A policy with drawn weights, or with zeros but for those given."""
    known = zeros()
    if seed is not None:
        rng = np.random.default_rng(seed)
        known = {
            name: rng.normal(0, 0.5, one.shape).astype(np.float32) for name, one in known.items()
        }
    return DecimaPolicy(CONFIG, DecimaNetwork(known | weights))


def linear(weights: dict[str, float], features: tuple[str, ...]) -> np.ndarray:
    return np.array([weights.get(name, 0.0) for name in features], dtype=np.float32)


def limited_to(share: float) -> np.ndarray:
    """Weights of the limit that give every job this share of the cluster."""
    return linear({"constant": math.log(share)}, CONFIG.limit_features)


def test_there_are_1470_weights() -> None:
    assert sum(math.prod(shape) for shape in weight_shapes(CONFIG).values()) == 1470


def test_figures_of_a_job_by_hand() -> None:
    graph = JobGraph(CHAIN)
    assert graph.work_s == 18 + 5 + 20
    assert graph.path_s == 4  # the first stage, then the second
    assert graph.work_path_s == 23
    assert graph.demand == 12
    assert graph.children == [[1], [], []]
    assert graph.order.index(1) < graph.order.index(0)
    assert graph.inputs.shape == (3, len(STAGE_INPUTS))
    np.testing.assert_allclose(
        graph.inputs[1],
        [0.4 * math.log(6) - 1, math.log(1.05), 0, 1, 0.4 * math.log(6) - 1, 1],
        rtol=1e-6,
    )


def test_features_by_hand() -> None:
    graphs = [JobGraph(job.stages) for job in VIEW.jobs]
    figures = ClusterFigures(VIEW, graphs)
    # The four executors to be placed come from job 2, which keeps one.
    waiting, free = figures.features(VIEW.jobs[0], graphs[0], 1)
    expected = {
        "is_source_job": 1,
        "job_work": math.log(44) - 4,
        "job_path": math.log(4.1) - 2,
        "job_age": math.log(3) - 1.5,
        "job_executors": 0.1,
        "stage_path": math.log(1.1) - 2,
        "expected_task": math.log(1.05),
        "stage_work": math.log(6) - 3,
        "demand": math.log(6) - 2.5,
        "has_open_parents": 1,
        "source_job_work": math.log(44) - 4,
        "stage_work_path": math.log(6) - 4,
        "has_no_executors": 0,
        "job_stages": math.log(3) - 1.5,
        "parents_left": math.log(10) - 1,  # 6 tasks of 3 s, two at a time
        "source_has_open_parents": 1,
        "usable_share": 1,
        "committable": 0.4,
        "job_work_path": math.log(24) - 4,
        "job_demand": math.log(13) - 3,
        "constant": 1,
        "jobs": math.log(2) - 0.7,
        "cluster_to_job_work": math.log(45 / 44),
        "cluster_size": math.log(0.2),
        "cluster_to_job_demand": math.log(15 / 13),
    }
    assert dict(zip(FEATURES, waiting, strict=True)) == pytest.approx(expected)
    assert free[FEATURES.index("parents_left")] == 0
    (small,) = figures.features(VIEW.jobs[1], graphs[1], 0)
    assert small[FEATURES.index("usable_share")] == 0.5
    assert small[FEATURES.index("has_no_executors")] == 1
    assert small[FEATURES.index("is_source_job")] == 0


def test_embeddings_flow_from_children_to_parents() -> None:
    network = make_policy(seed=1).network
    before = network.embed(JobGraph(CHAIN))
    child = dataclasses.replace(CHAIN[1], expected_task_s=9.0)
    after = network.embed(JobGraph((CHAIN[0], child, CHAIN[2])))
    changed = (before.stages != after.stages).any(axis=1)
    assert changed.tolist() == [True, True, False]
    parent = dataclasses.replace(CHAIN[0], expected_task_s=9.0)
    after = network.embed(JobGraph((parent, *CHAIN[1:])))
    assert (before.stages != after.stages).any(axis=1).tolist() == [True, False, False]
    assert (before.job != after.job).any()


def test_an_embedding_by_hand() -> None:
    weights = zeros()
    size = CONFIG.embedding_size
    weights["prepare.weight"][1, 0] = 1.0  # the expected task's logarithm
    weights["message.weight"][:] = np.eye(size)
    weights["gather.weight"][:] = 2 * np.eye(size)
    weights["job.weight"][:size] = np.eye(size)
    embedded = DecimaNetwork(weights).embed(JobGraph(CHAIN[:2]))
    child = math.tanh(math.log(1.05))
    parent = math.tanh(math.log(3.05) + 2 * child)
    np.testing.assert_allclose(embedded.stages[:, 0], [parent, child], rtol=1e-5)
    assert embedded.job[0] == pytest.approx(math.tanh(0.3 * (parent + child)), rel=1e-5)
    assert not embedded.stages[:, 1:].any()


def test_score_and_limit_decide() -> None:
    score = linear({"expected_task": 1.0}, CONFIG.score_features)
    # Job 2 keeps one executor of its five, so half of the cluster leaves room for four.
    assert make_policy(score=score, limit=limited_to(0.5)).decide(VIEW) == Assignment(2, 4, 4)
    assert make_policy(score=score, limit=limited_to(0.3)).decide(VIEW) == Assignment(2, 4, 2)
    assert make_policy(score=-score, limit=limited_to(0.3)).decide(VIEW) == Assignment(3, 0, 3)
    # Job 2 has its share: the other one is next, whatever the scores.
    assert make_policy(score=score, limit=limited_to(0.1)).decide(VIEW) == Assignment(3, 0, 1)
    rated = make_policy(score=score, limit=limited_to(0.3)).rate(VIEW)
    assert rated.stages == ((2, 1), (2, 4), (3, 0))
    assert rated.limits.tolist() == [3, 3, 3]
    assert rated.rooms.tolist() == [2, 2, 3]


def test_executors_are_left_idle_only_while_others_are_busy() -> None:
    policy = make_policy(limit=limited_to(0.1))
    for running, expected in ((7, LEAVE_IDLE), (6, Assignment(2, 1, 4))):
        stages = (dataclasses.replace(CHAIN[0], running_tasks=running), *CHAIN[1:])
        view = dataclasses.replace(VIEW, jobs=(JobView(2, 10.0, 9, stages),))
        assert policy.decide(view) == expected  # 3 of 10 are busy elsewhere, or 2
    closed = (CHAIN[0],)  # may not be chosen
    assert policy.decide(dataclasses.replace(VIEW, jobs=(JobView(2, 0.0, 9, closed),))) == (
        LEAVE_IDLE
    )


def test_what_is_kept_changes_no_answer() -> None:
    """Jobs whose stages are the same object are not embedded again; others are, number or not."""
    policy = make_policy(seed=3)
    other = dataclasses.replace(VIEW, jobs=(JobView(2, 10.0, 5, CHAIN[1:][1:]), *VIEW.jobs[1:]))
    for view in (VIEW, other, VIEW, dataclasses.replace(VIEW, time_s=99.0), VIEW):
        kept, fresh = policy.rate(view), make_policy(seed=3).rate(view)
        assert kept.stages == fresh.stages
        assert kept.scores.tolist() == fresh.scores.tolist()
        assert kept.log_limits.tolist() == fresh.log_limits.tolist()


def test_the_order_of_jobs_is_of_no_meaning() -> None:
    turned = dataclasses.replace(VIEW, jobs=VIEW.jobs[::-1])
    for seed in range(5):
        one, other = make_policy(seed=seed).rate(VIEW), make_policy(seed=seed).rate(turned)
        assert one.stages == other.stages
        assert one.scores.tolist() == other.scores.tolist()
        assert one.log_limits.tolist() == other.log_limits.tolist()


def test_extremes_stay_finite() -> None:
    largest = StageView(0, 10**6, 10**6, 1e12, 10**6, True, ())
    least = StageView(0, 1, 0, 0.0, 1, True, ())
    jobs = (JobView(0, 0.0, -100_000, (largest,)), JobView(1, 1e12, 100_000, (least,)))
    view = ClusterView(1e12, 100_000, 100_000, None, jobs)
    for seed in range(5):
        rated = make_policy(seed=seed).rate(view)
        assert np.isfinite(rated.scores).all()
        assert np.isfinite(rated.log_limits).all()
        assert 1 <= rated.limits.min() <= rated.limits.max() <= 100_000
        assert 1 <= make_policy(seed=seed).decide(view).executors <= 100_000


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_decima(tmp_path / "checkpoint", make_policy(seed=0), {"task": "scheduling"})
    return tmp_path / "checkpoint"


def test_a_saved_policy_answers_the_same(checkpoint: Path) -> None:
    policy, loaded = make_policy(seed=0), load_decima(str(checkpoint))
    assert loaded.config == CONFIG
    assert loaded.rate(VIEW).scores.tolist() == policy.rate(VIEW).scores.tolist()
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "card.json",
        "config.json",
        "decima.safetensors",
    ]


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(document | changes))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "decima.safetensors")
        change(weights)
        save_file(weights, folder / "decima.safetensors")

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing"),
        (change_config(format="other 7"), "format is 'other 7'.*'netllm-testbed decima 1'"),
        (change_config(task="abr"), "is for task 'abr', asked for 'scheduling'"),
        (change_config(idle_guard=2), "needs 0 <= idle_guard <= 1"),
        (change_config(embedding_size=0), "must be 1 or more"),
        (change_config(embedding_size=4), "has shape"),
        (change_config(limit_features=["constant"]), "limit_features must be constant, jobs"),
        (change_config(more=1), "more: unknown key"),
        (lambda folder: (folder / "decima.safetensors").unlink(), r"safetensors: missing"),
        (lambda folder: (folder / "decima.safetensors").write_bytes(b"x"), "not a readable"),
        (change_weights(lambda weights: weights.pop("score")), "'score' is missing"),
        (
            change_weights(lambda weights: weights["job.bias"].fill_(torch.nan)),
            "'job.bias' has a value that is not finite",
        ),
    ],
)
def test_damage_is_told(checkpoint: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=says):
        load_decima(str(checkpoint))


@pytest.mark.parametrize("spec", ["builtin:abr-pensieve", "builtin:nothing"])
def test_other_checkpoints_are_refused(spec: str) -> None:
    with pytest.raises(CheckpointError, match=r"unknown checkpoint.*builtin:scheduling-decima"):
        load_decima(spec)


def test_what_is_shipped_says_how_it_was_made() -> None:
    assert "builtin:scheduling-decima" in builtin_policies()
    assert load_decima("builtin:scheduling-decima").config == CONFIG
    path = Path(__file__).parents[2] / "adapters/shipped/scheduling-decima/card.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    final = card["results"]["final_seeds"]
    ratios = np.divide(final["jct_s"], final["fair_jct_s"])
    assert ratios.mean() == pytest.approx(final["ratio_to_fair"], abs=1e-4)
    assert np.mean(final["jct_s"]) == pytest.approx(final["mean_jct_s"], abs=0.01)
