"""Tiny models and pools for the tests of the adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from adapters.hindsight import Hindsight, hindsight_values
from adapters.pools import PlayedSession, Pool, pool_from_sessions
from controllers.registry import create
from player.link_models import PensieveLink
from player.machine import Player, PlayerConfig
from player.records import LinkRecord, SessionRecord
from player.simulated import play_simulated
from player.trace import Trace
from player.video import generate_video

VIDEO = generate_video("generated", chunks=14, rng=np.random.default_rng(5))
SIZES = {"vocab_size": 16, "max_position_embeddings": 128}
WIDTHS = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    **SIZES,
}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CONFIGS = {
    "bert": transformers.BertConfig(**WIDTHS),
    "gpt2": transformers.GPT2Config(
        vocab_size=16, n_positions=128, n_embd=16, n_layer=2, n_head=2, **NO_TOKENS
    ),
    "opt": transformers.OPTConfig(
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        **SIZES,
        **NO_TOKENS,
    ),
    "llama": transformers.LlamaConfig(**WIDTHS, **NO_TOKENS),
    "mistral": transformers.MistralConfig(**WIDTHS, num_key_value_heads=1, **NO_TOKENS),
    "qwen2": transformers.Qwen2Config(**WIDTHS, num_key_value_heads=1, **NO_TOKENS),
    "qwen3": transformers.Qwen3Config(**WIDTHS, head_dim=8, num_key_value_heads=1, **NO_TOKENS),
    "phi": transformers.PhiConfig(**WIDTHS, **NO_TOKENS),
    "phi3": transformers.Phi3Config(**WIDTHS, num_key_value_heads=1, **NO_TOKENS),
    "gpt_neox": transformers.GPTNeoXConfig(**WIDTHS, **NO_TOKENS),
}


def save_backbone(family: str, folder: Path, seed: int = 0) -> Path:
    """Saves a randomly initialised model of a family."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(CONFIGS[family])
    model.save_pretrained(folder)
    return folder


def play_session(trace: Trace, controller: str, start_index: int = 1) -> PlayedSession:
    """One simulated session."""
    player = Player(VIDEO)
    wall_s = play_simulated(
        player,
        PensieveLink(trace),
        create("abr", controller).decide,
        start_s=trace.start_s(start_index),
    )
    return PlayedSession(
        VIDEO,
        SessionRecord(
            arm=controller,
            controller=controller,
            trace=trace.name,
            seed=0,
            driver="simulated",
            status="ok",
            error=None,
            qoe_per_chunk=None,
            startup_s=player.startup_s,
            wall_s=wall_s,
            start_index=start_index,
            link=LinkRecord(backend="model:pensieve"),
            chunks=player.chunks,
        ),
    )


def make_traces(count: int = 4) -> dict[str, Trace]:
    """Short random traces, slow and fast."""
    rng = np.random.default_rng(3)
    return {
        name: Trace(name, np.arange(60.0), rng.uniform(0.2, 3.0) * rng.uniform(0.5, 1.5, 60))
        for name in (f"trace-{index}" for index in range(count))
    }


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Path]:
    """See :func:`save_backbone`."""
    return save_backbone


@pytest.fixture(scope="session")
def play() -> Callable[..., PlayedSession]:
    """See :func:`play_session`."""
    return play_session


@pytest.fixture(scope="session")
def small_traces() -> dict[str, Trace]:
    """See :func:`make_traces`."""
    return make_traces()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny BERT."""
    return str(save_backbone("bert", tmp_path_factory.mktemp("backbone") / "bert"))


@pytest.fixture(scope="session")
def small_pool() -> Pool:
    """Two arms on four traces, labelled by RobustMPC and by hindsight."""
    traces = make_traces()
    expert = create("abr", "robustmpc", {"horizon": 2})

    def values(session: PlayedSession) -> np.ndarray:
        trace = traces[session.record.trace]
        return hindsight_values(
            session.video,
            session.record.chunks,
            PensieveLink(trace),
            start_s=trace.start_s(session.record.start_index),
            player=PlayerConfig(),
            search=Hindsight(horizon=3),
        )

    sessions = [play_session(trace, arm) for trace in traces.values() for arm in ("bba", "rate")]
    return pool_from_sessions(sessions, expert=lambda _: expert.decide, values=values)
