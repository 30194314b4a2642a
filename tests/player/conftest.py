"""A small video with its content, a DASH server on loopback, a browser.

Makes ``loopback`` and ``browser_sessions`` importable.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from player.browser_parts import BrowserMissing, BrowserParts, find_browser
from player.content import ContentPack, load_pack
from player.server import HostedVideo, RequestLogEntry
from player.video import Video, generate_video

sys.path.append(str(Path(__file__).parent))
from loopback import serving

VIDEO_NAME = "demo"

RunningServer = Callable[..., contextlib.AbstractAsyncContextManager[str]]


@pytest.fixture(scope="session")
def small_video() -> Video:
    return generate_video(VIDEO_NAME, chunks=6, rng=np.random.default_rng(2))


@pytest.fixture(scope="session")
def pack(small_video: Video) -> ContentPack:
    return load_pack(small_video.levels_kbps, small_video.chunk_s)


@pytest.fixture(scope="session")
def running_server(small_video: Video, pack: ContentPack) -> RunningServer:
    """``async with running_server(log) as base_url``: serves the small video."""

    def run(
        log: list[RequestLogEntry] | None = None, video: Video | None = None
    ) -> contextlib.AbstractAsyncContextManager[str]:
        return serving({VIDEO_NAME: HostedVideo(video or small_video, pack)}, log)

    return run


@pytest.fixture(scope="session")
def parts() -> BrowserParts:
    """Of a browser; skips without one."""
    try:
        return find_browser()
    except BrowserMissing as missing:
        pytest.skip(str(missing))
