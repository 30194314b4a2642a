from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from adapters.backbones import (
    FAMILIES,
    Backbone,
    BackboneError,
    add_lora,
    load_backbone,
    merge_lora,
)
from adapters.checkpoints import load_checkpoint, save_checkpoint
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.pools import Pool
from adapters.tokens import NETLLM, Token

TOKENS = 3 * NETLLM.step_tokens
ALLOWED = torch.from_numpy(NETLLM.attention_allowed(TOKENS))
LADDER = (300, 750, 1200, 1850, 2850, 4300)
#: Where a change must not be seen at all, float noise of another evaluation order included.
NOTHING = 1e-6
#: Which projections are updated; where they are fused, the matrix of all three.
PROJECTIONS = {
    "bert": {"query", "value"},
    "gpt2": {"c_attn"},
    "gpt_neox": {"query_key_value"},
    "phi3": {"qkv_proj"},
}


def random_embeddings(backbone: Backbone, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, TOKENS, backbone.hidden_size, generator=generator)


def seen_from(backbone: torch.nn.Module, changed: int, embeddings: torch.Tensor) -> torch.Tensor:
    """Per position: how much the hidden state moves when one token is replaced."""
    other = embeddings.clone()
    other[:, changed] = torch.randn(
        embeddings.shape[-1], generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        moved = backbone(embeddings, ALLOWED) - backbone(other, ALLOWED)
    return moved.abs().amax(dim=(0, 2))


def check_layout(backbone: Backbone) -> None:
    embeddings = random_embeddings(backbone, 2)
    ordinary, sizes = NETLLM.step_tokens + Token.BUFFER, NETLLM.step_tokens + Token.SIZES
    moved = seen_from(backbone, ordinary, embeddings)
    assert moved[:ordinary].max() < NOTHING  # a later token does not influence an earlier one
    assert moved[ordinary] > 1e-4
    assert moved[ordinary + 1 :].max() > 1e-4  # and the past is seen
    moved = seen_from(backbone, sizes, embeddings)
    assert moved[sizes] > 1e-4
    moved[sizes] = 0
    assert moved.max() < NOTHING  # sizes are seen by themselves only


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_obeys_the_layout_and_learns(
    family: str, make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    backbone = load_backbone(str(make_backbone(family, tmp_path / family)))
    assert backbone.family == family
    check_layout(backbone)
    add_lora(backbone, rank=2, alpha=4.0)
    trainable = [key for key, one in backbone.named_parameters() if one.requires_grad]
    assert all("lora_" in key for key in trainable)
    projections = {key.split(".lora_")[0].split(".")[-1] for key in trainable}
    assert projections == PROJECTIONS.get(family, {"q_proj", "v_proj"})
    embeddings = random_embeddings(backbone, seed=2)
    before = backbone(embeddings, ALLOWED)
    optimizer = torch.optim.SGD([one for one in backbone.parameters() if one.requires_grad], lr=10)
    for _ in range(2):
        optimizer.zero_grad()
        backbone(embeddings, ALLOWED).square()[..., 0].mean().backward()
        optimizer.step()
    after = backbone(embeddings, ALLOWED).detach()
    assert not torch.allclose(before, after)
    check_layout(backbone)
    merge_lora(backbone)
    torch.testing.assert_close(backbone(embeddings, ALLOWED).detach(), after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_trains_saves_and_loads(
    family: str, make_backbone: Callable[..., Path], tmp_path: Path, small_pool: Pool
) -> None:
    config = AbrModelConfig(levels_kbps=LADDER, block=3, feature_size=4, lora_rank=2)
    episode = small_pool.episodes[0]
    observations = [episode.observation(index) for index in range(1, episode.chunks)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = load_backbone(str(make_backbone(family, tmp_path / "backbone")))
        policy = AbrPolicy(config, backbone).train()
        first = policy.answers(observations[:2])
        trainable = [one for one in policy.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=0.05)
        for _ in range(2):  # the first moves the one half of the low-rank pair, then the other
            optimizer.zero_grad()
            hidden = policy.backbone(random_embeddings(backbone), ALLOWED)
            torch.nn.functional.linear(hidden, policy.head.weight).square().mean().backward()
            optimizer.step()
    rounded = {key: value.half().float() for key, value in policy.adapter_state().items()}
    policy.load_state_dict(rounded, strict=False)  # as they are stored
    save_checkpoint(tmp_path / "checkpoint", policy, {})
    policy.freeze("full")
    loaded = load_checkpoint(str(tmp_path / "checkpoint"), inference="full")
    assert not torch.allclose(first, policy.answers(observations[:2]), atol=1e-3)
    assert torch.equal(policy.answers(observations), loaded.answers(observations))


def test_minilm_is_causal_and_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    backbone = load_backbone("minilm")
    assert (backbone.family, backbone.hidden_size) == ("bert", 384)
    check_layout(backbone)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradient_checkpointing_changes_no_gradient_and_nothing_is_dropped(
    family: str, make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    """In training mode; most families' configurations ask for dropout there."""
    backbone = load_backbone(str(make_backbone(family, tmp_path / family)))
    embeddings = random_embeddings(backbone)
    gradients = {}
    for is_checkpointing in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            copy = backbone.share()
            add_lora(copy, rank=2, alpha=4.0)
            entered = count_calls(copy)
            copy.train()
            if is_checkpointing:
                copy.enable_gradient_checkpointing()
            hidden = copy(embeddings.requires_grad_(), ALLOWED)
            assert torch.equal(hidden, copy.eval()(embeddings, ALLOWED))  # nothing is dropped
            entered.clear()
            hidden = copy.train()(embeddings, ALLOWED)
            hidden.square()[..., 0].mean().backward()
        gradients[is_checkpointing] = {
            key: one.grad for key, one in copy.named_parameters() if one.grad is not None
        }
        assert len(entered) == (4 if is_checkpointing else 2)  # of two layers
    assert gradients[True].keys() == gradients[False].keys() != set()
    torch.testing.assert_close(gradients[True], gradients[False])


def test_a_shared_backbone_keeps_gradient_checkpointing(tiny_backbone: str) -> None:
    backbone = load_backbone(tiny_backbone)
    backbone.enable_gradient_checkpointing()
    copy = backbone.share().train()
    calls = count_calls(copy)
    copy(random_embeddings(copy).requires_grad_(), ALLOWED).sum().backward()
    assert len(calls) == 4


def count_calls(backbone: Backbone) -> list[str]:
    """Grows by one with every attention that is computed."""
    calls: list[str] = []
    for name, module in backbone.model.named_modules():
        if name.split(".")[-1] in ("attn", "attention", "self_attn") and hasattr(module, "forward"):
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    return calls


def test_an_adapter_takes_a_backbone_of_its_own(tiny_backbone: str) -> None:
    backbone = load_backbone(tiny_backbone)
    add_lora(backbone, rank=2, alpha=4.0, name="abr")
    assert any(".lora_A.abr." in key for key, _ in backbone.named_parameters())
    with pytest.raises(BackboneError, match=r"adapter 'abr' already; take backbone\.share\(\)"):
        add_lora(backbone, rank=2, alpha=4.0, name="viewport")
    add_lora(backbone.share(), rank=2, alpha=4.0, name="viewport")


def test_offline_hub_id_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match=r"'organisation/nothing'.*known: 'minilm'"):
        load_backbone("organisation/nothing")


@pytest.mark.parametrize("name", ["minilmm", "", "../nowhere", "/no/such/folder", "a/b/c"])
def test_unknown_name_lists_what_is_known(name: str) -> None:
    with pytest.raises(BackboneError, match="known: 'minilm', a local folder"):
        load_backbone(name)


def test_other_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(BackboneError, match="'t5' are not supported"):
        load_backbone(str(tmp_path))


def test_folder_without_safetensors_is_refused(
    make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    make_backbone("bert", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


def test_missing_weights_are_refused_not_drawn_at_random(
    make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    file = make_backbone("bert", tmp_path) / "model.safetensors"
    weights = load_file(file)
    kept = {key: one for key, one in weights.items() if ".layer.1.attention." not in key}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack \d+ weights .* first 'encoder\.layer\.1\.atte"):
        load_backbone(str(tmp_path))


def test_quantised_files_are_refused(make_backbone: Callable[..., Path], tmp_path: Path) -> None:
    file = make_backbone("llama", tmp_path) / "config.json"
    document = json.loads(file.read_text())
    document["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    file.write_text(json.dumps(document))
    with pytest.raises(BackboneError, match=r"files are quantised; .* ':4bit' or ':8bit'"):
        load_backbone(str(tmp_path))


def test_an_embedding_narrower_than_the_layers_is_the_width(tmp_path: Path) -> None:
    """As in OPT-350m, whose tokens pass through projections."""
    config = transformers.OPTConfig(
        hidden_size=16,
        word_embed_proj_dim=8,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=16,
        max_position_embeddings=64,
    )
    config.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), random_weights=True)
    assert backbone.hidden_size == 8
    assert backbone(torch.zeros(1, TOKENS, 8), ALLOWED).shape == (1, TOKENS, 8)


def test_too_many_tokens(tiny_backbone: str) -> None:
    backbone = load_backbone(tiny_backbone)
    with pytest.raises(BackboneError, match="129 tokens exceed its 128 positions"):
        backbone(torch.zeros(1, 129, 16), torch.ones(129, 129, dtype=torch.bool))


def test_fingerprint_tells_weights_apart(
    make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    one = load_backbone(str(make_backbone("bert", tmp_path / "one", seed=1)))
    same = load_backbone(str(make_backbone("bert", tmp_path / "same", seed=1)))
    other = load_backbone(str(make_backbone("bert", tmp_path / "other", seed=2)))
    assert one.fingerprint == same.fingerprint != other.fingerprint
