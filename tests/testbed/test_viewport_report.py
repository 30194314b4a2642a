"""The report of task viewport, over folders that real runs wrote."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from player.angles import unwrap
from player.tiles import FieldOfView, TileGrid
from player.viewport_observation import HeadPose
from player.viewport_records import PredictedPose, TiledChunkRecord, ViewportSessionRecord
from testbed.experiment import parse_experiment, plan_experiment
from testbed.report import build_report
from testbed.result_rows import SESSIONS, ResultsError, read_records
from testbed.runner import run_experiment
from testbed.sphere_maps import chunk_map, fov_outline
from testbed.viewport_moments import MOST_MOMENTS, Seat, moments
from testbed.viewport_report import MOST_SESSIONS, render_viewport_report
from testbed.viewport_runs import Tiling, read_run, tiling_of
from testbed.viewport_timelines import play_times_s, viewer_axes, viewer_timeline

EVIL = "<script>alert('look')</script>"
VOID = {"meta", "link", "br", "input", "hr", "img"}
GRID, FOV = TileGrid(2, 4), FieldOfView()
ARMS = [{"controller": "static"}, {"controller": "damped"}, {"controller": "oracle"}]
STREAMED: dict[str, Any] = {
    "task": "viewport",
    "driver": "simulated",
    "viewports": "builtin:explorers",
    "users": [1, 2],
    "recordings": 2,
    "traces": "builtin:mixed",
    "limit": 2,
    "chunks": 6,
    "simulation": {"decision_s": 0.01},
    "arms": ARMS,
}
OFFLINE: dict[str, Any] = {
    "task": "viewport",
    "driver": "offline",
    "viewports": "builtin:explorers",
    "users": [1, 2],
    "recordings": 3,
    "arms": ARMS[:2],
}


class Checker(HTMLParser):
    """Follows which elements are open, and notes what could load something from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if tag == "a" and name == "href":
                self.anchors.append(value or "")
            elif name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.loads.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def checked(page: str) -> str:
    """The page, if it is one and loads nothing."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert checker.loads == []
    assert all(one.startswith("#") and one[1:] in checker.ids for one in checker.anchors)
    assert len(set(checker.ids)) == len(checker.ids)
    assert not re.search(r"https?://", page)
    assert "url(" not in page
    assert "@import" not in page
    words = re.sub(r"<(style|script|pre)>.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|None|inf)\b", words)
    return page


class Quiet:
    """Is told what a run does, and says nothing."""

    def planned(self, sessions: int, finished: int) -> None: ...

    def session_advanced(self, session: object, share: float) -> None: ...

    def session_finished(self, record: object) -> None: ...


def play(document: dict[str, Any], folder: Path) -> Path:
    plan = plan_experiment(
        parse_experiment(document, where="test"), data_dir=None, base=folder.parent
    )
    run_experiment(plan, folder, jobs=1, resume=False, progress=Quiet())
    return folder


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(STREAMED, tmp_path_factory.mktemp("streamed") / "run")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(OFFLINE, tmp_path_factory.mktemp("offline") / "run")


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the results with every session changed."""
    to.mkdir()
    for path in folder.iterdir():
        if path.name != SESSIONS:
            (to / path.name).write_bytes(path.read_bytes())
    rows = [json.loads(line) for line in (folder / SESSIONS).read_text().splitlines()]
    for row in rows:
        change(row)
    (to / SESSIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return to


def test_a_run_writes_its_report(streamed: Path, offline: Path) -> None:
    for folder in (streamed, offline):
        checked((folder / "report.html").read_text(encoding="utf-8"))


def test_streaming_says_who_showed_most_and_what_it_took(streamed: Path) -> None:
    page = checked(render_viewport_report([streamed]))
    for words in (
        "Viewport streaming, simulated: 3 arms on 2 recordings",
        "has the highest mean level in the field of view",
        "oracle is told the future",
        "Level in view: difference to static",
        "Blank: difference to static",
        "What was downloaded",
        "400, 1200, 3000, 6000, 12000 kbit/s",
        "6 of 1 s",
        "4 × 8",
        "100° × 100°",
    ):
        assert words in page, words
    assert "oracle has the highest" not in page  # it is no competitor
    assert "Did the link do" not in page
    assert page.count('class="timeline"') == 6
    # Once as shown without script, then every chunk to choose from: 2 recordings, 3 arms.
    assert page.count('class="sphere"') == 6 + 6 * 6 + 6  # and those of the key
    assert page.count("<template") == 12


def test_predictions_have_their_error_over_the_horizon(offline: Path) -> None:
    page = checked(render_viewport_report([offline]))
    for words in (
        "Viewport prediction, offline: 2 arms on 3 recordings",
        "has the lowest mean error",
        "20 samples, 4 s",
        "Difference to static",
        "Error over the horizon against static",
        "4.0 s ahead",
        "Distribution over the recordings",
    ):
        assert words in page, words
    assert 'class="timeline"' not in page
    assert 'class="sphere"' not in page


def test_runs_are_set_side_by_side(streamed: Path, offline: Path, tmp_path: Path) -> None:
    def blanker(row: dict[str, Any]) -> None:
        row |= {"driver": "emulated", "viewport_level": row["viewport_level"] - 0.5}
        row["link"]["wire_nmae_1s"] = 0.004

    emulated = changed(streamed, tmp_path / "emulated", blanker)
    page = checked(render_viewport_report([streamed, emulated]))
    for words in ("emulated − simulated", "−0.500", "median 0.40 %", "Wire error per session"):
        assert words in page, words
    assert page.count('class="timeline"') == 12
    again = changed(offline, tmp_path / "again", lambda row: None)
    page = checked(render_viewport_report([offline, again]))
    assert "again − run" in page
    assert "0.000 … 0.000" in page


def test_streamed_and_offline_results_do_not_mix(streamed: Path, offline: Path) -> None:
    with pytest.raises(ResultsError, match="offline and streamed"):
        build_report([streamed, offline])


def test_names_and_errors_are_escaped(streamed: Path, offline: Path, tmp_path: Path) -> None:
    def evil(row: dict[str, Any]) -> None:
        row |= {"recording": EVIL, "arm": row["arm"] + EVIL}
        if row["arm"].startswith("damped"):
            row |= {"status": "failed", "error": "boom <b>&"}

    for name, folder in (("streamed", streamed), ("offline", offline)):
        page = checked(render_viewport_report([changed(folder, tmp_path / name, evil)]))
        assert EVIL not in page
        assert "boom &lt;b&gt;&amp;" in page
        assert "Failed sessions" in page


def test_a_run_in_which_everything_failed_still_has_a_report(
    streamed: Path, offline: Path, tmp_path: Path
) -> None:
    def fail_streamed(row: dict[str, Any]) -> None:
        gone = ("mae_deg", "viewport_bitrate_kbps", "viewport_level", "blank_ratio")
        row |= dict.fromkeys((*gone, "stall_s", "startup_s"))
        row |= {"status": "failed", "error": None, "chunks": [], "mae_by_step_deg": []}
        row |= {"decisions_ms": [], "bytes_used": 0, "bytes_wasted": 0}

    def fail_offline(row: dict[str, Any]) -> None:
        axes = ("roll_mae_deg", "pitch_mae_deg", "yaw_mae_deg", "great_circle_deg")
        row |= {key: [] for key in (*axes, "decisions_ms")}
        row |= {"status": "failed", "error": "boom", "samples": 0}

    for name, folder, fail in (
        ("streamed", streamed, fail_streamed),
        ("offline", offline, fail_offline),
    ):
        page = checked(render_viewport_report([changed(folder, tmp_path / name, fail)]))
        assert "No session ended well." in page


def test_records_without_a_path_still_have_their_tiles(streamed: Path, tmp_path: Path) -> None:
    def without(row: dict[str, Any]) -> None:
        for chunk in row["chunks"]:
            del chunk["path"], chunk["predicted"]

    page = checked(render_viewport_report([changed(streamed, tmp_path / "old", without)]))
    assert page.count('class="sphere"') == 48
    assert page.count('class="looked"') == 1  # the key's


def test_of_many_sessions_some_are_drawn_and_the_page_says_so(
    streamed: Path, tmp_path: Path
) -> None:
    lines = (streamed / SESSIONS).read_text().splitlines()
    many = changed(streamed, tmp_path / "many", lambda row: None)
    rows = [json.loads(line) | {"recording": f"video{n:03d}"} for n in range(50) for line in lines]
    (many / SESSIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = checked(render_viewport_report([many]))
    assert page.count('class="timeline"') == MOST_SESSIONS
    assert "32 of 100 are drawn" in page
    assert page.count("video049 on") >= 6  # every one is in the overview
    assert len(page.encode()) < 10e6


def test_wrong_tiles_name_the_file(streamed: Path, tmp_path: Path) -> None:
    folder = changed(streamed, tmp_path / "wrong", lambda row: None)
    path = folder / "experiment.toml"
    path.write_text(path.read_text().replace("rows = 4", "rows = 4000"))
    with pytest.raises(ResultsError, match=r"experiment\.toml: tiles: a grid has"):
        render_viewport_report([folder])


# ---- moments and time-lines ---------------------------------------------------------------------


def chunk(index: int = 0, **changes: Any) -> TiledChunkRecord:
    one = TiledChunkRecord(
        index=index,
        asked_s=float(index),
        decision_s=0.01,
        decisions=1,
        fallback=False,
        levels=(0,) * 8,
        final_levels=(0,) * 8,
        size_bytes=1000,
        used_bytes=500,
        throughput_kbps=1000.0,
        buffer_s=1.0,
        stall_s=0.0,
        viewport_level=0.0,
        viewport_bitrate_kbps=400.0,
        blank_ratio=0.0,
        late_tiles=0,
        replaced_tiles=0,
    )
    return dataclasses.replace(one, **changes)


def test_the_player_keeps_the_paths(streamed: Path) -> None:
    rows = read_records(streamed, ViewportSessionRecord)
    oracle, static = (next(row for row in rows if row.arm == arm) for arm in ("oracle", "static"))
    for mine, other in zip(oracle.chunks, static.chunks, strict=True):
        assert len(mine.path) == len(mine.predicted) == 5
        assert mine.path == other.path
        assert all(isinstance(pose, HeadPose) for pose in mine.path)
        for pose, predicted in zip(mine.path, mine.predicted, strict=True):
            turn = (predicted.yaw_deg - pose.yaw_deg + 180) % 360 - 180
            assert turn == pytest.approx(0.0, abs=2.0)  # an oracle's, at times in between
            assert predicted.pitch_deg == pytest.approx(pose.pitch_deg, abs=2.0)
        assert len({one.yaw_deg for one in other.predicted}) == 1  # nobody moves
        assert other.predicted[-1].yaw_spread_deg > 0  # assumed


def seats(streamed: Path) -> list[Seat]:
    run = read_run(streamed, ViewportSessionRecord)
    tiling = tiling_of(run)
    row = run.sessions[0]
    low = [chunk(index) for index in range(20)]
    high = [chunk(index, viewport_level=float(index in (4, 7)) * index) for index in range(20)]
    return [
        Seat("", dataclasses.replace(row, arm=arm, chunks=tuple(chunks)), tiling)
        for arm, chunks in (("a", low), ("b", high))
    ]


def test_the_moment_in_which_arms_differ_most_comes_first(streamed: Path) -> None:
    shown = moments(seats(streamed), {"a": 0, "b": 1})
    assert len(shown) == MOST_MOMENTS
    assert shown[0].chunk == 7
    assert shown[0].label == "chunk 7, 7–8 s of the video: levels in view 7.00 apart"
    assert 4 in [one.chunk for one in shown]
    assert [one.chunk for one in shown[1:]] == sorted(one.chunk for one in shown[1:])
    assert [one.arm for one in shown[0].maps] == ["a", "b"]
    assert moments([], {}) == ()
    alone = moments(seats(streamed)[1:], {"b": 1})
    assert alone[0].chunk == 0
    assert "apart" not in alone[0].label


def test_a_time_line_shows_stalls_blanks_and_fallbacks(streamed: Path) -> None:
    run = read_run(streamed, ViewportSessionRecord)
    tiling = Tiling(GRID, FOV, 1.0, (400.0, 800.0))
    chunks = (
        chunk(0, stall_s=0.3),
        chunk(1, blank_ratio=0.4, throughput_kbps=None),
        chunk(2, stall_s=0.5, fallback=True),
    )
    row = dataclasses.replace(run.sessions[0], chunks=chunks)
    assert play_times_s(row, tiling) == pytest.approx([0.3, 1.3, 2.8])
    trace = run.traces[row.trace]
    drawing = str(viewer_timeline(row, viewer_axes([row], trace, tiling), tiling, trace, ()))
    for css in ("stall", "startup", "blank", "fallback", "asked", "buffer"):
        assert drawing.count(f'class="{css}"') == 1, css
    assert drawing.count('class="got"') == 2
    assert drawing.count('class="decision"') == 3
    empty = dataclasses.replace(row, chunks=())
    viewer_timeline(empty, viewer_axes([empty], None, tiling), tiling, None, ())


# ---- maps ---------------------------------------------------------------------------------------


def test_the_outline_of_a_field_of_view_is_what_a_camera_sees() -> None:
    fov = FieldOfView(90.0, 60.0)
    border = fov_outline(fov, HeadPose(0.0, 0.0, 30.0))
    assert border[0] == pytest.approx(border[-1])
    pitch, yaw = border.T
    assert yaw.min() == pytest.approx(30.0 - 45.0)
    assert yaw.max() == pytest.approx(30.0 + 45.0)
    assert pitch.max() == pytest.approx(30.0, abs=0.3)  # in the middle of its upper edge
    assert pitch.max() == pytest.approx(-pitch.min(), abs=0.3)
    rolled = fov_outline(fov, HeadPose(90.0, 0.0, 30.0))
    assert np.ptp(rolled[:, 1]) == pytest.approx(60.0)
    over_pole = unwrap(np.radians(fov_outline(fov, HeadPose(0.0, 80.0, 0.0)))[:, 1] * 180 / math.pi)
    assert abs(over_pole[-1] - over_pole[0]) == pytest.approx(360.0)


def numbers(commands: str) -> list[tuple[float, float]]:
    pairs = re.findall(r"(-?[\d.]+) (-?[\d.]+)", commands)
    return [(float(x), float(y)) for x, y in pairs]


def drawn(drawing: str, css: str) -> str:
    found = re.search(rf'<path d="([^"]*)" class="{css}"', drawing)
    assert found, css
    return found[1]


def test_what_crosses_the_seam_is_drawn_on_both_sides() -> None:
    path = tuple(HeadPose(0.0, 10.0, yaw) for yaw in (170.0, 175.0, -179.0, -174.0, -170.0))
    predicted = tuple(PredictedPose(0.0, 0.0, 175.0 + 2 * i, 3.0, 12.0) for i in range(5))
    drawing = str(chunk_map(chunk(path=path, predicted=predicted), GRID, FOV, "x"))
    looked = drawn(drawing, "looked")
    assert looked.count("M") == 2  # one line leaves on the right, the other comes in on the left
    steps = np.diff([x for x, _ in numbers(looked)])
    assert np.sort(np.abs(steps))[-2] <= 6.0  # no line across the map but the jump to the copy
    assert {y for _, y in numbers(looked)} == {80.0}
    assert drawn(drawing, "outline").count("M") == 2
    assert drawing.count("<ellipse") == 10
    assert 'cx="10" cy="80" r="3.2" class="looked-end"' in drawing


def test_a_field_of_view_at_a_pole_goes_all_around() -> None:
    path = tuple(HeadPose(20.0, 88.0, 10.0) for _ in range(5))
    outline = drawn(str(chunk_map(chunk(path=path), GRID, FOV, "x")), "outline")
    xs = [x for x, _ in numbers(outline)]
    assert min(xs) <= 0.0
    assert max(xs) >= 360.0
    assert all(0 < y < 90 for _, y in numbers(outline))


def test_tiles_of_one_level_are_joined_and_late_ones_marked() -> None:
    one = chunk(levels=(-1, -1, 2, 2, 0, 0, 0, 0), final_levels=(-1, 0, 2, 2, 0, 0, 0, 0))
    drawing = str(chunk_map(one, GRID, FOV, "x"))
    assert drawn(drawing, "l0") == "M90 0h90v90h-90zM0 90h360v90h-360z"
    assert drawn(drawing, "l2") == "M180 0h180v90h-180z"
    assert drawn(drawing, "late") == "M135 45h0"
    assert 'class="l-1"' not in drawing
    other_grid = str(chunk_map(one, TileGrid(3, 3), FOV, "x"))
    assert 'class="l0"' not in other_grid
