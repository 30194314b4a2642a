"""A small video with its content, and a DASH server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from player.content import ContentPack, load_pack
from player.server import HostedVideo, RequestLogEntry, serve
from player.video import Video, generate_video

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

    @contextlib.asynccontextmanager
    async def run(
        log: list[RequestLogEntry] | None = None, video: Video | None = None
    ) -> AsyncIterator[str]:
        ready: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            serve(
                {VIDEO_NAME: HostedVideo(video or small_video, pack)},
                address=("127.0.0.1", 0),
                on_request=None if log is None else log.append,
                ready=ready.set_result,
            )
        )
        try:
            (url,) = await ready
            yield url
        finally:
            server.cancel()
            await asyncio.wait([server])

    return run
