"""How long a decision takes, in-process and over HTTP, for every controller, side by side.

    .venv/bin/python benchmarks/decisions.py [--rounds 3] [--only controllers|inference|sizes|crowd]

``controllers``: each answers all observations of the same sessions, of others in each round, for
what was answered once may be kept; the figures are the median round's, the ratio is to ``bba``, the
cheapest rule. ``inference``: the adapted model with a recomputed window, with kept keys and values,
and with weights of 20 bits and of 8, one session at a time, and how many decisions each shares with
the first. ``sizes``: recomputed, kept, 20 bits and 8 for models of two sizes, windows of 10 to
48 steps (a whole session in context) and 1 and 2 threads, each at its longest window; beside them
what reading the layers' weights once takes. ``crowd``: the first two, with 64 sessions that ask the
HTTP service at once and again as soon as they are answered, service and clients in one process.
Cores, load and spread are printed with the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from adapters.backbones import load_backbone
from adapters.passes import LeanPass
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.tokens import NETLLM, window_steps
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
ROUNDED = ("int20", "int8")
SINGLE_WAYS = (*WAYS, *ROUNDED)
#: Those with keys and values kept, as ``sizes`` compares them with the full pass.
KEPT = ("lean", *ROUNDED)
#: How the library may attend; its full pass is timed with the faster one.
ATTENTION = ("sdpa", "eager")
#: Steps per block, half of the longest window; the last holds Pensieve's 48 chunks.
BLOCKS, THREADS = (5, 10, 20, 24), (1, 2)
#: Size of GPT-2 small; its vocabulary is not used.
GPT2_SMALL = transformers.GPT2Config(
    n_embd=768, n_layer=12, n_head=12, vocab_size=16, bos_token_id=None, eos_token_id=None
)
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


@torch.inference_mode()
def compare_inference(rounds: int) -> None:
    """Prints the ways to compute the adapted model's answers, one session at a time."""
    arms = {way: registry.create(TASK, MODEL, {"inference": way}) for way in SINGLE_WAYS}
    block = arms["full"].policy.config.block  # type: ignore[attr-defined]
    asked = [one[2 * block - 1 :] for one in played(rounds * SESSIONS)]
    took: dict[str, list[float]] = {way: [] for way in SINGLE_WAYS}
    levels: dict[str, list[object]] = {way: [] for way in SINGLE_WAYS}

    def ask(way: str, one: AbrObservation) -> None:
        levels[way].append(arms[way].decide(one))

    for session in asked:  # in turns, so that a busy moment hits all alike
        for way in SINGLE_WAYS:
            took[way] += timed(functools.partial(ask, way), session)
    longest = [one.chunk_index % block == block - 1 for session in asked for one in session]
    print(f"\n{MODEL}, {len(asked)} sessions from chunk {2 * block} on, 1 thread, {surroundings()}")
    print(
        f"{'inference':10} {'p50 ms':>8} {'p99 ms':>8} {'p99/p50':>8} {'x faster':>9} "
        f"{'longest window':>15} {'x faster':>9} {'same level':>11}"
    )
    for way in SINGLE_WAYS:
        p50, p99 = (float(np.percentile(took[way], share)) for share in (50, 99))
        name = arms[way].policy.inference  # type: ignore[attr-defined]
        whole, full = (float(np.median(np.array(took[one])[longest])) for one in (way, "full"))
        same = np.mean([a == b for a, b in zip(levels[way], levels["full"], strict=True)])
        print(
            f"{name:10} {p50:8.2f} {p99:8.2f} {p99 / p50:8.2f} "
            f"{np.median(took['full']) / p50:9.2f} {whole:15.2f} {full / whole:9.2f} {same:11.2%}"
        )


@torch.inference_mode()
def compare_sizes(rounds: int, steps: int | None) -> None:
    """Prints the full and the lean pass for models of two sizes, at the longest window.

    Args:
        rounds: sessions.
        steps: only windows of so many; None: all.
    """
    sessions = played(rounds)
    print(f"\ndecisions at the longest window, {rounds} sessions, ms, {surroundings()}")
    print(
        f"{'model':6} {'window':>6} {'threads':>7} {'weights':>8} {'read once':>9} {'full ms':>8} "
        + " ".join(f"{one:>7} ms {'full / it':>9} {'range':>11} {'logits':>7}" for one in KEPT)
    )
    usual = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        GPT2_SMALL.save_pretrained(folder)
        for name, source in (("minilm", "minilm"), ("gpt2", f"{folder}:random-0")):
            for block, threads in itertools.product(BLOCKS, THREADS):
                if steps not in (None, window_steps(block)):
                    continue
                if window_steps(block) * NETLLM.step_tokens > load_backbone(source).max_positions:
                    continue
                torch.set_num_threads(threads)
                row = _compare_size(source, block, sessions)
                print(f"{name:6} {window_steps(block):6} {threads:7} {row}", flush=True)
    torch.set_num_threads(usual)


def _compare_size(source: str, block: int, sessions: Sequence[Sequence[AbrObservation]]) -> str:
    backbone = load_backbone(source)
    torch.manual_seed(0)
    config = AbrModelConfig(levels_kbps=sessions[0][0].levels_kbps, block=block)
    lean = AbrPolicy(config, backbone).freeze("lean")
    policies = {"lean": lean}
    for way in ("full", *ROUNDED):
        policies[way] = AbrPolicy(config, backbone.share())
        policies[way].load_state_dict(lean.adapter_state(), strict=False)
        policies[way].freeze(way)  # type: ignore[arg-type]
    full = policies.pop("full")
    took: dict[str, list[float]] = {way: [] for way in (*KEPT, *ATTENTION)}
    differences: dict[str, float] = dict.fromkeys(KEPT, 0.0)
    reading = []
    layers: Any = LeanPass(lean.backbone).model.layers
    matrices = [
        getattr(layer, name).weight for layer in layers for name in ("qkv", "out", "up", "down")
    ]
    for one in itertools.chain.from_iterable(sessions):
        if one.chunk_index < 2 * block - 2 or one.chunk_index % block < block - 2:
            continue
        if one.chunk_index % block == block - 2:  # the step before, so that only the last is new
            for policy in policies.values():
                policy.answers([one])
            continue
        for attention in ATTENTION:
            full.backbone.model.set_attn_implementation(attention)  # type: ignore[operator]
            took[attention] += timed(full.decide, [one])
        exact = full.answers([one])
        for way, policy in policies.items():
            took[way] += timed(policy.decide, [one])
            differ = float((exact - policy.answers([one])).abs().max())
            differences[way] = max(differences[way], differ)
        began = time.perf_counter()
        for matrix in matrices:
            matrix.sum()
        reading.append((time.perf_counter() - began) * 1000)
    whole = np.array(min((took[one] for one in ATTENTION), key=statistics.median))
    size = sum(one.nbytes for one in matrices) / 1e6
    row = f"{size:5.0f} MB {statistics.median(reading):9.2f} {np.median(whole):8.2f}"
    for way in KEPT:
        ratios = whole / np.array(took[way])  # of the same observation, one after the other
        low, high = np.percentile(ratios, (10, 90))
        row += (
            f" {np.median(took[way]):10.2f} {np.median(whole) / np.median(took[way]):9.2f}"
            f" {f'{low:.1f}–{high:.1f}':>11} {differences[way]:7.0e}"
        )
    return row


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
    parser.add_argument("--only", choices=("controllers", "inference", "sizes", "crowd"))
    parser.add_argument("--steps", type=int, help="sizes: only windows of so many steps")
    given = parser.parse_args()
    if given.only in (None, "controllers"):
        compare_controllers(given.rounds)
    if given.only in (None, "inference"):
        compare_inference(given.rounds)
    if given.only in (None, "sizes"):
        compare_sizes(given.rounds, given.steps)
    if given.only in (None, "crowd"):
        compare_crowd()


if __name__ == "__main__":
    main()
