"""Emulated sessions of task ``abr``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from player.content import load_pack
from player.headless import play_headless
from player.qoe import session_qoe
from player.records import ChunkRecord, SessionRecord
from player.server import HostedVideo
from player.video import Video
from testbed.abr_experiment import AbrPlan, abr_experiment
from testbed.browser_emulation import play_with_dashjs
from testbed.emulated_task import Played, Seat, Shared
from testbed.experiment_base import Experiment
from testbed.sessions import Session

_VIDEO = pydantic.TypeAdapter(Video)


class AbrEmulation:
    """See :class:`testbed.emulated_task.EmulatedTask`."""

    def prepare(self, plan: AbrPlan) -> None:
        """Makes the media content of the video's ladder."""
        load_pack(plan.video.levels_kbps, plan.video.chunk_s).check(plan.video)

    def encode(self, plan: AbrPlan, sessions: Sequence[Session]) -> dict[str, Any]:
        """The video."""
        return {"video": dataclasses.asdict(plan.video)}

    def encode_session(self, session: Session) -> dict[str, Any]:
        """Nothing."""
        return {}

    def decode(
        self,
        experiment: Experiment,
        sessions: Sequence[tuple[Session, Mapping[str, Any]]],
        content: Mapping[str, Any],
    ) -> AbrPlan:
        """The plan with the sessions to play."""
        return AbrPlan(
            abr_experiment(experiment, "such plans"),
            tuple(session for session, _ in sessions),
            _VIDEO.validate_python(content["video"]),
        )

    def labels(self, session: Session) -> dict[str, str]:
        """The trace."""
        return {"trace": session.trace.name}

    def hosted(self, plan: AbrPlan, session: Session) -> HostedVideo:
        """The video with its content."""
        return HostedVideo(plan.video, load_pack(plan.video.levels_kbps, plan.video.chunk_s))

    async def play(self, plan: AbrPlan, session: Session, seat: Seat) -> float:
        """Streams the video."""
        if plan.experiment.player_of(session.arm) == "dashjs":
            return await play_with_dashjs(plan, session, seat)
        played = await play_headless(
            manifest_url=seat.manifest_url,
            ask=seat.ask,
            session_id=seat.session_id,
            player_config=plan.experiment.player_config,
            fallback=seat.fallback,
            limits=seat.limits,
            before_start=seat.before_start,
            on_chunk=seat.on_chunk,
        )
        return played.wall_s

    def chunk(self, document: Mapping[str, Any]) -> ChunkRecord:
        """The record of a chunk."""
        return ChunkRecord(**document)

    def record(self, plan: AbrPlan, played: Played, shared: Shared) -> SessionRecord:
        """What is written down about a player."""
        session, chunks = played.session, played.chunks
        return SessionRecord(
            arm=session.arm.label,
            controller=session.arm.controller,
            trace=session.trace.name,
            seed=plan.experiment.seed,
            driver="emulated",
            status="ok" if played.error is None else "failed",
            error=played.error,
            qoe_per_chunk=session_qoe([chunk.qoe for chunk in chunks]),
            startup_s=_startup_s(played),
            wall_s=played.wall_s,
            start_index=session.start_index,
            link=shared.link,
            chunks=tuple(chunks),
            client=session.client,
            group=session.group,
            background=shared.background,
            capture=played.capture,
            player=plan.experiment.player_of(session.arm),
            starved_s=played.figures.get("starved_s", 0.0),
        )


def _startup_s(played: Played) -> float | None:
    """Until the first chunk was in, or until the player saw its first picture."""
    told: float | None = played.figures.get("startup_s")
    if told is None and played.chunks:
        return float(played.chunks[0].rebuffer_s)
    return told
