"""The adapted model as a controller, with the checkpoint that is shipped."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controllers.registry import InvalidOptions, create
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import HISTORY_LIMIT, AbrObservation
from player.qoe import session_qoe
from player.simulated import play_simulated
from player.trace import Trace
from player.video import Video, generate_video
from testbed.trace_generators import GENERATORS, generate_trace


@pytest.fixture(scope="module")
def netllm() -> object:
    return create("abr", "netllm")


@pytest.fixture(scope="module")
def asked(
    observe: Callable[[Trace], list[AbrObservation]], varied_trace: Trace
) -> list[AbrObservation]:
    """Sixteen observations of a session of 80 chunks, the last behind a full history."""
    every = observe(varied_trace)
    assert len(every[-1].history) == HISTORY_LIMIT
    return every[::5]


def test_a_batch_decides_as_each_alone(netllm: object, asked: list[AbrObservation]) -> None:
    alone = [netllm.decide(one) for one in asked]  # type: ignore[attr-defined]
    assert netllm.decide_many(asked) == alone  # type: ignore[attr-defined]
    assert netllm.decide_many(asked[::-1]) == alone[::-1]  # type: ignore[attr-defined]
    assert len(set(alone)) > 1


def test_kept_keys_and_values_change_no_answer(
    netllm: object, observe: Callable[[Trace], list[AbrObservation]], varied_trace: Trace
) -> None:
    """Half a session, one by one, then all at once, beside the recomputed windows."""
    full = create("abr", "netllm", {"inference": "full"})
    lean = create("abr", "netllm", {"inference": "lean", "cache_mib": 2})  # one window
    rounded = create("abr", "netllm", {"inference": "int20"})
    assert full.policy.inference == "full"  # type: ignore[attr-defined]
    assert netllm.policy.inference == lean.policy.inference == "lean"  # type: ignore[attr-defined]
    session = observe(varied_trace)[1:40]
    expected = full.policy.answers(session)  # type: ignore[attr-defined]
    for policy in (one.policy for one in (netllm, lean, rounded)):  # type: ignore[attr-defined]
        alone = np.concatenate([policy.answers([one]).numpy() for one in session])
        np.testing.assert_allclose(alone, expected.numpy(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(policy.answers(session).numpy(), expected.numpy(), atol=1e-4)
        assert policy.decide_many(session) == full.decide_many(session)  # type: ignore[attr-defined]


def test_the_buffer_of_the_observation_counts(netllm: object, asked: list[AbrObservation]) -> None:
    """With an empty buffer no higher level than with a full one; somewhere a lower one."""
    empty = [dataclasses.replace(one, buffer_s=0.5) for one in asked]
    full = [dataclasses.replace(one, buffer_s=50.0) for one in asked]
    low = netllm.decide_many(empty)  # type: ignore[attr-defined]
    high = netllm.decide_many(full)  # type: ignore[attr-defined]
    assert statistics.fmean(low) < statistics.fmean(high)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": "builtin:nothing"}, "unknown checkpoint 'builtin:nothing'"),
        ({"checkpoint": "/no/such/folder"}, "no such folder"),
        ({"threads": -1}, "threads must not be negative"),
        ({"cache_mib": 0}, "cache_mib must be at least 1"),
        ({"inference": "magic"}, "inference"),
        ({"device": "abacus"}, "device"),
        ({"policy": None}, "has no option 'policy'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidOptions, match=says):
        create("abr", "netllm", options)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions, match=r"config\.json: missing"):
        create("abr", "netllm", {"checkpoint": str(tmp_path)})


def test_the_shipped_checkpoint_beats_bba(netllm: object) -> None:
    """On generated traces of each family that no training saw, mean QoE over sessions."""
    video = generate_video("unseen", chunks=24, rng=np.random.default_rng(11))
    bba = create("abr", "bba")

    def qoe(trace: Trace, video: Video, decide: Callable[[AbrObservation], int]) -> float:
        player = Player(video)
        play_simulated(player, PensieveLink(trace), decide)
        return session_qoe([chunk.qoe for chunk in player.chunks]) or 0.0

    gains = []
    for family in GENERATORS:
        for seed in (1, 2, 3):
            trace = generate_trace(family, f"{family}-{seed}", np.random.default_rng(seed))
            adapted = qoe(trace, video, netllm.decide)  # type: ignore[attr-defined]
            gains.append(adapted - qoe(trace, video, bba.decide))
    assert statistics.fmean(gains) > 0
