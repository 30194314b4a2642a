"""Simulated sessions as an environment of stable-baselines3, to train Pensieve's policy in.

Needs the extra ``rl``. Each of B environments is a session of ``player.vectorised``; all of them
step together and begin anew together. The reward is the QoE of the chunk, made comparable between
traces: on the slowest traces every policy stalls for minutes, and the sum of those stalls would
drown whatever can be learnt on all others. So the stall of a chunk counts for ten seconds at most,
and the reward is divided by the spread of the rewards on the same trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env import VecEnv

from adapters.pensieve import PAST_CHUNKS, Float32Array, state_bound, state_size, states_seen
from player.link_models import PensieveLink
from player.link_table import IntArray, LinkTable
from player.machine import PlayerConfig
from player.trace import FloatArray, Trace
from player.vectorised import Sessions
from player.video import Video

PLAYER = PlayerConfig(first_level=0)  # as in Pensieve, chunk 0 is not decided
MAX_STALL_S = 10.0
#: Spread of rewards, Mbit/s: the least that is divided by, and that of a trace not yet played.
MIN_SPREAD, FIRST_SPREAD = 0.5, 4.3
#: How much of the spread of a trace stays when it is played again.
SPREAD_MEMORY = 0.8
#: Spans over which the critic is told the capacity to come, seconds.
AHEAD_S = np.array([2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0])
MIN_CAPACITY_MBPS, MAX_CAPACITY_MBPS = 0.02, 50.0


class TrainingDataError(ValueError):
    """Videos or traces that cannot be trained on; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Traces of one origin, each as likely as the others.

    Attributes:
        name: what the user called them.
        traces: at least one.
    """

    name: str
    traces: tuple[Trace, ...]


class TraceDraw:
    """Traces to draw from, source by source; the shares of the sources may change."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Gives every source the same share.

        Raises:
            TrainingDataError: there is no source, or one without traces.
        """
        if not sources or not all(source.traces for source in sources):
            raise TrainingDataError("training needs at least one trace of every source")
        self.sources = tuple(sources)
        self.traces = [trace for source in sources for trace in source.traces]
        self.table = LinkTable([PensieveLink(trace) for trace in self.traces])
        self._source = np.repeat(np.arange(len(sources)), [len(one.traces) for one in sources])
        self._sizes = np.bincount(self._source)
        self.share(np.ones(len(sources)))

    def share(self, weights: ArrayLike) -> None:
        """Sets the share of each source, in proportion to ``weights``."""
        given = np.asarray(weights, dtype=np.float64)
        self.shares: FloatArray = given / given.sum()

    def draw(self, sessions: int, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """``(B,)`` numbers of traces, and ``(B,)`` positions to start at, seconds."""
        each = (self.shares / self._sizes)[self._source]
        link = rng.choice(len(self.traces), size=sessions, p=each / each.sum())
        start_s = [
            trace.start_s(int(rng.integers(1, len(trace.times_s))))
            for trace in (self.traces[index] for index in link)
        ]
        return link, np.array(start_s)


class RewardScale:
    """Running spread of the rewards on each trace."""

    def __init__(self, traces: int) -> None:
        self._variance = np.full(traces, FIRST_SPREAD**2)
        self._is_first = np.ones(traces, dtype=np.bool_)

    def spread(self, link: IntArray) -> FloatArray:
        """``(B,)`` what rewards on these traces are divided by."""
        return np.asarray(np.maximum(np.sqrt(self._variance[link]), MIN_SPREAD))

    def update(self, link: IntArray, rewards: FloatArray) -> None:
        """Takes in ``(T, B)`` rewards of sessions on the traces ``link``."""
        size = len(self._variance)
        count = np.bincount(link, minlength=size)
        seen = np.flatnonzero(count)
        total = (count * len(rewards))[seen]
        mean = np.bincount(link, rewards.sum(axis=0), size)[seen] / total
        square = np.bincount(link, (rewards**2).sum(axis=0), size)[seen] / total
        memory = np.where(self._is_first[seen], 0.0, SPREAD_MEMORY)
        now = np.maximum(square - mean**2, 0.0)
        self._variance[seen] = memory * self._variance[seen] + (1 - memory) * now
        self._is_first[seen] = False


class SessionsEnv(VecEnv):  # type: ignore[misc]  # the extra may not be installed
    """B sessions that begin and end together; actions are levels.

    Observations are ``(B, state_size + len(AHEAD_S))``: states, and behind them, for the critic
    alone, the logarithm of the mean capacity that is to come, Mbit/s.
    """

    render_mode = None  # asked for by the base class

    def __init__(
        self, videos: Sequence[Video], draw: TraceDraw, *, sessions: int, seed: int
    ) -> None:
        """Makes the environment; sessions begin with :meth:`reset`.

        Args:
            videos: what is played, one after the other, of equal ladders and numbers of chunks.
            draw: where the traces come from.
            sessions: B.
            seed: of traces and start points; :meth:`seed` sets another.

        Raises:
            TrainingDataError: the videos differ, or have fewer than two chunks.
        """
        self.video = _checked_videos(videos)
        self.videos, self.traces = tuple(videos), draw
        self.scale = RewardScale(len(draw.traces))
        self._rng = np.random.default_rng(seed)
        self._batch = 0
        self.played_link: IntArray = np.zeros(sessions, dtype=np.int64)  # of the last full batch
        super().__init__(
            sessions,
            _space(self.video.levels),
            gymnasium.spaces.Discrete(self.video.levels),
        )

    @property
    def decisions(self) -> int:
        """Decisions per session."""
        return self.video.chunks - 1

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Sets the generator that traces and start points are drawn from."""
        self._rng = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def reset(self) -> Float32Array:
        """Begins new sessions, and returns what there is to see: see the class."""
        video = self.videos[self._batch % len(self.videos)]
        self._batch += 1
        self._link, self._start_s = self.traces.draw(self.num_envs, self._rng)
        self._sessions = Sessions(
            video,
            self.traces.table,
            self._link,
            self._start_s,
            config=PLAYER,
            past_chunks=PAST_CHUNKS,
        )
        self._spread = self.scale.spread(self._link)
        return self._observations()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Takes ``(B,)`` levels."""
        self._levels = np.asarray(actions)

    def step_wait(
        self,
    ) -> tuple[Float32Array, Float32Array, NDArray[np.bool_], list[dict[str, Any]]]:
        """Plays a chunk of every session: observations, rewards, who is over, and details.

        Behind their last chunk, new sessions have begun, and the observations are theirs.
        """
        reward = (clipped(self._sessions.step(self._levels)) / self._spread).astype(np.float32)
        is_done = self._sessions.is_done
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        if is_done:
            self.played_link = self._link
            self.scale.update(self._link, clipped(self._sessions.qoe[:, 1:]).T)
            over = np.zeros(self.observation_space.shape, dtype=np.float32)
            infos = [{"terminal_observation": over}] * self.num_envs
        seen = self.reset() if is_done else self._observations()
        return seen, reward, np.full(self.num_envs, is_done), infos

    @property
    def sessions(self) -> Sessions:
        """The sessions under way."""
        return self._sessions

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute, once per session asked for."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute for all sessions."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **named: Any) -> Any:
        """Sessions have no methods of their own.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"sessions have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Sessions are never wrapped."""
        return [False] * len(list(self._get_indices(indices)))

    def _observations(self) -> Float32Array:
        states = states_seen(self._sessions.observe(), self.video.levels_kbps)
        ahead_mbps = self._sessions.capacity_mbps(AHEAD_S)
        told = np.log(np.clip(ahead_mbps, MIN_CAPACITY_MBPS, MAX_CAPACITY_MBPS))
        return np.concatenate((states, told.astype(np.float32)), axis=1)


def _space(levels: int) -> gymnasium.spaces.Box:
    told = np.ones(len(AHEAD_S), dtype=np.float32)
    low = np.concatenate((np.zeros(state_size(levels)), np.log(MIN_CAPACITY_MBPS) * told))
    high = np.concatenate(
        (np.full(state_size(levels), state_bound()), np.log(MAX_CAPACITY_MBPS) * told)
    )
    return gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))


def clipped(qoe: FloatArray) -> FloatArray:
    """QoE in which the stall of a chunk counts for ``MAX_STALL_S`` at most."""
    return np.maximum(qoe, -MAX_STALL_S * PLAYER.qoe.rebuffer)


def _checked_videos(videos: Sequence[Video]) -> Video:
    if not videos or videos[0].chunks < 2:
        raise TrainingDataError("training needs a video of at least two chunks")
    first = videos[0]
    for video in videos:
        if (video.levels_kbps, video.chunks) != (first.levels_kbps, first.chunks):
            raise TrainingDataError(
                f"{video.name}: {video.chunks} chunks on the ladder {video.levels_kbps}, but "
                f"{first.name} has {first.chunks} on {first.levels_kbps}: train on videos alike"
            )
    return first
