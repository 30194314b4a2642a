import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from player.trace import Trace
from testbed import traces
from testbed.traces import (
    OPPORTUNITY_BITS,
    TraceFormatError,
    describe,
    detect_format,
    read_folder,
    read_trace,
    step_means_mbps,
    write_mahimahi,
    write_two_column,
)

IN_ONE_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def data_dir() -> Path:
    named = os.environ.get("TESTBED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "traces").is_dir():
        pytest.skip("research data: neither TESTBED_DATA nor ../shared/data is there")
    return folder


def written(folder: Path, text: str, name: str = "a-trace") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@st.composite
def random_traces(draw: st.DrawFn) -> Trace:
    widths_ms = draw(st.lists(st.integers(1, 4000), min_size=1, max_size=12))
    rates = draw(
        st.lists(
            st.floats(0.0, 60.0, allow_subnormal=False),
            min_size=len(widths_ms),
            max_size=len(widths_ms),
        )
    )
    rates[draw(st.integers(0, len(rates) - 1))] = draw(st.floats(15.0, 60.0))
    times_s = np.concatenate(([0.0], np.cumsum(widths_ms) / 1000))
    return Trace("drawn", times_s, np.array([rates[0], *rates]))


def test_two_column_takes_any_white_space_blank_lines_and_comments(tmp_path: Path) -> None:
    path = written(tmp_path, "# time rate\n\n0\t1.5\r\n 1.25   2e0 # step\n3 .5\n\n")
    trace = read_trace(path)
    assert trace.name == "a-trace"
    assert trace.times_s.tolist() == [0.0, 1.25, 3.0]
    assert trace.rates_mbps.tolist() == [1.5, 2.0, 0.5]
    assert detect_format(path) == "two-column"


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("", ":1:", "expected a trace"),
        ("# nothing\n\n", ":1:", "expected a trace"),
        ("1 2 3\n", ":1:", "found '1 2 3'"),
        ("0 1\n1 2 3\n", ":2:", "two numbers"),
        ("0 1\n\n1 fast\n", ":3:", "two numbers"),
        ("0 1\n1 nan\n", ":2:", "two numbers"),
        ("0 1\n1 1_000\n", ":2:", "two numbers"),
        ("0 1\n1 ١\n", ":2:", "two numbers"),
        ("0 1\n1e999 1\n", ":2:", "time"),
        ("0 1\n1 1e999\n", ":2:", "rate"),
        ("0 1\n1 -2\n", ":2:", "rate"),
        ("0 1\n2 1\n2 1\n", ":3:", "time above"),
        ("-1 1\n2 1\n", ":1:", "time above"),
        ("0 1\n", ":", "at least two points"),
        ("0 1\n1 0\n", ":", "no capacity"),
        ("1\nx\n", ":2:", "whole number of milliseconds"),
        ("1\n-2\n", ":2:", "whole number of milliseconds"),
        ("1.5\n", ":1:", "whole number of milliseconds"),
        ("5\n4\n", ":2:", "5 ms or later"),
        ("0\n0\n", ":2:", "at least 1 ms"),
        ("99999999999999\n", ":1:", "at most"),
    ],
)
def test_malformed_files_name_file_and_line(
    tmp_path: Path, text: str, where: str, expected: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceFormatError) as caught:
        read_trace(path)
    assert f"{path}{where}" in str(caught.value)
    assert expected in str(caught.value)


def test_missing_and_oversized_files_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TraceFormatError, match="no such trace file"):
        read_trace(tmp_path / "none")
    with pytest.raises(TraceFormatError, match="no such trace file"):
        read_trace(tmp_path)
    monkeypatch.setattr(traces, "MAX_FILE_BYTES", 10)
    with pytest.raises(TraceFormatError, match="larger than 10 bytes"):
        read_trace(written(tmp_path, "0 1\n1 1\n2 1\n"))


def test_mahimahi_counts_are_exact_at_every_step(tmp_path: Path) -> None:
    path = written(tmp_path, "0\n100\n100\n101\n250\n")
    assert detect_format(path) == "mahimahi"
    trace = read_trace(path)
    assert trace.times_s.tolist() == [0.0, 0.1, 0.2, 0.25]
    until = trace.bits_until(np.array([0.1, 0.2])) / OPPORTUNITY_BITS
    assert until == pytest.approx([3, 4])
    assert trace.mean_mbps * trace.duration_s * 1e6 == pytest.approx(5 * OPPORTUNITY_BITS)
    assert len(read_trace(path, bin_s=0.001).times_s) == 251


@pytest.mark.parametrize("text", ["1\n", "1\n1\n", "0\n1\n"])
def test_the_shortest_mahimahi_trace_lasts_one_millisecond(tmp_path: Path, text: str) -> None:
    assert read_trace(written(tmp_path, text)).duration_s == 0.001


@IN_ONE_FOLDER
@given(trace=random_traces())
def test_two_column_round_trips_exactly(tmp_path: Path, trace: Trace) -> None:
    write_two_column(trace, tmp_path / "t")
    again = read_trace(tmp_path / "t")
    assert again.times_s.tolist() == trace.times_s.tolist()
    assert again.rates_mbps.tolist() == trace.rates_mbps.tolist()


@IN_ONE_FOLDER
@given(trace=random_traces())
def test_mahimahi_rounds_cumulatively_and_keeps_the_period(tmp_path: Path, trace: Trace) -> None:
    total = int(trace.mean_mbps * 1e6 * trace.duration_s / OPPORTUNITY_BITS + 1e-6)
    path = tmp_path / "m"
    if total < 1:
        with pytest.raises(TraceFormatError, match="at least one packet"):
            write_mahimahi(trace, path)
        return
    write_mahimahi(trace, path)
    stamps_ms = np.array(path.read_text().split(), dtype=int)
    assert len(stamps_ms) == total
    assert stamps_ms[-1] == round(trace.duration_s * 1000)
    at_ms = np.arange(0, stamps_ms[-1])  # before the last one, which marks the period
    written_until = np.searchsorted(stamps_ms[:-1], at_ms, side="right")
    exact = trace.bits_until(at_ms / 1000) / OPPORTUNITY_BITS
    forgiven = 1e-5  # packets: a millionth of one, and what 60 Mbit/s sends in a millionth of a ms
    floor_low, floor_high = np.floor(exact - forgiven), np.floor(exact + forgiven)
    assert (written_until >= np.minimum(floor_low, total - 1)).all()
    assert (written_until <= floor_high).all()
    again = read_trace(path)
    assert abs(again.bits_until(again.edges_s[1:-1]) - trace.bits_until(again.edges_s[1:-1])).max(
        initial=0.0
    ) <= OPPORTUNITY_BITS * (2 + 1e-5)


@IN_ONE_FOLDER
@given(stamps=st.lists(st.integers(0, 3000), min_size=1, max_size=60).map(sorted))
def test_mahimahi_files_survive_a_pass_through_a_trace(tmp_path: Path, stamps: list[int]) -> None:
    if stamps[-1] < 1:
        return
    first = written(tmp_path, "".join(f"{stamp}\n" for stamp in stamps), "first")
    trace = read_trace(first, bin_s=0.001)
    write_mahimahi(trace, tmp_path / "second")
    again = np.array((tmp_path / "second").read_text().split(), dtype=int)
    assert len(again) == len(stamps)
    # Packets at 0 ms are counted into the first millisecond.
    assert again.tolist() == [max(stamp, 1) for stamp in stamps]


@IN_ONE_FOLDER
@given(content=st.one_of(st.binary(max_size=80), st.text("0123456789 .-+e\t\n#x", max_size=60)))
def test_any_bytes_give_a_trace_or_a_format_error(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "fuzzed"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = f"{path}: "
    try:
        assert read_trace(path).mean_mbps > 0
        assert detect_format(path) in ("two-column", "mahimahi")
    except TraceFormatError as error:
        message = str(error)
    assert message.startswith(f"{path}:")


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", "README", "LICENSE.txt", "notes.md"):
        written(tmp_path, "0 1\n1 1\n" if len(name) == 1 else "words\n", name)
    (tmp_path / "sub").mkdir()
    assert [trace.name for trace in read_folder(tmp_path)] == ["a", "b"]
    assert [trace.name for trace in read_folder(tmp_path, limit=1)] == ["a"]
    written(tmp_path, "words\n", "c")
    with pytest.raises(TraceFormatError, match=r"c:1: expected"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path, limit=2)) == 2
    with pytest.raises(ValueError, match="at least 1"):
        read_folder(tmp_path, limit=0)


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match="no such folder"):
        read_folder(tmp_path / "none")
    (tmp_path / "train").mkdir()
    with pytest.raises(TraceFormatError, match=r"no trace file in this folder; it has .* train"):
        read_folder(tmp_path)


def test_a_trace_that_mahimahi_cannot_tell_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Trace("slow", np.array([0.0, 1.0]), np.array([0.011, 0.011]))
    with pytest.raises(TraceFormatError, match="at least one packet"):
        write_mahimahi(slow, tmp_path / "m")
    monkeypatch.setattr(traces, "MAX_FILE_BYTES", 1000)
    fast = Trace("fast", np.array([0.0, 1.0]), np.array([100.0, 100.0]))
    with pytest.raises(TraceFormatError, match="8333 lines"):
        write_mahimahi(fast, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_closing_outage_stays_in_the_period(tmp_path: Path) -> None:
    trace = Trace("fades", np.array([0.0, 1.0, 31.0]), np.array([1.2, 1.2, 0.0]))
    write_mahimahi(trace, tmp_path / "m")
    again = read_trace(tmp_path / "m")
    assert again.duration_s == 31.0
    assert again.mean_mbps == pytest.approx(trace.mean_mbps)


def test_describe_weighs_by_time() -> None:
    trace = Trace("t", np.array([0.0, 1.0, 9.0, 10.0]), np.array([0.0, 0.0, 2.0, 0.0]))
    told = describe(trace)
    assert (told.points, told.duration_s) == (4, 10.0)
    assert told.mean_mbps == pytest.approx(1.6)
    assert (told.min_mbps, told.max_mbps, told.p5_mbps) == (0.0, 2.0, 0.0)
    assert told.variation == pytest.approx(0.8 / 1.6)
    assert told.longest_outage_s == pytest.approx(2.0)  # 1 s at the end, 1 s of the next pass


def test_describe_a_constant_trace() -> None:
    told = describe(Trace("t", np.array([0.0, 4.0]), np.array([3.0, 3.0])))
    assert told.variation == 0
    assert told.longest_outage_s == 0
    assert told.p5_mbps == 3.0


def test_step_means_are_exact() -> None:
    trace = Trace("t", np.array([0.0, 0.5, 2.0]), np.array([0.0, 4.0, 1.0]))
    assert step_means_mbps(trace, 1.0).tolist() == [2.5, 1.0]


def test_reads_the_research_traces() -> None:
    folder = data_dir() / "traces"
    test = read_folder(folder / "broadband-3g" / "test")
    assert len(test) == 50
    assert test[0].rates_mbps[0] == 0.815568
    uplink = read_trace(folder / "cellular-mahimahi" / "ATT-LTE-driving-2016.up")
    assert uplink.duration_s == 120.002
    assert uplink.mean_mbps == pytest.approx(19101 * 0.012 / 120.002)
