"""What the report says of a cluster's network."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from scheduling_entries import plan_of

from testbed.result_rows import ResultsError
from testbed.scheduling_charts import ExecutorAxes
from testbed.scheduling_network import link_chart, network_tables, read_link_samples
from testbed.scheduling_records import SchedulingSessionRecord, SimulatedTwin
from testbed.scheduling_report import MOST_JOBS, _job_views
from testbed.scheduling_simulation import SchedulingPlayer


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> SchedulingSessionRecord:
    """A session with a network."""
    plan = plan_of(tmp_path_factory.mktemp("network"), ("[[arms]]", "[fabric]\n[[arms]]"))
    return SchedulingPlayer(plan).play(plan.sessions[0])


def write_samples(folder: Path, *rows: tuple[str, float, float]) -> None:
    """Samples of 10 s, with what was used of 100 bits."""
    common = {"arm": "fair", "seed": 1, "asked_bits": 100}
    lines = [
        common | {"link": link, "begin_s": at, "end_s": at + 10.0, "delivered_bits": used}
        for link, at, used in rows
    ]
    (folder / "link.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_links_are_drawn_by_what_they_join(tmp_path: Path, record: SchedulingSessionRecord) -> None:
    names = ("host0>leaf0", "leaf0>host0", "leaf0>spine0", "spine0>leaf0")
    used = (0.0, 10.0, 50.0, 130.0)
    write_samples(
        tmp_path,
        *(("host0>leaf0", at, 7.0) for at in (0.0, 10.0)),  # of a run that was cut off
        *((name, 0.0, share) for name, share in zip(names, used, strict=True)),
    )
    links = read_link_samples(tmp_path)["fair", 1]
    assert {name: [one.share for one in samples] for name, samples in links.items()} == {
        "host0>leaf0": [0.0],
        "leaf0>host0": [0.1],
        "leaf0>spine0": [0.5],
        "spine0>leaf0": [1.0],
    }
    drawing = str(link_chart(record, links, ExecutorAxes.of([record])))
    for label in ("host up", "host down", "leaf up", "leaf down"):
        assert f">{label}<" in drawing
    assert re.findall(r'class="shade s(\d)"', drawing) == ["0", "2", "4"]
    assert link_chart(record, {}, ExecutorAxes.of([record])) is None


def test_no_file_is_no_network_and_a_bad_line_is_named(tmp_path: Path) -> None:
    assert read_link_samples(tmp_path) == {}
    (tmp_path / "link.jsonl").write_text('{"arm": "fair"}\n')
    with pytest.raises(ResultsError, match=r"link.jsonl:1: seed"):
        read_link_samples(tmp_path)


def test_live_and_simulated_are_compared_seed_by_seed(record: SchedulingSessionRecord) -> None:
    assert record.network is not None
    assert record.jct_s is not None
    assert record.makespan_s is not None
    assert [one.title for one in network_tables(["fair"], [record])] == ["What was shuffled"]
    bare = dataclasses.replace(record, network=None)
    assert network_tables(["fair"], [bare]) == []
    twins = [
        SimulatedTwin(
            jct_s=record.jct_s.mean / ratio,
            makespan_s=record.makespan_s,
            fetch_s=record.network.fetch_s * 2,
        )
        for ratio in (0.9, 1.2)
    ]
    rows = [
        dataclasses.replace(
            record, seed=seed, network=dataclasses.replace(record.network, simulated=twin)
        )
        for seed, twin in enumerate(twins)
    ]
    _, compared = network_tables(["fair"], rows)
    arm, seeds, _, _, *ratios = compared.rows[0]
    assert (arm, seeds) == ("fair", "2")
    assert ratios == ["1.050", "0.900", "1.200", "1.000", "0.500"]


def test_jobs_with_most_stages_come_first(record: SchedulingSessionRecord) -> None:
    views = _job_views(record)
    assert len(views) == min(len(record.jobs), MOST_JOBS)
    stages = [int(re.findall(r", (\d+) stage", view.name)[0]) for view in views]
    assert stages == sorted((job.stages for job in record.jobs), reverse=True)
    assert sum("which no job took longer than" in view.told for view in views) == 1
    assert _job_views(dataclasses.replace(record, tasks=None)) == ()
