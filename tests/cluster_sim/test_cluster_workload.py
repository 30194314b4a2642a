"""Workloads: TPC-H, arrivals, the generative model, Alibaba's trace, bytes of shuffles."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster_sim.alibaba import AlibabaFormatError, AlibabaLibrary, read_alibaba
from cluster_sim.arrivals import (
    ArrivalError,
    Arrivals,
    BurstyArrivals,
    PoissonArrivals,
    RecordedArrivals,
)
from cluster_sim.durations import ConstantDurations
from cluster_sim.generated import GeneratedLibrary, generate_graph
from cluster_sim.jobs import JobError, Stage, Wave
from cluster_sim.shuffles import with_shuffle_bytes
from cluster_sim.tpch import TpchFormatError, TpchLibrary, read_query
from cluster_sim.workload import make_workload

WAVES = {"5": [5, 6], "10": [7]}
STAGE = {"fresh_durations": {}, "first_wave": WAVES, "rest_wave": {"5": [1]}}


def document(**changes: Any) -> dict[str, Any]:
    whole = {"query": 3, "input_size": "2g", "edges": [[0, 1]], "stages": [STAGE, STAGE]}
    return {**whole, **changes}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "query03.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def times(arrivals: Arrivals, count: int, seed: int = 0) -> list[float]:
    stream = arrivals.times_ms(np.random.default_rng(seed))
    return [next(stream) for _ in range(count)]


def test_a_query_is_read(tmp_path: Path) -> None:
    graph = read_query(write(tmp_path, document()))
    assert graph.name == "tpch-2g-query03"
    assert [stage.tasks for stage in graph.stages] == [3, 3]  # first and rest at 5 executors
    assert graph.parents == ((), (0,))
    assert graph.edges[0].shuffle_bytes == 600_000_000
    assert graph.stages[0].durations.choices_ms(Wave.REST, 0) == (1.0,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n?", "query03.json:2: "),
        ([], "must be an object"),
        ({"query": 1}, "no key 'input_size'"),
        (document(input_size="large"), "'large' is no number of gigabytes"),
        (document(edges=[[0]]), "is no pair"),
        (document(edges=[[0, 5]]), "unknown child 5"),
        (document(edges=[[0, 1], [1, 0]]), "stages 0, 1 wait for each other"),
        (document(stages=[STAGE, {}]), "stage 1: needs the keys first_wave"),
        (document(stages=[STAGE, {**STAGE, "first_wave": {}}]), "stage 1: first_wave"),
        (document(stages=[{**STAGE, "rest_wave": {"5": [-3]}}, STAGE]), "stage 0: rest durations"),
        (document(stages=[{**STAGE, "rest_wave": {"x": [3]}}, STAGE]), "stage 0: rest_wave"),
        (document(stages=[{**STAGE, "first_wave": {"5": []}, "rest_wave": {}}, STAGE]), "stage 0"),
    ],
)
def test_what_is_no_query_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(TpchFormatError, match=message):
        read_query(write(tmp_path, content))


def test_a_folder_without_queries_is_named(tmp_path: Path) -> None:
    with pytest.raises(TpchFormatError, match="no folder 2g"):
        TpchLibrary(tmp_path)


def test_all_queries_are_read_and_seed_0_gives_the_recorded_jobs(
    data_dir: Path, reference_dir: Path
) -> None:
    library = TpchLibrary(data_dir / "tpch")
    for size in ("2g", "100g"):
        for query in range(1, 23):
            assert library.graph(query, size).work_ms > 0
    path = reference_dir / "cjs_fifo_5jobs.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))["jobs"]
    rng = np.random.default_rng(0)
    jobs = make_workload(library, PoissonArrivals(), num_jobs=len(recorded), rng=rng)
    for job, wanted in zip(jobs, recorded, strict=True):
        assert job.graph.name == f"tpch-{wanted['input_size']}-query{wanted['query']:02d}"
        assert job.arrived_ms == pytest.approx(wanted["arrived_ms"], abs=1e-6)
        assert [stage.tasks for stage in job.graph.stages] == wanted["tasks_per_stage"]
        assert sorted([edge.parent, edge.child] for edge in job.graph.edges) == wanted["edges"]


@pytest.mark.parametrize(
    "arrivals", [PoissonArrivals(100.0), BurstyArrivals(mean_gap_ms=100.0, inner_gap_ms=5.0)]
)
def test_gaps_have_the_mean_asked_for(arrivals: Arrivals) -> None:
    found = times(arrivals, 40_001)
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] / 40_000 == pytest.approx(100.0, rel=0.05)
    assert found == times(arrivals, 40_001)


def test_bursts_are_burstier() -> None:
    gaps = np.diff(times(BurstyArrivals(mean_gap_ms=100.0, inner_gap_ms=5.0), 20_001))
    assert np.std(gaps) / np.mean(gaps) > 2.0  # 1 for Poisson


def test_impossible_arrivals_are_refused() -> None:
    for make in (
        lambda: PoissonArrivals(-1.0),
        lambda: PoissonArrivals(math.nan),
        lambda: BurstyArrivals(mean_burst=0.5),
        lambda: BurstyArrivals(mean_gap_ms=10.0, inner_gap_ms=20.0),
        lambda: RecordedArrivals((-1.0,)),
        lambda: RecordedArrivals((0.0, 5.0, 4.0)),
        lambda: RecordedArrivals((0.0, math.nan)),
    ):
        with pytest.raises(ArrivalError):
            make()


def test_recorded_arrivals_must_suffice() -> None:
    arrivals = RecordedArrivals((3.0, 8.0))
    rng = np.random.default_rng(0)
    jobs = make_workload(GeneratedLibrary(), arrivals, num_jobs=2, rng=rng)
    assert [(job.job, job.arrived_ms) for job in jobs] == [(0, 3.0), (1, 8.0)]
    with pytest.raises(JobError, match="3 jobs asked for, but 2"):
        make_workload(GeneratedLibrary(), arrivals, num_jobs=3, rng=rng)
    with pytest.raises(JobError, match="0 jobs"):
        make_workload(GeneratedLibrary(), arrivals, num_jobs=0, rng=rng)


def test_generated_jobs_are_seeded_and_end_in_one_stage() -> None:
    for seed in range(30):
        graph = generate_graph("g", np.random.default_rng(seed))
        again = generate_graph("g", np.random.default_rng(seed))
        assert graph.edges == again.edges
        assert [one.tasks for one in graph.stages] == [one.tasks for one in again.stages]
        assert [one for one, row in enumerate(graph.children) if not row] == [len(graph.stages) - 1]
        assert 2 <= len(graph.stages) <= 20


def test_shuffles_share_the_input_and_shrink() -> None:
    stages = [Stage(tasks, ConstantDurations(1.0)) for tasks in (1, 3, 5, 2)]
    edges = with_shuffle_bytes(stages, [(0, 2), (1, 2), (2, 3)], 1000.0, selectivity=0.5)
    assert [edge.shuffle_bytes for edge in edges] == [125, 375, 250]


def alibaba(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "batch_task.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


ROWS = (
    "M1,2,j_1,1,Terminated,100,110,100.00,0.20",
    "M2,3,j_1,1,Terminated,100,104,100.00,0.20",
    "R4_1_2,1,j_1,1,Terminated,110,125,100.00,0.20",
    "task_NjY2,5,j_2,2,Terminated,90,91,50.00,0.10",
    "M1,1,j_3,1,Failed,90,91,50.00,0.10",
    "J2_7,1,j_4,1,Terminated,90,91,50.00,0.10",
    "M1_Stg3,1,j_5,1,Terminated,95,97,50.00,0.10",
)


def test_graphs_are_read_from_task_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jobs = read_alibaba(alibaba(tmp_path, *ROWS))
    assert [(job.job, job.graph.name, job.arrived_ms) for job in jobs] == [
        (0, "j_2", 0.0),
        (1, "j_5", 5000.0),
        (2, "j_1", 10_000.0),
    ]
    graph = jobs[2].graph
    assert graph.parents == ((), (), (0, 1))
    assert [stage.tasks for stage in graph.stages] == [2, 3, 1]
    assert [stage.durations.mean_ms for stage in graph.stages] == [10_000, 4000, 15_000]
    assert jobs[1].graph.parents == ((),)
    assert "left out 2 of 5 jobs" in caplog.text
    assert len(read_alibaba(alibaba(tmp_path, *ROWS), limit=1)) == 1
    picked = AlibabaLibrary(jobs).pick(np.random.default_rng(0))
    assert picked.name in {"j_1", "j_2", "j_5"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("M1,2,j_1", r"batch_task.csv:2: 3 columns; it needs 9: task_name"),
        ("M1,two,j_1,1,Terminated,1,2,3,4", "batch_task.csv:2: instance_num 'two'"),
        ("M1,2,j_1,1,Terminated,x,2,3,4", "batch_task.csv:2: start_time 'x'"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(AlibabaFormatError, match=message):
        read_alibaba(alibaba(tmp_path, ROWS[3], row))
    with pytest.raises(AlibabaFormatError, match="no job that is whole"):
        read_alibaba(alibaba(tmp_path, ROWS[4]))
