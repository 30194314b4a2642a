"""Planning over a learned distribution of throughput, after Fugu (Yan et al., NSDI 2020).

The distribution is that of ``adapters.throughput_model``; the plan is the best one in expectation
(``adapters.throughput_planning``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from controllers.registry import register
from player.observation import AbrObservation


@register("abr", "fugu")
@dataclass(frozen=True, slots=True, kw_only=True)
class Fugu:
    """The first level of the best plan in expectation; the lowest before any measurement.

    Attributes:
        checkpoint: ``builtin:NAME``, or a folder that ``testbed train fugu`` wrote.
        threads: CPU threads that torch may use in this process; 0 leaves torch's choice.
    """

    checkpoint: str = "builtin:abr-fugu"
    threads: int = 1
    model: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, is {self.threads}")
        from adapters.throughput_checkpoints import load_throughput_model
        from adapters.throughput_model import set_threads

        if self.threads:
            set_threads(self.threads)
        object.__setattr__(self, "model", load_throughput_model(self.checkpoint))

    def decide(self, observation: AbrObservation) -> int:
        """Returns the level."""
        if not observation.history:
            return 0
        from adapters.throughput_model import past_throughput_of
        from adapters.throughput_planning import planned_values

        values = planned_values(
            self.model,
            past_throughput_of(observation.history),
            levels_kbps=observation.levels_kbps,
            chunk_s=observation.chunk_s,
            buffer_s=np.array([observation.buffer_s]),
            last_level=np.array([observation.last_level]),
            sizes_bytes=np.array([observation.upcoming_sizes_bytes]),
            chunks_left=observation.chunks_left,
        )
        return int(values[0].argmax())
