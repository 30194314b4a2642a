"""The controller service over real sockets: answers, refusals, its description, its addresses."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from running_service import DECIDE, PAST, QUESTION, Ask, Scripted, answer_to, with_service

from controllers import registry
from controllers.service import (
    ControllerService,
    ServerAddressError,
    ServiceLimits,
    create_app,
    serve,
)
from player.observation import AbrObservation


def test_decision_is_the_controllers() -> None:
    status, document = answer_to(QUESTION)
    assert (status, document["decision"]) == (200, 0)
    assert document["decision_ms"] >= 0
    assert answer_to(QUESTION | {"buffer_s": 15.0})[1]["decision"] == 2


def test_content_type_does_not_matter() -> None:
    """A browser posts text/plain, which needs no preflight."""
    assert answer_to(QUESTION, **{"Content-Type": "text/plain"})[0] == 200


MALFORMED: list[tuple[Any, str | None]] = [
    (b"", None),
    (b"{", None),
    (b"\xff\xfe", None),
    (b"null", None),
    (b"[" * 100_000, None),
    ([QUESTION], None),
    (QUESTION | {"extra": 1}, "extra"),
    (QUESTION | {"chunk_index": "2"}, "chunk_index"),
    (QUESTION | {"chunk_index": 2.0}, "chunk_index"),
    (QUESTION | {"chunk_index": True}, "chunk_index"),
    (QUESTION | {"buffer_s": None}, "buffer_s"),
    (QUESTION | {"buffer_s": "9"}, "buffer_s"),
    (QUESTION | {"levels_kbps": 300}, "levels_kbps"),
    (QUESTION | {"history": [PAST, PAST | {"x": 1}]}, "history.1.x"),
    (QUESTION | {"history": [PAST, {**PAST, "level": "1"}]}, "history.1.level"),
    (QUESTION | {"upcoming_sizes_bytes": [[1, 2, 3.5]]}, "upcoming_sizes_bytes.0.2"),
    ({key: value for key, value in QUESTION.items() if key != "chunk_s"}, "chunk_s"),
]


@pytest.mark.parametrize(("body", "field"), MALFORMED)
def test_malformed_is_400_with_the_field(body: Any, field: str | None) -> None:
    status, document = answer_to(body)
    assert status == 400
    assert document["error"]["type"] == "malformed"
    assert document["error"]["field"] == field
    assert document["error"]["message"]


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"levels_kbps": []}, "levels_kbps"),
    ({"levels_kbps": [300, 300, 1200]}, "levels_kbps"),
    ({"levels_kbps": list(range(1, 100))}, "levels_kbps"),
    ({"chunk_s": 0}, "chunk_s"),
    ({"chunk_index": -1}, "chunk_index"),
    ({"chunks_left": 0}, "chunks_left"),
    ({"buffer_s": -0.1}, "buffer_s"),
    ({"buffer_s": float("nan")}, "buffer_s"),
    ({"buffer_s": float("inf")}, "buffer_s"),
    ({"chunk_index": float("nan")}, "chunk_index"),
    ({"upcoming_sizes_bytes": []}, "upcoming_sizes_bytes"),
    ({"upcoming_sizes_bytes": [[1, 2]]}, "upcoming_sizes_bytes"),
    ({"upcoming_sizes_bytes": [[1, -2, 3]]}, "upcoming_sizes_bytes"),
    ({"upcoming_sizes_bytes": [[1, 2, 10**400]]}, "upcoming_sizes_bytes"),
    ({"history": [PAST]}, "history"),
    ({"history": [PAST, PAST | {"level": 3}]}, "history.level"),
    ({"history": [PAST, PAST | {"size_bytes": -5}]}, "history.size_bytes"),
    ({"history": [PAST, PAST | {"download_s": 0}]}, "history.download_s"),
]


@pytest.mark.parametrize(("change", "field"), IMPOSSIBLE)
def test_impossible_is_422_with_the_field(change: dict[str, Any], field: str) -> None:
    status, document = answer_to(QUESTION | change)
    assert (status, document["error"]["field"]) == (422, field)
    assert document["error"]["type"] == "impossible"


def test_number_beyond_floats_is_422() -> None:
    body = json.dumps(QUESTION).replace("9.5", "1e999").encode()
    assert answer_to(body)[0] == 422


def test_unknown_names_list_those_that_exist() -> None:
    status, document = answer_to(QUESTION, "/v1/abr/bbb/decide")
    assert (status, document["error"]["field"]) == (404, "arm")
    assert "bba" in document["error"]["message"]
    status, document = answer_to(QUESTION, "/v1/video/bba/decide")
    assert (status, document["error"]["field"]) == (404, "task")
    assert "abr" in document["error"]["message"]
    assert answer_to(QUESTION, "/v2/abr/bba/decide")[0] == 404


def test_wrong_methods() -> None:
    async def test(ask: Ask) -> None:
        for path, method in (
            (DECIDE, "GET"),
            (DECIDE, "PUT"),
            ("/v1", "POST"),
            ("/healthz", "POST"),
        ):
            status, document = await ask(path, method=method)
            assert (status, document["error"]["type"]) == (405, "method")
        assert (await ask(DECIDE, b"", method="OPTIONS"))[0] == 204

    with_service(test)


def test_too_large_is_413_and_the_connection_lives_on() -> None:
    async def test(ask: Ask) -> None:
        status, document = await ask(body=b" " * 5000)
        assert (status, document["error"]["type"]) == (413, "too_large")
        assert (await ask())[0] == 200

    with_service(test, limits=ServiceLimits(body_bytes=4000))


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "nan", "inf", "1e300"])
def test_bad_deadline_is_400(text: str) -> None:
    status, document = answer_to(QUESTION, **{"X-Deadline-Ms": text})
    assert (status, document["error"]["field"]) == (400, "X-Deadline-Ms")


def test_broken_controller_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: AbrObservation) -> int:
        raise ZeroDivisionError("oops")

    async def test(ask: Ask) -> None:
        status, document = await ask("/v1/abr/broken/decide")
        assert (status, document["error"]["type"]) == (500, "controller")
        assert "ZeroDivisionError: oops" in document["error"]["message"]
        status, document = await ask("/v1/abr/odd/decide")
        assert (status, document["error"]["type"]) == (500, "controller")
        assert (await ask())[0] == 200

    with_service(test, broken=Scripted(fail), odd=Scripted(lambda _: object()))
    assert "oops" in caplog.text


@pytest.mark.parametrize(
    ("decision", "sent"), [(99, 99), (-1, -1), (1.5, 1.5), (None, None), (np.int64(2), 2)]
)
def test_odd_decisions_are_the_players_business(decision: Any, sent: Any) -> None:
    ask_odd = with_service(lambda ask: ask("/v1/abr/odd/decide"), odd=Scripted(lambda _: decision))
    assert ask_odd[0] == 200
    assert ask_odd[1]["decision"] == sent


def test_description_has_schemas() -> None:
    _, document = with_service(lambda ask: ask("/v1", b"", method="GET"))
    (arm,) = document["arms"]
    assert (arm["task"], arm["arm"], arm["decide"]) == ("abr", "bba", DECIDE)
    assert set(arm["observation"]["required"]) == set(QUESTION)
    assert arm["observation"]["additionalProperties"] is False
    assert arm["decision"] == {"type": "integer"}
    assert arm["uses_earlier_viewers"] is False


def test_health_and_metrics() -> None:
    async def test(ask: Ask) -> str:
        assert await ask("/healthz", b"", method="GET") == (200, {"status": "ok", "arms": 1})
        await ask()
        await ask(body=b"{")
        await ask("/v1/abr/none/decide")
        return str((await ask("/metrics", b"", method="GET"))[1])

    lines = with_service(test).splitlines()
    assert 'testbed_requests_total{task="abr",arm="bba",outcome="ok"} 1' in lines
    assert 'testbed_requests_total{task="abr",arm="bba",outcome="malformed"} 1' in lines
    assert 'testbed_requests_total{task="",arm="",outcome="unknown_arm"} 1' in lines
    assert "testbed_in_flight 0" in lines
    assert 'testbed_decision_seconds_bucket{task="abr",arm="bba",le="+Inf"} 1' in lines
    assert 'testbed_decision_seconds_count{task="abr",arm="bba"} 1' in lines


async def exchange(url: str, sent: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(65_536), timeout=10)
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: 900", b"408"),
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        ("Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd", b"400"),
        ("Content-Length: -1", b"400"),
        ("Content-Length: 99999999", b"413"),
    ],
)
def test_bodies_that_do_not_come(head: str, status: bytes) -> None:
    async def test() -> bytes:
        arms = {("abr", "bba"): registry.create("abr", "bba")}
        async with ControllerService(arms, limits=ServiceLimits(body_s=0.3)) as service:
            url = await service.add_address("127.0.0.1", 0)
            request = f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n"
            return await exchange(url, request.encode())

    assert asyncio.run(test()).split()[1] == status


def test_sockets_come_and_go_while_it_runs() -> None:
    async def test() -> None:
        async with (
            ControllerService({("abr", "bba"): registry.create("abr", "bba")}) as service,
            aiohttp.ClientSession() as http,
        ):
            urls = [
                await service.add_socket(name, socket.create_server(("127.0.0.1", 0)))
                for name in ("one", "two")
            ]
            assert service.urls == tuple(urls)
            for url in urls:
                async with http.get(f"{url}/healthz") as response:
                    assert response.status == 200
            with (
                socket.create_server(("127.0.0.1", 0)) as extra,
                pytest.raises(ValueError, match="'one' already"),
            ):
                await service.add_socket("one", extra)
            port = int(urls[0].rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await service.remove_socket("one")
            assert await asyncio.wait_for(reader.read(), timeout=5) == b""  # closed, not idle
            writer.close()
            with pytest.raises(aiohttp.ClientConnectionError):
                await http.get(f"{urls[0]}/healthz")
            async with http.get(f"{urls[1]}/healthz") as response:
                assert response.status == 200
            with pytest.raises(LookupError, match="there are two"):
                await service.remove_socket("one")

    asyncio.run(test())


def test_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerAddressError, match=rf"127\.0\.0\.1:{port}.*in use"):
            asyncio.run(serve({}, address=("127.0.0.1", port)))


def test_task_without_a_wire_format_is_refused() -> None:
    with pytest.raises(registry.UnknownController, match="nonsense"):
        create_app({("nonsense", "x"): registry.create("abr", "bba")})


PROGRAM = """
import asyncio
from controllers import registry
from controllers.service import serve

arms = {("abr", "bba"): registry.create("abr", "bba")}
ready = lambda service: print(service.urls[0], flush=True)
asyncio.run(serve(arms, address=("127.0.0.1", 0), ready=ready))
print("done", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(number: signal.Signals) -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(number)
        assert process.stdout.read() == "done\n"
        assert process.wait(timeout=10) == 0
