"""Pensieve's policy without its training: state, network, checkpoints, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.checkpoints import CheckpointError
from adapters.pensieve import (
    PAST_CHUNKS,
    PENSIEVE_FORMAT,
    UNITS,
    PensieveActor,
    PensieveConfig,
    PensievePolicy,
    builtin_policies,
    load_pensieve,
    save_pensieve,
    state_bound,
    state_size,
    states_of,
    states_seen,
)
from adapters.policy import LadderError
from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.machine import PlayerConfig
from player.observation import AbrObservation, PastChunk
from player.trace import Trace
from player.vectorised import Sessions
from player.video import PENSIEVE_LEVELS_KBPS, generate_video

VIDEO = generate_video("generated", chunks=20, rng=np.random.default_rng(7))
CONFIG = PensieveConfig(
    format=PENSIEVE_FORMAT, task="abr", method="pensieve", levels_kbps=PENSIEVE_LEVELS_KBPS
)


def make_policy(seed: int = 0, config: PensieveConfig = CONFIG) -> PensievePolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PensievePolicy(config, PensieveActor(config.levels))


def sessions_on(traces: dict[str, Trace], first_level: int | None = 0) -> Sessions:
    table = LinkTable([PensieveLink(trace) for trace in traces.values()])
    link, start_s = table.draw(5, np.random.default_rng(2))
    config = PlayerConfig(first_level=first_level)
    return Sessions(VIDEO, table, link, start_s, config=config)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_pensieve(tmp_path / "checkpoint", make_policy(), {"task": "abr"})
    return tmp_path / "checkpoint"


def test_a_state_is_pensieves() -> None:
    """Every number of a state, by hand, in the order and units of the paper."""
    sizes = (300_000, 600_000, 900_000, 1_200_000, 1_500_000, 30_000_000)
    past = (PastChunk(0, 500_000, 2.0, 2.0, 4.0), PastChunk(2, 1_000_000, 250.0, 0.0, 7.0))
    observation = AbrObservation(PENSIEVE_LEVELS_KBPS, 4.0, 2, 12, 7.0, (sizes,) * 8, past)
    (state,) = states_of([observation])
    expected = [1200 / 4300, 0.7, 12 / 48]
    expected += [0.0] * 6 + [2.0, 0.032]  # Mbit/s
    expected += [0.0] * 6 + [0.2, 10.0]  # in 10 s, at most 100 s
    expected += [0.3, 0.6, 0.9, 1.2, 1.5, 20.0]  # MB, at most 20
    assert len(state) == state_size(6) == 25
    np.testing.assert_allclose(state, expected, rtol=1e-6)


def test_sessions_side_by_side_show_the_same_states(small_traces: dict[str, Trace]) -> None:
    sessions = sessions_on(small_traces, first_level=None)
    rng = np.random.default_rng(4)
    while not sessions.is_done:
        seen = states_seen(sessions.observe(), VIDEO.levels_kbps)
        assert np.array_equal(seen, states_of([sessions.observation(i) for i in range(5)]))
        assert seen.min() >= 0
        assert seen.max() <= state_bound()
        sessions.step(rng.integers(VIDEO.levels, size=5))


def test_the_network_is_pensieves() -> None:
    actor = PensieveActor(6)
    for conv in (actor.tower.throughput, actor.tower.download, actor.tower.sizes):
        assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (1, UNITS, (4,))
    assert PAST_CHUNKS == 8
    assert actor.tower.merge.in_features == UNITS * (5 + 5 + 3 + 3)
    assert actor(torch.zeros(2, state_size(6))).shape == (2, 6)


def test_batches_and_sessions_decide_as_each_alone(small_traces: dict[str, Trace]) -> None:
    policy, sessions = make_policy(), sessions_on(small_traces, first_level=None)
    chosen = set()
    while not sessions.is_done:
        asked = [sessions.observation(index) for index in range(len(sessions))]
        levels = [policy.decide(one) for one in asked]
        assert policy.decide_many(asked) == levels
        assert policy.decide_seen(sessions.observe()).tolist() == levels
        if not asked[0].history:
            assert levels == [0] * len(asked)
        chosen |= set(levels)
        sessions.step(np.array(levels))
    assert chosen
    assert policy.decide_many([]) == []


def test_a_saved_policy_answers_the_same(checkpoint: Path, small_traces: dict[str, Trace]) -> None:
    policy, loaded = make_policy(), load_pensieve(str(checkpoint))
    sessions = sessions_on(small_traces)
    states = torch.from_numpy(states_seen(sessions.observe(), VIDEO.levels_kbps))
    assert torch.equal(policy.actor(states), loaded.actor(states))
    assert loaded.config == CONFIG
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "card.json",
        "config.json",
        "policy.safetensors",
    ]


def test_another_ladder_is_refused() -> None:
    other = AbrObservation((300.0, 750.0), 4.0, 0, 9, 0.0, ((1, 2),), ())
    with pytest.raises(LadderError, match=r"2 levels, but the checkpoint was trained for .* 6"):
        make_policy().decide(other)


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(document | changes))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "policy.safetensors")
        change(weights)
        save_file(weights, folder / "policy.safetensors")

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "format is None"),
        (change_config(format="other 7"), "format is 'other 7'.*'netllm-testbed pensieve 1'"),
        (change_config(levels_kbps="no"), r"config\.json: levels_kbps"),
        (change_config(levels_kbps=[300.0]), "needs 4 levels"),
        (change_config(levels_kbps=[1.0, 2.0, 3.0, 4.0]), "has shape"),
        (lambda folder: (folder / "policy.safetensors").unlink(), r"safetensors: missing"),
        (lambda folder: (folder / "policy.safetensors").write_bytes(b"x"), "not a readable"),
        (change_weights(lambda weights: weights.pop("head.bias")), "'head.bias' is missing"),
        (
            change_weights(lambda weights: weights.update(more=torch.zeros(1))),
            "'more' does not belong",
        ),
        (
            change_weights(lambda weights: weights["head.bias"].fill_(torch.nan)),
            "'head.bias' has a value that is not finite",
        ),
    ],
)
def test_damage_is_told(checkpoint: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=says):
        load_pensieve(str(checkpoint))


def test_unknown_checkpoints_list_what_there_is() -> None:
    with pytest.raises(CheckpointError, match=r"'builtin:nothing'; shipped: builtin:abr-genet"):
        load_pensieve("builtin:nothing")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_pensieve("/no/such/folder")


def test_what_is_shipped_says_how_it_was_made() -> None:
    assert builtin_policies() == ("builtin:abr-genet", "builtin:abr-pensieve")
    for spec in builtin_policies():
        policy = load_pensieve(spec)
        method = spec.removeprefix("builtin:abr-")
        assert policy.config.method == method
        assert policy.config.levels_kbps == PENSIEVE_LEVELS_KBPS
        path = Path(__file__).parents[2] / "adapters/shipped" / f"abr-{method}" / "card.json"
        card = json.loads(path.read_text(encoding="utf-8"))
        assert card["command"].startswith(f"testbed train {method} ")
        assert len(card["seeds"]) == 3
        best = max(card["seeds"], key=lambda one: one["best"]["playable_qoe"])
        assert best["seed"] == card["seed"]
        assert "test" not in card["validate"]


def test_playing_needs_no_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['stable_baselines3'] = sys.modules['gymnasium'] = None\n"
        "from controllers import registry\n"
        "registry.create('abr', 'pensieve'); registry.create('abr', 'genet')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
