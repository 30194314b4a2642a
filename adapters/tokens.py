"""The token layouts of the adapted model for ABR, used by training and by inference alike.

``netllm``, as in NetLLM (Wu et al., SIGCOMM 2024): every step of a session becomes eight tokens,
the return-to-go, six state tokens, the action. ``forecast``: one token, what is known of the
throughput. The answer of a step is read at one of its tokens, and two things hold that NetLLM's
layout lacks:

- The window of past steps starts at a position that depends on the index of the step alone. A
  window of blocks of ``block`` steps holds the step's own block so far and the whole block before,
  so that keys and values of past tokens can be cached without ever changing an answer.
- In ``netllm`` the sizes of the upcoming chunks are the last state token, and no later token looks
  at it: an observation tells the sizes of chunks to come, not those that past decisions saw, and so
  a past step could not be rebuilt from the observation alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Layout:
    """How steps lie in the token sequence.

    Attributes:
        name: as in configurations.
        step_tokens: tokens of one step.
        read: at which of them the answer is read.
        hides_read: whether later tokens do not look at that one.
    """

    name: str
    step_tokens: int
    read: int
    hides_read: bool

    @property
    def kept(self) -> int:
        """Tokens of a past step that later ones look at."""
        return self.step_tokens - self.hides_read

    def window_tokens(self, block: int) -> int:
        """Tokens of the longest window."""
        return window_steps(block) * self.step_tokens

    def read_positions(self, steps: int) -> NDArray[np.int64]:
        """``(steps,)`` positions in the token sequence where the answers are read."""
        return np.arange(steps) * self.step_tokens + self.read

    def attention_allowed(self, tokens: int) -> NDArray[np.bool_]:
        """``(T, T)``: whether token i may look at j: causal, and hidden ones are seen by none."""
        index = np.arange(tokens)
        causal = index[None, :] <= index[:, None]
        if not self.hides_read:
            return causal
        is_read = index % self.step_tokens == self.read
        return np.asarray(causal & (~is_read[None, :] | np.eye(tokens, dtype=bool)))

    def known(self, steps: int) -> int:
        """Kept tokens in front of the read token of a step with so many steps before it."""
        return self.kept * steps + self.read

    def token(self, kept: int) -> int:
        """Place in its step of a kept token, counted over all kept tokens."""
        within = kept % self.kept
        return within + 1 if self.hides_read and within >= self.read else within


class Token(enum.IntEnum):
    """Tokens of one step in their order."""

    RETURN = 0
    BITRATE = 1
    BUFFER = 2
    THROUGHPUT = 3
    DOWNLOAD = 4
    CHUNKS_LEFT = 5
    SIZES = 6  # the action is read here
    ACTION = 7


NETLLM = Layout("netllm", len(Token), Token.SIZES, hides_read=True)
FORECAST = Layout("forecast", 1, 0, hides_read=False)
LAYOUTS: Mapping[str, Layout] = MappingProxyType({one.name: one for one in (NETLLM, FORECAST)})


def window_start(step: int, block: int) -> int:
    """First step of the window in which ``step`` is decided: a function of the index alone."""
    return max(0, (step // block - 1) * block)


def window_steps(block: int) -> int:
    """Steps of the longest window."""
    return 2 * block
