"""Viewport predictors on recorded head motion: error against "no motion", and time per decision.

    .venv/bin/python benchmarks/viewport.py --data FOLDER [--sets jin2022 wu2017]
        [--only netllm ...] [--add NAME=CHECKPOINT ...] [--split valid] [--timed 200]

FOLDER holds ``viewports/jin2022`` and ``viewports/wu2017`` (``videoVV/userUU.csv``). Windows are
the published ones of the valid videos as valid users watched them (NetLLM, SIGCOMM 2024). ``own``
tells no earlier viewers, ``train`` those of the train users who watched the video, ``all`` every
other recording of it.

Told are the mean absolute error over steps and angles; its ratio to that of ``static``; the mean
difference to ``static`` with a 95 % interval, recordings drawn again; the worst ratio of any step;
how often the error lies within a nominal 90 % of the told spread; and the time of single decisions.

``--add`` evaluates a checkpoint that is not shipped, also one without a language model. ``--split
untouched`` takes recordings that no choice was made by: train videos and train users of wu2017,
valid videos and test users of both.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from controllers import registry
from player.head_motion import HeadMotion, read_recordings
from player.head_motion_windows import observation_at, windows
from player.trace import FloatArray
from player.viewport_error import absolute_error_deg, predicted_deg
from player.viewport_observation import Viewport, ViewportObservation
from testbed.statistics import paired_delta_ci

#: Deciles of a Laplace distribution: 90 % lie within this many scales.
WITHIN_90 = math.log(10.0)
ALONE, TRAIN, ALL = "own", "train", "all"
#: Who looks at earlier viewers.
SOCIAL = ("crossuser", "netllm")
RULES = ("static", "linear", "velocity", "damped", "crossuser")
LEARNED = ("gru", "netllm")
#: Timed beside each other without warming up: not counted.
WARM_UP = 5

Decide = Callable[[Sequence[ViewportObservation]], Sequence[Sequence[Viewport]]]


@dataclass(frozen=True, slots=True)
class DataSplit:
    """Published split of a data set: videos and users of training and of validation."""

    train_videos: tuple[int, ...]
    valid_videos: tuple[int, ...]
    train_users: tuple[int, ...]
    valid_users: tuple[int, ...]


SPLITS = {
    "jin2022": DataSplit(
        (1, 2, 5, 6, 9, 11, 13, 15, 16, 17, 19, 21, 22, 23, 26),
        (3, 7, 10, 12, 20, 27),
        (
            *(1, 2, 6, 8, 10, 12, 13, 18, 19, 27, 28, 32, 33, 34, 37, 39, 40, 41, 42, 43, 46),
            *(50, 52, 54, 56, 57, 61, 62, 63, 64, 65, 66, 67, 69, 71, 72, 75, 78, 79, 80, 81, 82),
        ),
        (5, 9, 11, 14, 16, 17, 20, 24, 25, 29, 31, 36, 38, 51, 58, 68, 70, 73, 74, 76, 77),
    ),
    "wu2017": DataSplit(
        (1, 4, 6, 7, 9),
        (2, 8),
        (
            *(3, 4, 6, 8, 9, 11, 15, 17, 18, 19, 21, 22, 23, 24, 25, 26, 28, 29, 30, 32, 34, 36),
            *(37, 38, 39, 42, 43, 44, 45, 48),
        ),
        (1, 10, 12, 14, 20, 27, 31, 33, 40),
    ),
}


@dataclass(slots=True)
class Errors:
    """Of one predictor on one set, recording by recording.

    Attributes:
        by_recording: mean error, degrees, and number of windows, of each recording.
        by_step: sum of the mean errors of each step over windows, ``(20,)``.
        within: sum of the shares that lie within the nominal 90 % of the told spreads.
        windows: their number.
    """

    by_recording: dict[str, tuple[float, int]] = field(default_factory=dict)
    by_step: FloatArray | float = 0.0
    within: float = 0.0
    windows: int = 0

    def add(self, name: str, answers: Sequence[Sequence[Viewport]], actual: FloatArray) -> None:
        """Takes the answers to the windows of one recording."""
        predicted = np.stack([predicted_deg(one) for one in answers])  # (n, 20, 3)
        spreads = np.array(
            [
                [(v.roll_spread_deg, v.pitch_spread_deg, v.yaw_spread_deg) for v in one]
                for one in answers
            ]
        )
        error = absolute_error_deg(predicted, actual)
        self.by_recording[name] = float(error.mean()), len(error)
        self.by_step = self.by_step + error.mean(axis=2).sum(axis=0)
        self.within += float((error <= WITHIN_90 * spreads).mean(axis=(1, 2)).sum())
        self.windows += len(error)

    @property
    def mae_deg(self) -> float:
        """Over all windows, as published."""
        return sum(mean * count for mean, count in self.by_recording.values()) / self.windows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("TESTBED_DATA"))
    parser.add_argument("--sets", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--only", nargs="*", default=[*RULES, *LEARNED])
    parser.add_argument("--add", nargs="*", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--split", choices=("valid", "untouched"), default="valid")
    parser.add_argument("--told", nargs="+", choices=(ALONE, TRAIN, ALL), default=None)
    parser.add_argument("--fewer", type=int, nargs="*", default=[], help="earlier viewers only")
    parser.add_argument("--timed", type=int, default=200, help="decisions to time; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the data folder with --data or TESTBED_DATA")
    predictors = {name: _decider(name, given.threads) for name in given.only}
    for text in given.add:
        name, _, checkpoint = text.partition("=")
        predictors[name] = _added(checkpoint, given.threads)
    if "static" not in predictors:
        predictors = {"static": _decider("static", 1), **predictors}
    console = Console(width=160)
    social = {*SOCIAL, *(one.partition("=")[0] for one in given.add)}
    for data_set in given.sets:
        folder, split = given.data / "viewports" / data_set, SPLITS[data_set]
        found = read_recordings(folder, videos=(*split.train_videos, *split.valid_videos))
        for title, chosen in _chosen(found, split, given.split, data_set):
            told = {ALONE: 0, TRAIN: None, ALL: None, **{f"{n} train": n for n in given.fewer}}
            kinds = given.told or list(told)
            table = _table(f"{data_set}, {title}: {len(chosen)} recordings")
            still: Errors | None = None
            for kind in kinds:
                asked = {
                    name: decide
                    for name, decide in predictors.items()
                    if name in social or (kind == ALONE and name != "static")
                }
                if still is None:
                    asked = {"static": predictors["static"], **asked}
                errors = _evaluate(asked, chosen, found, split, kind, told[kind])
                still = still or errors["static"]
                for name, one in errors.items():
                    table.add_row(name, kind, *_figures(one, still))
            console.print(table)
            if given.timed:
                console.print(_timed(predictors, social, chosen, found, split, given.timed))
    console.print(f"threads {given.threads}, load {os.getloadavg()}")


def _decider(name: str, threads: int) -> Decide:
    options: dict[str, Any] = {"threads": threads} if name in LEARNED else {}
    if name == "netllm":
        options["caution"] = 1.0  # spreads as they are expected
    controller = registry.create("viewport", name, options)
    many: Decide | None = getattr(controller, "decide_many", None)
    return many or (lambda asked: [controller.decide(one) for one in asked])


def _added(checkpoint: str, threads: int) -> Decide:
    from adapters.throughput_model import set_threads
    from adapters.viewport_checkpoints import load_viewport

    set_threads(threads)
    return load_viewport(checkpoint).decide_many


def _chosen(
    found: Sequence[HeadMotion], split: DataSplit, which: str, data_set: str
) -> Iterable[tuple[str, list[HeadMotion]]]:
    """Recordings to foretell, with a title."""
    valid, train = frozenset(split.valid_videos), frozenset(split.train_videos)
    if which == "valid":
        users = frozenset(split.valid_users)
        yield "valid", [one for one in found if one.video in valid and one.user in users]
        return
    known = {*split.train_users, *split.valid_users}
    others = [one for one in found if one.video in valid and one.user not in known]
    yield "valid videos, test users", others
    if data_set != "jin2022":  # which the shipped models were trained on
        learners = frozenset(split.train_users)
        seen = [one for one in found if one.video in train and one.user in learners]
        yield "train videos, train users", seen


def _beside(
    one: HeadMotion, found: Sequence[HeadMotion], split: DataSplit, kind: str, most: int | None
) -> list[HeadMotion]:
    """Earlier viewers of a recording."""
    same = [other for other in found if other.video == one.video and other is not one]
    if kind != ALL:
        same = [other for other in same if other.user in split.train_users]
    if most is None:
        return same
    order = np.random.default_rng(one.user).permutation(len(same))
    return [same[index] for index in order[:most]]


def _evaluate(
    deciders: Mapping[str, Decide],
    chosen: Sequence[HeadMotion],
    found: Sequence[HeadMotion],
    split: DataSplit,
    kind: str,
    most: int | None,
) -> dict[str, Errors]:
    """Errors of each predictor, all asked the same."""
    errors = {name: Errors() for name in deciders}
    for one in track(chosen, kind, transient=True):
        cut = windows(one)
        if not len(cut.index):
            continue
        earlier = _beside(one, found, split, kind, most)
        asked = [observation_at(one, int(index), earlier=earlier) for index in cut.index]
        for name, decide in deciders.items():
            errors[name].add(one.name, decide(asked), cut.future)
    return errors


def _table(title: str) -> Table:
    table = Table(title=title)
    table.add_column("predictor")
    table.add_column("told")
    for name in ("MAE °", "/ static", "- static °", "95 %", "worst step", "in 90 %", "windows"):
        table.add_column(name, justify="right")
    return table


def _figures(errors: Errors, still: Errors) -> list[str]:
    names = list(still.by_recording)
    delta = paired_delta_ci(
        [errors.by_recording[name][0] for name in names],
        [still.by_recording[name][0] for name in names],
        weights=[still.by_recording[name][1] for name in names],
    )
    low, high = delta.ci95 or (math.nan, math.nan)
    worst = float(np.max(np.asarray(errors.by_step) / np.asarray(still.by_step)))
    return [
        f"{errors.mae_deg:.3f}",
        f"{errors.mae_deg / still.mae_deg:.4f}",
        f"{delta.mean:+.3f}",
        f"[{low:+.3f}, {high:+.3f}]",
        f"{worst:.3f}",
        f"{errors.within / errors.windows:.3f}",
        str(errors.windows),
    ]


def _timed(
    predictors: dict[str, Decide],
    social: set[str],
    chosen: Sequence[HeadMotion],
    found: Sequence[HeadMotion],
    split: DataSplit,
    count: int,
) -> Table:
    """Single decisions, one after the other."""
    table = Table(title="milliseconds per decision")
    for name in ("predictor", "viewers", "p50", "p99", "processor p50"):
        table.add_column(name)
    for kind in (ALONE, TRAIN, ALL):
        asked = []
        for one in chosen[:: max(1, len(chosen) // 20)]:
            earlier = _beside(one, found, split, kind, 0 if kind == ALONE else None)
            index = windows(one).index
            asked += [observation_at(one, int(at), earlier=earlier) for at in index[:10]]
        asked = asked[: count + WARM_UP]
        for name, decide in predictors.items():
            if kind != ALONE and name not in social:
                continue
            wall_ms, busy_ms = [], []
            for observation in asked:
                began, worked = time.perf_counter(), time.process_time()
                decide([observation])
                wall_ms.append(1000 * (time.perf_counter() - began))
                busy_ms.append(1000 * (time.process_time() - worked))
            wall = np.percentile(wall_ms[WARM_UP:], (50, 99))
            busy = np.percentile(busy_ms[WARM_UP:], 50)
            viewers = str(max(len(observation.earlier) for observation in asked))
            table.add_row(name, viewers, f"{wall[0]:.2f}", f"{wall[1]:.2f}", f"{busy:.2f}")
    return table


if __name__ == "__main__":
    main()
