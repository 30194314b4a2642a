"""MPEG-DASH manifests: written for a video, read as any client would read them.

ISO/IEC 23009-1: one video adaptation set, ``SegmentTemplate`` with ``$Number$`` and a constant
duration; static, or of a live event (:mod:`player.live_mpd`). Chunk sizes, which controllers need
and DASH does not carry, are announced by a ``SupplementalProperty`` whose value is the URL of a
JSON table; other players ignore it.
"""

from __future__ import annotations

import functools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin
from xml.parsers import expat

import pydantic

from player.content import ContentPack
from player.live_mpd import LiveEvent, manifest_parts, read_start_s
from player.video import Video

SIZES_SCHEME = "urn:netllm-testbed:dash:chunk-sizes"
NAMESPACE = "urn:mpeg:dash:schema:mpd:2011"
MIME_TYPE = "application/dash+xml"
MAX_MPD_BYTES = 2**20
MAX_SIZES_BYTES = 16 * 2**20
MAX_CHUNKS = 1_000_000
FIRST_NUMBER = 1  # of $Number$, DASH's default
BITS_PER_KILOBIT = 1000

_TAG = f"{{{NAMESPACE}}}"
_IDENTIFIER = re.compile(r"\$(?:(\w+)(%0(\d{1,2})d)?)?\$")
_DURATION = re.compile(
    r"P(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)


class MpdError(ValueError):
    """A manifest or size table that is malformed, or that uses what this player does not play."""


@dataclass(frozen=True, slots=True)
class Representation:
    """One level of a manifest.

    Attributes:
        name: the ``id``.
        bandwidth_bps: nominal bitrate.
        codecs: RFC 6381 string.
        initialization_url: absolute URL of the initialisation segment, None without one.
        media_template: absolute URL with ``$Number$`` in it; the other identifiers are filled in.
    """

    name: str
    bandwidth_bps: int
    codecs: str
    initialization_url: str | None
    media_template: str

    def media_url(self, number: int) -> str:
        """Absolute URL of the segment with this ``$Number$``."""
        return _fill(self.media_template, {"Number": number})


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest.

    Attributes:
        url: where it came from.
        chunk_s: length of a chunk.
        chunks: number of chunks.
        first_number: ``$Number$`` of chunk 0.
        representations: by bandwidth, lowest first.
        sizes_url: absolute URL of the size table, None when the manifest announces none.
        live_start_s: when the event began (Unix seconds); None: all of it is there.
    """

    url: str
    chunk_s: float
    chunks: int
    first_number: int
    representations: tuple[Representation, ...]
    sizes_url: str | None
    live_start_s: float | None = None

    def media_url(self, chunk: int, level: int) -> str:
        """Absolute URL of chunk ``chunk`` (from 0) at ``level``."""
        return self.representations[level].media_url(self.first_number + chunk)


def media_name(level: int, chunk: int) -> str:
    """File name under which a chunk is served."""
    return f"chunk-{level}-{FIRST_NUMBER + chunk}.m4s"


def init_name(level: int) -> str:
    """File name under which an initialisation segment is served."""
    return f"init-{level}.mp4"


def write_mpd(video: Video, content: ContentPack, *, event: LiveEvent | None = None) -> bytes:
    """The manifest of a video whose chunks are padded ``content``; static, or of an event.

    Raises:
        ContentError: the content does not fit the video.
    """
    content.check(video)
    timing = content.timing
    rate = timing.frame_rate
    frame_rate = f"{rate.numerator}/{rate.denominator}" if rate.denominator > 1 else rate.numerator
    shape = f'width="{content.width}" height="{content.height}" frameRate="{frame_rate}"'
    representations = "\n".join(
        f'      <Representation id="{level}" bandwidth="{round(kbps * BITS_PER_KILOBIT)}" '
        f'codecs="{content.codecs[level]}" {shape}/>'
        for level, kbps in enumerate(video.levels_kbps)
    )
    duration_s = float(video.chunks * timing.chunk_ticks / timing.timescale)
    parts = manifest_parts(duration_s, event)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<MPD xmlns="{NAMESPACE}" profiles="urn:mpeg:dash:profile:isoff-live:2011" {parts.kind} \
minBufferTime="PT{video.chunk_s:.6f}S">
{parts.head}  <Period id="0" start="PT0S"{parts.period}>
    <AdaptationSet id="0" contentType="video" mimeType="video/mp4" segmentAlignment="true"
                   startWithSAP="1">
      <SupplementalProperty schemeIdUri="{SIZES_SCHEME}" value="sizes.json"/>
      <SegmentTemplate timescale="{timing.timescale}" duration="{timing.chunk_ticks}"
                       startNumber="{FIRST_NUMBER}" initialization="init-$RepresentationID$.mp4"
                       media="chunk-$RepresentationID$-$Number$.m4s"/>
{representations}
    </AdaptationSet>
  </Period>
{parts.tail}</MPD>
""".encode()


def parse_mpd(data: bytes, url: str) -> Manifest:
    """Reads a manifest that came from ``url``.

    Raises:
        MpdError: it is malformed, lacks something, or is of a kind that is not played; the message
            names what.
    """
    presentation = parse_presentation(data, url, may_be_live=True)
    if len(presentation.adaptations) != 1:
        raise MpdError(
            f"expected one AdaptationSet of video, found {len(presentation.adaptations)}"
        )
    found = video_set(presentation, presentation.adaptations[0])
    return Manifest(
        url=url,
        chunk_s=found.chunk_s,
        chunks=chunk_count(presentation.duration_s, found.chunk_s),
        first_number=found.first_number,
        representations=found.representations,
        sizes_url=found.sizes_url,
        live_start_s=presentation.live_start_s,
    )


@dataclass(frozen=True, slots=True)
class Presentation:
    """The one period of a manifest.

    Attributes:
        period: its element.
        base: URL that its relative ones start from.
        adaptations: elements of its AdaptationSets of video.
        duration_s: of the period.
        live_start_s: see :class:`Manifest`.
    """

    period: ElementTree.Element
    base: str
    adaptations: tuple[ElementTree.Element, ...]
    duration_s: float
    live_start_s: float | None


@dataclass(frozen=True, slots=True)
class VideoSet:
    """One AdaptationSet of video.

    Attributes:
        chunk_s: length of a chunk.
        first_number: ``$Number$`` of chunk 0.
        representations: by bandwidth, lowest first.
        sizes_url: see :class:`Manifest`.
    """

    chunk_s: float
    first_number: int
    representations: tuple[Representation, ...]
    sizes_url: str | None


def parse_presentation(
    data: bytes, url: str, *, max_bytes: int = MAX_MPD_BYTES, may_be_live: bool = False
) -> Presentation:
    """Reads what manifests of all kinds have in common.

    Raises:
        MpdError: it is no manifest, too large, of a kind that is not played, or of several periods.
    """
    root = _parse_xml(data, max_bytes)
    if root.tag != f"{_TAG}MPD":
        raise MpdError(f"the root element is {root.tag}, not MPD of {NAMESPACE}")
    is_live = may_be_live and root.get("type") == "dynamic"
    if not is_live and root.get("type", "static") != "static":
        raise MpdError(f"MPD@type is {root.get('type')!r}; only static manifests are played")
    period = _only(root, "Period")
    return Presentation(
        period=period,
        base=_base_url(period, _base_url(root, url)),
        adaptations=tuple(
            element
            for element in period.iterfind(f"{_TAG}AdaptationSet")
            if "video" in _kind(element)
        ),
        duration_s=_duration_s(
            period.get("duration") or root.get("mediaPresentationDuration"),
            "MPD@mediaPresentationDuration",
        ),
        live_start_s=_live_start_s(root, period) if is_live else None,
    )


def _live_start_s(root: ElementTree.Element, period: ElementTree.Element) -> float:
    try:
        return read_start_s(root.get("availabilityStartTime"), period.get("start"))
    except ValueError as error:
        raise MpdError(f"a dynamic manifest: {error}") from error


def video_set(presentation: Presentation, adaptation: ElementTree.Element) -> VideoSet:
    """Reads one AdaptationSet.

    Raises:
        MpdError: it is malformed, lacks something, or is of a kind that is not played.
    """
    base = _base_url(adaptation, presentation.base)
    levels = [
        _representation(element, [presentation.period, adaptation, element], base)
        for element in adaptation.iterfind(f"{_TAG}Representation")
    ]
    if not levels:
        raise MpdError("the video AdaptationSet has no Representation")
    template = levels[0][0]
    if any(
        (other.chunk_s, other.number) != (template.chunk_s, template.number) for other, _ in levels
    ):
        raise MpdError("the Representations have different chunk lengths or start numbers")
    representations = tuple(sorted((found for _, found in levels), key=lambda r: r.bandwidth_bps))
    rates = [representation.bandwidth_bps for representation in representations]
    if len(set(rates)) < len(rates):
        raise MpdError(f"two Representations have the same bandwidth: {rates}")
    return VideoSet(
        chunk_s=template.chunk_s,
        first_number=template.number,
        representations=representations,
        sizes_url=announced_sizes_url(adaptation, base),
    )


def chunk_count(duration_s: float, chunk_s: float) -> int:
    """Chunks of a period.

    Raises:
        MpdError: none, or too many.
    """
    chunks = math.ceil(round(duration_s / chunk_s, 6))
    if not 1 <= chunks <= MAX_CHUNKS:
        raise MpdError(f"{duration_s} s of {chunk_s} s chunks are {chunks} chunks")
    return chunks


@dataclass(frozen=True, slots=True)
class _SizeTable:
    levels_kbps: tuple[float, ...]
    chunk_s: float
    sizes_bytes: tuple[tuple[int, ...], ...]


@functools.cache
def _size_table_adapter() -> pydantic.TypeAdapter[_SizeTable]:
    return pydantic.TypeAdapter(_SizeTable)


def write_sizes(video: Video) -> bytes:
    """The JSON table of chunk sizes that the manifest points to."""
    table = {
        "levels_kbps": video.levels_kbps,
        "chunk_s": video.chunk_s,
        "sizes_bytes": video.sizes_bytes,
    }
    return json.dumps(table).encode()


def read_sizes(data: bytes, manifest: Manifest, *, name: str) -> Video:
    """The video that a manifest and its size table describe.

    Raises:
        MpdError: the table is malformed or contradicts the manifest.
    """
    if len(data) > MAX_SIZES_BYTES:
        raise MpdError(f"the size table has more than {MAX_SIZES_BYTES} bytes")
    try:
        table = _size_table_adapter().validate_json(data, strict=True)
        video = Video(name, table.levels_kbps, table.chunk_s, table.sizes_bytes)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise MpdError(f"size table of {manifest.url}: {where}: {first['msg']}") from error
    except ValueError as error:
        raise MpdError(f"size table of {manifest.url}: {error}") from error
    announced = [representation.bandwidth_bps for representation in manifest.representations]
    if [round(kbps * BITS_PER_KILOBIT) for kbps in video.levels_kbps] != announced:
        raise MpdError(f"size table for {video.levels_kbps} kbit/s, manifest for {announced} bit/s")
    if not math.isclose(video.chunk_s, manifest.chunk_s, rel_tol=1e-6):
        raise MpdError(f"size table for {video.chunk_s} s chunks, manifest for {manifest.chunk_s}")
    if video.chunks != manifest.chunks:
        raise MpdError(f"size table for {video.chunks} chunks, manifest for {manifest.chunks}")
    return video


def _parse_xml(data: bytes, max_bytes: int) -> ElementTree.Element:
    if len(data) > max_bytes:
        raise MpdError(f"a manifest of {len(data)} bytes; at most {max_bytes} are read")
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse_doctype
    try:
        guard.Parse(data, True)  # first, so that no entity is ever expanded
        return ElementTree.fromstring(data)  # noqa: S314
    except (expat.ExpatError, ElementTree.ParseError, LookupError, UnicodeError) as error:
        raise MpdError(f"not XML: {error}") from error


def _refuse_doctype(name: str, *_: object) -> None:
    raise MpdError(f"a document type ({name}) is not allowed in a manifest")


def _only(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    found = parent.findall(f"{_TAG}{name}")
    if len(found) != 1:
        raise MpdError(f"expected one {name}, found {len(found)}")
    return found[0]


def _kind(adaptation: ElementTree.Element) -> str:
    described = [adaptation, *adaptation.iterfind(f"{_TAG}Representation")]
    return " ".join(
        element.get(name, "") for element in described for name in ("contentType", "mimeType")
    )


def _base_url(element: ElementTree.Element, base: str) -> str:
    found = element.find(f"{_TAG}BaseURL")
    text = (found.text or "").strip() if found is not None else ""
    return _join(base, text) if text else base


def _join(base: str, relative: str) -> str:
    try:
        return urljoin(base, relative)
    except ValueError as error:
        raise MpdError(f"not a URL: {relative[:80]!r} ({error})") from error


def announced_sizes_url(element: ElementTree.Element, base: str) -> str | None:
    """Absolute URL of the size table that a period or AdaptationSet announces, if it does.

    Raises:
        MpdError: the announcement has no value.
    """
    found = property_values(element, SIZES_SCHEME, ("SupplementalProperty",))
    return _join(base, found[0]) if found else None


def property_values(
    element: ElementTree.Element, scheme: str, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Values of the descriptors of a scheme that are children of ``element``.

    Raises:
        MpdError: one has none.
    """
    found = [
        child
        for name in names
        for child in element.iterfind(f"{_TAG}{name}")
        if child.get("schemeIdUri") == scheme
    ]
    for child in found:
        if not child.get("value"):
            raise MpdError(f"the {child.tag.removeprefix(_TAG)} {scheme} has no value")
    return tuple(child.get("value", "") for child in found)


@dataclass(frozen=True, slots=True)
class _Template:
    chunk_s: float
    number: int
    initialization: str | None
    media: str


def _representation(
    element: ElementTree.Element, ancestors: list[ElementTree.Element], base: str
) -> tuple[_Template, Representation]:
    name = element.get("id")
    if not name:
        raise MpdError("a Representation has no id")
    bandwidth = _whole(element.get("bandwidth"), f"bandwidth of Representation {name}", least=1)
    template = _template(list(_templates(ancestors)), name)
    base = _base_url(element, base)
    known: dict[str, int | str] = {"RepresentationID": name, "Bandwidth": bandwidth}
    media = _fill(template.media, known, keep="Number")
    if not any(found.group(1) == "Number" for found in _IDENTIFIER.finditer(media)):
        raise MpdError(f"SegmentTemplate@media {template.media!r} has no $Number$")
    return template, Representation(
        name=name,
        bandwidth_bps=bandwidth,
        codecs=element.get("codecs") or ancestors[-2].get("codecs") or "",
        initialization_url=(
            _join(base, _fill(template.initialization, known)) if template.initialization else None
        ),
        media_template=_join(base, media),
    )


def _templates(ancestors: list[ElementTree.Element]) -> Iterator[ElementTree.Element]:
    for element in ancestors:
        found = element.find(f"{_TAG}SegmentTemplate")
        if found is not None:
            yield found


def _template(inherited: list[ElementTree.Element], name: str) -> _Template:
    if not inherited:
        raise MpdError(f"Representation {name} has no SegmentTemplate")
    if any(element.find(f"{_TAG}SegmentTimeline") is not None for element in inherited):
        raise MpdError("SegmentTimeline is not played, only SegmentTemplate@duration")
    attributes: dict[str, str] = {}
    for element in inherited:  # outermost first: the inner ones win
        attributes.update(element.attrib)
    if "media" not in attributes:
        raise MpdError(f"SegmentTemplate of Representation {name} has no media")
    ticks = _whole(attributes.get("duration"), "SegmentTemplate@duration", least=1)
    timescale = _whole(attributes.get("timescale", "1"), "SegmentTemplate@timescale", least=1)
    return _Template(
        chunk_s=ticks / timescale,
        number=_whole(attributes.get("startNumber", "1"), "SegmentTemplate@startNumber", least=0),
        initialization=attributes.get("initialization"),
        media=attributes["media"],
    )


def _whole(text: str | None, where: str, *, least: int) -> int:
    if text is None:
        raise MpdError(f"{where} is missing")
    if not re.fullmatch(r"[0-9]{1,15}", text.strip()) or int(text) < least:
        raise MpdError(f"{where} must be a whole number of at least {least}, not {text[:40]!r}")
    return int(text)


def _duration_s(text: str | None, where: str) -> float:
    if text is None:
        raise MpdError(f"{where} is missing")
    match = _DURATION.fullmatch(text.strip())
    parts = match.groupdict() if match else {}
    if not any(parts.values()):
        raise MpdError(f"{where} must be a duration such as PT196.0S, not {text[:40]!r}")
    seconds_of = {"days": 86_400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    return sum(float(parts[part] or 0) * seconds for part, seconds in seconds_of.items())


def _fill(template: str, values: dict[str, int | str] | dict[str, int], *, keep: str = "") -> str:
    """Replaces the identifiers of a URL template (ISO/IEC 23009-1, 5.3.9.4.4)."""

    def value(match: re.Match[str]) -> str:
        identifier, width = match.group(1), match.group(3)
        if identifier is None:
            return match.group(0) if keep else "$"  # $$ is a dollar, once all is filled in
        if identifier == keep:
            return match.group(0)
        if identifier not in values:
            raise MpdError(f"the identifier ${identifier}$ in {template!r} is not played")
        text = str(values[identifier])
        return text.zfill(int(width)) if width else text

    return _IDENTIFIER.sub(value, template)
