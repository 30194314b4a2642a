"""Tiled videos: what is generated, written and read, and what is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.tiled_video import (
    DEFAULT_GRID,
    DEFAULT_LEVELS_KBPS,
    MAX_TABLE_BYTES,
    TiledVideo,
    TiledVideoError,
    generate_tiled_video,
    parse_tile_sizes,
    read_tiled_video,
    write_tile_sizes,
    write_tiled_video,
)
from player.tiles import TileGrid

GRID = TileGrid(1, 2)
SIZES = (((10, 20), (11, 21)), ((12, 22), (13, 23)), ((14, 24), (15, 25)))
VIDEO = TiledVideo("v", GRID, (100.0, 200.0), 1.0, SIZES)


def generated(seed: int = 4, chunks: int = 60, grid: TileGrid = DEFAULT_GRID) -> TiledVideo:
    return generate_tiled_video("g", chunks, np.random.default_rng(seed), grid=grid)


@pytest.mark.parametrize("grid", [TileGrid(1, 1), DEFAULT_GRID, TileGrid(6, 12)])
def test_mean_rates_are_the_nominal_ones(grid: TileGrid) -> None:
    video = generated(grid=grid)
    rates_kbps = video.size_array.sum(axis=1).mean(axis=0) * 8 / 1000 / video.chunk_s
    assert rates_kbps == pytest.approx(DEFAULT_LEVELS_KBPS, rel=2e-3)
    assert (np.diff(video.size_array, axis=2) > 0).all()
    assert (video.chunks, video.levels, video.duration_s) == (60, 5, 60.0)


def test_generated_content() -> None:
    sizes = np.concatenate([generated(seed).size_array for seed in range(8)])
    per_area = sizes.mean(axis=0) / DEFAULT_GRID.solid_angles_sr[:, None]
    per_row = per_area.reshape(4, 8, 5).mean(axis=(1, 2))
    assert per_row[[1, 2]].min() > 1.1 * per_row[[0, 3]].max()  # the poles are cheap
    logs = np.log(generated(chunks=300).size_array[:, :, 2])
    logs -= logs.mean(axis=0)
    in_time = np.mean([np.corrcoef(one[1:], one[:-1])[0, 1] for one in logs.T])
    assert in_time > 0.6
    detail = logs - logs.mean(axis=1, keepdims=True)
    neighbours = np.mean([np.corrcoef(detail[:, 8 + c], detail[:, 8 + (c + 1) % 8])[0, 1]
                          for c in range(8)])  # fmt: skip
    opposite = np.mean([np.corrcoef(detail[:, 8 + c], detail[:, 8 + (c + 4) % 8])[0, 1]
                        for c in range(8)])  # fmt: skip
    assert neighbours > opposite + 0.2


def test_levels_are_alike() -> None:
    shares = generated().size_array / np.asarray(DEFAULT_LEVELS_KBPS)
    logs = np.log(shares / shares.mean(axis=(0, 1)))
    assert np.corrcoef(logs[..., 0].ravel(), logs[..., 4].ravel())[0, 1] > 0.95


def test_same_seed_same_video() -> None:
    assert generated(1) == generated(1) != generated(2)


def test_finest_grid_has_no_tile_without_bytes() -> None:
    assert generated(chunks=2, grid=TileGrid(64, 128)).size_array.min() >= 24


def test_first_chunks() -> None:
    assert VIDEO.first(2).sizes_bytes == SIZES[:2]
    for chunks in (0, 4):
        with pytest.raises(TiledVideoError, match=f"v has 3 chunks, asked for {chunks}"):
            VIDEO.first(chunks)


def test_size_array() -> None:
    assert VIDEO.size_array.shape == (3, 2, 2)
    assert VIDEO.size_array[1, 0, 1] == 22
    assert not VIDEO.size_array.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_s": 0.0}, "v: chunk_s must be 0.01 to 3600, not 0.0"),
        ({"chunk_s": float("nan")}, "chunk_s"),
        ({"levels_kbps": ()}, "1 to 32 levels, not 0"),
        ({"levels_kbps": (1.0,) * 33}, "1 to 32 levels, not 33"),
        ({"levels_kbps": (200.0, 100.0)}, "positive and increase"),
        ({"levels_kbps": (0.0, 100.0)}, "positive and increase"),
        ({"levels_kbps": (1.0, float("inf"))}, "positive and increase"),
        ({"sizes_bytes": ()}, "size table is empty"),
        ({"sizes_bytes": (*SIZES, SIZES[0][:1])}, "chunk 3 has 1 tiles, a grid of 1 by 2 has 2"),
        ({"sizes_bytes": (((1, 2), (1,)),)}, "chunk 0, tile 1 has 1 sizes for 2 levels"),
        ({"sizes_bytes": (((1, 2), (0, 1)),)}, "chunk 0, tile 1 has a size that is not 1 to"),
        ({"sizes_bytes": (((1, 2**31), (1, 1)),)}, "chunk 0, tile 0 has a size that is not 1 to"),
    ],
)
def test_videos_that_are_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TiledVideoError, match=message):
        dataclasses.replace(VIDEO, **change)


def test_generated_videos_that_are_none() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TiledVideoError, match="at least 1 chunk, not 0"):
        generate_tiled_video("g", 0, rng)
    with pytest.raises(TiledVideoError, match="increase"):
        generate_tiled_video("g", 1, rng, levels_kbps=(2.0, 1.0))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_tiled_video(VIDEO, path)
    assert read_tiled_video(path) == VIDEO
    assert read_tiled_video(path, name="w").name == "w"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "t.json: a grid has 1 to 64 rows"),
        ({"rows": 2}, "t.json: v: chunk 0 has 2 tiles, a grid of 2 by 2 has 4"),
        ({"columns": "2"}, "t.json: columns: "),
        ({"sizes_bytes": [[[1, 2], [3, 4.5]]]}, r"sizes_bytes\.0\.1\.1: "),
        ({"sizes_bytes": [[[1, 2], [3, None]]]}, r"sizes_bytes\.0\.1\.1: "),
        ({"chunk_s": "1"}, "chunk_s: "),
        ({"extra": 1}, "extra: "),
    ],
)
def test_tables_that_are_none(change: dict[str, object], message: str) -> None:
    table = json.loads(write_tile_sizes(VIDEO)) | change
    with pytest.raises(TiledVideoError, match=message):
        parse_tile_sizes(json.dumps(table).encode(), name="v", source="t.json")


def test_missing_key_is_named() -> None:
    table = json.loads(write_tile_sizes(VIDEO))
    del table["chunk_s"]
    with pytest.raises(TiledVideoError, match=r"t\.json: chunk_s: "):
        parse_tile_sizes(json.dumps(table).encode(), name="v", source="t.json")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TiledVideoError, match="no such file"):
        read_tiled_video(tmp_path / "v.json")
    with pytest.raises(TiledVideoError, match="no such file"):
        read_tiled_video(tmp_path)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(MAX_TABLE_BYTES + 1)
    with pytest.raises(TiledVideoError, match="larger than"):
        read_tiled_video(large)


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(TiledVideoError):
        parse_tile_sizes(data, name="v", source="t.json")
