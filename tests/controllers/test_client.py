"""The client, and whole sessions: server, player and service over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controllers import registry
from controllers.client import ControllerClient, ControllerRejected, ControllerUnavailable
from controllers.service import ControllerService
from player.content import load_pack
from player.headless import PlayedSession, play_headless
from player.link_models import TcpLink
from player.machine import Player
from player.observation import AbrObservation, PastChunk
from player.server import HostedVideo, serve
from player.simulated import play_simulated
from player.trace import Trace
from player.video import Video, generate_video

QUESTION = AbrObservation(
    levels_kbps=(300.0, 750.0, 1200.0),
    chunk_s=4.0,
    chunk_index=1,
    chunks_left=3,
    buffer_s=10.0,
    upcoming_sizes_bytes=((150_000, 375_000, 600_000),) * 3,
    history=(PastChunk(0, 150_000, 1.0, 1.0, 4.0),),
)
BBA = registry.create("abr", "bba")


@dataclass(frozen=True)
class Slow:
    seconds: float

    def decide(self, _: AbrObservation) -> int:
        time.sleep(self.seconds)
        return 0


@contextlib.asynccontextmanager
async def service(**arms: registry.Controller) -> AsyncIterator[str]:
    async with ControllerService({("abr", name): arm for name, arm in arms.items()}) as running:
        yield await running.add_address("127.0.0.1", 0)


@contextlib.asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[str]:
    """A service that gives each connection the next of these answers, and closes it."""
    left = iter(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, StopIteration):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(next(left))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def ask_once(url: str, arm: str = "bba", *, deadline_s: float = 5.0) -> Any:
    async with ControllerClient(url, "abr", arm, deadline_s=deadline_s) as client:
        return await client.ask(QUESTION)


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_answers_are_those_of_the_controller_in_process() -> None:
    async def test() -> None:
        async with (
            service(bba=BBA) as url,
            ControllerClient(url + "/", "abr", "bba", deadline_s=5) as client,
        ):
            for _ in range(20):
                assert await client.ask(QUESTION) == BBA.decide(QUESTION)

    asyncio.run(test())


def test_arm_names_are_quoted() -> None:
    async def test() -> None:
        async with service(**{"bba ä?": BBA}) as url:
            assert await ask_once(url, "bba ä?") == BBA.decide(QUESTION)

    asyncio.run(test())


def test_refusals_carry_the_services_message() -> None:
    async def test() -> None:
        async with service(bba=BBA) as url:
            with pytest.raises(ControllerRejected, match=r"404.*no arm 'abb'.*bba") as caught:
                await ask_once(url, "abb")
            assert (caught.value.status, caught.value.field) == (404, "arm")
            async with ControllerClient(url, "abr", "bba", deadline_s=5) as client:
                impossible = AbrObservation((300.0,), 4.0, 0, 1, -1.0, ((1,),), ())
                with pytest.raises(ControllerRejected, match="422: buffer_s"):
                    await client.ask(impossible)
                assert await client.ask(QUESTION) == BBA.decide(QUESTION)

    asyncio.run(test())


def test_hang_becomes_unavailable_within_the_deadline() -> None:
    async def test() -> float:
        async with service(slow=Slow(1.0)) as url:
            began = time.monotonic()
            with pytest.raises(ControllerUnavailable):
                await ask_once(url, "slow", deadline_s=0.2)
            return time.monotonic() - began

    assert asyncio.run(test()) < 5


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage",
        http("200 OK", b""),
        http("200 OK", b"[]"),
        http("200 OK", b'{"level": 3}'),
        http("200 OK", b"\xff"),
        http("302 Found", b'{"decision": 3}'),
        http("500 Internal Server Error", b'{"error": {"message": "boom"}}'),
        http("503 Service Unavailable", b'{"error": 7}'),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        http("200 OK", b" " * (2**20 + 1)),
    ],
)
def test_no_usable_answer_is_unavailable(answer: bytes) -> None:
    async def test() -> None:
        async with answering(answer, answer) as url:
            await ask_once(url)

    with pytest.raises(ControllerUnavailable):
        asyncio.run(test())


def test_nobody_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ControllerUnavailable, match=str(port)):
        asyncio.run(ask_once(f"http://127.0.0.1:{port}"))
    with pytest.raises(ControllerUnavailable):
        asyncio.run(ask_once("nonsense://x"))


def test_closed_idle_connection_is_opened_again() -> None:
    async def test() -> Any:
        async with answering(b"", http("200 OK", b'{"decision": 2, "decision_ms": 0.1}')) as url:
            return await ask_once(url)

    assert asyncio.run(test()) == 2


@pytest.mark.parametrize(("sent", "got"), [(b"1.5", 1.5), (b'"x"', "x"), (b"true", True)])
def test_odd_decisions_reach_the_player(sent: bytes, got: Any) -> None:
    async def test() -> Any:
        async with answering(http("200 OK", b'{"decision": ' + sent + b"}")) as url:
            return await ask_once(url)

    assert asyncio.run(test()) == got


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        ControllerClient("http://x", "abr", "bba", deadline_s=0)
    with pytest.raises(registry.UnknownController):
        ControllerClient("http://x", "nonsense", "bba", deadline_s=1)
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(ControllerClient("http://x", "abr", "bba", deadline_s=1).ask(QUESTION))


@pytest.fixture(scope="module")
def short_video() -> Video:
    return generate_video("demo", chunks=6, rng=np.random.default_rng(2))


@contextlib.asynccontextmanager
async def media(video: Video) -> AsyncIterator[str]:
    ready: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
    hosted = HostedVideo(video, load_pack(video.levels_kbps, video.chunk_s))
    task = asyncio.create_task(
        serve({"demo": hosted}, address=("127.0.0.1", 0), ready=ready.set_result)
    )
    try:
        yield f"{(await ready)[0]}/demo/manifest.mpd"
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_whole_session_decides_as_the_simulated_one(short_video: Video) -> None:
    async def test() -> PlayedSession:
        async with (
            media(short_video) as manifest_url,
            service(bba=BBA) as url,
            ControllerClient(url, "abr", "bba", deadline_s=5) as client,
        ):
            return await play_headless(manifest_url=manifest_url, ask=client.ask, session_id="s")

    played = asyncio.run(test())
    simulated = Player(short_video)
    fast = TcpLink(Trace("fast", np.array([0.0, 1.0]), np.array([2000.0, 2000.0])))
    play_simulated(simulated, fast, BBA.decide)
    assert [chunk.level for chunk in played.chunks] == [chunk.level for chunk in simulated.chunks]
    assert played.fallbacks == 0
    assert all(chunk.decision_s > 0 for chunk in played.chunks[1:])


PROGRAM = """
import asyncio
from controllers import registry
from controllers.service import serve

arms = {("abr", "bba"): registry.create("abr", "bba")}
ready = lambda service: print(service.urls[0], flush=True)
asyncio.run(serve(arms, address=("127.0.0.1", 0), ready=ready))
"""


@pytest.fixture
def service_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.mark.parametrize("has_fallback", [True, False])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_controller_killed_or_stopped_in_mid_session(
    service_process: tuple[subprocess.Popen[str], str],
    short_video: Video,
    how: signal.Signals,
    has_fallback: bool,
) -> None:
    process, url = service_process
    finished: list[int] = []

    def hit(index: int) -> None:
        finished.append(index)
        if index == 2:
            os.kill(process.pid, how)
            if how is signal.SIGKILL:
                process.wait()

    async def test() -> PlayedSession:
        async with (
            media(short_video) as manifest_url,
            ControllerClient(url, "abr", "bba", deadline_s=0.5) as client,
        ):
            return await play_headless(
                manifest_url=manifest_url,
                ask=client.ask,
                session_id="s",
                fallback=(lambda _: 1) if has_fallback else None,
                on_chunk=lambda chunk: hit(chunk.index),
            )

    if has_fallback:
        played = asyncio.run(test())
        assert [chunk.fallback for chunk in played.chunks] == [False] * 3 + [True] * 3
        assert [chunk.level for chunk in played.chunks[3:]] == [1, 1, 1]
        assert played.fallbacks == 3
        if how is signal.SIGSTOP:
            assert all(chunk.decision_s >= 0.4 for chunk in played.chunks[3:])
    else:
        with pytest.raises(ControllerUnavailable):
            asyncio.run(test())
        assert finished == [0, 1, 2]
