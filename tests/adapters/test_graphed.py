"""Steps in memory of fixed length: exact, and nothing in them but work on tensors that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.backbones import FAMILIES, Backbone, BackboneError, add_lora, load_backbone
from adapters.graphed import (
    POSITIONS,
    GraphedLeanPass,
    GraphedLibraryPass,
    Run,
    Together,
    graphed_pass,
    uncaptured,
)
from adapters.inference import CachedInference
from adapters.lean import LEAN_FAMILIES
from adapters.passes import LeanEncoder, LeanPass, Pass, Row
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.pools import Pool
from adapters.tokens import NETLLM, window_start, window_steps
from player.observation import HISTORY_LIMIT, AbrObservation

BLOCK = 3
EXACT = 1e-4
#: Largest difference to the full pass, over the largest value.
CLOSE = {"fp32": 1e-5, "bf16": 3e-2}
TOKENS = 20
#: Two of as many new tokens: the second is a replay.
GOES = ((0, 7), (7, 8), (8, 15), (15, 16), (16, TOKENS))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
Precision = Literal["fp32", "bf16"]


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Captures as a CUDA graph does: what is replayed are operations on memory, no Python.

    What would have to wait for the GPU, as reading a number, is refused, as it is there.
    """

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.WAITS, f"{func} cannot be captured"
        made = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        for func, args, kwargs, made in self.done:
            if any(
                "alias" in str(one.alias_info) or one.alias_info for one in func._schema.returns
            ):
                if func._schema.is_mutable:
                    func(*args, **kwargs)
                continue  # a view is still one
            again = func(*args, **kwargs)
            outputs = made if isinstance(made, tuple) else (made,)
            for old, new in zip(
                outputs, again if isinstance(again, tuple) else (again,), strict=True
            ):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


def taped(run: Run) -> Run:
    tape = Tape()
    run()
    with tape:
        run()
    return tape.replay


@pytest.fixture(scope="module")
def folders(
    make_backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return {
        one: str(make_backbone(one, tmp_path_factory.mktemp(f"graphed-{one}"))) for one in FAMILIES
    }


@pytest.fixture(scope="module")
def sessions(small_pool: Pool) -> list[list[AbrObservation]]:
    return [
        [episode.observation(index) for index in range(1, episode.chunks)]
        for episode in small_pool.episodes[:3]
    ]


def updated(backbone: Backbone) -> Backbone:
    """A backbone with updates that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        add_lora(backbone, rank=2, alpha=4.0)
        for key, weight in backbone.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
    return backbone.requires_grad_(False)


def make_pass(backbone: Backbone, capture: Callable[[Run], Run] | None) -> Any:
    made = GraphedLeanPass if backbone.family in LEAN_FAMILIES else GraphedLibraryPass
    return made(backbone, capture=capture)


@torch.inference_mode()
def difference(run: Pass, backbone: Backbone) -> float:
    """Largest difference between a sequence in several goes and the full pass."""
    device = next(backbone.parameters()).device
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(TOKENS, backbone.hidden_size, generator=generator).to(device)
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=device).tril()
    full = backbone(tokens[None], causal)[0]
    layers, two, heads, width = run.memory_shape
    memory = torch.full((layers, two, heads, TOKENS + 1, width), torch.nan, device=device)
    found = [
        run(
            tokens[begin:end],
            torch.arange(begin, end, device=device),
            [Row(memory, begin, end - begin)],
        )[0]
        for begin, end in GOES
    ]
    expected = full[[end - 1 for _, end in GOES]]
    return float((torch.stack(found) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("capture", [uncaptured, taped])
def test_steps_give_what_the_whole_sequence_gives(
    capture: Callable[[Run], Run], family: str, precision: Precision, folders: dict[str, str]
) -> None:
    """With updates beside the weights."""
    backbone = updated(load_backbone(folders[family], precision=precision))
    run = make_pass(backbone, capture)
    assert difference(run, load_backbone(backbone.name)) > CLOSE["fp32"] * 10  # the updates show
    assert difference(run, backbone) < CLOSE[precision]
    assert run.single.captured == (7, 1, 4)  # one per number of new tokens


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_give_what_the_whole_sequence_gives(
    family: str, precision: Precision, folders: dict[str, str]
) -> None:
    backbone = updated(load_backbone(folders[family], precision=precision, device="cuda"))
    run: Any = graphed_pass(backbone)
    for _ in range(3):
        assert difference(run, backbone) < CLOSE[precision]
    assert run.single.captured == (7, 1, 4)


def answering(policy: AbrPolicy, run: Pass) -> CachedInference:
    """What ``freeze`` makes for other passes."""
    encoder, head = policy.encoder, policy.head
    assert isinstance(head, torch.nn.Linear)
    return CachedInference(
        encode=LeanEncoder(encoder, 0.0),  # type: ignore[arg-type]
        run=run,
        answer=head,
        layout=NETLLM,
        block=BLOCK,
        device=policy.device,
    )


def frozen_policy(folder: str, levels_kbps: Sequence[float]) -> AbrPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AbrModelConfig(
            levels_kbps=tuple(levels_kbps), block=BLOCK, feature_size=8, lora_rank=2
        )
        policy = AbrPolicy(config, load_backbone(folder))
        for key, weight in policy.named_parameters():
            if "lora_B" in key or key.startswith("head"):
                torch.nn.init.normal_(weight, std=0.3)
    return policy.freeze("full")


@pytest.mark.parametrize("capture", [uncaptured, taped])
@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "llama", "mistral", "qwen3"])
def test_whole_sessions_in_turns_as_windows_move(
    family: str,
    capture: Callable[[Run], Run],
    folders: dict[str, str],
    sessions: list[list[AbrObservation]],
) -> None:
    policy = frozen_policy(folders[family], sessions[0][0].levels_kbps)
    run = make_pass(policy.backbone, capture)
    inference = answering(policy, run)
    chunks = len(sessions[0])
    assert chunks > 3 * BLOCK  # windows move twice and more
    for observation in sessions[0]:
        expected = policy.answers([observation])
        torch.testing.assert_close(inference.answers([observation]), expected, atol=EXACT, rtol=0)
    # New tokens of the first step, of each further one, and of windows that have moved on.
    moved = [
        NETLLM.known(step - window_start(step, BLOCK)) + 1
        for step in range(BLOCK, chunks + 1)
        if step % BLOCK == 0
    ]
    assert set(run.single.captured) == {
        NETLLM.known(1) + 1,
        NETLLM.kept + 1,
        *(one for one in moved if one > NETLLM.known(BLOCK - 1)),
    }
    captured = run.single.captured
    for together in zip(*sessions[1:], strict=True):
        for observation in together:
            found = inference.answers([observation])
            torch.testing.assert_close(found, policy.answers([observation]), atol=EXACT, rtol=0)
        both = inference.answers(together)
        torch.testing.assert_close(both, policy.answers(together), atol=EXACT, rtol=0)
    assert set(run.single.captured) <= {1, *captured}  # asked again: only the sizes


def test_nothing_of_one_row_reaches_another(folders: dict[str, str]) -> None:
    """Not even what cannot be computed with."""
    backbone = load_backbone(folders["gpt2"])
    run = GraphedLeanPass(backbone, capture=taped)
    expected = difference(run, backbone)
    shape = (*run.memory_shape[:3], TOKENS + 1, run.memory_shape[3])
    broken = torch.full((TOKENS, backbone.hidden_size), torch.nan)
    run(broken, torch.arange(TOKENS), [Row(torch.zeros(shape), 0, TOKENS)])
    assert difference(run, backbone) == expected


def test_longer_rows_get_more_memory(folders: dict[str, str]) -> None:
    backbone = load_backbone(folders["llama"])
    run = GraphedLeanPass(backbone, capture=taped)
    layers, two, heads, width = run.memory_shape
    short = Row(torch.zeros(layers, two, heads, 4, width), 0, 4)
    run(torch.ones(4, backbone.hidden_size), torch.arange(4), [short])
    assert set(run.single.captured) == {4}
    assert difference(run, backbone) < CLOSE["fp32"]
    assert set(run.single.captured) == {7, 1, 4}


@pytest.mark.parametrize("family", LEAN_FAMILIES)
def test_no_weight_is_copied(family: str, folders: dict[str, str]) -> None:
    backbone = updated(load_backbone(folders[family]))
    run = GraphedLeanPass(backbone)
    own = {one.data_ptr() for one in backbone.parameters()}
    for layer in run.model.layers:
        assert isinstance(layer.qkv, Together)
        for module in (*layer.qkv.modules, layer.out, layer.up, layer.down, layer.gate):
            if isinstance(module, torch.nn.Module):
                assert {one.data_ptr() for one in module.parameters()} <= own
        assert layer.qkv.update is not None


def test_rows_together_are_packed_as_ever(folders: dict[str, str]) -> None:
    backbone = updated(load_backbone(folders["mistral"]))
    passes = [GraphedLeanPass(backbone), LeanPass(backbone)]
    shape = (*passes[0].memory_shape[:3], 8, passes[0].memory_shape[3])
    tokens = torch.randn(7, backbone.hidden_size, generator=torch.Generator().manual_seed(3))
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    with torch.inference_mode():
        one, other = (
            run(tokens, positions, [Row(torch.zeros(shape), 0, 4), Row(torch.zeros(shape), 0, 3)])
            for run in passes
        )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_does_not_work_is_told(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackboneError, match=r"'phi'.* for bert, gpt2"):
        GraphedLeanPass(load_backbone(folders["phi"]))
    assert isinstance(graphed_pass(load_backbone(folders["phi"])), GraphedLibraryPass)
    with monkeypatch.context() as patch:
        patch.setattr(GraphedLibraryPass, "_forward", lambda *_: None)
        with pytest.raises(BackboneError, match="keeps no keys for the family 'phi'"):
            GraphedLibraryPass(load_backbone(folders["phi"]))
    backbone = updated(load_backbone(folders["bert"]))
    for module in backbone.modules():
        if isinstance(module, LoraLayer):
            module.merged_adapters[:] = ["other"]
    with pytest.raises(BackboneError, match="other are merged; no pass for 'default'"):
        GraphedLeanPass(backbone)


def test_windows_fit_the_rotary_table() -> None:
    longest = HISTORY_LIMIT // 2  # of blocks, as ``AbrModelConfig`` has it
    assert window_steps(longest) * NETLLM.step_tokens <= POSITIONS
