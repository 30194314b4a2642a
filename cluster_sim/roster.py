"""The agents that are connected to the master of a live cluster."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import Protocol

from cluster_sim.wire import Message, Talk, WireError

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
    talk: Talk
    address: tuple[str, int]
    heard_s: float


class Roster:
    """Who is there. An agent whose connection ends, or who says nothing for long, is lost."""

    def __init__(self, executors: int, dead_after_s: float, listener: Listener) -> None:
        self._executors = executors
        self._dead_after_s = dead_after_s
        self._listener = listener
        self._agents: dict[int, _Agent] = {}
        self._executor_of: dict[Talk, int] = {}
        self._guests: set[Talk] = set()
        self._server: asyncio.Server | None = None
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
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._welcome, sock=listener)
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
        if agent is not None:
            agent.talk.say(message)

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
        for executor, agent in list(self._agents.items()):
            if now_s - agent.heard_s > self._dead_after_s:
                log.warning("executor %d says nothing any more", executor)
                agent.talk.abort()
                self._miss(agent.talk)

    async def close(self) -> None:
        """Ends all connections, and with them the agents."""
        self._is_complete = False
        if self._server is not None:
            self._server.close()
        while self._guests:
            for talk in self._guests:
                talk.abort()
            await asyncio.sleep(0)  # their ends are told in the next turn

    def _introduce(self) -> None:
        peers = {str(one): list(agent.address) for one, agent in self._agents.items()}
        self.say_to_all({"peers": peers})

    def _welcome(self) -> Talk:
        talk = Talk(self._hear, self._take_leave)
        self._guests.add(talk)
        return talk

    def _hear(self, talk: Talk, message: Message) -> None:
        executor = self._executor_of.get(talk)
        if executor is None:
            self._take_in(talk, message)
            return
        self._agents[executor].heard_s = asyncio.get_running_loop().time()
        self._listener.agent_says(executor, message)

    def _take_in(self, talk: Talk, message: Message) -> None:
        match message:
            case {"hello": int(number), "address": [str(host), int(port)]} if (
                0 <= number < self._executors and number not in self._agents
            ):
                now_s = asyncio.get_running_loop().time()
                self._agents[number] = _Agent(talk, (host, port), now_s)
                self._executor_of[talk] = number
                self._came.set()
                if self._is_complete:
                    self._introduce()
                    self._listener.agent_joined(number)
            case _:
                raise WireError(f"a stranger says {message}")

    def _take_leave(self, talk: Talk) -> None:
        self._guests.discard(talk)
        self._miss(talk)

    def _miss(self, talk: Talk) -> None:
        executor = self._executor_of.pop(talk, None)
        if executor is not None:
            del self._agents[executor]
            if self._is_complete:
                self._listener.agent_lost(executor)
