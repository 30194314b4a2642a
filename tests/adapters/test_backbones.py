from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.backbones import (
    FAMILIES,
    BackboneError,
    add_lora,
    load_backbone,
    merge_lora,
)
from adapters.tokens import TOKENS_PER_STEP, Token, attention_allowed

TOKENS = 3 * TOKENS_PER_STEP
#: Where a change must not be seen at all, float noise of another evaluation order included.
NOTHING = 1e-6


def seen_from(backbone: torch.nn.Module, changed: int, embeddings: torch.Tensor) -> torch.Tensor:
    """Per position: how much the hidden state moves when one token is replaced."""
    allowed = torch.from_numpy(attention_allowed(TOKENS))
    other = embeddings.clone()
    other[:, changed] = torch.randn(
        embeddings.shape[-1], generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        moved = backbone(embeddings, allowed) - backbone(other, allowed)
    return moved.abs().amax(dim=(0, 2))


def check_layout(backbone: torch.nn.Module, hidden_size: int) -> None:
    embeddings = torch.randn(2, TOKENS, hidden_size, generator=torch.Generator().manual_seed(0))
    ordinary, sizes = TOKENS_PER_STEP + Token.BUFFER, TOKENS_PER_STEP + Token.SIZES
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
    check_layout(backbone, backbone.hidden_size)
    add_lora(backbone, rank=2, alpha=4.0)
    trainable = [key for key, one in backbone.named_parameters() if one.requires_grad]
    assert trainable
    assert all("lora_" in key for key in trainable)
    embeddings = torch.randn(
        1, TOKENS, backbone.hidden_size, generator=torch.Generator().manual_seed(2)
    )
    allowed = torch.from_numpy(attention_allowed(TOKENS))
    before = backbone(embeddings, allowed)
    optimizer = torch.optim.SGD([one for one in backbone.parameters() if one.requires_grad], lr=10)
    for _ in range(2):
        optimizer.zero_grad()
        backbone(embeddings, allowed).square()[..., 0].mean().backward()
        optimizer.step()
    after = backbone(embeddings, allowed).detach()
    assert not torch.allclose(before, after)
    check_layout(backbone, backbone.hidden_size)
    merge_lora(backbone)
    torch.testing.assert_close(backbone(embeddings, allowed).detach(), after, atol=1e-4, rtol=1e-4)


def test_minilm_is_causal_and_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    backbone = load_backbone("minilm")
    assert (backbone.family, backbone.hidden_size) == ("bert", 384)
    check_layout(backbone, 384)


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
