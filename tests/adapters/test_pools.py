"""Experience pools: round trips, labels, and errors that name the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adapters.pools import (
    NO_LABEL,
    PlayedSession,
    Pool,
    PoolError,
    describe_pool,
    join_pools,
    pool_from_sessions,
    read_pool,
    write_pool,
)
from controllers.registry import create
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.simulated import play_simulated
from player.trace import Trace


def test_a_pool_reads_back_as_it_was_written(small_pool: Pool, tmp_path: Path) -> None:
    write_pool(small_pool, tmp_path / "pool")
    again = read_pool(tmp_path / "pool")
    assert describe_pool(again) == describe_pool(small_pool)
    for before, after in zip(small_pool.episodes, again.episodes, strict=True):
        assert after.video == before.video
        for name in ("level", "size_bytes", "download_s", "rebuffer_s", "buffer_s", "qoe"):
            assert np.array_equal(getattr(after, name), getattr(before, name))
        assert np.array_equal(after.expert, before.expert)
        assert np.allclose(after.values, before.values, equal_nan=True)


def test_observations_are_those_that_the_controller_saw(
    play: Callable[..., PlayedSession], small_traces: dict[str, Trace]
) -> None:
    trace = next(iter(small_traces.values()))
    seen: list[AbrObservation] = []
    decide = create("abr", "bba").decide

    def watch(observation: AbrObservation) -> int:
        seen.append(observation)
        level: int = decide(observation)
        return level

    played = play(trace, "bba")
    play_simulated(Player(played.video), PensieveLink(trace), watch, start_s=trace.start_s(1))
    episode = pool_from_sessions([played]).episodes[0]
    assert [episode.observation(one.chunk_index) for one in seen] == seen
    assert (episode.expert == NO_LABEL).all()


def test_failed_sessions_are_left_out(
    play: Callable[..., PlayedSession], small_traces: dict[str, Trace]
) -> None:
    played = play(next(iter(small_traces.values())), "bba")
    failed = dataclasses.replace(
        played, record=dataclasses.replace(played.record, status="failed", error="gone")
    )
    assert len(pool_from_sessions([played, failed]).episodes) == 1
    with pytest.raises(PoolError, match="no finished session"):
        pool_from_sessions([failed])


def test_pools_join(small_pool: Pool) -> None:
    both = join_pools([small_pool, small_pool])
    assert both.chunks == 2 * small_pool.chunks
    with pytest.raises(PoolError, match="no pool"):
        join_pools([])


@pytest.mark.parametrize("name", ["pool.json", "episodes.parquet", "chunks.parquet"])
def test_missing_and_damaged_files_are_named(small_pool: Pool, tmp_path: Path, name: str) -> None:
    write_pool(small_pool, tmp_path)
    (tmp_path / name).write_bytes(b"not what it should be")
    with pytest.raises(PoolError, match=name):
        read_pool(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(PoolError, match=name):
        read_pool(tmp_path)


def test_a_missing_column_is_named(small_pool: Pool, tmp_path: Path) -> None:
    write_pool(small_pool, tmp_path)
    path = tmp_path / "chunks.parquet"
    pl.read_parquet(path).drop("download_s").write_parquet(path)
    with pytest.raises(PoolError, match="download_s"):
        read_pool(tmp_path)
