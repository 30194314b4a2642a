"""Streamed sessions of task ``viewport``: the simulated player, and the record of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controllers import registry
from player.records import BackgroundRecord, CaptureRecord, LinkRecord
from player.tiled_link import SharedLinkModel
from player.tiled_machine import TiledPlayer
from player.tiled_simulated import play_tiled_simulated
from player.viewport_records import TiledChunkRecord, ViewportSessionRecord
from testbed.session_pool import ArmControllers
from testbed.simulation import decision_time
from testbed.statistics import mean
from testbed.viewport_experiment import ViewportExperiment
from testbed.viewport_plans import ViewportPlan, ViewportSession

MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewerFigures:
    """What a player knows of its session besides the chunks.

    Attributes:
        mae_deg: see :class:`player.viewport_records.ViewportSessionRecord`.
        mae_by_step_deg: likewise.
        startup_s: likewise.
        downloaded_bytes: of all tiles that arrived; None: of those in the chunks' records.
        fallbacks: likewise.
        decisions_ms: likewise.
    """

    mae_deg: float | None = None
    mae_by_step_deg: tuple[float | None, ...] = ()
    startup_s: float | None = None
    downloaded_bytes: int | None = None
    fallbacks: int = 0
    decisions_ms: tuple[float, ...] = ()

    @classmethod
    def of(cls, player: TiledPlayer) -> ViewerFigures:
        """Those of a player so far."""
        return cls(
            mae_deg=player.errors.mae_deg,
            mae_by_step_deg=player.errors.mae_by_step_deg,
            startup_s=player.startup_s,
            downloaded_bytes=player.downloaded_bytes,
            fallbacks=player.fallbacks,
            decisions_ms=tuple(taken_s * MS_PER_S for taken_s in player.decisions_s),
        )


def viewer_record(
    experiment: ViewportExperiment,
    session: ViewportSession,
    chunks: Sequence[TiledChunkRecord],
    figures: ViewerFigures,
    *,
    error: str | None,
    wall_s: float,
    link: LinkRecord,
    background: tuple[BackgroundRecord, ...] = (),
    capture: CaptureRecord | None = None,
) -> ViewportSessionRecord:
    """What is written down about a session."""
    used_bytes = sum(chunk.used_bytes for chunk in chunks)
    downloaded_bytes = figures.downloaded_bytes
    if downloaded_bytes is None:
        downloaded_bytes = sum(chunk.size_bytes for chunk in chunks)
    stalled_s = sum(chunk.stall_s for chunk in chunks) - (figures.startup_s or 0.0)
    return ViewportSessionRecord(
        arm=session.arm.label,
        controller=session.arm.controller,
        recording=session.motion.name,
        trace=session.trace.name,
        seed=experiment.seed,
        driver=experiment.driver,
        status="ok" if error is None else "failed",
        error=error,
        mae_deg=figures.mae_deg,
        mae_by_step_deg=figures.mae_by_step_deg,
        viewport_bitrate_kbps=mean([chunk.viewport_bitrate_kbps for chunk in chunks]),
        viewport_level=mean([chunk.viewport_level for chunk in chunks]),
        blank_ratio=mean([chunk.blank_ratio for chunk in chunks]),
        stall_s=max(stalled_s, 0.0) if chunks else None,
        startup_s=figures.startup_s,
        bytes_used=used_bytes,
        bytes_wasted=downloaded_bytes - used_bytes,
        fallbacks=figures.fallbacks,
        wall_s=wall_s,
        start_index=session.start_index,
        link=link,
        chunks=tuple(chunks),
        decisions_ms=figures.decisions_ms,
        capture=capture,
        client=session.client,
        group=session.group,
        background=background,
    )


class TiledSessionPlayer:
    """Simulates sessions of one plan; makes each arm's controller once."""

    def __init__(self, plan: ViewportPlan) -> None:
        self._plan = plan
        self._controllers = ArmControllers(plan.experiment.task)

    def prepare(self, sessions: Sequence[ViewportSession]) -> None:
        """Makes the controllers of these sessions."""
        for session in sessions:
            self._controllers.of(session.arm)

    def play(self, session: ViewportSession) -> ViewportSessionRecord:
        """Plays one session. A controller that fails makes the session fail, not the run."""
        experiment = self._plan.experiment
        player = self._plan.player(session)
        error: str | None = None
        wall_s = 0.0
        try:
            wall_s = play_tiled_simulated(
                player,
                shared_link_model(experiment, session),
                bound_to_session(self._controllers.of(session.arm), session).decide,
                start_s=session.start_s,
                decision_time=decision_time(experiment),
            )
        except Exception as caught:  # whatever a controller raises belongs into its record
            error = f"{type(caught).__name__}: {caught}"
        return viewer_record(
            experiment,
            session,
            player.chunks,
            ViewerFigures.of(player),
            error=error,
            wall_s=wall_s,
            link=LinkRecord(backend=f"model:{experiment.link.model}"),
        )


def shared_link_model(experiment: ViewportExperiment, session: ViewportSession) -> SharedLinkModel:
    """The link model that the experiment names, on the session's trace."""
    if experiment.link.model == "pensieve":
        return SharedLinkModel.pensieve(session.trace)
    return SharedLinkModel.tcp(session.trace, delay_s=experiment.link.delay_ms / 1000)


def bound_to_session(controller: Any, session: ViewportSession) -> registry.Controller:
    """The controller; one that knows the future is told that of the session."""
    if registry.needs_future("viewport", session.arm.controller):
        controller = controller.for_session(session.motion)
    bound: registry.Controller = controller
    return bound
