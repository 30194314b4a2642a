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
from testbed.sessions import group_sessions
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
        ('task = "abr"', 'task = "chess"', "task: 'chess' .* there are abr, viewport"),
        ('task = "abr"', "task = 3", "task: 3 .* there are abr, viewport"),
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
        ("[[arms]]", "[link]\nbursts = 3\n[[arms]]", r"'link.bursts'; .*gilbert_elliott"),
        ("[[arms]]", '[link]\nqueue = "red"\n[[arms]]', "link.queue.*'codel' or 'pie'"),
        ("[[arms]]", "[link]\necn = true\n[[arms]]", "link.ecn True .* droptail"),
        ("[[arms]]", "[link.up]\nrate = 1\n[[arms]]", r"'link.up.rate'; .*rate_mbps"),
        ("[[arms]]", "[link.up]\ndelay_ms = -1\n[[arms]]", "link.up.delay_ms -1"),
        ("[[arms]]", '[link.up]\nrate_mbps = 1\ntraces = "x"\n[[arms]]', "one of the two"),
        ("[[arms]]", '[link.up]\nqueue = "pie"\n[[arms]]', "link.up.queue: there is no bottle"),
        ("[[arms]]", '[link.up]\nat_end = "stop"\n[[arms]]', "link.up.at_end: there is no bottle"),
        ("[[arms]]", "[link.up]\nrate_mbps = 1e12\n[[arms]]", "link.up.rate_mbps: must be 0.001"),
        ("[[arms]]", "[[link.changes]]\nat_s = 3\n[[arms]]", "link.changes.0: changes nothing"),
        (
            "[[arms]]",
            '[[link.changes]]\nat_s = 3\ndirection = "up"\nrate_mbps = 1\n[[arms]]',
            "link.changes.0.rate_mbps: the way up",
        ),
        (
            "[[arms]]",
            "[link]\ngilbert_elliott = { to_bad = 0.1, to_good = 0.0 }\n[[arms]]",
            "link.gilbert_elliott: to_good 0.0",
        ),
        ("[[arms]]", "[hosts.servers]\n[[arms]]", "'hosts.servers'; there are server, client"),
        ("[[arms]]", "[network]\nclients = 0\n[[arms]]", "network.clients: must be at least 1"),
        ("[[arms]]", "[network]\nclients = 101\n[[arms]]", "network.clients: .* at most 100"),
        (
            "[[arms]]",
            '[[background]]\nkind = "bulk"\nflow = 1\n[[arms]]',
            r"'background.0.bulk.flow'",
        ),
        # what the simulated link models do not have
        ("[[arms]]", "[link]\njitter_ms = 1\n[[arms]]", "link.jitter_ms: .*driver = 'emulated'"),
        ("[[arms]]", '[link]\nqueue = "codel"\n[[arms]]', "link.queue: .*driver = 'emulated'"),
        ("[[arms]]", "[link.up]\nrate_mbps = 1\n[[arms]]", "link.up: .*driver = 'emulated'"),
        ("[[arms]]", "[network]\nclients = 2\n[[arms]]", "network.clients: .*driver = 'emulated'"),
        ("[[arms]]", "[capture]\nenabled = true\n[[arms]]", "capture.enabled: .*'emulated'"),
        ("[[arms]]", '[[background]]\nkind = "bulk"\n[[arms]]', "background: .*'emulated'"),
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


EMULATED = MINIMAL.replace("simulated", "emulated")


def test_a_network_with_everything_reads_back_equal(tmp_path: Path) -> None:
    text = (
        EMULATED
        + """
[link]
jitter_ms = 3.0
jitter = "normal"
gilbert_elliott = { to_bad = 0.01, to_good = 0.3 }
queue = "pie"
queue_bytes = 150000
ecn = true
target_ms = 5.0
replay = "opportunities"
at_end = "stop"
[link.up]
rate_mbps = 1.0
duplicate = 0.01
[[link.changes]]
at_s = 30.0
delay_ms = 80.0
[hosts.server]
congestion = "reno"
tcp = { slow_start_after_idle = 0, rmem = "4096 131072 6291456" }
[network]
clients = 2
[capture]
enabled = true
[[background]]
kind = "bulk"
flows = 2
[[background]]
kind = "web"
arrivals_per_s = 2
mean_bytes = 100000
"""
    )
    experiment = read_experiment(write(tmp_path, text))
    assert [type(entry).__name__ for entry in experiment.background] == [
        "BulkTraffic",
        "WebTraffic",
    ]
    assert read_experiment(write(tmp_path, dump_experiment(experiment))) == experiment


def groups_of(tmp_path: Path, shared_by: str) -> list[list[tuple[str, str, int]]]:
    text = (
        EMULATED.replace("limit = 2", "limit = 1")
        + f"""[[arms]]
controller = "rate"
[network]
clients = 2
shared_by = "{shared_by}"
"""
    )
    experiment = read_experiment(write(tmp_path, text))
    plan = plan_experiment(experiment, data_dir=None, base=tmp_path)
    assert experiment.players == len(group_sessions(plan.sessions)[0])
    return [
        [(session.group, session.arm.label, session.client) for session in group]
        for group in group_sessions(plan.sessions)
    ]


def test_players_of_an_arm_or_of_all_arms_share_a_bottleneck(tmp_path: Path) -> None:
    assert groups_of(tmp_path, "arm") == [
        [("bba", "bba", 0), ("bba", "bba", 1)],
        [("rate", "rate", 0), ("rate", "rate", 1)],
    ]
    assert groups_of(tmp_path, "all") == [
        [
            ("bba+rate", "bba", 0),
            ("bba+rate", "bba", 1),
            ("bba+rate", "rate", 2),
            ("bba+rate", "rate", 3),
        ]
    ]


def test_the_way_up_follows_traces_of_the_same_names_or_one_file(tmp_path: Path) -> None:
    for folder, rate in (("down", 4), ("up", 1)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            (tmp_path / folder / name).write_text(f"0 {rate}\n9 {rate}\n")

    def up_of(up: str) -> list[tuple[str, float]]:
        text = EMULATED.replace("builtin:fcc", "down") + f"[link.up]\n{up}\n"
        plan = plan_experiment(read_experiment(write(tmp_path, text)), data_dir=None, base=tmp_path)
        traces = [session.up_trace for session in plan.sessions]
        return [(trace.name, trace.rate_mbps(1.0)) for trace in traces if trace is not None]

    assert up_of('traces = "up"') == [("a", 1.0), ("b", 1.0)]
    assert up_of('traces = "up/b"') == [("b", 1.0), ("b", 1.0)]
    assert up_of("rate_mbps = 0.5") == [("constant", 0.5), ("constant", 0.5)]
    assert up_of("delay_ms = 3.0") == []
    (tmp_path / "up" / "b").unlink()
    with pytest.raises(ConfigError, match=r"link.up.traces: up has no 'b'.*there are a"):
        up_of('traces = "up"')


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
