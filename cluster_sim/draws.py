"""Random numbers that depend on what they are for, not on when they are drawn.

A task takes as long under one scheduler as under another, so that schedulers are compared on equal
terms. The mixer is splitmix64 (Steele et al., OOPSLA 2014); ``_cluster.c`` repeats it.
"""

from __future__ import annotations

_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15


def mixed(value: int) -> int:
    """64 well-mixed bits of an integer."""
    z = (value + _STEP) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def stage_key(seed: int, job: int, stage: int) -> int:
    """What the draws of a stage's tasks begin from."""
    return mixed(mixed(mixed(seed & _MASK) ^ job) ^ stage)


def task_bits(key: int, task: int) -> int:
    """64 bits for a task of the stage with this key."""
    return mixed(key ^ task)
