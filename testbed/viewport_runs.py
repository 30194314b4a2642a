"""A result folder of task ``viewport`` as its report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from controllers import registry
from player.tiled_video import DEFAULT_CHUNK_S, DEFAULT_GRID, DEFAULT_LEVELS_KBPS
from player.tiles import FieldOfView, TileGrid, TilingError
from player.trace import Trace
from player.viewport_records import PredictionRecord, ViewportSessionRecord
from testbed.result_rows import (
    ENVIRONMENT,
    EXPERIMENT,
    TRACES,
    AnyRecord,
    LinkSecond,
    ResultsError,
    played_arms,
    read_json_object,
    read_link_seconds,
    read_records,
    read_toml,
    read_traces,
)
from testbed.session_records import place_of
from testbed.viewport_results import OFFLINE, by_unit, mae_deg

TASK = "viewport"
#: The arm that the others are compared with, if it was played: "no motion" is the one to beat.
USUAL_BASE = "static"


@dataclass(frozen=True, kw_only=True)
class ViewportRun(Generic[AnyRecord]):
    """Everything in one result folder.

    Attributes:
        folder: where it was read.
        driver: of the sessions.
        arms: labels in the order of the experiment.
        sessions: one per arm, unit and client.
        link_seconds: per group and unit; empty for what was not emulated.
        traces: as replayed, by name.
        experiment: content of ``experiment.toml``; empty without one.
        environment: content of ``environment.json``; empty without one.
    """

    folder: Path
    driver: str
    arms: tuple[str, ...]
    sessions: tuple[AnyRecord, ...]
    link_seconds: Mapping[tuple[str, str], tuple[LinkSecond, ...]]
    traces: Mapping[str, Trace]
    experiment: Mapping[str, Any]
    environment: Mapping[str, Any]

    def of_arm(self, arm: str) -> tuple[AnyRecord, ...]:
        """Sessions of an arm that ended well."""
        return tuple(row for row in self.sessions if row.arm == arm and row.status == "ok")

    @property
    def units(self) -> tuple[str, ...]:
        """What was played: recordings, or recordings on traces, sorted."""
        return tuple(sorted({place_of(row).unit for row in self.sessions}))

    @property
    def base(self) -> str:
        """The arm that the others are compared with; empty without any."""
        controllers = {row.arm: row.controller for row in self.sessions}
        usual = (arm for arm in self.arms if controllers[arm] == USUAL_BASE)
        return next(usual, self.arms[0] if self.arms else "")

    @cached_property
    def knowing(self) -> frozenset[str]:
        """Arms that are told the future: no competitors but the ceiling."""
        controllers = {row.arm: row.controller for row in self.sessions}
        return frozenset(arm for arm, name in controllers.items() if _knows_the_future(name))


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the sphere was cut up, as the experiment says."""

    grid: TileGrid
    fov: FieldOfView
    chunk_s: float
    levels_kbps: tuple[float, ...]


PredictionRun = ViewportRun[PredictionRecord]
StreamRun = ViewportRun[ViewportSessionRecord]


def is_offline(folder: Path) -> bool:
    """Whether nothing was streamed."""
    return read_toml(folder / EXPERIMENT).get("driver") == OFFLINE


def read_run(folder: Path, kind: type[AnyRecord]) -> ViewportRun[AnyRecord]:
    """Reads a result folder.

    Raises:
        ResultsError: no sessions, or a malformed file; names file and line.
    """
    experiment = read_toml(folder / EXPERIMENT)
    sessions = read_records(folder, kind)
    return ViewportRun(
        folder=folder,
        driver=sessions[0].driver if sessions else str(experiment.get("driver", "")),
        arms=played_arms(experiment, sessions),
        sessions=sessions,
        link_seconds=read_link_seconds(folder),
        traces=read_traces(folder / TRACES),
        experiment=experiment,
        environment=read_json_object(folder / ENVIRONMENT),
    )


def tiling_of(run: StreamRun) -> Tiling:
    """The tiles that were played.

    Raises:
        ResultsError: the experiment describes none.
    """
    tiles = run.experiment.get("tiles", {})
    usual = FieldOfView()
    try:
        return Tiling(
            TileGrid(
                int(tiles.get("rows", DEFAULT_GRID.rows)),
                int(tiles.get("columns", DEFAULT_GRID.columns)),
            ),
            FieldOfView(
                float(tiles.get("fov_width_deg", usual.width_deg)),
                float(tiles.get("fov_height_deg", usual.height_deg)),
            ),
            float(tiles.get("chunk_s", DEFAULT_CHUNK_S)),
            tuple(float(rate) for rate in tiles.get("levels_kbps", DEFAULT_LEVELS_KBPS)),
        )
    except (AttributeError, TypeError, TilingError, ValueError) as error:
        raise ResultsError(f"{run.folder / EXPERIMENT}: tiles: {error}") from error


def level_by_unit(run: StreamRun, arm: str) -> dict[str, float]:
    """Level in the field of view, by recording and trace."""
    return by_unit(run.of_arm(arm), lambda row: row.viewport_level)


def mae_by_unit(run: PredictionRun, arm: str) -> dict[str, float]:
    """Error in degrees, by recording."""
    return {row.recording: mae_deg(row) for row in run.of_arm(arm) if row.samples}


def common_units(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """Those that all of them have."""
    return [unit for unit in runs[0] if all(unit in other for other in runs)]


def _knows_the_future(controller: str) -> bool:
    try:
        return registry.needs_future(TASK, controller)
    except LookupError:  # of another version
        return False
