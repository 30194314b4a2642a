"""Which chunks of a recording the report shows as maps: those in which the arms differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from player.viewport_records import TiledChunkRecord, ViewportSessionRecord
from testbed.sphere_maps import chunk_map
from testbed.svg import fixed, significant
from testbed.viewport_runs import Tiling

MOST_MOMENTS = 12


@dataclass(frozen=True, slots=True)
class Seat:
    """A session and what the report calls it."""

    run: str
    row: ViewportSessionRecord
    tiling: Tiling


@dataclass(frozen=True, slots=True)
class MapView:
    """The map of one session."""

    run: str
    arm: str
    colour: int
    facts: tuple[tuple[str, str], ...]
    drawing: Markup


@dataclass(frozen=True, slots=True)
class Moment:
    """One chunk, as all arms fetched it."""

    chunk: int
    label: str
    maps: tuple[MapView, ...]


def moments(seats: Sequence[Seat], colours: Mapping[str, int]) -> tuple[Moment, ...]:
    """At most so many chunks, the one in which arms differ most first, then in order of time."""
    by_chunk: dict[int, list[tuple[Seat, TiledChunkRecord]]] = {}
    for seat in seats:
        for chunk in seat.row.chunks:
            by_chunk.setdefault(chunk.index, []).append((seat, chunk))
    differing = {
        index: _difference([chunk.viewport_level for _, chunk in found])
        for index, found in by_chunk.items()
    }
    ranked = sorted(by_chunk, key=lambda index: (-differing[index], index))[:MOST_MOMENTS]
    if not ranked:
        return ()
    return tuple(
        _moment(index, by_chunk[index], differing[index], len(seats), colours)
        for index in (ranked[0], *sorted(ranked[1:]))
    )


def _difference(levels: Sequence[float]) -> float:
    """How far apart they are; of a single one how low it is."""
    return max(levels) - min(levels) if len(levels) > 1 else -levels[0]


def _moment(
    index: int,
    found: Sequence[tuple[Seat, TiledChunkRecord]],
    difference: float,
    seats: int,
    colours: Mapping[str, int],
) -> Moment:
    chunk_s = found[0][0].tiling.chunk_s
    label = f"chunk {index}, {index * chunk_s:g}–{(index + 1) * chunk_s:g} s of the video"
    if seats > 1:
        label += f": levels in view {fixed(difference, 2)} apart"
    return Moment(
        index,
        label,
        tuple(
            MapView(
                run=seat.run,
                arm=seat.row.arm,
                colour=colours[seat.row.arm],
                facts=(
                    ("level in view", fixed(chunk.viewport_level, 2)),
                    ("blank", f"{fixed(chunk.blank_ratio * 100, 1)} %"),
                    ("fetched", f"{significant(chunk.size_bytes / 1e6)} MB"),
                ),
                drawing=chunk_map(
                    chunk,
                    seat.tiling.grid,
                    seat.tiling.fov,
                    f"{seat.row.arm}, {seat.row.recording}, chunk {index}",
                ),
            )
            for seat, chunk in found
        ),
    )
