"""What adapting a language model takes beside fine-tuning all of it, and adapters beside copies.

    .venv/bin/python benchmarks/adaptation.py [--batch 16] [--steps 3] [--only training|serving]

The model has the size of GPT-2 small and random weights (nothing is downloaded). ``training``:
steps of AdamW on windows of a simulated session, the encoders and the head being the same
everywhere; the language model is fine-tuned as a whole, or frozen with low-rank updates; each with
and without gradient checkpointing. ``serving``: one, two and three adapters ready to answer, over
shared frozen weights and over a copy each.

Every line is a process of its own. Memory is what the process holds at most (VmHWM; ``serving``:
holds in the end, VmRSS) above what it held before, every library imported and a step made with a
tiny model. The vocabulary takes no part, and is in memory nowhere. Cores, load and spread are
printed with the figures.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

from adapters.backbones import Backbone, load_backbone
from adapters.features import stack, window_features
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.tokens import window_steps
from controllers import registry
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.simulated import play_simulated
from testbed.builtin import builtin_traces, builtin_video

MIB_PER_KIB = 1 / 1024
#: Of GPT-2 small, with the vocabulary.
PUBLISHED_PARAMETERS = 124_439_808
TRAINED = {
    "full fine-tuning": {"is_full": True, "is_checkpointing": False},
    "… with checkpointing": {"is_full": True, "is_checkpointing": True},
    "adapters": {"is_full": False, "is_checkpointing": False},
    "adapters, checkpointing": {"is_full": False, "is_checkpointing": True},
}
ADAPTERS = (1, 2, 3)
#: Of glibc: blocks of this size and more go back to the system when they are freed, so that the
#: peak is what was in use, not what the allocator kept for later.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}


def model_config() -> AbrModelConfig:
    """Shape of the adapters: the defaults."""
    return AbrModelConfig(levels_kbps=builtin_video("envivio-like").levels_kbps)


def played() -> list[AbrObservation]:
    """What a controller is asked in a session under ``rate``."""
    rate = registry.create("abr", "rate")
    video = builtin_video("envivio-like")
    seen: list[AbrObservation] = []

    def decide(observation: AbrObservation) -> int:
        seen.append(observation)
        level: int = rate.decide(observation)
        return level

    play_simulated(Player(video), PensieveLink(builtin_traces("mixed")[0]), decide)
    return seen


def memory_mib(field: str) -> float:
    """``VmRSS``, what this process holds, or ``VmHWM``, the most it has held since the reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * MIB_PER_KIB


def warm_up() -> None:
    """Has every library imported that a training or a decision needs."""
    with tempfile.TemporaryDirectory() as folder:
        GPT2Config(n_embd=16, n_layer=1, n_head=2).save_pretrained(folder)
        policy = AbrPolicy(model_config(), load_backbone(f"{folder}:random-0"))
        observation = played()[10]
        features = stack([window_features(observation, policy.config.block)])
        trainable = [one for one in policy.parameters() if one.requires_grad]
        torch.autograd.backward(policy(policy.tensors(features)).sum())
        torch.optim.AdamW(trainable, lr=1e-4).step()
        policy.freeze("auto").decide(observation)


def settle() -> None:
    """Gives free memory back to the system, and lets the peak begin anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Steps of training, in this process."""
    config = model_config()
    steps = window_steps(config.block)
    whole = [one for one in played() if one.chunk_index % config.block == config.block - 1]
    windows = [window_features(one, config.block) for one in whole]
    windows = [one for one in windows if len(one.action) == steps]
    features = stack([windows[place % len(windows)] for place in range(job["batch"])])
    warm_up()
    settle()
    idle = memory_mib("VmRSS")
    policy = AbrPolicy(config, load_backbone(job["backbone"]))
    if job["is_full"]:
        policy.backbone = policy.backbone.share().requires_grad_(True)
    if job["is_checkpointing"]:
        policy.backbone.enable_gradient_checkpointing()
    policy.train()
    settle()
    trainable = [one for one in policy.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    took = []
    for _ in range(1 + job["steps"]):
        began = time.perf_counter()
        logits = policy(policy.tensors(features))  # (B, S, levels)
        target = torch.zeros(logits.shape[:2], dtype=torch.int64)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        took.append(time.perf_counter() - began)
    return {
        "tokens": config.tokens.window_tokens(config.block),
        "trainable": sum(one.numel() for one in trainable),
        "frozen": sum(one.numel() for one in policy.parameters() if not one.requires_grad),
        "mib": memory_mib("VmHWM") - idle,
        "took": took[1:],  # the first makes the optimiser's state
    }


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Adapters that have answered once, in this process."""
    config = model_config()
    observation = played()[10]
    warm_up()
    settle()
    idle = memory_mib("VmRSS")
    policies: list[AbrPolicy] = []
    for place in range(job["adapters"]):
        backbone: Backbone = load_backbone(job["backbone"])
        if place and not job["is_shared"]:
            backbone = copy.deepcopy(backbone)
        policies.append(AbrPolicy(config, backbone).freeze("auto"))
        policies[-1].decide(observation)
    settle()
    return {"mib": memory_mib("VmRSS") - idle, "way": policies[0].inference}


def in_process(kind: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Runs a job in a process of its own and returns what it found."""
    command = [sys.executable, __file__, "--child", json.dumps({"kind": kind, **job})]
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=Path.cwd()
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare_training(backbone: str, batch: int, steps: int, threads: int) -> None:
    """Prints a line per way to train; ratios are to full fine-tuning."""
    print(f"\n{'training':<24}{'trainable':>12}{'':>8}{'peak MiB':>10}{'':>7}{'s per step':>24}")
    base: dict[str, Any] = {}
    for name, way in TRAINED.items():
        job = {"backbone": backbone, "batch": batch, "steps": steps, **way}
        found = in_process("train", job, threads)
        base = base or found
        median = statistics.median(found["took"])
        spread = f"{median:.2f} ({min(found['took']):.2f} to {max(found['took']):.2f})"
        print(
            f"{name:<24}{found['trainable']:>12,}{found['trainable'] / base['trainable']:>8.2%}"
            f"{found['mib']:>10.0f}{found['mib'] / base['mib']:>7.0%}{spread:>24}"
        )
    print(
        f"batches of {batch} windows of {base['tokens']} tokens, AdamW; with the vocabulary, which "
        f"takes no part, the language model has {PUBLISHED_PARAMETERS:,} parameters: "
        f"{found['trainable'] / PUBLISHED_PARAMETERS:.2%} trainable"
    )


def compare_serving(backbone: str, threads: int) -> None:
    """Prints a line per number of adapters."""
    print(f"\n{'serving':<24}{'shared, MiB':>12}{'copies, MiB':>13}{'ratio':>8}  inference")
    for count in ADAPTERS:
        shared, copies = (
            in_process(
                "serve", {"backbone": backbone, "adapters": count, "is_shared": is_shared}, threads
            )
            for is_shared in (True, False)
        )
        print(
            f"{f'{count} adapters':<24}{shared['mib']:>12.0f}{copies['mib']:>13.0f}"
            f"{shared['mib'] / copies['mib']:>8.0%}  {shared['way']}"
        )


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument("--steps", type=int, default=3, help="that are timed, behind a first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("training", "serving"))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job = arguments.child
        print(json.dumps(train(job) if job["kind"] == "train" else serve(job)))
        return
    print(f"{os.cpu_count()} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        GPT2Config().save_pretrained(folder)
        backbone = f"{folder}:random-0"
        if arguments.only != "serving":
            compare_training(backbone, arguments.batch, arguments.steps, arguments.threads)
        if arguments.only != "training":
            compare_serving(backbone, arguments.threads)


if __name__ == "__main__":
    main()
