"""dash.js in a real Chromium follows a live event: what it fetches, when, and how far behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from aiohttp import web
from browser_sessions import fetched, served

from player import browser_page
from player.browser import BrowserSession, play_in_browser
from player.browser_page import PageSettings
from player.browser_parts import BrowserParts
from player.browser_records import PageError
from player.live import Live, available_s, parse_start
from player.machine import PlayerConfig
from player.server import RequestLogEntry
from player.video import Video, generate_video

CHUNKS = 10
CHUNK_S = 1.0
LEVELS = [0, 3, 1, 5, 2, 4, 0, 5, 1, 3]
#: Of the machine, which may be busy.
SLACK_S = 2.0


@pytest.fixture(scope="module")
def parts(parts: BrowserParts) -> BrowserParts:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg, which makes chunks of a second, is not installed")
    return parts


def video_of(chunks: int) -> Video:
    rng = np.random.default_rng(1)
    return generate_video("clip", chunks=chunks, chunk_s=CHUNK_S, rng=rng)


async def decide(request: web.Request) -> web.Response:
    observation = json.loads(await request.read())
    answer = {"decision": LEVELS[observation["chunk_index"]]}
    return web.json_response(answer, headers={"Access-Control-Allow-Origin": "*"})


def play(
    parts: BrowserParts, live: Live, *, chunks: int = CHUNKS, rule: str | None = None
) -> tuple[BrowserSession, list[RequestLogEntry]]:
    """Plays a session; the log is that of the media server."""

    async def main() -> tuple[BrowserSession, list[RequestLogEntry]]:
        async with served(video_of(chunks), decide) as hosts:
            settings = hosts.page(rule=rule, player=PlayerConfig(live=live), timeout_s=5.0)
            return await play_in_browser(parts, settings), hosts.log

    return asyncio.run(main())


def fetched_of_event(log: Sequence[RequestLogEntry]) -> list[tuple[int, int]]:
    """Chunk and level of each request for media, in order; all of one event."""
    assert {entry.path.split("/")[1] for entry in log} == {"live"}
    assert {entry.status for entry in log} == {200}
    return fetched(log)


def latencies_s(played: BrowserSession) -> list[float]:
    found = [chunk.latency_s for chunk in played.chunks]
    assert None not in found
    return [latency_s for latency_s in found if latency_s is not None]


def test_every_chunk_of_an_event_is_the_controllers_decision(parts: BrowserParts) -> None:
    live = Live(target_latency_s=3.0, catch_up=0.05)
    played, log = play(parts, live)
    assert fetched_of_event(log) == list(enumerate(LEVELS))
    assert [chunk.level for chunk in played.chunks] == LEVELS
    for chunk in played.chunks:
        earliest_s = available_s(chunk.index, CHUNK_S) - live.target_latency_s
        assert chunk.requested_s >= earliest_s - 0.01
    for latency_s in latencies_s(played):
        assert latency_s == pytest.approx(live.target_latency_s, abs=SLACK_S)
    # What is in the buffer was filmed, and is not shown yet.
    last = played.chunks[-1]
    age_s = live.target_latency_s + last.requested_s + last.download_s
    assert last.latency_s == pytest.approx(age_s + last.buffer_s - CHUNKS * CHUNK_S, abs=0.5)


def test_rules_of_dash_js_wait_for_the_event_too(parts: BrowserParts) -> None:
    live = Live(target_latency_s=2.5, catch_up=0.0)
    played, log = play(parts, live, chunks=5, rule="dashjs-lolp")
    assert [chunk for chunk, _ in fetched_of_event(log)] == list(range(5))
    assert [(chunk.index, chunk.level) for chunk in played.chunks] == fetched_of_event(log)


def test_a_set_up_that_takes_too_long_fails(
    parts: BrowserParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_page, "JOIN_SETUP_S", -2.0)
    with pytest.raises(PageError, match=r"dash\.js was (set up .* too late|not set up in time)"):
        play(parts, Live(target_latency_s=4.0), chunks=10)


def test_the_event_that_a_page_is_told() -> None:
    settings = PageSettings(
        title="t",
        manifest_url="http://10.0.0.1:8000/video/manifest.mpd",
        session_id="s",
        video=video_of(2),
        arms=(),
        player=PlayerConfig(live=Live(target_latency_s=8.0, catch_up=0.1)),
        chunk_timeout_s=1.0,
    )
    told = settings.document(1_800_000_000.0)
    assert told["live"] == {"start_s": 1_799_999_997.0, "target_latency_s": 8.0, "catch_up": 0.1}
    assert told["manifest_url"] == (
        "http://10.0.0.1:8000/live/start_1799999997.000/video/manifest.mpd?delay_s=8"
    )
    assert parse_start(told["manifest_url"].split("/")[4]) == told["live"]["start_s"]
    on_demand = dataclasses.replace(settings, player=PlayerConfig()).document(0.0)
    assert on_demand["live"] is None
    assert on_demand["manifest_url"] == settings.manifest_url
