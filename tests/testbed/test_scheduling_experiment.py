"""Experiments with task scheduling: what is read, how mistakes are named, what is planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from scheduling_entries import BATCH_TASKS, TOML, plan_of, write_experiment

from cluster_sim.durations import DrawnDurations, WaveDurations
from controllers.registry import UnknownController
from testbed.builtin import DataNotFound
from testbed.experiment import (
    ConfigError,
    dump_experiment,
    experiment_document,
    plan_experiment,
    read_experiment,
)
from testbed.scheduling_experiment import SchedulingExperiment
from testbed.traces import TraceFormatError

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_documented_example_is_understood(tmp_path: Path) -> None:
    text = """
task = "scheduling"
driver = "simulated"
jobs = "data:tpch"
num_jobs = 200
executors = 50
arrival_mean_s = 25.0
seeds = [1, 2, 3, 4, 5]
time_scale = 1.0
[[arms]]
controller = "fair"
"""
    experiment = read_experiment(write_experiment(tmp_path, text))
    assert isinstance(experiment, SchedulingExperiment)
    assert experiment.session_seeds == (1, 2, 3, 4, 5)
    assert experiment.decision_ms == 0.0
    again = read_experiment(write_experiment(tmp_path, dump_experiment(experiment)))
    assert again == experiment


def test_keys_of_every_table_read_back_equal_and_foreign_ones_are_not_written(
    tmp_path: Path,
) -> None:
    text = TOML.replace(
        "[[arms]]",
        """
arrivals = "bursty"
record_tasks = "all"
[bursts]
mean_jobs = 3.0
[cluster]
moving_delay_s = 0.5
warmup_s = 0.0
straggler_share = 0.1
[cluster.speculation]
multiplier = 2.0
[[cluster.outages]]
executor = 5
from_s = 10.0
until_s = 20.0
[scheduler]
fallback = "fifo"
[simulation]
decision_s = 0.25
[[arms]]""",
        1,
    )
    experiment = read_experiment(write_experiment(tmp_path, text))
    assert isinstance(experiment, SchedulingExperiment)
    assert experiment.decision_ms == 250.0
    document = experiment_document(experiment)
    assert list(document)[:4] == ["task", "arms", "driver", "seed"]
    assert not {"traces", "link", "network", "capture", "background"} & document.keys()
    again = read_experiment(write_experiment(tmp_path, dump_experiment(experiment)))
    assert again == experiment


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"scheduling"', '"scheduling"\ndriver = "offline"', "driver.*'simulated' or 'emulated'"),
        ("[[arms]]", 'traces = "x"\n[[arms]]', "unknown key 'traces'; there are task.*executors"),
        ("[[arms]]", "[link]\n[[arms]]", "unknown key 'link'; there are task.*executors"),
        ("[[arms]]", "[clusters]\n[[arms]]", "unknown key 'clusters'; there are .*cluster"),
        ("[[arms]]", "[cluster]\nwarm = 1\n[[arms]]", "'cluster.warm'; there are moving_delay_s"),
        ("num_jobs = 4", "num_jobs = 0", "num_jobs: must be 1 to"),
        ("executors = 6", "executors = 0", "executors: must be 1 to"),
        ("[1, 2]", "[]", "seeds: names none"),
        ("[1, 2]", "[1, 1]", "seeds: 1 occurs twice"),
        ("[1, 2]", "[-1]", "seeds: -1 must not be negative"),
        ("[[arms]]", "arrival_mean_s = -1\n[[arms]]", "arrival_mean_s: a mean gap of"),
        ("[[arms]]", "time_scale = 0\n[[arms]]", "time_scale: must be above 0 and at most 1"),
        ("[[arms]]", "[fabric]\nbyte_scale = 0\n[[arms]]", "fabric.byte_scale: must be above 0"),
        ("[[arms]]", "[fabric]\nhost_mbps = -1\n[[arms]]", "fabric: host_mbps = -"),
        (
            "[[arms]]",
            '[fabric]\nshape = "leaf-spine"\nleaves = 9\n[[arms]]',
            "fabric: 6 hosts at 9 leaves",
        ),
        (
            "[[arms]]",
            '[fabric]\nshape = "ring"\n[[arms]]',
            "fabric.shape: .*'star' or 'leaf-spine'",
        ),
        (
            "executors = 6",
            'driver = "emulated"\nexecutors = 251',
            "executors: each is a host; at most 250",
        ),
        ("[[arms]]", 'arrivals = "often"\n[[arms]]', "arrivals: .*'poisson', 'bursty'"),
        (
            "[[arms]]",
            'arrivals = "bursty"\n[bursts]\nmean_jobs = 0.5\n[[arms]]',
            "bursts: needs mean_burst",
        ),
        ("[[arms]]", "[cluster]\nmoving_delay_s = -1\n[[arms]]", "cluster.moving_delay_s: must"),
        ("[[arms]]", "[cluster]\nstraggler_share = 2\n[[arms]]", "cluster: straggler_share 2"),
        (
            "[[arms]]",
            "[cluster.speculation]\nquantile = 0.0\n[[arms]]",
            "cluster.speculation: needs 0 < quantile",
        ),
        (
            "[[arms]]",
            "[[cluster.outages]]\nexecutor = 6\nfrom_s = 1\n[[arms]]",
            "cluster.outages.0.executor: must be 0 to 5",
        ),
        (
            "[[arms]]",
            "[[cluster.outages]]\nexecutor = 1\nfrom_s = 1\n"
            "[[cluster.outages]]\nexecutor = 1\nfrom_s = 5\n[[arms]]",
            "cluster.outages.1: executor 1 is gone already",
        ),
        (
            "[[arms]]",
            'episode = "x"\n[cluster]\nwarmup_s = 0.0\n[[arms]]',
            "cluster: a recorded episode has its own",
        ),
        ("[[arms]]", '[scheduler]\nfallback = "bba"\n[[arms]]', "scheduler.fallback: .*there are"),
    ],
)
def test_mistakes_name_file_key_and_alternatives(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write_experiment(tmp_path, TOML.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_experiment(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('"fair"', '"bba"', UnknownController, "scheduling controller 'bba'; there are .*fair"),
        ("builtin:tpch-like", "builtin:none", DataNotFound, "there are builtin:tpch-like"),
        ("builtin:tpch-like", "nowhere", DataNotFound, "nowhere"),
        ("builtin:tpch-like", "data:tpch", DataNotFound, "needs the data folder"),
        ("builtin:tpch-like", ".", ConfigError, "jobs: .*no folder 2g"),
        ("builtin:tpch-like", "scheduling.toml", ConfigError, r"jobs: .*scheduling.toml:1: \d"),
        ("builtin:tpch-like", 'trace.csv"\narrivals = "recorded', ConfigError, "has 2 whole jobs"),
        ("[[arms]]", 'arrivals = "recorded"\n[[arms]]', ConfigError, "no recorded arrivals"),
        ("[[arms]]", "limit = 3\n[[arms]]", ConfigError, "limit: of jobs read from a trace"),
        ("[[arms]]", 'episode = "x.json"\n[[arms]]', DataNotFound, "x.json"),
        ("[[arms]]", '[fabric]\ntraces = "nowhere"\n[[arms]]', DataNotFound, "nowhere"),
        (
            "[[arms]]",
            '[fabric]\ntraces = "trace.csv"\n[[arms]]',
            TraceFormatError,
            r"trace.csv:1: ",
        ),
        ("[[arms]]", 'episode = "trace.csv"\n[[arms]]', ConfigError, "episode: .*trace.csv"),
    ],
)
def test_what_an_experiment_names_is_checked_before_it_runs(
    tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "trace.csv").write_text(BATCH_TASKS)
    with pytest.raises(error, match=message):
        plan_of(tmp_path, (old, new))


def test_sessions_go_seed_by_seed_over_all_arms(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert [(one.unit, one.arm.label, one.is_recorded) for one in plan.sessions] == [
        ("seed 1", "fair", True),
        ("seed 1", "fifo_capped", True),
        ("seed 2", "fair", False),
        ("seed 2", "fifo_capped", False),
    ]
    assert [len(plan.workloads[seed]) for seed in (1, 2)] == [4, 4]
    assert plan.workloads[1] != plan.workloads[2]
    assert isinstance(plan.durations(1), DrawnDurations)
    alone = plan_of(tmp_path, ("seeds = [1, 2]", 'seed = 7\nrecord_tasks = "none"'))
    assert [(one.seed, one.is_recorded) for one in alone.sessions] == [(7, False), (7, False)]


def test_the_same_seed_draws_the_same_jobs(tmp_path: Path) -> None:
    def told(seeds: str) -> list[tuple[float, str, int]]:
        jobs = plan_of(tmp_path, ("[1, 2]", seeds)).workloads[2]
        return [(one.arrived_ms, one.graph.name, one.graph.total_tasks) for one in jobs]

    assert told("[1, 2]") == told("[2]")


def test_jobs_of_a_trace_come_as_recorded_or_drawn(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(BATCH_TASKS)
    jobs = ("builtin:tpch-like", 'trace.csv"\narrivals = "recorded')
    plan = plan_of(tmp_path, jobs, ("num_jobs = 4", "num_jobs = 2"))
    assert [one.arrived_ms for one in plan.workloads[1]] == [0.0, 60_000.0]
    assert [len(one.graph.stages) for one in plan.workloads[2]] == [2, 1]
    drawn = plan_of(tmp_path, ("builtin:tpch-like", "trace.csv"), ("num_jobs = 4", "num_jobs = 9"))
    assert {one.graph.name for one in drawn.workloads[1]} == {"j_1", "j_2"}
    first = plan_of(tmp_path, ("builtin:tpch-like", 'trace.csv"\nlimit = 1\nrecord_tasks = "none'))
    assert {one.graph.name for one in first.workloads[1]} == {"j_1"}


def test_another_warm_up_changes_the_durations_of_fresh_executors(tmp_path: Path) -> None:
    usual = plan_of(tmp_path).workloads[1]
    cold = plan_of(tmp_path, ("[[arms]]", "[cluster]\nwarmup_s = 9.0\n[[arms]]")).workloads[1]
    for one, other in zip(usual, cold, strict=True):
        before, after = one.graph.stages[0].durations, other.graph.stages[0].durations
        assert isinstance(before, WaveDurations)
        assert isinstance(after, WaveDurations)
        assert (before.warmup_ms, after.warmup_ms) == (1000.0, 9000.0)
        assert after.rest == before.rest


@pytest.mark.parametrize("name", ["scheduling-builtin", "scheduling-tpch"])
def test_the_examples_can_be_read_and_planned(name: str) -> None:
    path = EXAMPLES / f"{name}.toml"
    experiment = read_experiment(path)
    assert isinstance(experiment, SchedulingExperiment)
    if experiment.jobs.startswith("builtin:"):
        assert plan_experiment(experiment, data_dir=None, base=path.parent).sessions


def test_links_of_executors_follow_the_traces_that_are_named(tmp_path: Path) -> None:
    fabric = '[fabric]\ntraces = "builtin:hsdpa"\nbyte_scale = 0.5\nshape = "leaf-spine"\n[[arms]]'
    plan = plan_of(tmp_path, ("[[arms]]", fabric), ("executors = 6", "executors = 23"))
    assert plan.fabric is not None
    names = [link.trace.name for link in plan.fabric.links if link.trace is not None]
    assert len(names) == 2 * 23
    assert names[:20] == [trace.name for trace in plan.link_traces]
    assert names[20:26] == [*names[:3], *names[:3]]
    assert plan.fabric.links[0].rate_mbps == pytest.approx(plan.link_traces[0].mean_mbps / 2)
    assert plan.fabric.spine_mbps == 6 * 500.0 / (2 * 2)  # of host_mbps
    assert plan_of(tmp_path, ("[[arms]]", "[fabric]\n[[arms]]")).link_traces == ()
