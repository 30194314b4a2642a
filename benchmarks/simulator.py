"""Speed of the simulated driver, beside a plain loop with the same link semantics.

    .venv/bin/python benchmarks/simulator.py [--rounds 5]

The loop walks the trace step by step, as Pensieve's simulator does; it is written here for the
comparison, with the same arithmetic in plain Python and nothing recorded. Both play the same
sessions at a fixed level on one core, and must agree on every download time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from controllers import registry
from player.link_models import BITS_PER_BYTE, PensieveLink
from player.machine import Player
from player.simulated import play_simulated
from player.trace import BITS_PER_MEGABIT, Trace
from player.video import Video
from testbed.builtin import builtin_traces, builtin_video

LEVEL = 1
SESSIONS = 24


def stepwise(trace: Trace, video: Video) -> list[float]:
    """Download times of a session at a fixed level, walking the trace."""
    edges, rates = trace.times_s.tolist(), trace.rates_mbps.tolist()
    point, at = 1, edges[0]
    buffer_s = 0.0
    took: list[float] = []
    for index, sizes in enumerate(video.sizes_bytes):
        missing = sizes[LEVEL if index else 0]
        elapsed = 0.0
        while True:
            bytes_per_s = rates[point] * BITS_PER_MEGABIT / BITS_PER_BYTE * 0.95
            room = edges[point] - at
            if bytes_per_s * room > missing:
                elapsed += missing / bytes_per_s
                at += missing / bytes_per_s
                break
            missing -= bytes_per_s * room
            elapsed += room
            point, at = (point + 1, edges[point]) if point + 1 < len(edges) else (1, 0.0)
        elapsed += 0.080
        took.append(elapsed)
        buffer_s = max(buffer_s - elapsed, 0.0) + video.chunk_s
        pause = 0.0
        while buffer_s - pause > 60.0:
            pause += 0.5
        buffer_s -= pause
        while pause > 0:
            room = edges[point] - at
            if room > pause:
                at += pause
                break
            pause -= room
            point, at = (point + 1, edges[point]) if point + 1 < len(edges) else (1, 0.0)
    return took


def main() -> None:
    """Prints chunks per second of both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    video = builtin_video("envivio-like")
    traces = builtin_traces("mixed", SESSIONS)
    decide = registry.create("abr", "fixed", {"level": LEVEL}).decide
    chunks = video.chunks * len(traces)
    ours, loop = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        players = [Player(video) for _ in traces]
        for player, trace in zip(players, traces, strict=True):
            play_simulated(player, PensieveLink(trace), decide)
        ours.append(chunks / (time.perf_counter() - began))
        began = time.perf_counter()
        walked = [stepwise(trace, video) for trace in traces]
        loop.append(chunks / (time.perf_counter() - began))
    worst = max(
        abs(chunk.download_s - seconds)
        for player, times in zip(players, walked, strict=True)
        for chunk, seconds in zip(player.chunks, times, strict=True)
    )
    load = os.getloadavg()[0]
    print(f"{chunks} chunks, {rounds} rounds, {os.cpu_count()} cores, load {load:.1f}")
    for name, speeds in (("testbed", ours), ("plain loop", loop)):
        middle = statistics.median(speeds)
        print(f"{name:11} {middle:10.0f} chunks/s ({min(speeds):.0f}–{max(speeds):.0f})")
    print(f"ratio       {statistics.median(ours) / statistics.median(loop):10.2f}")
    print(f"largest difference of a download time: {worst:.1e} s")


if __name__ == "__main__":
    main()
