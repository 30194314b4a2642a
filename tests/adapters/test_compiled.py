"""The compiled pass gives what the pass in torch gives, on every kind of processor it knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from adapters import compiled
from adapters.backbones import Backbone, load_backbone
from adapters.compiled import CompiledError, CompiledPass, library_path
from adapters.lean import ACTIVATIONS, LEAN_FAMILIES
from adapters.passes import LeanPass, Row

#: Largest difference, over the largest value: another order of sums, other series for functions.
CLOSE = 1e-5
#: Rows of a batch, as tokens that are known and tokens that are new.
ROWS = ((0, 5), (17, 1), (3, 9), (40, 2))
PLACES = 48

pytestmark = pytest.mark.skipif(library_path() is None, reason="_lean.c is not built")
#: Widths that fill no vector, and that fill many.
WIDTHS = {"odd": (20, 28, 2), "even": (128, 192, 2)}


@pytest.fixture(scope="module", params=WIDTHS)
def widths(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return WIDTHS[request.param]


def backbone_of(family: str, widths: tuple[int, int, int], folder: Path) -> Backbone:
    size, inner, heads = widths
    if family == "gpt2":
        options = {"n_embd": size, "n_inner": inner, "n_layer": 2, "n_head": heads}
    else:
        feed = "ffn_dim" if family == "opt" else "intermediate_size"
        options = {"hidden_size": size, feed: inner, "num_attention_heads": heads}
        options |= {"num_hidden_layers": 2}
    if family == "opt":
        options["word_embed_proj_dim"] = size
    if family in ("llama", "mistral", "qwen2"):
        options["num_key_value_heads"] = 1
    no_tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(family, vocab_size=8, **options, **no_tokens)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    backbone = load_backbone(str(folder))
    with torch.no_grad():
        for one in backbone.parameters():  # biases and norms that count
            if one.ndim == 1:
                one.copy_(torch.linspace(0.5, 1.5, len(one)))
    return backbone


@torch.inference_mode()
def both(run: LeanPass, **options: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and memories of the compiled pass and of torch, from the same memories."""
    fast = run._compiled
    assert fast is not None
    layers, two, groups, size = run.memory_shape
    generator = torch.Generator().manual_seed(2)
    width = len(run.model.layers[0].before_feed.weight) if run.model.layers[0].before_feed else 0
    width = width or len(run.model.layers[0].after_feed.weight)  # type: ignore[union-attr]
    count = sum(new for _, new in ROWS)
    tokens = torch.randn(count, width, generator=generator)
    positions = torch.cat([torch.arange(known, known + new) for known, new in ROWS])
    known = [torch.randn(layers, two, groups, PLACES, size, generator=generator) for _ in ROWS]
    found = []
    for is_fast in (True, False):
        memories = [one.clone() for one in known]
        rows = [Row(one, *told) for one, told in zip(memories, ROWS, strict=True)]
        if is_fast:
            answers = fast(tokens, positions, rows, **options)
        else:
            run._compiled = None
            answers = run(tokens, positions, rows)
            run._compiled = fast
        found.append(torch.cat([answers.flatten(), *(one.flatten() for one in memories)]))
    return found[0], found[1]


@pytest.mark.parametrize("lanes", [1, 8, 16])
@pytest.mark.parametrize("weights", ["own", "int20", "int8"])
@pytest.mark.parametrize("family", LEAN_FAMILIES)
def test_it_gives_what_torch_gives(
    family: str, weights: str, lanes: int, widths: tuple[int, int, int], tmp_path: Path
) -> None:
    run = LeanPass(backbone_of(family, widths, tmp_path), weights=weights)  # type: ignore[arg-type]
    fast, slow = both(run, lanes=lanes)
    assert float((fast - slow).abs().max() / slow.abs().max()) < CLOSE


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, tmp_path: Path) -> None:
    run = LeanPass(backbone_of("bert", WIDTHS["even"], tmp_path))
    run.model = dataclasses.replace(run.model, activation=ACTIVATIONS[activation])
    run._compiled = compiled.compiled(run.model, 128)
    fast, slow = both(run)
    assert float((fast - slow).abs().max() / slow.abs().max()) < CLOSE


def test_threads_share_the_work(tmp_path: Path) -> None:
    run = LeanPass(backbone_of("gpt2", WIDTHS["even"], tmp_path))
    usual = torch.get_num_threads()
    alone = both(run)[0]
    try:
        torch.set_num_threads(3)
        assert torch.equal(both(run)[0], alone)
    finally:
        torch.set_num_threads(usual)


def test_what_is_not_a_number_stays_so(tmp_path: Path) -> None:
    run = LeanPass(backbone_of("bert", WIDTHS["even"], tmp_path))
    assert isinstance(run._compiled, CompiledPass)
    memory = torch.zeros(*run.memory_shape[:3], 4, run.memory_shape[3])
    tokens = torch.full((1, 128), torch.nan)
    assert (
        run._compiled(tokens, torch.zeros(1, dtype=torch.int64), [Row(memory, 0, 1)]).isnan().all()
    )


def test_a_token_without_a_place_is_told(tmp_path: Path) -> None:
    run = LeanPass(backbone_of("bert", WIDTHS["even"], tmp_path))
    memory = torch.zeros(*run.memory_shape[:3], 4, run.memory_shape[3])
    tokens, first = torch.zeros(1, 128), torch.zeros(1, dtype=torch.int64)
    for positions, row in ((first, Row(memory, 4, 1)), (first + 512, Row(memory, 0, 1))):
        with pytest.raises(CompiledError, match="a token has no place"):
            run(tokens, positions, [row])


def test_what_it_does_not_know_is_left_to_torch(
    make_backbone: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(make_backbone("bert", tmp_path / "bert"))
    assert LeanPass(load_backbone(f"{folder}:bf16"))._compiled is None
    run = LeanPass(load_backbone(folder))
    assert run._compiled is not None
    odd = dataclasses.replace(run.model, activation=torch.relu)
    assert compiled.compiled(odd, 16) is None
    monkeypatch.setattr(compiled, "load_library", lambda: None)
    for weights in ("own", "int20", "int8"):
        left = LeanPass(load_backbone(folder), weights=weights)
        assert left._compiled is None
        hidden = left(
            torch.ones(1, 16),
            torch.zeros(1, dtype=torch.int64),
            [Row(torch.zeros(2, 2, 2, 3, 8), 0, 1)],
        )
        assert hidden.shape == (1, 16)
