"""Answers from kept keys and values are those of the full pass, whatever was asked before."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.backbones import load_backbone
from adapters.compiled import load_library
from adapters.features import StepFeatures, window_features
from adapters.inference import CachedInference, Inference, Prefix, PrefixCache, prefixes
from adapters.passes import Row
from adapters.policy import AbrModelConfig, AbrPolicy
from adapters.pools import Pool
from adapters.tokens import LAYOUTS, NETLLM, window_start, window_steps
from player.observation import AbrObservation, PastChunk

BLOCK = 3
LEVELS_KBPS = (300, 750, 1200, 1850, 2850, 4300)
EXACT = 1e-4
#: A session of each family's way; the others of a way differ in their passes only.
FAMILIES: dict[str, Inference] = {"bert": "lean", "gpt2": "lean", "llama": "cached"}


KEPT = NETLLM.kept
LayoutName = Literal["netllm", "forecast"]


def make_policy(
    backbone: str,
    *,
    entries: int = 1000,
    way: Inference | Literal["auto"] = "full",
    layout: LayoutName = "netllm",
) -> AbrPolicy:
    """A frozen policy with random updates and head; ``entries`` windows of a cache."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AbrModelConfig(
            levels_kbps=LEVELS_KBPS,
            layout=layout,
            block=BLOCK,
            feature_size=8,
            lora_rank=2,
            return_target=0.6 if layout == "netllm" else None,
        )
        policy = AbrPolicy(config, load_backbone(backbone))
        for key, weight in policy.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
        for weight in policy.head.parameters():
            torch.nn.init.normal_(weight, std=1.0)
    # Of the tiny models: 2 layers of 16 keys and values per token.
    tokens = LAYOUTS[layout].known(window_steps(BLOCK) - 1) + 1
    return policy.freeze(way, cache_bytes=entries * tokens * 2 * 2 * 16 * 4)


def cached(policy: AbrPolicy) -> CachedInference:
    inference = policy._cached
    assert inference is not None
    return inference


@pytest.fixture(scope="module")
def folders(
    make_backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return {one: str(make_backbone(one, tmp_path_factory.mktemp(one))) for one in FAMILIES}


@pytest.fixture(scope="module")
def full(tiny_backbone: str) -> AbrPolicy:
    return make_policy(tiny_backbone)


@pytest.fixture(scope="module")
def sessions(small_pool: Pool) -> list[list[AbrObservation]]:
    return [
        [episode.observation(index) for index in range(1, episode.chunks)]
        for episode in small_pool.episodes[:4]
    ]


@pytest.fixture(scope="module")
def varied(sessions: list[list[AbrObservation]]) -> list[AbrObservation]:
    """Sessions, and for each of their states some that differ in one thing, old or new."""
    found = [one for session in sessions for one in session]
    for one in [one for session in sessions[:2] for one in session]:
        found += [dataclasses.replace(one, buffer_s=one.buffer_s + 1.0), *other_pasts(one)]
        found.append(dataclasses.replace(one, upcoming_sizes_bytes=one.upcoming_sizes_bytes[:1]))
    return found


def other_pasts(one: AbrObservation) -> Iterator[AbrObservation]:
    """Histories with another last chunk, and with another first one."""
    for place in {0, len(one.history) - 1}:
        chunk = one.history[place]
        for changed in (
            dataclasses.replace(chunk, level=(chunk.level + 1) % len(LEVELS_KBPS)),
            dataclasses.replace(chunk, download_s=chunk.download_s * 2),
            dataclasses.replace(chunk, buffer_s=chunk.buffer_s + 3),
        ):
            history = (*one.history[:place], changed, *one.history[place + 1 :])
            yield dataclasses.replace(one, history=history)


def check(policy: AbrPolicy, full: AbrPolicy, asked: Sequence[AbrObservation]) -> None:
    expected = full.answers(asked)
    torch.testing.assert_close(policy.answers(asked), expected, atol=EXACT, rtol=0)
    if policy.config.layout == "netllm":  # what is planned is a function of the answers
        assert policy.decide_many(asked) == full.decide_many(asked)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("family", "way"), [*FAMILIES.items(), ("bert", "int20"), ("gpt2", "int20")]
)
def test_whole_sessions_one_by_one_and_side_by_side(
    family: str,
    way: Inference,
    layout: LayoutName,
    folders: dict[str, str],
    sessions: list[list[AbrObservation]],
) -> None:
    full = make_policy(folders[family], layout=layout)
    policy = make_policy(folders[family], way=way, layout=layout)
    assert (full.inference, policy.inference) == ("full", way)
    for observation in sessions[0]:
        check(policy, full, [observation])
    for together in zip(*sessions, strict=True):
        check(policy, full, together)


@pytest.mark.skipif(load_library() is None, reason="the compiled pass is not built")
def test_auto_rounds_models_of_middle_size(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(one.nbytes for one in make_policy(folders["gpt2"]).backbone.parameters())
    for sizes, way in (
        (range(size, size + 1), "int20"),
        (range(size + 1, 2 * size), "lean"),
        (range(size), "lean"),
    ):
        monkeypatch.setattr("adapters.inference.ROUNDED_BYTES", sizes)
        assert make_policy(folders["gpt2"], way="auto").inference == way


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("entries", [1, 3, 1000])
def test_any_order_and_any_batches(
    family: str,
    layout: LayoutName,
    entries: int,
    folders: dict[str, str],
    varied: list[AbrObservation],
) -> None:
    """Repeated and diverging histories, in batches that mix them, with caches of any size."""
    full = make_policy(folders[family], layout=layout)
    policy = make_policy(folders[family], entries=entries, way=FAMILIES[family], layout=layout)
    rng = np.random.default_rng(entries)
    expected = full.answers(varied)
    assert len(torch.unique(expected, dim=0)) > 20  # the test is not vacuous
    for _ in range(60):
        picked = rng.integers(0, len(varied), size=rng.integers(1, 9))
        asked = [varied[index] for index in (*picked, picked[0])]
        logits = policy.answers(asked)
        torch.testing.assert_close(logits, expected[[*picked, picked[0]]], atol=EXACT, rtol=0)
        assert len(cached(policy).cache) <= entries
    start = rng.integers(0, len(varied) - 12)
    check(policy, full, varied[start : start + 12])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_interleaved_sessions(
    data: st.DataObject, tiny_backbone: str, sessions: list[list[AbrObservation]], full: AbrPolicy
) -> None:
    """Each session goes forward in its order; who is asked with whom is anyone's guess."""
    policy = make_policy(tiny_backbone, entries=data.draw(st.integers(1, 6)), way="lean")
    at = [0] * len(sessions)
    for _ in range(data.draw(st.integers(1, 8))):
        who = data.draw(st.lists(st.sampled_from(range(len(sessions))), min_size=1, max_size=6))
        check(policy, full, [sessions[index][at[index]] for index in who])
        for index in set(who):
            at[index] = min(at[index] + 1, len(sessions[index]) - 1)


def test_only_new_tokens_are_computed(
    tiny_backbone: str, sessions: list[list[AbrObservation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_backbone, way="lean")
    inference, computed = cached(policy), []
    run = inference._run

    def counting(tokens: torch.Tensor, positions: torch.Tensor, rows: Sequence[Row]) -> object:
        computed.append([row.new for row in rows])
        return run(tokens, positions, rows)

    monkeypatch.setattr(inference, "_run", counting)
    for observation in sessions[0]:
        policy.decide(observation)
        policy.decide(observation)
        first, again = computed[-2:]
        step = observation.chunk_index
        within, end = step % BLOCK, step // BLOCK * BLOCK + BLOCK
        prepared = (BLOCK - 1) // 2  # steps of the next window, in the middle of a block
        if step == 1:
            expected = KEPT * 2
        elif step > BLOCK and within == 0:
            expected = KEPT * (BLOCK - prepared) + 1
        else:
            expected = KEPT + 1
        goes_on = step + observation.chunks_left > end
        prepares = step > BLOCK and within == prepared and goes_on
        assert first == [expected, *([KEPT * (prepared + 1)] if prepares else [])]
        assert again == [1]  # the sizes
    policy.decide_many([sessions[1][4]] * 5)
    assert computed[-1] == [KEPT * (5 - window_start(5, BLOCK) + 1)]  # once for all


def test_equal_prefixes_have_equal_features_and_changes_other_prefixes(
    varied: list[AbrObservation],
) -> None:
    """The key holds all that enters the tokens which it stands for."""
    by_prefix: dict[Prefix, list[bytes]] = {}
    hits = 0
    for observation in varied:
        steps = window_features(observation, BLOCK)
        for prefix in prefixes(observation, BLOCK):
            content = [
                getattr(steps, field.name)[: prefix.steps + (field.name != "action")].tobytes()
                for field in dataclasses.fields(StepFeatures)
                if field.name != "sizes"
            ]
            hits += prefix in by_prefix
            assert by_prefix.setdefault(prefix, content) == content
    assert hits > 100
    one = varied[8]
    longest = next(prefixes(one, BLOCK))
    ladder = tuple(rate + 1 for rate in one.levels_kbps)
    others = [
        dataclasses.replace(one, chunks_left=one.chunks_left + 1),
        dataclasses.replace(one, levels_kbps=ladder),
        dataclasses.replace(one, buffer_s=one.buffer_s + 1),
        *other_pasts(one),
    ]
    assert longest not in [next(prefixes(other, BLOCK)) for other in others]


def key(number: int) -> Prefix:
    return Prefix((300.0,), number, 9, 1.0, (PastChunk(0, 1, 1.0, 0.0, 1.0),))


def test_the_least_recently_used_is_dropped() -> None:
    cache = PrefixCache((2, 3), 3 * 24, torch.device("cpu"))
    assert (cache.entry_bytes, cache.limit) == (24, 3)
    memories = {}
    for number in range(3):
        memories[number], found = cache.claim([key(number)], claimed=0)
        assert found is None
        cache.keep(key(number), memories[number])
    memory, found = cache.claim([key(0)], claimed=0)
    assert memory is memories[0]
    assert found == key(0)
    cache.keep(key(0), memory)
    newest, found = cache.claim([key(7)], claimed=0)  # full: takes over the memory of 1
    assert newest is memories[1]
    assert found is None
    cache.keep(key(7), newest)
    assert len(cache) == 3
    assert cache.claim([key(1)], claimed=0)[1] is None


def test_who_claims_owns() -> None:
    cache = PrefixCache((1,), 4 * 2, torch.device("cpu"))
    cache.keep(key(1), torch.zeros(1))
    memory, found = cache.claim([key(2), key(1)], claimed=0)
    assert found == key(1)
    other, found = cache.claim([key(1)], claimed=1)
    assert other is not memory
    assert found is None


def test_the_bound_holds(tiny_backbone: str, varied: list[AbrObservation]) -> None:
    policy = make_policy(tiny_backbone, entries=2, way="lean")
    cache = cached(policy).cache
    policy.answers(varied)
    kept = [cache.claim(prefixes(one, BLOCK), claimed=0)[1] for one in varied]
    assert sum(found is not None for found in kept) <= cache.limit == 2
    with pytest.raises(ValueError, match=r"a cache of 0 bytes holds no window; one takes \d+"):
        make_policy(tiny_backbone, entries=0, way="lean")


def test_an_error_spoils_nothing(
    tiny_backbone: str,
    full: AbrPolicy,
    sessions: list[list[AbrObservation]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy(tiny_backbone, entries=4, way="lean")
    inference = cached(policy)
    run = inference._run

    def failing(tokens: torch.Tensor, positions: torch.Tensor, rows: Sequence[Row]) -> object:
        run(tokens + 1, positions, rows)  # leaves wrong keys behind
        raise RuntimeError("out of memory")

    for index in range(len(sessions[0])):
        asked = [session[index] for session in sessions[:2]]
        if index % 3 == 1:
            with monkeypatch.context() as patch:
                patch.setattr(inference, "_run", failing)
                with pytest.raises(RuntimeError, match="out of memory"):
                    policy.answers(asked)
        check(policy, full, asked)


def test_threads_may_share_it(
    tiny_backbone: str, full: AbrPolicy, sessions: list[list[AbrObservation]]
) -> None:
    policy = make_policy(tiny_backbone, entries=3, way="lean")
    answers: dict[int, list[torch.Tensor]] = {}

    def ask(index: int) -> None:
        answers[index] = [policy.answers([one]) for one in sessions[index % 2]]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        expected = full.answers(sessions[index % 2])
        torch.testing.assert_close(torch.cat(answers[index]), expected, atol=EXACT, rtol=0)


def test_training_on_drops_what_was_kept(tiny_backbone: str) -> None:
    policy = make_policy(tiny_backbone, way="lean")
    assert policy.train().inference == "full"
    assert policy._cached is None


def test_a_window_longer_than_the_history_told_is_refused() -> None:
    with pytest.raises(ValueError, match="block must be at most 32, is 33"):
        AbrModelConfig(levels_kbps=LEVELS_KBPS, block=33)
