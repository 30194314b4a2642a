"""Jobs with nothing downloaded: graphs from a generative model shaped after TPC-H on Spark.

Per job, drawn independently:

- stages: 2 + Poisson(7), at most 20; stage 0 has no parents, each later stage reads the one before
  it with probability 0.6, else has no parents with probability 0.5, else reads an earlier one; each
  stage that nobody reads is read by the last, so that a job ends in one stage;
- size: log-uniform from 2 to 100 gigabytes of input, which scales the tasks of stages without
  parents: lognormal (median 1 per gigabyte, sigma 1.5), 1 to 500;
- stages with parents: 200 tasks, Spark's default number of shuffle partitions, with probability
  0.9, else lognormal (median 5, sigma 1), 1 to 100; the last stage: 1 to 6;
- a task's time: lognormal around the stage's own median, sigma 0.15; that median is lognormal
  (median 1.5 s for stages without parents, else 0.15 s, sigma 0.6); the first task of an executor
  takes 1.5 to 3 times as long, that of a fresh executor 1 s more; with more executors at the job
  all take longer, by 8 % per doubling above 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cluster_sim.durations import LEVELS, WaveDurations
from cluster_sim.jobs import JobGraph, Stage
from cluster_sim.shuffles import with_shuffle_bytes

_SAMPLES = 12  # durations per level
_EXTRA_STAGES_MEAN, _MAX_STAGES = 7, 20
_CHAIN_SHARE, _ROOT_SHARE = 0.6, 0.5
_LEAST_GB, _MOST_GB = 2.0, 100.0
_ROOT_TASKS_PER_GB, _ROOT_TASKS_SIGMA, _ROOT_TASKS_MAX = 1.0, 1.5, 500
_PARTITIONS, _PARTITIONED_SHARE = 200, 0.9
_SMALL_TASKS, _SMALL_TASKS_MAX, _LAST_TASKS_MAX = 5.0, 100, 6
_ROOT_TASK_MS, _TASK_MS, _STAGE_SIGMA, _TASK_SIGMA = 1500.0, 150.0, 0.6, 0.15
_FIRST_FACTOR = (1.5, 3.0)
_SLOWDOWN_PER_DOUBLING = 0.08
_BYTES_PER_GIGABYTE = 10**9


@dataclass(slots=True)
class GeneratedLibrary:
    """Makes a new job at every call; the name numbers them."""

    made: int = 0

    def pick(self, rng: np.random.Generator) -> JobGraph:
        """Draws a job."""
        name = f"generated-{self.made}"
        self.made += 1
        return generate_graph(name, rng)


def generate_graph(name: str, rng: np.random.Generator) -> JobGraph:
    """Draws a job from the model."""
    count = min(2 + int(rng.poisson(_EXTRA_STAGES_MEAN)), _MAX_STAGES)
    input_gb = math.exp(rng.uniform(math.log(_LEAST_GB), math.log(_MOST_GB)))
    pairs = _pairs(count, rng)
    inner = {child for _, child in pairs}
    stages = tuple(
        _stage(index in inner, index == count - 1, input_gb, rng) for index in range(count)
    )
    edges = with_shuffle_bytes(stages, pairs, input_gb * _BYTES_PER_GIGABYTE)
    return JobGraph(name, stages, edges)


def _pairs(count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    pairs = []
    for child in range(1, count):
        if rng.random() < _CHAIN_SHARE:
            pairs.append((child - 1, child))
        elif rng.random() >= _ROOT_SHARE:
            pairs.append((int(rng.integers(child)), child))
    read = {parent for parent, _ in pairs}
    return pairs + [(one, count - 1) for one in range(count - 1) if one not in read]


def _stage(is_inner: bool, is_last: bool, input_gb: float, rng: np.random.Generator) -> Stage:
    if is_last:
        tasks = int(rng.integers(1, _LAST_TASKS_MAX + 1))
    elif not is_inner:
        tasks = _whole(
            rng.lognormal(math.log(_ROOT_TASKS_PER_GB * input_gb), _ROOT_TASKS_SIGMA),
            _ROOT_TASKS_MAX,
        )
    elif rng.random() < _PARTITIONED_SHARE:
        tasks = _PARTITIONS
    else:
        tasks = _whole(rng.lognormal(math.log(_SMALL_TASKS), 1), _SMALL_TASKS_MAX)
    median_ms = rng.lognormal(math.log(_TASK_MS if is_inner else _ROOT_TASK_MS), _STAGE_SIGMA)
    first_factor = rng.uniform(*_FIRST_FACTOR)
    rest: dict[int, list[float]] = {}
    first: dict[int, list[float]] = {}
    for level in LEVELS:
        at_level_ms = median_ms * (1 + _SLOWDOWN_PER_DOUBLING * math.log2(level / LEVELS[0]))
        draws = rng.lognormal(math.log(at_level_ms), _TASK_SIGMA, size=2 * _SAMPLES)
        rest[level] = [float(round(one)) for one in draws[:_SAMPLES]]
        first[level] = [float(round(one * first_factor)) for one in draws[_SAMPLES:]]
    return Stage(tasks, WaveDurations({}, first, rest))


def _whole(value: float, most: int) -> int:
    return min(max(round(value), 1), most)
