"""Emulated sessions of task ``abr``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pydantic

from player.content import load_pack
from player.headless import play_headless
from player.qoe import session_qoe
from player.records import ChunkRecord, ProcessRecord, SessionRecord, mean_latency_s
from player.server import HostedVideo
from player.video import Video
from testbed.abr_experiment import AbrPlan, abr_experiment
from testbed.browser_emulation import play_with_dashjs
from testbed.emulated_task import Played, Seat, Shared
from testbed.experiment_base import Experiment
from testbed.experiment_sections import PlayerKind
from testbed.sessions import Session

#: Time from the start of a player's process until it must be ready to join a live event.
LIVE_SETUP_S: Mapping[PlayerKind, float] = MappingProxyType({"headless": 8.0, "dashjs": 30.0})
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

    def live_start_s(
        self, plan: AbrPlan, sessions: Sequence[Session], now_s: float
    ) -> float | None:
        """As old as the target latency when the slowest kind of player has had its set-up."""
        experiment = plan.experiment
        if experiment.player.live is None:
            return None
        setup_s = max(LIVE_SETUP_S[experiment.player_of(session.arm)] for session in sessions)
        return now_s + setup_s - experiment.player.live.target_latency_s

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
            live_start_s=seat.live_start_s,
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
            browser=_browser(played),
            latency_s=mean_latency_s(chunks),
        )


def _browser(played: Played) -> ProcessRecord | None:
    """What the player's browser used, where it had one."""
    told = played.figures.get("browser")
    return None if told is None else ProcessRecord(**told)


def _startup_s(played: Played) -> float | None:
    """Until the first chunk was in, or until the player saw its first picture."""
    told: float | None = played.figures.get("startup_s")
    if told is None and played.chunks:
        return float(played.chunks[0].rebuffer_s)
    return told
