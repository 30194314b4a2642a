"""Durations: waves, levels, draws that depend on nothing but their task."""

from __future__ import annotations

from collections import Counter

import pytest

from cluster_sim.draws import mixed, stage_key, task_bits
from cluster_sim.durations import (
    LEVELS,
    ConstantDurations,
    Disturbances,
    DrawnDurations,
    DurationError,
    RecordedDraw,
    RecordedDurations,
    WaveDurations,
    level_for,
)
from cluster_sim.events import StartTask
from cluster_sim.jobs import Job, JobGraph, Stage, Wave

FIVE, TEN, TWENTY = (LEVELS.index(level) for level in (5, 10, 20))


def start(
    task: int = 0, *, local: int = 5, wave: Wave = Wave.REST, attempt: int = 0, near: bool = True
) -> StartTask:
    return StartTask(0, 0, 0, task, attempt, wave, local, near)


def test_fresh_tasks_are_taken_out_of_the_first_wave() -> None:
    durations = WaveDurations({5: [30, 31]}, {5: [30, 10, 31, 30]}, {5: [1, 2]})
    assert durations.choices_ms(Wave.FRESH, FIVE) == (30, 31)
    assert durations.choices_ms(Wave.FIRST, FIVE) == (10, 30)
    assert durations.choices_ms(Wave.REST, FIVE) == (1, 2)
    assert durations.mean_ms == pytest.approx((30 + 31 + 10 + 30 + 1 + 2) / 6)


def test_what_was_not_measured_is_taken_from_another_wave_or_level() -> None:
    durations = WaveDurations({5: []}, {5: [10], 10: [12]}, {5: [], 10: [4]})
    assert durations.choices_ms(Wave.FRESH, FIVE) == (1010.0,)  # with the warm-up
    assert durations.choices_ms(Wave.REST, FIVE) == (10,)
    assert durations.choices_ms(Wave.REST, TEN) == (4,)
    assert durations.choices_ms(Wave.REST, TWENTY) == (4,)  # never more executors than tasks
    only_fresh = WaveDurations({5: [30], 10: [40]}, {5: [30], 10: [40]}, {})
    assert only_fresh.choices_ms(Wave.FIRST, TEN) == (40,)
    filled = WaveDurations({5: [], 10: [40]}, {5: [20], 10: [40]}, {})
    assert filled.choices_ms(Wave.FIRST, TEN) == (20,)  # of the level below


def test_durations_that_cannot_be_are_named() -> None:
    with pytest.raises(DurationError, match=r"rest durations at 5 executors: -1 ms"):
        WaveDurations({}, {5: [1]}, {5: [-1]})
    with pytest.raises(DurationError, match="no durations"):
        WaveDurations({}, {}, {})


@pytest.mark.parametrize(
    ("executors", "level"), [(0, 5), (3, 5), (5, 5), (10, 10), (50, 50), (100, 100), (999, 100)]
)
def test_measured_numbers_of_executors_are_taken_as_they_are(executors: int, level: int) -> None:
    assert LEVELS[level_for(executors, 2**31)] == level


def test_between_two_levels_the_lower_is_drawn_as_in_the_reference() -> None:
    counts = Counter(LEVELS[level_for(25, place << 28)] for place in range(16))
    assert counts == {20: 4, 40: 12}  # 5 of 20 above the lower one


def test_draws_are_those_of_splitmix64() -> None:
    # The first two outputs of the published generator from seed 0.
    assert mixed(0) == 0xE220A8397B1DCDAF
    assert mixed(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


def test_a_draw_depends_on_its_task_alone() -> None:
    durations = WaveDurations({}, {5: list(range(1, 100))}, {5: list(range(1000, 2000))})
    job = Job(0, 0.0, JobGraph("j", (Stage(50, durations),), ()))
    one, two = DrawnDurations([job], seed=1), DrawnDurations([job], seed=1)
    forward = [one.draw_ms(start(task)) for task in range(50)]
    backward = [two.draw_ms(start(task)) for task in reversed(range(50))]
    assert forward == backward[::-1]
    assert len(set(forward)) > 40
    assert forward != [DrawnDurations([job], seed=2).draw_ms(start(task)) for task in range(50)]
    assert one.draw_ms(start(attempt=1)) != one.draw_ms(start())
    assert task_bits(stage_key(1, 0, 0), 3) != task_bits(stage_key(1, 0, 1), 3)


def test_disturbances_slow_what_they_say() -> None:
    job = Job(0, 0.0, JobGraph("j", (Stage(1000, ConstantDurations(10.0)),), ()))
    disturbances = Disturbances(straggler_share=0.1, straggler_slowdown=3.0, remote_slowdown=2.0)
    model = DrawnDurations([job], seed=0, disturbances=disturbances)
    counts = Counter(model.draw_ms(start(task)) for task in range(1000))
    assert set(counts) == {10.0, 30.0}
    assert 70 <= counts[30.0] <= 130
    assert model.draw_ms(start(near=False)) == 2 * model.draw_ms(start())
    for wrong in ({"straggler_share": 1.5}, {"remote_slowdown": 0.5}):
        with pytest.raises(ValueError, match="must be"):
            Disturbances(**wrong)


def test_recordings_end() -> None:
    recorded = RecordedDurations([RecordedDraw(0, 0, 0, 5, Wave.REST, 7.0)])
    assert recorded.draw_ms(start()) == 7.0
    with pytest.raises(DurationError, match="ends before draw 2"):
        recorded.draw_ms(start())
