"""CMCD: round trip, rounding, and parsing of whatever clients send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from player import cmcd
from player.cmcd import CmcdError, Kind, Value, encode, parse

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))


def value_of(key: str) -> st.SearchStrategy[Value]:
    match cmcd.KINDS[key]:
        case Kind.INTEGER:
            return st.integers(0, 10**9)
        case Kind.HUNDREDS:
            return st.integers(0, 10**7).map(lambda number: number * 100)
        case Kind.DECIMAL:
            return st.integers(0, 10**6).map(lambda number: number / 1000)
        case Kind.STRING:
            return PRINTABLE
        case Kind.IDENTIFIER:
            return PRINTABLE.map(lambda text: text[:64])
        case Kind.TOKEN:
            return st.sampled_from(sorted(cmcd.TOKENS[key]))
        case Kind.BOOLEAN:
            return st.just(True)


PAYLOADS = st.lists(st.sampled_from(sorted(cmcd.KINDS)), unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: value_of(key) for key in keys})
)


@given(PAYLOADS)
def test_round_trip(values: dict[str, Value]) -> None:
    parsed = parse(encode(values))
    assert parsed.values == values
    assert parsed.errors == ()


@given(st.text())
def test_parse_never_fails(text: str) -> None:
    parsed = parse(text)
    assert all(isinstance(error, str) for error in parsed.errors)


@given(st.text(alphabet='",\\=brsid 0123;-', max_size=60))
def test_parse_never_fails_on_nearly_valid(text: str) -> None:
    parse(text)


def test_hostile_quotes_are_read_in_short_time() -> None:
    parse('"\\' * 100_000)  # a quadratic reader of all of it would take minutes


def test_example_of_the_standard() -> None:
    """CTA-5004, section 3.2, example of all four headers' keys in one query."""
    values: dict[str, Value] = {
        "sid": "6e2fb550-c457-11e9-bb97-0800200c9a66",
        "br": 3200,
        "bs": True,
        "d": 4004,
        "mtp": 25400,
        "ot": "v",
        "rtp": 15000,
        "tb": 6000,
    }
    text = (
        'br=3200,bs,d=4004,mtp=25400,ot=v,rtp=15000,sid="6e2fb550-c457-11e9-bb97-0800200c9a66",'
        "tb=6000"
    )
    assert encode(values) == text
    assert parse(text).values == values


def test_rounding_and_leaving_out() -> None:
    assert encode({"bl": 12_349.9, "mtp": 50.0, "br": 749.5}) == "bl=12300,br=750,mtp=100"
    assert encode({"bs": False, "su": True}) == "su"
    assert encode({}) == ""
    assert encode({"pr": 1.5}) == "pr=1.5"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"xx": 1}, "unknown CMCD key 'xx'"),
        ({"br": "3"}, "br must be a number"),
        ({"br": True}, "br must be a number"),
        ({"br": -1}, "br must be a number from 0"),
        ({"bl": float("nan")}, "bl must be a number from 0"),
        ({"ot": "video"}, "ot must be one of"),
        ({"sid": 7}, "sid must be text"),
        ({"sid": "x" * 65}, "65 characters"),
        ({"nor": "ü"}, "printable ASCII"),
        ({"nor": "a\r\nb"}, "printable ASCII"),
        ({"su": 1}, "true or false"),
    ],
)
def test_encode_is_strict(values: dict[str, Value], message: str) -> None:
    with pytest.raises(CmcdError, match=message):
        encode(values)


def test_parse_is_tolerant_and_says_what_was_wrong() -> None:
    parsed = parse('br=(3200),com.x-y="a,b",zz=1,bs=false,bl,ot=v,ot=a, mtp=100,=3')
    assert parsed.values == {
        "br": "(3200)",
        "com.x-y": "a,b",
        "zz": "1",
        "bs": False,
        "bl": "",
        "ot": "a",
        "mtp": 100,
    }
    assert len(parsed.errors) == 5


def test_identifier_fits() -> None:
    assert encode({"sid": cmcd.identifier("bba träce\n" * 10)}).startswith('sid="bba tr?ce?bba')


def test_version_2_as_dash_js_sends_it() -> None:
    parsed = parse(
        'ab=(300;v),bl=(3900;v),br=(300;v),cid="v",d=4000,nor=("chunk-0-2.m4s"),ot=v,sn=3,sta=p,v=2'
    )
    assert parsed.errors == ()
    assert parsed.values["bl"] == 3900
    assert parsed.values["nor"] == "chunk-0-2.m4s"
    assert parsed.values["sta"] == "p"


def test_what_version_2_adds_is_unknown_in_version_1() -> None:
    assert parse("sn=3").errors == ("unknown key sn",)
    assert parse("bl=(3900;v)").errors == ("bl cannot be '(3900;v)'",)
