"""HTTP as both players speak it: sessions, whole bodies, bodies that are only counted, CMCD."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlencode, urlsplit

import aiohttp
import yarl

from player import cmcd
from player.abandonment import PROGRESS_S
from player.records import ChunkRecord

READ_BUFFER_BYTES = 256 * 1024
KEEP_ALIVE_S = 3600.0  # pauses at the buffer cap and stalls must not cost a new connection
DECISION_LIMIT_S = 60.0


class PlaybackError(ConnectionError):
    """The server did not deliver what it announced; ``chunks`` holds what was finished before."""

    def __init__(self, message: str, chunks: tuple[ChunkRecord, ...] = ()) -> None:
        super().__init__(message)
        self.chunks = chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Longest waits, seconds; generous, because a slow trace stalls for minutes legitimately.

    Attributes:
        connect_s: to reach the server.
        setup_s: for manifest, size table and initialisation segments, each.
        chunk_s: for one chunk.
        decision_s: for one decision, whatever limit ``ask`` has of its own.
    """

    connect_s: float = 30.0
    setup_s: float = 120.0
    chunk_s: float = 900.0
    decision_s: float = DECISION_LIMIT_S


def http_session(limits: Limits) -> aiohttp.ClientSession:
    """A session with one keep-alive connection."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
    )


async def count_body(
    response: aiohttp.ClientResponse,
    size_bytes: int,
    goes_on: Callable[[int, float], bool] | None = None,
) -> float:
    """Reads a body of ``size_bytes`` and drops it; returns when its last byte came.

    Args:
        response: its head is in.
        size_bytes: length of its body.
        goes_on: is told at most every ``PROGRESS_S`` how much is in, and the time; when it says no,
            the connection is closed, and this returns then.

    Raises:
        PlaybackError: it is shorter or longer.
    """
    announced = response.content_length
    if announced not in (None, size_bytes):
        raise PlaybackError(f"{announced} bytes, {size_bytes} in the size table")
    clock = asyncio.get_running_loop().time
    received, tells_s = 0, 0.0
    while received < size_bytes:
        data = await response.content.readany()
        if not data:
            raise PlaybackError(f"ended after {received} of {size_bytes} bytes")
        received += len(data)
        if goes_on is not None and received < size_bytes and (now := clock()) >= tells_s:
            tells_s = now + PROGRESS_S
            if not goes_on(received, now):
                response.close()
                return now
    arrived_s = clock()
    if received > size_bytes or await response.content.readany():
        raise PlaybackError(f"more than the {size_bytes} bytes in the size table")
    return arrived_s


def with_cmcd(url: str, values: dict[str, cmcd.Value]) -> str:
    """The URL with what the client tells about itself (CTA-5004) in its query."""
    query = urlencode({cmcd.QUERY_PARAMETER: cmcd.encode(values)})
    return f"{url}{'&' if urlsplit(url).query else '?'}{query}"


@contextlib.asynccontextmanager
async def get_ok(http: aiohttp.ClientSession, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """A response with status 200.

    Raises:
        PlaybackError: another status.
    """
    async with http.get(yarl.URL(url, encoded=True)) as response:
        if response.status != HTTPStatus.OK:
            raise PlaybackError(f"the server answers {response.status} {response.reason}")
        yield response


async def load_whole(
    http: aiohttp.ClientSession, url: str, most_bytes: int, limit_s: float
) -> bytes:
    """A body of at most ``most_bytes``.

    Raises:
        PlaybackError: it does not come, not in time, or is larger.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limit_s), get_ok(http, url) as response:
            async for data in response.content.iter_any():
                body += data
                if len(body) > most_bytes:
                    raise PlaybackError(f"more than {most_bytes} bytes")
    except TimeoutError as error:
        raise PlaybackError(f"{url}: {str(error) or f'not in after {limit_s} s'}") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise PlaybackError(f"{url}: {error}") from error
    return bytes(body)
