"""dash.js in a real Chromium on the loopback: every chunk is the controller's decision."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from browser_sessions import fetched, served

from player.browser import BrowserFailed, BrowserSession, play_in_browser
from player.browser_page import FALLBACK_PATH
from player.browser_parts import BrowserParts
from player.browser_records import PageError
from player.browser_rules import DASHJS_CONTROLLERS
from player.machine import PlayerConfig
from player.observation import AbrObservation
from player.server import RequestLogEntry
from player.video import Video, generate_video

HANG_S = 3600.0
TIMEOUT_S = 0.5
#: All chunks fit, so that a session takes as long as its downloads.
ENDLESS_CAP_S = 1000.0


def video_of(chunks: int) -> Video:
    return generate_video("clip", chunks=chunks, rng=np.random.default_rng(1))


@dataclasses.dataclass
class Controller:
    """Answers with levels that no rule would choose, after delays; may hang or go away."""

    levels: Sequence[int]
    delays_s: Sequence[float] = ()
    hangs_at: int | None = None
    dies_at: int | None = None
    observations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    runner: web.AppRunner | None = None

    async def decide(self, request: web.Request) -> web.Response:
        observation = json.loads(await request.read())
        index = observation["chunk_index"]
        self.observations.append(observation)
        if index == self.hangs_at:
            await asyncio.sleep(HANG_S)
        if index == self.dies_at and request.transport is not None:
            for site in self.runner.sites if self.runner is not None else ():
                await site.stop()
            request.transport.abort()
        if self.delays_s:
            await asyncio.sleep(self.delays_s[index])
        answer = {"decision": self.levels[index]}
        return web.json_response(answer, headers={"Access-Control-Allow-Origin": "*"})


def play(
    parts: BrowserParts,
    controller: Controller,
    *,
    chunks: int,
    rule: str | None = None,
    fallback: Any = None,
    screenshot: Path | None = None,
) -> tuple[BrowserSession, list[RequestLogEntry]]:
    """Plays a session; the log is that of the media server."""

    async def main() -> tuple[BrowserSession, list[RequestLogEntry]]:
        async with served(video_of(chunks), controller.decide) as hosts:
            controller.runner = hosts.controller
            settings = hosts.page(
                rule=rule,
                player=PlayerConfig(buffer_cap_s=ENDLESS_CAP_S),
                timeout_s=TIMEOUT_S,
                fallback_url=None if fallback is None else FALLBACK_PATH,
            )
            played = await play_in_browser(
                parts, settings, fallback=fallback, screenshot=screenshot
            )
            return played, hosts.log

    return asyncio.run(main())


def lowest(observation: AbrObservation) -> int:
    return 0


def test_every_chunk_is_the_controllers_decision(parts: BrowserParts) -> None:
    chunks = 48
    delays_s = [0.0] * 32 + [0.03] * 8 + [0.3] * 8
    levels = [0, *np.random.default_rng(7).integers(0, 6, chunks - 1).tolist()]
    controller = Controller(levels, delays_s)
    played, log = play(parts, controller, chunks=chunks)
    assert fetched(log) == list(enumerate(levels))
    assert [chunk.level for chunk in played.chunks] == levels
    assert [asked["chunk_index"] for asked in controller.observations] == list(range(1, chunks))
    assert played.fallbacks == 0
    for chunk, delay_s in list(zip(played.chunks, delays_s, strict=True))[1:]:
        assert chunk.decision_s >= delay_s
    assert not any(entry.cmcd_errors for entry in log)
    assert {entry.cmcd["v"] for entry in log} == {2}


def test_what_the_controller_is_told(parts: BrowserParts, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    controller = Controller([1] * 6)
    played, _ = play(parts, controller, chunks=6, screenshot=picture)
    last, video = controller.observations[-1], video_of(6)
    assert set(last) == {field.name for field in dataclasses.fields(AbrObservation)}
    assert last["chunks_left"] == 1
    assert last["upcoming_sizes_bytes"] == [list(video.sizes_bytes[5])]
    told = [
        (chunk.level, chunk.size_bytes, chunk.download_s, chunk.rebuffer_s, chunk.buffer_s)
        for chunk in played.chunks[:-1]
    ]
    assert [tuple(past.values()) for past in last["history"]] == told
    assert picture.stat().st_size > 10_000


def test_the_fallback_decides_where_the_controller_hangs_or_is_gone(parts: BrowserParts) -> None:
    controller = Controller([2] * 8, hangs_at=3, dies_at=5)
    played, log = play(parts, controller, chunks=8, fallback=lowest)
    assert [chunk.index for chunk in played.chunks if chunk.fallback] == [3, 5, 6, 7]
    assert fetched(log) == list(enumerate([0, 2, 2, 0, 2, 0, 0, 0]))
    assert played.fallbacks == 4


def test_without_a_fallback_the_session_fails(parts: BrowserParts) -> None:
    with pytest.raises(PageError, match="ControllerUnavailable"):
        play(parts, Controller([2] * 8, dies_at=2), chunks=8)


@pytest.mark.parametrize("rule", DASHJS_CONTROLLERS)
def test_rules_of_dash_js_fetch_every_chunk_once(parts: BrowserParts, rule: str) -> None:
    controller = Controller([])
    played, log = play(parts, controller, chunks=5, rule=rule)
    assert Counter(chunk for chunk, _ in fetched(log)) == Counter(range(5))
    assert [(chunk.index, chunk.level) for chunk in played.chunks] == fetched(log)
    assert controller.observations == []


def test_a_program_that_is_no_browser(parts: BrowserParts, tmp_path: Path) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    broken = dataclasses.replace(parts, chromium=program)
    with pytest.raises(BrowserFailed, match="does not start"):
        play(broken, Controller([]), chunks=2)
