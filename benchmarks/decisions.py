"""How long a decision takes, in-process and over HTTP, for every controller, side by side.

    .venv/bin/python benchmarks/decisions.py [--rounds 3]

Each controller answers all observations of the same sessions; the figures are the median round's.
The ratio is to ``bba``, the cheapest rule. Cores, load and spread are printed with them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from controllers import registry
from controllers.client import ControllerClient
from controllers.service import ControllerService
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.simulated import play_simulated
from testbed.builtin import builtin_traces, builtin_video

SESSIONS = 4
TASK = "abr"


def observations() -> list[AbrObservation]:
    """What controllers are asked in sessions under ``rate``."""
    seen: list[AbrObservation] = []
    rate = registry.create(TASK, "rate")

    def decide(observation: AbrObservation) -> int:
        seen.append(observation)
        level: int = rate.decide(observation)
        return level

    video = builtin_video("envivio-like")
    for trace in builtin_traces("mixed", SESSIONS):
        play_simulated(Player(video), PensieveLink(trace), decide)
    return seen


def timed(call: Callable[[AbrObservation], object], asked: Sequence[AbrObservation]) -> list[float]:
    """Milliseconds per call."""
    took = []
    for observation in asked:
        began = time.perf_counter()
        call(observation)
        took.append((time.perf_counter() - began) * 1000)
    return took


async def timed_over_http(
    controllers: dict[str, registry.Controller], asked: Sequence[AbrObservation]
) -> dict[str, list[float]]:
    """Milliseconds per question over loopback, service and client in one process."""
    arms = {(TASK, name): controller for name, controller in controllers.items()}
    took: dict[str, list[float]] = {}
    async with ControllerService(arms) as service:
        url = await service.add_address("127.0.0.1", 0)
        for name in controllers:
            async with ControllerClient(url, TASK, name, deadline_s=60) as client:
                took[name] = []
                for observation in asked:
                    began = time.perf_counter()
                    await client.ask(observation)
                    took[name].append((time.perf_counter() - began) * 1000)
    return took


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    asked = observations()
    controllers = {
        name: registry.create(TASK, name)
        for name in registry.names(TASK)
        if not registry.needs_future(TASK, name)
    }
    inside: dict[str, list[list[float]]] = {name: [] for name in controllers}
    http: dict[str, list[list[float]]] = {name: [] for name in controllers}
    for _ in range(rounds):  # interleaved, so that a busy moment hits all alike
        for name, controller in controllers.items():
            inside[name].append(timed(controller.decide, asked))
        for name, took in asyncio.run(timed_over_http(controllers, asked)).items():
            http[name].append(took)
    load = os.getloadavg()[0]
    print(f"{len(asked)} observations, {rounds} rounds, {os.cpu_count()} cores, load {load:.1f}")
    print(
        f"{'controller':12} {'p50 ms':>8} {'p99 ms':>8} {'spread':>14} {'x bba':>8} {'HTTP p50':>9}"
    )
    base = statistics.median(np.median(took) for took in inside["bba"])
    for name in sorted(controllers, key=lambda name: np.median(inside[name])):
        medians = sorted(float(np.median(took)) for took in inside[name])
        p99 = statistics.median(float(np.percentile(took, 99)) for took in inside[name])
        over_http = statistics.median(float(np.median(took)) for took in http[name])
        middle = statistics.median(medians)
        print(
            f"{name:12} {middle:8.3f} {p99:8.3f} {medians[0]:6.3f}–{medians[-1]:.3f}"
            f" {middle / base:8.1f} {over_http:9.3f}"
        )


if __name__ == "__main__":
    main()
