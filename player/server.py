"""DASH server (Tornado): manifest, size table, initialisation and padded media segments, tiles.

Byte ranges follow RFC 9110, section 14; CORS follows the Fetch standard, so that a browser page of
another origin plays from here; CMCD (CTA-5004) is read from query and headers and logged. Bodies
go out in small pieces over a socket that holds back little, so that the server's idea of "sent"
stays close to what the client has. Below ``/live/start_UNIX_SECONDS`` every video is an event that
began then: a chunk answers 404, with ``Retry-After``, until it has been filmed.
"""

from __future__ import annotations

import asyncio
import http
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from tornado import httpserver, iostream, web

from player import cmcd, mpd, tiled_mpd
from player.content import ContentPack, Segment
from player.live import available_s, parse_start
from player.live_mpd import LiveEvent
from player.sockets import ServerAddressError, base_url, listening_socket
from player.tiled_content import tile_segment
from player.tiled_video import TiledVideo, write_tile_sizes
from player.video import Video

__all__ = [
    "HostedTiledVideo",
    "HostedVideo",
    "RequestLogEntry",
    "ServerAddressError",
    "make_application",
    "serve",
]

UNSENT_LIMIT_BYTES = 16 * 1024  # TCP_NOTSENT_LOWAT
# Any limit has TCP pace its packets by window over round-trip time, as servers with the fq qdisc
# do. Without it a whole window goes out at once when a chunk begins: on a slow link its tail
# overruns the queue, nothing behind it reveals the loss, and the chunk waits seconds for a
# time-out.
SO_MAX_PACING_RATE = 47  # <asm-generic/socket.h>; Python has no name for it
PACING_LIMIT_BYTES_PER_S = 2**31 - 1
IDLE_CONNECTION_S = 3600.0  # a player may wait for long between two chunks
STUCK_CLIENT_S = 900.0  # without any progress; a trace may well give nothing for minutes
MAX_REQUEST_HEADER_BYTES = 32 * 1024
MAX_REQUEST_BODY_BYTES = 64 * 1024  # nothing here takes a body, but 405 is a better answer
PREFLIGHT_AGE_S = 86_400

JSON_TYPE = "application/json"
INIT_TYPE = "video/mp4"
MEDIA_TYPE = "video/iso.segment"

_EVENT = r"(?:/live/([^/]+))?"
_VIDEO_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")
_ALLOWED_METHODS = ("GET", "HEAD", "OPTIONS")
_RESPONSE_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": (
        "Accept-Ranges, Content-Length, Content-Range, Date, CMSD-Static, CMSD-Dynamic"
    ),
    "Timing-Allow-Origin": "*",
    "Cache-Control": "no-store",  # every chunk must cross the network
    "X-Content-Type-Options": "nosniff",
}
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": ", ".join(_ALLOWED_METHODS),
    "Access-Control-Allow-Headers": ", ".join(("Range", *cmcd.HEADERS)),
    "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostedVideo:
    """A video and the content that its chunks are made of.

    Raises:
        ContentError: the content does not fit the video.
    """

    video: Video
    content: ContentPack

    def __post_init__(self) -> None:
        self.content.check(self.video)

    @cached_property
    def manifest(self) -> bytes:
        """The MPD."""
        return mpd.write_mpd(self.video, self.content)

    def live_manifest(self, event: LiveEvent) -> bytes:
        """The MPD of an event that is made of the video."""
        return mpd.write_mpd(self.video, self.content, event=event)

    @cached_property
    def sizes(self) -> bytes:
        """The JSON table of chunk sizes."""
        return mpd.write_sizes(self.video)


@dataclass(frozen=True)
class HostedTiledVideo:
    """A tiled video; its tiles have no pictures, see :mod:`player.tiled_content`."""

    video: TiledVideo

    @cached_property
    def manifest(self) -> bytes:
        """The MPD."""
        return tiled_mpd.write_tiled_mpd(self.video)

    @cached_property
    def sizes(self) -> bytes:
        """The JSON table of tile sizes."""
        return write_tile_sizes(self.video)


@dataclass(frozen=True, slots=True)
class RequestLogEntry:
    """One answered, or aborted, request.

    Attributes:
        time_s: when its headers were read, on the clock of the event loop (monotonic).
        method: HTTP method.
        path: without the query.
        status: HTTP status.
        bytes_sent: body bytes handed to the kernel.
        duration_s: until the last byte was handed to the kernel.
        cmcd: what the client told about itself.
        cmcd_errors: what was wrong with that.
        range: the Range header.
        aborted: whether the client went away before the end.
    """

    time_s: float
    method: str
    path: str
    status: int
    bytes_sent: int
    duration_s: float
    cmcd: Mapping[str, cmcd.Value]
    cmcd_errors: tuple[str, ...]
    range: str | None
    aborted: bool


OnRequest = Callable[[RequestLogEntry], None]
Hosted = HostedVideo | HostedTiledVideo


def make_application(
    videos: Mapping[str, Hosted], on_request: OnRequest | None = None
) -> web.Application:
    """The Tornado application that serves ``/NAME/manifest.mpd`` and what that refers to.

    Below ``/live/start_UNIX_SECONDS`` there are the same names, see :mod:`player.live`.

    Args:
        videos: by the name in the path: letters, digits, dots, dashes, underscores.
        on_request: is told every request once it is over.

    Raises:
        ValueError: a name that cannot be part of a path.
    """
    for name in videos:
        if not _VIDEO_NAME.fullmatch(name):
            raise ValueError(f"video name {name!r} must be letters, digits, '.', '-' and '_'")
    shared = {"videos": dict(videos), "on_request": on_request}
    return web.Application(
        [
            (_EVENT + r"/([^/]+)/manifest\.mpd", _ManifestHandler, shared),
            (_EVENT + r"/([^/]+)/sizes\.json", _SizesHandler, shared),
            (_EVENT + r"/([^/]+)/init-([0-9]{1,4})\.mp4", _InitHandler, shared),
            (_EVENT + r"/([^/]+)/chunk-([0-9]{1,4})-([0-9]{1,9})\.m4s", _MediaHandler, shared),
            (r"/([^/]+)/tile-([0-9]{1,5})-([0-9]{1,4})-([0-9]{1,9})\.m4s", _TileHandler, shared),
        ],
        default_handler_class=_MissingHandler,
        default_handler_args=shared,
        compress_response=False,
        log_function=_log_nothing,
    )


def _log_nothing(handler: web.RequestHandler) -> None:
    """Tornado's own access log; ours is ``on_request``."""


async def serve(
    videos: Mapping[str, Hosted],
    *,
    sockets: Sequence[socket.socket] = (),
    address: tuple[str, int] | None = None,
    on_request: OnRequest | None = None,
    ready: Callable[[tuple[str, ...]], None] | None = None,
) -> None:
    """Serves until cancelled.

    Args:
        videos: see :func:`make_application`.
        sockets: listening sockets, taken over and closed at the end.
        address: host and port to listen on as well; port 0 takes any that is free.
        on_request: is told every request once it is over.
        ready: is called with the base URLs, such as ``http://10.0.0.1:8080``, once they answer.

    Raises:
        ServerAddressError: the address cannot be listened on.
        ValueError: neither sockets nor an address, or a bad video name.
    """
    listeners = list(sockets)
    try:
        if address is not None:
            listeners.append(listening_socket(*address))
        if not listeners:
            raise ValueError("serve needs listening sockets or an address")
        server = _Server(
            make_application(videos, on_request),
            idle_connection_timeout=IDLE_CONNECTION_S,
            max_header_size=MAX_REQUEST_HEADER_BYTES,
            max_body_size=MAX_REQUEST_BODY_BYTES,
        )
        for listener in listeners:
            listener.setblocking(False)
        urls = tuple(map(base_url, listeners))
        server.add_sockets(listeners)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    try:
        _log.info("serving %s at %s", ", ".join(videos), ", ".join(urls))
        if ready is not None:
            ready(urls)
        await asyncio.Event().wait()
    finally:
        server.stop()
        await server.close_all_connections()


class _Server(httpserver.HTTPServer):
    """Sends small pieces at once and holds back little."""

    def handle_stream(self, stream: iostream.IOStream, address: tuple[str, int]) -> None:
        stream.set_nodelay(True)
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT_BYTES)
        stream.socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, PACING_LIMIT_BYTES_PER_S)
        super().handle_stream(stream, address)


class _RangeNotSatisfiable(web.HTTPError):
    def __init__(self, size_bytes: int) -> None:
        super().__init__(416)
        self.size_bytes = size_bytes


class _NotFilmedYet(web.HTTPError):
    def __init__(self, left_s: float) -> None:
        super().__init__(404)
        self.left_s = left_s


class _Handler(web.RequestHandler):
    """Common to all: headers, ranges, pieces, log."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = _ALLOWED_METHODS  # type: ignore[misc]

    def initialize(self, *, videos: Mapping[str, Hosted], on_request: OnRequest | None) -> None:
        self._videos = videos
        self._on_request = on_request
        self._began_s = asyncio.get_running_loop().time()
        self._bytes_sent = 0
        self._aborted = self._logged = False

    def hosted(self, name: str) -> Hosted:
        try:
            return self._videos[name]
        except KeyError:
            raise web.HTTPError(404) from None

    def hosted_video(self, name: str) -> HostedVideo:
        hosted = self.hosted(name)
        if not isinstance(hosted, HostedVideo):
            raise web.HTTPError(404)
        return hosted

    def live_event(self, folder: str | None) -> LiveEvent | None:
        """The event that a folder of the path names, None without one."""
        if folder is None:
            return None
        start_s = parse_start(folder)
        if start_s is None:
            raise web.HTTPError(404)
        try:
            delay = self.get_query_argument("delay_s", None)
            delay_s = None if delay is None else float(delay)
            return LiveEvent(start_s=start_s, now_s=time.time(), delay_s=delay_s)
        except ValueError:
            raise web.HTTPError(404) from None

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _RESPONSE_HEADERS.items():
            self.set_header(name, value)

    def compute_etag(self) -> None:
        """None: hashing a chunk costs time, and nothing is cached anyway."""

    async def options(self, *_: str) -> None:
        for name, value in _PREFLIGHT_HEADERS.items():
            self.set_header(name, value)
        self.set_status(204)

    async def send_body(self, content_type: str, body: bytes | Segment) -> None:
        """Answers GET or HEAD with all of ``body`` or the range that was asked for."""
        size = body.size_bytes if isinstance(body, Segment) else len(body)
        self.set_header("Content-Type", content_type)
        self.set_header("Accept-Ranges", "bytes")
        start, stop = self._range(size)
        self.set_header("Content-Length", str(stop - start))
        if self.request.method == "HEAD":
            return
        segment = body if isinstance(body, Segment) else Segment(body, size)
        try:
            async with asyncio.timeout(STUCK_CLIENT_S) as limit:
                await self._send(segment.pieces(start, stop), limit)
        except (iostream.StreamClosedError, TimeoutError):
            self._abort()

    async def _send(self, pieces: Iterator[memoryview], limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        for piece in pieces:
            self.write(bytes(piece))
            await self.flush()
            self._bytes_sent += len(piece)
            limit.reschedule(loop.time() + STUCK_CLIENT_S)

    def _range(self, size: int) -> tuple[int, int]:
        """First byte and end of what is to be sent; sets the status."""
        match = _RANGE.fullmatch(self.request.headers.get("Range", "").replace(" ", ""))
        # Nothing here has a validator, so that If-Range never holds.
        if match is None or not any(match.groups()) or "If-Range" in self.request.headers:
            return 0, size
        first, last = match.groups()
        if first:
            start, stop = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < int(first):
                return 0, size  # malformed, to be ignored
        else:
            start, stop = max(size - int(last), 0), size
        if start >= stop:
            raise _RangeNotSatisfiable(size)
        self.set_status(206)
        self.set_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        return start, stop

    def _abort(self) -> None:
        self._aborted = True
        self._log_request()
        connection = self.request.connection
        stream = getattr(connection, "stream", None)
        if stream is not None:
            stream.close()

    def write_error(self, status_code: int, **told: Any) -> None:
        error = told["exc_info"][1] if "exc_info" in told else None
        if status_code == 405:
            self.set_header("Allow", ", ".join(_ALLOWED_METHODS))
        if isinstance(error, _RangeNotSatisfiable):
            self.set_header("Content-Range", f"bytes */{error.size_bytes}")
        if isinstance(error, _NotFilmedYet):
            self.set_header("Retry-After", str(math.ceil(error.left_s)))
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        message = f"{status_code} {http.HTTPStatus(status_code).phrase}\n".encode()
        self.set_header("Content-Length", str(len(message)))
        self._bytes_sent = 0 if self.request.method == "HEAD" else len(message)
        self.finish(None if self.request.method == "HEAD" else message)

    def on_finish(self) -> None:
        self._log_request()

    def on_connection_close(self) -> None:
        self._aborted = True

    def _log_request(self) -> None:
        if self._logged or self._on_request is None:
            return
        self._logged = True
        told = cmcd.parse(",".join(self._cmcd_payloads()))
        self._on_request(
            RequestLogEntry(
                time_s=self._began_s,
                method=self.request.method or "",
                path=self.request.path,
                status=self.get_status(),
                bytes_sent=self._bytes_sent,
                duration_s=asyncio.get_running_loop().time() - self._began_s,
                cmcd=told.values,
                cmcd_errors=told.errors,
                range=self.request.headers.get("Range"),
                aborted=self._aborted,
            )
        )

    def _cmcd_payloads(self) -> Iterable[str]:
        for raw in self.request.query_arguments.get(cmcd.QUERY_PARAMETER, []):
            yield raw.decode("utf-8", errors="replace")
        for name in cmcd.HEADERS:
            yield from self.request.headers.get_list(name)


class _ManifestHandler(_Handler):
    async def get(self, folder: str | None, name: str) -> None:
        event = self.live_event(folder)
        body = (
            self.hosted(name).manifest
            if event is None
            else self.hosted_video(name).live_manifest(event)
        )
        await self.send_body(mpd.MIME_TYPE, body)

    head = get


class _SizesHandler(_Handler):
    async def get(self, folder: str | None, name: str) -> None:
        hosted = self.hosted(name) if self.live_event(folder) is None else self.hosted_video(name)
        await self.send_body(JSON_TYPE, hosted.sizes)

    head = get


class _InitHandler(_Handler):
    async def get(self, folder: str | None, name: str, level: str) -> None:
        self.live_event(folder)
        hosted = self.hosted_video(name)
        if str(int(level)) != level or int(level) >= hosted.video.levels:
            raise web.HTTPError(404)
        await self.send_body(INIT_TYPE, hosted.content.init(int(level)))

    head = get


class _MediaHandler(_Handler):
    async def get(self, folder: str | None, name: str, level_text: str, number_text: str) -> None:
        event = self.live_event(folder)
        hosted = self.hosted_video(name)
        level, chunk = int(level_text), int(number_text) - mpd.FIRST_NUMBER
        if level >= hosted.video.levels or not 0 <= chunk < hosted.video.chunks:
            raise web.HTTPError(404)
        if mpd.media_name(level, chunk) != f"chunk-{level_text}-{number_text}.m4s":
            raise web.HTTPError(404)  # leading zeros
        if event is not None:
            filmed_s = event.start_s + available_s(chunk, hosted.video.chunk_s)
            if event.now_s < filmed_s:
                raise _NotFilmedYet(filmed_s - event.now_s)
        size_bytes = hosted.video.sizes_bytes[chunk][level]
        await self.send_body(MEDIA_TYPE, hosted.content.segment(chunk, level, size_bytes))

    head = get


class _TileHandler(_Handler):
    async def get(self, name: str, tile_text: str, level_text: str, number_text: str) -> None:
        hosted = self.hosted(name)
        if not isinstance(hosted, HostedTiledVideo):
            raise web.HTTPError(404)
        video = hosted.video
        tile, level, chunk = int(tile_text), int(level_text), int(number_text) - mpd.FIRST_NUMBER
        if tile >= video.grid.tiles or level >= video.levels or not 0 <= chunk < video.chunks:
            raise web.HTTPError(404)
        name_of_it = f"tile-{tile_text}-{level_text}-{number_text}.m4s"
        if tiled_mpd.tile_name(chunk, tile, level) != name_of_it:
            raise web.HTTPError(404)  # leading zeros
        await self.send_body(MEDIA_TYPE, tile_segment(video.sizes_bytes[chunk][tile][level]))

    head = get


class _MissingHandler(_Handler):
    async def prepare(self) -> None:
        raise web.HTTPError(404)
