"""A media server on the loopback, for as long as a test needs one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from player.content import load_pack
from player.server import Hosted, HostedVideo, RequestLogEntry, serve
from player.video import Video


def with_content(video: Video) -> HostedVideo:
    """The video, with the content for its ladder."""
    return HostedVideo(video, load_pack(video.levels_kbps, video.chunk_s))


@contextlib.asynccontextmanager
async def serving(
    videos: Mapping[str, Hosted], log: list[RequestLogEntry] | None = None
) -> AsyncIterator[str]:
    """The server's base URL; every request is added to the log."""
    ready: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(
        serve(
            videos,
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
