"""Summaries of task viewport: pooled errors, intervals over recordings, what viewers saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from player.records import LinkRecord, Status
from player.viewport_records import PredictionRecord, ViewportSessionRecord
from testbed.statistics import mean_ci
from testbed.viewport_results import summarize_predictions, summarize_streaming, summarize_viewport


def prediction(
    arm: str,
    recording: str,
    error_deg: float,
    *,
    samples: int = 10,
    status: Status = "ok",
    fallbacks: int = 0,
) -> PredictionRecord:
    """Yaw is off three times as much as the mean, roll and pitch not at all."""
    is_usable = status == "ok" and samples > 0
    zero, yaw = ((0.0, 0.0), (2 * error_deg, 4 * error_deg)) if is_usable else ((), ())
    return PredictionRecord(
        arm=arm,
        controller=arm,
        recording=recording,
        seed=0,
        driver="offline",
        status=status,
        error=None if status == "ok" else "InvalidViewports: none",
        samples=samples if is_usable else 0,
        roll_mae_deg=zero,
        pitch_mae_deg=zero,
        yaw_mae_deg=yaw,
        great_circle_deg=yaw,
        decisions_ms=(1.0, 3.0),
        fallbacks=fallbacks,
    )


def viewer(
    arm: str,
    recording: str,
    level: float,
    *,
    trace: str = "t",
    status: Status = "ok",
    mae_deg: float | None = 5.0,
    client: int = 0,
) -> ViewportSessionRecord:
    return ViewportSessionRecord(
        arm=arm,
        controller=arm,
        recording=recording,
        trace=trace,
        seed=0,
        driver="emulated",
        status=status,
        error=None,
        mae_deg=mae_deg,
        mae_by_step_deg=(mae_deg,),
        viewport_bitrate_kbps=1000.0 * level,
        viewport_level=level,
        blank_ratio=0.1,
        stall_s=1.0,
        startup_s=0.5,
        bytes_used=300,
        bytes_wasted=100,
        fallbacks=1,
        wall_s=10.0,
        start_index=1,
        link=LinkRecord(backend="kernel", wire_nmae_1s=0.001 * len(recording)),
        chunks=(),
        decisions_ms=(2.0, 4.0),
        client=client,
        group=arm,
    )


def test_an_error_is_the_mean_over_all_windows_and_its_interval_over_recordings() -> None:
    rows = [prediction("a", "v/1", 1.0, samples=30), prediction("a", "v/2", 4.0, samples=10)]
    (arm,) = summarize_predictions({}, rows)["arms"]
    assert arm["samples"] == 40
    assert arm["mae_deg"]["mean"] == pytest.approx((30 * 1.0 + 10 * 4.0) / 40)
    assert arm["mae_deg"]["roll"] == arm["mae_deg"]["pitch"] == 0.0
    assert arm["mae_deg"]["yaw"] == pytest.approx(3 * 1.75)
    assert arm["mae_deg"]["by_step"] == pytest.approx([2 * 1.75 / 3, 4 * 1.75 / 3])
    assert arm["great_circle_deg"] == pytest.approx(3 * 1.75)
    assert arm["decision_ms"] == {"p50": 2.0, "p99": 3.0}
    assert arm["mae_deg"]["ci95"] == pytest.approx([1.0, 4.0])


def test_equal_weights_are_no_weights_and_a_weight_is_as_many_samples() -> None:
    values = [1.0, 2.0, 5.0, 3.0]
    assert mean_ci(values, weights=[7.0] * 4).mean == pytest.approx(mean_ci(values).mean or 0.0)
    assert mean_ci(values, weights=[2.0] * 4).ci95 == pytest.approx(mean_ci(values).ci95)
    assert mean_ci([1.0, 4.0], weights=[3.0, 1.0]).mean == pytest.approx(1.75)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="positive weight"):
            mean_ci([1.0, 2.0], weights=weights)


def test_pairs_are_over_recordings_that_both_ended_well_on() -> None:
    rows = [
        *(prediction("a", "v/1", 1.0), prediction("b", "v/1", 2.0)),
        *(prediction("a", "v/2", 3.0), prediction("b", "v/2", 5.0)),
        *(prediction("a", "v/3", 1.0), prediction("b", "v/3", 9.0, status="failed")),
        *(prediction("a", "v/4", 0.0, samples=0), prediction("b", "v/4", 0.0, samples=0)),
    ]
    summary = summarize_predictions({}, rows)
    assert [(arm["sessions"], arm["failed"]) for arm in summary["arms"]] == [(4, 0), (4, 1)]
    (pair,) = summary["pairs"]
    assert (pair["a"], pair["b"], pair["n"]) == ("a", "b", 2)
    assert pair["delta"]["mean"] == pytest.approx(-1.5)


def test_an_arm_that_failed_everywhere_has_no_figures() -> None:
    (arm,) = summarize_predictions({}, [prediction("a", "v/1", 1.0, status="failed")])["arms"]
    assert (arm["failed"], arm["samples"]) == (1, 0)
    assert arm["mae_deg"]["mean"] is arm["mae_deg"]["yaw"] is arm["great_circle_deg"] is None
    assert arm["mae_deg"]["by_step"] == []


def test_viewers_count_once_per_recording_and_trace() -> None:
    rows = [
        viewer("a", "v/1", 1.0),
        viewer("a", "v/1", 3.0, client=1),
        viewer("a", "v/1", 5.0, trace="u", mae_deg=None),
        viewer("a", "v/2", 9.0, status="failed"),
        viewer("b", "v/1", 1.5),
        viewer("b", "v/1", 4.0, trace="u"),
    ]
    summary = summarize_streaming({"driver": "emulated"}, rows)
    a, _ = summary["arms"]
    assert (a["sessions"], a["failed"], a["fallbacks"]) == (4, 1, 4)
    assert a["viewport_level"]["mean"] == pytest.approx((2.0 + 5.0) / 2)
    assert a["viewport_bitrate_kbps"]["mean"] == pytest.approx(3500.0)
    assert a["blank_ratio"]["mean"] == pytest.approx(0.1)
    assert a["mae_deg"] == {"mean": 5.0, "ci95": None}
    assert (a["stall_s"], a["startup_s"]) == (1.0, 0.5)
    assert (a["bytes_used"], a["bytes_wasted"]) == (300.0, 100.0)
    assert a["decision_ms"]["p50"] == 3.0
    (pair,) = summary["pairs"]
    assert pair["n"] == 2
    assert pair["delta"]["mean"] == pytest.approx((0.5 + 1.0) / 2)
    assert pair["viewport_bitrate_kbps"]["mean"] == pytest.approx(750.0)
    assert pair["blank_ratio"]["mean"] == pytest.approx(0.0)
    assert pair["mae_deg"]["mean"] == pytest.approx(0.0)
    assert summary["link"]["wire_nmae_1s"]["max"] == pytest.approx(0.003)


def test_a_folder_without_sessions_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text('task = "viewport"\ndriver = "offline"\n')
    with pytest.raises(ValueError, match=r"sessions\.jsonl"):
        summarize_viewport(tmp_path)
