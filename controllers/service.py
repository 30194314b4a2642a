"""HTTP service that answers with controllers' decisions (aiohttp).

``POST /v1/{task}/{arm}/decide`` takes an observation and returns the decision. The service keeps
nothing about any session. What it cannot answer in time it refuses at once with 503, so that the
player's fallback decides early.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pydantic_core
from aiohttp import web

from controllers.arm_thread import ArmThread, ControllerFailed
from controllers.metrics import CONTENT_TYPE as METRICS_TYPE
from controllers.metrics import Arm, Metrics
from controllers.registry import Controller, uses_earlier_viewers
from controllers.wire import (
    DEADLINE_HEADER,
    KEEP_ALIVE_S,
    MILLISECONDS_PER_SECOND,
    ImpossibleObservation,
    MalformedObservation,
    task_wire,
)
from player.observation import ObservationError
from player.sockets import ServerAddressError, base_url, listening_socket

__all__ = ["ControllerService", "ServerAddressError", "ServiceLimits", "create_app", "serve"]

MAX_DEADLINE_MS = 3_600_000.0
SHUTDOWN_S = 1.0
MAX_ECHO_CHARACTERS = 100  # of what a client sent, in messages

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What the service takes on.

    Attributes:
        body_bytes: largest observation.
        body_s: longest time for the body to come in.
        waiting: questions to one arm in work; the next one is refused at once.
        deadline_s: longest time for an answer when the question names none.
    """

    body_bytes: int = 2**20
    body_s: float = 10.0
    waiting: int = 256
    deadline_s: float = 60.0


class _Refusal(Exception):
    """Becomes an error response."""

    def __init__(self, status: int, kind: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.field = status, kind, field


def create_app(
    arms: Mapping[Arm, Controller], *, limits: ServiceLimits | None = None
) -> web.Application:
    """The aiohttp application.

    Args:
        arms: controllers by task and arm name.
        limits: what it takes on.

    Raises:
        UnknownController: a task that has no wire format.
    """
    service = _Service(arms, limits or ServiceLimits())
    app = _routes(service)
    app.cleanup_ctx.append(service.run_threads)
    return app


def _routes(service: _Service) -> web.Application:
    app = web.Application(middlewares=[_errors_as_json], client_max_size=service.limits.body_bytes)
    app.router.add_post("/v1/{task}/{arm}/decide", service.decide)
    app.router.add_options("/v1/{task}/{arm}/decide", _preflight)
    app.router.add_get("/v1", service.describe)
    app.router.add_get("/healthz", service.health)
    app.router.add_get("/metrics", service.metrics)
    app.on_response_prepare.append(_allow_any_origin)
    return app


class _Service:
    def __init__(self, arms: Mapping[Arm, Controller], limits: ServiceLimits) -> None:
        self.limits = limits
        self._wires = {arm: task_wire(arm[0]) for arm in arms}
        self._uses_earlier = {
            arm: uses_earlier_viewers(arm[0], controller) for arm, controller in arms.items()
        }
        self._threads = {
            arm: ArmThread("/".join(arm), controller) for arm, controller in arms.items()
        }
        self._metrics = Metrics()
        self._in_work: Counter[Arm] = Counter()

    def start(self) -> None:
        for thread in self._threads.values():
            thread.start()

    async def close(self) -> None:
        await asyncio.gather(*(thread.close() for thread in self._threads.values()))

    async def run_threads(self, _: web.Application) -> AsyncIterator[None]:
        self.start()
        yield
        await self.close()

    async def decide(self, request: web.Request) -> web.Response:
        arm = request.match_info["task"], request.match_info["arm"]
        if arm not in self._threads:
            self._metrics.count(("", ""), "unknown_arm")
            raise self._unknown(arm)
        self._metrics.in_flight += 1
        self._in_work[arm] += 1
        outcome = "ok"
        try:
            return await self._answer(request, arm)
        except _Refusal as refusal:
            outcome = refusal.kind
            raise
        except BaseException:
            outcome = "aborted"
            raise
        finally:
            self._metrics.in_flight -= 1
            self._in_work[arm] -= 1
            self._metrics.count(arm, outcome)

    async def _answer(self, request: web.Request, arm: Arm) -> web.Response:
        thread, wire = self._threads[arm], self._wires[arm]
        if max(self._in_work[arm] - 1, thread.backlog) >= self.limits.waiting:
            raise _Refusal(503, "overload", f"{self.limits.waiting} questions are waiting already")
        deadline_s = self._deadline_s(request)
        try:
            async with asyncio.timeout(deadline_s):
                body = await self._body(request)
                answer = await thread.decide(_read(wire.read_observation, body))
        except TimeoutError:
            message = f"no decision within {deadline_s * MILLISECONDS_PER_SECOND:g} ms"
            raise _Refusal(503, "deadline", message) from None
        except ObservationError as error:  # possible, but not for this controller
            raise _Refusal(422, "impossible", str(error), error.field) from error
        except ControllerFailed as error:
            raise _Refusal(500, "controller", str(error)) from error
        self._metrics.observe(arm, answer.seconds)
        try:
            text = wire.write_decision(answer.decision, answer.seconds * MILLISECONDS_PER_SECOND)
        except (pydantic_core.PydanticSerializationError, ValueError) as error:
            message = f"{'/'.join(arm)} decided {answer.decision!r:.100}, which JSON cannot carry"
            _log.error("%s", message)
            raise _Refusal(500, "controller", message) from error
        return web.Response(body=text, content_type="application/json")

    def _deadline_s(self, request: web.Request) -> float:
        text = request.headers.get(DEADLINE_HEADER)
        if text is None:
            return self.limits.deadline_s
        try:
            deadline_ms = float(text)
        except ValueError:
            deadline_ms = math.nan
        if not 0 < deadline_ms <= MAX_DEADLINE_MS:  # false for NaN
            message = (
                f"{DEADLINE_HEADER} must be milliseconds above 0, at most {MAX_DEADLINE_MS:.0f}, "
                f"not {text[:MAX_ECHO_CHARACTERS]!r}"
            )
            raise _Refusal(400, "malformed", message, DEADLINE_HEADER)
        return deadline_ms / MILLISECONDS_PER_SECOND

    async def _body(self, request: web.Request) -> bytes:
        limits = self.limits
        too_large = _Refusal(413, "too_large", f"the body may have {limits.body_bytes} bytes")
        if (request.content_length or 0) > limits.body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(limits.body_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None
        except TimeoutError:
            raise _Refusal(408, "timeout", f"no body within {limits.body_s} s") from None
        except Exception as error:  # whatever the HTTP parser finds wrong with the body
            raise _Refusal(400, "malformed", f"the body cannot be read: {error}") from error

    def _unknown(self, arm: Arm) -> _Refusal:
        task, name = (text[:MAX_ECHO_CHARACTERS] for text in arm)
        tasks = sorted({known for known, _ in self._threads})
        if task not in tasks:
            there = ", ".join(tasks) or "none"
            return _Refusal(404, "unknown_task", f"no task {task!r}; there are {there}", "task")
        there = ", ".join(sorted(known for of, known in self._threads if of == task))
        message = f"no arm {name!r} for task {task!r}; there are {there}"
        return _Refusal(404, "unknown_arm", message, "arm")

    async def describe(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "arms": [
                    {
                        "task": task,
                        "arm": name,
                        "decide": f"/v1/{quote(task, safe='')}/{quote(name, safe='')}/decide",
                        "observation": wire.observation.json_schema(),
                        "decision": wire.decision.json_schema(),
                        "uses_earlier_viewers": self._uses_earlier[task, name],
                    }
                    for (task, name), wire in sorted(self._wires.items())
                ]
            }
        )

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "arms": len(self._threads)})

    async def metrics(self, _: web.Request) -> web.Response:
        text = self._metrics.text().encode()
        return web.Response(body=text, headers={"Content-Type": METRICS_TYPE})


def _read(read: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return read(body)
    except ImpossibleObservation as error:
        raise _Refusal(422, "impossible", str(error), error.field or None) from None
    except MalformedObservation as error:
        raise _Refusal(400, "malformed", str(error), error.field or None) from None


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except _Refusal as refusal:
        return _error(refusal.status, refusal.kind, str(refusal), refusal.field)
    except web.HTTPMethodNotAllowed as error:
        message = f"{error.method} is not allowed here, only {', '.join(error.allowed_methods)}"
        response = _error(405, "method", message[: 2 * MAX_ECHO_CHARACTERS])
        response.headers["Allow"] = ",".join(sorted(error.allowed_methods))
        return response
    except web.HTTPException as error:
        return _error(error.status, "http", error.reason)
    except Exception:
        _log.exception("%s %s", request.method, request.path)
        return _error(500, "internal", "an error of the service; its log says more")


def _error(status: int, kind: str, message: str, field: str | None = None) -> web.Response:
    body = json.dumps({"error": {"type": kind, "message": message, "field": field}})
    return web.Response(status=status, body=body.encode(), content_type="application/json")


async def _allow_any_origin(_: web.Request, response: web.StreamResponse) -> None:
    """A browser's player is served from elsewhere."""
    response.headers["Access-Control-Allow-Origin"] = "*"


async def _preflight(_: web.Request) -> web.Response:
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "POST, OPTIONS",
            "Access-Control-Allow-Headers": f"Content-Type, {DEADLINE_HEADER}",
            "Access-Control-Max-Age": "86400",
        },
    )


class ControllerService:
    """A running service; an async context manager. Sockets come and go while it runs."""

    def __init__(
        self, arms: Mapping[Arm, Controller], *, limits: ServiceLimits | None = None
    ) -> None:
        self._service = _Service(arms, limits or ServiceLimits())
        self._runners: dict[str, web.AppRunner] = {}
        self._urls: dict[str, str] = {}

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs, such as ``http://10.0.0.1:8080``."""
        return tuple(self._urls.values())

    async def __aenter__(self) -> Self:
        self._service.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(self.remove_socket(name) for name in tuple(self._runners)))
        await self._service.close()

    async def add_socket(self, name: str, listener: socket.socket) -> str:
        """Listens on one more socket, of whatever network namespace; returns its base URL.

        Raises:
            ValueError: there is a socket of that name already.
        """
        if name in self._runners:
            raise ValueError(f"there is a socket {name!r} already")
        listener.setblocking(False)
        url = base_url(listener)
        # A runner of its own, so that its connections can be closed without the others'.
        runner = web.AppRunner(
            _routes(self._service),
            access_log=None,
            auto_decompress=False,  # questions are small, and a bomb stays shut
            handler_cancellation=True,  # who hangs up does not want an answer any more
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        self._runners[name] = runner
        await runner.setup()
        await web.SockSite(runner, listener).start()
        self._urls[name] = url
        return url

    async def remove_socket(self, name: str) -> None:
        """Closes a socket and its connections, so that its namespace can go.

        Raises:
            LookupError: no socket of that name.
        """
        try:
            runner = self._runners.pop(name)
        except KeyError:
            there = ", ".join(self._runners) or "none"
            raise LookupError(f"no socket {name!r}; there are {there}") from None
        self._urls.pop(name, None)
        await runner.cleanup()

    async def add_address(self, host: str, port: int) -> str:
        """Listens on one more address of this namespace; returns the base URL.

        Raises:
            ServerAddressError: it cannot be listened on.
        """
        return await self.add_socket(f"{host}:{port}", listening_socket(host, port))


async def serve(
    arms: Mapping[Arm, Controller],
    *,
    sockets: Sequence[socket.socket] = (),
    address: tuple[str, int] | None = None,
    limits: ServiceLimits | None = None,
    ready: Callable[[ControllerService], None] | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or cancelled.

    Args:
        arms: controllers by task and arm name.
        sockets: listening sockets, taken over.
        address: host and port to listen on as well; port 0 takes any that is free.
        limits: what the service takes on.
        ready: is called with the service once it answers.

    Raises:
        ServerAddressError: the address cannot be listened on.
        UnknownController: a task that has no wire format.
    """
    async with ControllerService(arms, limits=limits) as service:
        for number, listener in enumerate(sockets):
            await service.add_socket(f"socket {number}", listener)
        if address is not None:
            await service.add_address(*address)
        _log.info("controllers answer at %s", ", ".join(service.urls))
        with _stop_signals() as stopped:
            if ready is not None:
                ready(service)
            await stopped.wait()


@contextlib.contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    caught = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stopped.set)
        except (RuntimeError, ValueError):  # not the main thread: its owner cancels instead
            break
        caught.append(number)
    try:
        yield stopped
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
