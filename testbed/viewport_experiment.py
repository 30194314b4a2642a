"""Experiments with task ``viewport``: every arm predicts where recorded viewers look.

With driver ``offline`` the predictions are compared with the recordings and nothing is streamed;
the other drivers stream tiled video to a player that replays a recording.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from player.tiled_events import TiledPlayerConfig
from player.viewport_observation import MAX_EARLIER_VIEWERS, MAX_HISTORY, MAX_HORIZON
from testbed.experiment_base import Experiment
from testbed.experiment_checks import require
from testbed.viewport_sections import PredictConfig, TiledPlayerSettings, TilesConfig

MIN_CHUNKS = 2


@dataclass(frozen=True, kw_only=True)
class ViewportExperiment(Experiment):
    """Viewport prediction, alone or in tiled streaming.

    Attributes:
        viewports: the recordings: ``builtin:NAME``, ``data:PATH`` or a folder.
        videos: only recordings of these.
        users: only recordings of these.
        recordings: at most so many of them, spread evenly over all.
        chunks: at most so many per session; all that a recording reaches by default.
        predict: what is predicted from what.
        tiles: how the sphere is cut up.
        player: how it is played.
    """

    task: Literal["viewport"]
    driver: Literal["offline", "simulated", "emulated"] = "offline"
    viewports: str = "builtin:explorers"
    videos: tuple[int, ...] | None = None
    users: tuple[int, ...] | None = None
    recordings: int | None = None
    chunks: int | None = None
    predict: PredictConfig = field(default_factory=PredictConfig)
    tiles: TilesConfig = field(default_factory=TilesConfig)
    player: TiledPlayerSettings = field(default_factory=TiledPlayerSettings)

    @property
    def player_config(self) -> TiledPlayerConfig:
        """The settings of the player machine.

        Raises:
            TiledPlayerConfigError: a value out of range.
        """
        return TiledPlayerConfig(
            fov=self.tiles.fov,
            history=self.predict.history,
            horizon=self.predict.horizon,
            buffer_cap_s=self.player.buffer_cap_s,
            connections=self.player.connections,
            missing=self.player.missing,
            base=self.player.base,
            least_share=self.player.least_share,
            base_first=self.player.base_first,
            safety=self.player.safety,
            piece_s=self.player.piece_s or None,
            refresh_s=self.player.refresh_s or None,
        )

    @property
    def decision_settings(self) -> TiledPlayerSettings:
        """The table ``[player]``."""
        return self.player

    def check(self) -> None:
        """See :meth:`Experiment.check`."""
        super().check()
        for key, chosen in (("videos", self.videos), ("users", self.users)):
            require(chosen is None or len(chosen) > 0, f"{key}: names none; leave it out for all")
        require(self.recordings is None or self.recordings >= 1, "recordings: must be at least 1")
        require(self.chunks is None or self.chunks >= MIN_CHUNKS, f"chunks: at least {MIN_CHUNKS}")
        self._check_predict()
        require(self.player.chunk_timeout_s > 0, "player.chunk_timeout_s: must be positive")
        self._check_tiles()

    def _check_predict(self) -> None:
        predict = self.predict
        for key, value, most in (
            ("history", predict.history, MAX_HISTORY),
            ("horizon", predict.horizon, MAX_HORIZON),
            ("earlier_limit", predict.earlier_limit, MAX_EARLIER_VIEWERS),
        ):
            require(1 <= value <= most, f"predict.{key}: must be 1 to {most}")
        for key, value in (("step", predict.step), ("batch", predict.batch)):
            require(value >= 1, f"predict.{key}: must be at least 1")
        require(
            predict.earlier_viewers != "rest" or self.users is not None,
            "predict.earlier_viewers: 'rest' are the users that 'users' does not name, "
            "and 'users' names none",
        )

    def _check_tiles(self) -> None:
        require(self.player.refresh_s >= 0, "player.refresh_s: must not be negative")
        for key, make in (
            ("tiles", lambda: self.tiles.grid),
            ("tiles", lambda: self.tiles.fov),
            ("player", lambda: self.player_config),
        ):
            try:
                make()
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        require(self.tiles.chunk_s > 0, "tiles.chunk_s: must be positive")
