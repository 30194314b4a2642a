"""Size tables: what is read, and how holes are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from player.video import Video, VideoFormatError, generate_video, read_video

LADDER = (300.0, 750.0)


def write(folder: Path, *columns: str) -> Path:
    for level, text in enumerate(columns):
        (folder / f"video_size_{level}").write_text(text)
    return folder


def test_lines_are_chunks_and_files_are_levels(tmp_path: Path) -> None:
    video = read_video(write(tmp_path, "10\n20\n30\n", "11\n21\n31\n"), levels_kbps=LADDER)
    assert video.sizes_bytes == ((10, 11), (20, 21), (30, 31))
    assert video.first(2).chunks == 2
    with pytest.raises(VideoFormatError, match="3 chunks, asked for 4"):
        video.first(4)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("10\n20\n",), "video_size_1: missing"),
        (("10\n20\n", "10\n"), "video_size_1: 1 chunks, but level 0 has 2"),
        (("10\n\n30\n", "1\n2\n3\n"), "video_size_0:2: expected a size"),
        (("10\n2x\n", "1\n2\n"), "video_size_0:2: .*'2x'"),
        (("10\n-3\n", "1\n2\n"), "video_size_0:2"),
        (("0\n", "1\n"), "video_size_0:1"),
        (("", ""), "video_size_0:1"),
    ],
)
def test_holes_are_named_with_file_and_line(
    tmp_path: Path, columns: tuple[str, ...], message: str
) -> None:
    with pytest.raises(VideoFormatError, match=message):
        read_video(write(tmp_path, *columns), levels_kbps=LADDER)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoFormatError, match="nowhere"):
        read_video(tmp_path / "nowhere")


@pytest.mark.parametrize("ladder", [(), (750.0, 300.0), (300.0, 300.0), (-1.0, 300.0)])
def test_ladders_must_increase(ladder: tuple[float, ...]) -> None:
    with pytest.raises(VideoFormatError):
        Video("bad", ladder, 4.0, ((1,) * len(ladder),))


def test_generated_videos_are_seeded_and_meet_their_ladder() -> None:
    video = generate_video("made", chunks=200, rng=np.random.default_rng(1))
    again = generate_video("made", chunks=200, rng=np.random.default_rng(1))
    assert video == again
    sizes = np.array(video.sizes_bytes)
    rates_kbps = sizes.mean(axis=0) * 8 / 1000 / video.chunk_s
    assert rates_kbps == pytest.approx(video.levels_kbps, rel=0.02)
    assert (np.diff(sizes, axis=1) >= 0).all()


def test_the_research_video_reads(data_dir: Path) -> None:
    video = read_video(data_dir / "video/envivio-dash3")
    assert video.chunks == 49
    assert video.sizes_bytes[0][0] == 181_801
