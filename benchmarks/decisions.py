"""How long a decision takes, in-process and over HTTP, for every controller, side by side.

    .venv/bin/python benchmarks/decisions.py [--rounds 3] [--only controllers|inference|crowd]

``controllers``: each answers all observations of the same sessions, of others in each round, for
what was answered once may be kept; the figures are the median round's, the ratio is to ``bba``, the
cheapest rule. ``inference``: the adapted model with a
recomputed window and with kept keys and values, one session at a time. ``crowd``: the same two,
with 64 sessions that ask the HTTP service at once and again as soon as they are answered, service
and clients in one process. Cores, load and spread are printed with the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
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
MODEL = "netllm"
WAYS = ("full", "auto")
CROWD = 64
#: Chunks that each session of the crowd asks about, once its window is long. The sessions start at
#: different places in their blocks, as sessions do that nobody started together.
CROWD_CHUNKS = 15


def played(sessions: int) -> list[list[AbrObservation]]:
    """What controllers are asked in sessions under ``rate``, from chunk 1 on."""
    rate = registry.create(TASK, "rate")
    video = builtin_video("envivio-like")
    traces = itertools.cycle(builtin_traces("mixed"))
    seen: list[list[AbrObservation]] = []

    def decide(observation: AbrObservation) -> int:
        seen[-1].append(observation)
        level: int = rate.decide(observation)
        return level

    for number, trace in enumerate(itertools.islice(traces, sessions)):
        seen.append([])
        play_simulated(Player(video), PensieveLink(trace), decide, start_s=float(number))
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


async def timed_crowd(
    controller: registry.Controller, sessions: Sequence[Sequence[AbrObservation]]
) -> tuple[list[float], float]:
    """Milliseconds per question of sessions that ask at once, and decisions per second."""
    took: list[float] = []

    async def play(url: str, asked: Sequence[AbrObservation]) -> None:
        async with ControllerClient(url, TASK, MODEL, deadline_s=60) as client:
            for observation in asked:
                began = time.perf_counter()
                await client.ask(observation)
                took.append((time.perf_counter() - began) * 1000)

    async with ControllerService({(TASK, MODEL): controller}) as service:
        url = await service.add_address("127.0.0.1", 0)
        await asyncio.gather(*(play(url, one[:1]) for one in sessions))  # the windows so far
        took.clear()
        began = time.perf_counter()
        await asyncio.gather(*(play(url, one[1:]) for one in sessions))
        return took, len(took) / (time.perf_counter() - began)


def compare_controllers(rounds: int) -> None:
    """Prints all controllers."""
    sessions = played(2 * rounds * SESSIONS)
    controllers = {
        name: registry.create(TASK, name)
        for name in registry.names(TASK)
        if not registry.needs_future(TASK, name)
    }
    inside: dict[str, list[list[float]]] = {name: [] for name in controllers}
    http: dict[str, list[list[float]]] = {name: [] for name in controllers}
    for number in range(rounds):  # interleaved, so that a busy moment hits all alike
        asked, over_http = (
            [one for session in sessions[first :: 2 * rounds] for one in session]
            for first in (2 * number, 2 * number + 1)
        )
        for name, controller in controllers.items():
            inside[name].append(timed(controller.decide, asked))
        for name, took in asyncio.run(timed_over_http(controllers, over_http)).items():
            http[name].append(took)
    print(f"{SESSIONS} sessions in each of {rounds} rounds, {surroundings()}")
    print(
        f"{'controller':12} {'p50 ms':>8} {'p99 ms':>8} {'spread':>14} {'x bba':>8} {'HTTP p50':>9}"
    )
    base = statistics.median(np.median(took) for took in inside["bba"])
    for name in sorted(controllers, key=lambda name: np.median(inside[name])):
        medians = sorted(float(np.median(took)) for took in inside[name])
        p99 = statistics.median(float(np.percentile(took, 99)) for took in inside[name])
        http_p50 = statistics.median(float(np.median(took)) for took in http[name])
        middle = statistics.median(medians)
        print(
            f"{name:12} {middle:8.3f} {p99:8.3f} {medians[0]:6.3f}–{medians[-1]:.3f}"
            f" {middle / base:8.1f} {http_p50:9.3f}"
        )


def compare_inference(rounds: int) -> None:
    """Prints the ways to compute the adapted model's answers, one session at a time."""
    arms = {way: registry.create(TASK, MODEL, {"inference": way}) for way in WAYS}
    block = arms["full"].policy.config.block  # type: ignore[attr-defined]
    asked = [one[2 * block - 1 :] for one in played(rounds * SESSIONS)]
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for session in asked:  # in turns, so that a busy moment hits all alike
        for way in WAYS:
            took[way] += timed(arms[way].decide, session)
    longest = [one.chunk_index % block == block - 1 for session in asked for one in session]
    print(f"\n{MODEL}, {len(asked)} sessions from chunk {2 * block} on, 1 thread, {surroundings()}")
    print(f"{'inference':10} {'p50 ms':>8} {'p99 ms':>8} {'p99/p50':>8} {'longest window':>15}")
    whole = {way: float(np.median(np.array(took[way])[longest])) for way in WAYS}
    for way in WAYS:
        p50, p99 = (float(np.percentile(took[way], share)) for share in (50, 99))
        name = arms[way].policy.inference  # type: ignore[attr-defined]
        print(f"{name:10} {p50:8.2f} {p99:8.2f} {p99 / p50:8.2f} {whole[way]:15.2f}")
    print(
        f"full / {arms['auto'].policy.inference}: "  # type: ignore[attr-defined]
        f"{np.median(took['full']) / np.median(took['auto']):.2f} over all, "
        f"{whole['full'] / whole['auto']:.2f} at the longest window"
    )


def compare_crowd() -> None:
    """Prints the same with many sessions at once over HTTP."""
    crowd = played(CROWD)
    print(f"\n{MODEL}, {CROWD} sessions over HTTP, {CROWD_CHUNKS} chunks each, {surroundings()}")
    print(f"{'inference':10} {'decisions/s':>12} {'p50 ms':>8} {'p99 ms':>8}")
    for way in WAYS:
        controller = registry.create(TASK, MODEL, {"inference": way})
        policy = controller.policy  # type: ignore[attr-defined]
        block = policy.config.block
        sessions = [
            one[2 * block + number % block :][: CROWD_CHUNKS + 1]
            for number, one in enumerate(crowd)
        ]
        took, rate = asyncio.run(timed_crowd(controller, sessions))
        p50, p99 = (float(np.percentile(took, share)) for share in (50, 99))
        print(f"{policy.inference:10} {rate:12.1f} {p50:8.1f} {p99:8.1f}")


def surroundings() -> str:
    """The machine, as far as it bears on the figures."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("controllers", "inference", "crowd"))
    given = parser.parse_args()
    if given.only in (None, "controllers"):
        compare_controllers(given.rounds)
    if given.only in (None, "inference"):
        compare_inference(given.rounds)
    if given.only in (None, "crowd"):
        compare_crowd()


if __name__ == "__main__":
    main()
