"""Rule-based controllers: observations with known decisions, and plans by brute force."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controllers import registry
from controllers.abr.oracle import optimal_levels
from controllers.planning import best_level
from controllers.throughput import harmonic_mean_kbps, worst_recent_error
from player.link_models import PensieveLink
from player.machine import Player, PlayerConfig
from player.observation import AbrObservation, PastChunk
from player.qoe import PENSIEVE_QOE, chunk_qoe, session_qoe
from player.simulated import play_simulated
from player.trace import Trace
from player.video import Video, read_video

LADDER = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)
SIZES = tuple(int(rate * 500) for rate in LADDER)  # 4 s at the nominal rate


def past(throughput_kbps: float, level: int = 1) -> PastChunk:
    download_s = SIZES[level] * 8 / 1000 / throughput_kbps
    return PastChunk(level, SIZES[level], download_s, 0.0, 10.0)


def observation(buffer_s: float, *history: PastChunk, chunks_left: int = 20) -> AbrObservation:
    return AbrObservation(
        LADDER,
        4.0,
        len(history),
        chunks_left,
        buffer_s,
        (SIZES,) * min(8, chunks_left),
        history,
    )


@pytest.mark.parametrize(
    ("buffer_s", "level"), [(0.0, 0), (5.0, 0), (6.9, 0), (7.1, 1), (14.9, 4), (15.0, 5), (60.0, 5)]
)
def test_bba_maps_the_buffer_linearly(buffer_s: float, level: int) -> None:
    assert registry.create("abr", "bba").decide(observation(buffer_s)) == level


def test_rate_takes_what_the_harmonic_mean_sustains() -> None:
    rate = registry.create("abr", "rate")
    assert rate.decide(observation(10.0)) == 0
    assert rate.decide(observation(10.0, past(1200.01))) == 2
    assert rate.decide(observation(10.0, past(1199.0))) == 1
    assert rate.decide(observation(10.0, past(100.0))) == 0
    # harmonic mean of 1000 and 4000 is 1600
    assert rate.decide(observation(10.0, past(1000.0), past(4000.0))) == 2
    safe = registry.create("abr", "rate", {"safety": 0.5})
    assert safe.decide(observation(10.0, past(1600.0))) == 1


def test_bola_climbs_with_the_buffer_and_heeds_throughput() -> None:
    free = registry.create("abr", "bola", {"limit_by_throughput": False})
    levels = [free.decide(observation(buffer_s)) for buffer_s in np.arange(0.0, 40.0, 0.5)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == 5
    limited = registry.create("abr", "bola")
    assert limited.decide(observation(40.0, past(1300.0))) == 2
    assert limited.decide(observation(40.0, past(500.0, level=3))) == 3  # stays, does not climb


def test_throughput_predictors_by_hand() -> None:
    history = (past(1000.0), past(4000.0), past(1600.0))
    assert harmonic_mean_kbps(()) is None
    assert harmonic_mean_kbps(history[:2]) == pytest.approx(1600.0)
    assert harmonic_mean_kbps(history, window=1) == pytest.approx(1600.0)
    assert worst_recent_error(history[:1]) == 0.0
    # predicted 1000 for 4000: 0.75; predicted 1600 for 1600: 0
    assert worst_recent_error(history) == pytest.approx(0.75)
    assert worst_recent_error((*history, *[past(1600.0)] * 5), window=2) < 0.2


def brute_force(seen: AbrObservation, throughput_kbps: float, horizon: int) -> list[float]:
    """Per level, the QoE of the best plan that starts with it."""
    best = [-np.inf] * seen.levels
    for plan in itertools.product(range(seen.levels), repeat=horizon):
        buffer_s, last, total = seen.buffer_s, seen.last_level, 0.0
        for sizes, level in zip(seen.upcoming_sizes_bytes, plan, strict=False):
            download_s = sizes[level] * 8 / 1000 / throughput_kbps
            stall_s = max(download_s - buffer_s, 0.0)
            buffer_s = max(buffer_s - download_s, 0.0) + seen.chunk_s
            total += chunk_qoe(seen.levels_kbps[level], seen.levels_kbps[last], stall_s)
            last = level
        best[plan[0]] = max(best[plan[0]], total)
    return best


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_plans_equal_brute_force(
    horizon: int, observe: Callable[[Trace], list[AbrObservation]], varied_trace: Trace
) -> None:
    rng = np.random.default_rng(7)
    for seen in observe(varied_trace)[::7]:
        throughput_kbps = float(rng.uniform(200, 5000))
        level = best_level(seen, throughput_kbps, horizon=horizon, weights=PENSIEVE_QOE)
        values = brute_force(seen, throughput_kbps, horizon)
        assert values[level] == pytest.approx(max(values), abs=1e-9)


def test_robustmpc_is_never_bolder_than_mpc_about_throughput(
    observe: Callable[[Trace], list[AbrObservation]], varied_trace: Trace
) -> None:
    mpc, robust = registry.create("abr", "mpc"), registry.create("abr", "robustmpc")
    bold = [mpc.decide(seen) for seen in observe(varied_trace)]
    careful = [robust.decide(seen) for seen in observe(varied_trace)]
    assert np.mean(careful) < np.mean(bold)


def test_the_oracle_equals_the_true_optimum_of_a_short_session(varied_trace: Trace) -> None:
    sizes = tuple(tuple(int(size * factor) for size in SIZES[:3]) for factor in (1, 0.8, 1.3, 1, 1))
    video = Video("short", LADDER[:3], 4.0, sizes)
    link = PensieveLink(varied_trace)

    def play(plan: tuple[int, ...]) -> float:
        player = Player(video)
        play_simulated(player, link, lambda seen: plan[seen.chunk_index], start_s=9.0)
        return session_qoe([chunk.qoe for chunk in player.chunks]) or 0.0

    best = max(play((0, *plan)) for plan in itertools.product(range(3), repeat=4))
    plan = optimal_levels(video, link, start_s=9.0, player=PlayerConfig())
    assert play(plan) == pytest.approx(best, abs=1e-9)


def test_the_oracle_outside_a_session_says_why_it_cannot_decide() -> None:
    with pytest.raises(LookupError, match="simulated"):
        registry.create("abr", "oracle").decide(observation(10.0))


def test_robustmpc_and_oracle_reach_the_reference(data_dir: Path, reference_dir: Path) -> None:
    sessions = json.loads((reference_dir / "abr_sessions.json").read_text())["traces"][::5]
    video = read_video(data_dir / "video/envivio-dash3").first(48)
    robust, oracle = registry.create("abr", "robustmpc"), registry.create("abr", "oracle")
    scores: dict[str, list[float]] = {"robustmpc": [], "oracle": []}
    for expected in sessions:
        points = np.loadtxt(data_dir / "traces/broadband-3g/test" / expected["file"])
        trace = Trace(expected["file"], points[:, 0], points[:, 1])
        link, start_s = PensieveLink(trace), trace.start_s(expected["start_index"])
        planned = oracle.for_session(  # type: ignore[attr-defined]
            video, link, start_s, PlayerConfig()
        )
        for name, decide in (("robustmpc", robust.decide), ("oracle", planned.decide)):
            player = Player(video)
            play_simulated(player, link, decide, start_s=start_s)
            qoe = session_qoe([chunk.qoe for chunk in player.chunks])
            assert qoe is not None
            scores[name].append(qoe)
    reference = {key: [row[key] for row in sessions] for key in ("robustmpc", "offline_optimum")}
    assert np.mean(scores["robustmpc"]) >= np.mean(reference["robustmpc"]) - 0.01
    assert np.mean(scores["oracle"]) >= np.mean(reference["offline_optimum"]) - 0.01
