"""The DASH server with a tiled video: names, lengths, boxes, and an ordinary video beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import numpy as np
import pytest
from loopback import serving

from player import fmp4
from player.content import ContentPack
from player.fmp4 import ContentError
from player.server import Hosted, HostedTiledVideo, HostedVideo, RequestLogEntry
from player.tiled_content import tile_segment
from player.tiled_mpd import read_tile_size_table, read_tiled_mpd
from player.tiled_video import TiledVideo, generate_tiled_video
from player.tiles import TileGrid
from player.video import Video

VIDEO = generate_tiled_video("sphere", 2, np.random.default_rng(8), grid=TileGrid(3, 4))
TINY = TiledVideo("tiny", TileGrid(1, 2), (1.0, 2.0), 1.0, (((1, 7), (8, 23)),))

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def hosted(small_video: Video, pack: ContentPack) -> dict[str, Hosted]:
    return {
        "sphere": HostedTiledVideo(VIDEO),
        "tiny": HostedTiledVideo(TINY),
        "flat": HostedVideo(small_video, pack),
    }


def get(
    hosted: dict[str, Hosted],
    paths: Sequence[str],
    *,
    method: str = "GET",
    log: list[RequestLogEntry] | None = None,
    **headers: str,
) -> list[Answer]:
    async def request() -> list[Answer]:
        answers = []
        async with serving(hosted, log) as url, aiohttp.ClientSession() as http:
            for path in paths:
                async with http.request(method, url + path, headers=headers) as response:
                    body = await response.read()
                    answers.append((response.status, dict(response.headers), body))
        return answers

    return asyncio.run(request())


def test_manifest_and_size_table(hosted: dict[str, Hosted]) -> None:
    (_, headers, body), (_, table_headers, table) = get(
        hosted, ["/sphere/manifest.mpd", "/sphere/sizes.json"]
    )
    assert headers["Content-Type"] == "application/dash+xml"
    assert table_headers["Content-Type"] == "application/json"
    manifest = read_tiled_mpd(body, "http://h/sphere/manifest.mpd")
    assert manifest.sizes_url == "http://h/sphere/sizes.json"
    assert read_tile_size_table(table, manifest, name="sphere") == VIDEO


def test_tiles_are_as_long_as_the_size_table_says(hosted: dict[str, Hosted]) -> None:
    manifest = read_tiled_mpd(get(hosted, ["/sphere/manifest.mpd"])[0][2], "/sphere/manifest.mpd")
    asked = [
        (chunk, tile, level)
        for chunk in range(VIDEO.chunks)
        for tile in range(VIDEO.grid.tiles)
        for level in range(VIDEO.levels)
    ]
    answers = get(hosted, [manifest.media_url(*one) for one in asked])
    for (chunk, tile, level), (status, headers, body) in zip(asked, answers, strict=True):
        assert (status, headers["Content-Type"]) == (200, "video/iso.segment")
        assert len(body) == VIDEO.sizes_bytes[chunk][tile][level]
        assert int(headers["Content-Length"]) == len(body)
        assert [box.kind for box in fmp4.boxes(body)] == [b"styp", b"free"]


def test_tiny_tiles_have_their_length(hosted: dict[str, Hosted]) -> None:
    paths = [f"/tiny/tile-{tile}-{level}-1.m4s" for tile in (0, 1) for level in (0, 1)]
    assert [len(body) for _, _, body in get(hosted, paths)] == [1, 7, 8, 23]


@pytest.mark.parametrize("size_bytes", [1, 7, 8, 16, 23, 24, 25, 64 * 1024, 200_000])
def test_segments(size_bytes: int) -> None:
    body = b"".join(tile_segment(size_bytes).pieces())
    assert len(body) == size_bytes
    if size_bytes >= 24:
        assert body[:16] == b"\0\0\0\x10stypmsdh\0\0\0\0"
    if size_bytes >= 8:
        kinds = [box.kind for box in fmp4.boxes(body)]
        assert kinds == ([b"styp", b"free"] if size_bytes >= 24 else [b"free"])


@pytest.mark.parametrize("size_bytes", [0, -1, 2**32])
def test_segments_that_are_none(size_bytes: int) -> None:
    with pytest.raises(ContentError, match=f"not {size_bytes}"):
        tile_segment(size_bytes)


def test_head_and_range(hosted: dict[str, Hosted]) -> None:
    path = "/sphere/tile-5-2-1.m4s"
    size = VIDEO.sizes_bytes[0][5][2]
    ((status, headers, body),) = get(hosted, [path], method="HEAD")
    assert (status, body, int(headers["Content-Length"])) == (200, b"", size)
    ((status, headers, body),) = get(hosted, [path], Range="bytes=4-15")
    assert (status, body) == (206, b"stypmsdh\0\0\0\0")
    assert headers["Content-Range"] == f"bytes 4-15/{size}"
    ((status, headers, body),) = get(hosted, [path], method="OPTIONS")
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, "*")


def test_unknown_paths(hosted: dict[str, Hosted]) -> None:
    paths = [
        "/sphere/tile-12-0-1.m4s",
        "/sphere/tile-0-5-1.m4s",
        "/sphere/tile-0-0-0.m4s",
        "/sphere/tile-0-0-3.m4s",
        "/sphere/tile-00-0-1.m4s",
        "/sphere/tile-0-00-1.m4s",
        "/sphere/tile-0-0-01.m4s",
        "/sphere/tile--1-0-1.m4s",
        "/sphere/tile-0-0-1.mp4",
        "/sphere/tile-0-0-1.m4s/",
        "/sphere/tile-0-0.m4s",
        "/sphere/tile-999999-0-1.m4s",
        "/sphere/tile-0-0-99999999999999999999.m4s",
        "/sphere/chunk-0-1.m4s",
        "/sphere/init-0.mp4",
        "/flat/tile-0-0-1.m4s",
        "/other/tile-0-0-1.m4s",
    ]
    assert [status for status, _, _ in get(hosted, paths)] == [404] * len(paths)


def test_ordinary_video_beside_it(hosted: dict[str, Hosted], small_video: Video) -> None:
    ((status, _, body),) = get(hosted, ["/flat/chunk-0-1.m4s"])
    assert (status, len(body)) == (200, small_video.sizes_bytes[0][0])


def test_tiles_are_logged_with_cmcd(hosted: dict[str, Hosted]) -> None:
    log: list[RequestLogEntry] = []
    get(hosted, ["/sphere/tile-3-1-2.m4s?CMCD=ot%3Dv%2Cbr%3D100"], log=log)
    (entry,) = log
    assert (entry.path, entry.status) == ("/sphere/tile-3-1-2.m4s", 200)
    assert entry.cmcd == {"ot": "v", "br": 100}
    assert entry.bytes_sent == VIDEO.sizes_bytes[1][3][1]
