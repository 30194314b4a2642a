"""The controller service over real sockets: answers, refusals, deadlines, overload, batches."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from controllers import registry
from controllers.service import (
    ControllerService,
    ServerAddressError,
    ServiceLimits,
    create_app,
    serve,
)
from player.observation import AbrObservation

PAST = {"level": 1, "size_bytes": 150_000, "download_s": 1.2, "rebuffer_s": 0, "buffer_s": 8.0}
QUESTION: dict[str, Any] = {
    "levels_kbps": [300, 750, 1200],
    "chunk_s": 4.0,
    "chunk_index": 2,
    "chunks_left": 3,
    "buffer_s": 9.5,
    "upcoming_sizes_bytes": [[150_000, 375_000, 600_000]] * 3,
    "history": [PAST, PAST],
}
DECIDE = "/v1/abr/bba/decide"


@dataclass
class Scripted:
    """A controller that does what a test tells it to."""

    act: Callable[[AbrObservation], Any]

    def decide(self, observation: AbrObservation) -> Any:
        return self.act(observation)


@dataclass
class Batching:
    """Notes the sizes of its batches; the first one waits for ``go``."""

    go: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    poisoned_index: int = -1

    def decide(self, observation: AbrObservation) -> int:
        return self.decide_many([observation])[0]

    def decide_many(self, observations: Sequence[AbrObservation]) -> list[int]:
        self.go.wait(5)
        self.batches.append(len(observations))
        if any(seen.chunk_index == self.poisoned_index for seen in observations):
            raise ArithmeticError("poison")
        return [seen.chunk_index for seen in observations]


Ask = Callable[..., Awaitable[tuple[int, Any]]]


def with_service(
    test: Callable[[Ask], Awaitable[Any]],
    *,
    limits: ServiceLimits | None = None,
    **arms: registry.Controller,
) -> Any:
    """Runs ``test(ask)`` against a service; ``ask(path, body)`` returns status and document."""

    async def run() -> Any:
        controllers = {("abr", "bba"): registry.create("abr", "bba")}
        controllers |= {("abr", name): controller for name, controller in arms.items()}
        async with (
            ControllerService(controllers, limits=limits) as service,
            aiohttp.ClientSession(await service.add_address("127.0.0.1", 0)) as http,
        ):

            async def ask(
                path: str = DECIDE, body: Any = QUESTION, *, method: str = "POST", **headers: str
            ) -> tuple[int, Any]:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                async with http.request(method, path, data=data, headers=headers) as response:
                    assert response.headers["Access-Control-Allow-Origin"] == "*"
                    text = await response.text()
                    is_json = response.content_type == "application/json"
                    return response.status, json.loads(text) if is_json else text

            return await test(ask)

    return asyncio.run(run())


def answer_to(body: Any, path: str = DECIDE, **headers: str) -> tuple[int, Any]:
    return with_service(lambda ask: ask(path, body, **headers))


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


def test_deadline_is_kept_and_other_arms_are_not_held_up() -> None:
    release = threading.Event()
    slow = Scripted(lambda _: release.wait(10) and 1)

    async def test(ask: Ask) -> None:
        began = time.monotonic()
        late = asyncio.create_task(ask("/v1/abr/slow/decide", **{"X-Deadline-Ms": "300"}))
        await asyncio.sleep(0.05)
        assert (await ask())[0] == 200
        assert not late.done()
        status, document = await late
        assert (status, document["error"]["type"]) == (503, "deadline")
        assert time.monotonic() - began < 5
        release.set()
        assert (await ask("/v1/abr/slow/decide"))[1]["decision"] == 1

    with_service(test, slow=slow)


def test_overload_is_refused_at_once() -> None:
    release = threading.Event()
    slow = Scripted(lambda _: release.wait(10) and 1)

    async def test(ask: Ask) -> None:
        waiting = [asyncio.create_task(ask("/v1/abr/slow/decide")) for _ in range(3)]
        await asyncio.sleep(0.2)
        status, document = await ask("/v1/abr/slow/decide")
        assert (status, document["error"]["type"]) == (503, "overload")
        assert (await ask())[0] == 200  # another arm is not held up
        release.set()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200, 200]
        assert (await ask())[0] == 200

    with_service(test, slow=slow, limits=ServiceLimits(waiting=3))


def test_hung_arm_refuses_at_once_when_its_queue_is_full() -> None:
    release = threading.Event()
    hung = Scripted(lambda _: release.wait(20) and 1)

    async def test(ask: Ask) -> None:
        kinds = []
        for _ in range(6):
            _, document = await ask("/v1/abr/hung/decide", **{"X-Deadline-Ms": "20"})
            kinds.append(document["error"]["type"])
        assert kinds == ["deadline"] * 4 + ["overload"] * 2
        assert (await ask())[0] == 200
        release.set()

    with_service(test, hung=hung, limits=ServiceLimits(waiting=3))


def test_questions_whose_asker_is_gone_never_reach_the_controller() -> None:
    release = threading.Event()
    seen: list[int] = []

    def decide(observation: AbrObservation) -> int:
        seen.append(observation.chunk_index)
        release.wait(10)
        return 1

    async def test(ask: Ask) -> str:
        waiting = [
            asyncio.create_task(ask("/v1/abr/slow/decide", question(index))) for index in range(4)
        ]
        for in_flight in (4, 1):
            line = f"testbed_in_flight {in_flight}\n"
            while line not in (await ask("/metrics", method="GET"))[1]:
                await asyncio.sleep(0.01)
            for one in waiting[1:]:  # the first keeps the controller busy
                one.cancel()
        release.set()
        assert (await waiting[0])[0] == 200
        assert (await ask("/v1/abr/slow/decide", question(9)))[0] == 200
        return str((await ask("/metrics", method="GET"))[1])

    text = with_service(test, slow=Scripted(decide))
    assert seen == [0, 9]
    assert 'testbed_requests_total{task="abr",arm="slow",outcome="aborted"} 3' in text


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


def question(index: int) -> dict[str, Any]:
    return QUESTION | {"chunk_index": index, "history": [PAST] * index}


def test_what_waits_is_answered_in_one_call() -> None:
    batching = Batching()

    async def test(ask: Ask) -> list[int]:
        tasks = [
            asyncio.create_task(ask("/v1/abr/many/decide", question(index))) for index in range(20)
        ]
        await asyncio.sleep(0.3)
        batching.go.set()
        return [document["decision"] for _, document in await asyncio.gather(*tasks)]

    assert with_service(test, many=batching) == list(range(20))
    assert sum(batching.batches) == 20
    assert len(batching.batches) <= 3


def test_one_poisoned_question_does_not_spoil_the_batch() -> None:
    batching = Batching(poisoned_index=7)

    async def test(ask: Ask) -> list[int]:
        tasks = [
            asyncio.create_task(ask("/v1/abr/many/decide", question(index))) for index in range(12)
        ]
        await asyncio.sleep(0.3)
        batching.go.set()
        return [status for status, _ in await asyncio.gather(*tasks)]

    assert with_service(test, many=batching) == [200] * 7 + [500] + [200] * 4


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


def test_a_hung_controller_does_not_keep_it_from_ending() -> None:
    release = threading.Event()
    began = time.monotonic()
    hung = Scripted(lambda _: release.wait(60) and 1)
    status, _ = with_service(
        lambda ask: ask("/v1/abr/hung/decide", **{"X-Deadline-Ms": "50"}), hung=hung
    )
    release.set()
    assert status == 503
    assert time.monotonic() - began < 20
