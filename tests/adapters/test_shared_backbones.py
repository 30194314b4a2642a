from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters import shared_backbones
from adapters.backbones import Backbone, BackboneError, add_lora, load_backbone, merge_lora
from adapters.checkpoints import load_checkpoint, save_checkpoint
from adapters.inference import Inference
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.pools import Pool
from adapters.shared_backbones import BackboneName
from player.observation import AbrObservation

LADDER = (300, 750, 1200, 1850, 2850, 4300)
TOKENS = 6
ALLOWED = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def hidden(backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        states: Tensor = backbone(
            torch.randn(1, TOKENS, backbone.hidden_size, generator=generator), ALLOWED
        )
    return states


def places(backbone: Backbone) -> set[int]:
    """Where the frozen weights lie in memory."""
    return {
        one.data_ptr()
        for key, one in backbone.named_parameters()
        if "lora_" not in key and one.numel()
    }


def adapt(backbone: Backbone, seed: int) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_lora(backbone, rank=2, alpha=4.0)
        for key, weight in backbone.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
    return backbone


def make_policy(backbone: Backbone | str, seed: int, inference: Inference = "full") -> AbrPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AbrModelConfig(levels_kbps=LADDER, block=3, feature_size=4, lora_rank=2)
        if isinstance(backbone, str):
            backbone = load_backbone(backbone)
        policy = AbrPolicy(config, backbone)
        for key, weight in policy.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
    return policy.freeze(inference)


@pytest.fixture(scope="module")
def observations(small_pool: Pool) -> list[AbrObservation]:
    episode = small_pool.episodes[0]
    return [episode.observation(index) for index in range(1, episode.chunks)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("minilm", BackboneName(source="minilm")),
        ("minilm:random-7", BackboneName(source="minilm", seed=7)),
        ("a/b:bf16", BackboneName(source="a/b", precision="bf16")),
        ("a/b:random-0:fp16", BackboneName(source="a/b", seed=0, precision="fp16")),
        ("a/b:4bit", BackboneName(source="a/b", precision="4bit")),
    ],
)
def test_names_are_read_and_spelled(text: str, name: BackboneName) -> None:
    assert BackboneName.parse(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("minilm:int2", "unknown precision 'int2'; known: fp32, bf16, fp16, 8bit, 4bit"),
        ("minilm:random-1:random-2", "says the same twice; a name is SOURCE"),
        ("minilm:bf16:fp16", "says the same twice"),
        ("minilm:random", "unknown backbone 'minilm:random'; known: .*':random-SEED'"),
        ("minilm:random-0:4bit", "random weights are not quantised"),
    ],
)
def test_wrong_names_are_refused(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(BackboneError, match=says):
        load_backbone(text)


def test_a_folder_may_be_called_like_a_suffix(
    make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_backbone("gpt2", tmp_path / "mine:random-3")
    assert load_backbone(str(folder)).name == str(folder)


def test_weights_are_in_memory_once(tiny_backbone: str) -> None:
    one, two, three = (load_backbone(tiny_backbone) for _ in range(3))
    assert places(one) == places(two) == places(three) == places(one.share())
    assert places(load_backbone(f"{tiny_backbone}:random-0")).isdisjoint(places(one))
    assert places(load_backbone(tiny_backbone, precision="bf16")).isdisjoint(places(one))


def test_threads_that_load_at_once_share(tiny_backbone: str) -> None:
    barrier, loaded = threading.Barrier(4), []

    def load() -> None:
        barrier.wait()
        loaded.append(load_backbone(f"{tiny_backbone}:random-11"))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert len({min(places(one)) for one in loaded}) == 1


def test_weights_go_with_the_last_backbone(tiny_backbone: str) -> None:
    before = set(shared_backbones._HELD)
    backbone = load_backbone(f"{tiny_backbone}:random-12")
    assert len(set(shared_backbones._HELD) - before) == 1
    other = backbone.share()
    del backbone
    gc.collect()
    assert len(set(shared_backbones._HELD) - before) == 1
    del other
    gc.collect()
    assert not set(shared_backbones._HELD) - before


def test_files_that_changed_are_read_again(
    make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    old = load_backbone(str(make_backbone("bert", tmp_path / "here", seed=1)))
    shutil.rmtree(tmp_path / "here")
    new = load_backbone(str(make_backbone("bert", tmp_path / "here", seed=2)))
    assert old.fingerprint != new.fingerprint


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_what_one_backbone_goes_through_no_other_notices(
    family: str, make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    """Training, merging and conversion of adapters beside each other."""
    bare = load_backbone(str(make_backbone(family, tmp_path / family)))
    first, second = adapt(bare.share(), 1), adapt(bare.share(), 2)
    states = {one: hidden(one) for one in (bare, first, second)}
    assert not torch.allclose(states[first], states[second], atol=1e-3)
    merge_lora(first)
    torch.testing.assert_close(hidden(first), states[first], atol=1e-5, rtol=1e-5)
    first.double()
    assert torch.equal(hidden(second), states[second])
    assert torch.equal(hidden(bare), states[bare])
    optimizer = torch.optim.SGD([one for one in second.parameters() if one.requires_grad], lr=1)
    second(torch.ones(1, TOKENS, bare.hidden_size), ALLOWED)[..., 0].mean().backward()
    optimizer.step()
    assert not torch.equal(hidden(second), states[second])
    assert torch.equal(hidden(bare), states[bare])


@pytest.mark.parametrize("inference", ["full", "auto"])
def test_adapters_in_two_threads_answer_as_each_alone(
    inference: Inference, tiny_backbone: str, observations: list[AbrObservation]
) -> None:
    alone = []
    for seed in (1, 2):
        policy = make_policy(tiny_backbone, seed, inference)
        alone.append([policy.answers([one]) for one in observations])
        del policy
    assert not torch.allclose(alone[0][0], alone[1][0], atol=1e-3)
    backbone = load_backbone(tiny_backbone)
    policies = [make_policy(backbone, seed, inference) for seed in (1, 2)]
    answers: list[list[Tensor]] = [[], []]
    barrier = threading.Barrier(2, timeout=20)

    def answer(place: int, asked: Sequence[AbrObservation]) -> None:
        for one in asked:
            barrier.wait()  # so that the two are always at it together
            answers[place].append(policies[place].answers([one]))

    threads = [threading.Thread(target=answer, args=(place, observations)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, expected in zip(answers, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_one_learns_while_the_other_answers(
    tiny_backbone: str, observations: list[AbrObservation]
) -> None:
    """With gradient checkpointing, whose backward pass runs the model once more."""
    backbone = load_backbone(tiny_backbone)
    answering = make_policy(backbone, 1)
    expected = answering.answers(observations)

    def learn() -> dict[str, Tensor]:
        student = adapt(backbone.share(), 2)
        student.enable_gradient_checkpointing()
        student.train()
        for _ in range(5):
            student(torch.ones(2, TOKENS, 16), ALLOWED)[..., 0].square().mean().backward()
        return {key: one.grad for key, one in student.named_parameters() if one.grad is not None}

    alone, beside = learn(), []
    thread = threading.Thread(target=lambda: beside.append(learn()))
    thread.start()
    while thread.is_alive():
        assert torch.equal(answering.answers(observations), expected)
    thread.join()
    assert beside[0].keys() == alone.keys() != set()
    assert all(torch.equal(beside[0][key], alone[key]) for key in alone)


def test_random_weights_have_a_name_and_a_fingerprint(tiny_backbone: str) -> None:
    state = torch.random.get_rng_state()
    drawn = load_backbone(tiny_backbone, random_weights=True, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)  # whoever trains keeps its seed
    assert drawn.name == f"{tiny_backbone}:random-4"
    again = load_backbone(drawn.name)
    other = load_backbone(tiny_backbone, random_weights=True, seed=5)
    pretrained = load_backbone(tiny_backbone)
    assert drawn.fingerprint == again.fingerprint
    assert len({one.fingerprint for one in (drawn, other, pretrained)}) == 3
    assert not torch.allclose(hidden(drawn), hidden(pretrained), atol=1e-2)


def test_random_weights_need_a_configuration_only(
    make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    (make_backbone("gpt2", tmp_path) / "model.safetensors").unlink()
    assert load_backbone(f"{tmp_path}:random-0").family == "gpt2"


@pytest.mark.parametrize("suffix", [":random-0", ":bf16", ":random-1:bf16"])
def test_a_checkpoint_finds_its_backbone_by_its_name(
    suffix: str, tiny_backbone: str, tmp_path: Path, observations: list[AbrObservation]
) -> None:
    config = AbrModelConfig(levels_kbps=LADDER, block=3, feature_size=4, lora_rank=2)
    policy = AbrPolicy(config, load_backbone(tiny_backbone + suffix))
    rounded = {key: value.half().float() for key, value in policy.adapter_state().items()}
    policy.load_state_dict(rounded, strict=False)  # as they are stored
    save_checkpoint(tmp_path, policy, {})
    loaded = load_checkpoint(str(tmp_path), inference="full")
    assert loaded.backbone.name == tiny_backbone + suffix
    assert torch.equal(loaded.answers(observations), policy.freeze("full").answers(observations))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_its_adapters_are_not_halved(
    precision: shared_backbones.Precision, tiny_backbone: str
) -> None:
    full = load_backbone(tiny_backbone)
    half = adapt(load_backbone(tiny_backbone, precision=precision), 1)
    assert half.dtype == shared_backbones.DTYPES[precision]
    adapters = [one for key, one in half.named_parameters() if "lora_" in key]
    assert {one.dtype for one in adapters} == {torch.float32}
    expected = hidden(adapt(full, 1))
    states = hidden(half)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, expected, atol=0.1, rtol=0.1)
    merge_lora(half)  # would round the updates away
    assert torch.equal(hidden(half), states)
    half(torch.ones(1, TOKENS, 16), ALLOWED)[..., 0].mean().backward()
    assert all(one.grad is not None for one in adapters)


def test_quantised_weights_name_what_they_need(
    tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError, match="4bit weights need a GPU: torch finds no GPU"):
        load_backbone(f"{tiny_backbone}:4bit")
    with pytest.raises(BackboneError, match="8bit weights need a GPU, not 'cpu'"):
        load_backbone(f"{tiny_backbone}:8bit", device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(shared_backbones.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackboneError, match=r"pip install 'netllm-testbed\[gpu\]'"):
        load_backbone(tiny_backbone, precision="4bit")


def test_devices_that_are_not_there_are_told(
    tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError, match="device 'cuda': torch finds no GPU"):
        load_backbone(tiny_backbone, device="cuda")
    with pytest.raises(BackboneError, match="unknown device 'gpu'; known: cpu, cuda"):
        load_backbone(tiny_backbone, device="gpu")


def test_matrices_lie_by_columns(tiny_backbone: str) -> None:
    """A few tokens are multiplied faster so."""
    model = load_backbone(tiny_backbone).model
    matrices = [one.weight for one in model.modules() if isinstance(one, torch.nn.Linear)]
    assert all(weight.t().is_contiguous() for weight in matrices)
