"""GENET's automatic curriculum (Xia et al., SIGCOMM 2022) over generated environments.

GENET trains where there is most to gain: at each stage it looks for the environment in which the
policy falls furthest behind a rule, and mixes it into the training. An environment is a family of
generated traces, a mean rate and how strongly the rate varies. Departure: GENET searches a
continuous space by Bayesian optimisation because playing is expensive there; here all environments
of a grid are played side by side in one go, so that the largest gap is found for certain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.pensieve import PAST_CHUNKS, PensievePolicy
from adapters.pensieve_env import PLAYER, Source, TraceDraw
from player.link_models import PensieveLink
from player.link_table import LinkTable
from player.machine import Player
from player.qoe import session_qoe
from player.simulated import Decide, play_simulated
from player.trace import FloatArray, Trace
from player.vectorised import Sessions, play_vectorised
from player.video import Video

#: The grid: mean rates in Mbit/s, and powers of the rate that flatten or sharpen its changes.
MEANS_MBPS = (0.5, 0.8, 1.3, 2.1, 3.4)
VARIATIONS = (0.5, 1.0, 1.5)
TRACES_EACH = 8
#: Share that a promoted environment gets, as in GENET; all others shrink by it.
PROMOTED_SHARE = 0.3
STAGES = 9  # as many as in GENET

Generate = Callable[[str, str, np.random.Generator], Trace]


def shaped(trace: Trace, *, mean_mbps: float, variation: float) -> Trace:
    """The trace with its rates to the power ``variation``, brought to another mean."""
    powered = Trace(trace.name, trace.times_s, trace.rates_mbps**variation)
    return Trace(trace.name, trace.times_s, powered.rates_mbps * (mean_mbps / powered.mean_mbps))


def environments(
    generate: Generate, families: Sequence[str], rng: np.random.Generator
) -> tuple[Source, ...]:
    """The grid of environments, with traces of their own each.

    Args:
        generate: makes a trace from a family, a name and a generator of random numbers.
        families: families that ``generate`` knows.
        rng: source of randomness.
    """
    return tuple(
        Source(
            name,
            tuple(
                shaped(
                    generate(family, f"{name}-{index}", rng),
                    mean_mbps=mean_mbps,
                    variation=variation,
                )
                for index in range(TRACES_EACH)
            ),
        )
        for family, mean_mbps, variation in itertools.product(families, MEANS_MBPS, VARIATIONS)
        for name in (f"{family}-{mean_mbps}-{variation}",)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One stage of a curriculum.

    Attributes:
        environment: what was mixed in.
        gap: QoE per chunk by which the policy was behind the rule there.
        mean_gap: the same over all environments.
    """

    environment: str
    gap: float
    mean_gap: float


class Curriculum:
    """Decides which environments a training draws its traces from.

    Half of the sessions stay on the sources given first, recorded traces say.
    """

    def __init__(
        self,
        recorded: Sequence[Source],
        generated: Sequence[Source],
        rule: Decide,
        video: Video,
        rng: np.random.Generator,
    ) -> None:
        """Plays the rule once on every generated trace.

        Args:
            recorded: sources that keep half of the sessions; may be empty.
            generated: environments to choose from; at first all have the same share.
            rule: what the policy is measured by.
            video: what is played to measure it.
            rng: draws a start point per trace.
        """
        self.draw = TraceDraw([*recorded, *generated])
        self.promotions: list[Promotion] = []
        self._recorded, self._generated = len(recorded), tuple(generated)
        self._video = video
        traces = [trace for source in generated for trace in source.traces]
        self._links = [PensieveLink(trace) for trace in traces]
        self._start_s = np.array(
            [trace.start_s(int(rng.integers(1, len(trace.times_s)))) for trace in traces]
        )
        self._share = np.full(len(generated), 1 / len(generated))
        self._rule_qoe = np.array(
            [
                _play(video, link, float(start_s), rule)
                for link, start_s in zip(self._links, self._start_s, strict=True)
            ]
        )
        self._set_shares()

    def gaps(self, policy: PensievePolicy) -> FloatArray:
        """``(E,)`` mean QoE per chunk of the rule less that of the policy, per environment."""
        table = LinkTable(self._links)
        sessions = Sessions(
            self._video,
            table,
            np.arange(len(table)),
            self._start_s,
            config=PLAYER,
            past_chunks=PAST_CHUNKS,
        )
        qoe = play_vectorised(sessions, policy.decide_seen)[:, 1:].mean(axis=1)
        behind = self._rule_qoe - qoe
        sizes = [len(source.traces) for source in self._generated]
        return np.array([part.mean() for part in np.split(behind, np.cumsum(sizes)[:-1])])

    def promote(self, policy: PensievePolicy) -> Promotion:
        """Mixes in the environment with the largest gap."""
        gaps = self.gaps(policy)
        worst = int(gaps.argmax())
        self._share *= 1 - PROMOTED_SHARE
        self._share[worst] += PROMOTED_SHARE
        self._set_shares()
        promotion = Promotion(
            environment=self._generated[worst].name,
            gap=float(gaps[worst]),
            mean_gap=float(gaps.mean()),
        )
        self.promotions.append(promotion)
        return promotion

    def _set_shares(self) -> None:
        recorded = np.full(self._recorded, 1 / max(self._recorded, 1))
        self.draw.share(np.concatenate((recorded, self._share)))


def _play(video: Video, link: PensieveLink, start_s: float, decide: Decide) -> float:
    player = Player(video, PLAYER)
    play_simulated(player, link, decide, start_s=start_s)
    qoe = session_qoe([chunk.qoe for chunk in player.chunks])
    assert qoe is not None  # videos to train on have two chunks
    return qoe
