"""Manifests of tiles: what is written is read back, and what is no tiling is refused by name."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.mpd import NAMESPACE, SIZES_SCHEME, MpdError, parse_mpd
from player.tiled_mpd import (
    MAX_TILED_MPD_BYTES,
    SRD_SCHEME,
    TiledManifest,
    read_tile_size_table,
    read_tiled_mpd,
    tile_name,
    write_tiled_mpd,
)
from player.tiled_video import TiledVideo, generate_tiled_video, write_tile_sizes
from player.tiles import TileGrid

URL = "http://10.0.0.1:8080/demo/manifest.mpd"
VIDEO = generate_tiled_video("demo", 3, np.random.default_rng(6))
WRITTEN = write_tiled_mpd(VIDEO)


@pytest.fixture(scope="module")
def manifest() -> TiledManifest:
    return read_tiled_mpd(WRITTEN, URL)


def test_manifest_describes_the_video(manifest: TiledManifest) -> None:
    assert manifest.grid == VIDEO.grid
    assert manifest.levels_kbps == VIDEO.levels_kbps
    assert (manifest.chunk_s, manifest.chunks) == (VIDEO.chunk_s, VIDEO.chunks)
    assert manifest.sizes_url == "http://10.0.0.1:8080/demo/sizes.json"
    for tile in range(VIDEO.grid.tiles):
        for level in range(VIDEO.levels):
            url = f"http://10.0.0.1:8080/demo/{tile_name(2, tile, level)}"
            assert manifest.media_url(2, tile, level) == url


def test_descriptors_and_rates() -> None:
    tag = f"{{{NAMESPACE}}}"
    sets = list(ElementTree.fromstring(WRITTEN).iter(f"{tag}AdaptationSet"))  # noqa: S314
    assert len(sets) == 32
    (srd,) = sets[13].iterfind(f"{tag}SupplementalProperty")
    assert srd.attrib == {"schemeIdUri": SRD_SCHEME, "value": "0,5,1,1,1,8,4"}
    rates = [int(found.attrib["bandwidth"]) for found in sets[13].iter(f"{tag}Representation")]
    share = VIDEO.grid.solid_angles_sr[13] / VIDEO.grid.solid_angles_sr.sum()
    assert rates == pytest.approx(share * np.array(VIDEO.levels_kbps) * 1000, abs=1)


@pytest.mark.parametrize("chunk_s", [0.01, 0.5, 1 / 3, 1.001, 4.0])
@pytest.mark.parametrize("chunks", [1, 2, 7, 601])
def test_number_and_length_of_chunks_survive(chunk_s: float, chunks: int) -> None:
    video = TiledVideo("v", TileGrid(1, 1), (100.0,), chunk_s, (((9,),),) * chunks)
    read = read_tiled_mpd(write_tiled_mpd(video), URL)
    assert read.chunks == chunks
    assert read.chunk_s == pytest.approx(chunk_s, rel=1e-6)
    assert read_tile_size_table(write_tile_sizes(video), read, name="v") == video


@pytest.mark.parametrize("grid", [TileGrid(1, 1), TileGrid(6, 12), TileGrid(32, 64)])
@pytest.mark.parametrize("levels_kbps", [(400.0, 1200.5), (0.1, 0.2, 0.3)])
def test_any_grid_and_ladder(grid: TileGrid, levels_kbps: tuple[float, ...]) -> None:
    sizes = ((tuple(range(1, len(levels_kbps) + 1)),) * grid.tiles,)
    video = TiledVideo("v", grid, levels_kbps, 1.0, sizes)
    read = read_tiled_mpd(write_tiled_mpd(video), URL)
    assert read.grid == grid
    if levels_kbps[0] > 1:
        assert read.levels_kbps == levels_kbps


def test_largest_manifest_is_within_the_limit() -> None:
    levels_kbps = tuple(100_000.0 * (level + 1) for level in range(32))
    sizes = ((tuple(range(1, 33)),) * (64 * 128),)
    video = TiledVideo("v", TileGrid(64, 128), levels_kbps, 1.0, sizes)
    assert MAX_TILED_MPD_BYTES / 2 < len(write_tiled_mpd(video)) < MAX_TILED_MPD_BYTES


TEMPLATE = '<SegmentTemplate duration="2" media="$RepresentationID$/$Number%03d$.m4s"/>'
LEVELS = (
    '<Representation id="{id}hi" bandwidth="2000"/><Representation id="{id}lo" bandwidth="900"/>'
)
QUARTERS = ("0,0,0,960,540,1920,1080", "0,960,0,960,540,1920,1080",
            "0,0,540,960,540,1920,1080", "0,960,540,960,540,1920,1080")  # fmt: skip


def tile_set(srd: str | None, index: int = 0, levels: str = LEVELS, inner: str = "") -> str:
    described = (
        "" if srd is None else f'<EssentialProperty schemeIdUri="{SRD_SCHEME}" value="{srd}"/>'
    )
    return (
        f'<AdaptationSet id="{index}" mimeType="video/mp4">{described}{inner}'
        f"{levels.format(id=index)}</AdaptationSet>"
    )


def foreign(sets: Iterable[str], template: str = TEMPLATE, more: str = "") -> TiledManifest:
    text = (
        f'<?xml version="1.0"?><MPD xmlns="{NAMESPACE}" mediaPresentationDuration="PT6S">'
        f'<BaseURL>/media/</BaseURL><Period>{template}{more}<AdaptationSet contentType="audio"/>'
        f"{''.join(sets)}</Period></MPD>"
    )
    return read_tiled_mpd(text.encode(), URL)


def of_tiles(srds: Iterable[str | None]) -> list[str]:
    return [tile_set(srd, index) for index, srd in enumerate(srds)]


def test_other_packagers_manifest() -> None:
    """Tiles in pixels and in any order, levels from the top."""
    manifest = foreign(of_tiles(reversed(QUARTERS)))
    assert manifest.grid == TileGrid(2, 2)
    assert manifest.levels_kbps == (3.6, 8.0)
    assert (manifest.chunk_s, manifest.chunks, manifest.sizes_url) == (2.0, 3, None)
    assert manifest.media_url(1, 0, 1) == "http://10.0.0.1:8080/media/3hi/002.m4s"


def test_total_size_and_spatial_set_are_optional() -> None:
    srds = [QUARTERS[0] + ",1", *(quarter.removesuffix(",1920,1080") for quarter in QUARTERS[1:])]
    assert foreign(of_tiles(srds)).grid == TileGrid(2, 2)


def test_size_table_may_be_announced_by_a_tile() -> None:
    told = f'<SupplementalProperty schemeIdUri="{SIZES_SCHEME}" value="s.json"/>'
    manifest = foreign([tile_set("0,0,0,1,1,1,1", inner=told)])
    assert manifest.sizes_url == "http://10.0.0.1:8080/media/s.json"


@pytest.mark.parametrize(
    ("srds", "message"),
    [
        ([], "no AdaptationSet of video"),
        ([None], f"AdaptationSet 0 needs one {SRD_SCHEME} descriptor, found 0"),
        ([*QUARTERS, None], f"AdaptationSet 4 needs one {SRD_SCHEME} descriptor"),
        (["0,0,0,1,1,1"], "must be source,x,y,width,height"),
        (["0,0,0,1,1,1,1,1,1"], "must be source,x,y,width,height"),
        (["0,0,0,1,1,1,-1"], "whole numbers, not '0,0,0,1,1,1,-1'"),
        (["0,0,0,1.0,1,1,1"], "whole numbers"),
        (["0,0,0,1,1,1," + "9" * 400], "whole numbers"),
        ([""], "has no value"),
        (["0,0,0,0,1,1,1"], "a tile of 0 by 1"),
        (["0,0,0,1,1,0,0"], "do not cover a picture of 0 by 0"),
        (["0,0,0,1,1"], "name 0 total sizes"),
        (["0,0,0,1,1,2,1", "0,1,0,1,1,3,1"], "name 2 total sizes"),
        (["0,0,0,1,1,2,1", "1,1,0,1,1,2,1"], "different sources"),
        ([*QUARTERS[:3], QUARTERS[0]], "two tiles overlap at row 0, column 0"),
        ([*QUARTERS, QUARTERS[3]], "two tiles overlap at row 1, column 1"),
        ([*QUARTERS, "0,0,0,1920,1080,1920,1080"], "different sizes"),
        (QUARTERS[:3], "3 tiles do not cover the sphere: row 1, column 1 of 2 by 2"),
        (["0,0,0,2,1,5,1", "0,2,0,2,1,5,1"], "2 by 1 do not cover a picture of 5 by 1"),
        (["0,0,0,2,1,4,1", "0,1,0,2,1,4,1"], "off the grid of 2 by 1"),
        (["0,0,0,1,1,2,1", "0,2,0,1,1,2,1"], "lies outside the picture"),
        (["0,0,0,1,1,200000000,1"], "a grid has 1 to 64 rows"),
    ],
)  # fmt: skip
def test_tilings_that_are_none(srds: list[str | None], message: str) -> None:
    with pytest.raises(MpdError, match=message):
        foreign(of_tiles(srds))


ONE = '<Representation id="{id}" bandwidth="9"/>'


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"levels": ONE}, "different ladders: tile 0 has 2 levels, tile 1 has 1"),
        ({"levels": ""}, "no Representation"),
        ({"levels": ONE + ONE}, "same bandwidth"),
        ({"inner": '<SegmentTemplate duration="3"/>'}, "0 and 1 have different chunk lengths"),
        ({"inner": '<SegmentTemplate startNumber="3"/>'}, "different chunk lengths or start"),
        ({"inner": '<SegmentTemplate media="x"/>'}, r"has no \$Number\$"),
        (
            {"inner": f'<SupplementalProperty schemeIdUri="{SRD_SCHEME}" value="0,1,0,1,1,2,1"/>'},
            "found 2",
        ),
    ],
)
def test_tiles_that_differ(second: dict[str, str], message: str) -> None:
    with pytest.raises(MpdError, match=message):
        foreign([tile_set("0,0,0,1,1,2,1"), tile_set("0,1,0,1,1,2,1", 1, **second)])


def test_ordinary_and_tiled_manifests_are_told_apart() -> None:
    with pytest.raises(MpdError, match="expected one AdaptationSet of video, found 32"):
        parse_mpd(WRITTEN, URL)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'<!DOCTYPE MPD [<!ENTITY a "b">]><MPD>&a;</MPD>', "document type"),
        (b"<MPD", "not XML"),
        (b"<MPD/>", "root element"),
        (b" " * (MAX_TILED_MPD_BYTES + 1), "bytes"),
    ],
)
def test_hostile_documents_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(MpdError, match=message):
        read_tiled_mpd(data, URL)


@given(st.data())
def test_torn_and_altered_manifests_never_crash(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(WRITTEN) - 1))
    insert = data.draw(st.text("<>&\"'/ $%0a9-,", max_size=8)).encode()
    cut = data.draw(st.integers(0, 40))
    try:
        manifest = read_tiled_mpd(WRITTEN[:at] + insert + WRITTEN[at + cut :], URL)
    except MpdError:
        return
    assert manifest.grid.tiles == len(manifest.tiles)


@given(st.text("0123456789,- ", max_size=20))
def test_garbled_descriptors_never_crash(srd: str) -> None:
    try:
        manifest = foreign([tile_set(srd)])
    except MpdError:
        return
    assert manifest.grid.tiles == 1


def test_size_table_round_trip(manifest: TiledManifest) -> None:
    assert read_tile_size_table(write_tile_sizes(VIDEO), manifest, name="demo") == VIDEO


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels_kbps": [1, 2, 3, 4, 5]}, "kbit/s, manifest for"),
        ({"rows": 8, "columns": 4}, "size table for TileGrid.rows=8, columns=4., manifest for"),
        ({"rows": 5}, "chunk 0 has 32 tiles"),
        ({"chunk_s": 2.0}, "s chunks, manifest for 1.0"),
        ({"sizes_bytes": [[[1, 2, 3, 4, 5]] * 32]}, "for 1 chunks, manifest for 3"),
        ({"sizes_bytes": []}, "empty"),
    ],
)
def test_size_table_must_agree(
    manifest: TiledManifest, change: dict[str, object], message: str
) -> None:
    table = json.loads(write_tile_sizes(VIDEO)) | change
    with pytest.raises(MpdError, match=message):
        read_tile_size_table(json.dumps(table).encode(), manifest, name="demo")


def test_ladder_of_another_length_is_refused(manifest: TiledManifest) -> None:
    other = generate_tiled_video("demo", 3, np.random.default_rng(6), levels_kbps=(400.0, 1200.0))
    with pytest.raises(MpdError, match="kbit/s, manifest for"):
        read_tile_size_table(write_tile_sizes(other), manifest, name="demo")
