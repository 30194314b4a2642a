"""The token layout of the adapted model for ABR, used by training and by inference alike.

As in NetLLM (Wu et al., SIGCOMM 2024) every step of a session becomes eight tokens: the
return-to-go, six state tokens, the action. The action of a step is read at its last state token.
Departures, each with its reason:

- The window of past steps starts at a position that depends on the index of the step alone. A
  window of blocks of ``block`` steps holds the step's own block so far and the whole block before,
  so that keys and values of past tokens can be cached without ever changing an answer.
- The sizes of the upcoming chunks are the last state token, and no later token looks at it: an
  observation tells the sizes of chunks to come, not those that past decisions saw, and so a past
  step could not be rebuilt from the observation alone.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


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


TOKENS_PER_STEP = len(Token)


def window_start(step: int, block: int) -> int:
    """First step of the window in which ``step`` is decided: a function of the index alone."""
    return max(0, (step // block - 1) * block)


def window_steps(block: int) -> int:
    """Steps of the longest window."""
    return 2 * block


def window_tokens(block: int) -> int:
    """Tokens of the longest window."""
    return window_steps(block) * TOKENS_PER_STEP


def read_positions(steps: int) -> NDArray[np.int64]:
    """``(steps,)`` positions in the token sequence where the actions are read."""
    return np.arange(steps) * TOKENS_PER_STEP + Token.SIZES


def attention_allowed(tokens: int) -> NDArray[np.bool_]:
    """``(T, T)``: whether token i may look at j: causal, and sizes are seen by themselves only."""
    index = np.arange(tokens)
    causal = index[None, :] <= index[:, None]
    is_sizes = index % TOKENS_PER_STEP == Token.SIZES
    return np.asarray(causal & (~is_sizes[None, :] | np.eye(tokens, dtype=bool)))
