"""Plans of task ``viewport``: recordings, who looked before, traces and tiled video, loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from controllers import registry
from player.head_motion import HeadMotion
from player.head_motion_windows import windows
from player.tiled_events import TiledPlayerConfigError
from player.tiled_machine import TiledPlayer
from player.tiled_video import TiledVideo
from testbed.builtin import resolve_recordings
from testbed.experiment_base import ConfigError
from testbed.experiment_sections import ArmConfig
from testbed.session_records import viewport_unit
from testbed.sessions import Plan, Session, StreamPlan, list_players, resolve_starts
from testbed.tiled_videos import resolve_tiled_videos
from testbed.viewport_experiment import MIN_CHUNKS, ViewportExperiment

#: Of a number of chunks, which times of samples end up short of.
ROUNDING = 1e-6
Item = TypeVar("Item")
#: Recordings of earlier viewers of the same video, by the name of a recording.
Earlier = Mapping[str, tuple[HeadMotion, ...]]


@dataclass(frozen=True, slots=True)
class PredictionSession:
    """One arm on one recording, nothing streamed.

    Attributes:
        number: position in the experiment's list of sessions.
        arm: the arm.
        motion: the recording.
    """

    number: int
    arm: ArmConfig
    motion: HeadMotion

    @property
    def client(self) -> int:
        """Nothing is shared."""
        return 0

    @property
    def group(self) -> str:
        """Nothing is shared."""
        return self.arm.label

    @property
    def unit(self) -> str:
        """What it is played on, equal for all arms."""
        return self.motion.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewportSession(Session):
    """One player that replays one recording over one trace.

    Attributes:
        motion: the recording.
    """

    motion: HeadMotion

    @property
    def unit(self) -> str:
        """What it is played on, equal for all arms."""
        return viewport_unit(self.motion.name, self.trace.name)


@dataclass(frozen=True)
class PredictionPlan(Plan):
    """Predictions to be compared with recordings.

    Attributes:
        earlier: what controllers are told of others.
    """

    experiment: ViewportExperiment
    sessions: tuple[PredictionSession, ...]
    earlier: Earlier


@dataclass(frozen=True)
class ViewportPlan(StreamPlan):
    """Tiled streaming to players that replay recordings.

    Attributes:
        earlier: what controllers are told of others.
        videos: what is played, by the name of the recording, as long as that lasts.
    """

    experiment: ViewportExperiment
    sessions: tuple[ViewportSession, ...]
    earlier: Earlier
    videos: Mapping[str, TiledVideo]

    def chunks_of(self, session: Session) -> int:
        """As many as the recording lasts for."""
        assert isinstance(session, ViewportSession)  # those of this plan are
        return self.videos[session.motion.name].chunks

    def player(self, session: ViewportSession) -> TiledPlayer:
        """A new player of the session."""
        name = session.motion.name
        return TiledPlayer(
            self.videos[name],
            session.motion,
            self.experiment.player_config,
            self.earlier_of(session),
        )

    def earlier_of(self, session: ViewportSession) -> tuple[HeadMotion, ...]:
        """Who looked before, if the session's arm or the fallback wants to know."""
        fallback = self.experiment.player.fallback
        names = (session.arm.controller, *((fallback,) if fallback is not None else ()))
        if not any(registry.uses_earlier_viewers(self.experiment.task, name) for name in names):
            return ()
        return self.earlier.get(session.motion.name, ())


def plan_viewport(
    experiment: ViewportExperiment, data_dir: Path | None, base: Path
) -> PredictionPlan | ViewportPlan:
    """Loads recordings, and traces and video where there is streaming; lists the sessions.

    Recordings take turns with the traces, the same for all arms.

    Args:
        experiment: the checked experiment.
        data_dir: what ``data:`` stands for.
        base: folder that relative paths start from.

    Raises:
        ConfigError, HeadMotionError, TiledVideoError, TraceError, TraceFormatError, DataNotFound,
        UnknownController: what is wrong, and where.
    """
    experiment.check_controllers()
    recordings, earlier = _recordings(experiment, data_dir, base)
    if experiment.driver == "offline":
        return _prediction_plan(experiment, recordings, earlier)
    starts = resolve_starts(experiment, data_dir, base)
    videos = _cut_videos(
        experiment, recordings, resolve_tiled_videos(experiment.tiles, recordings, data_dir, base)
    )
    players = [
        (motion, starts[turn % len(starts)], player)
        for turn, motion in enumerate(recordings)
        for player in list_players(experiment)
    ]
    sessions = tuple(
        ViewportSession(
            number=number,
            arm=player.arm,
            trace=start.trace,
            start_index=start.start_index,
            client=player.client,
            group=player.group,
            up_trace=start.up_trace,
            motion=motion,
        )
        for number, (motion, start, player) in enumerate(players)
    )
    plan = ViewportPlan(experiment, sessions, earlier, videos)
    try:
        plan.player(sessions[0])
    except TiledPlayerConfigError as error:
        raise ConfigError(f"player: {error}") from error
    return plan


def _recordings(
    experiment: ViewportExperiment, data_dir: Path | None, base: Path
) -> tuple[tuple[HeadMotion, ...], Earlier]:
    where, predict = experiment.viewports, experiment.predict
    found = resolve_recordings(where, data_dir, base, experiment.videos, experiment.users)
    recordings = spread(found, experiment.recordings)
    if predict.earlier_viewers == "none":
        return recordings, {}
    videos = sorted({one.video for one in recordings if one.video is not None})
    users = None if predict.earlier_viewers == "rest" else predict.earlier_viewers
    named = set(experiment.users or ()) if users is None else set()
    others = resolve_recordings(where, data_dir, base, videos, users)
    earlier = {
        one.name: tuple(
            other
            for other in others
            if other.video == one.video and other.user != one.user and other.user not in named
        )[: predict.earlier_limit]
        for one in recordings
    }
    if not any(earlier.values()):
        raise ConfigError(
            f"predict.earlier_viewers: {predict.earlier_viewers!r} are no viewers of {where} "
            "besides those whose recordings are replayed"
        )
    return recordings, earlier


def _cut_videos(
    experiment: ViewportExperiment,
    recordings: Sequence[HeadMotion],
    videos: Mapping[int | None, TiledVideo],
) -> dict[str, TiledVideo]:
    """The video of each recording, as long as that lasts and the experiment says."""
    cut = {}
    for motion in recordings:
        video = videos[motion.video]
        lasts = min(math.floor(motion.duration_s / video.chunk_s + ROUNDING), video.chunks)
        chunks = lasts if experiment.chunks is None else experiment.chunks
        if not MIN_CHUNKS <= chunks <= lasts:
            raise ConfigError(
                f"chunks: {motion.name} lasts for {lasts} chunks of {video.chunk_s:g} s, "
                f"asked for {chunks}, at least {MIN_CHUNKS}"
            )
        cut[motion.name] = video.first(chunks)
    return cut


def spread(items: Sequence[Item], count: int | None) -> tuple[Item, ...]:
    """At most ``count`` of the items, evenly spread over them; all for None."""
    if count is None or count >= len(items):
        return tuple(items)
    return tuple(items[index * len(items) // count] for index in range(count))


def _prediction_plan(
    experiment: ViewportExperiment,
    recordings: Sequence[HeadMotion],
    earlier: Earlier,
) -> PredictionPlan:
    predict = experiment.predict
    try:
        samples = sum(
            len(windows(one, predict.history, predict.horizon, predict.step).index)
            for one in recordings
        )
    except ValueError as error:
        raise ConfigError(f"predict: {error}") from error
    if not samples:
        raise ConfigError(f"viewports: {experiment.viewports}: no recording is long enough")
    pairs = [(motion, arm) for motion in recordings for arm in experiment.arms]
    return PredictionPlan(
        experiment,
        tuple(PredictionSession(number, arm, motion) for number, (motion, arm) in enumerate(pairs)),
        earlier,
    )
