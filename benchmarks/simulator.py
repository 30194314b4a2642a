"""Speed of the simulators on one core, beside a plain loop with the same link semantics.

    .venv/bin/python benchmarks/simulator.py [--rounds 5] [--sessions 4096]

The loop walks the trace step by step, as Pensieve's simulator does; it is written here for the
comparison, with the same arithmetic in plain Python and nothing recorded. The player machine plays
the same sessions at the same fixed level. The vectorised simulator plays them among many more that
start anywhere, and is asked for its observations before each chunk; once more with the state of
Pensieve's network made of them. It must agree with the player machine in every bit of every record,
and both with the loop on every download time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from controllers import registry
from player.link_models import BITS_PER_BYTE, PensieveLink
from player.link_table import LinkTable
from player.machine import Player
from player.simulated import play_simulated
from player.trace import BITS_PER_MEGABIT, Trace
from player.vectorised import PAST_CHUNKS, Observations, Sessions
from player.video import PENSIEVE_LEVELS_KBPS, Video
from testbed.builtin import builtin_traces, builtin_video

LEVEL = 1
SESSIONS = 24
NAMES = ("plain loop", "player machine", "vectorised", "… with states")


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


def pensieve_state(seen: Observations) -> NDArray[np.float32]:
    """``(B, 6, 8)`` input of Pensieve's network, in the units of its code."""
    state = np.zeros((len(seen.buffer_s), 6, PAST_CHUNKS), dtype=np.float32)
    state[:, 0, -1] = np.asarray(PENSIEVE_LEVELS_KBPS)[seen.last_level] / PENSIEVE_LEVELS_KBPS[-1]
    state[:, 1, -1] = seen.buffer_s / 10
    state[:, 2] = seen.throughput_kbps / 8000
    state[:, 3] = seen.download_s / 10
    state[:, 4, : len(PENSIEVE_LEVELS_KBPS)] = seen.upcoming_sizes_bytes[:, 0] / 1e6
    state[:, 5, -1] = seen.chunks_left / 48
    return state


def vectorised(
    video: Video, links: LinkTable, sessions: int, *, states: bool
) -> tuple[float, Sessions]:
    """Chunks per second of many sessions; the first of them are those of the other simulators."""
    link, start_s = links.draw(sessions, np.random.default_rng(0))
    link[: len(links)], start_s[: len(links)] = np.arange(len(links)), 0.0
    levels = np.full(sessions, LEVEL)
    began = time.perf_counter()
    played = Sessions(video, links, link, start_s)
    while not played.is_done:
        seen = played.observe()
        if states:
            pensieve_state(seen)
        played.step(levels)
    return sessions * video.chunks / (time.perf_counter() - began), played


def main() -> None:
    """Prints chunks per second of each, and the ratios to the loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=4096, help="of the vectorised simulator")
    arguments = parser.parse_args()
    video = builtin_video("envivio-like")
    traces = builtin_traces("mixed", SESSIONS)
    links = LinkTable([PensieveLink(trace) for trace in traces])
    decide = registry.create("abr", "fixed", {"level": LEVEL}).decide
    chunks = video.chunks * len(traces)
    batch = max(arguments.sessions, len(traces))
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        walked = [stepwise(trace, video) for trace in traces]
        speeds["plain loop"].append(chunks / (time.perf_counter() - began))
        began = time.perf_counter()
        players = [Player(video) for _ in traces]
        for player, trace in zip(players, traces, strict=True):
            play_simulated(player, PensieveLink(trace), decide)
        speeds["player machine"].append(chunks / (time.perf_counter() - began))
        for name, states in (("vectorised", False), ("… with states", True)):
            speed, together = vectorised(video, links, batch, states=states)
            speeds[name].append(speed)
    worst = max(
        abs(chunk.download_s - seconds)
        for player, times in zip(players, walked, strict=True)
        for chunk, seconds in zip(player.chunks, times, strict=True)
    )
    equal = sum(
        one == other
        for session, player in enumerate(players)
        for one, other in zip(together.chunks(session), player.chunks, strict=True)
    )
    load = os.getloadavg()[0]
    print(f"{chunks} chunks, {arguments.rounds} rounds, {os.cpu_count()} cores, load {load:.1f};")
    print(f"vectorised: {batch} sessions at once, {batch * video.chunks} chunks")
    loop = statistics.median(speeds["plain loop"])
    for name, measured in speeds.items():
        middle = statistics.median(measured)
        spread = f"({min(measured):.0f}–{max(measured):.0f})"
        print(f"{name:14} {middle:10.0f} chunks/s {spread:20} {middle / loop:6.2f} x plain loop")
    print(f"largest difference of a download time, player machine to plain loop: {worst:.1e} s")
    print(f"records that are equal, vectorised and player machine: {equal} of {chunks}")


if __name__ == "__main__":
    main()
