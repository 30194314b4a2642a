"""Experience pools: round trips, labels, and errors that name the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.pool_files import read_pool, write_pool
from adapters.pool_summary import describe_pool
from adapters.pools import (
    NO_LABEL,
    PlayedSession,
    Pool,
    PoolError,
    drop_duplicates,
    join_pools,
    pool_from_sessions,
    pool_ladder,
)
from controllers.registry import create
from player.link_models import PensieveLink
from player.machine import Player
from player.observation import AbrObservation
from player.simulated import play_simulated
from player.trace import Trace
from player.video import generate_video


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


def test_identical_sessions_are_kept_once(small_pool: Pool) -> None:
    pool = drop_duplicates(join_pools([small_pool, small_pool]))
    assert pool.episodes == small_pool.episodes
    assert pool.duplicates_dropped == describe_pool(pool).duplicates_dropped == 8


def test_the_better_labelled_of_two_identical_sessions_stays(small_pool: Pool) -> None:
    bare = [
        dataclasses.replace(
            one, expert=np.full_like(one.expert, NO_LABEL), values=np.full_like(one.values, np.nan)
        )
        for one in small_pool.episodes
    ]
    pool = drop_duplicates(Pool((*bare, *small_pool.episodes)))
    assert pool.episodes == small_pool.episodes


def test_similar_sessions_are_counted_and_dropped_on_demand(small_pool: Pool) -> None:
    first = small_pool.episodes[0]
    slower = dataclasses.replace(first, download_s=first.download_s * 1.1)
    both = Pool((first, slower))
    assert describe_pool(both).similar == 1
    assert len(drop_duplicates(both).episodes) == 2
    assert drop_duplicates(both, similar=True).episodes == (first,)


def test_a_description_counts(small_pool: Pool) -> None:
    summary = describe_pool(small_pool)
    assert (summary.episodes, summary.chunks, summary.traces) == (8, 8 * 14, 4)
    assert [arm.arm for arm in summary.arms] == ["bba", "rate"]
    assert summary.videos[0].levels_kbps == small_pool.episodes[0].video.levels_kbps
    for arm in summary.arms:
        assert arm.sessions == 4
        assert arm.qoe_quantiles == tuple(sorted(arm.qoe_quantiles))
        assert sum(arm.levels) == pytest.approx(1.0)
    assert (summary.expert_share, summary.values_share) == (1.0, 1.0)
    assert summary.expert_agrees is not None


def test_a_session_of_another_video_is_refused(
    play: Callable[..., PlayedSession], small_traces: dict[str, Trace]
) -> None:
    played = play(next(iter(small_traces.values())), "bba")
    other = generate_video("other", chunks=14, rng=np.random.default_rng(6))
    with pytest.raises(PoolError, match=r"size_bytes.*video 'other'"):
        pool_from_sessions([dataclasses.replace(played, video=other)])


@pytest.fixture
def written(small_pool: Pool, tmp_path: Path) -> Path:
    write_pool(small_pool, tmp_path / "pool")
    return tmp_path / "pool"


def change(folder: Path, name: str, how: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Rewrites a table on purpose: without the checksums that would tell."""
    how(pl.read_parquet(folder / name)).write_parquet(folder / name)
    description = json.loads((folder / "pool.json").read_text())
    (folder / "pool.json").write_text(json.dumps({**description, "sha256": {}}))


@pytest.mark.parametrize("name", ["pool.json", "episodes.parquet", "chunks.parquet"])
def test_missing_and_damaged_files_are_named(written: Path, name: str) -> None:
    (written / name).write_bytes(b"not what it should be")
    with pytest.raises(PoolError, match=name):
        read_pool(written)
    (written / name).unlink()
    with pytest.raises(PoolError, match=name):
        read_pool(written)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_torn_files_are_refused_with_one_line(written: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["pool.json", "episodes.parquet", "chunks.parquet"]))
    path = written / name
    whole = path.read_bytes()
    end = data.draw(st.integers(0, len(whole) - 2))  # without the last it is JSON still
    path.write_bytes(whole[:end])
    try:
        with pytest.raises(PoolError, match=name) as refused:
            read_pool(written)
        assert "\n" not in str(refused.value)
    finally:
        path.write_bytes(whole)


def test_one_wrong_bit_is_noticed(written: Path) -> None:
    path = written / "chunks.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PoolError, match=r"chunks\.parquet: its checksum.*another pool"):
        read_pool(written)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "netllm-testbed pool 9", "this version reads 'netllm-testbed pool 1'"),
        ("task", "viewport", "task 'viewport'"),
        ("videos", [], r"episodes\.parquet: column 'video'"),
        ("videos", "none", "pool.json: videos"),
        ("made_by", 3, "pool.json: made_by"),
    ],
)
def test_a_wrong_description_is_named(written: Path, key: str, value: object, message: str) -> None:
    path = written / "pool.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(PoolError, match=message):
        read_pool(written)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("download_s", pl.lit(None, pl.Float64), "empty entries"),
        ("download_s", pl.lit(float("nan")), "not finite"),
        ("download_s", pl.lit(0.0), "not positive"),
        ("buffer_s", pl.lit(-1.0), "negative"),
        ("rebuffer_s", pl.lit(float("inf")), "not finite"),
        ("qoe", pl.lit(float("nan")), "not finite"),
        ("qoe", pl.lit("much"), "is String, expected Float64"),
        ("level", pl.lit(6, pl.Int16), "off the ladder of 6"),
        ("expert", pl.lit(-2, pl.Int16), "off the ladder of 6"),
        ("size_bytes", pl.lit(1, pl.Int64), "differs from the sizes"),
        ("index", pl.lit(0, pl.UInt32), "does not count"),
        ("value_3", pl.lit("much"), "is String, expected Float32"),
        ("episode", pl.lit(9, pl.UInt32), "'episode': 0 is missing"),
    ],
)
def test_wrong_chunks_are_named(written: Path, column: str, value: pl.Expr, message: str) -> None:
    change(written, "chunks.parquet", lambda frame: frame.with_columns(value.alias(column)))
    with pytest.raises(PoolError, match=rf"chunks\.parquet: column .*{message}"):
        read_pool(written)


@pytest.mark.parametrize("column", ["download_s", "value_5"])
def test_a_missing_column_is_named(written: Path, column: str) -> None:
    change(written, "chunks.parquet", lambda frame: frame.drop(column))
    with pytest.raises(PoolError, match=f"'{column}' is missing"):
        read_pool(written)


def test_chunks_of_no_episode_are_refused(written: Path) -> None:
    change(written, "episodes.parquet", lambda frame: frame.head(7))
    with pytest.raises(PoolError, match=r"'episode': 7 is not in episodes\.parquet"):
        read_pool(written)
    change(written, "episodes.parquet", lambda frame: frame.head(0))
    change(written, "chunks.parquet", lambda frame: frame.head(0))
    with pytest.raises(PoolError, match="the pool is empty"):
        read_pool(written)


def test_pools_of_two_ladders_can_be_kept_together(small_pool: Pool, tmp_path: Path) -> None:
    first = small_pool.episodes[0]
    video = generate_video(
        "short", chunks=14, rng=np.random.default_rng(5), levels_kbps=(300.0, 750.0)
    )
    level = np.minimum(first.level, 1)
    short = dataclasses.replace(
        first,
        video=video,
        level=level,
        size_bytes=np.asarray(video.sizes_bytes)[np.arange(14), level],
        expert=np.minimum(first.expert, 1),
        values=first.values[:, :2],
    )
    write_pool(Pool((short, *small_pool.episodes)), tmp_path / "mixed")
    again = read_pool(tmp_path / "mixed")
    assert describe_pool(again).levels == (2, 6)
    with pytest.raises(PoolError, match=r"2 ladders.*300, 750; 300, 750, 1200"):
        pool_ladder(again)
