"""Common Media Client Data: what a player tells the server with each request.

CTA-5004 (2020), section 3: comma-separated ``key=value`` in alphabetical order; strings in quotes,
tokens bare, true booleans as the bare key, false ones and unknowns left out. Version 1 is written
and read; of version 2 what requests carry is read: more keys, and lists such as ``(300;v)``, which
become their one value.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

QUERY_PARAMETER = "CMCD"
HEADERS = ("CMCD-Object", "CMCD-Request", "CMCD-Session", "CMCD-Status")
MAX_ID_CHARACTERS = 64
MAX_PAYLOAD_CHARACTERS = 4096

Value = int | float | str | bool


class CmcdError(ValueError):
    """A value that CMCD cannot carry."""


class Kind(enum.Enum):
    """How the value of a key is written."""

    INTEGER = enum.auto()
    HUNDREDS = enum.auto()  # an integer rounded to the nearest 100
    DECIMAL = enum.auto()
    STRING = enum.auto()
    IDENTIFIER = enum.auto()  # a string of at most 64 characters
    TOKEN = enum.auto()
    BOOLEAN = enum.auto()


#: The reserved keys (CTA-5004, table 1); rates in kbit/s, times in ms.
KINDS: Mapping[str, Kind] = {
    "br": Kind.INTEGER,  # bitrate of the requested object
    "bl": Kind.HUNDREDS,  # buffer length
    "bs": Kind.BOOLEAN,  # the buffer ran empty since the last request
    "cid": Kind.IDENTIFIER,  # content
    "d": Kind.INTEGER,  # duration of the object
    "dl": Kind.HUNDREDS,  # deadline: the buffer runs empty in this time
    "mtp": Kind.HUNDREDS,  # measured throughput
    "nor": Kind.STRING,  # next object request, a relative URL
    "nrr": Kind.STRING,  # next range request
    "ot": Kind.TOKEN,  # object type
    "pr": Kind.DECIMAL,  # playback rate
    "rtp": Kind.HUNDREDS,  # highest rate the server need deliver at
    "sf": Kind.TOKEN,  # streaming format
    "sid": Kind.IDENTIFIER,  # session
    "st": Kind.TOKEN,  # stream type
    "su": Kind.BOOLEAN,  # needed at once: start-up, seek or empty buffer
    "tb": Kind.INTEGER,  # highest bitrate of the ladder
    "v": Kind.INTEGER,  # version
}
#: What version 2 adds in requests; bitrates in kbit/s, times in ms.
V2_KINDS: Mapping[str, Kind] = {
    "ab": Kind.INTEGER,  # bitrates: of all streams together, and the lowest and highest of these
    "lab": Kind.INTEGER,
    "tab": Kind.INTEGER,
    "lb": Kind.INTEGER,
    "tbl": Kind.INTEGER,  # buffer length that is aimed for
    "pb": Kind.INTEGER,  # bitrate that is played, and the highest that can be
    "tpb": Kind.INTEGER,
    "bg": Kind.BOOLEAN,  # the player is not visible
    "bsa": Kind.INTEGER,  # starved buffer: how often, how long, how long in all
    "bsd": Kind.INTEGER,
    "bsda": Kind.INTEGER,
    "cdn": Kind.STRING,
    "cs": Kind.STRING,
    "dfa": Kind.INTEGER,  # dropped frames
    "ec": Kind.STRING,
    "ltc": Kind.INTEGER,  # live latency
    "msd": Kind.INTEGER,  # start-up
    "nr": Kind.BOOLEAN,
    "pt": Kind.INTEGER,
    "sn": Kind.INTEGER,  # number of the request
    "sta": Kind.TOKEN,
}
TOKENS: Mapping[str, frozenset[str]] = {
    "ot": frozenset({"m", "a", "v", "av", "i", "c", "tt", "k", "o"}),
    "sf": frozenset({"d", "h", "s", "o"}),
    "st": frozenset({"v", "l"}),
    "sta": frozenset("spkrawefqd"),  # starting, playing, seeking, rebuffering, paused, …
}

_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_DECIMAL = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,6})?")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LIST_OF_ONE = re.compile(r'\(\s*("(?:[^"\\]|\\.)*"|[^\s();"]+)(?:;[a-z]+)*\s*\)(?:;[a-z]+)*')
_FIELD = re.compile(r'(?:[^",\\]|"(?:[^"\\]|\\.)*"|["\\])+')  # up to a comma outside quotes


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a request told.

    Attributes:
        values: by key; a custom key's or an ill-formed value stays the text that came.
        errors: what is wrong with it, in words.
    """

    values: dict[str, Value]
    errors: tuple[str, ...]


def encode(values: Mapping[str, Value]) -> str:
    """The payload for ``values``, ready to be URL-encoded into ``?CMCD=…``.

    Raises:
        CmcdError: an unknown key, a value of the wrong type or outside its range.
    """
    fields = []
    for key in sorted(values):
        kind = KINDS.get(key)
        if kind is None:
            raise CmcdError(f"unknown CMCD key {key!r}; there are {', '.join(KINDS)}")
        value = values[key]
        if kind is Kind.BOOLEAN:
            if not isinstance(value, bool):
                raise CmcdError(f"{key} must be true or false, not {value!r}")
            if value:
                fields.append(key)
        else:
            fields.append(f"{key}={_encode_value(key, kind, value)}")
    return ",".join(fields)


def identifier(text: str) -> str:
    """``text`` as a content or session identifier: printable ASCII, at most 64 characters."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:MAX_ID_CHARACTERS]


def _encode_value(key: str, kind: Kind, value: Value) -> str:
    if kind in (Kind.STRING, Kind.IDENTIFIER, Kind.TOKEN):
        if not isinstance(value, str):
            raise CmcdError(f"{key} must be text, not {value!r}")
        return _encode_text(key, kind, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CmcdError(f"{key} must be a number, not {value!r}")
    if not (math.isfinite(value) and 0 <= value < 1e12):
        raise CmcdError(f"{key} must be a number from 0 to 1e12, not {value!r}")
    match kind:
        case Kind.HUNDREDS:
            return str(math.floor(value / 100 + 0.5) * 100)
        case Kind.INTEGER:
            return str(math.floor(value + 0.5))
        case _:
            return f"{value:.3f}".rstrip("0").rstrip(".")


def _encode_text(key: str, kind: Kind, value: str) -> str:
    if kind is Kind.TOKEN:
        if value not in TOKENS[key]:
            raise CmcdError(f"{key} must be one of {sorted(TOKENS[key])}, not {value!r}")
        return value
    if not _PRINTABLE.fullmatch(value):
        raise CmcdError(f"{key} must be printable ASCII, not {value!r}")
    if kind is Kind.IDENTIFIER and len(value) > MAX_ID_CHARACTERS:
        raise CmcdError(f"{key} has {len(value)} characters, at most {MAX_ID_CHARACTERS} allowed")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def parse(text: str) -> Parsed:
    """Reads a payload from a query or from headers; never fails, but reports what was wrong."""
    values: dict[str, Value] = {}
    errors: list[str] = []
    if len(text) > MAX_PAYLOAD_CHARACTERS:
        errors.append(f"cut after {MAX_PAYLOAD_CHARACTERS} characters")
    fields = list(_fields(text[:MAX_PAYLOAD_CHARACTERS]))
    is_v2 = "v=2" in fields
    kinds = {**KINDS, **V2_KINDS} if is_v2 else KINDS
    for field in fields:
        key, equals, raw = field.partition("=")
        if not _KEY.fullmatch(key):
            errors.append(f"not a key: {key[:40]!r}")
            continue
        if key in values:
            errors.append(f"{key} comes twice")
        if is_v2 and (one := _LIST_OF_ONE.fullmatch(raw)):
            raw = one.group(1)
        try:
            values[key] = _parse_value(key, raw if equals else None, kinds)
        except CmcdError as error:
            errors.append(str(error))
            values[key] = raw
    return Parsed(values, tuple(errors))


def _fields(text: str) -> Iterator[str]:
    for match in _FIELD.finditer(text):
        field = match.group().strip()
        if field:
            yield field


def _parse_value(key: str, raw: str | None, kinds: Mapping[str, Kind]) -> Value:
    kind = kinds.get(key)
    if raw is None:
        if kind not in (Kind.BOOLEAN, None):
            raise CmcdError(f"{key} has no value")
        return True
    if kind is None:
        if "-" not in key:
            raise CmcdError(f"unknown key {key}")
        return _unquote(key, raw) if raw.startswith('"') else raw
    match kind:
        case Kind.INTEGER | Kind.HUNDREDS if _INTEGER.fullmatch(raw):
            return int(raw)
        case Kind.DECIMAL if _DECIMAL.fullmatch(raw):
            return float(raw)
        case Kind.STRING | Kind.IDENTIFIER if raw.startswith('"'):
            return _unquote(key, raw)
        case Kind.TOKEN if raw in TOKENS[key]:
            return raw
        case Kind.BOOLEAN if raw in ("true", "false"):
            return raw == "true"
    raise CmcdError(f"{key} cannot be {raw[:40]!r}")


def _unquote(key: str, raw: str) -> str:
    if not re.fullmatch(r'"(?:[^"\\]|\\["\\])*"', raw):
        raise CmcdError(f"{key} is not a well-quoted string: {raw[:40]!r}")
    return re.sub(r"\\(.)", r"\1", raw[1:-1])
