"""The learned scheduler: it begins as its graph network, and pads, orders and caches exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from adapters.backbones import Backbone, BackboneError, load_backbone
from adapters.decima import DecimaConfig, DecimaNetwork
from adapters.decima_training import first_weights
from adapters.scheduling_features import SchedulingInputs
from adapters.scheduling_policy import SchedulingModelConfig, SchedulingPolicy
from cluster_sim.arrivals import BurstyArrivals
from cluster_sim.durations import DrawnDurations
from cluster_sim.generated import GeneratedLibrary
from cluster_sim.machine import ClusterConfig
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, JobView, StageView
from cluster_sim.simulated import SimulationConfig, run_simulated
from cluster_sim.workload import make_workload
from controllers.registry import create

SMALL = SchedulingModelConfig(
    feature_size=8, head_size=8, most_jobs=3, most_candidates=4, lora_rank=2
)


def make_policy(backbone: str, *, adds: bool) -> SchedulingPolicy:
    """With a graph network that says something, and an addition that does or does not."""
    rng = np.random.default_rng(0)
    weights = {
        name: one + rng.normal(0, 0.3, one.shape).astype(np.float32)
        for name, one in first_weights(DecimaConfig(), rng).items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = SchedulingPolicy(SMALL, load_backbone(backbone), DecimaNetwork(weights))
        if adds:
            torch.nn.init.normal_(policy.head.weight, std=3.0)
            for name, one in policy.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(one, std=0.5)
    return policy


@pytest.fixture(scope="module")
def views() -> list[ClusterView]:
    """Some of a run in which jobs wait: few stages and many."""
    seen: list[ClusterView] = []
    decide = create("scheduling", "fair").decide

    def watched(view: ClusterView) -> Assignment:
        seen.append(view)
        assignment: Assignment = decide(view)
        return assignment

    arrivals = BurstyArrivals(mean_gap_ms=3000.0)
    jobs = make_workload(GeneratedLibrary(), arrivals, num_jobs=12, rng=np.random.default_rng(2))
    config = SimulationConfig(cluster=ClusterConfig(executors=15))
    run_simulated(jobs, config, DrawnDurations(jobs, seed=1), watched)
    return seen[::7]


def test_it_begins_as_its_graph_network(tiny_backbone: str, views: list[ClusterView]) -> None:
    policy = make_policy(tiny_backbone, adds=False).freeze("full")
    adding = make_policy(tiny_backbone, adds=True).freeze("full")
    others = 0
    for view in views:
        ours, base = policy.rate(view), policy.base.rate(view)
        assert ours.scores.tolist() == base.scores.tolist()
        assert ours.limits.tolist() == base.limits.tolist()
        assert policy.decide(view) == policy.base.decide(view)
        others += adding.decide(view) != policy.decide(view)
    assert others > len(views) / 10


def test_there_may_be_any_number_of_stages(tiny_backbone: str, views: list[ClusterView]) -> None:
    policy = make_policy(tiny_backbone, adds=True).freeze("full")
    counts = {len(policy.rate(view).stages) for view in views}
    assert min(counts) < SMALL.most_candidates < max(counts)
    for view in views:
        told = policy.tell(view)
        assert told is not None
        assert len(told.jobs) == min(len(view.jobs), SMALL.most_jobs)
        assert len(told.order) == min(len(told.scores), SMALL.most_candidates)
        # The last of those told is the best of those with room, or of all.
        rated = policy.base.rate(view)
        best = np.where(rated.rooms > 0, rated.scores, rated.scores - 1e3).argmax()
        assert told.order[-1] == best


def test_nothing_to_choose_is_left_idle(tiny_backbone: str) -> None:
    stage = StageView(0, 0, 2, 1.0, 0, False, ())
    view = ClusterView(1.0, 5, 1, None, (JobView(0, 0.0, 2, (stage,)),))
    policy = make_policy(tiny_backbone, adds=True).freeze("full")
    assert policy.tell(view) is None
    assert policy.decide(view) == LEAVE_IDLE


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_lean_pass_and_padding_change_nothing(
    make_backbone: Any, tmp_path: Any, family: str, views: list[ClusterView]
) -> None:
    backbone = str(make_backbone(family, tmp_path / family))
    full = make_policy(backbone, adds=True).freeze("full")
    lean = make_policy(backbone, adds=True).freeze("lean")
    assert (full.inference, lean.inference) == ("full", "lean")
    told = [full.tell(view) for view in views[:40]]
    batch = SchedulingInputs.of([one for one in told if one is not None])
    with torch.inference_mode():
        scores, log_limits = full(batch)
        packed, _ = lean(batch)
    for row, view in enumerate(views[:40]):
        count = len(full.rate(view).stages)
        for policy in (full, lean):
            rated = policy.rate(view)
            np.testing.assert_allclose(rated.scores, scores[row, :count], atol=2e-4)
            np.testing.assert_allclose(rated.log_limits, log_limits[row, :count], atol=2e-4)
        np.testing.assert_allclose(packed[row, :count], scores[row, :count], atol=2e-4)


def test_the_order_of_jobs_is_of_no_meaning(tiny_backbone: str, views: list[ClusterView]) -> None:
    policy, rng = make_policy(tiny_backbone, adds=True).freeze("full"), np.random.default_rng(0)
    for view in views[:30]:
        order = rng.permutation(len(view.jobs))
        jobs = tuple(view.jobs[index] for index in order)
        assert policy.decide(dataclasses.replace(view, jobs=jobs)) == policy.decide(view)


def test_a_copy_answers_as_it_is_now(tiny_backbone: str, views: list[ClusterView]) -> None:
    policy = make_policy(tiny_backbone, adds=True)
    copy = policy.frozen_copy()
    policy.eval()
    assert [copy.decide(view) for view in views] == [policy.decide(view) for view in views]
    assert policy.head.weight.requires_grad
    assert not copy.head.weight.requires_grad


def test_a_backbone_with_too_few_places_is_refused(tiny_backbone: str) -> None:
    backbone: Backbone = load_backbone(tiny_backbone)
    with pytest.raises(BackboneError, match="129 tokens exceed its 128 positions"):
        SchedulingPolicy(dataclasses.replace(SMALL, most_candidates=125), backbone)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"most_jobs": 0}, "most_jobs must be at least 1"),
        ({"idle_guard": 2.0}, "idle_guard must be 0 to 1"),
        ({"lora_dropout": 1.0}, "lora_dropout must be"),
    ],
)
def test_wrong_shapes_are_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SchedulingModelConfig(**options)
