"""One decision of one session on a GPU, beside what reading the weights once takes there.

    .venv/bin/python benchmarks/gpu.py [--model llama-2-7b|opt-1.3b] [--block 10] [--rounds 5]
    .venv/bin/python benchmarks/gpu.py --tiny       # the same code on a CPU, with tiny models

The models have the sizes of Llama 2 7B and OPT 1.3B without the vocabulary, which takes no part,
and random weights in bfloat16, made where they are used (nothing is downloaded). A simulated
session is decided in the layout ``netllm`` by the pass of ``adapters.graphed``, low-rank updates
included: ``decision`` is all of it, from the observation to the level, ``window moved`` the same
where the past is computed anew, ``step`` the pass over the new tokens alone, ``not captured`` that
one without CUDA graphs. The first round, in which graphs are captured, does not count. ``weights
read`` is the faster of adding them up and of half of copying them, each captured likewise. Memory
is what torch has allocated at most, and what its allocator holds, above the weights.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from adapters.backbones import Backbone
from adapters.encoders import StepEncoder
from adapters.graphed import GraphedLeanPass, capture_for, uncaptured
from adapters.inference import CachedInference
from adapters.passes import LeanEncoder, Pass, Row
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.shared_backbones import FrozenModel
from adapters.tokens import NETLLM, window_start, window_steps
from controllers import registry
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.simulated import play_simulated
from testbed.builtin import builtin_traces, builtin_video

#: Ratio of a decision to reading the weights, and memory above them, that we aim at.
TARGET_RATIO, TARGET_MIB = 1.5, 1024
MIB = 2**20
#: Of the second factors of the updates, which would be zero.
UPDATES_STD = 0.02
NO_VOCABULARY = {
    "vocab_size": 16,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama-2-7b": lambda: transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        **NO_VOCABULARY,
    ),
    "opt-1.3b": lambda: transformers.OPTConfig(
        hidden_size=2048,
        ffn_dim=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        word_embed_proj_dim=2048,
        **NO_VOCABULARY,
    ),
}
TINY: dict[str, Callable[[], Any]] = {
    "tiny llama": lambda: transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **NO_VOCABULARY,
    ),
    "tiny opt": lambda: transformers.OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=512,
        **NO_VOCABULARY,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one model took; times in seconds, one per decision or call.

    Attributes:
        weights_bytes: of the language model and its updates.
        decision_s: within a window.
        moved_s: as the window moves on.
        step_s: of the pass alone.
        uncaptured_s: of it, without graphs.
        read_s: of reading the weights, the best of all ways and calls.
        allocated_bytes: most that was in use above the weights; None on a CPU.
        reserved_bytes: that the allocator holds above the weights; None on a CPU.
        difference: largest to the answers of the full pass, over the largest answer.
    """

    weights_bytes: int
    decision_s: list[float]
    moved_s: list[float]
    step_s: list[float]
    uncaptured_s: list[float]
    read_s: float
    allocated_bytes: int | None
    reserved_bytes: int | None
    difference: float


def random_backbone(config: Any, device: torch.device) -> Backbone:
    """A backbone in bfloat16 with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = transformers.AutoModel.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    vocabulary = model.get_input_embeddings()
    size: int = vocabulary.embedding_dim
    vocabulary.weight = nn.Parameter(vocabulary.weight.new_empty(0, size), requires_grad=False)
    frozen = FrozenModel(config.model_type, "bf16", model, size, "random")
    return Backbone(f"random {config.model_type}:bf16", frozen)


def played() -> list[AbrObservation]:
    """What a controller is asked in a session under ``rate``."""
    rate = registry.create("abr", "rate")
    seen: list[AbrObservation] = []

    def decide(observation: AbrObservation) -> int:
        seen.append(observation)
        level: int = rate.decide(observation)
        return level

    video = builtin_video("envivio-like")
    play_simulated(Player(video), PensieveLink(builtin_traces("mixed")[0]), decide)
    return [one for one in seen if one.history]


class Clock:
    """Times work on a device until it is done there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Callable[[], object]) -> float:
        """Seconds."""
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def answering(policy: AbrPolicy, run: Pass) -> CachedInference:
    """Answers of a policy by a pass, with nothing kept yet."""
    encoder, head = policy.encoder, policy.head
    assert isinstance(encoder, StepEncoder)
    assert isinstance(head, nn.Linear)
    return CachedInference(
        encode=LeanEncoder(encoder, 0.0),
        run=run,
        answer=head,
        layout=NETLLM,
        block=policy.config.block,
        device=policy.device,
    )


def decided(inference: CachedInference, observation: AbrObservation) -> int:
    """The level with the highest score."""
    return int(inference.answers([observation])[0].argmax())


def step_of(run: Pass, policy: AbrPolicy) -> Callable[[], Tensor]:
    """The last step of the longest window, on random tokens."""
    block = policy.config.block
    known, device = NETLLM.known(window_steps(block) - 2), policy.device
    new = NETLLM.kept + 1
    layers, two, heads, width = run.memory_shape
    memory = torch.zeros(layers, two, heads, known + new, width, device=device)
    tokens = torch.randn(new, policy.backbone.hidden_size, device=device)
    last = window_steps(block) * NETLLM.step_tokens - 1
    positions = torch.arange(last - new, last, device=device)
    row = Row(memory, known, new)
    return lambda: run(tokens, positions, [row])


def read_s(weights: Sequence[Tensor], device: torch.device, rounds: int) -> float:
    """Least seconds that reading all weights took: to add them up, or half of a copy."""
    clock, largest = Clock(device), max(one.numel() for one in weights)
    buffer = torch.empty(largest, dtype=weights[0].dtype, device=device)

    def add() -> None:
        for one in weights:
            torch.sum(one, dtype=torch.float32)

    def copy() -> None:
        for one in weights:
            buffer[: one.numel()].view(one.shape).copy_(one)

    capture, found = capture_for(device), []
    for work, times_read in ((add, 1), (copy, 2)):
        again = capture(work)
        found += [clock(again) / times_read for _ in range(1 + rounds)]
    return min(found)


@torch.inference_mode()
def measure(config: Any, device: torch.device, block: int, rounds: int) -> Measured:
    """Times one model."""
    asked = played()
    shape = AbrModelConfig(levels_kbps=asked[0].levels_kbps, block=block)
    with torch.inference_mode(mode=False):
        policy = AbrPolicy(shape, random_backbone(config, device)).to(device).freeze("full")
        for key, weight in policy.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(weight, std=UPDATES_STD)
    weights = [one for one in policy.backbone.parameters() if one.numel()]
    weights_bytes = sum(one.numel() * one.element_size() for one in weights)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    run, clock = GraphedLeanPass(policy.backbone), Clock(device)
    decision_s: list[float] = []
    moved_s: list[float] = []
    answers: list[Tensor] = []
    for number in range(1 + rounds):
        inference = answering(policy, run)
        for one in asked:
            if not number:
                answers.append(inference.answers([one]))
                continue
            took = clock(functools.partial(decided, inference, one))
            if window_start(one.chunk_index, block):  # windows of full length
                (decision_s if one.chunk_index % block else moved_s).append(took)
    step = step_of(run, policy)
    step()
    step_s = [clock(step) for _ in range(10 * rounds)]
    allocated = reserved = None
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(device) - weights_bytes
        reserved = torch.cuda.max_memory_reserved(device) - weights_bytes
    plain = step_of(GraphedLeanPass(policy.backbone, capture=uncaptured), policy)
    plain()
    found, full = torch.cat(answers), torch.cat([policy.answers([one]) for one in asked])
    return Measured(
        weights_bytes=weights_bytes,
        decision_s=decision_s,
        moved_s=moved_s,
        step_s=step_s,
        uncaptured_s=[clock(plain) for _ in range(10 * rounds)],
        read_s=read_s([one for one in weights if one.dtype == torch.bfloat16], device, rounds),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        difference=float((found - full).abs().max() / full.abs().max()),
    )


def lines(name: str, found: Measured) -> Iterator[str]:
    """The figures of a model, as they are printed."""
    yield f"\n{name}: {found.weights_bytes / MIB:.1f} MiB of weights, bfloat16"
    yield f"{'weights read':<16}{found.read_s * 1e3:>9.3f} ms"
    for what, took in (
        ("decision", found.decision_s),
        ("window moved", found.moved_s),
        ("step", found.step_s),
        ("not captured", found.uncaptured_s),
    ):
        median = statistics.median(took)
        aim = f", target {TARGET_RATIO:.1f}" if what == "decision" else ""
        yield (
            f"{what:<16}{median * 1e3:>9.3f} ms ({min(took) * 1e3:.3f} to {max(took) * 1e3:.3f}, "
            f"{len(took)} times), {median / found.read_s:.2f} times reading{aim}"
        )
    if found.allocated_bytes is None or found.reserved_bytes is None:
        yield "memory above the weights: not measured on a CPU"
    else:
        yield (
            f"memory above the weights: {found.allocated_bytes / MIB:.0f} MiB at most, "
            f"{found.reserved_bytes / MIB:.0f} MiB held by the allocator, target {TARGET_MIB} MiB"
        )
    yield f"largest difference to the full pass: {found.difference:.1e} of the largest answer"


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), help="only this one")
    parser.add_argument("--block", type=int, default=10, help="half of a window, in steps")
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --tiny runs the same on a CPU, with tiny models")
    models = TINY if arguments.tiny else MODELS
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, windows of {window_steps(arguments.block)} steps")
    for name in [arguments.model] if arguments.model in models else models:
        for line in lines(name, measure(models[name](), device, arguments.block, arguments.rounds)):
            print(line)
        sys.stdout.flush()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
