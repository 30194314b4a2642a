"""Bytes between agents: all of them, timed by the kernel, or none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from cluster_sim.shuffle_io import ByteServer, Rows, Source
from cluster_sim.wire import encode, precise_loop

HELD_BYTES = 3_000_001


def refuse(rows: Rows) -> str | None:
    return None if rows[0][-1] <= HELD_BYTES else "so many are not here"


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    server = ByteServer(listener, refuse)
    try:
        yield address
    finally:
        server.close()


async def read(source: Source, size: int) -> float | None:
    done: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
    source.ask([[0, 1, 2, 3, size]], done.set_result)
    return await asyncio.wait_for(done, 10.0)


def run(body: object) -> None:
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(body)  # type: ignore[arg-type]


def test_a_connection_takes_one_question_after_another() -> None:
    async def body() -> None:
        async with served() as address:
            source = Source(address)
            for size in (1, HELD_BYTES, 70_000):
                began_s = time.perf_counter()
                took_s = await read(source, size)
                assert took_s is not None
                assert 0 <= took_s <= time.perf_counter() - began_s
                assert source.got_bytes == size
            assert source.is_open
            source.close()

    run(body())


def test_time_in_which_nobody_served_does_not_count() -> None:
    async def body() -> None:
        async with served() as address:
            source = Source(address)
            await read(source, 1)
            least_s = 1.0
            for _ in range(3):  # the request may come before the server is busy
                asyncio.get_running_loop().call_later(0.0, time.sleep, 0.3)
                took_s = await read(source, 1000)
                assert took_s is not None
                least_s = min(least_s, took_s)
            assert least_s < 0.2
            source.close()

    run(body())


def test_what_is_refused_does_not_come_and_ends_the_connection() -> None:
    async def body() -> None:
        async with served() as address:
            source = Source(address)
            assert await read(source, HELD_BYTES + 1) is None
            assert not source.is_open
        nobody = Source(address)
        assert await read(nobody, 1) is None
        silent: list[float | None] = []
        async with served() as address:
            source = Source(address)
            source.ask([[0, 1, 2, 3, 5]], silent.append)
            source.close()
            await asyncio.sleep(0.05)
        assert silent == []

    run(body())


@pytest.mark.parametrize(
    "question", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", encode({"get": 3}), encode({"get": [[]]})]
)
def test_strangers_are_shown_out(question: bytes) -> None:
    async def body() -> None:
        async with served() as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(question)
            assert await asyncio.wait_for(reader.read(), 10.0) == b""
            writer.close()

    run(body())
