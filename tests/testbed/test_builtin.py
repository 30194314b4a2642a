from pathlib import Path

import numpy as np
import pytest

from player.video import VideoFormatError
from testbed.builtin import (
    TRACE_SETS,
    VIDEOS,
    DataNotFound,
    resolve_path,
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
