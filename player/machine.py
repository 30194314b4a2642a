"""The player as a pure state machine: one event in, one command out, time is an argument.

Buffer, stall and cap follow Pensieve's simulator (Mao et al., SIGCOMM 2017): playback starts when
the first chunk is in; the buffer drains in real time; above the cap the player pauses in steps of
0.5 s before it asks for the next chunk. Unlike there, the time that a decision takes is playback
time: the buffer drains while the controller thinks. Following a live event, it asks for no chunk
before that is available, and plays slightly faster while it is too far behind
(:mod:`player.live_playhead`); a chunk that takes too long may be given up
(:mod:`player.abandonment`).

====================  ===============================  ======================================
state                 event it takes                   command it answers with
====================  ===============================  ======================================
NEW                   Started                          Ask, Fetch when the first level is set,
                                                       or WaitUntil
DECIDING              Decided                          Fetch
DOWNLOADING           Progress                         GoOn, or Fetch in the place of this one
DOWNLOADING           ChunkArrived                     Ask, WaitUntil or Stop
WAITING               TimerFired                       Ask, or Fetch when the first level is set
ENDED                 none                             –
====================  ===============================  ======================================
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from player.abandonment import Abandonment, UnderWay
from player.live import Live, available_s
from player.live_playhead import LivePlayhead
from player.observation import (
    HISTORY_LIMIT,
    KILOBITS_PER_BYTE,
    UPCOMING_LIMIT,
    AbrObservation,
    PastChunk,
)
from player.qoe import PENSIEVE_QOE, QoeWeights, chunk_qoe
from player.records import ChunkRecord
from player.video import Video


class PlayerStateError(RuntimeError):
    """The driver sent an event that the state does not take, or time ran backwards: a bug."""


class InvalidDecision(ValueError):
    """The controller named a level that the ladder does not have."""


class State(enum.Enum):
    """Where the player stands between two events."""

    NEW = enum.auto()
    DECIDING = enum.auto()
    DOWNLOADING = enum.auto()
    WAITING = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class Started:
    """The session begins; ``late_s`` more behind a live event than it wants to be."""

    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Decided:
    """The controller, or the fallback in its place, chose a level."""

    level: int
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """So much of the requested chunk is in; told of watched ones at most every ``PROGRESS_S``."""

    received_bytes: int


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """The last byte of the requested chunk is in."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The wait is over."""


Event = Started | Decided | Progress | ChunkArrived | TimerFired


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the controller; answer with Decided."""

    observation: AbrObservation


@dataclass(frozen=True, slots=True)
class Fetch:
    """Download a chunk; answer with ChunkArrived, and before that with Progress if it is watched.

    In answer to Progress: close the connection of the request under way, and download this.
    """

    chunk: int
    level: int
    size_bytes: int
    is_watched: bool = False


@dataclass(frozen=True, slots=True)
class GoOn:
    """Go on with the download."""


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Wait until the given time; answer with TimerFired."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The session is over."""


Command = Ask | Fetch | GoOn | WaitUntil | Stop

EXPECTS: dict[State, tuple[type[Event], ...]] = {
    State.NEW: (Started,),
    State.DECIDING: (Decided,),
    State.DOWNLOADING: (ChunkArrived, Progress),
    State.WAITING: (TimerFired,),
    State.ENDED: (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerConfig:
    """How the player plays.

    Attributes:
        buffer_cap_s: above this the player pauses downloading.
        wait_step_s: such pauses are whole multiples of this.
        first_level: level of chunk 0, which Pensieve fixes at 0 for every scheme and does not
            score; None asks the controller for chunk 0 as well.
        qoe: weights of the QoE that is recorded per chunk.
        live: how to follow a live event; None: all of the video is there.
        abandonment: when to give up a chunk that takes too long; None: never.
    """

    buffer_cap_s: float = 60.0
    wait_step_s: float = 0.5
    first_level: int | None = 0
    qoe: QoeWeights = PENSIEVE_QOE
    live: Live | None = None
    abandonment: Abandonment | None = None


@dataclass(frozen=True, slots=True)
class _GivenUp:
    level: int
    received_bytes: int


class Player:
    """One session. Feed it events through :meth:`handle`; read :attr:`chunks` at any time."""

    def __init__(self, video: Video, config: PlayerConfig | None = None) -> None:
        self._video = video
        self._config = config or PlayerConfig()
        self._state = State.NEW
        self._chunks: list[ChunkRecord] = []
        self._history: list[PastChunk] = []
        self._began_s = self._clock_s = 0.0
        self._buffer_s = 0.0
        self._stall_s = 0.0  # since the last arrival
        self._asked_s = self._requested_s = 0.0
        self._decision_s = 0.0
        self._decided = Decided(level=0)
        self._late_s = 0.0
        self._playhead = None if self._config.live is None else LivePlayhead(self._config.live)
        self._first_bytes: tuple[float, int] | None = None  # of the request: when, how many
        self._given_up: _GivenUp | None = None

    @property
    def state(self) -> State:
        """The current state."""
        return self._state

    @property
    def chunks(self) -> tuple[ChunkRecord, ...]:
        """Records of the chunks that have arrived."""
        return tuple(self._chunks)

    @property
    def buffer_s(self) -> float:
        """Seconds of video in the buffer at the last event."""
        return self._buffer_s

    @property
    def rate(self) -> float:
        """At which it plays, 1 as it was filmed."""
        return 1.0 if self._playhead is None else self._playhead.rate

    @property
    def startup_s(self) -> float | None:
        """Seconds until the first chunk was in; None before that."""
        return self._chunks[0].rebuffer_s if self._chunks else None

    def handle(self, event: Event, *, now: float) -> Command:
        """Takes the event at time ``now`` (seconds, any origin, never backwards).

        Raises:
            PlayerStateError: the state does not take this event, or ``now`` lies in the past.
            InvalidDecision: the decided level is off the ladder.
        """
        if type(event) not in EXPECTS[self._state]:
            raise PlayerStateError(f"{self._state.name} cannot handle {event}")
        if self._state is State.NEW:
            self._began_s = self._clock_s = now
        if now < self._clock_s:
            raise PlayerStateError(f"time ran backwards: {now} after {self._clock_s}")
        self._play_until(now)
        match event:
            case Started(late_s):
                return self._start(late_s, now)
            case Decided():
                self._decision_s = now - self._asked_s
                return self._fetch(event, now)
            case Progress(received_bytes):
                return self._watch(received_bytes, now)
            case ChunkArrived():
                return self._take_in(now)
            case TimerFired():
                return self._request(now)

    def _play_until(self, now: float) -> None:
        if self._playhead is None:
            played = min(self._buffer_s, now - self._clock_s)
            self._stall_s += now - self._clock_s - played
            self._buffer_s -= played
        else:
            passed = self._playhead.play(self._buffer_s, now - self._clock_s)
            self._stall_s += passed.stall_s
            self._buffer_s = passed.buffer_s
        self._clock_s = now

    def _start(self, late_s: float, now: float) -> Command:
        if self._playhead is not None:
            self._late_s = late_s
            self._playhead.latency_s += late_s
        return self._request_at(self._available_s(0), now)

    def _available_s(self, chunk: int) -> float:
        """When a chunk may be requested; long ago on demand, and if there is no such chunk."""
        live = self._config.live
        if live is None or chunk == self._video.chunks:
            return -math.inf
        age_s = available_s(chunk, self._video.chunk_s)
        return self._began_s + age_s - live.target_latency_s - self._late_s

    def _request_at(self, at_s: float, now: float) -> Command:
        if at_s > now:
            self._state = State.WAITING
            return WaitUntil(at_s)
        return self._request(now)

    def _request(self, now: float) -> Command:
        if self._chunks or self._config.first_level is None:
            return self._ask(now)
        return self._fetch(Decided(self._config.first_level), now)

    def _ask(self, now: float) -> Ask:
        self._state = State.DECIDING
        self._asked_s = now
        index = len(self._chunks)
        video = self._video
        return Ask(
            AbrObservation(
                levels_kbps=video.levels_kbps,
                chunk_s=video.chunk_s,
                chunk_index=index,
                chunks_left=video.chunks - index,
                buffer_s=self._buffer_s,
                upcoming_sizes_bytes=video.sizes_bytes[index : index + UPCOMING_LIMIT],
                history=tuple(self._history[-HISTORY_LIMIT:]),
            )
        )

    def _fetch(self, decided: Decided, now: float) -> Fetch:
        level = decided.level
        # bool is an int to Python, but "level true" is a controller's mistake.
        if isinstance(level, bool) or not isinstance(level, int) or not self._is_level(level):
            raise InvalidDecision(
                f"level {level!r} for chunk {len(self._chunks)} is not one of "
                f"0 to {self._video.levels - 1}"
            )
        self._state = State.DOWNLOADING
        self._decided = decided
        self._requested_s = now
        self._first_bytes = None
        index = len(self._chunks)
        return Fetch(
            *(index, level, self._video.sizes_bytes[index][level]),
            is_watched=self._config.abandonment is not None
            and level > 0
            and self._given_up is None,
        )

    def _watch(self, received_bytes: int, now: float) -> Command:
        rule = self._config.abandonment
        if rule is None or self._given_up is not None:
            return GoOn()
        if self._first_bytes is None:
            self._first_bytes = now, received_bytes
        since_s, first_bytes = self._first_bytes
        request = UnderWay(
            chunk=len(self._chunks),
            level=self._decided.level,
            received_bytes=received_bytes,
            measured_bytes=received_bytes - first_bytes,
            measured_s=now - since_s,
            buffer_s=self._buffer_s,
        )
        instead = rule.level_instead(request, self._video)
        if instead is None:
            return GoOn()
        self._given_up = _GivenUp(self._decided.level, received_bytes)
        return self._fetch(Decided(instead, self._decided.fallback), now)

    def _is_level(self, level: int) -> bool:
        return 0 <= level < self._video.levels

    def _take_in(self, now: float) -> Command:
        self._buffer_s += self._video.chunk_s
        excess_s = self._buffer_s - self._config.buffer_cap_s
        step_s = self._config.wait_step_s
        wait_s = math.ceil(excess_s / step_s) * step_s if excess_s > 0 else 0.0
        goes_on_s = now + wait_s
        there_s = self._available_s(len(self._chunks) + 1)
        if there_s > goes_on_s:
            goes_on_s, wait_s = there_s, there_s - now
        self._record(now, wait_s)
        self._stall_s = 0.0
        if len(self._chunks) == self._video.chunks:
            self._state = State.ENDED
            return Stop()
        return self._request_at(goes_on_s, now)

    def _record(self, now: float, wait_s: float) -> None:
        given_up, self._given_up = self._given_up, None
        buffer_s, latency_s = self._buffer_s - wait_s, None
        if self._playhead is not None:  # may stand still until the next chunk is available
            buffer_s, latency_s = max(buffer_s, 0.0), self._playhead.latency_s
        index, level = len(self._chunks), self._decided.level
        bitrate_kbps = self._video.levels_kbps[level]
        size_bytes = self._video.sizes_bytes[index][level]
        download_s = now - self._requested_s
        self._chunks.append(
            ChunkRecord(
                index=index,
                level=level,
                bitrate_kbps=bitrate_kbps,
                size_bytes=size_bytes,
                requested_s=self._requested_s - self._began_s,
                download_s=download_s,
                throughput_kbps=size_bytes * KILOBITS_PER_BYTE / download_s,
                buffer_s=buffer_s,
                rebuffer_s=self._stall_s,
                decision_s=self._decision_s,
                fallback=self._decided.fallback,
                qoe=chunk_qoe(
                    bitrate_kbps,
                    self._chunks[-1].bitrate_kbps if self._chunks else bitrate_kbps,
                    self._stall_s,
                    self._config.qoe,
                ),
                wait_s=wait_s,
                latency_s=latency_s,
                abandoned_level=None if given_up is None else given_up.level,
                abandoned_bytes=0 if given_up is None else given_up.received_bytes,
            )
        )
        self._decision_s = 0.0
        self._history.append(PastChunk(level, size_bytes, download_s, self._stall_s, buffer_s))
