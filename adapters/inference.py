"""Answers of the adapted model from kept keys and values of past tokens: exact, only faster.

Two facts of the layout (``adapters.tokens``) make it exact. The window of a step starts at a place
that depends on the step's index alone, so the tokens of the window before stand where they stood;
and nothing looks at the sizes of a past step, so what is left of the past is plainly causal (see
``adapters.passes``). What is kept of a window is therefore seven tokens per past step, without
the sizes:

    step 0: R b B t d c a | step 1: R b B t d c a | … | the step to decide: R b B t d c  +  sizes
    └─────────────────────── kept, with the state of this step ───────────────────────┘

The sizes are computed at the place where the action will stand, and overwritten by it.

What is kept is found by its content: all that enters its tokens is the key, and keys are compared,
so no answer can come from another history, and no session needs a name.

As the window moves on by a block, its tokens stand elsewhere and are computed anew. Our own passes
do half of that before: in the middle of a block, the tokens so far are also computed for where they
will stand in the next window. So two decisions of a block take somewhat longer, and none very long.

(The picture is of the layout ``netllm``; in ``forecast`` a step is one token, which is kept.)
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from adapters.backbones import Backbone, BackboneError
from adapters.compiled import load_library
from adapters.features import PAST_CHUNKS, StepFeatures, window_features
from adapters.graphed import graphed_pass
from adapters.passes import LeanPass, LibraryPass, Pass, Row
from adapters.tokens import Layout, window_start, window_steps
from player.observation import AbrObservation, PastChunk

#: How answers are computed: ``lean`` and ``cached`` keep keys and values, the one through our own
#: pass, the other through the library's; ``int20`` is ``lean`` with weights rounded so little that
#: it is as close as an exact pass, and ``int8`` close but not exact; ``graphed`` runs in memory of
#: fixed length, on a GPU as one captured step; ``full`` recomputes the window.
Inference = Literal["graphed", "lean", "int20", "cached", "int8", "full"]
PASSES: dict[Inference, Callable[[Backbone], Pass]] = {
    "graphed": graphed_pass,
    "lean": LeanPass,
    "cached": LibraryPass,
    "int20": functools.partial(LeanPass, weights="int20"),
    "int8": functools.partial(LeanPass, weights="int8"),
}
#: Those that ``auto`` tries in turn, by the kind of device.
EXACT_PASSES: dict[str, tuple[Inference, ...]] = {
    "cpu": ("lean", "cached"),
    "cuda": ("graphed", "lean", "cached"),
}
#: Bytes of a model of float32 for which ``auto`` takes ``int20`` on a CPU: with fewer, reading the
#: weights is not what takes the time, and a copy of more (66 %) is for the user to ask for.
ROUNDED_BYTES = range(128 * 2**20, 1024 * 2**20 + 1)
#: Those that begin the next window in the middle of a block: for which two rows together take less
#: time than one after the other.
PREPARING: tuple[Inference, ...] = ("lean", "int20", "int8")
#: ``(S, …)`` steps and their S places in windows to ``(S, tokens per step, D)`` tokens.
Encode = Callable[[StepFeatures, Sequence[int]], Tensor]
#: ``(B, D)`` hidden states at the read tokens to ``(B, …)`` answers.
Answer = Callable[[Tensor], Tensor]
#: Of kept keys and values: 200 windows with MiniLM, 50 with GPT-2 small. A session has one, and in
#: the second half of a block two.
CACHE_BYTES = 256 * 2**20
#: Largest difference to the full pass, over the largest hidden value, that a pass may show: the
#: rounding of the weights' type, which the full pass shows as well.
EXACT = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
#: The same for ``int8``: to find errors, not rounding, which shows on random tokens most (MiniLM
#: without updates: 0.27).
INT8_CLOSE = 0.5
#: What a pass fails with on a model that it cannot run, or that the library has changed.
PASS_FAILURES = (BackboneError, AttributeError, IndexError, RuntimeError, TypeError)


@dataclass(frozen=True, slots=True)
class Prefix:
    """All that enters the tokens of a window up to the state of one of its steps, as a key.

    Attributes:
        levels_kbps: the ladder, for the bitrate of the last chunk.
        steps: steps before that one.
        chunks_left: at that step, and so at those before.
        buffer_s: at that step; at those before it is in the history.
        history: chunks before that step, from as many before the window as a step looks back.
    """

    levels_kbps: tuple[float, ...]
    steps: int
    chunks_left: int
    buffer_s: float
    history: tuple[PastChunk, ...]


def prefixes(
    observation: AbrObservation, block: int, *, start: int | None = None
) -> Iterator[Prefix]:
    """Those of the window in which the step is decided, the longest first.

    Args:
        observation: of the step.
        block: steps per block of the window.
        start: first step of another window with the step in it.
    """
    now, history = observation.chunk_index, observation.history
    forgotten = now - len(history)
    start = window_start(now, block) if start is None else start
    seen_from = max(0, start - PAST_CHUNKS - forgotten)
    for step in range(now, start - 1, -1):
        past = history[: max(0, step - forgotten)]
        told_s = past[-1].buffer_s if past else 0.0
        buffer_s = observation.buffer_s if step == now else told_s
        left = observation.chunks_left + now - step
        yield Prefix(
            levels_kbps=observation.levels_kbps,
            steps=step - start,
            chunks_left=left,
            buffer_s=buffer_s,
            history=past[seen_from:],
        )


def next_start(observation: AbrObservation, block: int) -> int | None:
    """First step of the window to prepare for: in the middle of a block, unless all ends in it."""
    now = observation.chunk_index
    start = now // block * block
    is_time = start > 0 and now - start == (block - 1) // 2 > 0
    return start if is_time and now + observation.chunks_left > start + block else None


class PrefixCache:
    """Keys and values of windows by their prefix, the least recently used dropped first.

    Who claims an entry owns it: it is out of the cache until it is kept again under its longer
    prefix. So nobody else sees it while it is written, and an error loses it but spoils nothing.
    """

    def __init__(self, shape: tuple[int, ...], limit_bytes: int, device: torch.device) -> None:
        """Makes an empty cache of entries of a shape.

        Raises:
            ValueError: not one entry fits into the limit.
        """
        self._shape, self._device = shape, device
        self.entry_bytes = int(np.prod(shape)) * torch.float32.itemsize
        self.limit = limit_bytes // self.entry_bytes
        if self.limit < 1:
            raise ValueError(
                f"a cache of {limit_bytes} bytes holds no window; one takes {self.entry_bytes}"
            )
        self._entries: OrderedDict[Prefix, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self._entries

    def claim(self, wanted: Iterable[Prefix], *, claimed: int) -> tuple[Tensor, Prefix | None]:
        """Takes out the memory of the first prefix that is there, or empty memory.

        Args:
            wanted: the longest first.
            claimed: entries that are out already, fewer than the limit.

        Returns:
            The memory and the prefix whose tokens are in it.
        """
        for prefix in wanted:
            memory = self._entries.pop(prefix, None)
            if memory is not None:
                return memory, prefix
        if len(self._entries) + claimed >= self.limit:
            return self._entries.popitem(last=False)[1], None
        return torch.empty(self._shape, device=self._device), None

    def keep(self, prefix: Prefix, memory: Tensor) -> None:
        """Puts memory in (again), as the most recently used."""
        self._entries[prefix] = memory
        self._entries.move_to_end(prefix)


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """What there is to compute for one observation.

    Attributes:
        prefix: under which its row is kept afterwards.
        row: its memory and the tokens to compute.
        features: ``(S', …)`` of the steps with new tokens.
        places: their places in the window.
        picked: where the new tokens are among all tokens of these steps.
    """

    prefix: Prefix
    row: Row
    features: StepFeatures
    places: range
    picked: list[int]


class CachedInference:
    """Answers as ``AbrPolicy`` does, with a cache of past tokens; for several threads."""

    def __init__(
        self,
        *,
        encode: Encode,
        run: Pass,
        answer: Answer,
        layout: Layout,
        block: int,
        device: torch.device,
        limit_bytes: int = CACHE_BYTES,
        prepares: bool = False,
    ) -> None:
        """Makes one with an empty cache.

        Args:
            encode: makes tokens.
            run: computes them.
            answer: reads answers.
            layout: of the tokens.
            block: steps per block of the window.
            device: where the weights are.
            limit_bytes: of what is kept.
            prepares: whether the next window is begun in the middle of a block.

        Raises:
            ValueError: not one window fits into the limit.
        """
        self._encode, self._run, self._answer = encode, run, answer
        self._layout, self._block, self._device = layout, block, device
        self._prepares = prepares
        layers, two, heads, width = run.memory_shape
        shape = (layers, two, heads, _kept_tokens(layout, block), width)  # (layers, 2, H, W, d)
        self.cache = PrefixCache(shape, limit_bytes, self._device)
        self._lock = threading.Lock()

    @torch.inference_mode()
    def answers(self, observations: Sequence[AbrObservation]) -> Tensor:
        """Returns ``(B, …)`` answers for the steps to decide; ladders are checked already."""
        with self._lock:
            if len(observations) == 1:
                return self._part(observations)
            distinct = list(dict.fromkeys(observations))
            scored = torch.cat(
                [
                    self._part(distinct[first : first + self.cache.limit])
                    for first in range(0, len(distinct), self.cache.limit)
                ]
            )
        index = {observation: place for place, observation in enumerate(distinct)}
        return scored[[index[observation] for observation in observations]]

    def _part(self, observations: Sequence[AbrObservation]) -> Tensor:
        """As many as the cache has room for; ``(B, …)``."""
        questions: list[_Question] = []
        for one in observations:
            start = window_start(one.chunk_index, self._block)
            questions.append(self._question(one, start, len(questions)))
        for one in observations if self._prepares else ():
            start_then = next_start(one, self._block)
            if start_then is None or len(questions) == self.cache.limit:
                continue
            if next(prefixes(one, self._block, start=start_then)) not in self.cache:
                questions.append(self._question(one, start_then, len(questions)))
        tokens = self._tokens(questions)  # (N, D)
        positions = [
            self._layout.step_tokens * one.places.start + picked
            for one in questions
            for picked in one.picked
        ]
        hidden = self._run(
            tokens,
            torch.tensor(positions, device=self._device),  # (N,)
            [one.row for one in questions],
        )  # (B, D), and those that nobody has asked for
        for question in questions:
            self.cache.keep(question.prefix, question.row.memory)
        return self._answer(hidden[: len(observations)])

    def _question(self, observation: AbrObservation, start: int, claimed: int) -> _Question:
        layout = self._layout
        wanted = prefixes(observation, self._block, start=start)
        prefix = next(wanted)
        memory, found = self.cache.claim(itertools.chain([prefix], wanted), claimed=claimed)
        known = 0 if found is None else layout.known(found.steps)
        if found is not None and found.steps < prefix.steps and not layout.hides_read:
            known += 1  # the token that was read there, too
        first = known // layout.kept  # step with the first new token
        new = range(known, layout.known(prefix.steps))
        picked = [
            layout.step_tokens * (index // layout.kept - first) + layout.token(index)
            for index in new
        ]
        picked.append(layout.step_tokens * (prefix.steps - first) + layout.read)
        return _Question(
            prefix=prefix,
            row=Row(memory, known, len(picked)),
            features=window_features(observation, self._block, first=start + first),
            places=range(first, prefix.steps + 1),
            picked=picked,
        )

    def _tokens(self, questions: Sequence[_Question]) -> Tensor:
        """``(N, D)`` embeddings of all new tokens, row behind row."""
        steps = StepFeatures(
            *(
                np.concatenate([getattr(one.features, field.name) for one in questions])
                for field in fields(StepFeatures)
            )
        )  # (S, …), the steps of all rows behind each other
        places = [place for one in questions for place in one.places]  # (S,)
        tokens = self._encode(steps, places).flatten(0, 1)
        picked, offset = [], 0
        for one in questions:
            picked += [offset + index for index in one.picked]
            offset += self._layout.step_tokens * len(one.places)
        return tokens[picked]


def _kept_tokens(layout: Layout, block: int) -> int:
    """Tokens of the longest window: those that are kept, and the read one of its last step."""
    return layout.known(window_steps(block) - 1) + 1


@torch.inference_mode()
def choose_pass(
    backbone: Backbone, layout: Layout, block: int, wanted: Inference | Literal["auto"]
) -> tuple[Inference, Pass | None]:
    """The way to run a backbone whose updates are merged.

    A pass is compared with the full one before it is taken, so that an odd variant of a model or
    another version of the library is found out here.

    Args:
        backbone: frozen.
        layout: of the tokens.
        block: steps per block of the window.
        wanted: ``auto`` takes the fastest that is exact.

    Returns:
        The way, and its pass; none for ``full``.

    Raises:
        BackboneError: this way does not work with this backbone.
    """
    if wanted == "full":
        return "full", None
    device = next(backbone.parameters()).device
    for kind in _exact_passes(backbone, device) if wanted == "auto" else (wanted,):
        limit = INT8_CLOSE if kind == "int8" else EXACT[backbone.dtype]
        try:
            return kind, _proven(PASSES[kind](backbone), backbone, layout, block, limit)
        except PASS_FAILURES as error:
            if wanted != "auto":
                message = f"inference {wanted!r} does not work: {error}; use 'auto' or 'full'"
                raise BackboneError(message) from error
    return "full", None


def _exact_passes(backbone: Backbone, device: torch.device) -> tuple[Inference, ...]:
    """Those to try, the fastest first."""
    if device.type != "cpu":
        return EXACT_PASSES.get(device.type, EXACT_PASSES["cpu"])
    size = sum(one.nbytes for one in backbone.parameters())
    rounds = backbone.dtype == torch.float32 and size in ROUNDED_BYTES and load_library()
    return ("int20", *EXACT_PASSES["cpu"]) if rounds else EXACT_PASSES["cpu"]


def _proven(run: Pass, backbone: Backbone, layout: Layout, block: int, limit: float) -> Pass:
    """Runs a window in several goes, each on what those before have kept."""
    device = next(backbone.parameters()).device
    count = layout.window_tokens(block)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, count, backbone.hidden_size, generator=generator).to(device)
    allowed = torch.from_numpy(layout.attention_allowed(count)).to(device)
    full = backbone(tokens, allowed)[0]  # (T, D)
    layers, two, heads, width = run.memory_shape
    memory = torch.zeros(layers, two, heads, _kept_tokens(layout, block), width, device=device)
    known = 0
    whole = window_steps(block)
    for steps in sorted({block, whole - 1, whole}):  # many new tokens, and few
        last = layout.step_tokens * (steps - 1) + layout.read
        total = layout.known(steps - 1)
        index = [
            layout.step_tokens * (one // layout.kept) + layout.token(one)
            for one in range(known, total)
        ]
        places = torch.tensor([*index, last], device=device)
        hidden = run(tokens[0, places], places, [Row(memory, known, len(places))])[0]  # (D,)
        largest = (hidden - full[last]).abs().max() / full[last].abs().max()
        if not largest <= limit:  # true for NaN
            raise BackboneError(
                f"{backbone.name}: {type(run).__name__} differs from the full pass by {largest:.1e}"
            )
        known = total
    return run
