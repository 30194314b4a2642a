"""The lean pass of every family that has one, over weights that adapters share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.backbones import Backbone, BackboneError, add_lora, load_backbone, merge_lora
from adapters.lean import LEAN_FAMILIES
from adapters.passes import LeanPass, Row
from adapters.products import (
    GROUP,
    INPUTS,
    PANEL,
    UNIT,
    Dense,
    IntegerWeight,
    Rounded,
    in_blocks,
    pack,
    unpack,
)

TOKENS = 20
GOES = ((0, 7), (7, 15), (15, 16), (16, TOKENS))
#: Largest difference to the full pass, over the largest value.
CLOSE = {"fp32": 1e-5, "bf16": 3e-2}
INT8_CLOSE = 2e-2


@pytest.fixture(scope="module")
def folders(
    make_backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return {
        one: str(make_backbone(one, tmp_path_factory.mktemp(f"lean-{one}")))
        for one in LEAN_FAMILIES
    }


def updated(backbone: Backbone, seed: int, name: str = "default") -> Backbone:
    """A backbone with updates that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_lora(backbone, rank=2, alpha=4.0, name=name)
        for key, weight in backbone.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
    return backbone.requires_grad_(False)


@torch.inference_mode()
def difference(run: LeanPass, backbone: Backbone) -> float:
    """Largest difference between a sequence in several goes and the full pass."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(TOKENS, backbone.hidden_size, generator=generator)
    full = backbone(tokens[None], torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())[0]
    layers, two, heads, width = run.memory_shape
    memory = torch.full((layers, two, heads, TOKENS, width), torch.nan)
    found = [
        run(tokens[begin:end], torch.arange(begin, end), [Row(memory, begin, end - begin)])[0]
        for begin, end in GOES
    ]
    expected = full[[end - 1 for _, end in GOES]]
    return float((torch.stack(found) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", LEAN_FAMILIES)
def test_updates_count_whether_merged_or_not(
    family: str, precision: str, folders: dict[str, str]
) -> None:
    backbone = updated(load_backbone(f"{folders[family]}:{precision}".removesuffix(":fp32")), 1)
    unmerged = LeanPass(backbone)
    plain = load_backbone(backbone.name)
    assert difference(unmerged, plain) > CLOSE["fp32"] * 10  # the updates show
    assert difference(unmerged, backbone) < CLOSE[precision]
    merge_lora(backbone)
    assert difference(LeanPass(backbone), backbone) < CLOSE[precision]
    assert difference(unmerged, backbone) < CLOSE[precision]


@pytest.mark.parametrize("family", LEAN_FAMILIES)
def test_int8_is_close(family: str, folders: dict[str, str]) -> None:
    backbone = updated(load_backbone(folders[family]), 1)
    found = difference(LeanPass(backbone, weights="int8"), backbone)
    assert 0 < found < INT8_CLOSE


def test_adapters_share_all_but_the_fused_projections(folders: dict[str, str]) -> None:
    first = updated(load_backbone(folders["bert"]), 1, "first")
    second = updated(first.share(), 2, "second")
    passes = [LeanPass(one) for one in (first, second)]
    for name in ("out", "up", "down", "qkv"):
        one, other = (getattr(run.model.layers[0], name) for run in passes)
        assert isinstance(one, Dense)
        shared = one.weight.data_ptr() == other.weight.data_ptr()
        assert shared == (name != "qkv")
    for run, backbone in zip(passes, (first, second), strict=True):
        assert difference(run, backbone) < CLOSE["fp32"]
    assert difference(passes[0], second) > CLOSE["fp32"] * 10
    integers = [LeanPass(one, weights="int8").model.layers[0] for one in (first, second)]
    assert isinstance(integers[0].up, Rounded)
    assert isinstance(integers[1].up, Rounded)
    assert integers[0].up.weight is integers[1].up.weight


def test_training_goes_on_behind_a_pass_made_while_answering(folders: dict[str, str]) -> None:
    backbone = updated(load_backbone(folders["bert"]), 1)
    with torch.inference_mode():
        LeanPass(backbone)
    trained = [one.requires_grad_() for key, one in backbone.named_parameters() if "lora" in key]
    tokens = torch.ones(1, 4, backbone.hidden_size)
    backbone(tokens, torch.ones(4, 4, dtype=torch.bool)).sum().backward()
    assert any(one.grad is not None for one in trained)


def test_other_updates_in_the_weights_are_refused(folders: dict[str, str]) -> None:
    backbone = updated(load_backbone(folders["bert"]), 1, "first")
    merge_lora(backbone)
    for module in backbone.modules():
        if hasattr(module, "merged_adapters"):
            module.merged_adapters[:] = ["other"]
    with pytest.raises(BackboneError, match="other are merged; no pass for 'first'"):
        LeanPass(backbone)


@pytest.mark.parametrize("count", [1, 2, 15, 16])
@pytest.mark.parametrize(("out", "size"), [(1152, 384), (6, 5), (7, 16)])
def test_products_are_products_in_any_storage(count: int, out: int, size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((count, size), (out, size), (out,))
    )
    expected = torch.nn.functional.linear(inputs, weight, bias)
    found = [
        in_blocks(inputs, weight, bias),
        Dense(weight.t(), bias)(inputs),
        Dense(weight.t().contiguous(), bias)(inputs),
        Dense(weight.t(), None)(inputs) + bias,
    ]
    for one in found:
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.5001), (20, 0.6)])  # in units of the last bit
def test_integers_are_rounded_by_output_and_group_of_inputs(bits: int, limit: float) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(GROUP + 5, 48, generator=generator) * torch.logspace(-3, 3, 48)
    weight[GROUP:] *= 1e-4
    weight[:, 7] = 0
    rounded = IntegerWeight.of(weight, bits)
    found = rounded.floats()
    for part in (slice(0, GROUP), slice(GROUP, None)):
        steps = weight[part].abs().amax(0) / (2 ** (bits - 1) - 1)
        assert bool(((found[part] - weight[part]).abs() <= limit * steps + 1e-20).all())
    bias = torch.randn(48, generator=generator)
    inputs = torch.randn(9, len(weight), generator=generator)
    torch.testing.assert_close(Rounded(rounded, bias)(inputs), inputs @ found + bias)
    torch.testing.assert_close(Rounded(rounded, None)(inputs), inputs @ found)


def test_the_largest_integers_of_20_bits_are_packed() -> None:
    largest = 2.0**19 - 1
    exact = torch.full((1, 2 * INPUTS, PANEL), largest)
    exact[:, ::2] = -largest
    exact[:, 3] = 0.5
    found = unpack(pack(exact)) / UNIT
    assert bool(((found - exact).abs() <= 0.5).all())
