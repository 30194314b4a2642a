"""Manifests: what is written is read back, and what is not played is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.content import ContentPack
from player.mpd import (
    SIZES_SCHEME,
    Manifest,
    MpdError,
    init_name,
    media_name,
    parse_mpd,
    read_sizes,
    write_mpd,
    write_sizes,
)
from player.video import PENSIEVE_LEVELS_KBPS, Video

URL = "http://10.0.0.1:8080/demo/manifest.mpd"


@pytest.fixture(scope="session")
def written(small_video: Video, pack: ContentPack) -> bytes:
    return write_mpd(small_video, pack)


@pytest.fixture(scope="session")
def manifest(written: bytes) -> Manifest:
    return parse_mpd(written, URL)


def test_manifest_describes_the_video(manifest: Manifest, small_video: Video) -> None:
    assert manifest.chunks == small_video.chunks
    assert manifest.chunk_s == small_video.chunk_s
    assert [r.bandwidth_bps / 1000 for r in manifest.representations] == list(PENSIEVE_LEVELS_KBPS)
    assert {r.codecs for r in manifest.representations} == {"avc1.4D4015"}
    assert manifest.sizes_url == "http://10.0.0.1:8080/demo/sizes.json"
    for level, representation in enumerate(manifest.representations):
        assert representation.initialization_url == f"http://10.0.0.1:8080/demo/{init_name(level)}"
        for chunk in range(small_video.chunks):
            url = f"http://10.0.0.1:8080/demo/{media_name(level, chunk)}"
            assert manifest.media_url(chunk, level) == url


def test_size_table_round_trip(manifest: Manifest, small_video: Video) -> None:
    assert read_sizes(write_sizes(small_video), manifest, name=small_video.name) == small_video


@pytest.mark.parametrize("chunks", [1, 2, 48, 49, 4321])
def test_number_of_chunks_survives(pack: ContentPack, chunks: int) -> None:
    sizes = ((100_000,) * len(PENSIEVE_LEVELS_KBPS),) * chunks
    video = Video("v", PENSIEVE_LEVELS_KBPS, 4.0, sizes)
    assert parse_mpd(write_mpd(video, pack), URL).chunks == chunks


TEMPLATE = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="{duration}">
{mpd}<Period>{period}
<AdaptationSet contentType="audio"><Representation id="a" bandwidth="9"/></AdaptationSet>
<AdaptationSet mimeType="video/mp4">{adaptation}{representations}</AdaptationSet>
</Period></MPD>"""
REPRESENTATIONS = (
    '<Representation id="hi" bandwidth="2000"/><Representation id="lo" bandwidth="1000"/>'
)
SEGMENTS = '<SegmentTemplate duration="2" media="$RepresentationID$/$Number%05d$.m4s"/>'


def foreign(
    *,
    duration: str = "PT1M3.5S",
    mpd: str = "",
    period: str = "",
    adaptation: str = SEGMENTS,
    representations: str = REPRESENTATIONS,
) -> Manifest:
    text = TEMPLATE.format(
        duration=duration,
        mpd=mpd,
        period=period,
        adaptation=adaptation,
        representations=representations,
    )
    return parse_mpd(text.encode(), URL)


def test_other_packagers_manifest() -> None:
    manifest = foreign(mpd="<BaseURL>/media/</BaseURL>", period="<BaseURL>one/</BaseURL>")
    assert [representation.name for representation in manifest.representations] == ["lo", "hi"]
    assert manifest.chunks == 32  # 63.5 s of 2 s
    assert manifest.sizes_url is None
    assert manifest.representations[0].initialization_url is None
    assert manifest.media_url(11, 1) == "http://10.0.0.1:8080/media/one/hi/00012.m4s"


def test_inner_template_wins_and_dollars_are_escaped() -> None:
    manifest = foreign(
        period='<SegmentTemplate timescale="10" duration="40" startNumber="5" media="x"/>',
        adaptation='<SegmentTemplate media="$$$Bandwidth$-$Number$" initialization="$$i"/>',
    )
    assert manifest.chunk_s == 4.0
    assert manifest.media_url(0, 0) == "http://10.0.0.1:8080/demo/$1000-5"
    assert manifest.representations[0].initialization_url == "http://10.0.0.1:8080/demo/$i"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": "63"}, "mediaPresentationDuration must be a duration"),
        ({"duration": "P"}, "mediaPresentationDuration must be a duration"),
        ({"duration": "PT0S"}, "0 chunks"),
        ({"duration": "P900000000D"}, "chunks"),
        ({"adaptation": ""}, "Representation hi has no SegmentTemplate"),
        ({"adaptation": '<SegmentTemplate duration="2"/>'}, "has no media"),
        ({"adaptation": '<SegmentTemplate media="$Number$"/>'}, "@duration is missing"),
        ({"adaptation": '<SegmentTemplate duration="0" media="$Number$"/>'}, "at least 1, not '0'"),
        ({"adaptation": '<SegmentTemplate duration="2" media="x"/>'}, r"has no \$Number\$"),
        ({"adaptation": '<SegmentTemplate duration="2" media="$Time$"/>'}, r"\$Time\$"),
        (
            {"adaptation": '<SegmentTemplate duration="2" media="$Number$"><SegmentTimeline/>'
             "</SegmentTemplate>"},
            "SegmentTimeline",
        ),
        ({"representations": ""}, "no Representation"),
        ({"representations": '<Representation bandwidth="1"/>'}, "no id"),
        ({"representations": '<Representation id="x"/>'}, "of Representation x is missing"),
        ({"representations": '<Representation id="x" bandwidth="1e3"/>'}, "'1e3'"),
        ({"representations": REPRESENTATIONS.replace("2000", "1000")}, "same bandwidth"),
        ({"period": f'<AdaptationSet contentType="video">{SEGMENTS}</AdaptationSet>'}, "found 2"),
        ({"mpd": "<Period/>"}, "expected one Period, found 2"),
        ({"mpd": "<BaseURL>http://[::</BaseURL>"}, "not a URL"),
        (
            {"adaptation": f'<SupplementalProperty schemeIdUri="{SIZES_SCHEME}"/>{SEGMENTS}'},
            "has no value",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_or_not_played_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(MpdError, match=message):
        foreign(**change)


BILLION_LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">&c;</MPD>"""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BILLION_LAUGHS, "document type"),
        (b'<!DOCTYPE MPD SYSTEM "http://10.0.0.1/x.dtd"><MPD/>', "document type"),
        (b"", "not XML"),
        (b"<MPD", "not XML"),
        (b'<?xml version="1.0" encoding="nonsense"?><MPD/>', "not XML"),
        (b"<MPD/>", "root element"),
        (b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic"/>', "Period"),
        (b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>', "Period"),
        (b" " * (2**20 + 1), "bytes"),
    ],
)
def test_hostile_documents_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(MpdError, match=message):
        parse_mpd(data, URL)


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(MpdError):
        parse_mpd(data, URL)


@given(st.data())
def test_torn_and_altered_manifests_never_crash(written: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(written) - 1))
    insert = data.draw(st.text("<>&\"'/ $%0a9-", max_size=8)).encode()
    cut = data.draw(st.integers(0, 40))
    try:
        manifest = parse_mpd(written[:at] + insert + written[at + cut :], URL)
    except MpdError:
        return
    assert manifest.chunks >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels_kbps": [1, 2, 3, 4, 5, 6]}, "kbit/s, manifest for"),
        ({"chunk_s": 2.0}, "s chunks, manifest for"),
        ({"sizes_bytes": [[1, 2, 3, 4, 5, 6]]}, "for 1 chunks, manifest for 6"),
        ({"sizes_bytes": [[1, 2, 3, 4, 5, "6"]]}, r"sizes_bytes\.0\.5"),
        ({"sizes_bytes": [[1, 2, 3, 4, 5]]}, "chunk 0 has 5 sizes"),
        ({"sizes_bytes": [[0, 2, 3, 4, 5, 6]]}, "not positive"),
        ({"sizes_bytes": []}, "empty"),
    ],
)
def test_size_table_must_agree(
    manifest: Manifest, small_video: Video, change: dict[str, object], message: str
) -> None:
    table = json.loads(write_sizes(small_video)) | change
    with pytest.raises(MpdError, match=message):
        read_sizes(json.dumps(table).encode(), manifest, name="demo")


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_garbage_size_table_is_refused(manifest: Manifest, data: bytes) -> None:
    with pytest.raises(MpdError):
        read_sizes(data, manifest, name="demo")
