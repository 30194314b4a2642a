"""Simulated sessions of an experiment: the player of task ``abr``, and what all tasks share."""

from __future__ import annotations

from collections.abc import Sequence

from controllers import registry
from player.link_models import LinkModel, PensieveLink, TcpLink
from player.machine import Player
from player.qoe import session_qoe
from player.records import LinkRecord, SessionRecord, mean_latency_s
from player.simulated import DecisionTime, play_simulated
from testbed.abr_experiment import AbrPlan
from testbed.experiment_base import Experiment
from testbed.session_pool import ArmControllers
from testbed.sessions import Session


class AbrSessionPlayer:
    """Plays sessions of one plan; makes each arm's controller once."""

    def __init__(self, plan: AbrPlan) -> None:
        self._plan = plan
        self._controllers = ArmControllers(plan.experiment.task)

    def prepare(self, sessions: Sequence[Session]) -> None:
        """Makes the controllers of these sessions."""
        for session in sessions:
            self._controllers.of(session.arm)

    def play(self, session: Session) -> SessionRecord:
        """Plays one session. A controller that fails makes the session fail, not the run."""
        experiment, video = self._plan.experiment, self._plan.video
        controller = self._controllers.of(session.arm)
        link = link_model(experiment, session)
        player = Player(video, experiment.player_config)
        error: str | None = None
        wall_s = 0.0
        try:
            if registry.needs_future(experiment.task, session.arm.controller):
                controller = controller.for_session(  # type: ignore[attr-defined]
                    video, link, session.start_s, experiment.player_config
                )
            wall_s = play_simulated(
                player,
                link,
                controller.decide,
                start_s=session.start_s,
                decision_time=decision_time(experiment),
            )
        except Exception as caught:  # whatever a controller raises belongs into its record
            error = f"{type(caught).__name__}: {caught}"
        return SessionRecord(
            arm=session.arm.label,
            controller=session.arm.controller,
            trace=session.trace.name,
            seed=experiment.seed,
            driver="simulated",
            status="ok" if error is None else "failed",
            error=error,
            qoe_per_chunk=session_qoe([chunk.qoe for chunk in player.chunks]),
            startup_s=player.startup_s,
            wall_s=wall_s,
            start_index=session.start_index,
            link=LinkRecord(backend=f"model:{experiment.link.model}"),
            chunks=player.chunks,
            client=session.client,
            group=session.group,
            latency_s=mean_latency_s(player.chunks),
        )


def link_model(experiment: Experiment, session: Session) -> LinkModel:
    """The link model that the experiment names, on the session's trace."""
    if experiment.link.model == "pensieve":
        return PensieveLink(session.trace)
    return TcpLink(session.trace, delay_s=experiment.link.delay_ms / 1000)


def decision_time(experiment: Experiment) -> DecisionTime:
    """What a decision costs on the playback clock."""
    wanted = experiment.simulation.decision_s
    if wanted == "auto":
        wanted = 0.0 if experiment.link.model == "pensieve" else "measured"
    return DecisionTime(
        compute_s=None if wanted == "measured" else wanted,
        network_s=2 * experiment.controller_link.delay_ms / 1000,
    )
