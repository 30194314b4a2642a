"""Training over several processes, one per GPU, through ``accelerate``; by default there is one.

``accelerate launch --num_processes N …`` (or ``torchrun``) starts the processes and says so in
``WORLD_SIZE``. Each has the whole model and takes every N-th batch; gradients are averaged behind
each step, so that a step sees N batches. The first process alone writes files. A single process
never loads ``accelerate``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

BatchT = TypeVar("BatchT")


class Processes:
    """The processes that train together, seen from one of them; here there is only one."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def of(accelerator: Any) -> Processes:
        """The processes that an ``accelerate.Accelerator`` knows."""
        return _Several(accelerator)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, batches: Sequence[BatchT]) -> Sequence[BatchT]:
        """The batches of this process: equally many in each."""
        return batches

    def average(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
        """Averages the gradients over the processes, in place; returns the mean loss."""
        return float(loss)

    def wait(self) -> None:
        """Waits for the others."""


ONE_PROCESS = Processes()


class _Several(Processes):
    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes

    def share(self, batches: Sequence[BatchT]) -> Sequence[BatchT]:
        return _EveryNth(batches, self.rank, self.count)

    def average(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
        gradients = [one.grad for one in parameters if one.grad is not None]
        flat = torch.cat([loss.reshape(1), *(one.reshape(-1) for one in gradients)])
        flat = self._accelerator.reduce(flat, reduction="mean")
        at = 1
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        return float(flat[0])

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


class _EveryNth(Sequence[BatchT]):
    """Every N-th batch; from the start again where the last round is not full."""

    def __init__(self, batches: Sequence[BatchT], rank: int, count: int) -> None:
        self._batches, self._rank, self._count = batches, rank, count

    def __len__(self) -> int:
        return -(-len(self._batches) // self._count)

    @overload
    def __getitem__(self, index: int) -> BatchT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BatchT]: ...
    def __getitem__(self, index: int | slice) -> BatchT | Sequence[BatchT]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._batches[(index * self._count + self._rank) % len(self._batches)]


def process_count() -> int:
    """How many processes were started together, as the environment says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: torch.device) -> Processes:
    """The processes that were started together, as the environment says.

    Args:
        device: where this process trains.
    """
    if process_count() < 2:
        return ONE_PROCESS
    from accelerate import Accelerator  # type: ignore[import-untyped]

    return Processes.of(Accelerator(cpu=device.type == "cpu"))
