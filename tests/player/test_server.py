"""The DASH server over real sockets: bodies, ranges, CORS, CMCD, wrong requests, aborts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.parse
from collections.abc import Callable

import aiohttp
import pytest

from player.content import ContentPack
from player.server import (
    HostedVideo,
    RequestLogEntry,
    ServerAddressError,
    make_application,
    serve,
)
from player.video import Video

RunningServer = Callable[..., contextlib.AbstractAsyncContextManager[str]]
CHUNK = "/demo/chunk-2-1.m4s"


def get(
    running_server: RunningServer,
    path: str,
    *,
    method: str = "GET",
    log: list[RequestLogEntry] | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    async def request() -> tuple[int, dict[str, str], bytes]:
        async with (
            running_server(log) as url,
            aiohttp.ClientSession() as http,
            http.request(method, url + path, headers=headers) as response,
        ):
            return response.status, dict(response.headers), await response.read()

    return asyncio.run(request())


def expected(small_video: Video, pack: ContentPack) -> bytes:
    return b"".join(pack.segment(0, 2, small_video.sizes_bytes[0][2]).pieces())


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/demo/manifest.mpd", "application/dash+xml"),
        ("/demo/sizes.json", "application/json"),
        ("/demo/init-5.mp4", "video/mp4"),
        (CHUNK, "video/iso.segment"),
    ],
)
def test_get_and_head_agree(running_server: RunningServer, path: str, content_type: str) -> None:
    status, headers, body = get(running_server, path)
    assert status == 200
    assert headers["Content-Type"] == content_type
    assert int(headers["Content-Length"]) == len(body) > 0
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Timing-Allow-Origin"] == "*"
    assert "Etag" not in headers
    assert "Transfer-Encoding" not in headers
    status, head, body = get(running_server, path, method="HEAD")
    assert (status, body) == (200, b"")
    assert head["Content-Length"] == headers["Content-Length"]


def test_chunk_is_as_long_as_the_size_table_says(
    running_server: RunningServer, small_video: Video, pack: ContentPack
) -> None:
    assert get(running_server, CHUNK)[2] == expected(small_video, pack)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=100000-", 100_000, None),
        ("bytes=-7", -7, None),
        ("bytes=-99999999", 0, None),
        ("bytes=5-999999999", 5, None),
        ("bytes= 5 - 9 ", 5, 10),
    ],
)
def test_ranges(
    running_server: RunningServer,
    small_video: Video,
    pack: ContentPack,
    header: str,
    start: int,
    stop: int | None,
) -> None:
    whole = expected(small_video, pack)
    status, headers, body = get(running_server, CHUNK, Range=header)
    assert status == 206
    assert body == whole[start:stop]
    first = range(len(whole))[start]
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(whole)}"
    assert int(headers["Content-Length"]) == len(body)
    assert get(running_server, CHUNK, method="HEAD", Range=header)[0] == 206


@pytest.mark.parametrize("header", ["bytes=999999999-", "bytes=-0", "bytes=999999999-1999999999"])
def test_unsatisfiable_range(
    running_server: RunningServer, small_video: Video, header: str
) -> None:
    status, headers, _ = get(running_server, CHUNK, Range=header)
    assert status == 416
    assert headers["Content-Range"] == f"bytes */{small_video.sizes_bytes[0][2]}"


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=5-2"},
        {"Range": "bytes=-"},
        {"Range": "bytes=0-1,4-5"},
        {"Range": "lines=0-1"},
        {"Range": "bytes=0-" + "9" * 400},
        {"Range": "bytes=0-1", "If-Range": '"x"'},
    ],
)
def test_other_ranges_are_ignored(
    running_server: RunningServer, small_video: Video, headers: dict[str, str]
) -> None:
    status, _, body = get(running_server, CHUNK, **headers)
    assert (status, len(body)) == (200, small_video.sizes_bytes[0][2])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/demo",
        "/demo/",
        "/other/manifest.mpd",
        "/demo/init-6.mp4",
        "/demo/init-00.mp4",
        "/demo/chunk-6-1.m4s",
        "/demo/chunk-0-0.m4s",
        "/demo/chunk-0-7.m4s",
        "/demo/chunk-0-01.m4s",
        "/demo/chunk-0-99999999999999999999.m4s",
        "/demo/%2e%2e/%2e%2e/etc/passwd",
        "/demo/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/manifest.mpd",
        "/demo/manifest.mpd/",
        "/favicon.ico",
    ],
)
def test_unknown_paths(running_server: RunningServer, path: str) -> None:
    status, headers, _ = get(running_server, path)
    assert status == 404
    assert headers["Access-Control-Allow-Origin"] == "*"


async def raw(url: str, request: bytes) -> bytes:
    """What the server answers to these bytes until it falls silent or closes."""
    parts = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    answer = bytearray()
    try:
        writer.write(request)
        await writer.drain()
        while data := await asyncio.wait_for(reader.read(65_536), timeout=0.5):
            answer += data
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return bytes(answer)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /demo/../demo/manifest.mpd HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /demo/\xff/manifest.mpd HTTP/1.1\r\nHost: x\r\n\r\n", b"40"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /demo/manifest.mpd HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxx", b"405"),
        (b"BREW /demo/manifest.mpd HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", b"400"),
    ],
)
def test_raw_requests(running_server: RunningServer, request_bytes: bytes, status: bytes) -> None:
    async def ask() -> bytes:
        async with running_server() as url:
            return await raw(url, request_bytes)

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 " + status)


def test_method_not_allowed_names_those_that_are(running_server: RunningServer) -> None:
    status, headers, _ = get(running_server, CHUNK, method="DELETE")
    assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_preflight(running_server: RunningServer) -> None:
    status, headers, body = get(running_server, CHUNK, method="OPTIONS", Origin="http://page")
    assert (status, body) == (204, b"")
    allowed = headers["Access-Control-Allow-Headers"]
    for name in ("Range", "CMCD-Object", "CMCD-Request", "CMCD-Session", "CMCD-Status"):
        assert name in allowed
    assert int(headers["Access-Control-Max-Age"]) > 0
    exposed = headers["Access-Control-Expose-Headers"]
    for name in ("Content-Length", "Content-Range", "Date", "CMSD-Static", "CMSD-Dynamic"):
        assert name in exposed


def test_requests_are_logged_with_cmcd(running_server: RunningServer, small_video: Video) -> None:
    log: list[RequestLogEntry] = []
    query = urllib.parse.urlencode({"CMCD": 'br=300,sid="a,b"'})
    get(
        running_server,
        f"{CHUNK}?{query}",
        log=log,
        **{"CMCD-Status": "bs,zz", "Range": "bytes=0-9"},
    )
    (entry,) = log
    assert entry.cmcd == {"br": 300, "sid": "a,b", "bs": True, "zz": True}
    assert (entry.method, entry.path, entry.status) == ("GET", CHUNK, 206)
    assert (entry.bytes_sent, entry.range, entry.aborted) == (10, "bytes=0-9", False)
    assert entry.duration_s >= 0
    log.clear()
    get(running_server, "/nothing", log=log)
    assert (log[0].status, log[0].cmcd) == (404, {})


def test_client_that_goes_away_is_logged_as_aborted(
    running_server: RunningServer, small_video: Video
) -> None:
    log: list[RequestLogEntry] = []

    async def leave_early() -> None:
        async with running_server(log) as url:
            parts = urllib.parse.urlsplit(url)
            connection = socket.create_connection((parts.hostname, parts.port))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with connection:
                connection.sendall(b"GET /demo/chunk-5-1.m4s HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.sleep(0.2)
            async with asyncio.timeout(10):
                while not log:
                    await asyncio.sleep(0.01)

    asyncio.run(leave_early())
    (entry,) = log
    assert entry.aborted
    assert entry.bytes_sent < small_video.sizes_bytes[0][5]


def test_server_stopped_in_the_middle_of_a_chunk_ends(running_server: RunningServer) -> None:
    async def stop_early() -> bytes:
        async with running_server() as url:
            parts = urllib.parse.urlsplit(url)
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
            writer.write(b"GET /demo/chunk-5-1.m4s HTTP/1.1\r\nHost: x\r\n\r\n")
            first = await reader.readline()
        writer.close()
        return first

    assert asyncio.run(stop_early()).startswith(b"HTTP/1.1 200")


def test_given_sockets_are_used(small_video: Video, pack: ContentPack) -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]

    async def both() -> list[int]:
        server = asyncio.create_task(
            serve({"demo": HostedVideo(small_video, pack)}, sockets=listeners)
        )
        found = []
        async with aiohttp.ClientSession() as http:
            for listener in listeners:
                port = listener.getsockname()[1]
                async with http.get(f"http://127.0.0.1:{port}/demo/init-0.mp4") as response:
                    found.append(response.status)
        server.cancel()
        await asyncio.wait([server])
        return found

    assert asyncio.run(both()) == [200, 200]
    assert all(listener.fileno() == -1 for listener in listeners)


def test_port_in_use_is_named(small_video: Video, pack: ContentPack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerAddressError, match=rf"127\.0\.0\.1:{port}.*in use"):
            asyncio.run(
                serve({"demo": HostedVideo(small_video, pack)}, address=("127.0.0.1", port))
            )


def test_foreign_address_is_named(small_video: Video, pack: ContentPack) -> None:
    with pytest.raises(ServerAddressError, match=r"192\.0\.2\.1:8080"):
        asyncio.run(serve({"demo": HostedVideo(small_video, pack)}, address=("192.0.2.1", 8080)))


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a b", "ä"])
def test_names_that_are_no_path_are_refused(
    small_video: Video, pack: ContentPack, name: str
) -> None:
    with pytest.raises(ValueError, match="video name"):
        make_application({name: HostedVideo(small_video, pack)})


def test_serve_needs_somewhere_to_listen() -> None:
    with pytest.raises(ValueError, match="sockets or an address"):
        asyncio.run(serve({}))
