"""Encodes the tiny picture of each level with ffmpeg: a zoom into the Mandelbrot set.

The level and its bitrate are drawn as seven-segment digits out of filled boxes, so that no font is
needed. Higher levels get more bits and look better, as they would in a real ladder.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from player import fmp4
from player.fmp4 import ContentError

WIDTH, HEIGHT = 320, 180
FRAME_RATE = 24  # approximate: a chunk is a whole number of frames
MIN_TIMESCALE = 10_000  # ticks per second, as ffmpeg's own muxer chooses
SHARE_OF_BITRATE = 0.03  # of the nominal rate; the rest of a chunk is padding
PICTURE_KBPS = (12.0, 120.0)  # at least and at most
LONGEST_ENCODE_S = 120.0

_SEGMENTS = {  # a top, b and c right, d bottom, e and f left, g middle
    "0": "abcdef", "1": "bc", "2": "abdeg", "3": "abcdg", "4": "bcfg",
    "5": "acdfg", "6": "acdefg", "7": "abc", "8": "abcdefg", "9": "abcdfg", "L": "def",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """Frames of one chunk, without any rounding.

    Attributes:
        frames: per chunk.
        frame_rate: frames per second.
        timescale: ticks per second.
        chunk_ticks: length of a chunk.
    """

    frames: int
    frame_rate: Fraction
    timescale: int
    chunk_ticks: int

    @classmethod
    def of(cls, chunk_s: float) -> Timing:
        """The timing nearest to 24 frames per second at which a chunk is whole frames.

        Raises:
            ContentError: ``chunk_s`` is no fraction of small numbers, or shorter than a frame.
        """
        exact_s = Fraction(chunk_s if math.isfinite(chunk_s) else 0).limit_denominator(1000)
        frames = round(FRAME_RATE * exact_s)
        if frames < 1 or not math.isclose(exact_s, chunk_s, rel_tol=1e-9):
            raise ContentError(
                f"chunk_s {chunk_s} cannot be made of whole frames: give a multiple of 0.001 s, "
                f"at least {1 / FRAME_RATE:.3f} s"
            )
        rate = frames / exact_s
        doublings = max(0, math.ceil(math.log2(MIN_TIMESCALE / rate.numerator)))
        timescale = rate.numerator << doublings
        return cls(frames, rate, timescale, int(exact_s * timescale))


@dataclass(frozen=True, slots=True)
class EncodedLevel:
    """Initialisation and media segment of one level."""

    init: bytes
    media: bytes


def encode_level(level: int, bitrate_kbps: float, timing: Timing) -> EncodedLevel:
    """Encodes one chunk of one level.

    Raises:
        ContentError: ffmpeg is missing, failed, or made something else than asked.
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise ContentError(
            "ffmpeg is needed to make content for this ladder and chunk length "
            "(Debian, Ubuntu: apt-get install ffmpeg); the built-in content needs none"
        )
    with tempfile.TemporaryDirectory(prefix="testbed-encode-") as folder:
        target = Path(folder) / "level.mp4"
        command = [ffmpeg, *_arguments(level, bitrate_kbps, timing), str(target)]
        try:
            subprocess.run(
                command,
                check=True,
                timeout=LONGEST_ENCODE_S,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines()[-3:]
            raise ContentError(f"ffmpeg failed on level {level}: {' | '.join(lines)}") from error
        except subprocess.TimeoutExpired as error:
            raise ContentError(f"ffmpeg took over {LONGEST_ENCODE_S} s on level {level}") from error
        encoded = _split(target.read_bytes())
    made = fmp4.Fragment.parse(encoded.media).frames, fmp4.timescale(encoded.init)
    if made != (timing.frames, timing.timescale):
        raise ContentError(f"ffmpeg made (frames, timescale) {made} of level {level}, not {timing}")
    return encoded


def _arguments(level: int, bitrate_kbps: float, timing: Timing) -> list[str]:
    least, most = PICTURE_KBPS
    kbps = min(max(SHARE_OF_BITRATE * bitrate_kbps, least), most)
    rate = f"{timing.frame_rate.numerator}/{timing.frame_rate.denominator}"
    zoom = "end_scale=0.1:maxiter=400"  # ends short of the black, and soon
    picture = f"mandelbrot=size={WIDTH}x{HEIGHT}:rate={rate}:end_pts={timing.frames}:{zoom}"
    label = ",".join(
        [
            "drawbox=x=4:y=4:w=112:h=72:color=black:t=fill",
            *_digits(f"L{level}", x=12, y=12, unit=5),
            *_digits(f"{bitrate_kbps:.0f}", x=12, y=46, unit=4),
        ]
    )
    return [
        *("-v", "error", "-nostdin", "-y"),
        *("-f", "lavfi", "-i", picture, "-frames:v", str(timing.frames), "-vf", label),
        *("-c:v", "libx264", "-preset", "slow", "-profile:v", "main", "-level", "2.1"),
        *("-pix_fmt", "yuv420p", "-threads", "1", "-bf", "0"),  # no reordering: starts at 0
        *("-b:v", f"{kbps:.1f}k", "-maxrate", f"{kbps:.1f}k", "-bufsize", f"{kbps:.1f}k"),
        *("-g", str(timing.frames), "-keyint_min", str(timing.frames), "-sc_threshold", "0"),
        *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"),
        *("-video_track_timescale", str(timing.timescale)),
        *("-movflags", "frag_keyframe+empty_moov+default_base_moof+skip_trailer", "-f", "mp4"),
    ]


def _digits(text: str, *, x: int, y: int, unit: int) -> Iterator[str]:
    """Filters that draw ``text`` with strokes ``unit`` pixels wide, each digit 3 by 5 units."""
    wide, high = 3 * unit, 5 * unit
    for character in text:
        strokes = {
            "a": (x, y, wide, unit),
            "b": (x + wide - unit, y, unit, high // 2 + 1),
            "c": (x + wide - unit, y + high // 2, unit, high // 2 + 1),
            "d": (x, y + high - unit, wide, unit),
            "e": (x, y + high // 2, unit, high // 2 + 1),
            "f": (x, y, unit, high // 2 + 1),
            "g": (x, y + 2 * unit, wide, unit),
        }
        for stroke in _SEGMENTS[character]:
            left, top, width, height = strokes[stroke]
            yield f"drawbox=x={left}:y={top}:w={width}:h={height}:color=white:t=fill"
        x += 4 * unit


def _split(file: bytes) -> EncodedLevel:
    fragment = fmp4.find(file, b"moof")
    media = fmp4.find(file, b"mdat")
    return EncodedLevel(init=file[: fragment.start], media=file[fragment.start : media.end])
