"""A controller service for a test, with questions to ask it and controllers that do as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from controllers import registry
from controllers.service import ControllerService, ServiceLimits
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


Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]
Found = TypeVar("Found")


def with_service(
    test: Callable[[Ask], Awaitable[Found]],
    *,
    limits: ServiceLimits | None = None,
    **arms: registry.Controller,
) -> Found:
    """Runs ``test(ask)`` against a service; ``ask(path, body)`` returns status and document."""

    async def run() -> Found:
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
