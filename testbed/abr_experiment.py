"""Experiments with task ``abr``: every arm streams one video over every trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from controllers import registry
from player.abandonment import Abandonment
from player.browser_parts import BrowserMissing, find_browser
from player.browser_rules import DASHJS_CONTROLLERS
from player.machine import PlayerConfig
from player.qoe import PENSIEVE_QOE, QoeWeights
from player.video import Video
from testbed.browser_checks import check_browser_keys
from testbed.builtin import resolve_video
from testbed.experiment_base import ConfigError, Experiment
from testbed.experiment_checks import require
from testbed.experiment_sections import ArmConfig, PlayerKind, PlayerSettings, VideoConfig
from testbed.sessions import Plan, Session, StreamPlan, list_sessions, resolve_starts


@dataclass(frozen=True, kw_only=True)
class AbrExperiment(Experiment):
    """Adaptive streaming: the controller chooses the level of the next chunk."""

    task: Literal["abr"]
    driver: Literal["simulated", "emulated"] = "emulated"
    chunks: int = 48
    video: VideoConfig = field(default_factory=VideoConfig)
    player: PlayerSettings = field(default_factory=PlayerSettings)
    qoe: QoeWeights = PENSIEVE_QOE

    @property
    def player_config(self) -> PlayerConfig:
        """The settings of the player machine."""
        first = self.player.first_level
        return PlayerConfig(
            buffer_cap_s=self.player.buffer_cap_s,
            first_level=None if first == "ask" else first,
            qoe=self.qoe,
            live=self.player.live,
            abandonment=Abandonment() if self.player.abandon else None,
        )

    @property
    def decision_settings(self) -> PlayerSettings:
        """The table ``[player]``."""
        return self.player

    @property
    def has_browser(self) -> bool:
        """Whether a browser plays, in some arm at least."""
        return any(self.player_of(arm) == "dashjs" for arm in self.arms)

    @property
    def has_live_or_abandons(self) -> bool:
        """Whether sessions do what searches over the known trace do not reckon with."""
        return self.player.live is not None or self.player.abandon

    def player_of(self, arm: ArmConfig) -> PlayerKind:
        """What plays in an arm."""
        return arm.player or self.player.kind

    def is_remote(self, arm: ArmConfig) -> bool:
        """Whether a controller of the registry decides; False: dash.js does by itself."""
        return arm.controller not in DASHJS_CONTROLLERS

    def check(self) -> None:
        """See :meth:`Experiment.check`."""
        super().check()
        require(self.chunks >= 2, "chunks: at least 2 (chunk 0 is not scored)")
        require(self.player.buffer_cap_s > 0, "player.buffer_cap_s: must be positive")
        require(self.player.chunk_timeout_s > 0, "player.chunk_timeout_s: must be positive")
        self._check_live()
        for arm in self.arms:
            check_browser_keys(arm, self.player_of(arm), self.driver)
            require(
                not self.player.abandon or self.player_of(arm) == "headless",
                f"player.abandon: the headless player does it alone, and dash.js plays "
                f"{arm.label!r} of arms",
            )
            require(
                self.driver == "simulated"
                or not self.is_remote(arm)
                or not registry.needs_future(self.task, arm.controller),
                f"arms: {arm.label!r} knows the future of the trace; use driver = 'simulated'",
            )

    def _check_live(self) -> None:
        live, chunk_s = self.player.live, self.video.chunk_s
        require(
            live is None or live.target_latency_s >= chunk_s,
            f"player.live.target_latency_s: must be at least video.chunk_s, {chunk_s:g} s: a chunk "
            "is available when all of it has been filmed",
        )
        if not self.has_live_or_abandons:
            return
        key = "player.abandon" if live is None else "player.live"
        for arm in self.arms:
            require(
                not self.is_remote(arm) or not registry.needs_future(self.task, arm.controller),
                f"{key}: {arm.label!r} of arms plans for sessions without it",
            )


@dataclass(frozen=True)
class AbrPlan(StreamPlan):
    """An experiment with its video."""

    experiment: AbrExperiment
    video: Video

    def chunks_of(self, session: Session) -> int:
        """All sessions play the same chunks."""
        return self.video.chunks


def plan_abr(experiment: AbrExperiment, data_dir: Path | None, base: Path) -> AbrPlan:
    """Loads traces, video and start points; lists the sessions, trace by trace.

    Args:
        experiment: the checked experiment.
        data_dir: what ``data:`` stands for.
        base: folder that relative paths start from.

    Raises:
        ConfigError, TraceError, TraceFormatError, VideoFormatError, DataNotFound,
        UnknownController: what is wrong, and where.
    """
    experiment.check_controllers()
    if experiment.has_browser:
        try:
            find_browser()
        except BrowserMissing as error:
            raise ConfigError(f"player: {error}") from error
    starts = resolve_starts(experiment, data_dir, base)
    video = resolve_video(
        experiment.video.sizes,
        data_dir,
        base,
        levels_kbps=experiment.video.levels_kbps,
        chunk_s=experiment.video.chunk_s,
    ).first(experiment.chunks)
    first = experiment.player.first_level
    if isinstance(first, int) and not 0 <= first < video.levels:
        raise ConfigError(f"player.first_level: {first} is not one of 0 to {video.levels - 1}")
    return AbrPlan(experiment, list_sessions(experiment, starts), video)


def abr_plan(plan: Plan, what: str) -> AbrPlan:
    """The plan, if it is one of task ``abr``.

    Args:
        plan: of any task.
        what: is made of it; for the message.

    Raises:
        ConfigError: it is one of another task.
    """
    if not isinstance(plan, AbrPlan):
        raise ConfigError(f"task is {plan.experiment.task!r}; there are {what} of 'abr' only")
    return plan


def abr_experiment(experiment: Experiment, what: str) -> AbrExperiment:
    """The experiment, if it is one of task ``abr``; see :func:`abr_plan`."""
    if not isinstance(experiment, AbrExperiment):
        raise ConfigError(f"task is {experiment.task!r}; there are {what} of 'abr' only")
    return experiment
