"""Experiment files: what is read, and how mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controllers.registry import UnknownController
from player.trace import TraceError
from player.video import VideoFormatError
from testbed.builtin import DataNotFound
from testbed.experiment import (
    ConfigError,
    Experiment,
    dump_experiment,
    parse_experiment,
    plan_experiment,
    read_experiment,
)
from testbed.traces import TraceFormatError

MINIMAL = """
task = "abr"
driver = "simulated"
traces = "builtin:fcc"
limit = 2
[[arms]]
controller = "bba"
"""


def write(tmp_path: Path, text: str = MINIMAL) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


def plan_of(tmp_path: Path, text: str) -> object:
    return plan_experiment(read_experiment(write(tmp_path, text)), data_dir=None, base=tmp_path)


def test_the_documented_example_is_understood(tmp_path: Path) -> None:
    text = """
task = "abr"
driver = "emulated"
seed = 0
traces = "data:traces/broadband-3g/test"
limit = 8
starts = "FILE.json"
chunks = 48
[video]
sizes = "data:video/envivio-dash3"
[link]
backend = "auto"
model = "pensieve"
delay_ms = 20
queue_packets = 100
loss = 0.0
congestion = "cubic"
[controller_link]
delay_ms = 0
[[arms]]
controller = "bba"
[[arms]]
name = "netllm-minilm"
controller = "netllm"
options = { checkpoint = "builtin:abr-minilm" }
"""
    experiment = read_experiment(write(tmp_path, text))
    assert experiment.link.delay_ms == 20
    assert [arm.label for arm in experiment.arms] == ["bba", "netllm-minilm"]
    assert experiment.arms[1].options == {"checkpoint": "builtin:abr-minilm"}


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path))
    again = read_experiment(write(tmp_path, dump_experiment(experiment)))
    assert again == experiment


def test_overrides_replace_keys_at_any_depth(tmp_path: Path) -> None:
    experiment = read_experiment(
        write(tmp_path),
        overrides=("link.delay_ms=30", "arms.0.controller=bola", "chunks=7", "traces=here"),
        driver="emulated",
    )
    assert experiment.link.delay_ms == 30
    assert experiment.arms[0].controller == "bola"
    assert experiment.chunks == 7
    assert experiment.traces == "here"
    assert experiment.driver == "emulated"


@pytest.mark.parametrize("override", ["nothing", "=3", "task.name=x", "arms.3.controller=bba"])
def test_bad_overrides_are_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        read_experiment(write(tmp_path), overrides=(override,))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('task = "abr"', 'task = "chess"', "task"),
        ('task = "abr"', 'task = "viewport"', "cannot be run yet"),
        ('task = "abr"', "", "'task' is missing"),
        ('task = "abr"', 'task = "abr"\ndelay = 3', r"unknown key 'delay'; there are task"),
        ("[[arms]]", "[link]\ndelay = 3\n[[arms]]", r"unknown key 'link.delay'; .*delay_ms"),
        ('"bba"', '"bba"\noption = 3', r"unknown key 'arms.0.option'; .*options"),
        ("limit = 2", "limit = 0", "limit"),
        ("limit = 2", "chunks = 1", "chunks"),
        ("limit = 2", 'chunks = "many"', "chunks"),
        ("[[arms]]", "[link]\nloss = 1.5\n[[arms]]", "link.loss"),
        ("[[arms]]", "[link]\ndelay_ms = -1\n[[arms]]", "link.delay_ms"),
        ("[[arms]]", '[player]\nfallback = "zzz"\n[[arms]]', r"player.fallback.*'zzz'"),
        ("[[arms]]", '[player]\nfallback = "oracle"\n[[arms]]', "knows the future"),
        ('"bba"', '"bba"\n[[arms]]\ncontroller = "bba"', "'bba' occurs twice"),
        ('"simulated"', '"emulated"\nseed = "x"', "seed"),
        ('task = "abr"', "task = ", "not valid TOML"),
    ],
)
def test_mistakes_name_file_key_and_alternatives(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write(tmp_path, MINIMAL.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_experiment(path)
    assert str(path) in str(caught.value)


def test_an_oracle_cannot_be_emulated(tmp_path: Path) -> None:
    text = MINIMAL.replace('"bba"', '"oracle"').replace('"simulated"', '"emulated"')
    with pytest.raises(ConfigError, match="knows the future"):
        read_experiment(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        read_experiment(tmp_path / "none.toml")


def test_sessions_go_trace_by_trace_over_all_arms(tmp_path: Path) -> None:
    text = MINIMAL + '[[arms]]\ncontroller = "rate"\n'
    experiment = read_experiment(write(tmp_path, text))
    plan = plan_experiment(experiment, data_dir=None, base=tmp_path)
    assert [session.arm.label for session in plan.sessions] == ["bba", "rate"] * 2
    assert [session.number for session in plan.sessions] == [0, 1, 2, 3]
    assert plan.sessions[0].trace is plan.sessions[1].trace
    assert plan.video.chunks == 48


def test_starts_come_from_a_number_a_table_or_a_file(tmp_path: Path) -> None:
    def starts_of(text: str) -> list[int]:
        experiment = read_experiment(write(tmp_path, f"starts = {text}\n" + MINIMAL))
        plan = plan_experiment(experiment, data_dir=None, base=tmp_path)
        return [session.start_index for session in plan.sessions]

    experiment = read_experiment(write(tmp_path))
    names = [
        session.trace.name
        for session in plan_experiment(experiment, data_dir=None, base=tmp_path).sessions
    ]
    assert starts_of("3") == [3, 3]
    (tmp_path / "starts.json").write_text(json.dumps({names[0]: 2, names[1]: 5, "other": 1}))
    assert starts_of('"starts.json"') == [2, 5]
    (tmp_path / "starts.json").write_text(json.dumps({names[0]: 2}))
    with pytest.raises(ConfigError, match=f"no start for trace '{names[1]}'"):
        starts_of('"starts.json"')
    (tmp_path / "starts.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        starts_of('"starts.json"')
    (tmp_path / "starts.json").write_text(json.dumps({names[0]: 2, names[1]: "5"}))
    with pytest.raises(ConfigError, match="expected a whole number"):
        starts_of('"starts.json"')
    with pytest.raises(TraceError, match="start index 0"):
        starts_of("0")


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('"bba"', '"bbb"', UnknownController, r"'bbb'; there are bba"),
        ('"builtin:fcc"', '"builtin:fc"', DataNotFound, r"builtin:fcc"),
        ('"builtin:fcc"', '"data:traces"', DataNotFound, "--data"),
        ('"builtin:fcc"', '"no/where"', DataNotFound, "no such file"),
        ('"builtin:fcc"', '"torn.trace"', TraceFormatError, r"torn\.trace:2"),
        ("[[arms]]", '[video]\nsizes = "holes"\n[[arms]]', VideoFormatError, r"video_size_1:1"),
        ("limit = 2", "chunks = 400", VideoFormatError, "asked for 400"),
    ],
)
def test_what_an_experiment_names_is_checked_before_it_runs(
    tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "torn.trace").write_text("0.0 1.0\n1.0\n")
    holes = tmp_path / "holes"
    holes.mkdir()
    for level in range(6):
        (holes / f"video_size_{level}").write_text("" if level == 1 else "100\n")
    with pytest.raises(error, match=message):
        plan_of(tmp_path, MINIMAL.replace(old, new, 1))


def test_experiments_compare_by_value() -> None:
    document = {"task": "abr", "arms": [{"controller": "bba"}]}
    assert parse_experiment(document, where="a") == parse_experiment(document, where="b")
    assert isinstance(parse_experiment(document, where="a"), Experiment)
