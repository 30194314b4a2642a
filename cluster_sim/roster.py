"""The agents that are connected to the master of a live cluster."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from cluster_sim.wire import MAX_LINE_BYTES, Guests, Message, encode, receive

log = logging.getLogger(__name__)


class LiveError(RuntimeError):
    """The agents did not come, are all gone, or do not give what they hold."""


class Listener(Protocol):
    """Who is told what happens to agents."""

    def agent_joined(self, executor: int) -> None:
        """An agent came after the others had begun."""
        ...

    def agent_lost(self, executor: int) -> None:
        """An agent is gone."""
        ...

    def agent_says(self, executor: int, message: Message) -> None:
        """An agent said something; what is raised here loses it."""
        ...


@dataclass(slots=True)
class _Agent:
    writer: asyncio.StreamWriter
    address: tuple[str, int]
    heard_s: float


class Roster:
    """Who is there. An agent whose connection ends, or who says nothing for long, is lost."""

    def __init__(self, executors: int, dead_after_s: float, listener: Listener) -> None:
        self._executors = executors
        self._dead_after_s = dead_after_s
        self._listener = listener
        self._agents: dict[int, _Agent] = {}
        self._server: asyncio.Server | None = None
        self._guests = Guests()
        self._came = asyncio.Event()
        self._is_complete = False
        self._looked_s = 0.0

    def __contains__(self, executor: int) -> bool:
        return executor in self._agents

    async def gather(self, listener: socket.socket, within_s: float) -> None:
        """Waits until all are there, and tells each where the others are.

        Raises:
            LiveError: some did not come.
        """
        self._server = await asyncio.start_server(
            self._welcome, sock=listener, limit=MAX_LINE_BYTES
        )
        try:
            async with asyncio.timeout(within_s):
                while len(self._agents) < self._executors:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError as error:
            missing = sorted(set(range(self._executors)) - set(self._agents))
            raise LiveError(
                f"no agent of executors {', '.join(map(str, missing))} within {within_s:g} s"
            ) from error
        self._is_complete = True
        self._introduce()

    def say(self, executor: int, message: Message) -> None:
        """Tells an agent something; one that is gone hears nothing."""
        agent = self._agents.get(executor)
        if agent is not None and not agent.writer.is_closing():
            agent.writer.write(encode(message))

    def say_to_all(self, message: Message) -> None:
        """Tells all agents something."""
        for executor in self._agents:
            self.say(executor, message)

    def look_for_silent(self) -> None:
        """Gives up agents who have said nothing for long; to be called more often than that."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s > self._dead_after_s / 2:
            for agent in self._agents.values():  # it was here that nobody listened
                agent.heard_s = now_s
        self._looked_s = now_s
        silent: Iterable[tuple[int, _Agent]] = list(self._agents.items())
        for executor, agent in silent:
            if now_s - agent.heard_s > self._dead_after_s:
                log.warning("executor %d says nothing any more", executor)
                agent.writer.transport.abort()
                self._miss(executor, agent.writer)

    async def close(self) -> None:
        """Ends all connections, and with them the agents."""
        self._is_complete = False
        if self._server is not None:
            self._server.close()
        await self._guests.see_off()

    def _introduce(self) -> None:
        peers = {str(one): list(agent.address) for one, agent in self._agents.items()}
        self.say_to_all({"peers": peers})

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one agent, from its first word to its end."""
        executor: int | None = None
        self._guests.take_in(writer)
        try:
            match await receive(reader):
                case {"hello": int(number), "address": [str(host), int(port)]} if (
                    0 <= number < self._executors and number not in self._agents
                ):
                    executor = number
                case other:
                    log.warning("a stranger says %s", other)
                    return
            loop = asyncio.get_running_loop()
            agent = self._agents[executor] = _Agent(writer, (host, port), loop.time())
            self._came.set()
            if self._is_complete:
                self._introduce()
                self._listener.agent_joined(executor)
            while (message := await receive(reader)) is not None:
                agent.heard_s = loop.time()
                self._listener.agent_says(executor, message)
        except (OSError, KeyError, TypeError, ValueError) as error:
            log.warning("executor %s: %r", executor, error)
        finally:
            writer.close()
            if executor is not None:
                self._miss(executor, writer)

    def _miss(self, executor: int, writer: asyncio.StreamWriter) -> None:
        agent = self._agents.get(executor)
        if agent is not None and agent.writer is writer:
            del self._agents[executor]
            if self._is_complete:
                self._listener.agent_lost(executor)
