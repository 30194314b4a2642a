"""Fuzz: whatever is sent to the service, it never answers 500 and never hangs."""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controllers import registry
from controllers.service import ControllerService, ServiceLimits
from player.observation import HISTORY_LIMIT, MAX_SIZE_BYTES, UPCOMING_LIMIT

ANSWER_S = 10.0  # a test that waits longer has found a hang
DEADLINE_MS = "5000"
REFUSALS = {400, 404, 405, 408, 413, 422, 503}


def controllers() -> dict[tuple[str, str], registry.Controller]:
    """Every abr controller that can be created without options and needs no future."""
    found = {}
    for name in registry.names("abr"):
        if registry.needs_future("abr", name):
            continue
        try:
            found["abr", name] = registry.create("abr", name)
        except (
            OSError,
            ValueError,
            LookupError,
            ImportError,
        ):  # needs options, or a checkpoint that is not here
            continue
    levels = registry.create("abr", "netllm", {"checkpoint": "builtin:abr-minilm-levels"})
    found["abr", "levels"] = levels
    return found


@dataclass
class Target:
    """A running service and a keep-alive connection to it."""

    port: int
    arms: list[str]
    connection: http.client.HTTPConnection

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        try:
            return self._post(path, body, headers)
        except (ConnectionError, http.client.BadStatusLine):
            # The service may close a connection behind a request that it refused unread.
            self.connection.close()
            return self._post(path, body, headers)

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        self.connection.request("POST", path, body=body, headers=headers)
        response = self.connection.getresponse()
        return response.status, response.read()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    arms = controllers()
    ready: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = (
        queue.SimpleQueue()
    )

    async def run() -> None:
        async with ControllerService(arms, limits=ServiceLimits(body_s=1.0)) as service:
            stop = asyncio.Event()
            url = await service.add_address("127.0.0.1", 0)
            ready.put((asyncio.get_running_loop(), stop, url))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    loop, stop, url = ready.get(timeout=30)
    port = int(url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    yield Target(port, [name for _, name in arms], connection)
    connection.close()
    loop.call_soon_threadsafe(stop.set)
    thread.join(timeout=30)
    assert not thread.is_alive()


POSITIVE = st.floats(1e-6, 1e9)
DURATION = st.floats(0, 1e9)
TRAINED_LEVELS = 6  # of the shipped checkpoint
SIZE = st.integers(1, MAX_SIZE_BYTES)


@st.composite
def observations(draw: st.DrawFn) -> dict[str, Any]:
    """Anything that the service must answer, extremes included."""
    levels = draw(st.one_of(st.just(TRAINED_LEVELS), st.integers(1, 8)))
    ladder = sorted(draw(st.sets(POSITIVE, min_size=levels, max_size=levels)))
    index = draw(st.integers(0, 70))
    past = {
        "level": st.integers(0, len(ladder) - 1),
        "size_bytes": SIZE,
        "download_s": POSITIVE,
        "rebuffer_s": DURATION,
        "buffer_s": DURATION,
    }
    # Few different chunks, repeated: quick to draw, and long histories still occur.
    shapes = draw(st.lists(st.fixed_dictionaries(past), min_size=1, max_size=4))
    rows = st.lists(SIZE, min_size=len(ladder), max_size=len(ladder))
    upcoming = draw(st.lists(rows, min_size=1, max_size=UPCOMING_LIMIT))
    return {
        "levels_kbps": ladder,
        "chunk_s": draw(POSITIVE),
        "chunk_index": index,
        "chunks_left": draw(st.integers(len(upcoming), 10**6)),
        "buffer_s": draw(DURATION),
        "upcoming_sizes_bytes": upcoming,
        "history": [shapes[i % len(shapes)] for i in range(min(index, HISTORY_LIMIT))],
    }


def requests(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


#: These score a fixed number of levels.
OF_ONE_LADDER = ("genet", "levels", "pensieve")


@requests(500)
@given(observation=observations(), data=st.data())
def test_possible_observations_are_answered(
    target: Target, observation: dict[str, Any], data: st.DataObject
) -> None:
    arm = data.draw(st.sampled_from(target.arms))
    body = json.dumps(observation).encode()
    status, answer = target.post(f"/v1/abr/{arm}/decide", body, {"X-Deadline-Ms": DEADLINE_MS})
    if arm in OF_ONE_LADDER and len(observation["levels_kbps"]) != TRAINED_LEVELS:
        assert status == 422, answer
        assert json.loads(answer)["error"]["field"] == "levels_kbps"
        return
    assert status == 200, answer
    decision = json.loads(answer)["decision"]
    assert isinstance(decision, int)
    assert 0 <= decision < len(observation["levels_kbps"])


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.integers() | st.floats(), max_size=3),
)


@requests(500)
@given(observation=observations(), data=st.data())
def test_nearly_possible_observations_never_fail(
    target: Target, observation: dict[str, Any], data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(observation)))
        where: Any = observation
        while isinstance(where[key], list | dict) and where[key] and data.draw(st.booleans()):
            where = where[key]
            keys = sorted(where) if isinstance(where, dict) else range(len(where))
            key = data.draw(st.sampled_from(keys))
        match data.draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                where[key] = data.draw(ODD)
            case "remove":
                del where[key]
            case "add" if isinstance(where, dict):
                where["extra"] = data.draw(ODD)
            case _:
                where.append(data.draw(ODD))
        if not observation:
            break
    arm = data.draw(st.sampled_from(target.arms))
    body = json.dumps(observation).encode()
    status, answer = target.post(f"/v1/abr/{arm}/decide", body, {"X-Deadline-Ms": DEADLINE_MS})
    assert status in {200, 400, 422}, answer
    document = json.loads(answer)
    assert ("decision" in document) == (status == 200)
    assert status == 200 or document["error"]["message"]


@requests(1400)
@given(
    body=st.binary(max_size=300) | st.text(alphabet='{}[]",:0123eE+-.nulltrueNaI ').map(str.encode),
    arm=st.sampled_from(["bba", "fixed", "", "none", "..", "%2e%2e", "%00", "a%20b", "%ff"]),
    task=st.sampled_from(["abr", "abr", "abr", "viewport", "x", "%"]),
    headers=st.dictionaries(
        st.sampled_from(["X-Deadline-Ms", "Content-Encoding", "Content-Type", "Expect", "Range"]),
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)
        | st.sampled_from(["gzip", "deflate", "br", "100-continue", "1", "-1", "nan", "0.001"]),
        max_size=2,
    ),
)
def test_garbage_never_fails(
    target: Target, body: bytes, arm: str, task: str, headers: dict[str, str]
) -> None:
    status, _ = target.post(f"/v1/{task}/{arm}/decide", body, headers)
    assert status in REFUSALS | {415, 417}


LINES = st.sampled_from(
    [
        b"POST /v1/abr/bba/decide HTTP/1.1\r\n",
        b"GET /metrics HTTP/1.1\r\n",
        b"GET /v1 HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n",
        b"GET http://[::/ HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"Host: x\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        b"Expect: 100-continue\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Cookie: \xff=;;\r\n",
        b"\r\n",
        b"5\r\nabcde\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"{}",
        b"\x00" * 20,
        b"A" * 10_000,
    ]
)


@requests(600)
@given(parts=st.lists(LINES | st.binary(max_size=30), min_size=1, max_size=8))
def test_raw_garbage_never_fails(target: Target, parts: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", target.port), timeout=ANSWER_S) as connection:
        connection.sendall(b"".join(parts))
        connection.shutdown(socket.SHUT_WR)
        answer = bytearray()
        try:
            while data := connection.recv(65_536):
                answer += data
        except ConnectionResetError:  # it need not listen to the end
            pass
    assert b"HTTP/1.1 500" not in answer
    assert b"HTTP/1.0 500" not in answer


def test_the_service_is_well_after_all_that(target: Target) -> None:
    target.connection.request("GET", "/healthz")
    response = target.connection.getresponse()
    assert (response.status, json.loads(response.read())["status"]) == (200, "ok")
    target.connection.request("GET", "/metrics")
    text = target.connection.getresponse().read().decode()
    assert 'outcome="controller"' not in text
    assert "testbed_in_flight 0" in text
