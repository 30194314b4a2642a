from pathlib import Path

import numpy as np
import pytest

from player.head_motion import HeadMotionError
from player.video import VideoFormatError
from testbed.builtin import (
    RECORDING_SETS,
    TRACE_SETS,
    VIDEOS,
    DataNotFound,
    resolve_path,
    resolve_recordings,
    resolve_traces,
    resolve_video,
)
from testbed.traces import TraceFormatError

TRACE = "0 1\n1 2\n"
#: Mean rate of the first trace of each set: changing them changes what experiments mean.
PINNED_MEANS = [0.6, 0.923, 4.547, 1.41, 0.755, 0.701, 2.137, 2.949]


@pytest.mark.parametrize("name", TRACE_SETS)
def test_a_built_in_set_is_the_same_every_time(name: str) -> None:
    first = resolve_traces(f"builtin:{name}", limit=4)
    again = resolve_traces(f"builtin:{name}", limit=3)
    assert len(first) == 4
    for one, other in zip(first, again, strict=False):
        assert one.name == other.name
        assert one.rates_mbps.tolist() == other.rates_mbps.tolist()
        assert one.duration_s == 320.0


def test_built_in_sets_share_no_trace_and_sort_by_index() -> None:
    seen: set[bytes] = set()
    for name, chosen in TRACE_SETS.items():
        found = resolve_traces(f"builtin:{name}")
        assert len(found) == chosen.size
        assert [trace.name for trace in found] == sorted(trace.name for trace in found)
        seen.update(trace.rates_mbps.tobytes() for trace in found)
    assert len(seen) == sum(chosen.size for chosen in TRACE_SETS.values())


def test_built_in_numbers_are_pinned() -> None:
    rates = [resolve_traces(f"builtin:{name}", limit=1)[0].rates_mbps for name in TRACE_SETS]
    assert [round(float(rate.mean()), 3) for rate in rates] == PINNED_MEANS


def test_the_mixture_takes_turns() -> None:
    names = [trace.name for trace in resolve_traces("builtin:mixed", limit=4)]
    assert names == ["mixed-00-fcc", "mixed-01-hsdpa", "mixed-02-lte", "mixed-03-fcc"]


@pytest.mark.parametrize("name", VIDEOS)
def test_a_built_in_video_has_the_reference_ladder(name: str) -> None:
    video = resolve_video(f"builtin:{name}")
    assert (video.chunks, video.chunk_s, video.levels) == (48, 4.0, 6)
    assert video == resolve_video(f"builtin:{name}")
    rates_kbps = np.array(video.sizes_bytes).mean(axis=0) * 8 / 1000 / video.chunk_s
    assert rates_kbps == pytest.approx(video.levels_kbps, rel=0.02)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(DataNotFound, match=r"'5g'; there are builtin:fcc, .*builtin:mixed"):
        resolve_traces("builtin:5g")
    with pytest.raises(DataNotFound, match="there are builtin:envivio-like"):
        resolve_video("builtin:5g")
    with pytest.raises(DataNotFound, match="built in"):
        resolve_path("builtin:fcc")


def test_a_path_is_a_file_or_a_folder_relative_to_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("b", "a"):
        (tmp_path / "set" / name).write_text(TRACE)
    assert [trace.name for trace in resolve_traces("set", base=tmp_path)] == ["a", "b"]
    assert [trace.name for trace in resolve_traces("set/b", base=tmp_path)] == ["b"]
    assert [trace.name for trace in resolve_traces(str(tmp_path / "set"), limit=1)] == ["a"]
    with pytest.raises(DataNotFound, match="none: no such file or folder"):
        resolve_traces("none", base=tmp_path)
    with pytest.raises(ValueError, match="limit"):
        resolve_traces("set", base=tmp_path, limit=0)


def test_data_means_below_the_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "set").mkdir(parents=True)
    (data / "set" / "a").write_text(TRACE)
    (tmp_path / "outside").write_text(TRACE)
    assert len(resolve_traces("data:set", data)) == 1
    with pytest.raises(DataNotFound, match="--data or in TESTBED_DATA"):
        resolve_traces("data:set")
    for spec in ("data:../outside", "data:set/../../outside", f"data:{tmp_path}/outside"):
        with pytest.raises(DataNotFound, match="below the data folder"):
            resolve_traces(spec, data)
    with pytest.raises(DataNotFound, match="data folder is"):
        resolve_traces("data:none", data)


def test_malformed_data_is_an_error_of_its_format(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("words\n")
    with pytest.raises(TraceFormatError):
        resolve_traces("bad", base=tmp_path)
    with pytest.raises(VideoFormatError):
        resolve_video(".", base=tmp_path)


@pytest.mark.parametrize("name", RECORDING_SETS)
def test_built_in_head_motion_is_the_same_every_time(name: str) -> None:
    chosen = RECORDING_SETS[name]
    videos, users = chosen.videos[:2], chosen.users[:2]
    found = resolve_recordings(f"builtin:{name}", videos=videos, users=users)
    assert [(one.video, one.user) for one in found] == [(v, u) for v in videos for u in users]
    (again,) = resolve_recordings(f"builtin:{name}", videos=videos[1:], users=users[1:])
    assert again.name == found[-1].name == f"video{videos[1]:02d}/user{users[1]:02d}"
    assert again.poses_deg.tolist() == found[-1].poses_deg.tolist()
    assert again.duration_s == pytest.approx(chosen.duration_s)


def test_built_in_head_motion_to_train_on_shares_nothing() -> None:
    test, train = RECORDING_SETS["explorers"], RECORDING_SETS["explorers-train"]
    assert not set(test.videos) & set(train.videos)
    assert not set(test.users) & set(train.users)
    assert test.seed != train.seed


def test_head_motion_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="'x'; there are builtin:explorers, "):
        resolve_recordings("builtin:x")
    with pytest.raises(HeadMotionError, match="builtin:explorers: no video 7; there are 1, 2"):
        resolve_recordings("builtin:explorers", videos=[7])
    with pytest.raises(HeadMotionError, match="no user 99; there are 1, 2"):
        resolve_recordings("builtin:explorers", users=[99])
    with pytest.raises(HeadMotionError, match="neither videos nor users"):
        resolve_recordings("builtin:explorers", videos=[])
    folder = tmp_path / "motion" / "video03"
    folder.mkdir(parents=True)
    (folder / "user05.csv").write_text("0,0,0,0\n0.2,0,0,0\n")
    (found,) = resolve_recordings("data:motion", tmp_path)
    assert (found.video, found.user) == (3, 5)
    assert resolve_recordings("motion", base=tmp_path)[0].name == found.name
    with pytest.raises(DataNotFound, match="no such file"):
        resolve_recordings("none", base=tmp_path)
