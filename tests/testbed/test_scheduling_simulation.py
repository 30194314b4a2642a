"""Simulated scheduling sessions: records, what is traced, and decisions that are none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scheduling_entries import (
    LeavesIdle,
    NamesFinishedStages,
    NamesTooManyExecutors,
    Raises,
    plan_of,
)

from testbed.scheduling_plans import SchedulingPlan
from testbed.scheduling_records import SchedulingSessionRecord
from testbed.scheduling_simulation import SchedulingPlayer

FAULTS = """
[cluster]
straggler_share = 0.2
[cluster.speculation]
multiplier = 1.2
[[cluster.outages]]
executor = 2
from_s = 5.0
until_s = 60.0
[[arms]]"""


def played(
    plan: SchedulingPlan, controller: Any, monkeypatch: pytest.MonkeyPatch
) -> SchedulingSessionRecord:
    """The record of the first session if the arm's controller were this one."""
    player = SchedulingPlayer(plan)
    monkeypatch.setattr(player._controllers, "of", lambda arm: controller)
    return player.play(plan.sessions[0])


def test_what_is_recorded_changes_nothing_else(tmp_path: Path) -> None:
    records = []
    for which in ("first", "none"):
        plan = plan_of(tmp_path, ("[[arms]]", f'record_tasks = "{which}"\n[[arms]]'))
        records.append(SchedulingPlayer(plan).play(plan.sessions[0]))
    traced, plain = records
    assert traced.status == plain.status == "ok"
    assert (traced.jct_s, traced.makespan_s) == (plain.jct_s, plain.makespan_s)
    assert (traced.events, traced.decisions) == (plain.events, plain.decisions)
    assert (plain.tasks, plain.utilisation, plain.queueing_s) == (None, None, None)
    assert [one.jct_s for one in traced.jobs] == [one.jct_s for one in plain.jobs]
    assert len(traced.decisions_ms) == traced.decisions


@pytest.mark.parametrize("changes", [(), (("[[arms]]", FAULTS),)])
def test_stints_of_an_executor_do_not_overlap_and_add_up(
    tmp_path: Path, changes: tuple[tuple[str, str], ...]
) -> None:
    plan = plan_of(tmp_path, *changes)
    record = SchedulingPlayer(plan).play(plan.sessions[0])
    assert record.error is None
    assert record.tasks is not None
    assert record.utilisation is not None
    assert record.makespan_s is not None
    assert 0 < record.utilisation <= 1
    until_s = dict.fromkeys(range(record.executors), 0.0)
    busy_s = 0.0
    for one in record.tasks.stints:
        assert until_s[one.executor] <= one.from_s + 0.0011 <= one.until_s + 0.0011
        until_s[one.executor] = one.until_s
        busy_s += one.until_s - one.from_s
    capacity_s = record.executors * record.makespan_s
    assert busy_s / capacity_s == pytest.approx(record.utilisation, rel=0.01)
    arrived_s = [job.arrived_s for job in record.jobs]
    assert all(one.from_s >= arrived_s[one.job] for one in record.tasks.stints)
    longest = max(record.jobs, key=lambda job: job.jct_s)
    assert record.tasks.longest_job == longest.id
    assert len(record.tasks.stages) == longest.stages
    ends_s = [one.finished_s for one in record.tasks.stages]
    assert max(ends_s) == pytest.approx(longest.finished_s, abs=0.001)
    for one in record.tasks.stages:
        assert all(ends_s[parent] <= one.began_s + 0.0011 for parent in one.parents)
    if changes:
        lost = [one for one in record.tasks.stints if one.executor == 2]
        assert not any(one.until_s > 5.001 and one.from_s < 60 for one in lost)


def test_a_job_waits_for_its_first_task_as_long_as_an_executor_moves(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    record = SchedulingPlayer(plan).play(plan.sessions[0])
    assert record.jobs[0].queueing_s == 2.0
    assert record.queueing_s is not None
    assert all((job.queueing_s or 0.0) >= 2.0 for job in record.jobs)


def test_thinking_time_is_charged(tmp_path: Path) -> None:
    slow = plan_of(tmp_path, ("[[arms]]", "[simulation]\ndecision_s = 3.0\n[[arms]]"))
    record = SchedulingPlayer(slow).play(slow.sessions[0])
    assert ((record.jobs[0].queueing_s or 0.0) - 2.0) % 3.0 == pytest.approx(0.0)
    quick = plan_of(tmp_path)
    usual = SchedulingPlayer(quick).play(quick.sessions[0])
    assert record.jct_s is not None
    assert usual.jct_s is not None
    assert record.jct_s.mean > usual.jct_s.mean
    measured = plan_of(tmp_path, ("[[arms]]", '[simulation]\ndecision_s = "measured"\n[[arms]]'))
    assert SchedulingPlayer(measured).play(measured.sessions[0]).error is None


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (NamesFinishedStages(), r"InvalidAssignment: stage 0 of job 0 is finished.*that may: "),
        (NamesTooManyExecutors(), r"InvalidAssignment: .*names 7 executors; there are 1 to 6"),
        (Raises(), "ZeroDivisionError: no idea at 0 s"),
        (LeavesIdle(), "ClusterStateError: .*wait for executors"),
    ],
)
def test_what_cannot_be_carried_out_fails_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controller: Any, message: str
) -> None:
    record = played(plan_of(tmp_path), controller, monkeypatch)
    assert record.status == "failed"
    assert re.match(message, record.error or "")
    assert (record.jct_s, record.makespan_s, record.jobs) == (None, None, ())
    assert record.decisions >= 1


@pytest.mark.parametrize("make", [NamesFinishedStages, NamesTooManyExecutors, Raises])
def test_a_fallback_decides_instead_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]
) -> None:
    plan = plan_of(tmp_path, ("[[arms]]", '[scheduler]\nfallback = "fair"\n[[arms]]'))
    record = played(plan, make(), monkeypatch)
    assert record.error is None
    assert 0 < record.fallbacks <= record.decisions
    if make is Raises:
        fair = SchedulingPlayer(plan).play(plan.sessions[0])
        assert record.fallbacks == record.decisions
        assert record.jct_s == fair.jct_s
        assert fair.fallbacks == 0


@pytest.mark.parametrize("name", ["random", "sjf_cp", "weighted_fair", "fifo"])
def test_every_scheduler_finishes_every_job(tmp_path: Path, name: str) -> None:
    plan = plan_of(tmp_path, ('"fair"', f'"{name}"'))
    record = SchedulingPlayer(plan).play(plan.sessions[2])
    assert record.status == "ok"
    assert record.controller == name
    assert [job.id for job in record.jobs] == [0, 1, 2, 3]
    assert record.jct_s is not None
    mean = math.fsum(job.jct_s for job in record.jobs) / 4
    assert record.jct_s.mean == pytest.approx(mean)
    assert record.makespan_s == max(job.finished_s for job in record.jobs)


def test_with_a_fabric_tasks_read_over_it(tmp_path: Path) -> None:
    table = "record_tasks = 'all'\n[fabric]\nbyte_scale = 0.5\nhost_mbps = {}\n[[arms]]"
    ample, scarce = (
        SchedulingPlayer(plan).play(plan.sessions[0])
        for mbps in ("1e9", "1e4")
        for plan in (plan_of(tmp_path, ("[[arms]]", table.format(mbps))),)
    )
    bare_plan = plan_of(tmp_path)
    bare = SchedulingPlayer(bare_plan).play(bare_plan.sessions[0])
    assert bare.network is None
    assert bare.jct_s is not None
    assert ample.jct_s is not None
    assert scarce.jct_s is not None
    assert ample.jct_s.mean == pytest.approx(bare.jct_s.mean, rel=0.001)
    assert scarce.jct_s.mean > 1.01 * bare.jct_s.mean
    assert scarce.network is not None
    assert scarce.tasks is not None
    network, runs = scarce.network, scarce.tasks.runs
    assert network.backend == "model:fluid"
    edges = [edge.shuffle_bytes for job in bare_plan.workloads[1] for edge in job.graph.edges]
    assert network.planned_bytes == pytest.approx(0.5 * sum(edges), rel=1e-6)
    assert sum(one.remote_bytes for one in runs) == network.remote_bytes
    assert len(runs) == sum(job.tasks for job in scarce.jobs)
    read = [one for one in runs if one.remote_bytes]
    assert read
    for one in read:
        assert one.compute_s is not None
        assert one.start_s <= one.compute_s <= one.end_s  # to the millisecond
        assert one.bytes_per_s is not None
    assert [one.job for one in scarce.tasks.jobs] == [job.id for job in scarce.jobs]
