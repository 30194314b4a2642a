"""What is written down about a viewport session: the rows of its ``sessions.jsonl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from player.records import BackgroundRecord, CaptureRecord, LinkRecord, Status
from player.viewport_observation import HeadPose


class PredictedPose(NamedTuple):
    """A pose that tiles were chosen by; in JSON an array.

    Attributes:
        roll_deg: as predicted; like the other angles it may lie beyond the range of a pose.
        pitch_deg: likewise.
        yaw_deg: likewise.
        pitch_spread_deg: expected absolute error; assumed where the controller names none.
        yaw_spread_deg: likewise.
    """

    roll_deg: float
    pitch_deg: float
    yaw_deg: float
    pitch_spread_deg: float
    yaw_spread_deg: float


@dataclass(frozen=True, slots=True)
class TiledChunkRecord:
    """One chunk of one tiled session; times are seconds since the session began.

    Attributes:
        index: chunk number, from 0.
        asked_s: when its predictions were first asked for.
        decision_s: from question to answer, all questions about this chunk together.
        decisions: how many questions those were.
        fallback: whether the fallback answered any of them.
        levels: level of each tile when the chunk began to play, row by row; -1: not there.
        final_levels: likewise when it ended.
        size_bytes: bytes downloaded for it, replaced tiles included.
        used_bytes: of these, bytes of tiles that the viewport touched while they were shown.
        throughput_kbps: estimate by which the tiles were chosen.
        buffer_s: whole seconds of video that lay ahead when it was asked for.
        stall_s: playback stood still before or within this chunk; chunk 0: start-up.
        viewport_level: level in the actual field of view, weighted by area and time; blank
            counts as -1.
        viewport_bitrate_kbps: nominal bitrate there, of the whole sphere at that level; blank: 0.
        blank_ratio: share of the field of view and the time without a tile.
        late_tiles: tiles that came in after the chunk had begun to play.
        replaced_tiles: tiles that were fetched once more, at a better level.
        path: where the viewer really looked, in the middle of each of a few equal parts.
        predicted: what was said of the same times by the last answer that tiles were chosen by;
            empty: there was none.
    """

    index: int
    asked_s: float
    decision_s: float
    decisions: int
    fallback: bool
    levels: tuple[int, ...]
    final_levels: tuple[int, ...]
    size_bytes: int
    used_bytes: int
    throughput_kbps: float | None
    buffer_s: float
    stall_s: float
    viewport_level: float
    viewport_bitrate_kbps: float
    blank_ratio: float
    late_tiles: int
    replaced_tiles: int
    path: tuple[HeadPose, ...] = ()
    predicted: tuple[PredictedPose, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewportSessionRecord:
    """One streamed session: one arm, one recording of head motion, one trace.

    Attributes:
        arm: label of the arm.
        controller: its controller.
        recording: name of the head motion, ``videoVV/userUU``.
        trace: name of the bandwidth trace.
        seed: of the experiment.
        driver: ``simulated`` or ``emulated``.
        status: ``ok`` or ``failed``.
        error: why it failed.
        mae_deg: mean absolute error of the predictions, over samples, steps and axes; only where
            the recording goes on long enough to tell.
        mae_by_step_deg: likewise for each step ahead.
        viewport_bitrate_kbps: mean over the chunks.
        viewport_level: likewise.
        blank_ratio: likewise.
        stall_s: stalls after start-up.
        startup_s: until the first chunk began to play.
        bytes_used: of tiles that the viewport touched while they were shown.
        bytes_wasted: the others.
        fallbacks: answers that the fallback gave.
        wall_s: length of the session on its clock.
        start_index: point of the trace at which it began, in Pensieve's counting.
        link: how faithfully the link followed the trace.
        chunks: one record per chunk.
        decisions_ms: each decision, milliseconds.
        capture: what the packets say, if they were captured.
        client: which of the players behind the bottleneck, from 0.
        group: name of those that shared it.
        background: the other traffic on the bottleneck, one per entry of the experiment.
    """

    arm: str
    controller: str
    recording: str
    trace: str
    seed: int
    driver: str
    status: Status
    error: str | None
    mae_deg: float | None
    mae_by_step_deg: tuple[float | None, ...]
    viewport_bitrate_kbps: float | None
    viewport_level: float | None
    blank_ratio: float | None
    stall_s: float | None
    startup_s: float | None
    bytes_used: int
    bytes_wasted: int
    fallbacks: int
    wall_s: float
    start_index: int
    link: LinkRecord
    chunks: tuple[TiledChunkRecord, ...]
    decisions_ms: tuple[float, ...] = ()
    capture: CaptureRecord | None = None
    client: int = 0
    group: str | None = None
    background: tuple[BackgroundRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRecord:
    """One arm on one recording, without streaming (``driver = "offline"``).

    Attributes:
        arm: label of the arm.
        controller: its controller.
        recording: name of the head motion.
        seed: of the experiment.
        driver: ``offline``.
        status: ``ok`` or ``failed``.
        error: why it failed.
        samples: windows that were evaluated.
        roll_mae_deg: mean absolute error of each step ahead, wrap-around.
        pitch_mae_deg: likewise.
        yaw_mae_deg: likewise.
        great_circle_deg: mean angle between predicted and actual gaze, each step ahead.
        decisions_ms: each decision, milliseconds; of a batch each takes as long as the batch.
        fallbacks: answers that the fallback gave.
    """

    arm: str
    controller: str
    recording: str
    seed: int
    driver: str
    status: Status
    error: str | None
    samples: int
    roll_mae_deg: tuple[float, ...]
    pitch_mae_deg: tuple[float, ...]
    yaw_mae_deg: tuple[float, ...]
    great_circle_deg: tuple[float, ...]
    decisions_ms: tuple[float, ...] = ()
    fallbacks: int = 0
