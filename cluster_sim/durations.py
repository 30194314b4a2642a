"""How long tasks take: measured waves, as in Decima's simulator, constants, and recorded draws.

What was measured of a stage are the durations of its tasks at several numbers of executors, apart
for executors that were just started (fresh), for the first task of an executor at the stage, and
for those after it. A duration is drawn from what was measured at about the number of executors that
are at the job; where nothing was, from another kind of task.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster_sim.draws import mixed, stage_key, task_bits
from cluster_sim.events import StartTask
from cluster_sim.jobs import Job, PackedDurations, StageDurations, Wave

#: Numbers of executors at which durations are looked up.
LEVELS = (5, 10, 20, 40, 50, 60, 80, 100)
#: Added to a first task where no fresh executors were measured.
WARMUP_MS = 1000.0
_HALF_BITS = 32
_LOW_BITS = 2**_HALF_BITS - 1

Measured = Mapping[int, Sequence[float]]


class DurationError(ValueError):
    """A duration that is missing, negative or not finite."""


class DurationModel(Protocol):
    """Tells how long a task takes."""

    def draw_ms(self, start: StartTask) -> float:
        """Duration of the task that starts, ms; called once per task, in order."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantDurations:
    """All tasks of a stage take equally long.

    Attributes:
        mean_ms: how long.
        warmup_ms: added for executors that come from elsewhere.
    """

    mean_ms: float
    warmup_ms: float = 0.0

    def __post_init__(self) -> None:
        _check([self.mean_ms, self.warmup_ms], "constant duration")

    def choices_ms(self, wave: Wave, level: int) -> tuple[float, ...]:
        """See :class:`WaveDurations`."""
        del level
        return (self.mean_ms + (self.warmup_ms if wave is Wave.FRESH else 0.0),)

    @property
    def packed(self) -> PackedDurations:
        """See :class:`WaveDurations`."""
        return _packed(self)


@dataclass(frozen=True, eq=False)
class WaveDurations:
    """What was measured of one stage; per number of executors a list of ms.

    Attributes:
        fresh: tasks of executors that were just started.
        first: first tasks of an executor at the stage, the fresh ones included.
        rest: tasks after those.
        warmup_ms: added to a first task where no fresh ones were measured.
    """

    fresh: Measured
    first: Measured
    rest: Measured
    warmup_ms: float = WARMUP_MS
    mean_ms: float = field(init=False)
    _choices: dict[Wave, list[tuple[float, ...]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, measured in (("fresh", self.fresh), ("first", self.first), ("rest", self.rest)):
            for level, values in measured.items():
                _check(values, f"{name} durations at {level} executors")
        first = _without_fresh(self.first, self.fresh)
        pooled = [
            value
            for measured in (self.fresh, first, self.rest)
            for values in measured.values()
            for value in values
        ]
        if not pooled:
            raise DurationError("no durations at all")
        object.__setattr__(self, "mean_ms", math.fsum(pooled) / len(pooled))
        object.__setattr__(self, "_choices", self._resolved(first))

    def choices_ms(self, wave: Wave, level: int) -> tuple[float, ...]:
        """Durations, equally likely, of a task after ``wave`` at ``LEVELS[level]`` executors."""
        return self._choices[wave][level]

    @functools.cached_property
    def packed(self) -> PackedDurations:
        """All choices, by wave and level."""
        return _packed(self)

    def _resolved(self, first: Measured) -> dict[Wave, list[tuple[float, ...]]]:
        choices: dict[Wave, list[tuple[float, ...]]] = {wave: [] for wave in Wave}
        for wanted in LEVELS:
            level = _known_level(sorted(self.first), wanted)
            one, two, three = (
                tuple(map(float, measured.get(level, ())))
                for measured in (self.fresh, first, self.rest)
            )
            warmed = tuple(value + self.warmup_ms for value in two or three)
            found = {
                Wave.FRESH: one or warmed,
                Wave.FIRST: two or one,
                Wave.REST: three or two or one,
            }
            for wave, values in found.items():
                if not values:
                    raise DurationError(f"no {wave.name.lower()} durations at {level} executors")
                choices[wave].append(values)
        return choices


def _packed(durations: StageDurations) -> PackedDurations:
    rows = [durations.choices_ms(wave, level) for wave in Wave for level in range(len(LEVELS))]
    return PackedDurations(
        array("q", map(len, rows)), array("d", itertools.chain.from_iterable(rows))
    )


def _check(values: Sequence[float], what: str) -> None:
    for value in values:
        if not (math.isfinite(value) and value >= 0):
            raise DurationError(f"{what}: {value} ms; it must be 0 or more")


def _known_level(levels: Sequence[int], wanted: int) -> int:
    """The largest level measured up to the wanted one: beyond, there are more than tasks."""
    place = bisect.bisect_right(levels, wanted)
    return levels[max(place - 1, 0)]


def _without_fresh(first: Measured, fresh: Measured) -> dict[int, list[float]]:
    """First tasks without those of fresh executors; an empty level takes the one below."""
    cleaned: dict[int, list[float]] = {}
    below: list[float] = []
    for level in sorted(first):
        unwanted = list(fresh.get(level, ()))
        kept = []
        for value in first[level]:
            if value in unwanted:
                unwanted.remove(value)
            else:
                kept.append(value)
        below = cleaned[level] = kept or below
    return cleaned


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbances:
    """What makes tasks slower than measured.

    Attributes:
        straggler_share: share of the tasks that are slow for no reason of their own.
        straggler_slowdown: how many times longer those take.
        remote_slowdown: how many times longer a task takes away from its input.
    """

    straggler_share: float = 0.0
    straggler_slowdown: float = 4.0
    remote_slowdown: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.straggler_share <= 1:
            raise ValueError(f"straggler_share {self.straggler_share}: must be 0 to 1")
        if not (self.straggler_slowdown >= 1 and self.remote_slowdown >= 1):
            raise ValueError("slowdowns must be 1 or more")


UNDISTURBED = Disturbances()


class DrawnDurations:
    """Durations drawn from what is known of each stage; the same for every scheduler."""

    def __init__(
        self, jobs: Sequence[Job], *, seed: int, disturbances: Disturbances = UNDISTURBED
    ) -> None:
        """Makes a model.

        Args:
            jobs: the workload.
            seed: another one gives other draws.
            disturbances: what makes tasks slower.
        """
        self.seed = seed
        self.disturbances = disturbances
        self._stages: list[list[tuple[int, StageDurations]]] = [
            [
                (stage_key(seed, job.job, index), stage.durations)
                for index, stage in enumerate(job.graph.stages)
            ]
            for job in jobs
        ]

    def keys(self) -> list[int]:
        """What the draws of each stage begin from, through all jobs."""
        return [key for row in self._stages for key, _ in row]

    def draw_ms(self, start: StartTask) -> float:
        """See :class:`DurationModel`."""
        key, durations = self._stages[start.job][start.stage]
        bits = task_bits(key, start.task)
        for _ in range(start.attempt):
            bits = mixed(bits)
        level = level_for(start.local_executors, bits & _LOW_BITS)
        choices = durations.choices_ms(start.wave, level)
        took_ms = choices[(bits >> _HALF_BITS) * len(choices) >> _HALF_BITS]
        disturbances = self.disturbances
        if disturbances.straggler_share and mixed(bits) < disturbances.straggler_share * 2.0**64:
            took_ms *= disturbances.straggler_slowdown
        return took_ms if start.is_local else took_ms * disturbances.remote_slowdown


def level_for(executors: int, low_bits: int) -> int:
    """Place in ``LEVELS`` for a number of executors, with 32 random bits.

    Between two levels one of them is drawn, the lower one the more often, the closer the number is
    to the upper one: the wrong way round, but so do Decima's simulator and the reference, and their
    completion times come out so only.
    """
    right = bisect.bisect_left(LEVELS, executors)
    if right == len(LEVELS):
        return right - 1
    if right == 0 or LEVELS[right] == executors:
        return right
    left = right - 1
    place = low_bits * (LEVELS[right] - LEVELS[left]) >> _HALF_BITS
    return left if place < executors - LEVELS[left] else right


@dataclass(frozen=True, slots=True)
class RecordedDraw:
    """One duration of a recorded run.

    Attributes:
        job: number of the job.
        stage: index of the stage.
        executor: where the task ran, or None if that was not recorded.
        local_executors: executors at the job.
        wave: what the executor did before.
        took_ms: the duration.
    """

    job: int
    stage: int
    executor: int | None
    local_executors: int
    wave: Wave
    took_ms: float


class RecordedDurations:
    """Durations in the order in which a run drew them; another run is refused."""

    def __init__(self, draws: Sequence[RecordedDraw]) -> None:
        self._draws = iter(draws)
        self._count = 0

    def draw_ms(self, start: StartTask) -> float:
        """See :class:`DurationModel`.

        Raises:
            DurationError: the recording has another task here.
        """
        draw = next(self._draws, None)
        self._count += 1
        here = (start.job, start.stage, start.local_executors, start.wave)
        if draw is None:
            raise DurationError(f"the recording ends before draw {self._count}: {start}")
        if here != (draw.job, draw.stage, draw.local_executors, draw.wave) or (
            draw.executor is not None and draw.executor != start.executor
        ):
            raise DurationError(f"draw {self._count} was recorded for {draw}, not for {start}")
        return draw.took_ms
