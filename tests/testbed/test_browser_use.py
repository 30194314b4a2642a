"""What browsers used of the machine, as records and reports tell it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from player.records import ChunkRecord, LinkRecord, ProcessRecord, SessionRecord
from testbed.browser_views import browser_use
from testbed.report import build_report
from testbed.result_rows import SESSIONS
from testbed.results import read_sessions

USED = ProcessRecord(cpu_s=5.0, peak_mib=300.0, processes=9)


@pytest.fixture
def row() -> SessionRecord:
    chunk = ChunkRecord(0, 0, 300.0, 10**5, 0.0, 1.0, 800.0, 4.0, 0.5, 0.0, False, 0.3)
    return SessionRecord(
        arm="bba",
        controller="bba",
        trace="t",
        seed=0,
        driver="emulated",
        status="ok",
        error=None,
        qoe_per_chunk=0.3,
        startup_s=0.5,
        wall_s=20.0,
        start_index=1,
        link=LinkRecord(backend="userspace"),
        chunks=(chunk, dataclasses.replace(chunk, index=1)),
        player="dashjs",
        browser=USED,
    )


def test_a_line_of_facts(row: SessionRecord) -> None:
    other = dataclasses.replace(row, wall_s=10.0, browser=dataclasses.replace(USED, peak_mib=411.6))
    alone = dataclasses.replace(row, browser=None)
    assert browser_use([row]) == "0.25 cores, at most 300 MiB"
    assert browser_use([row, other, alone]) == "0.38 cores, at most 412 MiB"
    assert browser_use([alone]) == ""


def test_it_is_in_the_results_and_in_the_report(row: SessionRecord, tmp_path: Path) -> None:
    (tmp_path / SESSIONS).write_text(json.dumps(dataclasses.asdict(row)) + "\n")
    assert read_sessions(tmp_path)[0].browser == USED
    report = build_report([tmp_path])
    assert report is not None
    line = "0.25 cores, at most 300 MiB"
    assert report.read_text().count(line) == 2  # of the run, and of the session
