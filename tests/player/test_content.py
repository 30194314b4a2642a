"""Padded content: exact sizes, and every frame decodes under random switching."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from player import fmp4
from player.content import (
    PIECE_BYTES,
    ContentError,
    ContentPack,
    Segment,
    load_pack,
    make_pack,
    write_pack,
)
from player.pack_encoder import Timing
from player.video import PENSIEVE_CHUNK_S, PENSIEVE_LEVELS_KBPS, Video

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None,
    reason="ffmpeg and ffprobe are not installed",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "netllm-testbed" / "content"


def whole(segment: Segment) -> bytes:
    return b"".join(segment.pieces())


def test_default_ladder_is_built_in_and_small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no ffmpeg
    pack = load_pack(PENSIEVE_LEVELS_KBPS, PENSIEVE_CHUNK_S)
    assert pack.levels_kbps == PENSIEVE_LEVELS_KBPS
    assert not cache.exists()
    assert sum(len(level.init) + len(level.media) for level in pack.levels) < 300_000


@pytest.mark.parametrize("extra", [8, 9, 100, PIECE_BYTES, 3 * PIECE_BYTES + 1])
@pytest.mark.parametrize("chunk", [0, 1, 100_000])
def test_segment_has_its_size_and_its_place(pack: ContentPack, chunk: int, extra: int) -> None:
    size_bytes = len(pack.levels[2].media) + extra
    data = whole(pack.segment(chunk, 2, size_bytes))
    assert len(data) == size_bytes
    assert [box.kind for box in fmp4.boxes(data)] == [b"moof", b"mdat", b"free"]
    tfdt = fmp4.find(data, b"moof", b"traf", b"tfdt")
    mfhd = fmp4.find(data, b"moof", b"mfhd")
    assert int.from_bytes(data[tfdt.end - 8 : tfdt.end]) == chunk * 4 * pack.timing.timescale
    assert int.from_bytes(data[mfhd.end - 4 : mfhd.end]) == chunk + 1


def test_pieces_of_a_range_are_the_slice(pack: ContentPack) -> None:
    segment = pack.segment(3, 1, 200_000)
    data = whole(segment)
    rng = np.random.default_rng(0)
    for _ in range(50):
        start, stop = sorted(map(int, rng.integers(0, 200_001, size=2)))
        pieces = list(segment.pieces(start, stop))
        assert b"".join(pieces) == data[start:stop]
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


def test_too_small_a_chunk_names_chunk_level_and_sizes(pack: ContentPack) -> None:
    least = pack.min_bytes(4)
    pack.segment(7, 4, least)
    with pytest.raises(ContentError, match=rf"chunk 7, level 4: {least - 1} bytes.*{least} bytes"):
        pack.segment(7, 4, least - 1)
    with pytest.raises(ContentError, match="chunk 0"):
        pack.segment(0, 0, 2**33)


def test_check_finds_what_does_not_fit(pack: ContentPack, small_video: Video) -> None:
    pack.check(small_video)
    sizes = [list(row) for row in small_video.sizes_bytes]
    sizes[3][2] = 500
    broken = dataclasses.replace(small_video, sizes_bytes=tuple(map(tuple, sizes)))
    with pytest.raises(ContentError, match="chunk 3 at level 2 has 500 bytes"):
        pack.check(broken)
    with pytest.raises(ContentError, match="ladder"):
        pack.check(dataclasses.replace(small_video, chunk_s=2.0))


@needs_ffmpeg
def test_every_frame_decodes_under_random_switching(
    pack: ContentPack, small_video: Video, tmp_path: Path
) -> None:
    levels = np.random.default_rng(7).integers(0, 6, size=small_video.chunks)
    data = pack.init(0)
    for chunk, level in enumerate(map(int, levels)):
        data += whole(pack.segment(chunk, level, small_video.sizes_bytes[chunk][level]))
    file = tmp_path / "session.mp4"
    file.write_bytes(data)
    command = ["ffprobe", "-v", "error", "-err_detect", "explode", "-show_frames"]
    command += ["-show_entries", "frame=pts", "-of", "json", str(file)]
    probe = subprocess.run(command, check=True, capture_output=True, text=True)
    assert probe.stderr == ""
    times = [frame["pts"] for frame in json.loads(probe.stdout)["frames"]]
    ticks = pack.timing.chunk_ticks // pack.timing.frames
    assert times == [frame * ticks for frame in range(pack.timing.frames * small_video.chunks)]


@needs_ffmpeg
@pytest.mark.parametrize("level", range(6))
def test_each_level_decodes_with_its_own_init(
    pack: ContentPack, level: int, tmp_path: Path
) -> None:
    file = tmp_path / "level.mp4"
    file.write_bytes(pack.init(level) + whole(pack.segment(0, level, 100_000)))
    command = ["ffmpeg", "-v", "error", "-xerror", "-i", str(file), "-f", "framemd5", "-"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert len([line for line in done.stdout.splitlines() if line[0] != "#"]) == pack.timing.frames


def test_levels_share_their_decoder_configuration(pack: ContentPack) -> None:
    """Otherwise a switch would make browsers reset the decoder."""
    found = {init.init[(at := init.init.find(b"avcC")) - 4 : at + 40] for init in pack.levels}
    assert len(found) == 1


@needs_ffmpeg
def test_another_ladder_is_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_pack((100.0, 400.0), 0.5)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setenv("PATH", "")  # no ffmpeg any more
    assert load_pack((100, 400), 0.5) == made
    assert len(whole(made.segment(0, 1, 25_000))) == 25_000


@needs_ffmpeg
def test_damaged_cache_is_made_anew(cache: Path) -> None:
    made = make_pack((100.0,), 0.25)
    (folder,) = cache.iterdir()
    (folder / "chunk-0.m4s").write_bytes(b"torn")
    assert load_pack((100.0,), 0.25) == made
    assert (folder / "chunk-0.m4s").read_bytes() == made.levels[0].media
    assert list(cache.iterdir()) == [folder]


def test_without_ffmpeg_the_error_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ContentError, match="ffmpeg is needed"):
        load_pack((123.0,), 4.0)
    assert not cache.exists()


def test_cache_that_cannot_be_written_is_named(
    pack: ContentPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    encoded = iter(pack.levels)
    monkeypatch.setattr("player.content.encode_level", lambda *_: next(encoded))
    with pytest.raises(ContentError, match="XDG_CACHE_HOME"):
        make_pack(PENSIEVE_LEVELS_KBPS, PENSIEVE_CHUNK_S)


def test_failed_write_leaves_nothing(
    pack: ContentPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_pack(pack, tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chunk_s", "frames", "rate"),
    [(4.0, 96, Fraction(24)), (2.0, 48, Fraction(24)), (2.002, 48, Fraction(24000, 1001))],
)
def test_timing_is_exact(chunk_s: float, frames: int, rate: Fraction) -> None:
    timing = Timing.of(chunk_s)
    assert (timing.frames, timing.frame_rate) == (frames, rate)
    assert timing.chunk_ticks / timing.timescale == pytest.approx(chunk_s, rel=1e-12)
    assert timing.chunk_ticks % frames == 0


@pytest.mark.parametrize("chunk_s", [0.001, 0.0, -1.0, 3.14159265358979, float("inf")])
def test_timing_refuses_what_is_no_whole_frames(chunk_s: float) -> None:
    with pytest.raises(ContentError, match="chunk_s"):
        Timing.of(chunk_s)


@pytest.mark.parametrize("cut", [3, 10, 100, -1])
def test_torn_media_is_refused(pack: ContentPack, cut: int) -> None:
    with pytest.raises(ContentError):
        fmp4.Fragment.parse(pack.levels[0].media[:cut])


def test_fragment_must_be_moof_and_mdat(pack: ContentPack) -> None:
    with pytest.raises(ContentError, match="moof and mdat"):
        fmp4.Fragment.parse(pack.init(0))
    with pytest.raises(ContentError, match="mdhd"):
        fmp4.timescale(pack.levels[0].media)
    with pytest.raises(ContentError, match=r"H\.264"):
        fmp4.codecs(pack.levels[0].media[:500])
