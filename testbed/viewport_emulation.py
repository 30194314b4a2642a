"""Emulated sessions of task ``viewport``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pydantic

from controllers import registry
from player.head_motion import HeadMotion
from player.server import HostedTiledVideo
from player.tiled_headless import AskController, play_tiled_headless
from player.tiled_machine import TiledPlayer
from player.tiled_video import TiledVideo
from player.viewport_observation import Viewport, ViewportObservation
from player.viewport_records import TiledChunkRecord, ViewportSessionRecord
from testbed.emulated_task import Played, Seat, Shared
from testbed.experiment_base import Experiment
from testbed.sessions import Session
from testbed.viewport_experiment import ViewportExperiment
from testbed.viewport_plans import ViewportPlan, ViewportSession
from testbed.viewport_streaming import ViewerFigures, bound_to_session, viewer_record

_VIDEO = pydantic.TypeAdapter(TiledVideo)
_CHUNK = pydantic.TypeAdapter(TiledChunkRecord)
_FIGURES = pydantic.TypeAdapter(ViewerFigures)


class ViewportEmulation:
    """See :class:`testbed.emulated_task.EmulatedTask`."""

    def prepare(self, plan: ViewportPlan) -> None:
        """Tiles are made as they are sent."""

    def encode(self, plan: ViewportPlan, sessions: Sequence[ViewportSession]) -> dict[str, Any]:
        """The recordings, those of earlier viewers, and the videos; each once."""
        names = {session.motion.name for session in sessions}
        earlier: dict[str, tuple[HeadMotion, ...]] = dict.fromkeys(names, ())
        for session in sessions:
            earlier[session.motion.name] = earlier[session.motion.name] or plan.earlier_of(session)
        used = {plan.videos[name].name: plan.videos[name] for name in names}
        for name in names:  # of the same video the longest cut
            video = plan.videos[name]
            if video.chunks > used[video.name].chunks:
                used[video.name] = video
        return {
            "recordings": _encode_recordings(
                [session.motion for session in sessions]
                + [other for others in earlier.values() for other in others]
            ),
            "earlier": {name: [other.name for other in earlier[name]] for name in names},
            "videos": {name: dataclasses.asdict(video) for name, video in used.items()},
            "plays": {name: [plan.videos[name].name, plan.videos[name].chunks] for name in names},
        }

    def encode_session(self, session: ViewportSession) -> dict[str, Any]:
        """Which recording it replays."""
        return {"recording": session.motion.name}

    def decode(
        self,
        experiment: Experiment,
        sessions: Sequence[tuple[Session, Mapping[str, Any]]],
        content: Mapping[str, Any],
    ) -> ViewportPlan:
        """The plan with the sessions to play."""
        assert isinstance(experiment, ViewportExperiment)  # or this would not be asked
        recordings = _decode_recordings(content["recordings"])
        videos = {
            name: _VIDEO.validate_python(document) for name, document in content["videos"].items()
        }
        return ViewportPlan(
            experiment,
            tuple(
                ViewportSession(
                    **{item.name: getattr(session, item.name) for item in _SESSION_FIELDS},
                    motion=recordings[more["recording"]],
                )
                for session, more in sessions
            ),
            {
                name: tuple(recordings[other] for other in others)
                for name, others in content["earlier"].items()
            },
            {
                name: videos[video].first(chunks)
                for name, (video, chunks) in content["plays"].items()
            },
        )

    def labels(self, session: ViewportSession) -> dict[str, str]:
        """Trace and recording."""
        return {"trace": session.trace.name, "recording": session.motion.name}

    def hosted(self, plan: ViewportPlan, session: ViewportSession) -> HostedTiledVideo:
        """The video of the session."""
        return HostedTiledVideo(plan.videos[session.motion.name])

    def live_start_s(
        self, plan: ViewportPlan, sessions: Sequence[ViewportSession], now_s: float
    ) -> None:
        """Nothing is live."""

    async def play(self, plan: ViewportPlan, session: ViewportSession, seat: Seat) -> float:
        """Streams the video to a player that replays the recording."""
        players: list[TiledPlayer] = []
        try:
            played = await play_tiled_headless(
                manifest_url=seat.manifest_url,
                motion=session.motion,
                ask=_asked_here(plan, session) or seat.ask,
                session_id=seat.session_id,
                player_config=plan.experiment.player_config,
                earlier=plan.earlier_of(session),
                fallback=seat.fallback,
                limits=seat.limits,
                before_start=seat.before_start,
                on_player=players.append,
                on_chunk=seat.on_chunk,
            )
        finally:
            for player in players:
                seat.on_figures(dataclasses.asdict(ViewerFigures.of(player)))
        return played.wall_s

    def chunk(self, document: Mapping[str, Any]) -> TiledChunkRecord:
        """The record of a chunk."""
        return _CHUNK.validate_python(document)

    def record(self, plan: ViewportPlan, played: Played, shared: Shared) -> ViewportSessionRecord:
        """What is written down about a player."""
        assert isinstance(played.session, ViewportSession)  # those of this plan are
        return viewer_record(
            plan.experiment,
            played.session,
            played.chunks,
            _FIGURES.validate_python(played.figures),
            error=played.error,
            wall_s=played.wall_s,
            link=shared.link,
            background=shared.background,
            capture=played.capture,
        )


_SESSION_FIELDS = dataclasses.fields(Session)


def _asked_here(plan: ViewportPlan, session: ViewportSession) -> AskController | None:
    """Asks an arm that knows the recording, in this process; None: the arm is not of that kind.

    The controller service keeps nothing about any session, so it cannot know the recording.
    """
    arm = session.arm
    if not registry.needs_future(plan.experiment.task, arm.controller):
        return None
    made = registry.create(plan.experiment.task, arm.controller, arm.options)
    decide: Callable[[ViewportObservation], tuple[Viewport, ...]] = bound_to_session(
        made, session
    ).decide

    async def ask(observation: ViewportObservation) -> tuple[Viewport, ...]:
        return decide(observation)

    return ask


def _encode_recordings(recordings: Iterable[HeadMotion]) -> dict[str, Any]:
    by_name = {motion.name: motion for motion in recordings}
    return {
        name: {
            **dataclasses.asdict(motion),
            "times_s": motion.times_s.tolist(),
            "poses_deg": motion.poses_deg.tolist(),
        }
        for name, motion in by_name.items()
    }


def _decode_recordings(document: Mapping[str, Any]) -> dict[str, HeadMotion]:
    return {
        name: HeadMotion(
            **{
                **fields,
                "times_s": np.array(fields["times_s"]),
                "poses_deg": np.array(fields["poses_deg"]),
            }
        )
        for name, fields in document.items()
    }
