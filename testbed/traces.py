"""Trace files: readers and writers for the two-column and the Mahimahi formats.

Two-column, as in Pensieve's cooked traces (Mao et al., SIGCOMM 2017): ``time_s Mbit/s`` per line,
split by any white space. Mahimahi (Netravali et al., USENIX ATC 2015, ``mm-link``): one whole
number per line, the millisecond of one chance to deliver 1,500 bytes; a number may repeat, numbers
never fall, and the last one is the period after which the trace starts over. In both, blank lines
and everything behind a ``#`` are skipped (``mm-link`` itself takes neither).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from player.trace import BITS_PER_MEGABIT, FloatArray, Trace, TraceError

IntArray = npt.NDArray[np.int64]
TraceFormat = Literal["two-column", "mahimahi"]

OPPORTUNITY_BITS = 1500 * 8
MS_PER_S = 1000
#: Width of the steps into which delivery opportunities are counted.
MAHIMAHI_BIN_S = 0.1
#: Limits against files that are no traces; a week at any rate is more than any experiment.
MAX_FILE_BYTES = 64 * 2**20
MAX_DURATION_S = 7 * 86_400
MAX_RATE_MBPS = 1e6
#: Below one 1,500-byte packet a second, a link counts as down.
OUTAGE_MBPS = OPPORTUNITY_BITS / BITS_PER_MEGABIT

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MILLISECONDS = re.compile(r"\d{1,18}", re.ASCII)
_NOT_A_TRACE_PREFIXES = ("readme", "license", "licence", "copying")
_SHOWN = 40  # characters of a wrong line in a message
#: Forgiven when a float is rounded to a whole packet or millisecond: its last digits, no more.
_ROUNDING_PACKETS = 1e-6
_ROUNDING_MS = 1e-6


class TraceFormatError(ValueError):
    """A trace file that cannot be read; the message names file and line and what was expected."""


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """What a trace is like; rates are weighted by how long they hold.

    Attributes:
        points: number of points.
        duration_s: length of one pass.
        mean_mbps: mean rate.
        min_mbps: lowest rate.
        max_mbps: highest rate.
        p5_mbps: the rate that is undercut 5 % of the time.
        variation: coefficient of variation, standard deviation over mean.
        longest_outage_s: longest time below ``OUTAGE_MBPS``, from one pass into the next included.
    """

    points: int
    duration_s: float
    mean_mbps: float
    min_mbps: float
    max_mbps: float
    p5_mbps: float
    variation: float
    longest_outage_s: float


def read_trace(path: Path, *, bin_s: float = MAHIMAHI_BIN_S) -> Trace:
    """Reads one trace file of either format, told apart by its first line with content.

    Args:
        path: the file; its name becomes the name of the trace.
        bin_s: width of the steps that a Mahimahi file is counted into; totals stay exact at every
            border of a step.

    Raises:
        TraceFormatError: missing, too large, or malformed; names file and line.
    """
    lines = list(_content_lines(path))
    try:
        if _is_mahimahi(path, lines):
            return _trace_of_opportunities(path, _parse_mahimahi(path, lines), bin_s)
        times_s, rates_mbps = _parse_two_column(path, lines)
        return Trace(path.name, times_s, rates_mbps)
    except TraceError as error:
        raise TraceFormatError(f"{path.parent}/{error}") from error


def detect_format(path: Path) -> TraceFormat:
    """The format of a trace file, judged by its first line with content.

    Raises:
        TraceFormatError: missing, too large, empty, or neither format.
    """
    return "mahimahi" if _is_mahimahi(path, list(_content_lines(path))) else "two-column"


def read_folder(path: Path, limit: int | None = None) -> tuple[Trace, ...]:
    """Reads every trace of a folder, sorted by file name; the first ``limit`` if given.

    Hidden files, subfolders and files called README, LICENSE, COPYING or ``*.md`` are skipped;
    anything else must be a trace.

    Raises:
        TraceFormatError: no such folder, no trace in it, or one of them is malformed.
        ValueError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if not path.is_dir():
        raise TraceFormatError(f"{path}: no such folder of traces")
    entries = sorted(path.iterdir(), key=lambda entry: entry.name)
    files = [entry for entry in entries if entry.is_file() and _may_be_trace(entry.name)]
    if not files:
        folders = [entry.name for entry in entries if entry.is_dir()]
        hint = f"; it has the folders {', '.join(folders)}" if folders else ""
        raise TraceFormatError(f"{path}: no trace file in this folder{hint}")
    return tuple(read_trace(file) for file in files[:limit])


def write_two_column(trace: Trace, path: Path) -> None:
    """Writes ``time_s Mbit/s`` lines; reading them back gives the same numbers exactly."""
    rows = zip(trace.times_s.tolist(), trace.rates_mbps.tolist(), strict=True)
    path.write_text("".join(f"{time_s!r} {rate!r}\n" for time_s, rate in rows), encoding="ascii")


def write_mahimahi(trace: Trace, path: Path) -> None:
    """Writes one line per delivery opportunity.

    Until each millisecond t there are floor(bits until t / 12,000) opportunities, so no rounding
    adds up. One exception keeps the period: the last opportunity is written at the end of the
    trace. What is left of the last packet at the end of a pass is lost.

    Raises:
        TraceFormatError: the trace cannot be told in this format: less than one packet per pass,
            or more lines than the reader takes.
    """
    try:
        stamps_ms = opportunities_ms(trace)
    except TraceError as error:
        raise TraceFormatError(f"{path}: {error}") from error
    text = "\n".join(map(str, stamps_ms.tolist())) + "\n"
    path.write_text(text, encoding="ascii")


def opportunities_ms(trace: Trace) -> IntArray:
    """The delivery opportunities of one pass of a trace, as ``write_mahimahi`` describes them.

    Returns:
        ``(n,)`` milliseconds, not decreasing; the last one is the period.

    Raises:
        TraceError: less than one packet per pass, or more opportunities than the reader takes.
    """
    period_ms = max(round(trace.duration_s * MS_PER_S), 1)
    total_bits = trace.mean_mbps * BITS_PER_MEGABIT * trace.duration_s
    count = int(total_bits / OPPORTUNITY_BITS + _ROUNDING_PACKETS)
    if count < 1:
        raise TraceError(
            f"{trace.name} sends {total_bits:.0f} bits per pass; the Mahimahi format needs "
            f"at least one packet of {OPPORTUNITY_BITS}"
        )
    if count * (len(str(period_ms)) + 1) > MAX_FILE_BYTES:
        raise TraceError(f"{trace.name} takes {count} lines, more than {MAX_FILE_BYTES} bytes")
    packets = np.arange(1, count + 1, dtype=np.float64) - _ROUNDING_PACKETS
    stamps_ms = np.ceil(trace.time_of_bits(packets * OPPORTUNITY_BITS) * MS_PER_S - _ROUNDING_MS)
    stamps_ms = np.clip(stamps_ms, 0, period_ms)
    stamps_ms[-1] = period_ms
    return stamps_ms.astype(np.int64)


def describe(trace: Trace) -> TraceSummary:
    """Figures of one pass of a trace."""
    widths_s, rates = np.diff(trace.edges_s), trace.steps_mbps
    mean = trace.mean_mbps
    variance = float(np.average((rates - mean) ** 2, weights=widths_s))
    order = np.argsort(rates, kind="stable")
    reached = np.cumsum(widths_s[order]) / widths_s.sum()
    return TraceSummary(
        points=len(trace.times_s),
        duration_s=trace.duration_s,
        mean_mbps=mean,
        min_mbps=float(rates.min()),
        max_mbps=float(rates.max()),
        p5_mbps=float(rates[order][min(int(np.searchsorted(reached, 0.05)), len(rates) - 1)]),
        variation=math.sqrt(variance) / mean,
        longest_outage_s=_longest_outage_s(rates, widths_s),
    )


def step_means_mbps(trace: Trace, step_s: float) -> FloatArray:
    """Mean rate in each whole step of ``step_s`` of one pass, Mbit/s."""
    steps = int(trace.duration_s / step_s + 1e-9)
    edges_s = np.arange(steps + 1, dtype=np.float64) * step_s
    return np.asarray(np.diff(trace.bits_until(edges_s)) / step_s / BITS_PER_MEGABIT)


def _content_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and texts, comments and blank lines left out."""
    if not path.is_file():
        raise TraceFormatError(f"{path}: no such trace file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise TraceFormatError(f"{path}: larger than {MAX_FILE_BYTES} bytes, not a trace")
    text = path.read_bytes().decode("utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def _is_mahimahi(path: Path, lines: list[tuple[int, str]]) -> bool:
    if not lines:
        raise TraceFormatError(f"{path}:1: expected a trace, found no line with content")
    number, first = lines[0]
    fields = len(first.split())
    if fields not in (1, 2):
        raise TraceFormatError(
            f"{path}:{number}: expected 'time_s Mbit/s' or a whole number of milliseconds, "
            f"found {first[:_SHOWN]!r}"
        )
    return fields == 1


def _parse_two_column(path: Path, lines: list[tuple[int, str]]) -> tuple[FloatArray, FloatArray]:
    times_s, rates_mbps = np.empty(len(lines)), np.empty(len(lines))
    previous_s = -math.inf
    for index, (number, line) in enumerate(lines):
        fields = line.split()
        if len(fields) != 2 or not all(map(_NUMBER.fullmatch, fields)):
            raise TraceFormatError(
                f"{path}:{number}: expected two numbers, 'time_s Mbit/s', found {line[:_SHOWN]!r}"
            )
        time_s, rate_mbps = float(fields[0]), float(fields[1])
        if not 0 <= time_s <= MAX_DURATION_S or time_s <= previous_s:
            raise TraceFormatError(
                f"{path}:{number}: expected a time above that of the line before, from 0 to "
                f"{MAX_DURATION_S} s, found {fields[0][:_SHOWN]}"
            )
        if not 0 <= rate_mbps <= MAX_RATE_MBPS:
            raise TraceFormatError(
                f"{path}:{number}: expected a rate from 0 to {MAX_RATE_MBPS:g} Mbit/s, "
                f"found {fields[1][:_SHOWN]}"
            )
        times_s[index], rates_mbps[index] = time_s, rate_mbps
        previous_s = time_s
    return times_s, rates_mbps


def _parse_mahimahi(path: Path, lines: list[tuple[int, str]]) -> FloatArray:
    stamps_ms = np.empty(len(lines))
    previous_ms = 0
    for index, (number, line) in enumerate(lines):
        if not _MILLISECONDS.fullmatch(line):
            raise TraceFormatError(
                f"{path}:{number}: expected a whole number of milliseconds, found {line[:_SHOWN]!r}"
            )
        stamp_ms = int(line)
        if stamp_ms < previous_ms:
            raise TraceFormatError(
                f"{path}:{number}: expected {previous_ms} ms or later, as on the line before, "
                f"found {stamp_ms}"
            )
        if stamp_ms > MAX_DURATION_S * MS_PER_S:
            raise TraceFormatError(
                f"{path}:{number}: expected at most {MAX_DURATION_S * MS_PER_S} ms, "
                f"found {stamp_ms}"
            )
        stamps_ms[index] = previous_ms = stamp_ms
    if previous_ms < 1:
        raise TraceFormatError(
            f"{path}:{lines[-1][0]}: expected a last time stamp, the period, of at least 1 ms, "
            f"found {previous_ms}"
        )
    return stamps_ms


def _trace_of_opportunities(path: Path, stamps_ms: FloatArray, bin_s: float) -> Trace:
    """Counts opportunities into steps; the last step ends with the period and may be shorter."""
    bin_ms = round(bin_s * MS_PER_S)
    if bin_ms < 1:
        raise ValueError(f"bin_s must be at least 0.001, not {bin_s}")
    period_ms = stamps_ms[-1]
    edges_ms = np.append(np.arange(0.0, period_ms, bin_ms), period_ms)
    counts = np.diff(np.searchsorted(stamps_ms, edges_ms, side="right"), prepend=0)
    counts[1] += counts[0]  # at 0 ms, where no step ends
    rates_mbps = counts[1:] * OPPORTUNITY_BITS / np.diff(edges_ms) * MS_PER_S / BITS_PER_MEGABIT
    return Trace(path.name, edges_ms / MS_PER_S, np.concatenate((rates_mbps[:1], rates_mbps)))


def _longest_outage_s(rates: FloatArray, widths_s: FloatArray) -> float:
    """Two passes in a row, so that an outage over the seam counts as one."""
    longest = current = 0.0
    for is_down, width_s in zip(
        np.tile(rates < OUTAGE_MBPS, 2).tolist(), np.tile(widths_s, 2).tolist(), strict=True
    ):
        current = current + width_s if is_down else 0.0
        longest = max(longest, current)
    return longest


def _may_be_trace(name: str) -> bool:
    lower = name.lower()
    return not (
        lower.startswith(".") or lower.endswith(".md") or lower.startswith(_NOT_A_TRACE_PREFIXES)
    )
