"""The summary of task scheduling: means over seeds, pairs by seed, what failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.experiment import parse_experiment
from testbed.result_files import ResultFiles
from testbed.result_rows import ResultsError, read_records
from testbed.results import write_summary
from testbed.scheduling_outcome import spread
from testbed.scheduling_records import FinishedJob, SchedulingSessionRecord, Spread
from testbed.scheduling_results import summarize_sessions
from testbed.session_records import place_of, place_of_row
from testbed.summary_tables import summary_table

DOCUMENT: dict[str, Any] = {
    "task": "scheduling",
    "arms": [{"controller": "fair"}, {"controller": "fifo", "name": "first"}],
}


def record(
    arm: str, seed: int, *jct_s: float, error: str | None = None, **changes: Any
) -> SchedulingSessionRecord:
    jobs = tuple(
        FinishedJob(id=number, arrived_s=0.0, finished_s=value, jct_s=value)
        for number, value in enumerate(jct_s)
    )
    fields: dict[str, Any] = {
        "makespan_s": max(jct_s, default=None),
        "utilisation": None,
        "queueing_s": None,
        "fallbacks": 0,
        "decisions_ms": (1.0, 3.0),
    }
    return SchedulingSessionRecord(
        arm=arm,
        controller="fifo" if arm == "first" else arm,
        seed=seed,
        driver="simulated",
        status="ok" if error is None else "failed",
        error=error,
        jct_s=spread(jct_s),
        decisions=2,
        events=10,
        wall_s=0.1,
        executors=5,
        jobs=jobs,
        **(fields | changes),
    )


ROWS = (
    record("fair", 1, 10.0, 20.0, utilisation=0.5),
    record("first", 1, 20.0, 40.0),
    record("fair", 2, 100.0, 100.0),
    record("first", 2, 110.0, 110.0, fallbacks=2),
    record("fair", 3, 1.0, 1.0),
    record("first", 3, error="InvalidAssignment: no"),
)


def test_means_are_over_seeds_and_percentiles_over_jobs() -> None:
    fair, first = summarize_sessions(DOCUMENT, ROWS)["arms"]
    assert fair["jct_s"]["mean"] == pytest.approx((15.0 + 100.0 + 1.0) / 3)
    assert fair["jct_s"]["p50"] == pytest.approx(15.0)
    assert fair["makespan_s"]["mean"] == pytest.approx((20.0 + 100.0 + 1.0) / 3)
    assert (fair["jobs"], fair["utilisation"]) == (6, 0.5)
    assert fair["decision_ms"] == {"p50": 2.0, "p99": 3.0}
    assert (first["arm"], first["sessions"], first["failed"]) == ("first", 3, 1)
    assert (first["fallbacks"], first["jobs"]) == (2, 4)


def test_arms_are_compared_on_the_seeds_that_both_ended_well_on() -> None:
    (pair,) = summarize_sessions(DOCUMENT, ROWS)["pairs"]
    assert (pair["a"], pair["b"], pair["n"]) == ("fair", "first", 2)
    assert pair["delta"]["mean"] == pytest.approx((-15.0 - 10.0) / 2)
    assert pair["relative"]["mean"] == pytest.approx((-0.5 - 10 / 110) / 2)
    assert pair["makespan_s"]["mean"] == pytest.approx((-20.0 - 10.0) / 2)
    table = summary_table(summarize_sessions(DOCUMENT, ROWS))
    told = table.difference(pair)
    assert told.startswith("-12.50 [-15.00, -10.00] s, -29.5%")
    assert told.endswith("over 2 seeds")


def test_a_run_in_which_nothing_ended_well_has_a_summary() -> None:
    summary = summarize_sessions(DOCUMENT, [record("fair", 1, error="x")])
    assert summary["arms"][0]["jct_s"] == {
        **{"mean": None, "ci95": None},
        **{"p50": None, "p95": None, "p99": None},
    }
    table = summary_table(summary)
    assert table.columns[0].cell(summary["arms"][0]) == "–"


def test_records_are_read_back_equal_and_resumed_by_seed(tmp_path: Path) -> None:
    experiment = parse_experiment(DOCUMENT, where="test")
    files = ResultFiles.create(tmp_path / "out", experiment, resume=False)
    for row in ROWS:
        files.add_session(row)
    assert read_records(tmp_path / "out", SchedulingSessionRecord) == ROWS
    assert files.finished() == {
        *(("fair", "seed 1"), ("fair", "seed 2"), ("fair", "seed 3")),
        *(("first", "seed 1"), ("first", "seed 2")),
    }
    for line in (tmp_path / "out" / "sessions.jsonl").read_text().splitlines():
        assert place_of_row(json.loads(line)).unit.startswith("seed ")
    again = ResultFiles.create(tmp_path / "out", experiment, resume=True)
    assert len((tmp_path / "out" / "sessions.jsonl").read_text().splitlines()) == 5
    again.add_session(record("first", 3, 2.0, 2.0))
    assert [arm["failed"] for arm in write_summary(tmp_path / "out")["arms"]] == [0, 0]
    with (tmp_path / "out" / "sessions.jsonl").open("a") as file:
        file.write('{"arm": "fair", "seed": "one"}\n')
    with pytest.raises(ResultsError, match=r"sessions.jsonl:7: "):
        write_summary(tmp_path / "out")


def test_a_place_is_an_arm_and_a_seed() -> None:
    assert tuple(place_of(ROWS[1])) == ("first", "seed 1", 0)


def test_a_spread_has_a_mean_and_percentiles() -> None:
    assert spread([]) is None
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 2.0, pytest.approx(2.9), pytest.approx(2.98))
