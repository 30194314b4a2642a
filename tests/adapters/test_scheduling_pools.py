"""Pools of scheduling decisions: what was seen comes back, what is damaged is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adapters.pools import PoolError
from adapters.scheduling_pools import (
    DECISIONS_FILE,
    DESCRIPTION_FILE,
    STAGES_FILE,
    EpisodeColumns,
    LabelledDecision,
    PlayedEpisode,
    SchedulingPool,
    join_scheduling_pools,
    pool_of_episodes,
    read_scheduling_pool,
    write_scheduling_pool,
)
from cluster_sim.observation import LEAVE_IDLE, Assignment, ClusterView, JobView, StageView

WAITING = StageView(4, 7, 0, 0.25, 7, True, (1, 3))
RUNNING = StageView(1, 0, 3, 1.5, -2, False, ())
#: Jobs by arrival, not by number: labels are by number.
VIEW = ClusterView(
    12.5,
    10,
    3,
    None,
    (
        JobView(2, 1.0, 3, (RUNNING, dataclasses.replace(RUNNING, stage=3), WAITING)),
        JobView(0, 2.0, 0, (StageView(0, 5, 0, 2.0, 5, True, ()),)),
    ),
)
LATER = dataclasses.replace(VIEW, time_s=13.0, source_job=2, jobs=VIEW.jobs[:1])


def labelled(view: ClusterView, taken: Assignment, *labels: float) -> LabelledDecision:
    scores = np.array(labels, dtype=np.float32)
    return LabelledDecision(view, taken, scores, -scores)


DECISIONS = {3: labelled(VIEW, Assignment(2, 4, 3), 0.5, 1.5), 8: labelled(LATER, LEAVE_IDLE, 2.5)}
PLAYED = PlayedEpisode(
    arm="fast",
    controller="fair",
    expert="decima",
    seed=7,
    executors=10,
    jobs=3,
    decisions=20,
    mean_jct_s=31.5,
)


def make_pool(seed: int = 7) -> SchedulingPool:
    columns = EpisodeColumns()
    for index, one in DECISIONS.items():
        columns.add(index, one)
    return pool_of_episodes([(dataclasses.replace(PLAYED, seed=seed), columns)], made_by=["me"])


def test_what_was_seen_comes_back(tmp_path: Path) -> None:
    write_scheduling_pool(make_pool(), tmp_path / "pool")
    pool = read_scheduling_pool(tmp_path / "pool")
    assert pool.episodes == (PLAYED,)
    assert pool.made_by == ("me",)
    assert pool.decisions["index"].to_list() == [3, 8]
    for (episode, found), wanted in zip(pool.labelled(), DECISIONS.values(), strict=True):
        assert episode == 0
        assert (found.view, found.taken) == (wanted.view, wanted.taken)
        assert found.scores.tolist() == wanted.scores.tolist()
        assert found.log_limits.tolist() == wanted.log_limits.tolist()


def test_labels_belong_to_jobs_by_number() -> None:
    stages = make_pool().stages.filter(pl.col("index") == 3, pl.col("is_schedulable"))
    assert stages.select("job", "score").rows() == [(2, 1.5), (0, 0.5)]


def test_pools_are_joined() -> None:
    pool = join_scheduling_pools([make_pool(1), make_pool(2)])
    assert [one.seed for one in pool.episodes] == [1, 2]
    assert [(episode, one.view.time_s) for episode, one in pool.labelled()] == [
        (0, 12.5),
        (0, 13.0),
        (1, 12.5),
        (1, 13.0),
    ]
    assert pool.made_by == ("me",)
    with pytest.raises(PoolError, match="no pool"):
        join_scheduling_pools([])
    with pytest.raises(PoolError, match="no finished session"):
        pool_of_episodes([])


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        (DESCRIPTION_FILE, "scheduling pool 1", "pool 1", "this version reads"),
        (DESCRIPTION_FILE, '"made_by"', '"by"', "made_by: Field required"),
        (DESCRIPTION_FILE, '"sha256": {', '"sha256": [', "pool.json"),
        (STAGES_FILE, "PAR1", "PARX", "checksum"),
    ],
)
def test_damage_is_told(tmp_path: Path, name: str, old: str, new: str, says: str) -> None:
    write_scheduling_pool(make_pool(), tmp_path)
    content = (tmp_path / name).read_bytes()
    assert old.encode() in content
    (tmp_path / name).write_bytes(content.replace(old.encode(), new.encode()))
    with pytest.raises(PoolError, match=says):
        read_scheduling_pool(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (pl.col("job").cast(pl.Int64), "columns must be episode"),
        (pl.lit(None, dtype=pl.Int32).alias("job"), "'job' has empty entries"),
        (pl.lit(np.nan, dtype=pl.Float32).alias("score"), "not finite"),
        ((pl.col("index") + 1).cast(pl.UInt32).alias("index"), "does not follow"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, change: pl.Expr, says: str) -> None:
    pool = make_pool()
    changed = dataclasses.replace(pool, stages=pool.stages.with_columns(change))
    write_scheduling_pool(changed, tmp_path)
    with pytest.raises(PoolError, match=says):
        read_scheduling_pool(tmp_path)


def test_a_torn_pool_is_no_pool(tmp_path: Path) -> None:
    write_scheduling_pool(make_pool(), tmp_path)
    (tmp_path / DECISIONS_FILE).unlink()
    with pytest.raises(PoolError, match=f"{DECISIONS_FILE}: missing"):
        read_scheduling_pool(tmp_path)
    (tmp_path / DESCRIPTION_FILE).unlink()
    with pytest.raises(PoolError, match=f"{DESCRIPTION_FILE}: cannot be read"):
        read_scheduling_pool(tmp_path)
