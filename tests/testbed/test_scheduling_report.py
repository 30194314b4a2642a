"""The report of task scheduling, over folders that real runs wrote."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from testbed.experiment import parse_experiment, plan_experiment
from testbed.report import build_report
from testbed.result_rows import read_records
from testbed.runner import run_experiment
from testbed.scheduling_charts import ExecutorAxes, active_jobs, executor_chart, job_chart
from testbed.scheduling_records import FinishedJob, SchedulingSessionRecord, StageRun
from testbed.scheduling_report import MOST_SEEDS
from testbed.scheduling_views import thinned

EVIL = "<script>alert('jobs')</script>"
VOID = {"meta", "link", "br", "input", "hr", "img"}
DOCUMENT: dict[str, Any] = {
    "task": "scheduling",
    "num_jobs": 3,
    "executors": 5,
    "seeds": [1, 2],
    "arms": [{"controller": "fair"}, {"controller": "fifo", "name": EVIL}],
}


class Silent:
    """Tells nobody."""

    def planned(self, sessions: int, finished: int) -> None: ...

    def session_advanced(self, session: object, share: float) -> None: ...

    def session_finished(self, record: object) -> None: ...


class Page(HTMLParser):
    """Checks that every element that is opened is closed, and collects what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert name not in ("src", "srcset"), value

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder."""
    folder = tmp_path_factory.mktemp("scheduling") / "out"
    experiment = parse_experiment(DOCUMENT, where="test")
    plan = plan_experiment(experiment, data_dir=None, base=folder.parent)
    outcome = run_experiment(plan, folder, jobs=1, resume=False, progress=Silent())
    assert outcome.report == folder / "report.html"
    return folder


def test_the_report_is_one_page_that_loads_nothing(played: Path) -> None:
    text = (played / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert EVIL not in text
    assert not re.search(r"(href|url\()=?[\"']?https?:", text)
    assert page.seen["svg"] >= 4 + 2 * 2
    assert "Difference to fair" in text
    assert "seed 1" in text
    assert "which no job took longer than" in text


def test_runs_are_set_side_by_side_and_failures_shown(played: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "experiment.toml").write_text((played / "experiment.toml").read_text())
    rows = [json.loads(line) for line in (played / "sessions.jsonl").read_text().splitlines()]
    rows[0] |= {"status": "failed", "error": EVIL, "jct_s": None, "makespan_s": None}
    rows[0] |= {"jobs": [], "tasks": None, "utilisation": None, "queueing_s": None}
    (other / "sessions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = build_report([played, other], tmp_path / "both.html")
    assert path is not None
    text = path.read_text(encoding="utf-8")
    Page().feed(text)
    assert "Side by side" in text
    assert "Failed sessions" in text
    assert EVIL not in text


def test_every_stint_is_drawn_in_the_line_of_its_executor(played: Path) -> None:
    rows = [row for row in read_records(played, SchedulingSessionRecord) if row.tasks]
    axes = ExecutorAxes.of(rows)
    assert axes.end_s == max(row.makespan_s or 0.0 for row in rows)
    drawing = str(executor_chart(rows[0], axes))
    heights = {float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h[\d.]+v", drawing)}
    assert len(heights) == 5
    assert len(re.findall('class="bar"', drawing)) == 3  # a path per job's colour
    bare = [row for row in read_records(played, SchedulingSessionRecord) if not row.tasks]
    assert executor_chart(bare[0], axes) is None


def test_jobs_in_the_system_are_counted() -> None:
    jobs = [
        FinishedJob(id=0, arrived_s=0.0, finished_s=9.0, jct_s=9.0),
        FinishedJob(id=1, arrived_s=5.0, finished_s=7.0, jct_s=2.0),
        FinishedJob(id=2, arrived_s=7.0, finished_s=8.0, jct_s=1.0),
    ]
    assert active_jobs(jobs) == [(0.0, 1), (5.0, 2), (7.0, 2), (8.0, 1), (9.0, 0)]
    assert active_jobs([]) == []


def test_stages_stand_to_the_right_of_what_they_wait_for() -> None:
    def stage(index: int, *parents: int) -> StageRun:
        return StageRun(
            stage=index,
            parents=parents,
            tasks=10 + index,
            busy_s=float(index),
            began_s=1.0,
            finished_s=2.0,
        )

    # Parents need not come first.
    drawing = str(job_chart([stage(0, 2), stage(1), stage(2, 1), stage(3, 0, 1)], "a job"))
    places = re.findall(r'<rect x="([\d.]+)"[^>]*class="node"><title>stage (\d)', drawing)
    across = {int(index): float(x) for x, index in places}
    assert across[1] < across[2] < across[0] < across[3]
    assert drawing.count('class="edge"') == 4
    assert job_chart([], "nothing") is None


def test_many_values_are_thinned_to_their_distribution() -> None:
    values = [float(value) for value in range(10_000)]
    kept = thinned(values)
    assert len(kept) < 1000
    assert (min(kept), max(kept)) == (0.0, 9999.0)
    assert sorted(kept)[len(kept) // 2] == pytest.approx(5000, rel=0.01)
    assert thinned([3.0, 1.0]) == [3.0, 1.0]
    assert MOST_SEEDS >= 1
