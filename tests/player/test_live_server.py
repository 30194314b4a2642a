"""Live events: their manifests, and a server that has nothing before it is filmed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import aiohttp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import serving

from player.content import ContentPack
from player.live import live_folder, live_url, parse_start
from player.live_mpd import LiveEvent, read_start_s
from player.mpd import MpdError, parse_mpd, read_sizes, write_mpd
from player.server import HostedTiledVideo
from player.tiled_mpd import read_tiled_mpd
from player.tiled_video import generate_tiled_video
from player.tiles import TileGrid
from player.video import Video

RunningServer = Callable[..., contextlib.AbstractAsyncContextManager[str]]
URL = "http://10.0.0.1:8000/live/start_1800000000.250/demo/manifest.mpd?delay_s=8"
EVENT = LiveEvent(start_s=1_800_000_000.25, now_s=1_800_000_009.0, delay_s=8.0)


def get(
    running_server: RunningServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    async def request() -> tuple[int, dict[str, str], bytes]:
        async with (
            running_server() as url,
            aiohttp.ClientSession() as http,
            http.request(method, url + path, headers=headers) as response,
        ):
            return response.status, dict(response.headers), await response.read()

    return asyncio.run(request())


def test_the_manifest_of_an_event_is_read_back(small_video: Video, pack: ContentPack) -> None:
    live = parse_mpd(write_mpd(small_video, pack, event=EVENT), URL)
    static = parse_mpd(write_mpd(small_video, pack), URL)
    assert (live.live_start_s, static.live_start_s) == (EVENT.start_s, None)
    assert (live.chunks, live.chunk_s) == (static.chunks, static.chunk_s)
    assert live.representations == static.representations
    assert live.media_url(0, 1).endswith("/live/start_1800000000.250/demo/chunk-1-1.m4s")


def test_what_the_manifest_of_an_event_says(small_video: Video, pack: ContentPack) -> None:
    text = write_mpd(small_video, pack, event=EVENT).decode()
    for said in (
        'type="dynamic"',
        'availabilityStartTime="2027-01-15T08:00:00.250000Z"',
        'publishTime="2027-01-15T08:00:00.250000Z"',
        'minimumUpdatePeriod="PT24.000000S"',
        'timeShiftBufferDepth="PT24.000000S"',
        'suggestedPresentationDelay="PT8.000000S"',
        '<Latency target="8000"/>',
        '<Period id="0" start="PT0S" duration="PT24.000000S">',
        'schemeIdUri="urn:mpeg:dash:utc:direct:2014" value="2027-01-15T08:00:09.000000Z"',
    ):
        assert said in text
    untold = write_mpd(small_video, pack, event=LiveEvent(start_s=0.0, now_s=0.0)).decode()
    assert "suggestedPresentationDelay" not in untold
    assert "ServiceDescription" not in untold


def test_a_static_manifest_has_nothing_of_that(small_video: Video, pack: ContentPack) -> None:
    text = write_mpd(small_video, pack).decode()
    assert text.splitlines()[1:4] == [
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static"',
        '     mediaPresentationDuration="PT24.000000S" minBufferTime="PT4.000000S">',
        '  <Period id="0" start="PT0S">',
    ]
    assert text.endswith("    </AdaptationSet>\n  </Period>\n</MPD>\n")


@pytest.mark.parametrize(
    ("start", "period", "message"),
    [
        (None, None, "availabilityStartTime must be"),
        ("2027-01-15", None, "availabilityStartTime must be"),
        ("2027-01-15T25:00:00Z", None, "availabilityStartTime"),
        ("2027-01-15T08:00:00Z", "PT4S", "Period@start"),
    ],
)
def test_starts_that_are_not_played(start: str | None, period: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_start_s(start, period)


@pytest.mark.parametrize(
    "text", ["2027-01-15T08:00:00.25Z", "2027-01-15T08:00:00.25", "2027-01-15T10:00:00.25+02:00"]
)
def test_start_in_other_time_zones(text: str) -> None:
    assert read_start_s(text, "PT0.0S") == EVENT.start_s


def test_a_dynamic_manifest_that_is_not_played(small_video: Video, pack: ContentPack) -> None:
    written = write_mpd(small_video, pack, event=EVENT)
    with pytest.raises(MpdError, match="a dynamic manifest: MPD@availabilityStartTime"):
        parse_mpd(written.replace(b"2027-01-15T", b"soon"), URL)
    with pytest.raises(MpdError, match="only static manifests"):
        read_tiled_mpd(written, URL)


@pytest.mark.parametrize(
    ("start_s", "delay_s"), [(-1.0, None), (1e12, None), (0.0, 0.0), (0.0, float("nan"))]
)
def test_events_that_cannot_be(start_s: float, delay_s: float | None) -> None:
    with pytest.raises(ValueError, match=r"no event begins|delay_s must be"):
        LiveEvent(start_s=start_s, now_s=0.0, delay_s=delay_s)


@given(st.floats(0, 2e11))
def test_the_address_says_when_the_event_began(start_s: float) -> None:
    url = live_url("http://10.0.0.1:8000/demo/manifest.mpd", start_s, 8.0)
    assert url == f"http://10.0.0.1:8000{live_folder(start_s)}/demo/manifest.mpd?delay_s=8"
    assert parse_start(url.split("/")[4]) == pytest.approx(start_s, abs=1e-3)


def test_an_event_is_there_at_once_but_for_its_chunks(
    running_server: RunningServer, small_video: Video
) -> None:
    folder = live_folder(time.time())
    status, headers, body = get(running_server, f"{folder}/demo/manifest.mpd?delay_s=6.5")
    assert (status, headers["Content-Type"]) == (200, "application/dash+xml")
    manifest = parse_mpd(body, URL)
    assert manifest.live_start_s == pytest.approx(parse_start(folder.rsplit("/", 1)[1]))
    assert b'<Latency target="6500"/>' in body
    status, _, table = get(running_server, f"{folder}/demo/sizes.json")
    assert status == 200
    assert read_sizes(table, manifest, name=small_video.name) == small_video
    assert get(running_server, f"{folder}/demo/init-5.mp4")[0] == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_chunks_are_not_there_before_they_are_filmed(
    running_server: RunningServer, small_video: Video, method: str
) -> None:
    now_s, chunk_s = time.time(), small_video.chunk_s
    early = f"{live_folder(now_s - 2 * chunk_s + 2.5)}/demo/chunk-2-2.m4s"
    status, headers, body = get(running_server, early, method)
    assert status == 404
    assert int(headers["Retry-After"]) in (1, 2, 3)
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert (body == b"") == (method == "HEAD")
    assert get(running_server, early, method, Range="bytes=0-9")[0] == 404
    filmed = f"{live_folder(now_s - 2 * chunk_s)}/demo/chunk-2-2.m4s"
    status, headers, body = get(running_server, filmed, method)
    assert status == 200
    assert "Retry-After" not in headers
    assert int(headers["Content-Length"]) == small_video.sizes_bytes[1][2]
    assert get(running_server, filmed, method, Range="bytes=0-9")[0] == 206


def test_filmed_chunks_are_those_of_the_video(running_server: RunningServer) -> None:
    static = get(running_server, "/demo/chunk-2-1.m4s")
    live = get(running_server, "/live/start_1/demo/chunk-2-1.m4s")
    assert static[0] == live[0] == 200
    assert static[2] == live[2]


def test_a_chunk_comes_on_time(running_server: RunningServer, small_video: Video) -> None:
    async def wait_for_it() -> tuple[int, int]:
        async with running_server() as url, aiohttp.ClientSession() as http:
            start_s = round(time.time() - small_video.chunk_s + 0.3, 3)
            chunk = f"{url}{live_folder(start_s)}/demo/chunk-0-1.m4s"
            async with http.get(chunk) as early:
                first = early.status
            await asyncio.sleep(start_s + small_video.chunk_s - time.time() + 0.001)
            async with http.get(chunk) as late:
                return first, late.status

    assert asyncio.run(wait_for_it()) == (404, 200)


@pytest.mark.parametrize(
    "path",
    [
        "/live/start_/demo/manifest.mpd",
        "/live/start_x/demo/manifest.mpd",
        "/live/start_-5/demo/manifest.mpd",
        "/live/start_1e9/demo/init-0.mp4",
        "/live/start_999999999999/demo/manifest.mpd",
        "/live/start_999999999999/demo/chunk-2-1.m4s",
        "/live/1700000000/demo/chunk-2-1.m4s",
        "/live/start_1/demo/manifest.mpd?delay_s=x",
        "/live/start_1/demo/manifest.mpd?delay_s=-1",
        "/live/start_1/demo/manifest.mpd?delay_s=nan",
        "/live/start_1/demo/chunk-2-7.m4s",
        "/live/start_1/demo/chunk-6-1.m4s",
        "/live/start_1/demo/chunk-2-01.m4s",
        "/live/start_1/other/manifest.mpd",
        "/live/start_1/start_1/demo/manifest.mpd",
        "/live/start_1/demo",
        "/live/demo/manifest.mpd",
    ],
)
def test_events_that_are_not_there(running_server: RunningServer, path: str) -> None:
    status, headers, _ = get(running_server, path)
    assert status == 404
    assert "Retry-After" not in headers


def test_tiled_videos_are_no_events() -> None:
    video = generate_tiled_video("sphere", 2, np.random.default_rng(8), grid=TileGrid(1, 2))

    async def ask() -> list[int]:
        found = []
        videos = {"sphere": HostedTiledVideo(video)}
        async with serving(videos) as url, aiohttp.ClientSession() as http:
            for name in ("manifest.mpd", "sizes.json", "tile-0-0-1.m4s"):
                async with http.get(f"{url}/live/start_1/sphere/{name}") as response:
                    found.append(response.status)
        return found

    assert asyncio.run(ask()) == [404, 404, 404]
