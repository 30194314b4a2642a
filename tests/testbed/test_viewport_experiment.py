"""Experiments with task viewport: what is read, how mistakes are named, what is planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from viewport_entries import TOML, write_experiment, write_recordings

from controllers.registry import UnknownController
from player.head_motion import HeadMotionError
from player.tiled_video import TiledVideoError, generate_tiled_video, write_tiled_video
from testbed.builtin import DataNotFound
from testbed.emulation import decode_plan, encode_plan
from testbed.experiment import (
    ConfigError,
    dump_experiment,
    experiment_document,
    plan_experiment,
    read_experiment,
)
from testbed.sessions import Plan
from testbed.viewport_experiment import ViewportExperiment
from testbed.viewport_plans import PredictionPlan, ViewportPlan, spread

STREAMED = TOML.replace('"offline"', '"simulated"\ntraces = "builtin:fcc"\nlimit = 2')


def plan_of(folder: Path, text: str) -> Plan:
    experiment = read_experiment(write_experiment(folder, text))
    return plan_experiment(experiment, data_dir=None, base=folder)


def test_the_documented_example_is_understood(tmp_path: Path) -> None:
    text = """
task = "viewport"
driver = "offline"
viewports = "data:viewports/jin2022"
videos = [3, 7, 12, 10, 20, 27]
users = [9, 25, 73]
traces = "data:traces/broadband-3g/test"
[predict]
history = 10
horizon = 20
step = 15
[[arms]]
controller = "static"
"""
    experiment = read_experiment(write_experiment(tmp_path, text))
    assert isinstance(experiment, ViewportExperiment)
    assert experiment.videos == (3, 7, 12, 10, 20, 27)
    assert experiment.predict.horizon == 20
    again = write_experiment(tmp_path, dump_experiment(experiment))
    assert read_experiment(again) == experiment


def test_keys_of_every_table_read_back_equal_and_in_one_order(tmp_path: Path) -> None:
    text = TOML.replace(
        "[[arms]]",
        """
recordings = 3
chunks = 5
users = [1]
[predict]
earlier_viewers = [2, 3]
batch = 4
[tiles]
rows = 2
columns = 4
levels_kbps = [100.0, 200.0]
fov_width_deg = 90.0
[player]
missing = "stall"
base = "all"
refresh_s = 0.0
fallback = "static"
[[arms]]""",
        1,
    )
    experiment = read_experiment(write_experiment(tmp_path, text))
    assert isinstance(experiment, ViewportExperiment)
    assert experiment.player_config.refresh_s is None
    assert experiment.player_config.fov.width_deg == 90.0
    assert list(experiment_document(experiment))[:4] == ["task", "arms", "driver", "seed"]
    again = read_experiment(write_experiment(tmp_path, dump_experiment(experiment)))
    assert again == experiment


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"viewport"', '"walking"', "task: 'walking' .* there are abr, viewport, scheduling"),
        ('"offline"', '"imagined"', "driver.*'offline', 'simulated' or 'emulated'"),
        ("[[arms]]", "[video]\n[[arms]]", "unknown key 'video'; there are .*viewports.*tiles"),
        ("[[arms]]", "[tiles]\nrow = 3\n[[arms]]", "'tiles.row'; there are rows"),
        ("[[arms]]", "[predict]\nsteps = 3\n[[arms]]", "'predict.steps'; there are history"),
        ("[[arms]]", "[player]\nfirst_level = 1\n[[arms]]", "'player.first_level'; .*missing"),
        ("[[arms]]", "[predict]\nhorizon = 0\n[[arms]]", "predict.horizon: must be 1 to 100"),
        ("[[arms]]", "[predict]\nstep = 0\n[[arms]]", "predict.step: must be at least 1"),
        ("[[arms]]", '[predict]\nearlier_viewers = "rest"\n[[arms]]', "'users' names none"),
        ("[[arms]]", '[predict]\nearlier_viewers = "all"\n[[arms]]', "predict.earlier_viewers"),
        ("[[arms]]", "users = []\n[[arms]]", "users: names none"),
        ("[[arms]]", "recordings = 0\n[[arms]]", "recordings: must be at least 1"),
        ("[[arms]]", "chunks = 1\n[[arms]]", "chunks: at least 2"),
        ("[[arms]]", "[tiles]\nrows = 0\n[[arms]]", "tiles: a grid has 1 to"),
        ("[[arms]]", "[tiles]\nfov_width_deg = 180\n[[arms]]", "tiles: width_deg"),
        ("[[arms]]", "[player]\nsafety = 2\n[[arms]]", "player: safety"),
        ("[[arms]]", "[player]\nconnections = 0\n[[arms]]", "player: connections"),
        ("[[arms]]", '[player]\nmissing = "wait"\n[[arms]]', "'blank' or 'stall'"),
        ("[[arms]]", '[player]\nfallback = "oracle"\n[[arms]]', "knows the future"),
        ("[[arms]]", '[player]\nfallback = "bba"\n[[arms]]', "player.fallback: .*there are"),
    ],
)
def test_mistakes_name_file_key_and_alternatives(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write_experiment(tmp_path, TOML.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_experiment(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('"static"', '"bba"', UnknownController, r"viewport controller 'bba'; there are .*static"),
        ('"recordings"', '"builtin:none"', DataNotFound, "builtin:"),
        ('"recordings"', '"nowhere"', DataNotFound, "nowhere"),
        ("[[arms]]", "users = [9]\n[[arms]]", HeadMotionError, "no user 9; there are 1, 2, 3"),
        ("[[arms]]", "[predict]\nhorizon = 80\n[[arms]]", ConfigError, "predict: horizon"),
        (
            "[[arms]]",
            "users = [1]\n[predict]\nearlier_viewers = [1]\n[[arms]]",
            ConfigError,
            "predict.earlier_viewers",
        ),
        ('"offline"', '"simulated"\nchunks = 90', ConfigError, "chunks: video01/user01 lasts"),
        ('"offline"', '"simulated"\ntraces = "builtin:x"', DataNotFound, "builtin:fcc"),
        ("[[arms]]", "[tiles]\nlevels_kbps = [2.0, 1.0]\n[[arms]]", TiledVideoError, "increase"),
        ("[[arms]]", '[tiles]\nsizes = "builtin:x"\n[[arms]]', DataNotFound, "builtin:spots"),
        ("[[arms]]", "[tiles]\nchunk_s = 3\n[[arms]]", ConfigError, "player: buffer_cap_s"),
    ],
)
def test_what_an_experiment_names_is_checked_before_it_runs(
    tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    is_tiled = "[tiles]" in new
    text = (STREAMED if is_tiled else TOML).replace(old, new, 1)
    with pytest.raises(error, match=message):
        plan_of(tmp_path, text)


def test_a_table_of_sizes_must_be_of_the_video_that_the_experiment_describes(
    tmp_path: Path,
) -> None:
    video = generate_tiled_video("v", 40, np.random.default_rng(1))
    write_tiled_video(video, tmp_path / "sizes.json")
    text = STREAMED.replace("[[arms]]", '[tiles]\nsizes = "sizes.json"\n[[arms]]', 1)
    plan = plan_of(tmp_path, text)
    assert isinstance(plan, ViewportPlan)
    assert plan.videos["video01/user01"].sizes_bytes == video.sizes_bytes[:35]
    with pytest.raises(ConfigError, match="it has rows = 4, columns = 8"):
        plan_of(tmp_path, text.replace("[tiles]", "[tiles]\nrows = 3"))


def test_offline_sessions_go_recording_by_recording_over_all_arms(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TOML.replace("[[arms]]", "users = [1, 3]\n[[arms]]", 1))
    assert isinstance(plan, PredictionPlan)
    assert plan.traces == ()
    told = [(session.unit, session.arm.label) for session in plan.sessions]
    assert told[:3] == [
        ("video01/user01", "static"),
        ("video01/user01", "linear"),
        ("video01/user03", "static"),
    ]
    assert len(told) == 8


def test_recordings_take_turns_with_traces_the_same_for_all_arms(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STREAMED.replace("[[arms]]", "recordings = 3\n[[arms]]", 1))
    assert isinstance(plan, ViewportPlan)
    assert [session.unit for session in plan.sessions[::2]] == [
        "video01/user01 on fcc-00",
        "video01/user03 on fcc-01",
        "video02/user02 on fcc-00",
    ]
    assert all(
        one.unit == other.unit and one.arm != other.arm
        for one, other in zip(plan.sessions[::2], plan.sessions[1::2], strict=True)
    )
    assert {plan.chunks_of(session) for session in plan.sessions} == {35}


def test_earlier_viewers_watched_the_same_video_and_are_not_the_viewer(tmp_path: Path) -> None:
    text = TOML.replace("[[arms]]", 'users = [1]\n[predict]\nearlier_viewers = "rest"\n[[arms]]', 1)
    plan = plan_of(tmp_path, text)
    assert isinstance(plan, PredictionPlan)
    assert [one.name for one in plan.earlier["video02/user01"]] == [
        "video02/user02",
        "video02/user03",
    ]
    named = text.replace('"rest"', "[1, 3]\nearlier_limit = 1").replace("users = [1]\n", "")
    plan = plan_of(tmp_path, named)
    assert isinstance(plan, PredictionPlan)
    assert [one.name for one in plan.earlier["video01/user01"]] == ["video01/user03"]
    assert [one.name for one in plan.earlier["video01/user02"]] == ["video01/user01"]


def test_recordings_are_spread_evenly() -> None:
    assert spread(range(10), None) == tuple(range(10))
    assert spread(range(10), 20) == tuple(range(10))
    assert spread(range(10), 4) == (0, 2, 5, 7)
    assert spread(range(3), 3) == (0, 1, 2)


def test_a_plan_survives_the_way_into_the_sandbox(tmp_path: Path) -> None:
    text = STREAMED.replace(
        "[[arms]]", 'users = [1, 2]\n[predict]\nearlier_viewers = "rest"\n[[arms]]', 1
    ).replace('"simulated"', '"emulated"\nchunks = 4')
    plan = plan_of(tmp_path, text)
    assert isinstance(plan, ViewportPlan)
    again = decode_plan(encode_plan(plan, plan.sessions[2:], jobs=1))
    assert isinstance(again, ViewportPlan)
    assert again.experiment == plan.experiment
    assert [one.unit for one in again.sessions] == [one.unit for one in plan.sessions[2:]]
    for one, other in zip(again.sessions, plan.sessions[2:], strict=True):
        assert one.motion.poses_deg.tolist() == other.motion.poses_deg.tolist()
        assert again.videos[one.motion.name] == plan.videos[one.motion.name]
        earlier = [motion.name for motion in again.earlier_of(one)]
        assert earlier == [motion.name for motion in plan.earlier_of(other)]
        assert bool(earlier) == (one.arm.controller == "crossuser")


def test_the_built_in_recordings_need_no_files(tmp_path: Path) -> None:
    write_recordings(tmp_path / "recordings")
    plan = plan_of(tmp_path, TOML.replace('viewports = "recordings"\n', "recordings = 2\n"))
    assert len(plan.sessions) == 4


@pytest.mark.parametrize("name", ["viewport-offline", "viewport-streaming", "viewport-jin2022"])
def test_the_examples_can_be_read_and_planned(name: str) -> None:
    path = Path(__file__).parents[2] / "examples" / f"{name}.toml"
    experiment = read_experiment(path)
    assert isinstance(experiment, ViewportExperiment)
    if experiment.viewports.startswith("builtin:"):
        assert plan_experiment(experiment, data_dir=None, base=path.parent).sessions
