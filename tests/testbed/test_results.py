import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from player.qoe import chunk_qoe, session_qoe
from player.records import ChunkRecord, LinkRecord, SessionRecord, Status
from testbed.results import (
    QoeParts,
    ResultsError,
    qoe_parts,
    read_link_seconds,
    read_results,
    read_sessions,
    write_summary,
)
from testbed.summary_tables import summary_table

LADDER_KBPS = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)


def session(
    arm: str,
    trace: str,
    levels: Sequence[int] = (0, 1, 1),
    stalls_s: Sequence[float] = (0.5, 0.0, 0.25),
    *,
    status: Status = "ok",
    nmae: float | None = None,
    fallbacks: Sequence[int] = (),
) -> SessionRecord:
    """A session of chunks that take 1 s each; the chunk length is 4 s."""
    chunks = []
    previous = LADDER_KBPS[levels[0]]
    for index, (level, stall_s) in enumerate(zip(levels, stalls_s, strict=True)):
        bitrate = LADDER_KBPS[level]
        chunks.append(
            ChunkRecord(
                index=index,
                level=level,
                bitrate_kbps=bitrate,
                size_bytes=100_000,
                requested_s=float(index),
                download_s=1.0,
                throughput_kbps=800.0,
                buffer_s=4.0 + 3.0 * index,
                rebuffer_s=stall_s,
                decision_s=0.0 if index == 0 else 0.002 * index,
                fallback=index in fallbacks,
                qoe=chunk_qoe(bitrate, previous, stall_s),
            )
        )
        previous = bitrate
    return SessionRecord(
        arm=arm,
        controller=arm,
        trace=trace,
        seed=0,
        driver="emulated",
        status=status,
        error=None if status == "ok" else "InvalidDecision: level 9",
        qoe_per_chunk=session_qoe([chunk.qoe for chunk in chunks]),
        startup_s=stalls_s[0],
        wall_s=3.0,
        start_index=1,
        link=LinkRecord(backend="kernel", wire_nmae_1s=nmae),
        chunks=tuple(chunks),
    )


def write_sessions(folder: Path, rows: Sequence[SessionRecord], tail: str = "") -> None:
    text = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    (folder / "sessions.jsonl").write_text(text + tail)


def link_row(second: int, **changes: Any) -> str:
    row = {
        "arm": "a",
        "trace": "t",
        "second": second,
        "asked_bits": 1e6,
        "delivered_bits": 9.9e5,
        "saturated": True,
        "backlog_packets": 3,
        "drops": 0,
    }
    return json.dumps(row | changes) + "\n"


def test_golden_summary(tmp_path: Path) -> None:
    write_sessions(
        tmp_path,
        [
            session("b", "t1", nmae=0.001),
            session("a", "t1", (0, 0, 0), (0.5, 0.0, 0.0), nmae=0.003),
            session("b", "t2", (0, 2, 3), (1.5, 0.0, 0.0), nmae=0.002, fallbacks=(2,)),
            session("a", "t2", status="failed"),
        ],
    )
    (tmp_path / "experiment.toml").write_text(
        'task = "abr"\n[[arms]]\ncontroller = "x"\nname = "a"\n[[arms]]\ncontroller = "b"\n'
    )
    summary = write_summary(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["task"], summary["driver"]) == ("abr", "emulated")
    a, b = summary["arms"]
    # QoE of b on t1: chunks 0.75 - 0.45 and 0.75 - 4.3 · 0.25; on t2: 1.2 - 0.9 and 1.85 - 0.65.
    on_t1, on_t2 = (0.3 + 0.75 - 4.3 * 0.25) / 2, (0.3 + 1.2) / 2
    assert a == {
        "arm": "a",
        "sessions": 2,
        "failed": 1,
        "qoe_per_chunk": {"mean": pytest.approx(0.3), "ci95": None},
        "bitrate_kbps": 300.0,
        "rebuffer_ratio": 0.0,
        "switch_kbps": 0.0,
        "startup_s": 0.5,
        "decision_ms": {"p50": pytest.approx(3.0), "p99": pytest.approx(3.98)},
        "fallbacks": 0,
        "jain": {"mean": None, "ci95": None},
    }
    assert b["qoe_per_chunk"]["mean"] == pytest.approx((on_t1 + on_t2) / 2)
    low, high = b["qoe_per_chunk"]["ci95"]
    assert low == pytest.approx(min(on_t1, on_t2))
    assert high == pytest.approx(max(on_t1, on_t2))
    assert b["bitrate_kbps"] == pytest.approx((750 + (1200 + 1850) / 2) / 2)
    assert b["rebuffer_ratio"] == pytest.approx(0.25 / (0.25 + 24.0))
    assert b["switch_kbps"] == pytest.approx((450 / 2 + (900 + 650) / 2) / 2)
    assert b["startup_s"] == 1.0
    assert (b["sessions"], b["failed"], b["fallbacks"]) == (2, 0, 1)
    assert summary["pairs"] == [
        {"a": "a", "b": "b", "n": 1, "delta": {"mean": pytest.approx(0.3 - on_t1), "ci95": None}}
    ]
    assert summary["link"] == {
        "wire_nmae_1s": {"median": 0.002, "max": 0.003},
        "up_wire_nmae_1s": {"median": None, "max": None},
    }
    assert summary["fairness"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "experiment.toml",
        "sessions.jsonl",
        "summary.json",
    ]


def test_only_live_sessions_have_a_latency(tmp_path: Path) -> None:
    rows = [
        dataclasses.replace(session("a", "t1"), latency_s=8.2),
        dataclasses.replace(session("a", "t2"), latency_s=9.0),
        session("b", "t1", status="failed"),
    ]
    write_sessions(tmp_path, rows)
    a, b = write_summary(tmp_path)["arms"]
    assert a["latency_s"]["mean"] == pytest.approx(8.6)
    assert a["latency_s"]["ci95"] == [pytest.approx(8.2), pytest.approx(9.0)]
    assert b["latency_s"] == {"mean": None, "ci95": None}
    shown = summary_table(write_summary(tmp_path)).columns[-1]
    assert (shown.heading, shown.cell(a), shown.cell(b)) == ("latency s", "8.60", "–")
    write_sessions(tmp_path, [session("a", "t1")])
    summary = write_summary(tmp_path)
    assert "latency_s" not in summary["arms"][0]
    assert summary_table(summary).columns[-1].heading != "latency s"


def test_every_pair_of_arms_is_compared_by_trace(tmp_path: Path) -> None:
    levels = {"a": (0, 0, 0), "b": (1, 1, 1), "c": (2, 2, 2)}
    write_sessions(
        tmp_path,
        [
            session(arm, f"t{number}", levels[arm], (0.0, 0.0, 0.1 * number))
            for number in range(5)
            for arm in levels
        ],
    )
    pairs = {(pair["a"], pair["b"]): pair for pair in write_summary(tmp_path)["pairs"]}
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert pairs["a", "b"]["n"] == 5
    # The stalls, which differ between traces, cancel within each.
    assert pairs["a", "b"]["delta"]["mean"] == pytest.approx(-0.45)
    assert pairs["a", "c"]["delta"]["ci95"] == pytest.approx([-0.9, -0.9])


def test_parts_add_up_to_the_qoe(tmp_path: Path) -> None:
    rows = (session("a", "t1"), session("a", "t2", (0, 2, 3), (1.5, 0.0, 0.0)))
    write_sessions(tmp_path, rows)
    parts = qoe_parts(rows, read_results(tmp_path).qoe)
    assert parts is not None
    qoe = write_summary(tmp_path)["arms"][0]["qoe_per_chunk"]["mean"]
    assert parts.bitrate - parts.rebuffer - parts.switch == pytest.approx(qoe)
    assert qoe_parts((), read_results(tmp_path).qoe) is None
    assert isinstance(parts, QoeParts)


def test_a_session_without_scored_chunks_leaves_its_figures_open(tmp_path: Path) -> None:
    write_sessions(tmp_path, [session("a", "t", (0,), (0.5,)), session("b", "t", status="failed")])
    a, b = write_summary(tmp_path)["arms"]
    assert a["qoe_per_chunk"] == {"mean": None, "ci95": None}
    assert a["bitrate_kbps"] is None
    assert a["switch_kbps"] is None
    assert a["rebuffer_ratio"] == 0.0
    assert b["rebuffer_ratio"] is None
    assert b["startup_s"] is None
    assert b["decision_ms"] == {"p50": None, "p99": None}


def test_a_torn_last_line_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = json.dumps(dataclasses.asdict(session("b", "t")))[:200]
    write_sessions(tmp_path, [session("a", "t")], tail=torn)
    with caplog.at_level(logging.WARNING):
        assert [row.arm for row in read_sessions(tmp_path)] == ["a"]
    assert "sessions.jsonl:2" in caplog.text


def test_a_last_line_that_is_whole_counts_without_its_end(tmp_path: Path) -> None:
    write_sessions(
        tmp_path, [session("a", "t")], tail=json.dumps(dataclasses.asdict(session("b", "t")))
    )
    assert [row.arm for row in read_sessions(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": None}, "arm"),
        ({"wall_s": "3"}, "wall_s"),
        ({"qoe_per_chunk": float("nan")}, "JSON"),
        ({"status": "fine"}, "status"),
        ({"chunks": [{"index": 0}]}, r"chunks\.0\.level"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bad = json.dumps(dataclasses.asdict(session("b", "t")) | change) + "\n"
    write_sessions(tmp_path, [session("a", "t")], tail=bad)
    with pytest.raises(ResultsError, match=rf"sessions\.jsonl:2: .*{message}"):
        read_sessions(tmp_path)


@pytest.mark.parametrize("text", ["{\n", "[]\n", "\xff\n", "{}\n"])
def test_a_line_that_is_no_session_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "sessions.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultsError, match=r"sessions\.jsonl:1: "):
        write_summary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sessions.jsonl"]


def test_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    row = dataclasses.asdict(session("a", "t")) | {"new_in_a_later_version": 1}
    (tmp_path / "sessions.jsonl").write_text(json.dumps(row) + "\n\n")
    assert read_sessions(tmp_path) == (session("a", "t"),)


def test_of_repeated_sessions_the_last_good_one_counts(tmp_path: Path) -> None:
    good, better = session("a", "t"), session("a", "t", (1, 1, 1))
    failed = session("a", "t", status="failed")
    for rows, expected in (
        ([failed, good], good),
        ([good, failed], good),
        ([good, better, failed], better),
        (
            [failed, dataclasses.replace(failed, wall_s=9.0)],
            dataclasses.replace(failed, wall_s=9.0),
        ),
    ):
        write_sessions(tmp_path, rows)
        assert read_sessions(tmp_path) == (expected,)


def test_a_folder_without_sessions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not a result folder"):
        write_summary(tmp_path)
    with pytest.raises(ResultsError, match="not a result folder"):
        write_summary(tmp_path / "none")


def test_link_seconds_of_a_repeated_session_are_those_of_its_last_run(tmp_path: Path) -> None:
    first = "".join(link_row(second) for second in range(5))
    again = "".join(link_row(second, delivered_bits=1e6) for second in range(3))
    (tmp_path / "link.jsonl").write_text(first + again + link_row(3)[:30])
    seconds = read_link_seconds(tmp_path)["a", "t"]
    assert [row.second for row in seconds] == [0, 1, 2]
    assert [row.delivered_mbps for row in seconds] == [1.0, 1.0, 1.0]
    assert read_link_seconds(tmp_path / "none") == {}


def test_both_ways_of_a_link_are_kept_apart(tmp_path: Path) -> None:
    rows = [link_row(second, direction=way) for way in ("down", "up") for second in range(2)]
    (tmp_path / "link.jsonl").write_text("".join(rows + rows))
    seconds = read_link_seconds(tmp_path)["a", "t"]
    assert [(row.direction, row.second) for row in seconds] == [
        *(("down", 0), ("down", 1)),
        *(("up", 0), ("up", 1)),
    ]


def shared(arm: str, client: int, levels: Sequence[int], trace: str = "t") -> SessionRecord:
    row = session(arm, trace, levels, (0.0, 0.0, 0.0))
    return dataclasses.replace(row, client=client, group="a+b")


def test_players_that_share_a_bottleneck_are_one_observation(tmp_path: Path) -> None:
    rows = [
        shared(arm, client, levels, trace)
        for trace in ("t", "u")
        for client, (arm, levels) in enumerate(
            [("a", (0, 0, 0)), ("a", (1, 1, 1)), ("b", (2, 2, 2)), ("b", (2, 2, 2))]
        )
    ]
    write_sessions(tmp_path, rows)
    results = read_results(tmp_path)
    assert len(results.sessions) == len(rows)
    summary = write_summary(tmp_path)
    a, b = summary["arms"]
    assert results.qoe_of_arm("a") == {"t": pytest.approx(0.525), "u": pytest.approx(0.525)}
    assert a["sessions"] == 4
    assert a["qoe_per_chunk"] == {"mean": 0.525, "ci95": [0.525, 0.525]}
    assert b["jain"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert [(pair["n"], pair["delta"]["mean"]) for pair in summary["pairs"]] == [
        (2, pytest.approx(0.525 - 1.2))
    ]
    assert [(one["group"], one["trace"]) for one in summary["fairness"]] == [
        ("a+b", "t"),
        ("a+b", "u"),
    ]
    throughput_kbps = 3 * 100_000 * 8 / 1000 / 3.0
    assert summary["fairness"][0]["throughput_kbps"] == {
        "a": [throughput_kbps] * 2,
        "b": [throughput_kbps] * 2,
    }


def test_jains_index_is_taken_over_throughputs(tmp_path: Path) -> None:
    slow, fast = shared("a", 0, (0, 0, 0)), shared("a", 1, (1, 1, 1))
    chunks = [dataclasses.replace(chunk, size_bytes=300_000) for chunk in fast.chunks]
    write_sessions(tmp_path, [slow, dataclasses.replace(fast, chunks=tuple(chunks))])
    (arm,) = write_summary(tmp_path)["arms"]
    assert arm["jain"]["mean"] == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))


def test_rates_use_the_real_width_of_a_second(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").write_text(link_row(0, begin_s=0.0, end_s=2.0))
    (row,) = read_link_seconds(tmp_path)["a", "t"]
    assert (row.asked_mbps, row.delivered_mbps) == (0.5, 0.495)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("link.jsonl", link_row(0, asked_bits="many"), r"link\.jsonl:1: asked_bits"),
        ("experiment.toml", "task = ", r"experiment\.toml: not valid TOML"),
        ("experiment.toml", '[qoe]\nrebuffer = "much"', r"experiment\.toml: qoe"),
        ("environment.json", "{", r"environment\.json: not valid JSON"),
        ("environment.json", "[]", r"environment\.json: expected a JSON object"),
        ("traces.json", '{"t": {"times_s": [0, 1]}}', r"traces\.json: 't': .*rates_mbps"),
        ("traces.json", '{"t": {"times_s": [0, 1], "rates_mbps": [1]}}', r"traces\.json: 't'"),
        ("traces.json", '{"t": 5}', r"traces\.json: 't'"),
    ],
)
def test_other_malformed_files_are_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    write_sessions(tmp_path, [session("a", "t")])
    (tmp_path / name).write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_results(tmp_path)


def test_everything_in_a_folder_is_read(tmp_path: Path) -> None:
    write_sessions(tmp_path, [session("a", "t"), session("b", "t", status="failed")])
    (tmp_path / "experiment.toml").write_text("[qoe]\nrebuffer = 2.66\nswitch = 1.0\n")
    (tmp_path / "environment.json").write_text('{"version": "0.1.0"}')
    (tmp_path / "traces.json").write_text('{"t": {"times_s": [0, 1], "rates_mbps": [1, 2]}}')
    results = read_results(tmp_path)
    assert results.arms == ("a", "b")
    assert [row.arm for row in results.failed] == ["b"]
    assert results.trace_names == ("t",)
    assert results.traces["t"].mean_mbps == 2.0
    assert results.qoe.rebuffer == 2.66
    assert results.environment["version"] == "0.1.0"
