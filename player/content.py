"""Playable chunks of any size: a tiny real fMP4 per level, padded to the video's size table.

Every chunk of a level is the same few kilobytes of H.264 (the level and its bitrate burnt into a
moving picture), moved to its place on the timeline, followed by an ISO-BMFF ``free`` box (ISO/IEC
14496-12, section 8.1.2) that players skip. So the network carries exactly the bytes of the size
table while nothing large is ever stored or encoded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pydantic

from player import fmp4
from player.fmp4 import ContentError
from player.pack_encoder import HEIGHT, WIDTH, EncodedLevel, Timing, encode_level
from player.video import Video

__all__ = ["ContentError", "ContentPack", "Segment", "load_pack", "make_pack"]

PIECE_BYTES = 64 * 1024
PACK_FILE = "pack.json"
CACHE_FOLDER = "netllm-testbed"
ENCODING_VERSION = 1  # raise it when the encoder changes, so that no old cache is used
MAX_SEGMENT_FILE_BYTES = 4 * 2**20

_ZEROS = memoryview(bytes(PIECE_BYTES))


@dataclass(frozen=True, slots=True)
class Segment:
    """A chunk as it goes over the network.

    Attributes:
        head: the fMP4 fragment and the header of the padding; behind it there are only zeros.
        size_bytes: length with the padding.
    """

    head: bytes
    size_bytes: int

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yields bytes ``start`` to ``stop`` (exclusive) in pieces of at most 64 KiB."""
        stop = self.size_bytes if stop is None else stop
        head = memoryview(self.head)
        while start < stop:
            source = head[start:] if start < len(head) else _ZEROS
            piece = source[: min(stop - start, PIECE_BYTES)]
            yield piece
            start += len(piece)


@dataclass(frozen=True)
class ContentPack:
    """Tiny segments for one ladder and chunk length.

    Attributes:
        levels_kbps: the ladder.
        chunk_s: seconds of video per chunk.
        levels: initialisation and media segment of each level.
    """

    levels_kbps: tuple[float, ...]
    chunk_s: float
    levels: tuple[EncodedLevel, ...]

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.levels_kbps):
            raise ContentError(
                f"{len(self.levels)} encoded levels for a ladder of {len(self.levels_kbps)}"
            )
        for level, (encoded, fragment) in enumerate(zip(self.levels, self._fragments, strict=True)):
            scale = fmp4.timescale(encoded.init)
            if (scale, fragment.frames) != (self.timing.timescale, self.timing.frames):
                raise ContentError(
                    f"level {level} has {fragment.frames} frames at timescale {scale}, "
                    f"expected {self.timing.frames} at {self.timing.timescale}"
                )

    @cached_property
    def timing(self) -> Timing:
        """Frames and ticks of a chunk."""
        return Timing.of(self.chunk_s)

    @cached_property
    def codecs(self) -> tuple[str, ...]:
        """RFC 6381 codec string of each level."""
        return tuple(fmp4.codecs(encoded.init) for encoded in self.levels)

    @property
    def width(self) -> int:
        """Width of the picture, pixels."""
        return WIDTH

    @property
    def height(self) -> int:
        """Height of the picture, pixels."""
        return HEIGHT

    @cached_property
    def _fragments(self) -> tuple[fmp4.Fragment, ...]:
        return tuple(fmp4.Fragment.parse(encoded.media) for encoded in self.levels)

    def init(self, level: int) -> bytes:
        """The initialisation segment of a level."""
        return self.levels[level].init

    def min_bytes(self, level: int) -> int:
        """Smallest chunk that this pack can make at a level."""
        return len(self.levels[level].media) + fmp4.BOX_HEADER.size

    def segment(self, chunk: int, level: int, size_bytes: int) -> Segment:
        """Chunk ``chunk`` (from 0) at ``level``, exactly ``size_bytes`` long.

        Raises:
            ContentError: the picture does not fit into that size.
        """
        padding = size_bytes - len(self.levels[level].media)
        if not fmp4.BOX_HEADER.size <= padding <= fmp4.MAX_BOX_BYTES:
            raise ContentError(
                f"chunk {chunk}, level {level}: {size_bytes} bytes are asked for, but this content "
                f"can only be padded to {self.min_bytes(level)} bytes or more (below 4 GiB)"
            )
        head = self._fragments[level].moved(
            sequence=chunk + 1, decode_time=chunk * self.timing.chunk_ticks
        )
        head += fmp4.BOX_HEADER.pack(padding, b"free")
        return Segment(bytes(head), size_bytes)

    def check(self, video: Video) -> None:
        """Makes sure that every chunk of ``video`` can be served.

        Raises:
            ContentError: another ladder or chunk length, or a chunk too small for its picture.
        """
        if (video.levels_kbps, video.chunk_s) != (self.levels_kbps, self.chunk_s):
            raise ContentError(
                f"{video.name}: ladder {video.levels_kbps} kbit/s with {video.chunk_s} s chunks, "
                f"but the content is for {self.levels_kbps} with {self.chunk_s} s"
            )
        for chunk, sizes in enumerate(video.sizes_bytes):
            for level, size_bytes in enumerate(sizes):
                if size_bytes < self.min_bytes(level):
                    raise ContentError(
                        f"{video.name}: chunk {chunk} at level {level} has {size_bytes} bytes, "
                        f"the smallest that can be made is {self.min_bytes(level)}"
                    )


def load_pack(levels_kbps: Sequence[float], chunk_s: float) -> ContentPack:
    """The content for a ladder: built in, else from the user's cache, else made (and cached).

    Raises:
        ContentError: it must be made and cannot be.
    """
    levels = tuple(map(float, levels_kbps))
    built_in = Path(__file__).with_name("content")
    for folder in (built_in, _cache_folder() / _cache_key(levels, chunk_s)):
        pack = _read(folder)
        if pack is not None and (pack.levels_kbps, pack.chunk_s) == (levels, float(chunk_s)):
            return pack
    return make_pack(levels, chunk_s)


def make_pack(levels_kbps: Sequence[float], chunk_s: float) -> ContentPack:
    """Encodes content for a ladder with ffmpeg and puts it into the user's cache.

    Raises:
        ContentError: ffmpeg is missing or failed, the chunk length is no whole number of frames,
            or the cache cannot be written.
    """
    levels = tuple(map(float, levels_kbps))
    timing = Timing.of(chunk_s)
    pack = ContentPack(
        levels,
        float(chunk_s),
        tuple(encode_level(level, kbps, timing) for level, kbps in enumerate(levels)),
    )
    target = _cache_folder() / _cache_key(levels, chunk_s)
    try:
        write_pack(pack, target)
    except OSError as error:
        raise ContentError(
            f"cannot write the content cache {target} ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return pack


def write_pack(pack: ContentPack, folder: Path) -> None:
    """Writes a pack; ``folder`` is either there completely or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for level, encoded in enumerate(pack.levels):
            (staging / f"init-{level}.mp4").write_bytes(encoded.init)
            (staging / f"chunk-{level}.m4s").write_bytes(encoded.media)
        described = {"levels_kbps": pack.levels_kbps, "chunk_s": pack.chunk_s}
        (staging / PACK_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        if folder.exists() and _read(folder) is None:
            shutil.rmtree(folder)  # damaged
        if not folder.exists():
            _move(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster, with the same content
            raise


@dataclass(frozen=True)
class _PackDescription:
    levels_kbps: tuple[float, ...]
    chunk_s: float


def _read(folder: Path) -> ContentPack | None:
    """The pack in ``folder``; None when there is none that is whole."""
    try:
        described = pydantic.TypeAdapter(_PackDescription).validate_json(
            (folder / PACK_FILE).read_bytes()
        )
        levels = tuple(
            EncodedLevel(
                _read_small(folder / f"init-{level}.mp4"),
                _read_small(folder / f"chunk-{level}.m4s"),
            )
            for level in range(len(described.levels_kbps))
        )
        return ContentPack(described.levels_kbps, described.chunk_s, levels)
    except (OSError, ValueError):  # pydantic's and our own errors are ValueErrors
        return None


def _read_small(path: Path) -> bytes:
    if path.stat().st_size > MAX_SEGMENT_FILE_BYTES:
        raise ContentError(f"{path}: larger than {MAX_SEGMENT_FILE_BYTES} bytes")
    return path.read_bytes()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / CACHE_FOLDER / "content"


def _cache_key(levels_kbps: tuple[float, ...], chunk_s: float) -> str:
    key = json.dumps([ENCODING_VERSION, levels_kbps, float(chunk_s)])
    return hashlib.sha256(key.encode()).hexdigest()[:16]
