"""A video as the controller and the link see it: chunk sizes per level, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Ladder and chunk length of the DASH-264 "Envivio" video that Pensieve and NetLLM stream.
PENSIEVE_LEVELS_KBPS = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)
PENSIEVE_CHUNK_S = 4.0
SIZE_FILE_PREFIX = "video_size_"
MAX_SIZE_FILE_BYTES = 16 * 2**20


class VideoFormatError(ValueError):
    """A size table with a hole, a non-number, or levels of different length."""


@dataclass(frozen=True)
class Video:
    """Chunk sizes of one video.

    Attributes:
        name: label for reports and the server's paths.
        levels_kbps: nominal bitrate of each level, increasing.
        chunk_s: seconds of video per chunk.
        sizes_bytes: per chunk, the size in bytes at each level.
    """

    name: str
    levels_kbps: tuple[float, ...]
    chunk_s: float
    sizes_bytes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.chunk_s <= 0:
            raise VideoFormatError(f"{self.name}: chunk_s must be positive, not {self.chunk_s}")
        if not self.levels_kbps or any(
            later <= earlier
            for earlier, later in zip((0.0, *self.levels_kbps), self.levels_kbps, strict=False)
        ):
            raise VideoFormatError(
                f"{self.name}: levels_kbps must be positive and increase: {self.levels_kbps}"
            )
        if not self.sizes_bytes:
            raise VideoFormatError(f"{self.name}: the size table is empty")
        for index, row in enumerate(self.sizes_bytes):
            if len(row) != len(self.levels_kbps):
                raise VideoFormatError(
                    f"{self.name}: chunk {index} has {len(row)} sizes for "
                    f"{len(self.levels_kbps)} levels"
                )
            if min(row) <= 0:
                raise VideoFormatError(
                    f"{self.name}: chunk {index} has a size that is not positive"
                )

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.levels_kbps)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.sizes_bytes)

    def first(self, chunks: int) -> Video:
        """The video cut to its first ``chunks`` chunks.

        Raises:
            VideoFormatError: it has fewer than that.
        """
        if not 1 <= chunks <= self.chunks:
            raise VideoFormatError(f"{self.name} has {self.chunks} chunks, asked for {chunks}")
        return Video(self.name, self.levels_kbps, self.chunk_s, self.sizes_bytes[:chunks])


def read_video(
    folder: Path,
    *,
    levels_kbps: tuple[float, ...] = PENSIEVE_LEVELS_KBPS,
    chunk_s: float = PENSIEVE_CHUNK_S,
) -> Video:
    """Reads a folder of ``video_size_L`` files: line i is the size in bytes of chunk i at level L.

    Raises:
        VideoFormatError: a file is missing, or a line is not a positive whole number; the message
            names file and line.
    """
    if not folder.is_dir():
        raise VideoFormatError(f"{folder}: no such folder of {SIZE_FILE_PREFIX}L files")
    columns = [
        _read_sizes(folder / f"{SIZE_FILE_PREFIX}{level}", levels=len(levels_kbps))
        for level in range(len(levels_kbps))
    ]
    for level, column in enumerate(columns):
        if len(column) != len(columns[0]):
            raise VideoFormatError(
                f"{folder / f'{SIZE_FILE_PREFIX}{level}'}: {len(column)} chunks, but level 0 has "
                f"{len(columns[0])}"
            )
    return Video(folder.name, levels_kbps, chunk_s, tuple(zip(*columns, strict=True)))


def _read_sizes(path: Path, *, levels: int) -> list[int]:
    if not path.is_file():
        raise VideoFormatError(
            f"{path}: missing; a ladder of {levels} levels needs {SIZE_FILE_PREFIX}0 to "
            f"{SIZE_FILE_PREFIX}{levels - 1}"
        )
    if path.stat().st_size > MAX_SIZE_FILE_BYTES:
        raise VideoFormatError(f"{path}: larger than {MAX_SIZE_FILE_BYTES} bytes, not a size table")
    sizes: list[int] = []
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text.isascii() or not text.isdigit() or int(text) <= 0:
            raise VideoFormatError(
                f"{path}:{number}: expected a size in bytes (a positive whole number), "
                f"found {text[:40]!r}"
            )
        sizes.append(int(text))
    return sizes


def generate_video(
    name: str,
    *,
    chunks: int,
    rng: np.random.Generator,
    levels_kbps: tuple[float, ...] = PENSIEVE_LEVELS_KBPS,
    chunk_s: float = PENSIEVE_CHUNK_S,
) -> Video:
    """A synthetic variable-bitrate video.

    Scene complexity is a first-order autoregressive log-normal factor common to all levels, with a
    small independent part per level: neighbouring chunks are alike, and a hard chunk is large at
    every level. Mean sizes equal the nominal bitrate.
    """
    scene_correlation, scene_sigma, level_sigma = 0.7, 0.18, 0.04
    shocks = rng.normal(0.0, scene_sigma * np.sqrt(1 - scene_correlation**2), size=chunks)
    scene = np.empty(chunks)
    scene[0] = rng.normal(0.0, scene_sigma)
    for index in range(1, chunks):
        scene[index] = scene_correlation * scene[index - 1] + shocks[index]
    factor = np.exp(scene[:, None] + rng.normal(0.0, level_sigma, size=(chunks, len(levels_kbps))))
    factor /= factor.mean(axis=0)
    nominal = np.asarray(levels_kbps) * 1000 / 8 * chunk_s
    sizes = np.maximum.accumulate(np.rint(nominal * factor).astype(int), axis=1)
    return Video(name, levels_kbps, chunk_s, tuple(tuple(map(int, row)) for row in sizes))
