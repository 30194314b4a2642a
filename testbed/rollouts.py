"""Scores of a controller by playing an experiment with it, for choosing a checkpoint."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from player.machine import Player
from player.qoe import session_qoe
from player.simulated import Decide, play_simulated
from testbed.abr_experiment import abr_plan
from testbed.experiment_base import ConfigError
from testbed.sessions import Plan, Session
from testbed.simulation import link_model


def rollout_score(plan: Plan) -> Callable[[Decide], float]:
    """The mean QoE that a controller reaches on every trace and start of a plan, in simulation.

    The plan's arms only serve to list its sessions. Decisions are free.

    Raises:
        ConfigError: the plan is not a simulated experiment of task ``abr``.
    """
    played = abr_plan(plan, "validation experiments")
    experiment = played.experiment
    if experiment.driver != "simulated":
        raise ConfigError("a validation experiment must have driver = 'simulated'")
    once: dict[tuple[str, int], Session] = {
        (session.trace.name, session.start_index): session for session in played.sessions
    }

    def play(session: Session, decide: Decide) -> float:
        player = Player(played.video, experiment.player_config)
        play_simulated(player, link_model(experiment, session), decide, start_s=session.start_s)
        qoe = session_qoe([chunk.qoe for chunk in player.chunks])
        assert qoe is not None  # an experiment has at least two chunks
        return qoe

    def score(decide: Decide) -> float:
        return statistics.fmean(play(session, decide) for session in once.values())

    return score
