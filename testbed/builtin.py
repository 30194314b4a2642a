"""Data behind a name: ``builtin:NAME`` made in memory, ``data:PATH`` in the data folder, a path.

Everything built in comes from fixed seeds, so that an experiment with nothing downloaded means the
same traces and the same video everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from player.head_motion import HeadMotion, HeadMotionError, check_known, read_recordings
from player.head_motion_model import generate_head_motion, generate_scene
from player.trace import Trace
from player.video import PENSIEVE_CHUNK_S, PENSIEVE_LEVELS_KBPS, Video, generate_video, read_video
from testbed.trace_generators import generate_trace
from testbed.traces import read_folder, read_trace

BUILTIN_PREFIX = "builtin:"
DATA_PREFIX = "data:"
DATA_VARIABLE = "TESTBED_DATA"


class DataNotFound(LookupError):
    """Named data that does not exist; the message says what does, or where it was looked for."""


@dataclass(frozen=True, slots=True)
class TraceSet:
    """A built-in set of generated traces.

    Attributes:
        families: generators that take turns, so that any first few traces are a mixture.
        size: number of traces.
        seed: fixed seed of the set; sets with different seeds share no trace.
        about: one line for lists.
    """

    families: tuple[str, ...]
    size: int
    seed: int
    about: str

    def trace(self, set_name: str, index: int) -> Trace:
        """Trace ``index``; it does not depend on how many others are made."""
        family = self.families[index % len(self.families)]
        digits = len(str(self.size - 1))  # so that sorting names sorts indices
        suffix = f"-{family}" if len(self.families) > 1 else ""
        name = f"{set_name}-{index:0{digits}d}{suffix}"
        return generate_trace(family, name, _rng(self.seed, index))


_MIXED = ("fcc", "hsdpa", "lte")

#: Sets to test on, and sets to train on that share no trace with them.
TRACE_SETS: Mapping[str, TraceSet] = MappingProxyType(
    {
        "fcc": TraceSet(("fcc",), 20, 101, "fixed broadband, 5 s steps"),
        "hsdpa": TraceSet(("hsdpa",), 20, 102, "3G in vehicles, 1 s steps, fades and outages"),
        "lte": TraceSet(("lte",), 20, 103, "LTE while driving, 100 ms steps, handovers"),
        "mixed": TraceSet(_MIXED, 24, 104, "the three families in turn"),
        "fcc-train": TraceSet(("fcc",), 200, 201, "like fcc, to train on"),
        "hsdpa-train": TraceSet(("hsdpa",), 200, 202, "like hsdpa, to train on"),
        "lte-train": TraceSet(("lte",), 200, 203, "like lte, to train on"),
        "mixed-train": TraceSet(_MIXED, 240, 204, "like mixed, to train on"),
    }
)


@dataclass(frozen=True, slots=True)
class GeneratedVideo:
    """A built-in video: the arguments of :func:`player.video.generate_video`."""

    chunks: int
    seed: int
    about: str


VIDEOS: Mapping[str, GeneratedVideo] = MappingProxyType(
    {
        "envivio-like": GeneratedVideo(
            48, 301, "48 chunks of 4 s on the ladder of 300 to 4,300 kbit/s"
        ),
        "envivio-like-train": GeneratedVideo(48, 302, "another video of the same kind"),
    }
)


@dataclass(frozen=True, slots=True)
class RecordingSet:
    """A built-in set of generated head motion: every user watches every video.

    Attributes:
        videos: their numbers; sets that are to share no video have different ones.
        users: likewise.
        duration_s: length of each recording.
        seed: fixed seed of the set.
        about: one line for lists.
    """

    videos: range
    users: range
    duration_s: float
    seed: int
    about: str

    def recording(self, video: int, user: int) -> HeadMotion:
        """One viewer's recording; it does not depend on which others are made."""
        scene = generate_scene(self.duration_s, _rng(self.seed, video))
        name = f"video{video:02d}/user{user:02d}"
        rng = _rng(self.seed, video, user)
        return generate_head_motion(name, self.duration_s, rng, scene, video=video, user=user)


RECORDING_SETS: Mapping[str, RecordingSet] = MappingProxyType(
    {
        "explorers": RecordingSet(
            range(1, 7), range(1, 17), 60.0, 401, "6 videos of 60 s, 16 viewers"
        ),
        "explorers-train": RecordingSet(
            range(11, 23), range(21, 45), 60.0, 402, "12 other videos, 24 other viewers"
        ),
    }
)


def resolve_traces(
    spec: str, data_dir: Path | None = None, base: Path = Path(), limit: int | None = None
) -> tuple[Trace, ...]:
    """The traces that an experiment names.

    Args:
        spec: ``builtin:NAME``, ``data:PATH`` or a path; a path is one trace file or a folder.
        data_dir: folder that ``data:`` means, or None when the user named none.
        base: folder that relative paths start from, that of the experiment file.
        limit: at most this many, the first ones by name.

    Raises:
        DataNotFound: no such name, file or folder, or ``data:`` without a data folder.
        TraceFormatError: a malformed trace, or a folder without any.
        ValueError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if spec.startswith(BUILTIN_PREFIX):
        return builtin_traces(spec.removeprefix(BUILTIN_PREFIX), limit)
    path = resolve_path(spec, data_dir, base)
    return (read_trace(path),) if path.is_file() else read_folder(path, limit)


def resolve_video(
    spec: str,
    data_dir: Path | None = None,
    base: Path = Path(),
    *,
    levels_kbps: tuple[float, ...] = PENSIEVE_LEVELS_KBPS,
    chunk_s: float = PENSIEVE_CHUNK_S,
) -> Video:
    """The video that an experiment names; see :func:`resolve_traces` for the arguments.

    Raises:
        DataNotFound: no such name or folder, or ``data:`` without a data folder.
        VideoFormatError: the size table is incomplete or malformed.
    """
    if spec.startswith(BUILTIN_PREFIX):
        name = spec.removeprefix(BUILTIN_PREFIX)
        return builtin_video(name, levels_kbps=levels_kbps, chunk_s=chunk_s)
    folder = resolve_path(spec, data_dir, base)
    return read_video(folder, levels_kbps=levels_kbps, chunk_s=chunk_s)


def resolve_recordings(
    spec: str,
    data_dir: Path | None = None,
    base: Path = Path(),
    videos: Collection[int] | None = None,
    users: Collection[int] | None = None,
) -> tuple[HeadMotion, ...]:
    """The head motion that an experiment names, sorted by video and user.

    Args:
        spec: ``builtin:NAME``, ``data:PATH`` or a path; a path is a folder ``videoVV/userUU.csv``.
        data_dir: folder that ``data:`` means, or None when the user named none.
        base: folder that relative paths start from, that of the experiment file.
        videos: only these; all by default.
        users: only these; all by default.

    Raises:
        DataNotFound: no such name or folder, or ``data:`` without a data folder.
        HeadMotionError: no such video or user, or a malformed recording.
    """
    if spec.startswith(BUILTIN_PREFIX):
        return builtin_recordings(spec.removeprefix(BUILTIN_PREFIX), videos, users)
    return read_recordings(resolve_path(spec, data_dir, base), videos, users)


def builtin_recordings(
    name: str,
    videos: Collection[int] | None = None,
    users: Collection[int] | None = None,
) -> tuple[HeadMotion, ...]:
    """The recordings of a built-in set, all by default.

    Raises:
        DataNotFound: no such set; the message lists them.
        HeadMotionError: the set has no such video or user.
    """
    if name not in RECORDING_SETS:
        raise DataNotFound(
            f"no built-in head motion {name!r}; there are "
            + ", ".join(BUILTIN_PREFIX + known for known in RECORDING_SETS)
        )
    chosen = RECORDING_SETS[name]
    where = BUILTIN_PREFIX + name
    check_known(where, "video", videos, chosen.videos)
    check_known(where, "user", users, chosen.users)
    found = tuple(
        chosen.recording(video, user)
        for video in chosen.videos
        for user in chosen.users
        if (videos is None or video in videos) and (users is None or user in users)
    )
    if not found:
        raise HeadMotionError(f"{where}: neither videos nor users may be empty")
    return found


def builtin_traces(name: str, limit: int | None = None) -> tuple[Trace, ...]:
    """The first ``limit`` traces of a built-in set, all by default.

    Raises:
        DataNotFound: no such set; the message lists them.
    """
    if name not in TRACE_SETS:
        raise DataNotFound(
            f"no built-in traces {name!r}; there are "
            + ", ".join(BUILTIN_PREFIX + known for known in TRACE_SETS)
        )
    chosen = TRACE_SETS[name]
    count = chosen.size if limit is None else min(limit, chosen.size)
    return tuple(chosen.trace(name, index) for index in range(count))


def builtin_video(
    name: str,
    *,
    levels_kbps: tuple[float, ...] = PENSIEVE_LEVELS_KBPS,
    chunk_s: float = PENSIEVE_CHUNK_S,
) -> Video:
    """A built-in video.

    Raises:
        DataNotFound: no such video; the message lists them.
    """
    if name not in VIDEOS:
        raise DataNotFound(
            f"no built-in video {name!r}; there are "
            + ", ".join(BUILTIN_PREFIX + known for known in VIDEOS)
        )
    made = VIDEOS[name]
    return generate_video(
        name, chunks=made.chunks, rng=_rng(made.seed), levels_kbps=levels_kbps, chunk_s=chunk_s
    )


def resolve_path(spec: str, data_dir: Path | None = None, base: Path = Path()) -> Path:
    """The existing file or folder that ``data:PATH`` or a path means.

    Raises:
        DataNotFound: it does not exist, ``data:`` was given without a data folder, or it leaves
            that folder.
    """
    if spec.startswith(BUILTIN_PREFIX):
        raise DataNotFound(f"{spec!r} is built in and has no path")
    if not spec.startswith(DATA_PREFIX):
        path = base / Path(spec).expanduser()
        if not path.exists():
            raise DataNotFound(f"{path}: no such file or folder")
        return path
    if data_dir is None:
        raise DataNotFound(
            f"{spec!r} needs the data folder: give it with --data or in {DATA_VARIABLE}"
        )
    below = Path(spec.removeprefix(DATA_PREFIX))
    # Judged by its text: a symbolic link that the owner of the folder placed there is theirs.
    if below.is_absolute() or ".." in below.parts:
        raise DataNotFound(f"{spec!r} must name something below the data folder {data_dir}")
    path = data_dir / below
    if not path.exists():
        raise DataNotFound(f"{spec!r}: no {path}; the data folder is {data_dir}")
    return path


def _rng(*seed: int) -> np.random.Generator:
    # The bit generator is named because default_rng() may change between versions of numpy.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
