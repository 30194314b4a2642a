"""Manifests of tiled 360° video: MPEG-DASH with spatial relationships (SRD).

ISO/IEC 23009-1, annex H: every tile is an AdaptationSet of its own whose descriptor
``urn:mpeg:dash:srd:2014`` says which part of the picture it is; each level is a Representation.
Written are tiles of size 1 by 1 in a picture of columns by rows; any uniform grid is read. The
bandwidth of a tile is its share of the sphere's area times the rate of the whole sphere, so that
those of one level add up to that. There are no initialisation segments: nothing decodes these
tiles. Tile sizes are announced as in :mod:`player.mpd`.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from xml.sax.saxutils import quoteattr

import numpy as np

from player import mpd
from player.mpd import BITS_PER_KILOBIT, FIRST_NUMBER, MpdError, Representation
from player.tiled_video import TiledVideo, TiledVideoError, parse_tile_sizes
from player.tiles import SPHERE_SR, TileGrid, TilingError

SRD_SCHEME = "urn:mpeg:dash:srd:2014"
MAX_TILED_MPD_BYTES = 16 * 2**20  # the finest grid with many levels

_SRD_PROPERTIES = ("SupplementalProperty", "EssentialProperty")
_SRD_COUNTS = (5, 7, 8)  # numbers; without and with the total size, and a spatial set behind it
_SRD_NUMBER = re.compile(r"\s*[0-9]{1,9}\s*")
_MAX_TIMESCALE = 1_000_000


@dataclass(frozen=True, slots=True)
class TiledManifest:
    """A parsed manifest of tiles.

    Attributes:
        url: where it came from.
        grid: how the sphere is cut up.
        levels_kbps: rate of the whole sphere at each level, the sum over its tiles.
        chunk_s: length of a chunk.
        chunks: number of chunks.
        first_number: ``$Number$`` of chunk 0.
        tiles: per tile its levels, lowest first.
        sizes_url: absolute URL of the size table, None when the manifest announces none.
    """

    url: str
    grid: TileGrid
    levels_kbps: tuple[float, ...]
    chunk_s: float
    chunks: int
    first_number: int
    tiles: tuple[tuple[Representation, ...], ...]
    sizes_url: str | None

    def media_url(self, chunk: int, tile: int, level: int) -> str:
        """Absolute URL of ``tile`` of chunk ``chunk`` (both from 0) at ``level``."""
        return self.tiles[tile][level].media_url(self.first_number + chunk)


def tile_name(chunk: int, tile: int, level: int) -> str:
    """File name under which a tile is served."""
    return f"tile-{tile}-{level}-{FIRST_NUMBER + chunk}.m4s"


def write_tiled_mpd(video: TiledVideo, *, sizes_url: str = "sizes.json") -> bytes:
    """The manifest of a tiled video."""
    grid = video.grid
    chunk = Fraction(video.chunk_s).limit_denominator(_MAX_TIMESCALE)
    rates = _tile_rates_bps(video)
    sets = []
    for tile in range(grid.tiles):
        row, column = divmod(tile, grid.columns)
        place = f"0,{column},{row},1,1,{grid.columns},{grid.rows}"
        levels = "\n".join(
            f'      <Representation id="{tile}-{level}" bandwidth="{rate}"/>'
            for level, rate in enumerate(rates[tile])
        )
        sets.append(
            f'    <AdaptationSet id="{tile}" contentType="video" mimeType="video/mp4"'
            f' segmentAlignment="true">\n'
            f'      <SupplementalProperty schemeIdUri="{SRD_SCHEME}" value="{place}"/>\n'
            f"{levels}\n    </AdaptationSet>"
        )
    tiles = "\n".join(sets)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<MPD xmlns="{mpd.NAMESPACE}" profiles="urn:mpeg:dash:profile:full:2011" type="static"
     mediaPresentationDuration="PT{video.duration_s:.9f}S" minBufferTime="PT{video.chunk_s:.9f}S">
  <Period id="0" start="PT0S">
    <SupplementalProperty schemeIdUri="{mpd.SIZES_SCHEME}" value={quoteattr(sizes_url)}/>
    <SegmentTemplate timescale="{chunk.denominator}" duration="{chunk.numerator}"
                     startNumber="{FIRST_NUMBER}" media="tile-$RepresentationID$-$Number$.m4s"/>
{tiles}
  </Period>
</MPD>
""".encode()


def _tile_rates_bps(video: TiledVideo) -> list[list[int]]:
    """Bandwidth of each tile and level; whole numbers that add up, as far as they increase."""
    ends = np.cumsum(video.grid.solid_angles_sr) / SPHERE_SR
    ends[-1] = 1.0
    levels = np.asarray(video.levels_kbps) * BITS_PER_KILOBIT
    rates = np.diff(np.rint(ends[:, None] * levels), axis=0, prepend=0.0)  # (tiles, levels)
    for level in range(video.levels):
        least = rates[:, level - 1] + 1 if level else 1
        rates[:, level] = np.maximum(rates[:, level], least)
    table: list[list[int]] = rates.astype(np.int64).tolist()
    return table


def read_tiled_mpd(body: bytes, url: str) -> TiledManifest:
    """Reads a manifest that came from ``url``.

    Raises:
        MpdError: it is malformed, says nothing of tiles, its tiles overlap, leave part of the
            sphere out or have different ladders, or it is of a kind that is not played.
    """
    presentation = mpd.parse_presentation(body, url, max_bytes=MAX_TILED_MPD_BYTES)
    if not presentation.adaptations:
        raise MpdError("the Period has no AdaptationSet of video")
    places = _places(presentation.adaptations)
    grid = _grid(places)
    order = {place.cell: index for index, place in enumerate(places)}
    sets = [
        mpd.video_set(presentation, presentation.adaptations[order[divmod(tile, grid.columns)]])
        for tile in range(grid.tiles)
    ]
    first = sets[0]
    for tile, other in enumerate(sets):
        if len(other.representations) != len(first.representations):
            raise MpdError(
                f"tiles have different ladders: tile 0 has {len(first.representations)} levels, "
                f"tile {tile} has {len(other.representations)}"
            )
        if (other.chunk_s, other.first_number) != (first.chunk_s, first.first_number):
            raise MpdError(f"tiles 0 and {tile} have different chunk lengths or start numbers")
    announced = mpd.announced_sizes_url(presentation.period, presentation.base)
    return TiledManifest(
        url=url,
        grid=grid,
        levels_kbps=tuple(
            sum(other.representations[level].bandwidth_bps for other in sets) / BITS_PER_KILOBIT
            for level in range(len(first.representations))
        ),
        chunk_s=first.chunk_s,
        chunks=mpd.chunk_count(presentation.duration_s, first.chunk_s),
        first_number=first.first_number,
        tiles=tuple(other.representations for other in sets),
        sizes_url=announced or first.sizes_url,
    )


def read_tile_size_table(data: bytes, manifest: TiledManifest, *, name: str) -> TiledVideo:
    """The video that a manifest and its size table describe.

    Raises:
        MpdError: the table is malformed or contradicts the manifest.
    """
    try:
        video = parse_tile_sizes(data, name=name, source=f"size table of {manifest.url}")
    except TiledVideoError as error:
        raise MpdError(str(error)) from error
    if video.grid != manifest.grid:
        raise MpdError(f"size table for {video.grid}, manifest for {manifest.grid}")
    rounding_kbps = video.grid.tiles / BITS_PER_KILOBIT
    if video.levels != len(manifest.levels_kbps) or any(
        abs(listed - announced) > rounding_kbps
        for listed, announced in zip(video.levels_kbps, manifest.levels_kbps, strict=True)
    ):
        raise MpdError(
            f"size table for {video.levels_kbps} kbit/s, manifest for {manifest.levels_kbps}"
        )
    if not math.isclose(video.chunk_s, manifest.chunk_s, rel_tol=1e-6):
        raise MpdError(f"size table for {video.chunk_s} s chunks, manifest for {manifest.chunk_s}")
    if video.chunks != manifest.chunks:
        raise MpdError(f"size table for {video.chunks} chunks, manifest for {manifest.chunks}")
    return video


@dataclass(frozen=True, slots=True)
class _Place:
    """What an SRD descriptor says: a rectangle within the whole picture."""

    source: int
    x: int
    y: int
    width: int
    height: int
    total: tuple[int, int] | None  # width and height

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column on a grid of such rectangles."""
        return self.y // self.height, self.x // self.width


def _places(adaptations: Sequence[ElementTree.Element]) -> list[_Place]:
    places = []
    for index, adaptation in enumerate(adaptations):
        label = f"AdaptationSet {adaptation.get('id', index)!s:.40}"
        values = mpd.property_values(adaptation, SRD_SCHEME, _SRD_PROPERTIES)
        if len(values) != 1:
            raise MpdError(f"{label} needs one {SRD_SCHEME} descriptor, found {len(values)}")
        places.append(_place(values[0], label))
    return places


def _place(value: str, label: str) -> _Place:
    texts = value.split(",")
    if len(texts) not in _SRD_COUNTS or not all(map(_SRD_NUMBER.fullmatch, texts)):
        raise MpdError(
            f"{label}: the descriptor must be source,x,y,width,height,total width,total height "
            f"in whole numbers, not {value[:80]!r}"
        )
    source, x, y, width, height, *rest = map(int, texts)
    if width < 1 or height < 1:
        raise MpdError(f"{label}: a tile of {width} by {height}")
    return _Place(source, x, y, width, height, (rest[0], rest[1]) if rest else None)


def _grid(places: Sequence[_Place]) -> TileGrid:
    """The uniform grid that these tiles make up.

    Raises:
        MpdError: they do not.
    """
    if len({place.source for place in places}) > 1:
        raise MpdError("the tiles belong to different sources (first number of the descriptor)")
    totals = {place.total for place in places if place.total is not None}
    if len(totals) != 1:
        raise MpdError(f"the descriptors name {len(totals)} total sizes of the picture, not one")
    total_width, total_height = totals.pop()
    sizes = {(place.width, place.height) for place in places}
    if len(sizes) > 1:
        raise MpdError(f"tiles of different sizes are not played: {sorted(sizes)[:4]}")
    width, height = sizes.pop()
    if total_width < 1 or total_height < 1 or total_width % width or total_height % height:
        raise MpdError(
            f"tiles of {width} by {height} do not cover a picture of {total_width} by "
            f"{total_height}"
        )
    try:
        grid = TileGrid(total_height // height, total_width // width)
    except TilingError as error:
        raise MpdError(str(error)) from error
    seen: set[tuple[int, int]] = set()
    for place in places:
        if place.x % width or place.y % height:
            raise MpdError(
                f"the tile at {place.x},{place.y} is off the grid of {width} by {height}: it "
                "overlaps others or leaves a gap"
            )
        row, column = place.cell
        if row >= grid.rows or column >= grid.columns:
            raise MpdError(
                f"the tile at {place.x},{place.y} lies outside the picture of {total_width} by "
                f"{total_height}"
            )
        if place.cell in seen:
            raise MpdError(f"two tiles overlap at row {row}, column {column}")
        seen.add(place.cell)
    for tile in range(grid.tiles):
        row, column = divmod(tile, grid.columns)
        if (row, column) not in seen:
            raise MpdError(
                f"{len(places)} tiles do not cover the sphere: row {row}, column {column} of "
                f"{grid.rows} by {grid.columns} is missing"
            )
    return grid
