"""The player of tiled 360° video as a pure state machine: events in, commands out.

Recorded head motion is replayed by position in the video: during a stall the head stands. For every
chunk the player asks where the viewer will look while it plays, spends the time that is left on
the tiles that will probably be seen, and downloads them over a few connections, the most probable
first and large ones in pieces. Time that is left over goes into better levels of chunks that have
not begun, after a new question. What the viewer really looks at and is missing is fetched at once,
at the level of which least is left to come. As for ``player/machine.py``, the time that a decision
takes is playback time; downloads go on.

====================  ===============================  ======================================
state                 events it takes                  commands it answers with
====================  ===============================  ======================================
NEW                   Started                          AskViewports
STARTING, STALLED     ViewportsDecided, TileArrived    FetchTile, AskViewports, WaitUntil
PLAYING               ViewportsDecided, TileArrived,   FetchTile, AskViewports, WaitUntil,
                      TimerFired                       Stop
ENDED                 none                             –
====================  ===============================  ======================================

ViewportsDecided answers the one question that is open, TileArrived the FetchTile on the same
connection. A WaitUntil holds until the next event: an answer without one means: no timer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from player.head_motion import HeadMotion
from player.machine import Stop, TimerFired, WaitUntil
from player.prediction_errors import PredictionErrors
from player.tile_accounts import ChunkAccount
from player.tile_allocation import (
    MISSING,
    FloatArray,
    LinkEstimate,
    ThroughputMeter,
    allocate,
    expected_share,
    predicted_at,
)
from player.tiled_events import (
    EXPECTS,
    AskViewports,
    FetchTile,
    TileArrived,
    TiledCommand,
    TiledEvent,
    TiledPlayerConfig,
    TiledPlayerConfigError,
    TiledPlayerStateError,
    TiledState,
    ViewportsDecided,
)
from player.tiled_requests import Flight, Wanted, piece_bytes
from player.tiled_video import TiledVideo
from player.tiles import coverage
from player.viewer import Viewer
from player.viewport_observation import SAMPLE_S, HeadPose, check_viewports
from player.viewport_records import TiledChunkRecord

__all__ = ["TiledPlayer", "TiledPlayerConfig", "TiledPlayerConfigError"]

#: A tile that fills this much of the field of view is looked at, and fetched if it is missing.
TOUCHED_SHARE = 0.005
#: Times closer than this are the same: sums of floats, far below a clock's resolution.
ROUNDING_S = 1e-9


@dataclass(frozen=True, slots=True)
class _Question:
    """An open question."""

    account: ChunkAccount
    asked_s: float
    media_s: float
    pose: HeadPose


class TiledPlayer:
    """One session. Feed it events through :meth:`handle`; read the rest at any time."""

    def __init__(
        self,
        video: TiledVideo,
        motion: HeadMotion,
        config: TiledPlayerConfig | None = None,
        earlier: Sequence[HeadMotion] = (),
    ) -> None:
        """A new session.

        Args:
            video: what is played.
            motion: where the viewer looks. The video begins where the recording does, and behind
                the recording's end the head stands.
            config: how it is played.
            earlier: what others looked at before, told to the controller.

        Raises:
            TiledPlayerConfigError: predictions do not reach to the end of the chunk asked for.
        """
        self._config = config or TiledPlayerConfig()
        reach_s = self._config.horizon * SAMPLE_S
        if self._config.buffer_cap_s + video.chunk_s > reach_s + ROUNDING_S:
            raise TiledPlayerConfigError(
                f"buffer_cap_s ({self._config.buffer_cap_s:g}) and one chunk of {video.chunk_s:g} s"
                f" must not exceed what is predicted: horizon {self._config.horizon} x {SAMPLE_S} s"
            )
        self.video = video
        self.decisions_s: list[float] = []
        self.fallbacks = 0
        self.startup_s: float | None = None
        self._viewer = Viewer(
            motion, earlier, history=self._config.history, horizon=self._config.horizon
        )
        self._ticks = max(round(video.chunk_s / SAMPLE_S), 1)  # per chunk
        self._tick_s = video.chunk_s / self._ticks
        middles_s = self._tick_s * (0.5 + np.arange(video.chunks * self._ticks, dtype=np.float64))
        poses = self._viewer.poses(middles_s)
        self._path: FloatArray = poses.reshape(video.chunks, self._ticks, 3)
        self._coverage: FloatArray = coverage(video.grid, self._config.fov, poses).reshape(
            video.chunks, self._ticks, -1
        )
        self._state = TiledState.NEW
        self._began_s = self._clock_s = 0.0
        self._tick, self._within_s = 0, 0.0  # playback: tick of the session, seconds of it shown
        self._next = 0  # chunk to be asked for
        self._accounts: list[ChunkAccount] = []
        self._records: list[TiledChunkRecord] = []
        self._queue: list[Wanted] = []
        self._in_flight: dict[int, Flight] = {}
        # The one that was used last comes first: it is warm.
        self._idle = list(reversed(range(self._config.connections)))
        self._question: _Question | None = None
        self._has_timer = False
        self._busy_s = 0.0  # of the downloads since the last arrival
        self._meter = ThroughputMeter(self._config.connections)

    @property
    def state(self) -> TiledState:
        """The current state."""
        return self._state

    @property
    def chunks(self) -> tuple[TiledChunkRecord, ...]:
        """Records of the chunks that have been played and have no tile on its way."""
        return tuple(self._records)

    @property
    def errors(self) -> PredictionErrors:
        """How far the controller's predictions were off; the fallback's do not count."""
        return self._viewer.errors

    @property
    def connections(self) -> int:
        """Tiles that are downloaded at once, at most."""
        return self._config.connections

    @property
    def media_s(self) -> float:
        """Position in the video at the last event."""
        return self._tick * self._tick_s + self._within_s

    @property
    def link(self) -> LinkEstimate | None:
        """What is known of the link."""
        return self._meter.estimate(self._busy_s)

    @property
    def downloaded_bytes(self) -> int:
        """Bytes of all tiles that have arrived."""
        return sum(account.size_bytes for account in self._accounts)

    @property
    def buffer_s(self) -> float:
        """Seconds of video ahead of which nothing is to come any more."""
        chunks = {one.chunk for one in self._queue}
        chunks |= {one.chunk for one in self._in_flight.values()}
        ahead = [chunk for chunk in chunks if self.time_left_s(chunk) > 0]
        return self.time_left_s(min(ahead, default=self._next))

    def time_left_s(self, chunk: int) -> float:
        """Seconds of video before a chunk; 0 once it plays."""
        return max(chunk * self.video.chunk_s - self.media_s, 0.0)

    def handle(self, event: TiledEvent, *, now: float) -> tuple[TiledCommand, ...]:
        """Takes the event at time ``now`` (seconds, any origin, never backwards).

        Raises:
            TiledPlayerStateError: the event does not belong here, or ``now`` lies in the past.
            InvalidViewports: the controller's answer is none.
        """
        self._check(event, now)
        if self._state is TiledState.NEW:
            self._state = TiledState.STARTING
            self._began_s = self._clock_s = now
        self._play_until(now)
        match event:
            case ViewportsDecided():
                self._take_decision(event, now)
            case TileArrived():
                self._take_in(event)
            case _:
                pass
        commands = self._commands(now)
        self._has_timer = any(isinstance(command, WaitUntil) for command in commands)
        self._settle()
        return commands

    def _check(self, event: TiledEvent, now: float) -> None:
        is_taken = type(event) in EXPECTS[self._state]
        if isinstance(event, ViewportsDecided):
            is_taken = is_taken and self._question is not None
        elif isinstance(event, TileArrived):
            is_taken = is_taken and event.connection in self._in_flight
        elif isinstance(event, TimerFired):
            is_taken = is_taken and self._has_timer
        if not is_taken:
            raise TiledPlayerStateError(f"{self._state.name} cannot handle {event!s:.200}")
        if self._state is not TiledState.NEW and now < self._clock_s:
            raise TiledPlayerStateError(f"time ran backwards: {now} after {self._clock_s}")

    # Playback

    def _play_until(self, now: float) -> None:
        left_s = now - self._clock_s
        self._clock_s = now
        if self._in_flight:
            self._busy_s += left_s
        while self._state is TiledState.PLAYING and left_s > 0:
            chunk, tick = divmod(self._tick, self._ticks)
            rest_s = self._tick_s - self._within_s
            if left_s < rest_s - ROUNDING_S:
                self._accounts[chunk].show(tick, left_s)
                self._within_s += left_s
                return
            self._accounts[chunk].show(tick, rest_s)
            left_s = max(left_s - rest_s, 0.0)
            self._tick, self._within_s = self._tick + 1, 0.0
            self._enter_tick(now - left_s)
        if self._state in (TiledState.STARTING, TiledState.STALLED):
            self._account(self._tick // self._ticks, now).stall_s += left_s

    def _enter_tick(self, now: float) -> None:
        """Plays on with the current tick, or stalls, or ends."""
        chunk, tick = divmod(self._tick, self._ticks)
        if tick == 0 and chunk > 0:
            self._accounts[chunk - 1].is_over = True
        if chunk == self.video.chunks:
            self._state = TiledState.ENDED
            return
        account = self._account(chunk, now)
        if self._config.missing == "stall" and account.missing(tick, TOUCHED_SHARE):
            self._state = TiledState.STALLED
            return
        self._state = TiledState.PLAYING
        if account.began is None:
            account.began = tuple(account.levels)
            self._queue = [wanted for wanted in self._queue if wanted.chunk > chunk]
            self._next = max(self._next, chunk + 1)
            if self.startup_s is None:
                self.startup_s = now - self._began_s

    def _account(self, chunk: int, now: float) -> ChunkAccount:
        while len(self._accounts) <= chunk:
            index = len(self._accounts)
            self._accounts.append(
                ChunkAccount(
                    index,
                    self.video.levels_kbps,
                    self.video.sizes_bytes[index],
                    self._path[index],
                    self._coverage[index],
                    now,
                )
            )
        return self._accounts[chunk]

    def _may_start(self) -> bool:
        """Chunk 0 is decided and none of its tiles is on its way or still to be fetched."""
        return (
            bool(self._accounts)
            and self._accounts[0].shares is not None
            and not any(wanted.chunk == 0 for wanted in self._queue)
            and not any(flight.chunk == 0 for flight in self._in_flight.values())
        )

    # Events

    def _take_decision(self, event: ViewportsDecided, now: float) -> None:
        assert self._question is not None  # checked
        viewports = check_viewports(event.viewports, horizon=self._config.horizon)
        question, self._question = self._question, None
        account = question.account
        self.decisions_s.append(now - question.asked_s)
        account.decisions += 1
        account.decision_s += now - question.asked_s
        if event.fallback:
            self.fallbacks += 1
            account.fallback = True
        else:
            self._viewer.score(viewports, question.media_s)
        if account.began is not None:
            return  # too late for this chunk
        start_s = account.index * self.video.chunk_s - question.media_s
        middles_s = start_s + self._tick_s * (0.5 + np.arange(self._ticks, dtype=np.float64))
        account.predicted = predicted_at(question.pose, viewports, middles_s, self._config.assumed)
        account.shares = expected_share(self.video.grid, self._config.fov, account.predicted)
        self._queue = [wanted for wanted in self._queue if wanted.chunk != account.index]
        left_s = self.time_left_s(account.index) - self._queued_s()
        if account.decisions > 1:
            left_s = min(left_s, self._spare_s(account))
        self._enqueue(account, left_s * self._config.safety)

    def _enqueue(self, account: ChunkAccount, budget_s: float) -> None:
        assert account.shares is not None  # it has been decided
        shares, link = account.shares, self.link
        account.throughput_kbps = None if link is None else link.rate_kbps
        levels = allocate(
            shares,
            account.left_bytes,
            self.video.levels_kbps,
            account.pending,
            budget_s=budget_s,
            link=link,
            least_share=self._config.least_share,
            is_whole_base=self._config.base == "all",
            is_base_kept=self._config.base_first,
        )
        wanted = [
            Wanted(account.index, tile, level)
            for tile, (level, pending) in enumerate(zip(levels, account.pending, strict=True))
            if level > pending
        ]
        wanted.sort(key=lambda one: -shares[one.tile])
        if self._config.base_first:
            missing = [one.tile for one in wanted if account.pending[one.tile] == MISSING]
            base = [Wanted(account.index, tile, 0) for tile in missing]
            wanted = base + [one for one in wanted if one.level > 0]
        others = [one for one in self._queue if one.chunk != account.index]
        self._queue = sorted(others + wanted, key=lambda one: one.chunk)

    def _take_in(self, event: TileArrived) -> None:
        flight = self._in_flight.pop(event.connection)
        self._idle.append(event.connection)
        self._accounts[flight.chunk].take_in(flight.tile, flight.level, flight.size_bytes)
        self._meter.took(
            flight.size_bytes,
            busy_s=self._busy_s,
            latency_s=max(event.first_byte_s - flight.requested_s, 0.0),
        )
        self._busy_s = 0.0

    # Commands

    def _commands(self, now: float) -> tuple[TiledCommand, ...]:
        if self._state is TiledState.STALLED or (
            self._state is TiledState.STARTING and self._may_start()
        ):
            self._enter_tick(now)
        if self._state is TiledState.ENDED:
            return (Stop(),)
        commands: list[TiledCommand] = []
        if self._state is not TiledState.STARTING:
            self._want_what_is_looked_at()
            self._lower_what_comes_late()
        while self._queue and self._idle:
            commands.append(self._fetch(self._queue[0], now))
        if self._question is None:
            commands.extend(self._questions(now))
        if self._state is TiledState.PLAYING:
            wait_s = self._tick_s - self._within_s
            room_s = self.time_left_s(self._next) - self._config.buffer_cap_s
            commands.append(WaitUntil(now + (room_s if 0 < room_s < wait_s else wait_s)))
        return tuple(commands)

    def _want_what_is_looked_at(self) -> None:
        """Puts missing tiles of the current field of view in front; drops what is in vain."""
        chunk, tick = divmod(self._tick, self._ticks)
        account = self._accounts[chunk]
        missing = {
            tile: Wanted(chunk, tile, account.quickest_level(tile))
            for tile in account.missing(tick, TOUCHED_SHARE)
            if account.pending[tile] == MISSING and self._comes_in_time(chunk, tile)
        }
        others = [
            wanted
            for wanted in self._queue
            if wanted.chunk > chunk
            or (wanted.chunk == chunk and account.began is None and wanted.tile not in missing)
        ]
        self._queue = [*missing.values(), *others]

    def _comes_in_time(self, chunk: int, tile: int) -> bool:
        """Whether a tile of the chunk that plays would come before the chunk is over."""
        link = self.link
        if self._config.missing == "stall" or link is None:
            return True
        left_bytes = min(self._accounts[chunk].left_bytes[tile])
        return link.alone_s(left_bytes) < self.time_left_s(chunk + 1)

    def _lower_what_comes_late(self) -> None:
        """Plans the first chunk that has not begun anew if its tiles would not be in time."""
        coming = next(
            (one.chunk for one in self._queue if self._accounts[one.chunk].began is None), None
        )
        if coming is None or self._accounts[coming].shares is None:
            return
        queue = [wanted for wanted in self._queue if wanted.chunk <= coming]
        left_s = self.time_left_s(coming)
        if self._queued_s(queue) > left_s and any(wanted.level > 0 for wanted in queue):
            urgent_s = self._queued_s([one for one in queue if one.chunk < coming])
            self._enqueue(self._accounts[coming], (left_s - urgent_s) * self._config.safety)

    def _queued_s(self, queue: Sequence[Wanted] | None = None) -> float:
        """Download time of what is to be fetched."""
        queue = self._queue if queue is None else queue
        if not queue:
            return 0.0
        link = self.link
        if link is None:
            return math.inf
        return sum(link.seconds(self._left_bytes(one)) for one in queue)

    def _left_bytes(self, wanted: Wanted) -> int:
        return self._accounts[wanted.chunk].left_bytes[wanted.tile][wanted.level]

    def _fetch(self, wanted: Wanted, now: float) -> FetchTile:
        connection, account = self._idle.pop(), self._accounts[wanted.chunk]
        chunk, tile, level = wanted.chunk, wanted.tile, wanted.level
        left_bytes = self._left_bytes(wanted)
        size_bytes = piece_bytes(left_bytes, self.link, self._config.piece_s, self.connections)
        if size_bytes == left_bytes:
            self._queue.remove(wanted)
        first_byte = account.request(tile, level, size_bytes)
        self._in_flight[connection] = Flight(chunk, tile, level, size_bytes, now)
        return FetchTile(connection, chunk, tile, level, size_bytes, first_byte)

    def _questions(self, now: float) -> tuple[AskViewports, ...]:
        """The next chunk's when there is room, early by the time that the last answer took."""
        thinking_s = self.decisions_s[-1] if self.decisions_s else 0.0
        if (
            self._next < self.video.chunks
            and self.time_left_s(self._next) <= self._config.buffer_cap_s + ROUNDING_S
            and self._queued_s() <= thinking_s
        ):
            account = self._account(self._next, now)
            account.buffer_s = self.time_left_s(self._next)
            self._next += 1
            return (self._ask(account, now),)
        refresh_s = self._config.refresh_s
        if (
            refresh_s is not None
            and self._state is TiledState.PLAYING
            and self._idle
            and not self._queue
        ):
            least_s = max(refresh_s, 2 * thinking_s) - ROUNDING_S
            for account in self._accounts[self._tick // self._ticks + 1 : self._next]:
                is_old = self.media_s - account.asked_media_s >= refresh_s - ROUNDING_S
                if is_old and self._spare_s(account) >= least_s:
                    return (self._ask(account, now),)
        return ()

    def _spare_s(self, account: ChunkAccount) -> float:
        """Time for better levels: until the chunk plays, or the next one is asked for."""
        spare_s = self.time_left_s(account.index)
        if self._next < self.video.chunks:
            spare_s = min(spare_s, self.time_left_s(self._next) - self._config.buffer_cap_s)
        return spare_s

    def _ask(self, account: ChunkAccount, now: float) -> AskViewports:
        account.asked_media_s = self.media_s
        observation = self._viewer.observe(self.media_s)
        self._question = _Question(account, now, self.media_s, observation.history[-1])
        return AskViewports(observation, account.index)

    def _settle(self) -> None:
        """Writes the records of chunks of which nothing more will come."""
        while len(self._records) < len(self._accounts):
            account = self._accounts[len(self._records)]
            is_coming = any(one.chunk == account.index for one in self._in_flight.values())
            is_open = self._question is not None and self._question.account is account
            is_left = self._state is TiledState.ENDED
            if not account.is_over or ((is_coming or is_open) and not is_left):
                return
            self._records.append(account.record(self._began_s))
