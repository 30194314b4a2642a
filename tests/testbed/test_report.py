import dataclasses
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from player.link_models import PensieveLink
from player.machine import Player
from player.qoe import session_qoe
from player.records import LinkRecord, SessionRecord
from player.simulated import play_simulated
from player.trace import Trace
from player.video import Video, generate_video
from testbed.link_timelines import edges_s
from testbed.links.spec import Direction
from testbed.plots import (
    PlotError,
    Series,
    cdf,
    density,
    forest,
    parts,
    save_trace_plot,
    scatter,
    strips,
)
from testbed.report import build_report, render_report
from testbed.report_page import run_labels
from testbed.results import LinkSecond, ResultsError, read_results
from testbed.svg import fixed, log_ticks, round_ticks, significant, tick_label
from testbed.timelines import session_timeline, shared_axes

EVIL = "<script>alert('trace')</script>"
VOID = {"meta", "link", "br", "input", "hr", "img"}


class Checker(HTMLParser):
    """Follows which elements are open, and notes what could load something from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
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


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def video() -> Video:
    return generate_video("v", chunks=12, rng=np.random.default_rng(1))


def trace(name: str, seed: int) -> Trace:
    rates = np.random.default_rng(seed).uniform(0.2, 3.0, size=41)
    return Trace(name, np.arange(41.0) * 2, rates)


def played(arm: str, level: int, on: Trace, driver: str = "simulated") -> SessionRecord:
    player = Player(video())
    wall_s = play_simulated(player, PensieveLink(on), lambda _: level, start_s=on.start_s(5))
    return SessionRecord(
        arm=arm,
        controller="fixed",
        trace=on.name,
        seed=0,
        driver=driver,
        status="ok",
        error=None,
        qoe_per_chunk=session_qoe([chunk.qoe for chunk in player.chunks]),
        startup_s=player.startup_s,
        wall_s=wall_s,
        start_index=5,
        link=LinkRecord(backend="kernel", wire_nmae_1s=0.004 if driver == "emulated" else None),
        chunks=player.chunks,
    )


def write_run(folder: Path, driver: str = "simulated", *, with_failure: bool = False) -> None:
    folder.mkdir()
    traces = [trace(EVIL, 1), trace("plain", 2), trace("other", 3)]
    rows = [played(f"level{level}", level, on, driver) for on in traces for level in (0, 2)]
    if with_failure:
        rows[-1] = dataclasses.replace(
            rows[-1], status="failed", error="boom <b>&", chunks=rows[-1].chunks[:4]
        )
    (folder / "sessions.jsonl").write_text(
        "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    )
    (folder / "traces.json").write_text(
        json.dumps(
            {
                one.name: {"times_s": one.times_s.tolist(), "rates_mbps": one.rates_mbps.tolist()}
                for one in traces
            }
        )
    )
    if driver == "emulated":
        (folder / "link.jsonl").write_text(
            "".join(
                json.dumps(
                    {
                        "arm": row.arm,
                        "trace": row.trace,
                        "second": second,
                        "asked_bits": 1e6 + second,
                        "delivered_bits": 1e6,
                        "saturated": second % 2 == 0,
                        "backlog_packets": 1,
                        "drops": 0,
                    }
                )
                + "\n"
                for row in rows
                for second in range(20)
            )
        )
    (folder / "experiment.toml").write_text(
        f'task = "abr"\ndriver = "{driver}"\ntraces = "builtin:x"\nchunks = 12\n'
        '[link]\nmodel = "tcp"\ndelay_ms = 20.0\nqueue_packets = 100\ncongestion = "cubic"\n'
    )
    (folder / "environment.json").write_text(
        '{"version": "0.1.0", "kernel": "6.1", "date": "2025-01-01T12:00:00+00:00"}'
    )


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "emulated", with_failure=True)
    path = build_report([tmp_path / "run"])
    assert path == tmp_path / "run" / "report.html"
    page = path.read_text(encoding="utf-8")
    found = checked(page)
    assert found.loads == []
    assert not re.search(r"https?://", page.replace("http-equiv", ""))
    assert "url(" not in page
    assert "@import" not in page
    assert all(anchor.startswith("#") and anchor[1:] in found.ids for anchor in found.anchors)
    assert len(set(found.ids)) == len(found.ids)
    assert found.counts["script"] == 1
    assert found.counts["details"] >= 3
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_names_and_errors_are_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / "run", with_failure=True)
    page = build_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;alert(&#39;trace&#39;)&lt;/script&gt;" in page
    assert "boom &lt;b&gt;&amp;" in page


def test_it_says_what_was_run_and_who_won(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "emulated")
    page = build_report([tmp_path / "run"]).read_text(encoding="utf-8")
    for text in (
        "ABR, emulated: 2 arms on 3 traces",
        "builtin:x, 3 traces",
        "2025-01-01 12:00:00",
        "20 ms",
        "cubic",
        "has the highest mean QoE",
        "Paired differences",
        "Wire error per session",
        "Asked and delivered",
        "median 0.40 %",
    ):
        assert text in page


def test_latency_is_shown_of_live_runs_only(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert "latency" not in build_report([tmp_path / "run"]).read_text(encoding="utf-8")
    path = tmp_path / "run" / "sessions.jsonl"
    rows = path.read_text().replace('"latency_s": null', '"latency_s": 8.25')
    path.write_text(rows)
    with (tmp_path / "run" / "experiment.toml").open("a") as experiment:
        experiment.write("[player.live]\ntarget_latency_s = 8.0\n")
    page = build_report([tmp_path / "run"]).read_text(encoding="utf-8")
    for text in ("latency s", "Latency per session", "8.25 s behind the event"):
        assert text in page


def test_a_link_that_was_never_busy_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "emulated")
    for name, changes in (("sessions", ("0.004", "null")), ("link", ("true", "false"))):
        path = tmp_path / "run" / f"{name}.jsonl"
        path.write_text(path.read_text().replace(*changes))
    page = build_report([tmp_path / "run"]).read_text(encoding="utf-8")
    checked(page)
    assert "the wire error cannot be told" in page
    assert "Wire error per session" not in page


def test_simulated_runs_have_no_link_section(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    page = build_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "Did the link do" not in page
    assert "cubic" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert page.count('class="asked"') == 6  # from traces.json


def test_several_runs_are_set_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path / "one", "emulated", with_failure=True)
    write_run(tmp_path / "two", "simulated")
    out = tmp_path / "both.html"
    assert build_report([tmp_path / "one", tmp_path / "two"], out) == out
    page = out.read_text(encoding="utf-8")
    checked(page)
    assert "ABR, emulated and simulated" in page
    assert "simulated − emulated" in page
    assert "QoE per trace: simulated over emulated" in page
    assert page.count('class="timeline"') == 12
    assert not (tmp_path / "one" / "report.html").exists()


def test_runs_get_distinct_labels(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two")
    runs = [read_results(tmp_path / name) for name in ("one", "two")]
    assert run_labels(runs) == ["one", "two"]
    assert run_labels([runs[0], runs[0]]) == ["simulated 1", "simulated 2"]
    assert run_labels(runs[:1]) == ["simulated"]


def test_a_run_in_which_everything_failed_still_has_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "sessions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"status": "failed", "error": None, "chunks": [], "qoe_per_chunk": None}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("traces.json", "experiment.toml", "environment.json"):
        (tmp_path / "run" / name).unlink()
    page = render_report([read_results(tmp_path / "run")])
    checked(page)
    assert "No session ended well." in page
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL).lower()


def test_wrong_folders_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not a result folder"):
        build_report([tmp_path])
    with pytest.raises(ValueError, match="at least one"):
        build_report([])
    assert list(tmp_path.iterdir()) == []


def test_a_time_line_shows_stalls_fallbacks_and_decisions() -> None:
    on = trace("t", 4)
    row = played("top", 5, on)
    marked = [
        dataclasses.replace(chunk, fallback=chunk.index == 3, decision_s=0.01)
        for chunk in row.chunks
    ]
    row = dataclasses.replace(row, chunks=tuple(marked))
    axes = shared_axes([row], on, video().levels_kbps)
    drawing = str(session_timeline(row, axes, on, ()))
    stalls = sum(chunk.rebuffer_s > 0 for chunk in row.chunks[1:])
    assert stalls > 0
    assert drawing.count('class="stall"') == stalls
    assert drawing.count('class="startup"') == 1
    assert drawing.count('class="fallback"') == 1
    assert drawing.count('class="decision"') == len(row.chunks)
    assert drawing.count('class="l5"') == len(row.chunks) - 1
    assert "decided by the fallback" in drawing


def link_second(second: int, direction: Direction = "down", **changes: Any) -> LinkSecond:
    row = {"asked_bits": 2e6, "delivered_bits": 1.9e6, "saturated": True} | changes
    return LinkSecond(arm="top", trace="t", second=second, direction=direction, **row)


def test_a_time_line_shows_what_the_link_did() -> None:
    on = trace("t", 4)
    row = played("top", 5, on)
    down = [
        link_second(number, delay_p50_ms=20.0, delay_p99_ms=40.0, drops=3 * (number == 1), losses=1)
        for number in range(4)
    ]
    up = [link_second(number, "up", asked_bits=1e6) for number in range(4)]

    def drawn(seconds: Sequence[LinkSecond]) -> str:
        axes = shared_axes([row], on, video().levels_kbps, seconds)
        return str(session_timeline(row, axes, on, seconds))

    drawing = drawn([*down, *up])
    assert drawing.count('class="drop-queue"') == 1
    assert drawing.count('class="drop-loss"') == 4
    assert "3 dropped, queue full" in drawing
    assert 'class="queue"' not in drawing
    assert drawing.count('class="delay"') == drawing.count('class="delay-tail"') == 1
    assert drawing.count('class="delivered"') == 2
    without = drawn([dataclasses.replace(one, asked_bits=0.0) for one in up] + down)
    assert without.count('class="delivered"') == 1
    assert 'class="delay"' not in drawn([link_second(number) for number in range(4)])
    full = drawn([dataclasses.replace(one, backlog_packets=7, drops=2) for one in [*down, *up]])
    assert full.count('class="queue"') == 2
    for label in ("queue", "up queue", "up drops"):
        assert f">{label}<" in full


def test_seconds_are_drawn_where_they_really_began_and_ended() -> None:
    late = [link_second(0, begin_s=0.0, end_s=1.5), link_second(1, begin_s=1.5, end_s=2.0)]
    assert edges_s(late) == [0.0, 1.5, 2.0]
    assert edges_s([link_second(0), link_second(1)]) == [0.0, 1.0, 2.0]


def test_what_is_around_the_players_has_tables(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "emulated")
    assert "<h2>Network</h2>" not in render_report([read_results(tmp_path / "alone")])
    write_run(tmp_path / "together", "emulated")
    path = tmp_path / "together" / "sessions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"group": "level0+level2", "client": number % 2, "background": [BACKGROUND]}
        row["link"] |= {"queue_drops": 7, "delay_p50_ms": 12.5, "delay_p99_ms": 80.0}
        row["capture"] = CAPTURE
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = render_report([read_results(tmp_path / "together")])
    checked(page)
    for words in (
        *("Arms behind the same bottleneck", "Packets towards the players", "12.5", "80.0"),
        *("On the wire, captured at the players", "25.00", ">240<", "Background traffic", "0.750"),
    ):
        assert words in page, words


BACKGROUND = {
    "kind": "bulk",
    "direction": "down",
    "started": 1,
    "finished": 0,
    "errors": 0,
    "received_bytes": 100,
    "throughput_mbps": 0.75,
    "flows_mbps": [0.75],
    "completion_p50_s": None,
    "completion_p95_s": None,
}
CAPTURE = {
    "ending": "complete",
    "packets": 100,
    "dropped_packets": 0,
    "other_packets": 0,
    "connections": [
        {
            "client": "10.0.0.2:40000",
            "server": "10.0.0.1:8000",
            "is_controller": False,
            "started_s": 0.0,
            "duration_s": 3.0,
            "packets_down": 80,
            "packets_up": 20,
            "l3_bytes_down": 100_000,
            "l3_bytes_up": 1000,
            "payload_bytes_down": 90_000,
            "payload_bytes_up": 100,
            "throughput_kbps": 240.0,
            "handshake_rtt_ms": 10.0,
            "rtt_samples": 5,
            "rtt_min_ms": 10.0,
            "rtt_p50_ms": 11.0,
            "rtt_p99_ms": 30.0,
            "retransmissions_down": 2,
            "retransmissions_up": 0,
            "out_of_order_down": 0,
            "missing_bytes_down": 0,
        }
    ],
    "exchanges_ms": [3.0, 4.0],
    "unanswered": 0,
}


def test_a_fine_trace_is_thinned_out_to_what_can_be_seen() -> None:
    rates = np.random.default_rng(0).uniform(1.0, 5.0, size=5001)
    on = Trace("fine", np.linspace(0.0, 50.0, 5001), rates)
    row = played("a", 1, on)
    drawing = str(session_timeline(row, shared_axes([row], on, video().levels_kbps), on, ()))
    assert len(drawing) < 30_000


def test_charts_without_values_are_left_out() -> None:
    nothing = [Series("a", 0, ())]
    assert cdf(nothing, "x", of="sessions") is None
    assert strips(nothing, [None], "x") is None
    assert forest([], "x") is None
    assert parts([], "x") is None
    assert scatter(nothing, "x", "y") is None
    assert density((), (), "x", "y") is None


def test_charts_stand_equal_and_extreme_values() -> None:
    for values in ([0.0], [1.0, 1.0], [-1e9, 1e9], [0.0, 0.0]):
        series = [Series("a & b", 11, values, others=values)]
        for chart in (
            cdf(series, "x", of="sessions"),
            strips(series, [None], "x", mark=1.0),
            scatter(series, "x", "y", is_diagonal=True),
        ):
            assert chart is not None
            assert "nan" not in chart
            assert "inf" not in chart
            assert "a & b" not in chart
    assert cdf([Series("a", 0, [0.0])], "x", of="decisions", is_log=True) is None
    assert cdf([Series("a", 0, [0.0, 4.0])], "x", of="decisions", is_log=True) is not None
    assert density([0.0], [0.0], "x", "y") is not None


def test_numbers_are_told_plainly() -> None:
    assert fixed(None, 2) == fixed(float("nan"), 2) == significant(None) == "–"
    assert fixed(-0.0001, 2) == "0.00"
    assert fixed(-1.25, 1) == "−1.2"
    assert fixed(1.25, 2, sign=True) == "+1.25"
    assert significant(0.012345) == "0.0123"
    assert significant(123456.0) == "123,456"
    assert significant(0.0) == "0"
    assert tick_label(-0.5) == "−0.5"
    assert round_ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert round_ticks(2.0, 2.0) == [2.0]
    assert log_ticks(0.9, 25.0) == pytest.approx([1, 2, 5, 10, 20])
    assert log_ticks(0.01, 1000.0) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])


def test_a_trace_is_drawn_into_a_file(tmp_path: Path) -> None:
    for name in ("one.png", "one.svg"):
        save_trace_plot(trace("$t_1$", 1), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(PlotError, match=r"\.png, \.svg, \.pdf"):
        save_trace_plot(trace("t", 1), tmp_path / "t.exe")
    assert not (tmp_path / "t.exe").exists()
