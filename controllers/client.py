"""Client of the controller service: one keep-alive connection per session."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import yarl

from controllers.wire import DEADLINE_HEADER, KEEP_ALIVE_S, MILLISECONDS_PER_SECOND, task_wire

MAX_ANSWER_BYTES = 2**20
MAX_MESSAGE_CHARACTERS = 300


class ControllerUnavailable(ConnectionError):
    """No usable answer in time: refused, cut off, too late, overloaded, failed, or garbage."""


class ControllerRejected(ValueError):
    """The service says that the question is wrong (4xx); the message is the service's."""

    def __init__(self, status: int, message: str, field: str | None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.field = field


class ControllerClient:
    """Asks one arm of a service; an async context manager.

    ``ask`` has the shape that ``player.headless.play_headless`` expects.
    """

    def __init__(self, base_url: str, task: str, arm: str, *, deadline_s: float) -> None:
        """Args are those of the service's URL and the longest wait for an answer.

        Raises:
            UnknownController: a task that has no wire format.
            ValueError: the deadline is not positive.
        """
        if not deadline_s > 0:
            raise ValueError(f"deadline_s must be positive, not {deadline_s}")
        path = f"/v1/{quote(task, safe='')}/{quote(arm, safe='')}/decide"
        self._url = yarl.URL(base_url.rstrip("/") + path, encoded=True)
        self._wire = task_wire(task)
        self._deadline_s = deadline_s
        self._headers = {
            "Content-Type": "application/json",
            DEADLINE_HEADER: f"{deadline_s * MILLISECONDS_PER_SECOND:.3f}",
        }
        self._http: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """Where the arm takes observations."""
        return str(self._url)

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None),  # ask has its own
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def ask(self, observation: Any) -> Any:
        """The arm's decision.

        Raises:
            ControllerUnavailable: no usable answer within the deadline.
            ControllerRejected: the service refuses the observation.
        """
        if self._http is None:
            raise RuntimeError("ask outside of 'async with ControllerClient(...)'")
        body = self._wire.write_observation(observation)
        try:
            async with asyncio.timeout(self._deadline_s):
                status, answer = await self._post(self._http, body)
        except TimeoutError as error:
            message = f"no answer from {self._url} within {self._deadline_s:g} s"
            raise ControllerUnavailable(message) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ControllerUnavailable(f"{self._url}: {error!r}") from error
        return self._understand(status, answer)

    async def _post(self, http: aiohttp.ClientSession, body: bytes) -> tuple[int, bytes]:
        try:
            return await self._post_once(http, body)
        except aiohttp.ServerDisconnectedError:
            # An idle connection that the service closed. Asking twice does no harm.
            return await self._post_once(http, body)

    async def _post_once(self, http: aiohttp.ClientSession, body: bytes) -> tuple[int, bytes]:
        async with http.post(self._url, data=body, allow_redirects=False) as response:
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            return response.status, bytes(answer)

    def _understand(self, status: int, answer: bytes) -> Any:
        try:
            document = json.loads(answer)
        except ValueError:
            document = None
        if status == 200 and isinstance(document, dict) and "decision" in document:
            return self._wire.read_decision(document["decision"])
        error = document.get("error") if isinstance(document, dict) else None
        told = error if isinstance(error, dict) else {}
        message = str(told.get("message") or answer[:MAX_MESSAGE_CHARACTERS])
        if 400 <= status < 500 and status != 408:
            field = told.get("field")
            raise ControllerRejected(status, message, field if isinstance(field, str) else None)
        raise ControllerUnavailable(f"{self._url} answered {status}: {message}")
