"""Pensieve and GENET as controllers, with the checkpoints that are shipped."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest

from adapters.policy import LadderError
from controllers.registry import InvalidOptions, create
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.qoe import session_qoe
from player.simulated import play_simulated
from player.trace import Trace
from player.video import generate_video
from testbed.trace_generators import generate_trace

NAMES = ("pensieve", "genet")


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_decides_as_each_alone(
    name: str, observe: Callable[[Trace], list[AbrObservation]], varied_trace: Trace
) -> None:
    controller, asked = create("abr", name), observe(varied_trace)[::5]
    alone = [controller.decide(one) for one in asked]
    assert controller.decide_many(asked) == alone  # type: ignore[attr-defined]
    assert len(set(alone)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_checkpoint_beats_bba(name: str) -> None:
    """On generated traces like those of its research set, broadband and 3G; LTE is beyond them."""
    video = generate_video("unseen", chunks=48, rng=np.random.default_rng(11))

    def qoe(trace: Trace, decide: Callable[[AbrObservation], int]) -> float:
        player = Player(video)
        play_simulated(player, PensieveLink(trace), decide)
        return session_qoe([chunk.qoe for chunk in player.chunks]) or 0.0

    learned, bba = create("abr", name), create("abr", "bba")
    gains = []
    for family in ("fcc", "hsdpa"):
        for seed in (1, 2, 3):
            trace = generate_trace(family, f"{family}-{seed}", np.random.default_rng(seed))
            gains.append(qoe(trace, learned.decide) - qoe(trace, bba.decide))
    assert statistics.fmean(gains) > 0


def test_another_ladder_is_refused() -> None:
    observation = AbrObservation((300.0, 750.0), 4.0, 0, 9, 0.0, ((1, 2),), ())
    with pytest.raises(LadderError, match="2 levels, but the checkpoint was trained for"):
        create("abr", "genet").decide(observation)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": "builtin:abr-minilm"}, "unknown checkpoint 'builtin:abr-minilm'"),
        ({"checkpoint": "/no/such/folder"}, "no such folder"),
        ({"threads": -1}, "threads must not be negative"),
        ({"policy": None}, "has no option 'policy'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidOptions, match=says):
        create("abr", "pensieve", options)
