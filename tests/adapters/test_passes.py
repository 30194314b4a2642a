from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adapters import lean, passes
from adapters.backbones import (
    FAMILIES,
    Backbone,
    BackboneError,
    add_lora,
    load_backbone,
    merge_lora,
)
from adapters.encoders import StepEncoder, StepTensors
from adapters.features import StepFeatures, window_features
from adapters.inference import choose_pass
from adapters.lean import LEAN_FAMILIES, LeanModel
from adapters.passes import LeanEncoder, LeanPass, Row
from adapters.pools import Pool
from adapters.tokens import NETLLM

BLOCK = 3
WIDEST = 128  # positions of the tiny models
#: Differences of another order of sums, for values near 1.
NOISE = 1e-5
FASTEST = dict.fromkeys(FAMILIES, "cached") | dict.fromkeys(LEAN_FAMILIES, "lean")


def adapted(folder: Path) -> Backbone:
    """A backbone whose updates are not zero, merged."""
    backbone = load_backbone(str(folder))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        add_lora(backbone, rank=2, alpha=4.0)
        for key, weight in backbone.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
    merge_lora(backbone)
    return backbone.requires_grad_(False)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def backbone(
    request: pytest.FixtureRequest,
    make_backbone: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Backbone:
    return adapted(make_backbone(request.param, tmp_path_factory.mktemp(request.param)))


@torch.inference_mode()
def test_rows_of_any_length_give_what_each_whole_sequence_gives(backbone: Backbone) -> None:
    """Three causal sequences, cut at different places, two goes over the batch."""
    kind, run = choose_pass(backbone, NETLLM, BLOCK, "auto")
    assert kind == FASTEST[backbone.family]
    assert run is not None
    layers, two, heads, width = run.memory_shape
    lengths, cuts = (20, 9, 33), (7, 8, 1)
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randn(one, backbone.hidden_size, generator=generator) for one in lengths]
    memories = [torch.full((layers, two, heads, 40, width), torch.nan) for _ in lengths]
    begins = [0] * len(lengths)
    for ends in (cuts, lengths):
        rows = [
            Row(memory, begin, end - begin)
            for memory, begin, end in zip(memories, begins, ends, strict=True)
        ]
        places = [torch.arange(b, e) for b, e in zip(begins, ends, strict=True)]
        tokens = torch.cat([one[at] for one, at in zip(sequences, places, strict=True)])
        hidden = run(tokens, torch.cat(places), rows)
        for index, end in enumerate(ends):
            causal = torch.ones(end, end, dtype=torch.bool).tril()
            whole = backbone(sequences[index][None, :end], causal)[0, -1]
            torch.testing.assert_close(hidden[index], whole, atol=NOISE, rtol=NOISE)
        begins = list(ends)


def test_minilm_is_lean() -> None:
    assert choose_pass(load_backbone("minilm"), NETLLM, BLOCK, "auto")[0] == "lean"


def test_a_forced_way_that_does_not_work_is_told(
    make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    phi = adapted(make_backbone("phi", tmp_path / "phi"))
    with pytest.raises(BackboneError, match=r"'lean' does not work: .*'phi'.* for bert, gpt2"):
        choose_pass(phi, NETLLM, BLOCK, "lean")
    assert choose_pass(phi, NETLLM, BLOCK, "cached")[0] == "cached"
    assert choose_pass(phi, NETLLM, BLOCK, "full") == ("full", None)


def test_a_pass_that_is_not_exact_is_not_taken(
    tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a library's next version or an odd variant changes."""
    bert = adapted(Path(tiny_backbone))
    describe = LEAN_FAMILIES["bert"]

    def wrong(model: object, weights: lean._Weights) -> LeanModel:
        return dataclasses.replace(describe(model, weights), activation=torch.relu)

    def gone(model: object, weights: lean._Weights) -> LeanModel:
        raise AttributeError("'BertModel' object has no attribute 'encoder'")

    def no_library(*_: object) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'past_key_values'")

    for changed, says in ((wrong, "differs from the full pass by"), (gone, "no attribute")):
        monkeypatch.setitem(LEAN_FAMILIES, "bert", changed)
        assert choose_pass(bert, NETLLM, BLOCK, "auto")[0] != "lean"
        with pytest.raises(BackboneError, match=says):
            choose_pass(bert, NETLLM, BLOCK, "lean")
    monkeypatch.setattr(passes.LibraryPass, "_run", no_library)
    assert choose_pass(bert, NETLLM, BLOCK, "auto") == ("full", None)
    with pytest.raises(BackboneError, match=r"'cached' does not work: .*unexpected keyword"):
        choose_pass(bert, NETLLM, BLOCK, "cached")


def test_an_unknown_activation_is_named(tiny_backbone: str) -> None:
    bert = adapted(Path(tiny_backbone))
    bert.model.config.hidden_act = "mish"
    with pytest.raises(BackboneError, match=r"activation 'mish'; there is one for gelu, "):
        LeanPass(bert)


@pytest.mark.parametrize("target", [0.0, 0.7])
def test_the_lean_encoder_makes_the_encoders_tokens(small_pool: Pool, target: float) -> None:
    observation = small_pool.episodes[0].observation(5)
    steps = window_features(observation, BLOCK)
    count = len(steps.action)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        encoder = StepEncoder(
            levels=observation.levels, hidden_size=16, feature_size=8, max_steps=2 * BLOCK
        ).requires_grad_(False)
    batch = StepFeatures(
        *(getattr(steps, field.name)[None] for field in dataclasses.fields(StepFeatures))
    )
    returns = torch.full((1, count, 1), target)
    whole = encoder(StepTensors.of(batch, returns, torch.device("cpu")))[0]  # (8 S, D)
    lean = LeanEncoder(encoder, target)
    torch.testing.assert_close(lean(steps, range(count)).flatten(0, 1), whole, atol=NOISE, rtol=0)
    picked = np.array([4, 1])
    some = lean(steps[picked], picked.tolist())
    torch.testing.assert_close(some[1], whole.view(count, 8, -1)[1], atol=NOISE, rtol=0)


def test_parts_lie_behind_each_other() -> None:
    rows = [SimpleNamespace(new=new) for new in (3, 1, 2)]
    assert [part for _, part in passes.parts(rows)] == [slice(0, 3), slice(3, 4), slice(4, 6)]  # type: ignore[arg-type]
