"""What a page tells is checked before it becomes a record; its server gives away nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from player.browser_page import FALLBACK_PATH, PAGE_FILES, PageArm, PageServer, PageSettings
from player.browser_parts import PAGE_FOLDER
from player.browser_records import PageError, read_chunk
from player.browser_rules import DASHJS_CONTROLLERS, RULES, active_rules
from player.machine import PlayerConfig
from player.observation import AbrObservation
from player.qoe import PENSIEVE_QOE
from player.video import generate_video

VIDEO = generate_video("v", chunks=3, rng=np.random.default_rng(1))


def told(**changes: Any) -> dict[str, Any]:
    chunk = {
        "index": 0,
        "level": 2,
        "size_bytes": VIDEO.sizes_bytes[0][2],
        "requested_s": 0,
        "download_s": 0.5,
        "buffer_s": 4.0,
        "rebuffer_s": 0.5,
        "decision_s": 0,
        "fallback": False,
        "wait_s": 0,
    }
    return chunk | changes


def test_a_told_chunk_becomes_a_record() -> None:
    first = read_chunk(told(), VIDEO, None, PENSIEVE_QOE)
    assert first.bitrate_kbps == 1200
    assert first.throughput_kbps == pytest.approx(VIDEO.sizes_bytes[0][2] * 8 / 1000 / 0.5)
    size_bytes = VIDEO.sizes_bytes[1][0]
    second = read_chunk(
        told(index=1, level=0, size_bytes=size_bytes, rebuffer_s=0.0), VIDEO, first, PENSIEVE_QOE
    )
    assert second.qoe == pytest.approx(0.3 - 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 6}, "level 6"),
        ({"level": -1}, "level -1"),
        ({"level": 2.5}, "level"),
        ({"size_bytes": 7}, "7 bytes"),
        ({"index": 1}, "expected was 0"),
        ({"download_s": 0}, "negative"),
        ({"wait_s": -0.1}, "negative"),
        ({"buffer_s": "4"}, "buffer_s"),
        ({"more": 1}, "more"),
    ],
)
def test_a_chunk_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PageError, match=message):
        read_chunk(told(**changes), VIDEO, None, PENSIEVE_QOE)


def test_every_arm_says_of_every_rule_whether_it_is_active() -> None:
    for name, rules in DASHJS_CONTROLLERS.items():
        assert set(active_rules(name)) == set(RULES)
        assert {rule for rule, active in active_rules(name).items() if active} == set(rules)
        assert not active_rules(name)["abandonRequestsRule"]
    assert not any(active_rules("bba").values())


def test_the_pages_files_are_those_that_are_served() -> None:
    assert set(PAGE_FILES) == {path.name for path in PAGE_FOLDER.iterdir() if path.is_file()}


def test_the_pages_server(tmp_path: Path) -> None:
    library = tmp_path / "dash.js"
    library.write_text("// dash.js")
    messages: list[dict[str, Any]] = []
    settings = PageSettings(
        title="t",
        manifest_url="http://10.0.0.1/manifest.mpd",
        session_id="s" * 100,
        video=VIDEO,
        arms=(PageArm(name="dashjs-l2a", rules=active_rules("dashjs-l2a"), asked=None),),
        player=PlayerConfig(),
        chunk_timeout_s=1.0,
    )

    async def begin() -> float:
        return 1.5

    def top(observation: AbrObservation) -> int:
        return observation.levels - 1

    observation = AbrObservation(VIDEO.levels_kbps, 4.0, 0, 3, 0.0, VIDEO.sizes_bytes, ())

    async def main() -> None:
        server = PageServer(settings, library, on_told=messages.append, begin=begin, fallback=top)
        async with server, aiohttp.ClientSession(server.url) as http:

            async def status(method: str, path: str, **told: Any) -> int:
                async with http.request(method, path, **told) as answer:
                    return answer.status

            for path in ("/", "/player.js", "/dash.all.min.js"):
                assert await status("GET", path) == 200
            for path in ("/vendor", "/..%2fbrowser.py", "/%2e%2e/browser.py", "/nothing"):
                assert await status("GET", path) == 404
            async with http.get("/config.json") as answer:
                config = await answer.json()
            assert config["session_id"] == "s" * 64
            assert config["video"]["sizes_bytes"] == [list(row) for row in VIDEO.sizes_bytes]
            assert await status("POST", "/told", json={"kind": "ready"}) == 204
            assert await status("POST", "/told", data=b'{"kind": "ready"}') == 415
            assert await status("POST", "/told", json=[1]) == 400
            async with http.post("/begin") as answer:
                assert await answer.json() == {"link_s": 1.5}
            body = dataclasses.asdict(observation)
            async with http.post(f"/{FALLBACK_PATH}", json=body) as answer:
                assert await answer.json() == {"decision": 5}
            assert await status("POST", f"/{FALLBACK_PATH}", json=body | {"buffer_s": -1}) == 422

    asyncio.run(main())
    assert messages == [{"kind": "ready"}]
