"""Observations to ask controllers with; makes ``running_service`` importable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.simulated import play_simulated
from player.trace import Trace
from player.video import Video, generate_video

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def video() -> Video:
    return generate_video("test", chunks=80, rng=np.random.default_rng(3))


@pytest.fixture(scope="session")
def varied_trace() -> Trace:
    rates = np.random.default_rng(5).lognormal(0.3, 0.6, size=200)
    return Trace("varied", np.arange(200, dtype=np.float64) * 2.0, rates)


@pytest.fixture(scope="session")
def observe(video: Video) -> Callable[[Trace], list[AbrObservation]]:
    """All observations of a session under a controller that visits every level."""

    def play(trace: Trace) -> list[AbrObservation]:
        seen: list[AbrObservation] = []

        def decide(observation: AbrObservation) -> int:
            seen.append(observation)
            return (observation.chunk_index * 5 + 1) % observation.levels

        play_simulated(Player(video), PensieveLink(trace), decide)
        return seen

    return play
